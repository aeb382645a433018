//! A place in the command text. The only code that indexes its bytes.
//!
//! The text holds no NUL byte (`Cursor::new` refuses it), so 0 stands for the end.

use super::error::{WireError, WireErrorKind, quote_next};

#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor<'t> {
    text: &'t str,
    at: usize,
}

impl<'t> Cursor<'t> {
    /// The start of `text`.
    ///
    /// # Errors
    ///
    /// The text is too long, is not UTF-8 or holds a NUL byte.
    pub(crate) fn new(text: &'t [u8], text_bytes_max: usize) -> Result<Self, WireError> {
        // Places in the text are kept in 32 bits.
        let max = text_bytes_max.min(u32::MAX as usize);
        if text.len() > max {
            return Err(WireError::new(0, WireErrorKind::TextTooLong { bytes: text.len(), max }));
        }
        let text = std::str::from_utf8(text)
            .map_err(|error| WireError::new(error.valid_up_to(), WireErrorKind::InvalidUtf8))?;
        if holds_zero(text.as_bytes()) {
            let at = text.bytes().position(|byte| byte == 0).unwrap_or(0);
            return Err(WireError::new(at, WireErrorKind::Nul));
        }
        Ok(Cursor { text, at: 0 })
    }

    /// The start of a part of a text that was checked before.
    pub(crate) fn of_part(part: &'t str) -> Self {
        Cursor { text: part, at: 0 }
    }

    pub(crate) fn text(&self) -> &'t str {
        self.text
    }

    pub(crate) fn at(&self) -> usize {
        self.at
    }

    /// The place in 32 bits, which is enough for every text that `new` accepts.
    #[inline]
    pub(crate) fn at_u32(&self) -> u32 {
        u32::try_from(self.at).expect("a text is shorter than 4 GiB")
    }

    /// The next byte, or 0 at the end.
    #[inline]
    pub(crate) fn peek(&self) -> u8 {
        self.peek_at(0)
    }

    /// The byte `ahead` bytes after the next one, or 0 past the end.
    #[inline]
    pub(crate) fn peek_at(&self, ahead: usize) -> u8 {
        self.text.as_bytes().get(self.at + ahead).copied().unwrap_or(0)
    }

    /// Moves over `bytes` bytes that were seen with `peek`.
    #[inline]
    pub(crate) fn bump(&mut self, bytes: usize) {
        self.at += bytes;
        debug_assert!(self.at <= self.text.len());
    }

    /// Takes the next byte, or 0 at the end.
    #[inline]
    pub(crate) fn take(&mut self) -> u8 {
        let byte = self.peek();
        self.at += usize::from(byte != 0);
        byte
    }

    /// Moves over `byte` if it is next.
    #[inline]
    pub(crate) fn eat(&mut self, byte: u8) -> bool {
        let here = self.peek() == byte;
        self.at += usize::from(here);
        here
    }

    /// Moves over `what` if it is next. `None` if it is not.
    #[inline(always)]
    pub(crate) fn eat_text(&mut self, what: &'static str) -> Option<()> {
        let rest = self.text.as_bytes().get(self.at..)?;
        self.at += rest.starts_with(what.as_bytes()).then_some(what.len())?;
        Some(())
    }

    /// Moves over `what` if it is next.
    #[inline]
    pub(crate) fn eat_str(&mut self, what: &str) -> bool {
        let rest = self.text.as_bytes().get(self.at..).unwrap_or_default();
        let here = rest.starts_with(what.as_bytes());
        self.at += if here { what.len() } else { 0 };
        here
    }

    /// Takes the next `count` bytes.
    #[inline]
    pub(crate) fn take_bytes(&mut self, count: usize) -> Option<&'t [u8]> {
        let bytes = self.text.as_bytes().get(self.at..)?.get(..count)?;
        self.at += count;
        Some(bytes)
    }

    pub(crate) fn starts_with(&self, what: &[u8]) -> bool {
        self.text.as_bytes().get(self.at..).is_some_and(|rest| rest.starts_with(what))
    }

    /// Moves over letters, digits and underscores.
    #[inline]
    pub(crate) fn skip_name(&mut self) {
        while IN_NAME[usize::from(self.peek())] {
            self.at += 1;
        }
    }

    /// Moves to the first byte that is not `wanted`.
    #[inline]
    pub(crate) fn skip_while(&mut self, wanted: impl Fn(u8) -> bool) {
        let rest = self.text.as_bytes().get(self.at..).unwrap_or_default();
        self.at += rest.iter().position(|&byte| !wanted(byte)).unwrap_or(rest.len());
    }

    /// Moves to the first `quote`, backslash or control byte.
    #[inline]
    pub(crate) fn skip_plain(&mut self, quote: u8) {
        let mut rest = self.text.as_bytes().get(self.at..).unwrap_or_default();
        while let Some((chunk, after)) = rest.split_first_chunk::<8>() {
            let word = u64::from_le_bytes(*chunk);
            let hits = zero_bytes(word ^ repeat(quote))
                | zero_bytes(word ^ repeat(b'\\'))
                | (word.wrapping_sub(repeat(0x20)) & !word & repeat(0x80));
            if hits != 0 {
                self.at += (hits.trailing_zeros() / 8) as usize;
                return;
            }
            self.at += 8;
            rest = after;
        }
        self.skip_while(|byte| byte != quote && byte != b'\\' && byte >= 0x20);
    }

    /// Moves over spaces, line ends, comments and joined lines, as Python does inside brackets.
    #[inline]
    pub(crate) fn skip_space(&mut self) {
        loop {
            let byte = self.peek();
            // Nothing that is skipped comes after the backslash.
            if byte > b'\\' {
                return;
            }
            match byte {
                b' ' | b'\n' | b'\t' | b'\r' | 0x0c => self.at += 1,
                b'#' => self.skip_while(|byte| byte != b'\n' && byte != b'\r'),
                b'\\' if matches!(self.peek_at(1), b'\n' | b'\r') => self.at += 2,
                _ => return,
            }
        }
    }

    /// The text between two places. Both are at ASCII bytes, or at the end.
    #[inline]
    pub(crate) fn between(&self, from: usize, to: usize) -> &'t str {
        slice(self.text, from, to)
    }

    #[cold]
    pub(crate) fn error(&self, kind: WireErrorKind) -> WireError {
        WireError::new(self.at, kind)
    }

    /// The error for something else than `expected` being here.
    #[cold]
    pub(crate) fn unexpected(&self, expected: &'static str) -> WireError {
        let found = quote_next(self.text.get(self.at..).unwrap_or_default());
        self.error(WireErrorKind::Syntax { expected, found })
    }
}

/// Whether any byte is zero. The compiler makes this a few instructions for each block.
fn holds_zero(bytes: &[u8]) -> bool {
    let (blocks, rest) = bytes.as_chunks::<64>();
    let any = |bytes: &[u8]| bytes.iter().fold(false, |any, byte| any | (*byte == 0));
    blocks.iter().any(|block| any(block)) || any(rest)
}

/// The text between two places that are at ASCII bytes, or at the end.
#[inline]
pub(crate) fn slice(text: &str, from: usize, to: usize) -> &str {
    text.get(from..to).expect("tokens begin and end at ASCII bytes")
}

/// Letters, digits and the underscore.
static IN_NAME: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0u8;
    while byte < 128 {
        table[byte as usize] = byte.is_ascii_alphanumeric() || byte == b'_';
        byte += 1;
    }
    table
};

const fn repeat(byte: u8) -> u64 {
    0x0101_0101_0101_0101 * byte as u64
}

/// The high bit of each byte that is zero. Bits above the lowest one may be set wrongly, so only
/// the lowest counts.
const fn zero_bytes(word: u64) -> u64 {
    word.wrapping_sub(repeat(1)) & !word & repeat(0x80)
}

#[cfg(test)]
mod tests {
    use super::{Cursor, WireErrorKind};

    #[test]
    fn plain_bytes_are_skipped_up_to_the_first_special_one() {
        for special in [b'\'', b'\\', b'\n', b'\t', 0x1f] {
            for before in 0..40 {
                for after in [0, 3, 20] {
                    let mut text = vec![b'a'; before];
                    text.push(special);
                    text.extend(std::iter::repeat_n(b'\'', after));
                    let mut cursor = Cursor::new(&text, 1 << 10).unwrap();
                    cursor.skip_plain(b'\'');
                    assert_eq!(cursor.at(), before, "{special}");
                }
            }
        }
        let text = "\u{20ac}\u{7f}\"\u{ff} all of it is plain";
        let mut cursor = Cursor::new(text.as_bytes(), 1 << 10).unwrap();
        cursor.skip_plain(b'\'');
        assert_eq!(cursor.at(), text.len());
    }

    #[test]
    fn text_with_bad_bytes_is_refused_where_they_are() {
        let error = Cursor::new(b"abc\xff", 9).unwrap_err();
        assert_eq!((error.at(), error.kind()), (3, &WireErrorKind::InvalidUtf8));
        let error = Cursor::new(b"abcd\0", 9).unwrap_err();
        assert_eq!((error.at(), error.kind()), (4, &WireErrorKind::Nul));
        let error = Cursor::new(b"abcd", 3).unwrap_err();
        assert_eq!(error.kind(), &WireErrorKind::TextTooLong { bytes: 4, max: 3 });
    }
}
