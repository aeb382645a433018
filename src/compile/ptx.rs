//! PTX text: recognised, looked through, and made ready for the driver.
//!
//! The driver compiles PTX itself, so there is nothing to run here. tinygrad leaves two words open
//! in the head of its PTX, which only the server can fill in: the language's version and the
//! device's architecture.
//!
//! Nothing in PTX reads a file. But `.file` has NVIDIA's assembler ask the system about the file
//! that it names, whose length and time it notes in the binary; and with `.loc` and `.section` it
//! is debugging information, which no kernel needs and the driver would parse. All are refused.

use super::{CompileError, source};

/// Directives that name files of the machine that made them, or hold data for a debugger.
const DIRECTIVES_REFUSED: [&str; 3] = ["file", "loc", "section"];

/// The words that tinygrad leaves open.
const OPEN_VERSION: &[u8] = b"VERSION";
const OPEN_TARGET: &[u8] = b"TARGET";

/// Whether a source is PTX: after blanks and comments it begins with `.version`.
pub(super) fn is_ptx(source: &[u8]) -> bool {
    directive(source, 0, b".version").is_some()
}

/// The text that the driver takes for a device of this architecture, with a zero byte at its end.
///
/// # Errors
///
/// What may not be in it.
pub(super) fn finish(source: &[u8], arch: &str, bytes_max: usize) -> Result<Vec<u8>, CompileError> {
    source::check_length(source, bytes_max)?;
    check(source)?;
    let mut text = Vec::with_capacity(source.len() + 16);
    let mut done = 0;
    let version = directive(source, 0, b".version");
    let target = version.and_then(|(_, end)| directive(source, end, b".target"));
    let words = [
        (version, OPEN_VERSION, version_for(arch).as_bytes()),
        (target, OPEN_TARGET, arch.as_bytes()),
    ];
    for (operand, open, value) in words {
        if let Some((start, end)) = operand
            && &source[start..end] == open
        {
            text.extend_from_slice(&source[done..start]);
            text.extend_from_slice(value);
            done = end;
        }
    }
    text.extend_from_slice(&source[done..]);
    text.push(0);
    Ok(text)
}

/// The first version of the language that knows an architecture and what tinygrad writes for it:
/// a later one would be refused by an older driver. From the release notes of the PTX manual.
fn version_for(arch: &str) -> &'static str {
    let digits = arch.trim_start_matches("sm_").trim_end_matches(|c: char| c.is_ascii_lowercase());
    match digits.parse::<u32>().unwrap_or(0) {
        0..=87 => "7.5",
        89 | 90 => "7.8",
        100 | 101 => "8.6",
        120 => "8.7",
        103 | 121 => "8.8",
        _ => "9.0",
    }
}

/// Where the operand of the directive that comes next begins and ends, if it is this directive.
fn directive(source: &[u8], from: usize, name: &[u8]) -> Option<(usize, usize)> {
    let at = from + blank_bytes(&source[from..]);
    let after = source[at..].strip_prefix(name)?;
    let gap = after.iter().take_while(|b| matches!(b, b' ' | b'\t')).count();
    let start = at + name.len() + gap;
    let word = source[start..].iter().take_while(|b| !b.is_ascii_whitespace() && **b != b',');
    let end = start + word.count();
    (gap > 0 && end > start).then_some((start, end))
}

/// Bytes of the blanks and comments that `rest` begins with.
fn blank_bytes(rest: &[u8]) -> usize {
    let mut at = 0;
    loop {
        let rest = &rest[at..];
        at += match rest {
            [byte, ..] if byte.is_ascii_whitespace() => 1,
            [b'/', b'/', ..] => rest.iter().position(|&b| b == b'\n').unwrap_or(rest.len()),
            [b'/', b'*', inside @ ..] => {
                let end = inside.windows(2).position(|w| w == b"*/");
                end.map_or(rest.len(), |end| end + 4)
            }
            _ => return at,
        };
    }
}

fn check(text: &[u8]) -> Result<(), CompileError> {
    let mut at = 0;
    while at < text.len() {
        if let Some(what) = source::refused_byte(text[at]) {
            return Err(source::refused(text, at, what.to_owned()));
        }
        let word = source::word_bytes(&text[at..]);
        let begins_directive = at > 0 && text[at - 1] == b'.';
        if begins_directive
            && let Some(name) =
                DIRECTIVES_REFUSED.iter().find(|name| name.as_bytes() == &text[at..at + word])
        {
            return Err(source::refused(text, at - 1, format!("`.{name}`")));
        }
        at += word.max(1);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{CompileError, finish, is_ptx};

    fn finished(source: &str, arch: &str) -> String {
        let mut text = finish(source.as_bytes(), arch, 1 << 20).unwrap();
        assert_eq!(text.pop(), Some(0));
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn text_is_ptx_if_it_begins_with_a_version() {
        for source in [".version VERSION\n", "\n\t// x .y\n/* .z\n */ .version 7.5\n"] {
            assert!(is_ptx(source.as_bytes()), "{source}");
        }
        for source in [
            "",
            "/* .version 7.5",
            "// .version 7.5",
            "int x; .version 7.5",
            ".version",
            ".versions 7.5",
            "/",
            "/*",
            "\u{1}",
        ] {
            assert!(!is_ptx(source.as_bytes()), "{source}");
        }
    }

    #[test]
    fn open_words_of_the_head_are_filled_in_and_no_others() {
        let source = ".version VERSION\n.target TARGET\n.address_size 64\n\
            .visible .entry TARGET_VERSION (.param .u64 TARGET)";
        let expected = ".version 7.8\n.target sm_90\n.address_size 64\n\
            .visible .entry TARGET_VERSION (.param .u64 TARGET)";
        assert_eq!(finished(source, "sm_90"), expected);
        let closed = "// VERSION\n.version 8.3\n.target sm_80, debug\n";
        assert_eq!(finished(closed, "sm_90"), closed);
        assert_eq!(finished(".version VERSION", "sm_75"), ".version 7.5");
    }

    #[test]
    fn version_is_the_first_that_knows_the_architecture() {
        for (arch, version) in [
            ("sm_70", "7.5"),
            ("sm_86", "7.5"),
            ("sm_89", "7.8"),
            ("sm_90a", "7.8"),
            ("sm_100", "8.6"),
            ("sm_120", "8.7"),
            ("sm_103", "8.8"),
            ("sm_110", "9.0"),
        ] {
            assert_eq!(finished(".version VERSION\n", arch), format!(".version {version}\n"));
        }
    }

    #[test]
    fn text_with_debugging_information_or_strange_bytes_is_refused() {
        for (text, expected) in [
            (".version 7.5\n.file 1 \"/etc/passwd\"\n", "`.file`"),
            (".version 7.5\n\t.loc 1 1 1\n", "`.loc`"),
            (".version 7.5 .section .debug_info {}", "`.section`"),
            (".version 7.5\0", "a NUL byte"),
            (".version 7.5 \u{e9}", "a byte that is not printable ASCII"),
        ] {
            match finish(text.as_bytes(), "sm_90", 1 << 20) {
                Err(CompileError::Refused { what, .. }) => assert_eq!(what, expected),
                other => panic!("{text} {other:?}"),
            }
        }
        let local = ".version 7.5\n.local .b8 x; .pragma \"nounroll\"; st.local.b8 [x], 0;";
        assert_eq!(finished(local, "sm_90"), local);
        let error = CompileError::SourceTooLong { bytes: 12, bytes_max: 8 };
        assert_eq!(finish(b".version 7.5", "sm_90", 8), Err(error));
    }
}
