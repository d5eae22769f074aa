// Stores the results of matmul_rows.wgsl as queries, keys and values (heads in this order). As in
// rope_append.wgsl, q and k are rotated by their positions, and k and v are appended to the paged cache, in f32
// or f16. A lane has two pairs of one head. Needs HEAD_DIM to be a multiple of 4 * LANES.

// Elements i and i + head_dim / 2 form a pair (Hugging Face), else 2i and 2i + 1 (GGUF).
const HALF_SPLIT: bool = true;
// The cache keeps two f16 in a word, else one f32.
const CACHE_F16: bool = true;
const PAGE: u32 = 32u;
const HEAD_DIM: u32 = 64u;
const HALF: u32 = HEAD_DIM / 2u;

@group(0) @binding(4) var<storage, read> batch: array<u32>;           // ids (T), positions (T), slots (T), ..., cos and sin (T, HALF, 2)
@group(0) @binding(5) var<storage, read_write> cache: array<u32>;     // (pages, 2, KV, PAGE, head words)
@group(0) @binding(6) var<uniform> p: Params;

// The first of the pairs of a lane, over all heads; the second is LANES further.
fn pair_of_lane(group: u32, lane: u32) -> u32 { return group * 2u * LANES + lane; }

fn is_value(head: u32) -> bool { return head >= p.heads + p.kv_heads; }

// The two elements of a head that make a pair.
fn elements_of(head: u32, pair: u32) -> vec2<u32> {
    if HALF_SPLIT && !is_value(head) { return vec2<u32>(pair, pair + HALF); }
    return vec2<u32>(2u * pair, 2u * pair + 1u);
}

// The rows of the matrix that a lane multiplies: the first elements of its pairs, then the second.
fn rows_of(group: u32, lane: u32) -> vec4<u32> {
    let pair = pair_of_lane(group, lane);
    let head = pair / HALF;
    let a = elements_of(head, pair % HALF);
    let b = elements_of(head, pair % HALF + LANES);
    return min(head * HEAD_DIM + vec4<u32>(a.x, b.x, a.y, b.y), vec4<u32>(p.rows - 1u));
}

fn store(token: u32, group: u32, lane: u32, sums: vec4<f32>) {
    let pair = pair_of_lane(group, lane);
    if pair / HALF < p.heads + 2u * p.kv_heads {
        store_pair(token, pair / HALF, pair % HALF, sums.xz);
        store_pair(token, pair / HALF, pair % HALF + LANES, sums.yw);
    }
}

fn store_pair(token: u32, head: u32, pair: u32, values: vec2<f32>) {
    let elements = elements_of(head, pair);
    var v = values;
    if !is_value(head) {
        let at = p.rope_at + 2u * (token * HALF + pair);
        let c = bitcast<f32>(batch[at]);
        let s = bitcast<f32>(batch[at + 1u]);
        v = vec2<f32>(v.x * c - v.y * s, v.x * s + v.y * c);
    }
    if head < p.heads {
        let to = (token * p.heads + head) * HEAD_DIM;
        out[to + elements.x] = v.x;
        out[to + elements.y] = v.y;
        return;
    }
    let slot = batch[2u * p.tokens + token];
    let kv_head = head - p.heads - select(0u, p.kv_heads, is_value(head));
    let plane = ((slot / PAGE) * 2u + select(0u, 1u, is_value(head))) * p.kv_heads + kv_head;
    let line = plane * PAGE + slot % PAGE;
    if CACHE_F16 {
        cache[line * HALF + pair] = pack2x16float(v);
    } else {
        cache[line * HEAD_DIM + elements.x] = bitcast<u32>(v.x);
        cache[line * HEAD_DIM + elements.y] = bitcast<u32>(v.y);
    }
}
