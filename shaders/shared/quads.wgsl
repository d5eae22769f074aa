// Reader of packed weights, four at a time to leave the registers to the sums, beside weights.wgsl. On
// adapters that run lanes on CPU cores a load costs by the lane, whatever its width, so it reads with
// few, wide loads. The including shader declares `SUM_SCALES`.

// The quants of a unit, but for f32. No array, since `quad` is called with the index of a loop.
struct Quants { a: vec4<u32>, b: vec4<u32>, c: vec4<u32>, d: vec4<u32>, high: vec2<u32> }

// Units whose scales lie in one vector: 4 where a unit has a word of its own, else 8.
const GROUP: u32 = 4u;

// What the scales of the GROUP units from `group` on are made from.
struct Scales { words: vec4<u32>, d: f32 }

// `group` is a multiple of GROUP.
fn group_scales(row: u32, units: u32, group: u32) -> Scales {
    if FORMAT < 3u { return Scales(vec4<u32>(0u), 1.0); }
    let at = scales_at(row, units);
    if FORMAT == 5u || FORMAT == 7u { return Scales(words_of(weights[at + group / 4u]), 0.0); }
    let words = words_of(weights[at + select(group / 8u, 0u, FORMAT == 11u)]);
    if FORMAT == 10u {
        let block = group / 8u;
        return Scales(words, half_of(word_at(at + (units + 7u) / 8u, block >> 1u), block));
    }
    return Scales(words, 0.0);
}

// Scale and offset of unit `group + k`: w = d q + m with what `quad` makes of q; for q6_k the scales of
// both halves. Formats without scales have 1 and 0.
fn unit_scale(scales: Scales, k: u32) -> vec2<f32> {
    if FORMAT < 3u { return vec2<f32>(1.0, 0.0); }
    if FORMAT == 5u || FORMAT == 7u { return unpack2x16float(scales.words[k]); }
    if FORMAT == 8u || FORMAT == 9u {
        return six_bits(scales.words, k) * unpack2x16float(scales.words.x) * vec2<f32>(1.0, -1.0);
    }
    if FORMAT == 10u { return scales.d * signed_pair(scales.words, k); }
    if FORMAT == 11u { return vec2<f32>(bitcast<f32>(scales.words.x), 0.0); }
    let d = half_of(scales.words[k / 2u], k);
    if FORMAT == 3u { return vec2<f32>(d, select(0.0, -128.0 * d, SUM_SCALES)); }
    return vec2<f32>(d, -f32(1u << (BITS - 1u)) * d);
}

// The quants of the unit that starts at vector `at`, which is `unit` of the row at vector `row`.
fn unit_quants(at: u32, row: u32, units: u32, unit: u32) -> Quants {
    var q: Quants;
    if FORMAT > 0u { q.a = words_of(weights[at]); }
    if FORMAT > 0u && UNIT_VEC4 > 1u { q.b = words_of(weights[at + 1u]); }
    if FORMAT > 0u && UNIT_VEC4 > 2u {
        q.c = words_of(weights[at + 2u]);
        q.d = words_of(weights[at + 3u]);
    }
    q.high = high_of(row, units, unit);
    return q;
}

// The bits of `mask` in each byte of `q`, those of bytes 1 and 3 times 256: numbers where they stand
// save a shift a weight.
fn in_place(q: u32, mask: u32) -> vec4<f32> {
    let half = q >> 16u;
    return vec4<f32>(vec4<i32>(vec4<u32>(q, q, half, half) & vec4<u32>(mask, mask << 8u, mask, mask << 8u)));
}

// The bytes of `q`, of which BITS bits count, plus 2^BITS, made by writing them into the mantissa of
// that power, which spares the conversion.
fn bytes_plus_power(q: u32) -> vec4<f32> {
    // The first bit of the mantissa is bit 22.
    let bits = vec4<u32>(vec3<u32>(q) << (vec3<u32>(23u, 15u, 7u) - BITS), q >> (1u + BITS));
    let mask = ((1u << BITS) - 1u) << (23u - BITS);
    return bitcast<vec4<f32>>((bits & vec4<u32>(mask)) | vec4<u32>((127u + BITS) << 23u));
}

// Weights 4 i to 4 i + 3 of the unit that starts at vector `at`, whose `unit_quants` and `unit_scale`
// are given. With SUM_SCALES they are quants, as unsigned numbers times a power of two whose inverse
// `fit_x` gives to x.
fn quad(at: u32, quants: Quants, i: u32, scale: vec2<f32>) -> vec4<f32> {
    if FORMAT == 0u { return bitcast<vec4<f32>>(words_of(weights[at + i])); }
    if FORMAT == 1u || FORMAT == 2u {
        let low = select(quants.a, quants.b, i >= 2u);
        let high = select(quants.c, quants.d, i >= 6u);
        let q = select(low, high, i >= 4u);
        let half = select(q.xy, q.zw, (i & 1u) == 1u);
        if FORMAT == 1u { return widen_f16(half); }
        return widen_bf16(half);
    }
    if FORMAT == 3u || FORMAT == 11u {
        let q = select(quants.a, quants.b, i >= 4u)[i & 3u];
        if FORMAT == 11u { return scale.x * e4m3(q); }
        // Signed bytes plus 128 are unsigned ones with the first bit turned.
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
    if FORMAT == 10u { return select(scale.x, scale.y, i >= 4u) * (bytes_plus_power(whole) - (power + 32.0)); }
    return scale.x * bytes_plus_power(whole) + (scale.y - power * scale.x);
}

// Whether `quad` leaves the high nibbles of bytes where they are.
const NIBBLES_IN_PLACE: bool = FORMAT > 3u && HIGH_WORDS == 0u;

// Vector `j` of a unit of x, times what makes up for the place of the numbers in `quad`; exact, as both
// are powers of two.
fn fit_x(v: vec4<f32>, j: u32) -> vec4<f32> {
    if FORMAT < 3u || !SUM_SCALES { return v; }
    return v * vec4<f32>(1.0, 0.00390625, 1.0, 0.00390625) * select(1.0, 0.0625, NIBBLES_IN_PLACE && j >= 4u);
}

// Sum of the squares of a vector that `fit_x` returned, as they were before.
fn unfit_squares(v: vec4<f32>, j: u32) -> f32 {
    if FORMAT < 3u || !SUM_SCALES { return dot(v, v); }
    return dot(v * v, vec4<f32>(1.0, 65536.0, 1.0, 65536.0)) * select(1.0, 256.0, NIBBLES_IN_PLACE && j >= 4u);
}

// Sum of the elements of a vector that `fit_x` returned, as they were before.
fn unfit_sum(v: vec4<f32>, j: u32) -> f32 {
    return dot(v, vec4<f32>(1.0, 256.0, 1.0, 256.0)) * select(1.0, 16.0, NIBBLES_IN_PLACE && j >= 4u);
}

// For matvec.wgsl: quants as the numbers they stand for, before their scale.

// Whether weights are scale times quant plus an offset.
const OFFSETS: bool = FORMAT == 5u || FORMAT == 7u || FORMAT == 8u || FORMAT == 9u;
// Whether the halves of a unit have a scale each.
const HALVES: bool = FORMAT == 10u;
// What is taken from a quant to centre it.
const CENTRE: f32 = select(select(0.0, 128.0, FORMAT == 3u), f32(1u << (BITS - 1u)), FORMAT == 4u || FORMAT == 6u || FORMAT == 10u);

// Scale and offset of what `raw_quad` returns; with HALVES two scales.
fn raw_scale(row: u32, units: u32, unit: u32) -> vec2<f32> {
    if FORMAT < 3u { return vec2<f32>(1.0, 0.0); }
    return scale_of(row, units, unit);
}

// The bits of `mask` in each byte of `q` less CENTRE, exact: written into the mantissa of a power of two that
// is then taken away, which spares the conversion that GPUs do at a fourth of their speed.
fn raw_bytes(q: u32, mask: u32) -> vec4<f32> {
    let bits = vec4<u32>(q, q, q >> 8u, q >> 16u) & vec4<u32>(mask, vec3<u32>(mask << 8u));
    let whole = bitcast<vec4<f32>>(bits | vec4<u32>(0x4b000000u, vec3<u32>(0x47000000u)));
    return whole - vec4<f32>(8388608.0 + CENTRE, vec3<f32>(32768.0 + CENTRE));
}

// Quants 4 i to 4 i + 3 of the unit that starts at vector `at`, whose `unit_quants` are given.
fn raw_quad(at: u32, quants: Quants, i: u32) -> vec4<f32> {
    if FORMAT < 3u { return quad(at, quants, i, vec2<f32>(1.0, 0.0)); }
    if FORMAT == 3u || FORMAT == 11u {
        let q = select(quants.a, quants.b, i >= 4u)[i & 3u];
        if FORMAT == 11u { return e4m3(q); }
        // Signed bytes plus 128 are unsigned ones with the first bit turned.
        return raw_bytes(q ^ 0x80808080u, 0xffu);
    }
    let q = quants.a[i & 3u] >> (i & 4u);
    if HIGH_WORDS == 0u { return raw_bytes(q, 0xfu); }
    return raw_bytes((q & 0x0f0f0f0fu) | high_bits(quants.high, i), 0xffu);
}
