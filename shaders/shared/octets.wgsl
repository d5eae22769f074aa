// Reader of packed weights for adapters that run lanes on CPU cores, beside weights.wgsl. There a load
// costs by the lane, whatever its width, so it reads with few, wide loads, and leaves no array that a
// compiler must unroll a loop to keep in registers. The including shader declares `SUM_SCALES`.

// Eight weights of a unit: four that stand at `octet_low` and four at `octet_high`. With SUM_SCALES
// they are quants as unsigned numbers times a power of two, whose inverse `fit_x` gives to x.
struct Octet { low: vec4<f32>, high: vec4<f32> }

// The quants of a unit of at most 8 bits a weight. No array, since `octet` is called with an index
// that a compiler knows only after it has unrolled a loop.
struct Quants { first: vec4<u32>, second: vec4<u32> }

// The vector that holds the scales of units `group` to `group + 3`; `group` is a multiple of 4.
fn group_scales(row: u32, units: u32, group: u32) -> vec4<u32> {
    if FORMAT < 3u { return vec4<u32>(0u); }
    return weights[row + units * UNIT_VEC4 + select(group / 8u, group / 4u, FORMAT == 5u)];
}

// Scale and offset of unit `group + k`: w = d q + m with what `octet` returns as q. Formats without
// scales have 1 and 0.
fn unit_scale(scales: vec4<u32>, group: u32, k: u32) -> vec2<f32> {
    if FORMAT < 3u { return vec2<f32>(1.0, 0.0); }
    if FORMAT == 5u { return unpack2x16float(scales[k]); }
    let pair = unpack2x16float(scales[(group / 2u + k / 2u) & 3u]);
    let d = select(pair.x, pair.y, (k & 1u) == 1u);
    if FORMAT == 4u { return vec2<f32>(d, -8.0 * d); }
    return vec2<f32>(d, select(0.0, -128.0 * d, SUM_SCALES));
}

// The quants of a unit that starts at vector `at`; wider formats are read by `octet`.
fn unit_quants(at: u32) -> Quants {
    var q: Quants;
    if FORMAT >= 3u { q.first = weights[at]; }
    if FORMAT == 3u { q.second = weights[at + 1u]; }
    return q;
}

// The bits of `mask` in each byte of `q`, those of bytes 1 and 3 times 256: numbers where they stand
// save a shift a weight.
fn in_place(q: u32, mask: u32) -> vec4<f32> {
    let half = q >> 16u;
    return vec4<f32>(vec4<i32>(vec4<u32>(q, q, half, half) & vec4<u32>(mask, mask << 8u, mask, mask << 8u)));
}

// The low (shift 0) or high (shift 4) halves of the bytes of `q` plus 16, made by writing them into the
// mantissa of 16.0, which spares the conversion.
fn nibbles_plus_16(q: u32, shift: u32) -> vec4<f32> {
    let left = vec4<u32>(q, q, q, 0u) << (vec4<u32>(19u, 11u, 3u, 0u) - vec4<u32>(shift, shift, min(shift, 3u), 0u));
    let third = select(left.z, q >> 1u, shift == 4u);
    let bits = vec4<u32>(left.xy, third, q >> (5u + shift));
    return bitcast<vec4<f32>>((bits & vec4<u32>(0x780000u)) | vec4<u32>(0x41800000u));
}

// Octet `i` of 4 in the unit that starts at vector `at`, with `quants` its `unit_quants`.
fn octet(at: u32, quants: Quants, i: u32, scale: vec2<f32>) -> Octet {
    if FORMAT == 0u {
        return Octet(bitcast<vec4<f32>>(weights[at + 2u * i]), bitcast<vec4<f32>>(weights[at + 2u * i + 1u]));
    }
    if FORMAT == 1u {
        let q = weights[at + i];
        return Octet(widen_f16(q.xy), widen_f16(q.zw));
    }
    if FORMAT == 2u {
        let q = weights[at + i];
        return Octet(widen_bf16(q.xy), widen_bf16(q.zw));
    }
    if FORMAT == 3u {
        let q = select(quants.first, quants.second, i >= 2u);
        let half = select(q.xy, q.zw, (i & 1u) == 1u);
        // Signed bytes plus 128 are unsigned ones with the first bit turned.
        if SUM_SCALES { return Octet(in_place(half.x ^ 0x80808080u, 0xffu), in_place(half.y ^ 0x80808080u, 0xffu)); }
        return Octet(scale.x * signed_bytes(half.x), scale.x * signed_bytes(half.y));
    }
    let q = quants.first[i];
    if SUM_SCALES { return Octet(in_place(q, 0xfu), in_place(q, 0xf0u)); }
    let offset = scale.y - 16.0 * scale.x;
    return Octet(scale.x * nibbles_plus_16(q, 0u) + offset, scale.x * nibbles_plus_16(q, 4u) + offset);
}

// Which vectors of four columns of a unit octet `i` holds.
fn octet_low(i: u32) -> u32 { return select(2u * i, i, FORMAT >= 4u); }
fn octet_high(i: u32) -> u32 { return select(2u * i + 1u, i + 4u, FORMAT >= 4u); }

// Vector `j` of a unit of x, times what makes up for the place of the numbers in `octet`; exact, as
// both are powers of two.
fn fit_x(v: vec4<f32>, j: u32) -> vec4<f32> {
    if FORMAT < 3u || !SUM_SCALES { return v; }
    return v * vec4<f32>(1.0, 0.00390625, 1.0, 0.00390625) * select(1.0, 0.0625, FORMAT > 3u && j >= 4u);
}

// Sum of the elements of a vector that `fit_x` returned, as they were before.
fn unfit_sum(v: vec4<f32>, j: u32) -> f32 {
    return dot(v, vec4<f32>(1.0, 256.0, 1.0, 256.0)) * select(1.0, 16.0, FORMAT > 3u && j >= 4u);
}
