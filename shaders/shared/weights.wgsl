// Reader of packed weight rows; the formats are defined in crates/reflect-kernels/src/format.rs.
//
// A row is cut into units of 32 weights. It has three planes, each padded to whole vectors of four
// words: the quants of all units (UNIT_VEC4 vectors each), their high bits (HIGH_WORDS words each),
// and the scales. The including shader declares `weights: array<Packed>`. shared/load_words.wgsl or
// software/load_u64.wgsl defines `Packed`, `words_of` and `word_at`.

const F32: u32 = 0u;
const F16: u32 = 1u;
const BF16: u32 = 2u;
const Q8_0: u32 = 3u;
const Q4_0: u32 = 4u;
const Q4_1: u32 = 5u;
const Q5_0: u32 = 6u;
const Q5_1: u32 = 7u;
const Q4_K: u32 = 8u;
const Q5_K: u32 = 9u;
const Q6_K: u32 = 10u;
const FP8: u32 = 11u;

const FORMAT: u32 = F32;
// True for formats of plain numbers, without scales.
const UNSCALED: bool = FORMAT == F32 || FORMAT == F16 || FORMAT == BF16;
// Vectors of quants in a unit: f32 8, f16 and bf16 4, q8_0 and fp8 2, the others 1.
const UNIT_VEC4: u32 = 8u;
// Words of high bits in a unit: q5_0, q5_1 and q5_k 1, q6_k 2, the others 0.
const HIGH_WORDS: u32 = 0u;

// Bits of a quant in formats with nibbles.
const BITS: u32 = 4u + HIGH_WORDS;

alias Unit = array<vec4<f32>, 8>;

// The vector at which the scales of the row that starts at vector `row` begin.
fn scales_at(row: u32, units: u32) -> u32 {
    return row + units * UNIT_VEC4 + (units * HIGH_WORDS + 3u) / 4u;
}

// Half `i` of two values in f16.
fn half_of(pair: u32, i: u32) -> f32 {
    let both = unpack2x16float(pair);
    return select(both.x, both.y, (i & 1u) == 1u);
}

// Scale and minimum, in six bits each, of unit `k` of a super-block of q4_k or q5_k.
fn six_bits(block: vec4<u32>, k: u32) -> vec2<f32> {
    let low = (block.yz >> vec2<u32>(4u * k)) & vec2<u32>(15u);
    let high = (vec2<u32>(block.w) >> vec2<u32>(2u * k, 16u + 2u * k)) & vec2<u32>(3u);
    return vec2<f32>(vec2<i32>(low | (high << vec2<u32>(4u))));
}

// The scales of both halves of unit `k` of a super-block of q6_k, as whole numbers.
fn signed_pair(block: vec4<u32>, k: u32) -> vec2<f32> {
    let pair = block[(k / 2u) & 3u] << (16u * (1u - (k & 1u)));
    return vec2<f32>(bitcast<vec2<i32>>(vec2<u32>(pair) << vec2<u32>(8u, 0u)) >> vec2<u32>(24u));
}

// Scale and offset of a unit, w = d q + m; for q6_k the scales of its first and last 16 weights.
fn scale_of(row: u32, units: u32, unit: u32) -> vec2<f32> {
    let at = scales_at(row, units);
    if FORMAT == Q8_0 { return vec2<f32>(half_of(word_at(at, unit >> 1u), unit), 0.0); }
    if FORMAT == Q4_0 || FORMAT == Q5_0 {
        let d = half_of(word_at(at, unit >> 1u), unit);
        return vec2<f32>(d, -f32(1u << (BITS - 1u)) * d);
    }
    if FORMAT == Q4_1 || FORMAT == Q5_1 { return unpack2x16float(word_at(at, unit)); }
    if FORMAT == Q4_K || FORMAT == Q5_K {
        let block = words_of(weights[at + unit / 8u]);
        return six_bits(block, unit % 8u) * unpack2x16float(block.x) * vec2<f32>(1.0, -1.0);
    }
    if FORMAT == Q6_K {
        let block = unit / 8u;
        let d = half_of(word_at(at + (units + 7u) / 8u, block >> 1u), block);
        return d * signed_pair(words_of(weights[at + block]), unit % 8u);
    }
    return vec2<f32>(bitcast<f32>(words_of(weights[at]).x), 0.0);
}

// The words of high bits of a unit.
fn high_of(row: u32, units: u32, unit: u32) -> vec2<u32> {
    let at = row + units * UNIT_VEC4;
    if HIGH_WORDS == 1u { return vec2<u32>(word_at(at, unit), 0u); }
    if HIGH_WORDS == 2u {
        let both = words_of(weights[at + (unit >> 1u)]);
        return select(both.xy, both.zw, (unit & 1u) == 1u);
    }
    return vec2<u32>(0u);
}

// The high bits of weights 4 i to 4 i + 3 of a unit, each above the nibble of its byte.
fn high_bits(high: vec2<u32>, i: u32) -> u32 {
    if HIGH_WORDS == 1u {
        let four = high.x >> (4u * i);
        return ((four & 1u) << 4u) | ((four & 2u) << 11u) | ((four & 4u) << 18u) | ((four & 8u) << 25u);
    }
    if HIGH_WORDS == 2u {
        let four = select(high.x, high.y, i >= 4u) >> (8u * (i & 3u));
        return ((four & 3u) << 4u) | ((four & 12u) << 10u) | ((four & 48u) << 16u) | ((four & 192u) << 22u);
    }
    return 0u;
}

fn widen_f16(w: vec2<u32>) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(w.x), unpack2x16float(w.y));
}

fn widen_bf16(w: vec2<u32>) -> vec4<f32> {
    return vec4<f32>(
        bitcast<f32>(w.x << 16u), bitcast<f32>(w.x & 0xffff0000u),
        bitcast<f32>(w.y << 16u), bitcast<f32>(w.y & 0xffff0000u),
    );
}

// The bytes of `q` as numbers. Shifts and masks replace unpack4xU8, which is slower where bit fields are
// emulated. Signed, since processors convert signed integers to floats in one instruction.
fn bytes(q: u32) -> vec4<f32> {
    return vec4<f32>(vec4<i32>((vec4<u32>(q) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(255u)));
}

// The bytes of `q` as signed numbers.
fn signed_bytes(q: u32) -> vec4<f32> {
    return vec4<f32>(bitcast<vec4<i32>>(vec4<u32>(q) << vec4<u32>(24u, 16u, 8u, 0u)) >> vec4<u32>(24u));
}

// The bytes of `q` in e4m3, as `decode_e4m3` of crates/reflect-kernels/src/format/fp8.rs. No step
// makes a subnormal f32, since devices may flush it to 0.
fn e4m3(q: u32) -> vec4<f32> {
    let b = vec4<u32>(q) << vec4<u32>(24u, 16u, 8u, 0u);
    let sign = b & vec4<u32>(0x80000000u);
    let magnitude = (b & vec4<u32>(0x7f000000u)) >> vec4<u32>(4u);
    let normal = bitcast<vec4<f32>>(magnitude + vec4<u32>(0x3c000000u));
    let small = bitcast<vec4<f32>>(magnitude + vec4<u32>(0x3c800000u)) - vec4<f32>(0.015625);
    let value = select(normal, small, magnitude < vec4<u32>(0x00800000u));
    return bitcast<vec4<f32>>(bitcast<vec4<u32>>(value) | sign);
}

// The 32 weights of `unit` in the row that starts at vector `row`, in their order.
fn load_unit(row: u32, units: u32, unit: u32) -> Unit {
    var v: Unit;
    let at = row + unit * UNIT_VEC4;
    if FORMAT == F32 {
        for (var j = 0u; j < 8u; j++) { v[j] = bitcast<vec4<f32>>(words_of(weights[at + j])); }
        return v;
    }
    if FORMAT == F16 || FORMAT == BF16 {
        for (var j = 0u; j < 4u; j++) {
            let q = words_of(weights[at + j]);
            if FORMAT == F16 {
                v[2u * j] = widen_f16(q.xy);
                v[2u * j + 1u] = widen_f16(q.zw);
            } else {
                v[2u * j] = widen_bf16(q.xy);
                v[2u * j + 1u] = widen_bf16(q.zw);
            }
        }
        return v;
    }
    let scale = scale_of(row, units, unit);
    if FORMAT == Q8_0 || FORMAT == FP8 {
        for (var j = 0u; j < 2u; j++) {
            let q = words_of(weights[at + j]);
            if FORMAT == Q8_0 {
                v[4u * j] = scale.x * signed_bytes(q.x);
                v[4u * j + 1u] = scale.x * signed_bytes(q.y);
                v[4u * j + 2u] = scale.x * signed_bytes(q.z);
                v[4u * j + 3u] = scale.x * signed_bytes(q.w);
            } else {
                v[4u * j] = scale.x * e4m3(q.x);
                v[4u * j + 1u] = scale.x * e4m3(q.y);
                v[4u * j + 2u] = scale.x * e4m3(q.z);
                v[4u * j + 3u] = scale.x * e4m3(q.w);
            }
        }
        return v;
    }
    let q = words_of(weights[at]);
    let high = high_of(row, units, unit);
    // Unrolled by hand: with non-constant indices arrays do not stay in registers.
    v[0] = scaled(bytes((q.x & 0x0f0f0f0fu) | high_bits(high, 0u)), scale, 0u);
    v[1] = scaled(bytes((q.y & 0x0f0f0f0fu) | high_bits(high, 1u)), scale, 1u);
    v[2] = scaled(bytes((q.z & 0x0f0f0f0fu) | high_bits(high, 2u)), scale, 2u);
    v[3] = scaled(bytes((q.w & 0x0f0f0f0fu) | high_bits(high, 3u)), scale, 3u);
    v[4] = scaled(bytes(((q.x >> 4u) & 0x0f0f0f0fu) | high_bits(high, 4u)), scale, 4u);
    v[5] = scaled(bytes(((q.y >> 4u) & 0x0f0f0f0fu) | high_bits(high, 5u)), scale, 5u);
    v[6] = scaled(bytes(((q.z >> 4u) & 0x0f0f0f0fu) | high_bits(high, 6u)), scale, 6u);
    v[7] = scaled(bytes(((q.w >> 4u) & 0x0f0f0f0fu) | high_bits(high, 7u)), scale, 7u);
    return v;
}

// Weights from the quants of vector `i` of a unit.
fn scaled(q: vec4<f32>, scale: vec2<f32>, i: u32) -> vec4<f32> {
    if FORMAT == Q6_K { return select(scale.x, scale.y, i >= 4u) * (q - vec4<f32>(32.0)); }
    return scale.x * q + scale.y;
}
