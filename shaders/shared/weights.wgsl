// Reader of packed weight rows; the formats are defined in crates/reflect-kernels/src/format.rs.
//
// A row is cut into units of 32 weights. It starts with the quants of all its units
// (UNIT_VEC4 vectors of 4 words each), followed by the scales, padded to whole vectors.
// The including shader declares `weights: array<vec4<u32>>`.

// 0 f32, 1 f16, 2 bf16, 3 q8_0, 4 q4_0, 5 q4_1
const FORMAT: u32 = 0u;
// Vectors of quants in a unit: f32 8, f16 and bf16 4, q8_0 2, q4_0 and q4_1 1.
const UNIT_VEC4: u32 = 8u;

alias Unit = array<vec4<f32>, 8>;

// Word `i` of the scales of the row that starts at vector `row`.
fn scale_word(row: u32, units: u32, i: u32) -> u32 {
    let vector = row + units * UNIT_VEC4 + (i >> 2u);
    return weights[vector][i & 3u];
}

// Two formats keep one f16 scale a unit, two scales in a word.
fn scale_of(row: u32, units: u32, unit: u32) -> f32 {
    let pair = unpack2x16float(scale_word(row, units, unit >> 1u));
    return select(pair.x, pair.y, (unit & 1u) == 1u);
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

// The low (shift 0) or high (shift 4) halves of the bytes of `q`. Shifts and masks instead of
// unpack4xU8, which costs more where bit fields are emulated; signed, since processors widen
// signed integers to floats in one instruction.
fn nibbles(q: u32, shift: u32) -> vec4<f32> {
    return vec4<f32>(vec4<i32>((vec4<u32>(q) >> (vec4<u32>(0u, 8u, 16u, 24u) + shift)) & vec4<u32>(15u)));
}

// The bytes of `q` as signed numbers.
fn signed_bytes(q: u32) -> vec4<f32> {
    return vec4<f32>(bitcast<vec4<i32>>(vec4<u32>(q) << vec4<u32>(24u, 16u, 8u, 0u)) >> vec4<u32>(24u));
}

// The 32 weights of `unit` in the row that starts at vector `row`, in their order.
fn load_unit(row: u32, units: u32, unit: u32) -> Unit {
    var v: Unit;
    let at = row + unit * UNIT_VEC4;
    if FORMAT == 0u {
        for (var j = 0u; j < 8u; j++) { v[j] = bitcast<vec4<f32>>(weights[at + j]); }
    } else if FORMAT == 1u || FORMAT == 2u {
        for (var j = 0u; j < 4u; j++) {
            let q = weights[at + j];
            if FORMAT == 1u {
                v[2u * j] = widen_f16(q.xy);
                v[2u * j + 1u] = widen_f16(q.zw);
            } else {
                v[2u * j] = widen_bf16(q.xy);
                v[2u * j + 1u] = widen_bf16(q.zw);
            }
        }
    } else if FORMAT == 3u {
        let d = scale_of(row, units, unit);
        for (var j = 0u; j < 2u; j++) {
            let q = weights[at + j];
            v[4u * j] = d * signed_bytes(q.x);
            v[4u * j + 1u] = d * signed_bytes(q.y);
            v[4u * j + 2u] = d * signed_bytes(q.z);
            v[4u * j + 3u] = d * signed_bytes(q.w);
        }
    } else {
        var d = 0.0;
        var m = 0.0;
        if FORMAT == 4u {
            d = scale_of(row, units, unit);
            m = -8.0 * d;
        } else {
            let pair = unpack2x16float(scale_word(row, units, unit));
            d = pair.x;
            m = pair.y;
        }
        let q = weights[at];
        v[0] = d * nibbles(q.x, 0u) + m;
        v[1] = d * nibbles(q.y, 0u) + m;
        v[2] = d * nibbles(q.z, 0u) + m;
        v[3] = d * nibbles(q.w, 0u) + m;
        v[4] = d * nibbles(q.x, 4u) + m;
        v[5] = d * nibbles(q.y, 4u) + m;
        v[6] = d * nibbles(q.z, 4u) + m;
        v[7] = d * nibbles(q.w, 4u) + m;
    }
    return v;
}
