// Each invocation copies one vector: the bandwidth of a device that only reads and writes.
// Dispatch: grid(ceil(vectors / 256)). Called by launch_cost.rs.

const GRID_X: u32 = 32768u;

struct Params { vectors: u32 }

@group(0) @binding(0) var<storage, read> source: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> to: array<vec4<u32>>;
@group(0) @binding(2) var<uniform> p: Params;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let i = (group.x + group.y * GRID_X) * 256u + local;
    if i < p.vectors { to[i] = source[i]; }
}
