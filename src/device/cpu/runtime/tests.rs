//! Conversions against a slow reference that knows only what a 16-bit pattern means.

use super::*;

/// What a pattern means, from the definition of the formats.
fn meaning(bits: u16, format: Format) -> f64 {
    let mantissa = f64::from(bits & ((1 << format.mantissa_bits) - 1));
    let exponent = i32::from(bits & 0x7fff) >> format.mantissa_bits;
    let exponent_max = i32::from(format.infinity() >> format.mantissa_bits);
    let scale = 2f64.powi(-i32::try_from(format.mantissa_bits).unwrap());
    let magnitude = if exponent == exponent_max {
        if mantissa == 0.0 { f64::INFINITY } else { f64::NAN }
    } else if exponent == 0 {
        mantissa * scale * 2f64.powi(1 - format.bias)
    } else {
        (1.0 + mantissa * scale) * 2f64.powi(exponent - format.bias)
    };
    if bits >= 0x8000 { -magnitude } else { magnitude }
}

/// The nearest pattern, by looking through the meanings of the positive ones, which rise.
fn nearest(x: f64, format: Format, meanings: &[f64]) -> u16 {
    let sign = if x.is_sign_negative() { 0x8000 } else { 0 };
    let x = x.abs();
    let infinity = format.infinity();
    let above = meanings.partition_point(|&meaning| meaning < x);
    if above == 0 {
        return sign;
    }
    let below = u16::try_from(above - 1).unwrap();
    let above = below + 1;
    // Infinity counts as the number that would come next, if the exponents went on.
    let value = |bits: u16| {
        if bits == infinity {
            2.0 * meaning(infinity - (1 << format.mantissa_bits), format)
        } else {
            meaning(bits, format)
        }
    };
    // Exact: neighbours differ by few bits, and doubles have room for the halfway point.
    let middle = value(below) / 2.0 + value(above) / 2.0;
    let up = x > middle || x == middle && above % 2 == 0;
    sign | if up { above } else { below }
}

fn patterns() -> impl Iterator<Item = u16> {
    0..=u16::MAX
}

fn carried(bits: u16) -> f32 {
    // Garbage above the 16 bits, as a kernel may leave it there.
    f32::from_bits(0x5ead_0000 | u32::from(bits))
}

/// Doubles around every number of the format: itself, the halfway point to the next, and the
/// doubles next to those.
fn probes(format: Format) -> Vec<f64> {
    let mut probes = vec![0.0, -0.0, f64::MAX, f64::MIN_POSITIVE, 5e-324, f64::INFINITY];
    for bits in 0..format.infinity() {
        let here = meaning(bits, format);
        let step = meaning(bits | 1, format) - meaning(bits & !1, format);
        for point in [here, here + step / 2.0] {
            probes.extend([point.next_down(), point, point.next_up()]);
        }
    }
    probes
}

#[test]
fn half_extended_is_its_meaning_for_all_patterns() {
    for bits in patterns() {
        let (expected, found) = (meaning(bits, HALF), f64::from(extend_half(carried(bits))));
        assert!(expected.is_nan() && found.is_nan() || expected.to_bits() == found.to_bits());
        assert_eq!(extend_half_in_integer(bits).to_bits(), extend_half(carried(bits)).to_bits());
        let double = extend_half_to_double(carried(bits));
        assert!(double.is_nan() && found.is_nan() || double.to_bits() == found.to_bits());
    }
}

#[test]
fn bfloat16_extended_is_its_meaning_for_all_patterns() {
    for bits in patterns() {
        let expected = meaning(bits, BFLOAT16);
        let found = f64::from(extend_bfloat16(carried(bits)));
        assert!(expected.is_nan() && found.is_nan() || expected.to_bits() == found.to_bits());
    }
}

#[test]
fn pattern_extended_and_narrowed_is_the_same() {
    for bits in patterns() {
        let half = low_bits(narrow_to_half(extend_half(carried(bits))));
        let bfloat16 = low_bits(narrow_to_bfloat16(extend_bfloat16(carried(bits))));
        let quiet = |bits: u16, format: Format| {
            let nan = bits & 0x7fff > format.infinity();
            if nan { bits | 1 << (format.mantissa_bits - 1) } else { bits }
        };
        assert_eq!((half, bfloat16), (quiet(bits, HALF), quiet(bits, BFLOAT16)), "{bits:04x}");
    }
}

#[test]
fn double_narrowed_is_the_nearest_with_ties_to_even() {
    for (format, narrow) in [
        (HALF, narrow_double_to_half as extern "C" fn(f64) -> f32),
        (BFLOAT16, narrow_double_to_bfloat16),
    ] {
        let probes = probes(format);
        let meanings: Vec<f64> = (0..format.infinity()).map(|bits| meaning(bits, format)).collect();
        for x in probes.into_iter().flat_map(|x| [x, -x]) {
            assert_eq!(low_bits(narrow(x)), nearest(x, format, &meanings), "{x:e}");
        }
    }
}

#[test]
fn float_narrowed_is_the_double_narrowed() {
    // Every 977th pattern visits every exponent and many mantissas; the ends are visited too.
    for bits in (0..=u32::MAX).step_by(977).chain([0x3f80_1000, 0x3f80_3000, 0x7f7f_ffff, 1]) {
        let x = f32::from_bits(bits);
        let half = low_bits(narrow_to_half(x));
        assert_eq!(half, low_bits(narrow_double_to_half(x.into())), "{x:e}");
        assert_eq!(half, narrow_to_half_in_integer(x));
        let bfloat16 = low_bits(narrow_to_bfloat16(x));
        assert_eq!(bfloat16, low_bits(narrow_double_to_bfloat16(x.into())), "{x:e}");
    }
}

#[test]
fn double_that_rounds_twice_through_float_is_rounded_once() {
    // Just above a tie between two halves: a float drops what is above, and the tie goes down.
    let x = 1.0 + 2f64.powi(-11) + 2f64.powi(-40);
    assert_eq!(low_bits(narrow_double_to_half(x)), 0x3c01);
    assert_eq!(low_bits(narrow_to_half(1.0 + 2f32.powi(-11))), 0x3c00);
}

#[test]
fn nan_narrowed_is_quiet_with_sign_and_payload() {
    for (bits, half, bfloat16) in [
        (0x7f80_0001, 0x7e00, 0x7fc0),
        (0xffc0_0000, 0xfe00, 0xffc0),
        (0x7fff_ffff_u32, 0x7fff, 0x7fff),
        (0x7fa0_0000, 0x7f00, 0x7fe0),
    ] {
        // Not through a float, which the compiler may make quiet.
        let double = u64::from(bits & 0x8000_0000) << 32
            | 0x7ff0_0000_0000_0000
            | u64::from(bits & 0x007f_ffff) << 29;
        let value = Value::of(f64::from_bits(double));
        assert_eq!(value.round_to(HALF), half, "{bits:08x}");
        assert_eq!(value.round_to(BFLOAT16), bfloat16, "{bits:08x}");
    }
}

#[test]
fn extended_narrowed_is_the_double_narrowed() {
    for bits in patterns() {
        let x = meaning(bits, HALF) * (1.0 + 2f64.powi(-11));
        let (exponent, fraction) = ((x.to_bits() >> 52) & 0x7ff, x.to_bits() << 12 >> 1);
        if exponent == 0 {
            continue;
        }
        let exponent = if exponent == 0x7ff { 0x7fff } else { exponent + 16383 - 1023 };
        let head = u16::try_from(exponent).unwrap() | (bits & 0x8000);
        let mut extended = [0; 10];
        extended[..8].copy_from_slice(&(1 << 63 | fraction).to_le_bytes());
        extended[8..].copy_from_slice(&head.to_le_bytes());
        let found = low_bits(narrow_extended_to_half(&extended));
        assert_eq!(found, low_bits(narrow_double_to_half(x)), "{x:e}");
        let found = low_bits(narrow_extended_to_bfloat16(&extended));
        assert_eq!(found, low_bits(narrow_double_to_bfloat16(x)), "{x:e}");
    }
}

#[test]
fn half_equality_is_that_of_the_numbers() {
    for (x, y, equal) in [
        (0x0000, 0x8000, true),
        (0x3c00, 0x3c00, true),
        (0x3c00, 0x3c01, false),
        (0x7e00, 0x7e00, false),
        (0x7c00, 0xfc00, false),
    ] {
        assert_eq!(compare_half(carried(x), carried(y)) == 0, equal, "{x:04x} {y:04x}");
    }
}

#[test]
#[expect(clippy::cast_possible_truncation, reason = "the CPU's own conversion, as an oracle")]
fn half_conversions_agree_with_the_cpu() {
    if !std::arch::is_x86_feature_detected!("f16c") {
        skipped("this CPU has no F16C to compare with");
        return;
    }
    #[target_feature(enable = "f16c")]
    fn by_cpu(x: f32) -> u16 {
        use std::arch::x86_64::*;
        let halves = _mm_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT }>(_mm_set_ss(x));
        _mm_extract_epi16::<0>(halves) as u16
    }
    for bits in (0..=u32::MAX).step_by(5003) {
        let x = f32::from_bits(bits);
        // SAFETY: the feature was detected.
        let expected = unsafe { by_cpu(x) };
        assert_eq!(low_bits(narrow_to_half(x)), expected, "{bits:08x}");
    }
}

#[test]
fn library_functions_follow_c() {
    assert_eq!((trunc(-1.5), truncf(1.9), floor(-1.5), floorf(1.9)), (-1.0, 1.0, -2.0, 1.0));
    assert_eq!((ceil(-1.5), ceilf(1.1), fmod(-7.0, 3.0), fmodf(7.0, -3.0)), (-1.0, 2.0, -1.0, 1.0));
    assert_eq!((fma(2.0, 3.0, 4.0), fmaf(2.0, 3.0, 4.0)), (10.0, 10.0));
}

/// Says what could not be tested, past the test runner.
fn skipped(why: &str) {
    let test = std::thread::current().name().unwrap_or_default().to_owned();
    // Losing a line of the report is no reason to fail.
    let _ = std::io::Write::write_all(
        &mut std::io::stderr(),
        format!("SKIPPED: {test}: {why}\n").as_bytes(),
    );
}
