// Reader of packed weights, beside weights.wgsl: four at a time, so that the sums keep the registers.

// The quants of a unit, empty for f32. Not an array, since loops index it.
struct Quants { a: vec4<u32>, b: vec4<u32>, c: vec4<u32>, d: vec4<u32>, high: vec2<u32> }

// The quants of the unit that starts at vector `at`, which is `unit` of the row at vector `row`.
fn unit_quants(at: u32, row: u32, units: u32, unit: u32) -> Quants {
    var q: Quants;
    if FORMAT != F32 { q.a = words_of(weights[at]); }
    if FORMAT != F32 && UNIT_VEC4 > 1u { q.b = words_of(weights[at + 1u]); }
    if FORMAT != F32 && UNIT_VEC4 > 2u {
        q.c = words_of(weights[at + 2u]);
        q.d = words_of(weights[at + 3u]);
    }
    q.high = high_of(row, units, unit);
    return q;
}

// Weights 4 i to 4 i + 3 of the unit that starts at vector `at`, whose `unit_quants` are given, in a format
// without scales.
fn float_vec4(at: u32, quants: Quants, i: u32) -> vec4<f32> {
    if FORMAT == F32 { return bitcast<vec4<f32>>(words_of(weights[at + i])); }
    let low = select(quants.a, quants.b, i >= 2u);
    let high = select(quants.c, quants.d, i >= 6u);
    let q = select(low, high, i >= 4u);
    let half = select(q.xy, q.zw, (i & 1u) == 1u);
    if FORMAT == F16 { return widen_f16(half); }
    return widen_bf16(half);
}

// Quants as numbers, before their scale.

// True if a weight is scale times quant plus an offset.
const OFFSETS: bool = FORMAT == Q4_1 || FORMAT == Q5_1 || FORMAT == Q4_K || FORMAT == Q5_K;
// True if each half of a unit has its own scale.
const HALVES: bool = FORMAT == Q6_K;
// Subtracted from a quant to centre it.
const CENTRE: f32 = select(select(0.0, 128.0, FORMAT == Q8_0), f32(1u << (BITS - 1u)), FORMAT == Q4_0 || FORMAT == Q5_0 || FORMAT == Q6_K);

// Scale and offset of what `raw_vec4` returns; with HALVES two scales.
fn raw_scale(row: u32, units: u32, unit: u32) -> vec2<f32> {
    if UNSCALED { return vec2<f32>(1.0, 0.0); }
    return scale_of(row, units, unit);
}

// The bits of `mask` in each byte of `q`, minus CENTRE, exactly. The bits are written into the mantissa of a
// power of two, which is then subtracted. GPUs convert integers at a fourth of this speed.
fn raw_bytes(q: u32, mask: u32) -> vec4<f32> {
    let bits = vec4<u32>(q, q, q >> 8u, q >> 16u) & vec4<u32>(mask, vec3<u32>(mask << 8u));
    let whole = bitcast<vec4<f32>>(bits | vec4<u32>(0x4b000000u, vec3<u32>(0x47000000u)));
    return whole - vec4<f32>(8388608.0 + CENTRE, vec3<f32>(32768.0 + CENTRE));
}

// Quants 4 i to 4 i + 3 of the unit that starts at vector `at`, whose `unit_quants` are given.
fn raw_vec4(at: u32, quants: Quants, i: u32) -> vec4<f32> {
    if UNSCALED { return float_vec4(at, quants, i); }
    if FORMAT == Q8_0 || FORMAT == FP8 {
        let q = select(quants.a, quants.b, i >= 4u)[i & 3u];
        if FORMAT == FP8 { return e4m3(q); }
        // Flipping the first bit of a signed byte adds 128 and makes it unsigned.
        return raw_bytes(q ^ 0x80808080u, 0xffu);
    }
    let q = quants.a[i & 3u] >> (i & 4u);
    if HIGH_WORDS == 0u { return raw_bytes(q, 0xfu); }
    return raw_bytes((q & 0x0f0f0f0fu) | high_bits(quants.high, i), 0xffu);
}
