// sum = x + residual; out = sum / sqrt(mean(sum^2) + eps) * weight, per token row.
// One workgroup a row. Dispatch: grid(T). Called by ops/rms_norm.rs.

// Without a residual `sum` is not written and `residual` is x itself.
const RESIDUAL: bool = true;
const INVOCATIONS: u32 = 64u;
const GRID_X: u32 = 32768u;

struct Params { rows: u32, cols: u32, eps: f32 }

@group(0) @binding(0) var<storage, read> x: array<f32>;              // (T, D)
@group(0) @binding(1) var<storage, read> residual: array<f32>;       // (T, D)
@group(0) @binding(2) var<storage, read> weight: array<f32>;         // (D)
@group(0) @binding(3) var<storage, read_write> sum: array<f32>;      // (T, D)
@group(0) @binding(4) var<storage, read_write> out: array<f32>;      // (T, D)
@group(0) @binding(5) var<uniform> p: Params;

@compute @workgroup_size(INVOCATIONS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let row = group.x + group.y * GRID_X;
    let base = min(row, p.rows - 1u) * p.cols;
    var squares = 0.0;
    for (var i = local; i < p.cols; i += INVOCATIONS) {
        var v = x[base + i];
        if RESIDUAL { v += residual[base + i]; }
        squares += v * v;
    }
    let scale = inverseSqrt(reduce_add(squares, local) / f32(p.cols) + p.eps);
    if row < p.rows {
        for (var i = local; i < p.cols; i += INVOCATIONS) {
            var v = x[base + i];
            if RESIDUAL {
                v += residual[base + i];
                sum[base + i] = v;
            }
            out[base + i] = v * scale * weight[i];
        }
    }
}
