// Gradient of the queries of segment_attention.wgsl. With P = exp(score - lse), made again, and
// D = dcontext . context a row: dS = P * (dcontext . v - D) and dq = scale * sum of dS * k.
// A workgroup takes TILE rows of queries of one head, as forwards.
// Dispatch: (ceil(T / TILE), H). Called by ops/segment_attention.rs.

const HEAD_DIM: u32 = 64u;
const TILE: u32 = 32u;

struct Params { tokens: u32, heads: u32, kv_heads: u32 }

@group(0) @binding(0) var<storage, read> qkv: array<f32>;             // (T, (H + 2 K) h), rotated
@group(0) @binding(1) var<storage, read> batch: array<u32>;           // ids (T), first (T), end (T), ...
@group(0) @binding(2) var<storage, read> context: array<f32>;         // (T, H h)
@group(0) @binding(3) var<storage, read> lse: array<f32>;             // (T, H)
@group(0) @binding(4) var<storage, read> dcontext: array<f32>;        // (T, H h)
@group(0) @binding(5) var<storage, read_write> dqkv: array<f32>;      // (T, (H + 2 K) h)
@group(0) @binding(6) var<uniform> p: Params;

var<workgroup> gradients: array<f32, 1056>;
var<workgroup> means: array<f32, 32>;
var<workgroup> begin: u32;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let tile = group.x * TILE;
    let head = group.y;
    let cols = (p.heads + 2u * p.kv_heads) * HEAD_DIM;
    let kv = head / (p.heads / p.kv_heads);
    let key_col = (p.heads + kv) * HEAD_DIM;
    let value_col = (p.heads + p.kv_heads + kv) * HEAD_DIM;
    let scale = inverseSqrt(f32(HEAD_DIM));
    let last = p.tokens - 1u;

    let row = lane / 2u;
    let part = (lane % 2u) * (HEAD_DIM / 2u);
    var acc: array<f32, HEAD_DIM / 2u>;
    for (var i = 0u; i < HEAD_DIM / 2u; i++) { acc[i] = 0.0; }

    if lane < TILE {
        let at = (min(tile + lane, last) * p.heads + head) * HEAD_DIM;
        var mean = 0.0;
        for (var i = 0u; i < HEAD_DIM; i++) { mean += context[at + i] * dcontext[at + i]; }
        means[lane] = mean;
    }
    if lane == 0u { begin = batch[p.tokens + min(tile, last)]; }
    let start = workgroupUniformLoad(&begin) / TILE * TILE;
    let stop = min(tile + TILE, p.tokens);
    for (var block = start; block < stop; block += TILE) {
        // 4 x 4 scores and weight gradients an invocation.
        var sums: array<vec4<f32>, 4>;
        var products: array<vec4<f32>, 4>;
        var queries: array<u32, 4>;
        var contexts: array<u32, 4>;
        var keys: array<u32, 4>;
        for (var a = 0u; a < 4u; a++) {
            sums[a] = vec4<f32>(0.0);
            products[a] = vec4<f32>(0.0);
            let query = min(tile + lane / 8u + 8u * a, last);
            queries[a] = query * cols + head * HEAD_DIM;
            contexts[a] = (query * p.heads + head) * HEAD_DIM;
            keys[a] = min(block + lane % 8u + 8u * a, last) * cols;
        }
        for (var i = 0u; i < HEAD_DIM; i++) {
            var k: vec4<f32>;
            var v: vec4<f32>;
            for (var b = 0u; b < 4u; b++) {
                k[b] = qkv[keys[b] + key_col + i];
                v[b] = qkv[keys[b] + value_col + i];
            }
            for (var a = 0u; a < 4u; a++) {
                sums[a] += qkv[queries[a] + i] * k;
                products[a] += dcontext[contexts[a] + i] * v;
            }
        }
        for (var a = 0u; a < 4u; a++) {
            let local = lane / 8u + 8u * a;
            let query = min(tile + local, last);
            let first = batch[p.tokens + query];
            let mass = lse[query * p.heads + head];
            for (var b = 0u; b < 4u; b++) {
                let key = block + lane % 8u + 8u * b;
                let seen = key >= first && key <= query;
                let weight = exp(min(sums[a][b] * scale - mass, 0.0));
                let gradient = weight * (products[a][b] - means[local]) * scale;
                gradients[local * 33u + lane % 8u + 8u * b] = select(0.0, gradient, seen);
            }
        }
        workgroupBarrier();
        for (var j = 0u; j < TILE; j++) {
            let gradient = gradients[row * 33u + j];
            let at = min(block + j, last) * cols + key_col + part;
            for (var i = 0u; i < HEAD_DIM / 2u; i++) { acc[i] += gradient * qkv[at + i]; }
        }
        workgroupBarrier();
    }
    if tile + row < p.tokens {
        let at = (tile + row) * cols + head * HEAD_DIM + part;
        for (var i = 0u; i < HEAD_DIM / 2u; i++) { dqkv[at + i] = acc[i]; }
    }
}
