// out[t, n] = sum over k of x[t, k] * weights[n, k] for few tokens, on a GPU: the speed is that of
// reading the weights. A workgroup keeps ROWS rows; its lanes take neighbouring units, so that a
// wave reads consecutive 16-byte vectors, and shared/reduce_*.wgsl adds the partial sums at the end.
// Dispatch: grid(ceil(N / ROWS)) with the token in z. Called by ops/matmul.rs.

const ROWS: u32 = 4u;
const TAIL: bool = true;
const GRID_X: u32 = 32768u;
const LANES: u32 = 64u;

struct Params { tokens: u32, rows: u32, units: u32, row_vec4: u32, k4: u32, out_cols: u32, out_first: u32 }

@group(0) @binding(0) var<storage, read> weights: array<Packed>;      // (N, row_vec4)
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;         // (T, k4)
@group(0) @binding(2) var<storage, read_write> out: array<f32>;       // (T, out_cols)
@group(0) @binding(3) var<uniform> p: Params;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first = (group.x + group.y * GRID_X) * ROWS;
    let token = group.z;
    var acc: array<f32, ROWS>;
    for (var r = 0u; r < ROWS; r++) { acc[r] = 0.0; }
    for (var unit = lane; unit < p.units; unit += LANES) {
        var xs: Unit;
        for (var j = 0u; j < 8u; j++) {
            let k = unit * 8u + j;
            xs[j] = vec4<f32>(0.0);
            if !TAIL || k < p.k4 { xs[j] = x[token * p.k4 + k]; }
        }
        for (var r = 0u; r < ROWS; r++) {
            let row = min(first + r, p.rows - 1u);
            let w = load_unit(row * p.row_vec4, p.units, unit);
            var sum = 0.0;
            for (var j = 0u; j < 8u; j++) { sum += dot(w[j], xs[j]); }
            acc[r] += sum;
        }
    }
    for (var r = 0u; r < ROWS; r++) {
        let sum = reduce_add(acc[r], lane);
        if lane == 0u && first + r < p.rows { out[token * p.out_cols + p.out_first + first + r] = sum; }
    }
}
