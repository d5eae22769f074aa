// out[t, n] = sum over k of x[t, k] * weights[n, k] for many tokens, on a GPU.
// A workgroup makes a tile of 64 tokens x 64 rows: it widens one unit of 32 columns of both sides
// into workgroup memory and each of its 16 x 16 invocations keeps 4 x 4 sums.
// Dispatch: (ceil(N / 64), ceil(T / 64)). Called by ops/matmul.rs.

// Whether k4 is not a multiple of 8, so that the last unit reads past the row of x.
const TAIL: bool = true;
const TILE: u32 = 64u;

struct Params { tokens: u32, rows: u32, units: u32, row_vec4: u32, k4: u32, out_cols: u32, out_first: u32 }

@group(0) @binding(0) var<storage, read> weights: array<Packed>;      // (N, row_vec4)
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;         // (T, k4)
@group(0) @binding(2) var<storage, read_write> out: array<f32>;       // (T, out_cols)
@group(0) @binding(3) var<uniform> p: Params;

// Nine vectors a row instead of eight keep neighbouring rows in different banks.
var<workgroup> tile_w: array<vec4<f32>, 576>;
var<workgroup> tile_x: array<vec4<f32>, 576>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first_row = group.x * TILE;
    let first_token = group.y * TILE;
    let row_lane = lane % 16u;
    let token_lane = lane / 16u;
    var acc: array<array<f32, 4>, 4>;
    for (var a = 0u; a < 4u; a++) { for (var b = 0u; b < 4u; b++) { acc[a][b] = 0.0; } }
    for (var unit = 0u; unit < p.units; unit++) {
        if lane < TILE {
            let row = min(first_row + lane, p.rows - 1u);
            let w = load_unit(row * p.row_vec4, p.units, unit);
            for (var j = 0u; j < 8u; j++) { tile_w[lane * 9u + j] = w[j]; }
        }
        for (var i = lane; i < TILE * 8u; i += 256u) {
            let token = min(first_token + i / 8u, p.tokens - 1u);
            let k = unit * 8u + i % 8u;
            var v = vec4<f32>(0.0);
            if !TAIL || k < p.k4 { v = x[token * p.k4 + k]; }
            tile_x[(i / 8u) * 9u + i % 8u] = v;
        }
        workgroupBarrier();
        for (var j = 0u; j < 8u; j++) {
            var w: array<vec4<f32>, 4>;
            for (var b = 0u; b < 4u; b++) { w[b] = tile_w[(row_lane + 16u * b) * 9u + j]; }
            for (var a = 0u; a < 4u; a++) {
                let v = tile_x[(token_lane + 16u * a) * 9u + j];
                for (var b = 0u; b < 4u; b++) { acc[a][b] += dot(v, w[b]); }
            }
        }
        workgroupBarrier();
    }
    for (var a = 0u; a < 4u; a++) {
        let token = first_token + token_lane + 16u * a;
        for (var b = 0u; b < 4u; b++) {
            let row = first_row + row_lane + 16u * b;
            if token < p.tokens && row < p.rows {
                out[token * p.out_cols + p.out_first + row] = acc[a][b];
            }
        }
    }
}
