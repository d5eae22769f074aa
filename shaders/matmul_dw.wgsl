// grad[n, k] += sum over t of dy[t, n] * x[t, k].
// A workgroup computes a tile of 64 rows x 64 columns from 16 tokens at a time. Each of its 16 x 16
// invocations keeps 4 neighbouring rows x 4 neighbouring columns, so it reads one vector of each side a token.
// Dispatch: (ceil(K / 64), ceil(N / 64)). Called by ops/matmul_dw.rs.

const TOKENS: u32 = 16u;

struct Params { tokens: u32, rows: u32, cols: u32, stride: u32, dy_cols: u32, dy_first: u32, x_cols: u32 }

@group(0) @binding(0) var<storage, read> dy: array<f32>;          // (T, dy_cols)
@group(0) @binding(1) var<storage, read> x: array<f32>;           // (T, x_cols)
@group(0) @binding(2) var<storage, read_write> grad: array<f32>;  // (N, stride)
@group(0) @binding(3) var<uniform> p: Params;

var<workgroup> tile_d: array<vec4<f32>, 256>;
var<workgroup> tile_x: array<vec4<f32>, 256>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let across = local % 16u;
    let down = local / 16u;
    // The elements that this invocation loads, and those that it sums.
    let load_row = group.y * 64u + across * 4u;
    let col = group.x * 64u + across * 4u;
    let row = group.y * 64u + down * 4u;
    var acc: array<vec4<f32>, 4>;
    for (var a = 0u; a < 4u; a++) { acc[a] = vec4<f32>(0.0); }
    for (var first = 0u; first < p.tokens; first += TOKENS) {
        let token = first + down;
        var d = vec4<f32>(0.0);
        var v = vec4<f32>(0.0);
        if token < p.tokens {
            let d_at = token * p.dy_cols + p.dy_first + load_row;
            let x_at = token * p.x_cols + col;
            for (var c = 0u; c < 4u; c++) {
                if load_row + c < p.rows { d[c] = dy[d_at + c]; }
                if col + c < p.cols { v[c] = x[x_at + c]; }
            }
        }
        tile_d[local] = d;
        tile_x[local] = v;
        workgroupBarrier();
        for (var t = 0u; t < TOKENS; t++) {
            let rows = tile_d[t * 16u + down];
            let cols = tile_x[t * 16u + across];
            for (var a = 0u; a < 4u; a++) { acc[a] += rows[a] * cols; }
        }
        workgroupBarrier();
    }
    for (var a = 0u; a < 4u; a++) {
        for (var b = 0u; b < 4u; b++) {
            if row + a < p.rows && col + b < p.cols { grad[(row + a) * p.stride + col + b] += acc[a][b]; }
        }
    }
}
