// Stores the results of matmul_rows.wgsl as columns of `out`. The alternative is store_rotated.wgsl.

// Rows 0 to N of the matrix are gates of rows N to 2 N (ops/swiglu.rs).
const GATED: bool = false;
// `extra` is added to the result.
const ADD: bool = false;

@group(0) @binding(4) var<uniform> p: Params;

// The columns of a lane: four, or with GATED the first two.
fn columns_of(group: u32, lane: u32) -> vec4<u32> {
    return group * select(4u, 2u, GATED) * LANES + lane + LANES * vec4<u32>(0u, 1u, 2u, 3u);
}

// The rows of the matrix that a lane multiplies.
fn rows_of(group: u32, lane: u32) -> vec4<u32> {
    let columns = columns_of(group, lane);
    if GATED { return min(vec4<u32>(columns.xy, p.rows + columns.xy), vec4<u32>(2u * p.rows - 1u)); }
    return min(columns, vec4<u32>(p.rows - 1u));
}

fn store(token: u32, group: u32, lane: u32, sums: vec4<f32>) {
    let columns = columns_of(group, lane);
    var result = sums;
    if GATED { result = vec4<f32>(sums.xy / (1.0 + exp(-sums.xy)) * sums.zw, sums.zw); }
    for (var r = 0u; r < select(4u, 2u, GATED); r++) {
        if columns[r] < p.rows {
            let to = token * p.out_cols + p.out_first + columns[r];
            if ADD { result[r] += floats_of(extra[to / 4u])[to % 4u]; }
            out[to] = result[r];
        }
    }
}
