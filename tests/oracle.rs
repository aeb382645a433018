//! The literal parser against CPython's own.
//!
//! Some thousands of generated and mutated texts go to one Python process, which parses them with
//! `ast` and prints their values. We must accept the same texts and read the same values, but for:
//!
//! - characters by name (`\N{DASH}`): refused, since they need a table of all Unicode names;
//! - numbers of more than 64 digits: refused, since a limit is needed;
//! - space before the text, and a backslash before a line end after it: both are taken as space,
//!   where Python wants no indentation and no joined line;
//! - the names `inf` and `nan`: taken as the floats that Python prints so.
//!
//! Sets, complex numbers, `...`, formatted strings, and strings with lone surrogates are no values
//! of the wire: the script refuses them like calls, and we must, too. An integer of more than 64
//! bits is only `big` on both sides.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/skip.rs"]
mod skip;

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

use outboard::config::WireLimits;
use outboard::wire::value::{Items, Value, View};
use outboard::wire::{Tape, WireError, WireErrorKind};
use skip::skip;

const SCRIPT: &str = r#"
import ast, struct, sys, warnings
warnings.simplefilter("ignore")

def number(node, types=(int, float)):
    if isinstance(node, ast.Constant) and type(node.value) in types:
        return node.value
    raise ValueError(node)

def show(node):
    match node:
        case ast.Constant(value=None): return "None"
        case ast.Constant(value=bool(value)): return str(value)
        case ast.Constant(value=str(value)): return "str:" + value.encode().hex()
        case ast.Constant(value=bytes(value)): return "bytes:" + value.hex()
        case ast.Tuple(elts=items): return "(" + "".join(show(item) + "," for item in items) + ")"
        case ast.List(elts=items): return "[" + "".join(show(item) + "," for item in items) + "]"
        case ast.Dict(keys=keys, values=values):
            return "{" + "".join(show(k) + "," + show(v) + "," for k, v in zip(keys, values)) + "}"
        case ast.UnaryOp(op=ast.USub(), operand=operand): value = -number(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand): value = +number(operand)
        case _: value = number(node)
    if isinstance(value, float): return "float:" + struct.pack(">d", value).hex()
    return str(value) if abs(value) < 2**64 else "big"

for line in sys.stdin.read().split():
    try: print(show(ast.parse(bytes.fromhex(line).decode(), mode="eval").body))
    except (SyntaxError, ValueError): print("refused")
"#;

/// A value as the script shows it.
fn show(value: Value<'_, '_>, out: &mut String) -> Result<(), Refused> {
    match value.view()? {
        View::None => out.push_str("None"),
        View::Bool(value) => out.push_str(if value { "True" } else { "False" }),
        View::Str(text) => write!(out, "str:{}", hex(text.as_bytes())).unwrap(),
        View::Bytes(bytes) => write!(out, "bytes:{}", hex(&bytes)).unwrap(),
        View::Float(value) => write!(out, "float:{:016x}", value.to_bits()).unwrap(),
        View::Int(int) => match int.magnitude {
            None => out.push_str("big"),
            Some(magnitude) if int.negative && magnitude > 0 => {
                write!(out, "-{magnitude}").unwrap();
            }
            Some(magnitude) => write!(out, "{magnitude}").unwrap(),
        },
        View::Tuple(items) => show_items("(", items, ")", out)?,
        View::List(items) => show_items("[", items, "]", out)?,
        View::Dict(items) => show_items("{", items, "}", out)?,
        View::Binding(..) | View::Call(..) | View::Keyword(..) | View::Name(_) => {
            return Err(Refused(None));
        }
    }
    Ok(())
}

fn show_items(
    open: &str,
    items: Items<'_, '_>,
    close: &str,
    out: &mut String,
) -> Result<(), Refused> {
    out.push_str(open);
    for item in items {
        show(item, out)?;
        out.push(',');
    }
    out.push_str(close);
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// No literal, with the error if it is no expression at all.
struct Refused(Option<WireError>);

impl From<WireError> for Refused {
    fn from(error: WireError) -> Self {
        Refused(Some(error))
    }
}

fn ours(text: &str) -> Result<String, Refused> {
    let mut tape = Tape::new();
    let value = tape.parse(text.as_bytes(), &WireLimits::default())?;
    let mut out = String::new();
    show(value, &mut out)?;
    Ok(out)
}

/// Whether a text that Python takes is refused on purpose.
fn refused_on_purpose(error: &WireError) -> bool {
    match error.kind() {
        WireErrorKind::Escape { reason } => reason.contains("by name"),
        WireErrorKind::TooManyDigits { .. } => true,
        _ => false,
    }
}

/// Whether a text that Python refuses is taken on purpose.
fn accepted_on_purpose(text: &str) -> bool {
    let joined = text.trim_end_matches(['\n', '\r']).ends_with('\\');
    joined || text.starts_with([' ', '\t', '\x0c']) || ["[-inf]", "[nan]"].contains(&text)
}

/// A repeatable source of choices (xorshift).
struct Choices(u64);

impl Choices {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 16).unwrap() % end
    }

    fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.below(of.len())]
    }

    /// Space, as it may stand between tokens inside brackets.
    fn space(&mut self, out: &mut String) {
        if self.below(4) == 0 {
            let kinds = [" ", "  ", "\n", "\t", "\r\n", "\r", "\x0c", "\\\n", "\\\r\n", "# x]'\n"];
            out.push_str(self.one(&kinds));
        }
    }

    fn value(&mut self, depth: usize, out: &mut String) {
        self.space(out);
        match self.below(if depth == 0 { 10 } else { 16 }) {
            0..3 => self.number(out),
            3..9 => self.string(out),
            9 => out.push_str(self.one(&["None", "True", "False"])),
            10 => self.sequence("[", "]", depth, out),
            11..13 => self.sequence("(", ")", depth, out),
            13 => {
                out.push('(');
                self.value(depth - 1, out);
                out.push(')');
            }
            _ => {
                out.push('{');
                for _ in 0..self.below(3) {
                    self.value(0, out);
                    out.push(':');
                    self.value(depth - 1, out);
                    out.push(',');
                }
                out.push('}');
            }
        }
        self.space(out);
    }

    fn sequence(&mut self, open: &str, close: &str, depth: usize, out: &mut String) {
        out.push_str(open);
        let items = self.below(4);
        for index in 0..items {
            self.value(depth - 1, out);
            if index + 1 < items || self.below(2) == 0 {
                out.push(',');
            }
        }
        out.push_str(close);
    }

    fn number(&mut self, out: &mut String) {
        let sign = self.one(&["", "", "", "", "", "", "", "-", "-", "+", "- ", "-(", "--"]);
        out.push_str(sign);
        out.push_str(self.one(&[
            "",
            "",
            "",
            "1",
            "1",
            "7",
            "0x",
            "0X_",
            "0o",
            "0b1",
            "0xdeadBEEF",
        ]));
        for _ in 0..=self.below(3) {
            let digits = ["0", "1", "1", "10", "_1", "1_0", "0_", "9", "340282366920938463463"];
            out.push_str(self.one(&digits));
        }
        if self.below(3) == 0 {
            out.push_str(self.one(&[".", ".5", "e5", "e-7", "E+3", ".5e300", "e400", "1.e1", "j"]));
        }
        out.push_str(if sign == "-(" { ")" } else { "" });
    }

    fn string(&mut self, out: &mut String) {
        for _ in 0..=self.below(4) / 3 {
            let prefixes = ["", "", "", "", "r", "u", "R", "", "", "", "b", "rb", "bR", "f", "ur"];
            out.push_str(self.one(&prefixes));
            let quote = self.one(&["'", "\"", "'''", "\"\"\""]);
            out.push_str(quote);
            for _ in 0..self.below(6) {
                let odd = self.below(10) == 0;
                out.push_str(self.one(if odd { &ODD_PIECES } else { &PIECES }));
            }
            out.push_str(quote);
            self.space(out);
        }
    }

    fn mutate(&mut self, text: &str) -> String {
        let mut chars: Vec<char> = text.chars().collect();
        for _ in 0..=self.below(3) {
            let at = self.below(chars.len());
            let pieces = [
                "'", "\"", "\\", ",", "(", ")", "[", "]", "{", "}", ":", "=", "0", "x", "_", ".",
                "-", "b", "#", "\n", "\r", " ", "e", "j", "\u{e9}", "\u{a0}", "*", "1", "\\x4",
            ];
            let piece = self.one(&pieces).chars();
            let end = (at + self.below(3)).min(chars.len());
            match self.below(3) {
                0 => drop(chars.splice(at..end, [])),
                1 => drop(chars.splice(at..at, piece)),
                _ => drop(chars.splice(at..end, piece)),
            }
            if chars.is_empty() {
                chars.push('[');
            }
        }
        chars.into_iter().collect()
    }
}

const PIECES: [&str; 24] = [
    "a",
    "text",
    " ",
    "\\'",
    "\\\"",
    "\\\\",
    "\\n",
    "\\t\\r\\a\\b\\f\\v",
    "\\0",
    "\\7",
    "\\18",
    "\\377",
    "\\400",
    "\\777",
    "\\x41",
    "\\xfF",
    "\\u20ac",
    "\\U0001f600",
    "\\q",
    "\\\n",
    "\\\r\n",
    "\\\r",
    "\t",
    "#",
];

/// Pieces that often make a string invalid.
const ODD_PIECES: [&str; 16] = [
    "'",
    "\"",
    "\\x4",
    "\\u20",
    "\\ud83d",
    "\\U00110000",
    "\\N{DASH}",
    "\n",
    "\r\n",
    "\r",
    "\u{e9}",
    "\u{65e5}",
    "\\\u{e9}",
    "\u{1f600}",
    "{",
    "\x7f",
];

/// Texts that are worth a look whatever the generator does.
const FIXED: [&str; 25] = [
    "-True",
    "-None",
    "-'a'",
    "-inf",
    "nan",
    "(1)",
    "((1,))",
    "-(-1)",
    "1_000",
    "0777",
    "0_0",
    "00.5",
    "1if 1else 2",
    "1 2",
    "...",
    "{1}",
    "{**{}}",
    "[*[]]",
    "b'a' 'b'",
    "'a' f'b'",
    "a",
    "'a'.b",
    "[1][0]",
    "1+2j",
    "{1: 2, 1: 3}",
];

fn texts() -> Vec<String> {
    let mut choices = Choices(0x0b0a_0d0c_0ffe_e000);
    let mut texts: Vec<String> = FIXED.iter().map(|text| format!("[{text}]")).collect();
    for _ in 0..2500 {
        let mut text = String::from("[");
        choices.value(3, &mut text);
        text.push(']');
        texts.push(choices.mutate(&text));
        texts.push(text);
    }
    texts
}

fn python(texts: &[String]) -> Option<Vec<String>> {
    let mut child = match Command::new("python3")
        .args(["-c", SCRIPT])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
    {
        Ok(child) => child,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(error) => panic!("python3: {error}"),
    };
    let lines: Vec<_> = texts.iter().map(|text| hex(text.as_bytes())).collect();
    // The script reads all before it writes.
    child.stdin.take().unwrap().write_all(lines.join("\n").as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    Some(String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect())
}

#[test]
fn literals_are_read_as_cpython_reads_them() {
    let texts = texts();
    let Some(expected) = python(&texts) else {
        skip("all of it", "there is no python3");
        return;
    };
    assert_eq!(texts.len(), expected.len());
    let (mut accepted, mut on_purpose, mut wrong) = (0, 0, Vec::new());
    for (text, expected) in texts.iter().zip(&expected) {
        match ours(text) {
            Ok(value) if value == *expected => accepted += 1,
            Err(_) if expected == "refused" => {}
            Err(Refused(Some(error))) if refused_on_purpose(&error) => on_purpose += 1,
            Ok(_) if expected == "refused" && accepted_on_purpose(text) => on_purpose += 1,
            Ok(value) => wrong.push(format!("{text:?}: {value}, not {expected}")),
            Err(Refused(error)) => {
                let error = error.map_or("refused".to_owned(), |error| error.to_string());
                wrong.push(format!("{text:?}: {error}, not {expected}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong.join("\n"));
    println!("{accepted} of {} accepted, {on_purpose} different on purpose", texts.len());
    assert!(accepted > 1500 && accepted < 4500, "{accepted} {on_purpose}");
}
