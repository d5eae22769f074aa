// How packed weights and rows of x are loaded: as vectors of four words. The alternative is
// software/load_u64.wgsl.

alias Packed = vec4<u32>;
alias Floats = vec4<f32>;

fn words_of(v: Packed) -> vec4<u32> { return v; }

fn floats_of(v: Floats) -> vec4<f32> { return v; }

// Word `i` of the row's part that starts at vector `at`.
fn word_at(at: u32, i: u32) -> u32 { return weights[at + (i >> 2u)][i & 3u]; }
