//! Names of byte strings.
//!
//! Owns: [`Digest`], the 32-byte name that a client gives to a blob. Absent: the bytes themselves,
//! which live in the batch that carried them.

use std::fmt;

/// The 32-byte name of a blob: the client's hash of its bytes (SHA-256 in version 1 of the wire).
///
/// On the wire it appears twice: raw in front of the blob, and as 64 lower-case hexadecimal digits
/// in commands.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// Reads 64 hexadecimal digits, of either case.
    #[must_use]
    pub fn from_hex(text: &[u8]) -> Option<Digest> {
        let digits: &[u8; 64] = text.try_into().ok()?;
        // Without branches, so that the compiler does many digits at a time.
        let mut nibbles = [0; 64];
        let mut wrong = false;
        for (nibble, digit) in nibbles.iter_mut().zip(digits) {
            let decimal = digit.wrapping_sub(b'0');
            let letter = (digit | 0x20).wrapping_sub(b'a');
            wrong |= (decimal > 9) & (letter > 5);
            *nibble = if decimal > 9 { letter.wrapping_add(10) } else { decimal };
        }
        let mut bytes = [0; 32];
        for (byte, [high, low]) in bytes.iter_mut().zip(nibbles.as_chunks().0) {
            *byte = high << 4 | low;
        }
        (!wrong).then_some(Digest(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::Digest;

    #[test]
    fn digest_printed_and_read_is_the_same() {
        let digest = Digest(std::array::from_fn(|i| u8::try_from(i * 7 % 256).unwrap()));
        assert_eq!(Digest::from_hex(digest.to_string().as_bytes()), Some(digest));
    }

    #[test]
    fn digest_with_wrong_length_or_digit_is_refused() {
        assert_eq!(Digest::from_hex(&[b'0'; 63]), None);
        assert_eq!(Digest::from_hex(&[b'0'; 65]), None);
        for at in [0, 1, 31, 62, 63] {
            for digit in 0..=255_u8 {
                let mut digits = [b'0'; 64];
                digits[at] = digit;
                let expected = char::from(digit).to_digit(16).map(|value| {
                    let mut bytes = [0; 32];
                    bytes[at / 2] = u8::try_from(value << (4 * (1 - at % 2))).unwrap();
                    Digest(bytes)
                });
                assert_eq!(Digest::from_hex(&digits), expected, "{digit}");
            }
        }
    }
}
