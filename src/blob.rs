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
        let text: &[u8; 64] = text.try_into().ok()?;
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(text.as_chunks::<2>().0) {
            *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
        }
        Some(Digest(bytes))
    }
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
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
        assert_eq!(Digest::from_hex(&[b'g'; 64]), None);
    }
}
