//! Python's literal tokens: numbers, quoted strings, names.
//!
//! Absent: what a token means where it stands (`value.rs`), and the decoding of escapes
//! (`escape.rs`), which waits until somebody asks for the string.

use super::cursor::Cursor;
use super::error::{WireError, WireErrorKind};
use super::tape::Kind;

/// A number as written, without its sign.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Number {
    Int(u64),
    /// An integer that does not fit into 64 bits.
    BigInt,
    Float(f64),
}

/// A string as written: the place of what is between the quotes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Quoted {
    pub(crate) from: u32,
    pub(crate) to: u32,
    /// Whether the value differs from what is between the quotes (in a string that is not raw).
    pub(crate) escaped: bool,
    /// Whether a carriage return is inside, which Python reads as a line end.
    pub(crate) returns: bool,
}

#[inline]
pub(crate) fn starts_name(byte: u8) -> bool {
    (byte | 0x20).is_ascii_lowercase() || byte == b'_'
}

#[inline]
pub(crate) fn continues_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// What stands before the quotes of a string.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Prefix {
    /// Its length.
    pub(crate) bytes: usize,
    /// [`Kind::Str`] or [`Kind::Bytes`].
    pub(crate) kind: Kind,
    pub(crate) raw: bool,
}

impl Default for Prefix {
    fn default() -> Self {
        Prefix { bytes: 0, kind: Kind::Str, raw: false }
    }
}

/// The prefix of the string that begins here, if one does. Formatted strings are none.
#[inline]
pub(crate) fn string_prefix(cursor: &Cursor<'_>) -> Option<Prefix> {
    let is_quote = |byte| byte == b'\'' || byte == b'"';
    let first = cursor.peek();
    if is_quote(first) {
        return Some(Prefix::default());
    }
    let first = first | 0x20;
    if !matches!(first, b'b' | b'r' | b'u') {
        return None;
    }
    let second = cursor.peek_at(1);
    if is_quote(second) {
        let kind = if first == b'b' { Kind::Bytes } else { Kind::Str };
        return Some(Prefix { bytes: 1, kind, raw: first == b'r' });
    }
    let both = matches!((first, second | 0x20), (b'b', b'r') | (b'r', b'b'));
    (both && is_quote(cursor.peek_at(2))).then_some(Prefix {
        bytes: 2,
        kind: Kind::Bytes,
        raw: true,
    })
}

/// Reads a name with dots: `int`, `dtypes.int`. The cursor is at its first letter.
///
/// Python allows spaces around the dots; nobody writes them, and they are refused here.
#[inline]
pub(crate) fn name(cursor: &mut Cursor<'_>) {
    cursor.skip_name();
    while cursor.peek() == b'.' && starts_name(cursor.peek_at(1)) {
        cursor.bump(1);
        cursor.skip_name();
    }
}

/// Reads a string. The cursor is at its first quote.
#[inline]
pub(crate) fn quoted(cursor: &mut Cursor<'_>) -> Result<Quoted, WireError> {
    let quote = cursor.peek();
    if cursor.peek_at(1) == quote && cursor.peek_at(2) == quote {
        return quoted_three_times(cursor, quote);
    }
    cursor.bump(1);
    let from = cursor.at_u32();
    let (mut escaped, mut returns) = (false, false);
    loop {
        cursor.skip_plain(quote);
        match cursor.peek() {
            b'\\' => {
                escaped = true;
                returns |= backslash(cursor);
            }
            0 | b'\n' | b'\r' => return Err(cursor.unexpected("the end of a string")),
            byte if byte == quote => break,
            _ => cursor.bump(1),
        }
    }
    let to = cursor.at_u32();
    cursor.bump(1);
    Ok(Quoted { from, to, escaped, returns })
}

fn quoted_three_times(cursor: &mut Cursor<'_>, quote: u8) -> Result<Quoted, WireError> {
    cursor.bump(3);
    let from = cursor.at_u32();
    let (mut escaped, mut returns) = (false, false);
    loop {
        cursor.skip_plain(quote);
        match cursor.peek() {
            b'\\' => {
                escaped = true;
                returns |= backslash(cursor);
            }
            0 => return Err(cursor.unexpected("the end of a string")),
            byte if byte == quote && cursor.starts_with(&[quote; 3]) => break,
            byte => {
                returns |= byte == b'\r';
                cursor.bump(1);
            }
        }
    }
    let to = cursor.at_u32();
    cursor.bump(3);
    Ok(Quoted { from, to, escaped, returns })
}

/// Moves over a backslash and what it escapes, so that an escaped quote ends nothing. Says whether
/// that was a carriage return.
fn backslash(cursor: &mut Cursor<'_>) -> bool {
    cursor.bump(1);
    let returns = cursor.peek() == b'\r';
    // The bytes after the first of a longer character are plain.
    cursor.take();
    if returns {
        cursor.eat(b'\n');
    }
    returns
}

/// Reads a number without sign. The cursor is at a digit, or at a dot before a digit.
#[inline]
pub(crate) fn number(cursor: &mut Cursor<'_>, digits_max: usize) -> Result<Number, WireError> {
    if let Some(short) = short(cursor) {
        return Ok(Number::Int(short));
    }
    let start = *cursor;
    let mut digits = Digits { value: Some(0), left: digits_max, digits_max };
    if cursor.peek() == b'0' {
        let radix = match cursor.peek_at(1) | 0x20 {
            b'x' => 16,
            b'o' => 8,
            b'b' => 2,
            _ => 10,
        };
        if radix != 10 {
            cursor.bump(2);
            cursor.eat(b'_');
            digits.read(cursor, radix)?;
            return end(cursor, digits.int());
        }
    }
    if cursor.peek() != b'.' {
        digits.read(cursor, 10)?;
    }
    if matches!(cursor.peek(), b'.' | b'e' | b'E') {
        return float(start, cursor, &mut digits);
    }
    if start.peek() == b'0' && digits.value != Some(0) {
        return Err(start.unexpected("an integer without leading zeros"));
    }
    end(cursor, digits.int())
}

/// Reads an integer that is written in the plainest way, as nearly all are. Everything else is left
/// as it was.
#[inline]
pub(crate) fn short(cursor: &mut Cursor<'_>) -> Option<u64> {
    let mut ahead = *cursor;
    let mut value: u64 = 0;
    loop {
        let digit = ahead.peek().wrapping_sub(b'0');
        if digit > 9 {
            break;
        }
        // Sixteen digits cannot overflow.
        value = value * 10 + u64::from(digit);
        ahead.bump(1);
        if ahead.at() - cursor.at() > 16 {
            return None;
        }
    }
    let plain = cursor.peek() != b'0' || ahead.at() - cursor.at() == 1;
    let next = ahead.peek();
    if !plain || next == b'.' || continues_name(next) || ahead.at() == cursor.at() {
        return None;
    }
    *cursor = ahead;
    Some(value)
}

/// Reads the rest of a float, after the digits before its dot.
fn float(
    start: Cursor<'_>,
    cursor: &mut Cursor<'_>,
    digits: &mut Digits,
) -> Result<Number, WireError> {
    if cursor.eat(b'.') && cursor.peek().is_ascii_digit() {
        digits.read(cursor, 10)?;
    }
    if matches!(cursor.peek(), b'e' | b'E') {
        cursor.bump(1);
        if matches!(cursor.peek(), b'+' | b'-') {
            cursor.bump(1);
        }
        digits.read(cursor, 10)?;
    }
    let written = start.between(start.at(), cursor.at());
    let value = match written.contains('_') {
        true => written.replace('_', "").parse(),
        false => written.parse(),
    };
    let value = value.map_err(|_| start.unexpected("a float"))?;
    end(cursor, Number::Float(value))
}

#[inline]
fn end(cursor: &Cursor<'_>, number: Number) -> Result<Number, WireError> {
    match continues_name(cursor.peek()) {
        true => Err(cursor.unexpected("the end of a number")),
        false => Ok(number),
    }
}

struct Digits {
    /// What the digits before the dot mean, if it fits.
    value: Option<u64>,
    left: usize,
    digits_max: usize,
}

impl Digits {
    fn int(&self) -> Number {
        self.value.map_or(Number::BigInt, Number::Int)
    }

    /// Reads one or more digits, with single underscores between them.
    #[inline]
    fn read(&mut self, cursor: &mut Cursor<'_>, radix: u32) -> Result<(), WireError> {
        loop {
            let Some(digit) = char::from(cursor.peek()).to_digit(radix) else {
                return Err(cursor.unexpected("a digit"));
            };
            let Some(left) = self.left.checked_sub(1) else {
                return Err(cursor.error(WireErrorKind::TooManyDigits { max: self.digits_max }));
            };
            self.left = left;
            self.value = self
                .value
                .and_then(|value| value.checked_mul(u64::from(radix)))
                .and_then(|value| value.checked_add(u64::from(digit)));
            cursor.bump(1);
            if !cursor.eat(b'_') && !char::from(cursor.peek()).is_digit(radix) {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Cursor, Number, number};

    #[track_caller]
    fn check(text: &str, expected: Option<Number>) {
        let mut cursor = Cursor::new(text.as_bytes(), 1 << 10).unwrap();
        let found = number(&mut cursor, 64).ok();
        assert_eq!(found, expected, "{text}");
        assert!(expected.is_none() || cursor.peek() == 0, "{text}: stopped early");
    }

    #[test]
    fn numbers_of_every_form_are_read() {
        check("0", Some(Number::Int(0)));
        check("0_0", Some(Number::Int(0)));
        check("18446744073709551615", Some(Number::Int(u64::MAX)));
        check("18446744073709551616", Some(Number::BigInt));
        check("0xFF_ff", Some(Number::Int(0xffff)));
        check("0x_1", Some(Number::Int(1)));
        check("0o17", Some(Number::Int(15)));
        check("0B101", Some(Number::Int(5)));
        check("1.", Some(Number::Float(1.0)));
        check(".5", Some(Number::Float(0.5)));
        check("09.5e-1_0", Some(Number::Float(9.5e-10)));
        check("1_0e3", Some(Number::Float(10e3)));
        check("1e999", Some(Number::Float(f64::INFINITY)));
    }

    #[test]
    fn numbers_of_no_form_are_refused() {
        for text in ["012", "1_", "1__0", "0x", "0xg", "0b2", "1e", "1e+", "1j", "1abc", "1._5"] {
            check(text, None);
        }
        check(&"1".repeat(65), None);
        check(&format!("0.{}", "1".repeat(64)), None);
    }
}
