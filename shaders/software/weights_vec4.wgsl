// Addition to shared/weights_vec4.wgsl for adapters that run invocations on CPU cores. A load there has one
// cost for any width, so scales come by few, wide loads. The including shader declares `SUM_SCALES`.

// Units with their scales in one vector: 4 if a unit has a word of its own, else 8.
const GROUP: u32 = 4u;

// The data for the scales of the GROUP units from `group` on.
struct Scales { words: vec4<u32>, d: f32 }

// `group` is a multiple of GROUP.
fn group_scales(row: u32, units: u32, group: u32) -> Scales {
    if UNSCALED { return Scales(vec4<u32>(0u), 1.0); }
    let at = scales_at(row, units);
    if FORMAT == Q4_1 || FORMAT == Q5_1 { return Scales(words_of(weights[at + group / 4u]), 0.0); }
    let words = words_of(weights[at + select(group / 8u, 0u, FORMAT == FP8)]);
    if FORMAT == Q6_K {
        let block = group / 8u;
        return Scales(words, half_of(word_at(at + (units + 7u) / 8u, block >> 1u), block));
    }
    return Scales(words, 0.0);
}

// Scale and offset of unit `group + k`: w = d q + m, with q as `weights_vec4` returns it; for q6_k the scales of
// both halves. Formats without scales have 1 and 0.
fn unit_scale(scales: Scales, k: u32) -> vec2<f32> {
    if UNSCALED { return vec2<f32>(1.0, 0.0); }
    if FORMAT == Q4_1 || FORMAT == Q5_1 { return unpack2x16float(scales.words[k]); }
    if FORMAT == Q4_K || FORMAT == Q5_K {
        return six_bits(scales.words, k) * unpack2x16float(scales.words.x) * vec2<f32>(1.0, -1.0);
    }
    if FORMAT == Q6_K { return scales.d * signed_pair(scales.words, k); }
    if FORMAT == FP8 { return vec2<f32>(bitcast<f32>(scales.words.x), 0.0); }
    let d = half_of(scales.words[k / 2u], k);
    if FORMAT == Q8_0 { return vec2<f32>(d, select(0.0, -128.0 * d, SUM_SCALES)); }
    return vec2<f32>(d, -f32(1u << (BITS - 1u)) * d);
}

// The bits of `mask` in each byte of `q`. Bytes 1 and 3 are 256 times as large: numbers stay at their place in
// the word, which saves a shift a weight.
fn in_place(q: u32, mask: u32) -> vec4<f32> {
    let half = q >> 16u;
    return vec4<f32>(vec4<i32>(vec4<u32>(q, q, half, half) & vec4<u32>(mask, mask << 8u, mask, mask << 8u)));
}

// The low BITS bits of each byte of `q`, plus 2^BITS. Writing the bits into the mantissa of that power
// saves the conversion.
fn bytes_plus_power(q: u32) -> vec4<f32> {
    // The first bit of the mantissa is bit 22.
    let bits = vec4<u32>(vec3<u32>(q) << (vec3<u32>(23u, 15u, 7u) - BITS), q >> (1u + BITS));
    let mask = ((1u << BITS) - 1u) << (23u - BITS);
    return bitcast<vec4<f32>>((bits & vec4<u32>(mask)) | vec4<u32>((127u + BITS) << 23u));
}

// Weights 4 i to 4 i + 3 of the unit that starts at vector `at`, whose `unit_quants` and `unit_scale`
// are given. With SUM_SCALES they are quants, as unsigned numbers times a power of two; `fit_x` multiplies x
// by the inverse.
fn weights_vec4(at: u32, quants: Quants, i: u32, scale: vec2<f32>) -> vec4<f32> {
    if UNSCALED { return float_vec4(at, quants, i); }
    if FORMAT == Q8_0 || FORMAT == FP8 {
        let q = select(quants.a, quants.b, i >= 4u)[i & 3u];
        if FORMAT == FP8 { return scale.x * e4m3(q); }
        // Flipping the first bit of a signed byte adds 128 and makes it unsigned.
        if SUM_SCALES { return in_place(q ^ 0x80808080u, 0xffu); }
        return scale.x * signed_bytes(q);
    }
    let q = quants.a[i & 3u];
    if HIGH_WORDS == 0u {
        if SUM_SCALES { return in_place(q, 0xfu << (i & 4u)); }
        return scale.x * bytes_plus_power(q >> (i & 4u)) + (scale.y - 16.0 * scale.x);
    }
    let whole = ((q >> (i & 4u)) & 0x0f0f0f0fu) | high_bits(quants.high, i);
    if SUM_SCALES { return in_place(whole, 0xffu); }
    let power = f32(1u << BITS);
    if FORMAT == Q6_K { return select(scale.x, scale.y, i >= 4u) * (bytes_plus_power(whole) - (power + 32.0)); }
    return scale.x * bytes_plus_power(whole) + (scale.y - power * scale.x);
}

// True if `weights_vec4` leaves the high nibbles at their place in the byte.
const NIBBLES_IN_PLACE: bool = !UNSCALED && FORMAT != Q8_0 && HIGH_WORDS == 0u;

// Vector `j` of a unit of x, scaled to undo the place of the numbers in `weights_vec4`. Exact, since the
// factors are powers of two.
fn fit_x(v: vec4<f32>, j: u32) -> vec4<f32> {
    if UNSCALED || !SUM_SCALES { return v; }
    return v * vec4<f32>(1.0, 0.00390625, 1.0, 0.00390625) * select(1.0, 0.0625, NIBBLES_IN_PLACE && j >= 4u);
}

// Sum of the squares of a vector before `fit_x` scaled it.
fn unfit_squares(v: vec4<f32>, j: u32) -> f32 {
    if UNSCALED || !SUM_SCALES { return dot(v, v); }
    return dot(v * v, vec4<f32>(1.0, 65536.0, 1.0, 65536.0)) * select(1.0, 256.0, NIBBLES_IN_PLACE && j >= 4u);
}

// Sum of the elements of a vector before `fit_x` scaled it.
fn unfit_sum(v: vec4<f32>, j: u32) -> f32 {
    return dot(v, vec4<f32>(1.0, 256.0, 1.0, 256.0)) * select(1.0, 16.0, NIBBLES_IN_PLACE && j >= 4u);
}
