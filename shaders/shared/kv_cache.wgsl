// Reader of the paged KV cache: (pages, 2, KV, PAGE, head words), as rope_append.wgsl writes it,
// in vectors of four words. The including shader declares `cache: array<vec4<u32>>`, `PAGE`, and
// HEAD_DIM, a multiple of 8.

// Elements in a word: one f32, two f16, or four signed bytes. A line of bytes ends with a vector that has its
// scale.
const CACHE_WORD: u32 = 2u;
// Elements of k that are neighbours in a cache of f16 or bytes: i and i + HEAD_DIM / 2, else 2i and 2i + 1.
const HALF_SPLIT: bool = true;
// Vectors of elements in a line, pairs of elements in a vector, and vectors from line to line.
const LINE_VEC4: u32 = HEAD_DIM / (4u * CACHE_WORD);
const VEC4_PAIRS: u32 = 2u * CACHE_WORD;
const LINE_STRIDE: u32 = LINE_VEC4 + select(0u, 1u, CACHE_WORD == 4u);

// First vector of line `slot` of a head's keys (which = 0) or values (which = 1).
fn cache_line(slot: u32, which: u32, kv_heads: u32, kv_head: u32) -> u32 {
    let plane = ((slot / PAGE) * 2u + which) * kv_heads + kv_head;
    return (plane * PAGE + slot % PAGE) * LINE_STRIDE;
}

// The factor of the pairs of a line.
fn line_scale(line: u32) -> f32 {
    if CACHE_WORD == 4u { return bitcast<f32>(cache[line + LINE_VEC4].x); }
    return 1.0;
}

// Pair `c` of VEC4_PAIRS in a vector: for keys the elements that `key_elements` names, for values
// neighbours.
fn pair_of(v: vec4<u32>, c: u32) -> vec2<f32> {
    if CACHE_WORD == 2u { return unpack2x16float(v[c]); }
    if CACHE_WORD == 4u {
        let pair = v[c >> 1u] << (16u * (1u - (c & 1u)));
        return vec2<f32>(bitcast<vec2<i32>>(vec2<u32>(pair) << vec2<u32>(8u, 0u)) >> vec2<u32>(24u));
    }
    return bitcast<vec2<f32>>(select(v.xy, v.zw, c == 1u));
}

// The elements of a key that make its pair `i`.
fn key_elements(i: u32) -> vec2<u32> {
    if CACHE_WORD > 1u && HALF_SPLIT { return vec2<u32>(i, i + HEAD_DIM / 2u); }
    return vec2<u32>(2u * i, 2u * i + 1u);
}
