// logits[t, c] becomes scale[t] * (softmax - one hot): the gradient of the cross-entropy, for the
// tokens first_id.. of the vocabulary, from the state that cross_entropy.wgsl left.
// Dispatch: (ceil(C / 64), grid(T)). Called by ops/cross_entropy.rs.

const GRID_X: u32 = 32768u;

struct Params { rows: u32, cols: u32, first_id: u32 }

@group(0) @binding(0) var<storage, read_write> logits: array<f32>;    // (T, C)
@group(0) @binding(1) var<storage, read> targets: array<u32>;         // (T)
@group(0) @binding(2) var<storage, read> states: array<vec4<f32>>;    // (T)
@group(0) @binding(3) var<storage, read> scale: array<f32>;           // (T)
@group(0) @binding(4) var<uniform> p: Params;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let row = id.y + id.z * GRID_X;
    if row >= p.rows || id.x >= p.cols { return; }
    let at = row * p.cols + id.x;
    let state = states[row];
    let share = exp(logits[at] - state.x) / state.y;
    let hot = select(0.0, 1.0, targets[row] == p.first_id + id.x);
    logits[at] = scale[row] * (share - hot);
}
