// One step of AdamW in place. settings: learning rate, beta1, beta2, eps, decay, the two bias corrections, and
// the factor of the gradient.
// Dispatch: grid(ceil(len / 64)). Called by ops/adamw.rs.

const DECAY: bool = true;
const GRID_X: u32 = 32768u;

struct Params { len: u32 }

@group(0) @binding(0) var<storage, read_write> weight: array<f32>;
@group(0) @binding(1) var<storage, read> grad: array<f32>;
@group(0) @binding(2) var<storage, read_write> m: array<f32>;
@group(0) @binding(3) var<storage, read_write> v: array<f32>;
@group(0) @binding(4) var<storage, read> settings: array<f32>;
@group(0) @binding(5) var<uniform> p: Params;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let i = (group.x + group.y * GRID_X) * 64u + local;
    if i >= p.len { return; }
    let g = grad[i] * settings[7];
    let first = settings[1] * m[i] + (1.0 - settings[1]) * g;
    let second = settings[2] * v[i] + (1.0 - settings[2]) * g * g;
    m[i] = first;
    v[i] = second;
    var w = weight[i];
    if DECAY { w *= 1.0 - settings[0] * settings[4]; }
    weight[i] = w - settings[0] * (first * settings[5]) / (sqrt(second * settings[6]) + settings[3]);
}
