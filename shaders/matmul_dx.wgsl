// dx[t, k] = sum over n of dy[t, n] * weights[n, k], or the sum is added to dx.
// A workgroup computes a tile of 64 tokens x 64 columns (two units): it widens 16 rows of both units
// into workgroup memory at a time, and each of its 16 x 16 invocations keeps 4 tokens x 4 columns.
// Dispatch: (ceil(K / 64), ceil(T / 64)). Called by ops/matmul_dx.rs.

const ACCUMULATE: bool = false;
const ROWS: u32 = 16u;

struct Params { tokens: u32, rows: u32, units: u32, row_vec4: u32, cols: u32, dy_cols: u32, dy_first: u32 }

@group(0) @binding(0) var<storage, read> weights: array<Packed>;      // (N, row_vec4)
@group(0) @binding(1) var<storage, read> dy: array<f32>;              // (T, dy_cols)
@group(0) @binding(2) var<storage, read_write> dx: array<f32>;        // (T, K)
@group(0) @binding(3) var<uniform> p: Params;

var<workgroup> tile_w: array<vec4<f32>, 256>;
// One padding element a row puts neighbouring rows into different banks.
var<workgroup> tile_d: array<f32, 1088>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let first_token = group.y * 64u;
    let my_col = local % 16u;
    let my_token = local / 16u;
    var acc: array<vec4<f32>, 4>;
    for (var a = 0u; a < 4u; a++) { acc[a] = vec4<f32>(0.0); }
    for (var first = 0u; first < p.rows; first += ROWS) {
        if local < 32u {
            let row = first + local / 2u;
            let unit = group.x * 2u + local % 2u;
            let at = (local / 2u) * 16u + (local % 2u) * 8u;
            if row < p.rows && unit < p.units {
                let w = load_unit(row * p.row_vec4, p.units, unit);
                for (var j = 0u; j < 8u; j++) { tile_w[at + j] = w[j]; }
            } else {
                for (var j = 0u; j < 8u; j++) { tile_w[at + j] = vec4<f32>(0.0); }
            }
        }
        for (var i = local; i < 64u * ROWS; i += 256u) {
            let token = first_token + i / ROWS;
            let row = first + i % ROWS;
            var d = 0.0;
            if token < p.tokens && row < p.rows { d = dy[token * p.dy_cols + p.dy_first + row]; }
            tile_d[(i / ROWS) * 17u + i % ROWS] = d;
        }
        workgroupBarrier();
        for (var n = 0u; n < ROWS; n++) {
            let w = tile_w[n * 16u + my_col];
            for (var a = 0u; a < 4u; a++) { acc[a] += tile_d[(my_token + 16u * a) * 17u + n] * w; }
        }
        workgroupBarrier();
    }
    for (var a = 0u; a < 4u; a++) {
        let token = first_token + my_token + 16u * a;
        for (var j = 0u; j < 4u; j++) {
            let col = group.x * 64u + my_col * 4u + j;
            if token < p.tokens && col < p.cols {
                let at = token * p.cols + col;
                if ACCUMULATE { dx[at] += acc[a][j]; } else { dx[at] = acc[a][j]; }
            }
        }
    }
}
