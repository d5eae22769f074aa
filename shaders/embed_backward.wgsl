// grad[id, i] += sum of d[row, i] over the rows with that id. The host sorts the rows by id,
// so that no two invocations write one place.
// Dispatch: (ceil(D / 64), grid(distinct ids)). Called by ops/embed_backward.rs.

const GRID_X: u32 = 32768u;

struct Params { distinct: u32, cols: u32, stride: u32 }

@group(0) @binding(0) var<storage, read> d: array<f32>;             // (T, D)
@group(0) @binding(1) var<storage, read> index: array<u32>;         // ids (U), offsets (U + 1), rows
@group(0) @binding(2) var<storage, read_write> grad: array<f32>;    // (V, stride)
@group(0) @binding(3) var<uniform> p: Params;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let at = id.y + id.z * GRID_X;
    if at >= p.distinct || id.x >= p.cols { return; }
    let rows = 2u * p.distinct + 1u;
    var sum = 0.0;
    let end = index[p.distinct + at + 1u];
    for (var i = index[p.distinct + at]; i < end; i++) { sum += d[index[rows + i] * p.cols + id.x]; }
    grad[index[at] * p.stride + id.x] += sum;
}
