// Gradients of keys and values of segment_attention.wgsl: dv_j = sum over the queries that see key j
// of P * dcontext, and dk_j = scale * sum of dS * q, with P and dS as in segment_attention_dq.wgsl.
// A workgroup takes TILE rows of one key head and goes over the queries after them, of all query
// heads of its group.
// Dispatch: (ceil(T / TILE), K). Called by ops/segment_attention.rs.

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

var<workgroup> weights: array<f32, 1056>;
var<workgroup> gradients: array<f32, 1056>;
var<workgroup> means: array<f32, 32>;
var<workgroup> finish: u32;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let tile = group.x * TILE;
    let kv = group.y;
    let cols = (p.heads + 2u * p.kv_heads) * HEAD_DIM;
    let shared_by = p.heads / p.kv_heads;
    let key_col = (p.heads + kv) * HEAD_DIM;
    let value_col = (p.heads + p.kv_heads + kv) * HEAD_DIM;
    let scale = inverseSqrt(f32(HEAD_DIM));
    let last = p.tokens - 1u;

    let row = lane / 2u;
    let part = (lane % 2u) * (HEAD_DIM / 2u);
    var dk: array<f32, HEAD_DIM / 2u>;
    var dv: array<f32, HEAD_DIM / 2u>;
    for (var i = 0u; i < HEAD_DIM / 2u; i++) {
        dk[i] = 0.0;
        dv[i] = 0.0;
    }

    // Sequences lie in order, so the tile's last row is seen furthest on.
    if lane == 0u { finish = batch[2u * p.tokens + min(tile + TILE - 1u, last)]; }
    let stop = workgroupUniformLoad(&finish);
    for (var member = 0u; member < shared_by; member++) {
        let head = kv * shared_by + member;
        for (var block = tile; block < stop; block += TILE) {
            if lane < TILE {
                let at = (min(block + lane, last) * p.heads + head) * HEAD_DIM;
                var mean = 0.0;
                for (var i = 0u; i < HEAD_DIM; i++) { mean += context[at + i] * dcontext[at + i]; }
                means[lane] = mean;
            }
            workgroupBarrier();
            // 4 queries x 4 keys an invocation.
            var sums: array<vec4<f32>, 4>;
            var products: array<vec4<f32>, 4>;
            var queries: array<u32, 4>;
            var contexts: array<u32, 4>;
            var keys: array<u32, 4>;
            for (var a = 0u; a < 4u; a++) {
                sums[a] = vec4<f32>(0.0);
                products[a] = vec4<f32>(0.0);
                let query = min(block + lane / 8u + 8u * a, last);
                queries[a] = query * cols + head * HEAD_DIM;
                contexts[a] = (query * p.heads + head) * HEAD_DIM;
                keys[a] = min(tile + lane % 8u + 8u * a, last) * cols;
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
                let query = block + local;
                let first = batch[p.tokens + min(query, last)];
                let mass = lse[min(query, last) * p.heads + head];
                for (var b = 0u; b < 4u; b++) {
                    let key = tile + lane % 8u + 8u * b;
                    let seen = query < p.tokens && key >= first && key <= query;
                    let weight = select(0.0, exp(min(sums[a][b] * scale - mass, 0.0)), seen);
                    let at = local * 33u + lane % 8u + 8u * b;
                    weights[at] = weight;
                    gradients[at] = weight * (products[a][b] - means[local]) * scale;
                }
            }
            workgroupBarrier();
            for (var t = 0u; t < TILE; t++) {
                let weight = weights[t * 33u + row];
                let gradient = gradients[t * 33u + row];
                let query = min(block + t, last);
                let q_at = query * cols + head * HEAD_DIM + part;
                let d_at = (query * p.heads + head) * HEAD_DIM + part;
                for (var i = 0u; i < HEAD_DIM / 2u; i++) {
                    dk[i] += gradient * qkv[q_at + i];
                    dv[i] += weight * dcontext[d_at + i];
                }
            }
            workgroupBarrier();
        }
    }
    if tile + row < p.tokens {
        let at = (tile + row) * cols + part;
        for (var i = 0u; i < HEAD_DIM / 2u; i++) {
            dqkv[at + key_col + i] = dk[i];
            dqkv[at + value_col + i] = dv[i];
        }
    }
}
