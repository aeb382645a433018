//! What is between the quotes of a Python string, decoded.
//!
//! Read only for strings that hold a backslash or a carriage return; all others are borrowed from
//! the text as they are.

use super::cursor::Cursor;
use super::error::{WireError, WireErrorKind};

/// Appends the value of a `str` fragment. `at` is its place in the text, for errors.
pub(crate) fn decode_str(
    body: &str,
    raw: bool,
    at: usize,
    out: &mut String,
) -> Result<(), WireError> {
    let mut cursor = Cursor::of_part(body);
    loop {
        let from = cursor.at();
        cursor.skip_while(|byte| byte != b'\r' && (raw || byte != b'\\'));
        out.push_str(cursor.between(from, cursor.at()));
        let here = at + cursor.at();
        match cursor.take() {
            0 => return Ok(()),
            b'\r' => {
                cursor.eat(b'\n');
                out.push('\n');
            }
            _ => match escape(&mut cursor, here, Alphabet::Characters)? {
                Escape::Code(code) => out.push(char::from_u32(code).ok_or_else(|| {
                    bad(here, "not a Unicode scalar value (a lone surrogate, or too large)")
                })?),
                Escape::Nothing => {}
                // Not an escape at all: Python keeps the backslash, and what follows is plain.
                Escape::Unknown => out.push('\\'),
            },
        }
    }
}

/// Appends the value of a `bytes` fragment. `at` is its place in the text, for errors.
pub(crate) fn decode_bytes(
    body: &str,
    raw: bool,
    at: usize,
    out: &mut Vec<u8>,
) -> Result<(), WireError> {
    let mut cursor = Cursor::of_part(body);
    loop {
        let here = at + cursor.at();
        match cursor.take() {
            0 => return Ok(()),
            b'\r' => {
                cursor.eat(b'\n');
                out.push(b'\n');
            }
            b'\\' if !raw => match escape(&mut cursor, here, Alphabet::Bytes)? {
                // Python keeps the low eight bits of an octal escape above \377.
                Escape::Code(code) => out.push(code.to_le_bytes()[0]),
                Escape::Nothing => {}
                Escape::Unknown => out.push(b'\\'),
            },
            byte => out.push(byte),
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Alphabet {
    Bytes,
    Characters,
}

enum Escape {
    Code(u32),
    /// A joined line.
    Nothing,
    Unknown,
}

/// Reads an escape after its backslash.
fn escape(cursor: &mut Cursor<'_>, here: usize, alphabet: Alphabet) -> Result<Escape, WireError> {
    let byte = cursor.peek();
    let code = match byte {
        b'\\' | b'\'' | b'"' => u32::from(byte),
        b'a' => 0x07,
        b'b' => 0x08,
        b'f' => 0x0c,
        b'n' => 0x0a,
        b'r' => 0x0d,
        b't' => 0x09,
        b'v' => 0x0b,
        b'0'..=b'7' => return Ok(Escape::Code(octal(cursor))),
        b'x' => return hexadecimal(cursor, here, 2),
        b'u' if alphabet == Alphabet::Characters => return hexadecimal(cursor, here, 4),
        b'U' if alphabet == Alphabet::Characters => return hexadecimal(cursor, here, 8),
        b'N' if alphabet == Alphabet::Characters => {
            return Err(bad(here, "characters by name are not supported"));
        }
        b'\n' => {
            cursor.bump(1);
            return Ok(Escape::Nothing);
        }
        b'\r' => {
            cursor.bump(1);
            cursor.eat(b'\n');
            return Ok(Escape::Nothing);
        }
        _ => return Ok(Escape::Unknown),
    };
    cursor.bump(1);
    Ok(Escape::Code(code))
}

fn octal(cursor: &mut Cursor<'_>) -> u32 {
    let mut code = 0;
    for _ in 0..3 {
        let Some(digit) = char::from(cursor.peek()).to_digit(8) else { break };
        code = code * 8 + digit;
        cursor.bump(1);
    }
    code
}

fn hexadecimal(cursor: &mut Cursor<'_>, here: usize, digits: usize) -> Result<Escape, WireError> {
    cursor.bump(1);
    let mut code: u32 = 0;
    for _ in 0..digits {
        let digit = char::from(cursor.peek())
            .to_digit(16)
            .ok_or_else(|| bad(here, "too few hexadecimal digits"))?;
        // At most eight digits.
        code = code << 4 | digit;
        cursor.bump(1);
    }
    Ok(Escape::Code(code))
}

#[cold]
fn bad(at: usize, reason: &'static str) -> WireError {
    WireError::new(at, WireErrorKind::Escape { reason })
}
