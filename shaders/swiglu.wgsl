// out = silu(gate) * up, with gate and up side by side in a row.
// One invocation an element. Dispatch: (ceil(F / 64), T), without a division, which is slow on software
// adapters; more than 65,535 rows continue in z. Called by ops/swiglu.rs.

const GRID_X: u32 = 32768u;

struct Params { tokens: u32, cols: u32 }

@group(0) @binding(0) var<storage, read> gate_up: array<f32>;         // (T, 2 F)
@group(0) @binding(1) var<storage, read_write> out: array<f32>;       // (T, F)
@group(0) @binding(2) var<uniform> p: Params;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let token = group.y + group.z * GRID_X;
    let col = group.x * 64u + local;
    if token >= p.tokens || col >= p.cols { return; }
    let at = token * 2u * p.cols + col;
    let gate = gate_up[at];
    out[token * p.cols + col] = gate / (1.0 + exp(-gate)) * gate_up[at + p.cols];
}
