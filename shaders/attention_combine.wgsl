// Joins the parts that the splits of a context left: out = sum(exp(max_s - max) * sums_s) / weight.
// One invocation an element. Dispatch: grid(ceil(T * H * head_dim / 64)). Called by ops/attention.rs.

const GRID_X: u32 = 32768u;

struct Params { lines: u32, splits: u32, head_dim: u32 }

@group(0) @binding(0) var<storage, read> parts: array<f32>;           // (T * H, splits, head_dim + 2)
@group(0) @binding(1) var<storage, read_write> out: array<f32>;       // (T * H, head_dim)
@group(0) @binding(2) var<uniform> p: Params;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let index = (group.x + group.y * GRID_X) * 64u + local;
    if index >= p.lines * p.head_dim { return; }
    let line = index / p.head_dim;
    let element = index % p.head_dim;
    let width = p.head_dim + 2u;
    var top = -3.0e38;
    for (var s = 0u; s < p.splits; s++) { top = max(top, parts[(line * p.splits + s) * width + p.head_dim]); }
    var sum = 0.0;
    var weight = 0.0;
    for (var s = 0u; s < p.splits; s++) {
        let at = (line * p.splits + s) * width;
        let factor = exp(parts[at + p.head_dim] - top);
        sum += factor * parts[at + element];
        weight += factor * parts[at + p.head_dim + 1u];
    }
    out[index] = sum / weight;
}
