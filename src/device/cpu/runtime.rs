//! The functions that compilers expect to find beside a kernel.
//!
//! Kernels are compiled without a library, yet compilers call a few functions: to copy memory, to
//! round where the CPU has no instruction for it (before SSE4.1), and to convert half precision
//! (before F16C) and bfloat16 (before AVX512-BF16). This list is what clang 14 to 19 and gcc 12
//! were seen to call for tinygrad's kernels at `-march=native`, `x86-64` and `x86-64-v2`, and their
//! siblings.
//!
//! Conventions: a half or bfloat16 travels in the low 16 bits of an SSE register, so it is an `f32`
//! here of which only those bits count. clang 14 alone has it in integer registers, under names of
//! its own (`__gnu_*`). An 80-bit `long double` travels on the stack.

/// Address of a function by the name that compilers call it.
pub(super) fn find(name: &str) -> Option<*const ()> {
    Some(match name {
        "memcmp" => libc::memcmp as *const (),
        "memcpy" => libc::memcpy as *const (),
        "memmove" => libc::memmove as *const (),
        "memset" => libc::memset as *const (),
        "ceil" => ceil as *const (),
        "ceilf" => ceilf as *const (),
        "floor" => floor as *const (),
        "floorf" => floorf as *const (),
        "fma" => fma as *const (),
        "fmaf" => fmaf as *const (),
        "fmod" => fmod as *const (),
        "fmodf" => fmodf as *const (),
        "trunc" => trunc as *const (),
        "truncf" => truncf as *const (),
        "__eqhf2" | "__nehf2" => compare_half as *const (),
        "__extendbfsf2" => extend_bfloat16 as *const (),
        "__extendhfdf2" => extend_half_to_double as *const (),
        "__extendhfsf2" => extend_half as *const (),
        "__gnu_f2h_ieee" => narrow_to_half_in_integer as *const (),
        "__gnu_h2f_ieee" => extend_half_in_integer as *const (),
        "__truncdfbf2" => narrow_double_to_bfloat16 as *const (),
        "__truncdfhf2" => narrow_double_to_half as *const (),
        "__trunchfbf2" => narrow_half_to_bfloat16 as *const (),
        "__truncsfbf2" => narrow_to_bfloat16 as *const (),
        "__truncsfhf2" => narrow_to_half as *const (),
        "__truncxfbf2" => narrow_long_double_to_bfloat16 as *const (),
        "__truncxfhf2" => narrow_long_double_to_half as *const (),
        _ => return None,
    })
}

extern "C" fn ceil(x: f64) -> f64 {
    x.ceil()
}

extern "C" fn ceilf(x: f32) -> f32 {
    x.ceil()
}

extern "C" fn floor(x: f64) -> f64 {
    x.floor()
}

extern "C" fn floorf(x: f32) -> f32 {
    x.floor()
}

extern "C" fn fma(x: f64, y: f64, z: f64) -> f64 {
    x.mul_add(y, z)
}

extern "C" fn fmaf(x: f32, y: f32, z: f32) -> f32 {
    x.mul_add(y, z)
}

/// C's remainder has the sign of the dividend, as Rust's has.
extern "C" fn fmod(x: f64, y: f64) -> f64 {
    x % y
}

extern "C" fn fmodf(x: f32, y: f32) -> f32 {
    x % y
}

extern "C" fn trunc(x: f64) -> f64 {
    x.trunc()
}

extern "C" fn truncf(x: f32) -> f32 {
    x.trunc()
}

/// 0 if equal, else not; NaN equals nothing.
extern "C" fn compare_half(x: f32, y: f32) -> i64 {
    (half_to_f32(low_bits(x)) != half_to_f32(low_bits(y))).into()
}

extern "C" fn extend_bfloat16(x: f32) -> f32 {
    bfloat16_to_f32(low_bits(x))
}

extern "C" fn extend_half(x: f32) -> f32 {
    half_to_f32(low_bits(x))
}

extern "C" fn extend_half_in_integer(x: u16) -> f32 {
    half_to_f32(x)
}

extern "C" fn extend_half_to_double(x: f32) -> f64 {
    half_to_f32(low_bits(x)).into()
}

extern "C" fn narrow_double_to_bfloat16(x: f64) -> f32 {
    in_low_bits(Value::of(x).round_to(BFLOAT16))
}

extern "C" fn narrow_double_to_half(x: f64) -> f32 {
    in_low_bits(Value::of(x).round_to(HALF))
}

extern "C" fn narrow_half_to_bfloat16(x: f32) -> f32 {
    narrow_to_bfloat16(extend_half(x))
}

extern "C" fn narrow_to_bfloat16(x: f32) -> f32 {
    in_low_bits(Value::of(x.into()).round_to(BFLOAT16))
}

extern "C" fn narrow_to_half(x: f32) -> f32 {
    in_low_bits(Value::of(x.into()).round_to(HALF))
}

extern "C" fn narrow_to_half_in_integer(x: f32) -> u16 {
    Value::of(x.into()).round_to(HALF)
}

/// The argument lies on the stack, above the return address.
#[unsafe(naked)]
extern "C" fn narrow_long_double_to_half() {
    core::arch::naked_asm!("lea rdi, [rsp + 8]", "jmp {}", sym narrow_extended_to_half)
}

#[unsafe(naked)]
extern "C" fn narrow_long_double_to_bfloat16() {
    core::arch::naked_asm!("lea rdi, [rsp + 8]", "jmp {}", sym narrow_extended_to_bfloat16)
}

extern "C" fn narrow_extended_to_half(x: &[u8; 10]) -> f32 {
    in_low_bits(Value::of_extended(x).round_to(HALF))
}

extern "C" fn narrow_extended_to_bfloat16(x: &[u8; 10]) -> f32 {
    in_low_bits(Value::of_extended(x).round_to(BFLOAT16))
}

fn low_bits(x: f32) -> u16 {
    let [low, high, ..] = x.to_bits().to_le_bytes();
    u16::from_le_bytes([low, high])
}

fn in_low_bits(x: u16) -> f32 {
    f32::from_bits(x.into())
}

fn bfloat16_to_f32(x: u16) -> f32 {
    f32::from_bits(u32::from(x) << 16)
}

/// Exact. A signalling NaN becomes quiet, as the CPU's own conversion makes it.
fn half_to_f32(x: u16) -> f32 {
    let sign = u32::from(x & 0x8000) << 16;
    let mantissa = u32::from(x & 0x3ff);
    let magnitude = match (x >> 10 & 0x1f, mantissa) {
        // Subnormal: an integer times 2^-24. Integers to 2^11 are exact.
        (0, _) => (f32::from(x & 0x3ff) * 2f32.powi(-24)).to_bits(),
        (31, 0) => f32::INFINITY.to_bits(),
        (31, _) => 0x7fc0_0000 | mantissa << 13,
        (exponent, _) => (u32::from(exponent) + 127 - 15) << 23 | mantissa << 13,
    };
    f32::from_bits(sign | magnitude)
}

/// A 16-bit floating-point format: sign, exponent, mantissa.
#[derive(Clone, Copy)]
struct Format {
    mantissa_bits: u32,
    bias: i32,
}

const HALF: Format = Format { mantissa_bits: 10, bias: 15 };
const BFLOAT16: Format = Format { mantissa_bits: 7, bias: 127 };

impl Format {
    /// The bits of infinity: all of the exponent and none of the mantissa.
    fn infinity(self) -> u16 {
        (0x7fff >> self.mantissa_bits) << self.mantissa_bits
    }
}

/// A floating-point value of any format.
#[derive(Clone, Copy)]
struct Value {
    /// The sign in its place in 16 bits.
    sign: u16,
    magnitude: Magnitude,
}

#[derive(Clone, Copy)]
enum Magnitude {
    Zero,
    /// `mantissa * 2^(exponent - 63)`, with the highest bit of the mantissa set.
    Finite {
        exponent: i32,
        mantissa: u64,
    },
    Infinity,
    /// The payload from the highest bit down, without the bit that says quiet.
    Nan {
        payload: u64,
    },
}

impl Value {
    fn of(x: f64) -> Value {
        let bits = x.to_bits();
        let fraction = bits << 12;
        let magnitude = match (bits >> 52) & 0x7ff {
            0 => Magnitude::normalized(-1022, fraction >> 1),
            0x7ff if fraction == 0 => Magnitude::Infinity,
            0x7ff => Magnitude::Nan { payload: fraction << 1 },
            exponent => Magnitude::Finite {
                exponent: small(exponent) - 1023,
                mantissa: 1 << 63 | fraction >> 1,
            },
        };
        Value { sign: if x.is_sign_negative() { 0x8000 } else { 0 }, magnitude }
    }

    /// Of the x87's 80 bits, whose mantissa shows its highest bit.
    fn of_extended(x: &[u8; 10]) -> Value {
        let [mantissa @ .., low, high] = *x;
        let mantissa = u64::from_le_bytes(mantissa);
        let head = u16::from_le_bytes([low, high]);
        let magnitude = match head & 0x7fff {
            0x7fff if mantissa << 1 == 0 => Magnitude::Infinity,
            0x7fff => Magnitude::Nan { payload: mantissa << 2 },
            // The smallest normal exponent serves subnormals too.
            exponent => Magnitude::normalized(i32::from(exponent.max(1)) - 16383, mantissa),
        };
        Value { sign: head & 0x8000, magnitude }
    }

    /// The nearest value of the format, ties to even, in one rounding.
    fn round_to(self, format: Format) -> u16 {
        let infinity = format.infinity();
        let magnitude = match self.magnitude {
            Magnitude::Zero => 0,
            Magnitude::Infinity => infinity,
            Magnitude::Nan { payload } => {
                // The highest bit of the mantissa says quiet; the payload fills the rest.
                let quiet = 1 << (format.mantissa_bits - 1);
                infinity | quiet | bits16(payload >> (65 - format.mantissa_bits))
            }
            Magnitude::Finite { exponent, mantissa } => {
                format.round(exponent.saturating_add(format.bias), mantissa)
            }
        };
        self.sign | magnitude
    }
}

impl Magnitude {
    /// `mantissa * 2^(exponent - 63)`, for any mantissa.
    fn normalized(exponent: i32, mantissa: u64) -> Magnitude {
        if mantissa == 0 {
            return Magnitude::Zero;
        }
        let shift = mantissa.leading_zeros();
        Magnitude::Finite { exponent: exponent - shift.cast_signed(), mantissa: mantissa << shift }
    }
}

impl Format {
    /// Rounds a mantissa with its highest bit set; `exponent` is biased, and below 1 for what is
    /// subnormal in this format.
    fn round(self, exponent: i32, mantissa: u64) -> u16 {
        let infinity = self.infinity();
        if exponent > i32::from(infinity >> self.mantissa_bits) {
            return infinity;
        }
        // Each step below the smallest normal exponent costs one bit. Past 100 nothing is left.
        let subnormal_steps = (1 - exponent).clamp(0, 40).unsigned_abs();
        let dropped_bits = 63 - self.mantissa_bits + subnormal_steps;
        let mantissa = u128::from(mantissa);
        let (kept, dropped) = (mantissa >> dropped_bits, mantissa & ((1 << dropped_bits) - 1));
        let half = 1 << (dropped_bits - 1);
        let up = dropped > half || dropped == half && kept & 1 == 1;
        // A normal mantissa brings its highest bit along, which counts as one step of the exponent;
        // a carry out of the mantissa is another, and the last step of all leads to infinity.
        let steps = exponent.max(1).unsigned_abs() - 1;
        let rounded = (u128::from(steps) << self.mantissa_bits) + kept + u128::from(up);
        u16::try_from(rounded).map_or(infinity, |rounded| rounded.min(infinity))
    }
}

/// An exponent field of 11 bits.
fn small(field: u64) -> i32 {
    i32::try_from(field).expect("eleven bits fit")
}

/// A payload that was shifted down to fewer than 16 bits.
fn bits16(payload: u64) -> u16 {
    u16::try_from(payload).expect("a shift by 55 or more leaves 9 bits")
}

#[cfg(test)]
mod tests;
