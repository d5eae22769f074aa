// Folds a chunk of a row's logits into the row's state: the largest logit, the sum of
// exp(logit - largest), the logit of the target, and the id of the largest as a number.
// One workgroup a row. Dispatch: grid(T). Called by ops/cross_entropy.rs.

// True for the first chunk: the old state is not read.
const FIRST: bool = true;
const INVOCATIONS: u32 = 64u;
const GRID_X: u32 = 32768u;
const LOWEST: f32 = -3.4e38;

struct Params { rows: u32, cols: u32, first_id: u32 }

@group(0) @binding(0) var<storage, read> logits: array<f32>;               // (T, C)
@group(0) @binding(1) var<storage, read> targets: array<u32>;              // (T)
@group(0) @binding(2) var<storage, read_write> states: array<vec4<f32>>;   // (T)
@group(0) @binding(3) var<uniform> p: Params;

@compute @workgroup_size(INVOCATIONS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let row = group.x + group.y * GRID_X;
    let at = min(row, p.rows - 1u);
    let base = at * p.cols;
    var state = vec4<f32>(LOWEST, 0.0, 0.0, 0.0);
    if !FIRST { state = states[at]; }
    var best = LOWEST;
    var best_id = 0u;
    for (var i = local; i < p.cols; i += INVOCATIONS) {
        let value = logits[base + i];
        if value > best {
            best = value;
            best_id = i;
        }
    }
    let top = reduce_max(best, local);
    // The lowest id of the largest logit: ids are exact as floats.
    let id = -reduce_max(select(LOWEST, -f32(best_id), best == top), local);
    let whole = max(top, state.x);
    var sum = 0.0;
    for (var i = local; i < p.cols; i += INVOCATIONS) { sum += exp(logits[base + i] - whole); }
    let mass = reduce_add(sum, local);
    if local == 0u && row < p.rows {
        state.y = state.y * exp(state.x - whole) + mass;
        if top > state.x { state.w = f32(p.first_id) + id; }
        state.x = whole;
        let target_id = targets[row];
        if target_id >= p.first_id && target_id - p.first_id < p.cols {
            state.z = logits[base + target_id - p.first_id];
        }
        states[row] = state;
    }
}
