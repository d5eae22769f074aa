// Causal attention within sequences that lie one after another: row t sees rows first[t]..=t.
// A workgroup takes TILE rows of queries of one head and goes over their keys in blocks of TILE:
// scores into workgroup memory, 4 x 4 an invocation, a running softmax a row, and sums of
// values, half a head an invocation. lse is the log-sum-exp of the scaled scores.
// Dispatch: (ceil(T / TILE), H). Called by ops/segment_attention.rs.

const HEAD_DIM: u32 = 64u;
const TILE: u32 = 32u;
const LOWEST: f32 = -3.4e38;

struct Params { tokens: u32, heads: u32, kv_heads: u32 }

@group(0) @binding(0) var<storage, read> qkv: array<f32>;              // (T, (H + 2 K) h), rotated
@group(0) @binding(1) var<storage, read> batch: array<u32>;            // ids (T), first (T), end (T), ...
@group(0) @binding(2) var<storage, read_write> context: array<f32>;    // (T, H h)
@group(0) @binding(3) var<storage, read_write> lse: array<f32>;        // (T, H)
@group(0) @binding(4) var<uniform> p: Params;

// One more a row keeps neighbouring rows in different banks.
var<workgroup> scores: array<f32, 1056>;
var<workgroup> keep: array<f32, 32>;
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

    // The row and the half of the head that this invocation sums, and the row whose softmax it runs.
    let row = lane / 2u;
    let part = (lane % 2u) * (HEAD_DIM / 2u);
    var acc: array<f32, HEAD_DIM / 2u>;
    for (var i = 0u; i < HEAD_DIM / 2u; i++) { acc[i] = 0.0; }
    var top = LOWEST;
    var mass = 0.0;

    // Sequences lie in order, so the tile's first row sees furthest back.
    if lane == 0u { begin = batch[p.tokens + min(tile, last)]; }
    let start = workgroupUniformLoad(&begin) / TILE * TILE;
    let stop = min(tile + TILE, p.tokens);
    for (var block = start; block < stop; block += TILE) {
        fill(tile, block, head, key_col, cols, scale, lane);
        workgroupBarrier();
        if lane < TILE {
            var high = top;
            for (var j = 0u; j < TILE; j++) { high = max(high, scores[lane * 33u + j]); }
            var sum = 0.0;
            for (var j = 0u; j < TILE; j++) {
                let score = scores[lane * 33u + j];
                let weight = select(exp(score - high), 0.0, score <= LOWEST);
                scores[lane * 33u + j] = weight;
                sum += weight;
            }
            let old = select(exp(top - high), 0.0, top <= LOWEST);
            keep[lane] = old;
            mass = mass * old + sum;
            top = high;
        }
        workgroupBarrier();
        let factor = keep[row];
        for (var i = 0u; i < HEAD_DIM / 2u; i++) { acc[i] *= factor; }
        for (var j = 0u; j < TILE; j++) {
            let weight = scores[row * 33u + j];
            let at = min(block + j, last) * cols + value_col + part;
            for (var i = 0u; i < HEAD_DIM / 2u; i++) { acc[i] += weight * qkv[at + i]; }
        }
        workgroupBarrier();
    }
    if lane < TILE {
        keep[lane] = 1.0 / mass;
        if tile + lane < p.tokens { lse[(tile + lane) * p.heads + head] = top + log(mass); }
    }
    workgroupBarrier();
    if tile + row < p.tokens {
        let inverse = keep[row];
        let at = ((tile + row) * p.heads + head) * HEAD_DIM + part;
        for (var i = 0u; i < HEAD_DIM / 2u; i++) { context[at + i] = acc[i] * inverse; }
    }
}

// Scaled scores of the tile's queries with a block of keys; LOWEST where a query does not see a key.
fn fill(tile: u32, block: u32, head: u32, key_col: u32, cols: u32, scale: f32, lane: u32) {
    let last = p.tokens - 1u;
    var sums: array<vec4<f32>, 4>;
    for (var a = 0u; a < 4u; a++) { sums[a] = vec4<f32>(0.0); }
    var queries: array<u32, 4>;
    var keys: array<u32, 4>;
    for (var a = 0u; a < 4u; a++) {
        queries[a] = min(tile + lane / 8u + 8u * a, last) * cols + head * HEAD_DIM;
        keys[a] = min(block + lane % 8u + 8u * a, last) * cols + key_col;
    }
    for (var i = 0u; i < HEAD_DIM; i++) {
        let k = vec4<f32>(qkv[keys[0] + i], qkv[keys[1] + i], qkv[keys[2] + i], qkv[keys[3] + i]);
        for (var a = 0u; a < 4u; a++) { sums[a] += qkv[queries[a] + i] * k; }
    }
    for (var a = 0u; a < 4u; a++) {
        let query = tile + lane / 8u + 8u * a;
        let first = batch[p.tokens + min(query, last)];
        for (var b = 0u; b < 4u; b++) {
            let key = block + lane % 8u + 8u * b;
            let seen = key >= first && key <= query;
            scores[(lane / 8u + 8u * a) * 33u + lane % 8u + 8u * b] = select(LOWEST, sums[a][b] * scale, seen);
        }
    }
}
