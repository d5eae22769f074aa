// sums[group] = sum of the squares of the group's part of a gradient.
// Dispatch: groups. Called by ops/adamw.rs.

const INVOCATIONS: u32 = 256u;

struct Params { len: u32, groups: u32 }

@group(0) @binding(0) var<storage, read> grad: array<f32>;
@group(0) @binding(1) var<storage, read_write> sums: array<f32>;
@group(0) @binding(2) var<uniform> p: Params;

@compute @workgroup_size(INVOCATIONS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    var sum = 0.0;
    for (var i = group.x * INVOCATIONS + local; i < p.len; i += INVOCATIONS * p.groups) { sum += grad[i] * grad[i]; }
    let total = reduce_add(sum, local);
    if local == 0u { sums[group.x] = total; }
}
