// grad[n, k] += sum over t of dy[t, n] * x[t, k].
// A workgroup makes a tile of 64 rows x 64 columns from 16 tokens at a time; each of its 16 x 16
// invocations keeps 4 x 4 sums.
// Dispatch: (ceil(K / 64), ceil(N / 64)). Called by ops/matmul_dw.rs.

const TOKENS: u32 = 16u;

struct Params { tokens: u32, rows: u32, cols: u32, stride: u32, dy_cols: u32, dy_first: u32, x_cols: u32 }

@group(0) @binding(0) var<storage, read> dy: array<f32>;          // (T, dy_cols)
@group(0) @binding(1) var<storage, read> x: array<f32>;           // (T, x_cols)
@group(0) @binding(2) var<storage, read_write> grad: array<f32>;  // (N, stride)
@group(0) @binding(3) var<uniform> p: Params;

var<workgroup> tile_d: array<f32, 1024>;
var<workgroup> tile_x: array<f32, 1024>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first_col = group.x * 64u;
    let first_row = group.y * 64u;
    let col_lane = lane % 16u;
    let row_lane = lane / 16u;
    var acc: array<vec4<f32>, 4>;
    for (var a = 0u; a < 4u; a++) { acc[a] = vec4<f32>(0.0); }
    for (var first = 0u; first < p.tokens; first += TOKENS) {
        for (var i = lane; i < 64u * TOKENS; i += 256u) {
            let token = first + i / 64u;
            let row = first_row + i % 64u;
            let col = first_col + i % 64u;
            var d = 0.0;
            var v = 0.0;
            if token < p.tokens && row < p.rows { d = dy[token * p.dy_cols + p.dy_first + row]; }
            if token < p.tokens && col < p.cols { v = x[token * p.x_cols + col]; }
            tile_d[i] = d;
            tile_x[i] = v;
        }
        workgroupBarrier();
        for (var t = 0u; t < TOKENS; t++) {
            var v: vec4<f32>;
            for (var b = 0u; b < 4u; b++) { v[b] = tile_x[t * 64u + col_lane + 16u * b]; }
            for (var a = 0u; a < 4u; a++) { acc[a] += tile_d[t * 64u + row_lane + 16u * a] * v; }
        }
        workgroupBarrier();
    }
    for (var a = 0u; a < 4u; a++) {
        let row = first_row + row_lane + 16u * a;
        for (var b = 0u; b < 4u; b++) {
            let col = first_col + col_lane + 16u * b;
            if row < p.rows && col < p.cols { grad[row * p.stride + col] += acc[a][b]; }
        }
    }
}
