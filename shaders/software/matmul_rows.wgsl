// out[t, n] = sum over k of x[t, k] * weights[n, k], for adapters whose lanes run on CPU cores.
// One invocation keeps four weight rows (the components of its vectors) and TOKENS tokens: no
// barrier, no reduction between lanes. software/x_shuffle.wgsl or software/x_direct.wgsl loads x.
// software/store_columns.wgsl or software/store_rotated.wgsl decides which rows an invocation has and where
// its results go, and declares the bindings after `out`.
// Dispatch: (ceil(N / (4 * LANES)), ceil(T / TOKENS)), with GATED 2 in the place of 4. Called by
// ops/matmul.rs, and by ops/fused.rs with the ops around a product.

const TOKENS: u32 = 1u;
// Lanes of a workgroup; with x_shuffle.wgsl those of a subgroup.
const LANES: u32 = 8u;
// True if scales and offsets are applied once a unit, to the sums: less work for one token, more
// registers for many. Needs x_shuffle.wgsl.
const SUM_SCALES: bool = false;
// True if k4 is not a multiple of 8: the last unit would read past the row of x.
const TAIL: bool = true;
// x is normalised while it is loaded (ops/rms_norm.rs); `extra` has the norm's weights. Needs x_shuffle.wgsl,
// and k4 to be a fourth of the columns.
const NORM: bool = false;

struct Params {
    tokens: u32, rows: u32, units: u32, row_vec4: u32, k4: u32, out_cols: u32, out_first: u32, eps: f32,
    // For store_rotated.wgsl.
    heads: u32, kv_heads: u32, rope_at: u32,
}

@group(0) @binding(0) var<storage, read> weights: array<Packed>;      // (N, row_vec4)
@group(0) @binding(1) var<storage, read> x: array<Floats>;            // (T, k4)
@group(0) @binding(2) var<storage, read> extra: array<Floats>;        // NORM: (K), ADD: (T, out_cols), else x
@group(0) @binding(3) var<storage, read_write> out: array<f32>;       // (T, out_cols)

// Vector `k` of the row of x that starts at `base`.
fn x_at(base: u32, k: u32) -> vec4<f32> {
    if !TAIL || k < p.k4 { return floats_of(x[base + k]); }
    return vec4<f32>(0.0);
}

@compute @workgroup_size(LANES)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>) {
    // No early return: shuffles need all lanes.
    let at = rows_of(group.x, lane) * p.row_vec4;
    let first = group.y * TOKENS;
    var squares: array<f32, TOKENS>;
    // Sums of the row; with SUM_SCALES of the unit, and `acc` gets them scaled.
    var sums: array<vec4<f32>, TOKENS>;
    var acc: array<vec4<f32>, TOKENS>;
    for (var t = 0u; t < TOKENS; t++) {
        sums[t] = vec4<f32>(0.0);
        acc[t] = vec4<f32>(0.0);
        squares[t] = 0.0;
    }
    for (var group = 0u; group < p.units; group += GROUP) {
        let scales_a = group_scales(at.x, p.units, group);
        let scales_b = group_scales(at.y, p.units, group);
        let scales_c = group_scales(at.z, p.units, group);
        let scales_d = group_scales(at.w, p.units, group);
        let last = min(group + GROUP, p.units);
        for (var unit = group; unit < last; unit++) {
            let scale_a = unit_scale(scales_a, unit - group);
            let scale_b = unit_scale(scales_b, unit - group);
            let scale_c = unit_scale(scales_c, unit - group);
            let scale_d = unit_scale(scales_d, unit - group);
            let start = at + unit * UNIT_VEC4;
            let quants_a = unit_quants(start.x, at.x, p.units, unit);
            let quants_b = unit_quants(start.y, at.y, p.units, unit);
            let quants_c = unit_quants(start.z, at.z, p.units, unit);
            let quants_d = unit_quants(start.w, at.w, p.units, unit);
            var xs: array<X, TOKENS>;
            var gains = vec4<f32>(1.0);
            if NORM { gains = floats_of(extra[min(x_vector(unit, lane), p.k4 - 1u)]); }
            for (var t = 0u; t < TOKENS; t++) {
                xs[t] = load_x(min(first + t, p.tokens - 1u) * p.k4, unit, lane);
                if NORM {
                    squares[t] += x_squares(xs[t], lane);
                    xs[t] = x_times(xs[t], gains);
                }
                if SUM_SCALES { sums[t] = vec4<f32>(0.0); }
            }
            for (var i = 0u; i < 8u; i++) {
                let columns = transpose(mat4x4<f32>(
                    weights_vec4(start.x, quants_a, i, scale_a), weights_vec4(start.y, quants_b, i, scale_b),
                    weights_vec4(start.z, quants_c, i, scale_c), weights_vec4(start.w, quants_d, i, scale_d),
                ));
                for (var t = 0u; t < TOKENS; t++) {
                    let v = x_vec4(xs[t], i);
                    var sum = sums[t];
                    sum = fma(columns[0], vec4<f32>(v.x), sum);
                    sum = fma(columns[1], vec4<f32>(v.y), sum);
                    sum = fma(columns[2], vec4<f32>(v.z), sum);
                    sums[t] = fma(columns[3], vec4<f32>(v.w), sum);
                }
            }
            if SUM_SCALES {
                let scales = transpose(mat4x2<f32>(scale_a, scale_b, scale_c, scale_d));
                for (var t = 0u; t < TOKENS; t++) {
                    let total = vec4<f32>(x_total(xs[t], lane));
                    acc[t] = fma(scales[0], sums[t], fma(scales[1], total, acc[t]));
                }
            }
        }
    }
    for (var t = 0u; t < TOKENS; t++) {
        var sum = select(sums[t], acc[t], vec4<bool>(SUM_SCALES));
        if NORM { sum *= inverseSqrt(x_over_lanes(squares[t]) / f32(4u * p.k4) + p.eps); }
        if first + t < p.tokens { store(first + t, group.x, lane, sum); }
    }
}
