// y = x * s * weight with s = 1 / sqrt(mean(x^2) + eps). With g = dy * weight:
// dx = s * (g - x * s^2 * mean(g * x)) + add; scales = s. One workgroup a row.
// Dispatch: grid(T). Called by ops/rms_norm_backward.rs.

const INVOCATIONS: u32 = 64u;
const GRID_X: u32 = 32768u;

struct Params { rows: u32, cols: u32, eps: f32 }

@group(0) @binding(0) var<storage, read> x: array<f32>;              // (T, D)
@group(0) @binding(1) var<storage, read> weight: array<f32>;         // (D)
@group(0) @binding(2) var<storage, read> dy: array<f32>;             // (T, D)
@group(0) @binding(3) var<storage, read> add: array<f32>;            // (T, D)
@group(0) @binding(4) var<storage, read_write> dx: array<f32>;       // (T, D)
@group(0) @binding(5) var<storage, read_write> scales: array<f32>;   // (T)
@group(0) @binding(6) var<uniform> p: Params;

@compute @workgroup_size(INVOCATIONS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let row = group.x + group.y * GRID_X;
    let base = min(row, p.rows - 1u) * p.cols;
    var squares = 0.0;
    var products = 0.0;
    for (var i = local; i < p.cols; i += INVOCATIONS) {
        let v = x[base + i];
        squares += v * v;
        products += v * dy[base + i] * weight[i];
    }
    let scale = inverseSqrt(reduce_add(squares, local) / f32(p.cols) + p.eps);
    let back = scale * scale * reduce_add(products, local) / f32(p.cols);
    if row < p.rows {
        for (var i = local; i < p.cols; i += INVOCATIONS) {
            dx[base + i] = scale * (dy[base + i] * weight[i] - x[base + i] * back) + add[base + i];
        }
        if local == 0u { scales[row] = scale; }
    }
}
