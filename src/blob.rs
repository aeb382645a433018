//! Names of byte strings, and whether a name is true.
//!
//! Owns: [`Digest`], the 32-byte name that a client gives to a blob, and [`Verifier`], which hashes
//! a blob's bytes as they arrive. Absent: the bytes themselves, which live in the batch that
//! carried them, and the policy of what is verified, which is in `config`.

use std::fmt;

use sha2::Digest as _;

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

/// How a blob's name is made from its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hash {
    Blake3,
    Sha256,
}

impl Hash {
    /// The hash of this name, as the header field `Outboard-Digest` spells it.
    #[must_use]
    pub fn named(name: &[u8]) -> Option<Hash> {
        match name {
            b"blake3" => Some(Hash::Blake3),
            b"sha256" => Some(Hash::Sha256),
            _ => None,
        }
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Hash::Blake3 => "BLAKE3",
            Hash::Sha256 => "SHA-256",
        })
    }
}

/// A blob's bytes are not what its name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the {hash} of the bytes is {found}, not {name}")]
pub struct Mismatch {
    pub hash: Hash,
    pub name: Digest,
    pub found: Digest,
}

/// Hashes a blob as its bytes arrive, piece by piece while they are in the cache.
#[derive(Debug)]
pub struct Verifier(State);

/// Boxed: a state of BLAKE3 takes 1.9 KB, and few blobs are verified.
#[derive(Debug)]
enum State {
    Blake3(Box<blake3::Hasher>),
    Sha256(Box<sha2::Sha256>),
}

impl Verifier {
    #[must_use]
    pub fn new(hash: Hash) -> Verifier {
        Verifier(match hash {
            Hash::Blake3 => State::Blake3(Box::default()),
            Hash::Sha256 => State::Sha256(Box::default()),
        })
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Blake3(state) => {
                state.update(bytes);
            }
            State::Sha256(state) => state.update(bytes),
        }
    }

    /// Whether the bytes were those of this name.
    ///
    /// # Errors
    ///
    /// What they are instead.
    pub fn finish(self, name: Digest) -> Result<(), Mismatch> {
        let (hash, found) = match self.0 {
            State::Blake3(state) => (Hash::Blake3, Digest(*state.finalize().as_bytes())),
            State::Sha256(state) => (Hash::Sha256, Digest(state.finalize().into())),
        };
        if found == name { Ok(()) } else { Err(Mismatch { hash, name, found }) }
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
    use super::{Digest, Hash, Mismatch, Verifier};

    /// The hashes of `abc`: FIPS 180-2 appendix B.1, and BLAKE3's own reference implementation.
    const ABC: [(Hash, &str); 2] = [
        (Hash::Blake3, "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85"),
        (Hash::Sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
    ];

    #[test]
    fn name_of_the_bytes_is_accepted_however_they_are_split() {
        for (hash, name) in ABC {
            let name = Digest::from_hex(name.as_bytes()).expect("64 digits");
            for split in 0..=3 {
                let mut verifier = Verifier::new(hash);
                verifier.update(&b"abc"[..split]);
                verifier.update(&b"abc"[split..]);
                assert_eq!(verifier.finish(name), Ok(()));
            }
        }
    }

    #[test]
    fn name_of_other_bytes_is_refused_with_what_was_found() {
        for (hash, found) in ABC {
            let found = Digest::from_hex(found.as_bytes()).expect("64 digits");
            let name = Digest([7; 32]);
            let mut verifier = Verifier::new(hash);
            verifier.update(b"abc");
            assert_eq!(verifier.finish(name), Err(Mismatch { hash, name, found }));
        }
    }

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
