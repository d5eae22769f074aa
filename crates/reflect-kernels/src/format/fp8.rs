//! Numbers of eight bits: a sign, four bits of exponent with bias 7, three of mantissa, no infinity,
//! and 0x7f for what is no number ("e4m3fn"; Micikevicius et al. 2022, arXiv 2209.05433).

/// The largest number.
pub(super) const MAX: f32 = 448.0;

/// The value of a byte.
#[inline(always)]
pub fn decode_e4m3(byte: u8) -> f32 {
    if byte & 0x7f == 0x7f {
        return f32::NAN;
    }
    // Exponent and mantissa at their place in an f32 are the value times 2^-120, subnormals too.
    let magnitude = f32::from_bits(u32::from(byte & 0x7f) << 20) * f32::from_bits((120 + 127) << 23);
    f32::from_bits(magnitude.to_bits() | u32::from(byte & 0x80) << 24)
}

/// The byte whose value is nearest, ties to the even one; beyond the largest number the largest.
pub fn encode_e4m3(value: f32) -> u8 {
    let sign = ((value.to_bits() >> 24) & 0x80) as u8;
    if value.is_nan() {
        return sign | 0x7f;
    }
    let magnitude = value.abs().min(MAX);
    // Below 2^-6 numbers are 2^-9 apart, above as far as the exponent says.
    let exponent = ((magnitude.to_bits() >> 23) as i32 - 127).max(-6);
    let steps = (magnitude * 2f32.powi(3 - exponent)).round_ties_even() as u32;
    // Steps of a normal number start at 8; rounding up to 16 carries into the exponent.
    sign | ((((exponent + 6) as u32) << 3) + steps) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_keeps_its_byte_and_the_nearest_is_chosen() {
        let numbers: Vec<(u8, f32)> = (0..=0x7e).map(|byte| (byte, decode_e4m3(byte))).collect();
        // The formula of the paper: 2^(e-7) (1 + m/8), or 2^-6 m/8 where e is 0.
        for &(byte, value) in &numbers {
            let (e, m) = (i32::from(byte >> 3), f32::from(byte & 7));
            let expected = if e == 0 { m / 8.0 * 2f32.powi(-6) } else { (1.0 + m / 8.0) * 2f32.powi(e - 7) };
            assert_eq!(value, expected, "{byte:#x}");
            assert_eq!(encode_e4m3(value), byte);
            assert_eq!(encode_e4m3(-value), byte | 0x80);
            assert_eq!(decode_e4m3(byte | 0x80), -value);
        }
        for pair in numbers.windows(2) {
            let [(low, a), (high, b)] = pair else { unreachable!() };
            let middle = (a + b) / 2.0;
            assert_eq!(encode_e4m3(middle), if low % 2 == 0 { *low } else { *high }, "{middle}");
            assert_eq!(encode_e4m3(middle.next_down()), *low);
            assert_eq!(encode_e4m3(middle.next_up()), *high);
        }
        assert_eq!((decode_e4m3(0x7e), encode_e4m3(1e9), encode_e4m3(f32::INFINITY)), (MAX, 0x7e, 0x7e));
        assert!(decode_e4m3(0x7f).is_nan() && decode_e4m3(encode_e4m3(f32::NAN)).is_nan());
    }
}
