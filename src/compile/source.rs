//! What a kernel's source may not hold.
//!
//! Every compiler reads files for whoever writes its input: `#include` and its spellings put lines
//! of a file into the messages, `__has_include` tells whether a file exists, `.incbin` and `#embed`
//! copy one into the object. tinygrad's CPU kernels hold no directive, no backslash and no
//! assembly, so none of that reaches the compiler. The sandbox of the compiler is the second
//! lock on the same door, and does not lean on this one; nor does the sandbox that kernels run in
//! lean on the absence of assembly.
//!
//! Absent: a parser. The scan knows neither strings nor comments, and refuses inside them too.

use super::CompileError;

/// Identifiers that reach files or the assembler.
const WORDS_REFUSED: [&str; 8] = [
    "_Pragma",
    "__asm",
    "__asm__",
    "__has_embed",
    "__has_include",
    "__has_include_next",
    "__pragma",
    "asm",
];

/// Refuses a source that is too long or asks the compiler for more than to compile it.
pub(super) fn check(source: &[u8], bytes_max: usize) -> Result<(), CompileError> {
    if source.len() > bytes_max {
        return Err(CompileError::SourceTooLong { bytes: source.len(), bytes_max });
    }
    let mut at = 0;
    while at < source.len() {
        let rest = &source[at..];
        if let Some(what) = refused_start(rest) {
            return Err(refused(source, at, what.to_owned()));
        }
        let word = word_bytes(rest);
        if let Some(word) = WORDS_REFUSED.iter().find(|w| w.as_bytes() == &rest[..word]) {
            return Err(refused(source, at, format!("`{word}`")));
        }
        at += word.max(1);
    }
    Ok(())
}

/// Names what may not stand at the start of `rest`, if it does.
fn refused_start(rest: &[u8]) -> Option<&'static str> {
    match rest {
        [b'#', ..] => Some("`#`"),
        [b'%', b':', ..] => Some("`%:`"),
        [b'?', b'?', b'=', ..] => Some("`??=`"),
        [b'?', b'?', b'/', ..] => Some("`??/`"),
        [b'\\', ..] => Some("a backslash"),
        [0, ..] => Some("a NUL byte"),
        [b'\t' | b'\n' | b'\r' | b' '..=b'~', ..] => None,
        [..] => Some("a byte that is not printable ASCII"),
    }
}

/// Length of the identifier or number that `rest` begins with. Numbers are skipped whole, so that
/// nothing inside one looks like a word.
fn word_bytes(rest: &[u8]) -> usize {
    rest.iter().take_while(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'$')).count()
}

fn refused(source: &[u8], at: usize, what: String) -> CompileError {
    let line_start = source[..at].iter().rposition(|&b| b == b'\n').map_or(0, |i| i + 1);
    let line = source[..at].iter().filter(|&&b| b == b'\n').count() + 1;
    CompileError::Refused { line, column: at - line_start + 1, what }
}

#[cfg(test)]
mod tests {
    use super::{CompileError, check};

    fn refusal(source: &[u8]) -> (usize, usize, String) {
        match check(source, 1 << 20) {
            Err(CompileError::Refused { line, column, what }) => (line, column, what),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn source_with_directive_in_any_spelling_is_refused_with_its_place() {
        assert_eq!(refusal(b"#include \"/etc/passwd\"\n"), (1, 1, "`#`".into()));
        assert_eq!(refusal(b"int x;\n  %:include <a>\n"), (2, 3, "`%:`".into()));
        assert_eq!(refusal(b"\n\n??=include <a>\n"), (3, 1, "`??=`".into()));
        assert_eq!(refusal(b"int a; ??/\n"), (1, 8, "`??/`".into()));
        assert_eq!(refusal(b"void f(void) { a\\\n"), (1, 17, "a backslash".into()));
        assert_eq!(refusal(b"int\0 x;"), (1, 4, "a NUL byte".into()));
        assert_eq!(refusal(b"int \xc3\xa9;"), (1, 5, "a byte that is not printable ASCII".into()));
    }

    #[test]
    fn source_with_word_for_files_or_assembly_is_refused() {
        for word in super::WORDS_REFUSED {
            let source = format!("void f(void) {{ {word}(\"x\"); }}");
            assert_eq!(refusal(source.as_bytes()), (1, 16, format!("`{word}`")));
        }
    }

    #[test]
    fn source_with_word_inside_longer_word_is_accepted() {
        let source = b"int plasm, asm_, asmx, x__asm__; float y = 1e5f % 3 ? 2 : 1;";
        assert_eq!(check(source, 1 << 20), Ok(()));
    }

    #[test]
    fn source_longer_than_limit_is_refused() {
        assert_eq!(check(b"12345678", 8), Ok(()));
        let error = CompileError::SourceTooLong { bytes: 9, bytes_max: 8 };
        assert_eq!(check(b"123456789", 8), Err(error));
    }
}
