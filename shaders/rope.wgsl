// Rotates queries and keys by the angles of their rows, or back; values are copied.
// qkv holds the heads of a row: queries, keys, values. One invocation a pair of elements.
// Dispatch: (ceil(pairs / 64), grid(T)). Called by ops/rope.rs.

const HALF_SPLIT: bool = true;
const INVERSE: bool = false;
const GRID_X: u32 = 32768u;

struct Params { tokens: u32, heads: u32, kv_heads: u32, half: u32 }

@group(0) @binding(0) var<storage, read> qkv: array<f32>;          // (T, (H + 2 K) h)
@group(0) @binding(1) var<storage, read> batch: array<u32>;        // cos and sin from word 3 T on
@group(0) @binding(2) var<storage, read_write> out: array<f32>;    // (T, (H + 2 K) h)
@group(0) @binding(3) var<uniform> p: Params;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let token = id.y + id.z * GRID_X;
    let heads = p.heads + 2u * p.kv_heads;
    if token >= p.tokens || id.x >= heads * p.half { return; }
    let head = id.x / p.half;
    let pair = id.x % p.half;
    let base = (token * heads + head) * 2u * p.half;
    var a = base + 2u * pair;
    var b = a + 1u;
    if HALF_SPLIT {
        a = base + pair;
        b = a + p.half;
    }
    let v = vec2<f32>(qkv[a], qkv[b]);
    let at = 3u * p.tokens + 2u * (token * p.half + pair);
    let cos = bitcast<f32>(batch[at]);
    var sin = bitcast<f32>(batch[at + 1u]);
    if INVERSE { sin = -sin; }
    if head < p.heads + p.kv_heads {
        out[a] = v.x * cos - v.y * sin;
        out[b] = v.x * sin + v.y * cos;
    } else {
        out[a] = v.x;
        out[b] = v.y;
    }
}
