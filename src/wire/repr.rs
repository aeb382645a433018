//! Python's `repr` of scalars, to the letter.

use std::fmt::{self, Write as _};

/// A `str` as Python prints it.
#[derive(Clone, Copy, Debug)]
pub struct Str<'a>(pub &'a str);

/// A `bytes` as Python prints it.
#[derive(Clone, Copy, Debug)]
pub struct Bytes<'a>(pub &'a [u8]);

/// A `float` as Python prints it: the shortest digits that read back the same, with an exponent
/// below 1e-4 and from 1e16 on.
#[derive(Clone, Copy, Debug)]
pub struct Float(pub f64);

/// A `bool` as Python prints it.
#[derive(Clone, Copy, Debug)]
pub struct Bool(pub bool);

/// Single quotes, unless there are only such inside.
fn quote_for(single: bool, double: bool) -> char {
    if single && !double { '"' } else { '\'' }
}

impl fmt::Display for Str<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quote = quote_for(self.0.contains('\''), self.0.contains('"'));
        f.write_char(quote)?;
        let mut rest = self.0;
        let special = |c: char| c == quote || c == '\\' || !(' '..='~').contains(&c);
        while let Some((before, c, after)) = rest.find(special).and_then(|at| {
            let (before, from) = rest.split_at(at);
            let c = from.chars().next()?;
            Some((before, c, from.split_at(c.len_utf8()).1))
        }) {
            f.write_str(before)?;
            write_special(f, c)?;
            rest = after;
        }
        f.write_str(rest)?;
        f.write_char(quote)
    }
}

fn write_special(f: &mut fmt::Formatter<'_>, c: char) -> fmt::Result {
    match c {
        '\n' => f.write_str("\\n"),
        '\r' => f.write_str("\\r"),
        '\t' => f.write_str("\\t"),
        '\'' | '"' | '\\' => write!(f, "\\{c}"),
        _ if is_printable(c) => f.write_char(c),
        _ => match u32::from(c) {
            code @ 0..=0xff => write!(f, "\\x{code:02x}"),
            code @ 0x100..=0xffff => write!(f, "\\u{code:04x}"),
            code => write!(f, "\\U{code:08x}"),
        },
    }
}

/// Whether Python prints a character as itself: neither control, format, surrogate, private,
/// unassigned, nor a separator other than the space. `escape_debug` uses the same categories; it
/// also escapes combining characters, but only at the start of a text.
fn is_printable(c: char) -> bool {
    if c.is_ascii() {
        return (' '..='~').contains(&c);
    }
    let mut buffer = [b'a'; 5];
    let bytes = c.encode_utf8(&mut buffer[1..]).len();
    std::str::from_utf8(&buffer[..=bytes]).is_ok_and(|text| text.escape_debug().eq(text.chars()))
}

impl fmt::Display for Bytes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quote = quote_for(self.0.contains(&b'\''), self.0.contains(&b'"'));
        write!(f, "b{quote}")?;
        for &byte in self.0 {
            match char::from(byte) {
                '\n' => f.write_str("\\n")?,
                '\r' => f.write_str("\\r")?,
                '\t' => f.write_str("\\t")?,
                c if c == quote || c == '\\' => write!(f, "\\{c}")?,
                c @ ' '..='~' => f.write_char(c)?,
                _ => write!(f, "\\x{byte:02x}")?,
            }
        }
        f.write_char(quote)
    }
}

impl fmt::Display for Float {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.0;
        if value.is_nan() {
            return f.write_str("nan");
        }
        if value.is_infinite() {
            return f.write_str(if value < 0.0 { "-inf" } else { "inf" });
        }
        // Rust writes the shortest digits too: `1.2e-5`.
        let scientific = format!("{value:e}");
        let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
        match exponent.parse::<i32>().unwrap_or(0) {
            -4..16 => write!(f, "{value:?}"),
            exponent => {
                let sign = if exponent < 0 { '-' } else { '+' };
                write!(f, "{digits}e{sign}{:02}", exponent.unsigned_abs())
            }
        }
    }
}

impl fmt::Display for Bool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0 { "True" } else { "False" })
    }
}

#[cfg(test)]
mod tests {
    use super::{Bytes, Float, Str};

    #[test]
    fn strings_are_printed_as_python_does() {
        for (text, expected) in [
            ("", "''"),
            ("it's", r#""it's""#),
            (r#"both ' and ""#, r#"'both \' and "'"#),
            ("a\\b\t\r\n\0\x1b\x7f", r"'a\\b\t\r\n\x00\x1b\x7f'"),
            ("caf\u{e9} \u{65e5}", "'caf\u{e9} \u{65e5}'"),
            ("\u{a0}\u{ad}\u{200b}\u{2028}", r"'\xa0\xad\u200b\u2028'"),
            ("\u{301}\u{1f600}\u{e0001}", "'\u{301}\u{1f600}\\U000e0001'"),
        ] {
            assert_eq!(Str(text).to_string(), expected);
        }
    }

    #[test]
    fn bytes_are_printed_as_python_does() {
        assert_eq!(Bytes(b"\0a'\xff\n").to_string(), r#"b"\x00a'\xff\n""#);
        assert_eq!(Bytes(b"'\"\\").to_string(), r#"b'\'"\\'"#);
    }

    #[test]
    fn floats_are_printed_as_python_does() {
        for (value, expected) in [
            (0.25, "0.25"),
            (1.2e-5, "1.2e-05"),
            (0.0001, "0.0001"),
            (0.00012345, "0.00012345"),
            (0.000099999, "9.9999e-05"),
            (3.0, "3.0"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (5e-324, "5e-324"),
            (-0.0, "-0.0"),
            (f64::NEG_INFINITY, "-inf"),
            (f64::NAN, "nan"),
        ] {
            assert_eq!(Float(value).to_string(), expected);
        }
    }
}
