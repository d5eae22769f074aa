// grad[i] += sum over t of dy[t, i] * x[t, i] * scales[t].
// A workgroup sums 16 columns, 16 invocations each.
// Dispatch: ceil(D / 16). Called by ops/rms_norm_backward.rs.

struct Params { rows: u32, cols: u32 }

@group(0) @binding(0) var<storage, read> x: array<f32>;             // (T, D)
@group(0) @binding(1) var<storage, read> dy: array<f32>;            // (T, D)
@group(0) @binding(2) var<storage, read> scales: array<f32>;        // (T)
@group(0) @binding(3) var<storage, read_write> grad: array<f32>;    // (D)
@group(0) @binding(4) var<uniform> p: Params;

var<workgroup> sums: array<f32, 256>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let col = group.x * 16u + local % 16u;
    var sum = 0.0;
    if col < p.cols {
        for (var t = local / 16u; t < p.rows; t += 16u) {
            sum += dy[t * p.cols + col] * x[t * p.cols + col] * scales[t];
        }
    }
    sums[local] = sum;
    workgroupBarrier();
    for (var half = 128u; half >= 16u; half = half / 2u) {
        if local < half { sums[local] += sums[local + half]; }
        workgroupBarrier();
    }
    if local < 16u && col < p.cols { grad[col] += sums[local]; }
}
