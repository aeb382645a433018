//! What a client may read of a compiler that has ended.
//!
//! Owns: telling a compiler's end, output and messages apart, and the cleaning of messages. A
//! compiler writes to whoever runs it, about files of the machine; a client gets the errors in its
//! own source, without paths, and not many of them.

use std::time::Duration;

use super::CompileError;
use super::sandbox::{End, Finished};
use crate::config::CompileConfig;

/// What a compiler may take and say.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) message_bytes_max: usize,
    pub(super) object_bytes_max: u64,
    pub(super) time_max: Duration,
}

impl Limits {
    pub(super) fn of(config: &CompileConfig) -> Limits {
        let CompileConfig { message_bytes_max, object_bytes_max, time_max, .. } = *config;
        Limits { message_bytes_max, object_bytes_max, time_max }
    }
}

/// What a compile comes to. `place` is how the compiler begins a message about the source.
pub(super) fn outcome(
    finished: Finished,
    place: &str,
    limits: &Limits,
) -> Result<Vec<u8>, CompileError> {
    let Finished { end, output, messages } = finished;
    match end {
        End::Exit(0) if !output.is_empty() => Ok(output),
        End::Exit(_) => {
            let message = clean(&messages, place, limits.message_bytes_max);
            Err(CompileError::Rejected { message })
        }
        End::Timeout | End::Signal(libc::SIGXCPU) => {
            Err(CompileError::Timeout { limit: limits.time_max })
        }
        End::Signal(libc::SIGXFSZ) => {
            Err(CompileError::ObjectTooLong { bytes_max: limits.object_bytes_max })
        }
        End::Signal(signal) => Err(CompileError::Crashed { signal }),
    }
}

/// The errors in the client's own source, else whatever calls itself an error; no paths, and not
/// much.
fn clean(messages: &[u8], place: &str, bytes_max: usize) -> String {
    let text = String::from_utf8_lossy(messages);
    let errors: Vec<&str> =
        text.lines().filter(|line| line.to_ascii_lowercase().contains("error")).collect();
    let in_source: Vec<&str> = errors.iter().filter_map(|line| from_place(line, place)).collect();
    let lines = if in_source.is_empty() { errors } else { in_source };
    let mut message = lines.iter().map(|line| without_paths(line)).collect::<Vec<_>>().join("\n");
    if message.is_empty() {
        message.push_str("the compiler failed without a reason");
    }
    if message.len() > bytes_max {
        message.truncate(message.floor_char_boundary(bytes_max));
        message.push_str("...");
    }
    message
}

/// A line that is about the source, from the place on: the source's directory is cut off.
fn from_place<'l>(line: &'l str, place: &str) -> Option<&'l str> {
    let start = line.find(place)?;
    let dir = &line[..start];
    let is_dir = dir.is_empty() || (dir.starts_with('/') && dir.ends_with('/'));
    (is_dir && !dir.contains(' ')).then_some(&line[start..])
}

/// Replaces what looks like an absolute path: a slash that begins a word with another slash in it.
fn without_paths(line: &str) -> String {
    let is_path = |c: char| c.is_ascii_alphanumeric() || "/._+-".contains(c);
    let mut clean = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(start) = rest.find(is_path) {
        let word_bytes = rest[start..].find(|c| !is_path(c)).unwrap_or(rest.len() - start);
        let (before, word) = rest[..start + word_bytes].split_at(start);
        clean.push_str(before);
        let is_absolute = word.strip_prefix('/').is_some_and(|word| word.contains('/'));
        clean.push_str(if is_absolute { "(path)" } else { word });
        rest = &rest[start + word_bytes..];
    }
    clean + rest
}

#[cfg(test)]
mod tests {
    use super::without_paths;

    const PLACE: &str = "<stdin>:";

    fn clean(messages: &[u8], bytes_max: usize) -> String {
        super::clean(messages, PLACE, bytes_max)
    }

    #[test]
    fn message_with_paths_loses_them_and_keeps_the_place_in_the_source() {
        let messages = b"In file included from /srv/secret/x.h:1:\n\
            <stdin>:3:5: error: use of 'a' (see /usr/lib/gcc/x86_64/12/cc1) 1/2 a/b/c\n\
            1 error generated.\n";
        let expected = "<stdin>:3:5: error: use of 'a' (see (path)) 1/2 a/b/c";
        assert_eq!(clean(messages, 2048), expected);
    }

    #[test]
    fn message_without_place_keeps_lines_that_call_themselves_errors() {
        let messages =
            b"PLEASE submit a bug report to /x/y\nStack dump:\n0. /opt/llvm/bin/clang -x\n\
            fatal error: error in backend: too deep\n";
        assert_eq!(clean(messages, 2048), "fatal error: error in backend: too deep");
        assert_eq!(clean(b"Killed\n", 2048), "the compiler failed without a reason");
    }

    #[test]
    fn message_about_a_source_in_a_directory_loses_the_directory() {
        let messages = b"/srv/x-1/input/kernel.hip:3:5: error: no\nx y/kernel.hip:1:1: error\n";
        assert_eq!(super::clean(messages, "kernel.hip:", 2048), "kernel.hip:3:5: error: no");
        let messages = b"kernel.cu(2): error: identifier \"b\" is undefined\n    *a = b;\n\
            1 error detected in the compilation of \"kernel.cu\".\n";
        let expected = "kernel.cu(2): error: identifier \"b\" is undefined";
        assert_eq!(super::clean(messages, "kernel.cu(", 2048), expected);
    }

    #[test]
    fn message_longer_than_limit_is_cut_at_a_character() {
        let messages = format!("<stdin>:1:1: error: {}", "é".repeat(2000));
        let cut = clean(messages.as_bytes(), 101);
        assert_eq!(cut.len(), 100 + 3);
        assert!(cut.ends_with("é..."), "{cut}");
    }

    #[test]
    fn path_at_either_end_of_line_is_replaced() {
        assert_eq!(without_paths("/a/b said /c/d"), "(path) said (path)");
        assert_eq!(without_paths("x / y"), "x / y");
        assert_eq!(without_paths(""), "");
    }
}
