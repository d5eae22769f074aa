// Loads packed weights and rows of x as vectors of two 64-bit integers, instead of shared/load_words.wgsl.
// Mesa's llvmpipe loads each component of each lane by itself, with a bounds check, so half the components
// are half the work. Needs a device with 64-bit integers.

alias Packed = vec2<u64>;
alias Floats = vec2<u64>;

fn words_of(v: Packed) -> vec4<u32> {
    return vec4<u32>(u32(v.x), u32(v.x >> 32u), u32(v.y), u32(v.y >> 32u));
}

fn floats_of(v: Floats) -> vec4<f32> { return bitcast<vec4<f32>>(words_of(v)); }

// Word `i` of the row's part that starts at vector `at`.
fn word_at(at: u32, i: u32) -> u32 {
    return u32(weights[at + (i >> 2u)][(i >> 1u) & 1u] >> (32u * (i & 1u)));
}
