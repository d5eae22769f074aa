// With s the logistic function of the gate: dgate = d * up * s * (1 + gate * (1 - s)) and
// dup = d * gate * s. Gates come before ups in a row.
// Dispatch: (ceil(F / 64), grid(T)). Called by ops/swiglu_backward.rs.

const GRID_X: u32 = 32768u;

struct Params { tokens: u32, cols: u32 }

@group(0) @binding(0) var<storage, read> gate_up: array<f32>;      // (T, 2 F)
@group(0) @binding(1) var<storage, read> d: array<f32>;            // (T, F)
@group(0) @binding(2) var<storage, read_write> out: array<f32>;    // (T, 2 F)
@group(0) @binding(3) var<uniform> p: Params;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let token = id.y + id.z * GRID_X;
    if token >= p.tokens || id.x >= p.cols { return; }
    let at = token * 2u * p.cols + id.x;
    let gate = gate_up[at];
    let up = gate_up[at + p.cols];
    let grad = d[token * p.cols + id.x];
    // exp of a large number is infinite, and its reciprocal zero, as it should be.
    let s = 1.0 / (1.0 + exp(-gate));
    out[at] = grad * up * s * (1.0 + gate * (1.0 - s));
    out[at + p.cols] = grad * gate * s;
}
