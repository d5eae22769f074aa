// out[t, n] = sum over k of x[t, k] * weights[n, k] for many tokens, on a GPU.
// A workgroup computes a tile of 64 tokens x 128 rows. It widens one unit of 32 columns of both sides
// into workgroup memory at a time, and each of its 16 x 16 invocations keeps 4 x 8 sums.
// Dispatch: (ceil(N / 128), ceil(T / 64)). Called by ops/matmul.rs and ops/fused.rs.

// True if k4 is not a multiple of 8: the last unit would read past the row of x.
const TAIL: bool = true;
// `extra` is added to the result.
const ADD: bool = false;
// Tokens and rows of an invocation.
const MY_TOKENS: u32 = 4u;
const MY_ROWS: u32 = 8u;
const TOKENS: u32 = 16u * MY_TOKENS;
const ROWS: u32 = 16u * MY_ROWS;

struct Params { tokens: u32, rows: u32, units: u32, row_vec4: u32, k4: u32, out_cols: u32, out_first: u32 }

@group(0) @binding(0) var<storage, read> weights: array<Packed>;      // (N, row_vec4)
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;         // (T, k4)
@group(0) @binding(2) var<storage, read> extra: array<vec4<f32>>;     // ADD: (T, out_cols), else x
@group(0) @binding(3) var<storage, read_write> out: array<f32>;       // (T, out_cols)
@group(0) @binding(4) var<uniform> p: Params;

var<workgroup> tile_w: array<vec4<f32>, ROWS * 8u>;
var<workgroup> tile_x: array<vec4<f32>, TOKENS * 8u>;

// Index of vector `j` of line `i` of a tile. Neighbouring lines have the same vector in different banks.
fn place(i: u32, j: u32) -> u32 { return i * 8u + (j ^ (i & 7u)); }

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let first_row = group.x * ROWS;
    let first_token = group.y * TOKENS;
    let my_row = local % 16u;
    let my_token = local / 16u;
    let loaded_row = min(first_row + local, p.rows - 1u) * p.row_vec4;
    var acc: array<array<f32, MY_ROWS>, MY_TOKENS>;
    for (var a = 0u; a < MY_TOKENS; a++) { for (var b = 0u; b < MY_ROWS; b++) { acc[a][b] = 0.0; } }
    for (var unit = 0u; unit < p.units; unit++) {
        if local < ROWS {
            let w = load_unit(loaded_row, p.units, unit);
            for (var j = 0u; j < 8u; j++) { tile_w[place(local, j)] = w[j]; }
        }
        for (var i = local; i < TOKENS * 8u; i += 256u) {
            let token = min(first_token + i / 8u, p.tokens - 1u);
            let k = unit * 8u + i % 8u;
            var v = vec4<f32>(0.0);
            if !TAIL || k < p.k4 { v = x[token * p.k4 + k]; }
            tile_x[place(i / 8u, i % 8u)] = v;
        }
        workgroupBarrier();
        for (var j = 0u; j < 8u; j++) {
            var w: array<vec4<f32>, MY_ROWS>;
            for (var b = 0u; b < MY_ROWS; b++) { w[b] = tile_w[place(my_row + 16u * b, j)]; }
            for (var a = 0u; a < MY_TOKENS; a++) {
                let v = tile_x[place(my_token + 16u * a, j)];
                for (var b = 0u; b < MY_ROWS; b++) { acc[a][b] += dot(v, w[b]); }
            }
        }
        workgroupBarrier();
    }
    for (var a = 0u; a < MY_TOKENS; a++) {
        let token = first_token + my_token + 16u * a;
        for (var b = 0u; b < MY_ROWS; b++) {
            let row = first_row + my_row + 16u * b;
            if token < p.tokens && row < p.rows {
                let to = token * p.out_cols + p.out_first + row;
                var result = acc[a][b];
                if ADD { result += extra[to / 4u][to % 4u]; }
                out[to] = result;
            }
        }
    }
}
