// Reader of packed weights for adapters that run lanes on CPU cores, beside weights.wgsl. There a load
// costs by the lane, whatever its width, so it reads with few, wide loads; and it gives four weights
// at a time, to leave the registers to the sums. The including shader declares `SUM_SCALES`.

// The quants of a unit, but for f32. No array, since `quad` is called with the index of a loop.
struct Quants { a: vec4<u32>, b: vec4<u32>, c: vec4<u32>, d: vec4<u32> }

// The vector that holds the scales of units `group` to `group + 3`; `group` is a multiple of 4.
fn group_scales(row: u32, units: u32, group: u32) -> vec4<u32> {
    if FORMAT < 3u { return vec4<u32>(0u); }
    return weights[row + units * UNIT_VEC4 + select(group / 8u, group / 4u, FORMAT == 5u)];
}

// Scale and offset of unit `group + k`: w = d q + m with what `quad` makes of q. Formats without scales
// have 1 and 0.
fn unit_scale(scales: vec4<u32>, group: u32, k: u32) -> vec2<f32> {
    if FORMAT < 3u { return vec2<f32>(1.0, 0.0); }
    if FORMAT == 5u { return unpack2x16float(scales[k]); }
    let pair = unpack2x16float(scales[(group / 2u + k / 2u) & 3u]);
    let d = select(pair.x, pair.y, (k & 1u) == 1u);
    if FORMAT == 4u { return vec2<f32>(d, -8.0 * d); }
    return vec2<f32>(d, select(0.0, -128.0 * d, SUM_SCALES));
}

// The quants of the unit that starts at vector `at`.
fn unit_quants(at: u32) -> Quants {
    var q: Quants;
    if FORMAT > 0u { q.a = weights[at]; }
    if FORMAT > 0u && FORMAT < 4u { q.b = weights[at + 1u]; }
    if FORMAT > 0u && FORMAT < 3u {
        q.c = weights[at + 2u];
        q.d = weights[at + 3u];
    }
    return q;
}

// The bits of `mask` in each byte of `q`, those of bytes 1 and 3 times 256: numbers where they stand
// save a shift a weight.
fn in_place(q: u32, mask: u32) -> vec4<f32> {
    let half = q >> 16u;
    return vec4<f32>(vec4<i32>(vec4<u32>(q, q, half, half) & vec4<u32>(mask, mask << 8u, mask, mask << 8u)));
}

// The low halves of the bytes of `q` plus 16, made by writing them into the mantissa of 16.0, which
// spares the conversion.
fn nibbles_plus_16(q: u32) -> vec4<f32> {
    let bits = vec4<u32>(vec3<u32>(q) << vec3<u32>(19u, 11u, 3u), q >> 5u);
    return bitcast<vec4<f32>>((bits & vec4<u32>(0x780000u)) | vec4<u32>(0x41800000u));
}

// Weights 4 i to 4 i + 3 of the unit that starts at vector `at`, whose `unit_quants` and `unit_scale`
// are given. With SUM_SCALES they are quants, as unsigned numbers times a power of two whose inverse
// `fit_x` gives to x.
fn quad(at: u32, quants: Quants, i: u32, scale: vec2<f32>) -> vec4<f32> {
    if FORMAT == 0u { return bitcast<vec4<f32>>(weights[at + i]); }
    if FORMAT == 1u || FORMAT == 2u {
        let low = select(quants.a, quants.b, i >= 2u);
        let high = select(quants.c, quants.d, i >= 6u);
        let q = select(low, high, i >= 4u);
        let half = select(q.xy, q.zw, (i & 1u) == 1u);
        if FORMAT == 1u { return widen_f16(half); }
        return widen_bf16(half);
    }
    if FORMAT == 3u {
        let q = select(quants.a, quants.b, i >= 4u)[i & 3u];
        // Signed bytes plus 128 are unsigned ones with the first bit turned.
        if SUM_SCALES { return in_place(q ^ 0x80808080u, 0xffu); }
        return scale.x * signed_bytes(q);
    }
    let q = quants.a[i & 3u];
    if SUM_SCALES { return in_place(q, 0xfu << (i & 4u)); }
    return scale.x * nibbles_plus_16(q >> (i & 4u)) + (scale.y - 16.0 * scale.x);
}

// Vector `j` of a unit of x, times what makes up for the place of the numbers in `quad`; exact, as both
// are powers of two.
fn fit_x(v: vec4<f32>, j: u32) -> vec4<f32> {
    if FORMAT < 3u || !SUM_SCALES { return v; }
    return v * vec4<f32>(1.0, 0.00390625, 1.0, 0.00390625) * select(1.0, 0.0625, FORMAT > 3u && j >= 4u);
}

// Sum of the elements of a vector that `fit_x` returned, as they were before.
fn unfit_sum(v: vec4<f32>, j: u32) -> f32 {
    return dot(v, vec4<f32>(1.0, 256.0, 1.0, 256.0)) * select(1.0, 16.0, FORMAT > 3u && j >= 4u);
}
