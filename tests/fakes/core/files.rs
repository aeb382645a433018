//! What a fake library writes down: the report of violations, the trace of calls, the ledger.
//!
//! The files are opened when the library is loaded, because a process may deny itself the opening
//! of files afterwards. Every line is appended by one write, so that processes can share a file.

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::OnceLock;

struct Files {
    report: Option<File>,
    trace: Option<File>,
    ledger: Option<File>,
}

static FILES: OnceLock<Files> = OnceLock::new();

thread_local! {
    /// The call that this thread is in, for lines of the report.
    pub(super) static CALL: Cell<&'static str> = const { Cell::new("no call") };
}

fn opened(name: &str) -> Option<File> {
    let path = super::setting(name)?;
    OpenOptions::new().append(true).create(true).open(path).ok()
}

fn files() -> &'static Files {
    FILES.get_or_init(|| Files {
        report: opened("REPORT"),
        trace: opened("TRACE"),
        ledger: opened("LEDGER"),
    })
}

extern "C" fn open_files() {
    files();
}

#[used]
// SAFETY: the section holds functions without results, which the loader calls once after the
// libraries that this one needs are ready.
#[unsafe(link_section = ".init_array")]
static OPEN_FILES: extern "C" fn() = open_files;

fn append(file: Option<&File>, line: &str) {
    if let Some(mut file) = file {
        // Nobody is there to be told that a file of a test cannot be written.
        let _ = file.write_all(format!("{line}\n").as_bytes());
    }
}

/// Writes down that a rule was broken; without a file for it, on standard error.
pub(crate) fn report(class: &str, what: &str) {
    let call = CALL.get();
    let library = crate::FACE.library;
    let line = format!("{class}: {library} {call}: {what} (process {})", std::process::id());
    if files().report.is_some() {
        append(files().report.as_ref(), &line);
    } else {
        eprintln!("{line}");
    }
    trace(|| format!("# {class}: {what}"));
}

/// Writes a line of the trace, if one is asked for.
pub(crate) fn trace(line: impl FnOnce() -> String) {
    if files().trace.is_some() {
        append(files().trace.as_ref(), &line());
    }
}

pub(crate) fn ledger(line: &str) {
    append(files().ledger.as_ref(), line);
}

/// Whether this process may write all of the bytes at an address; `None` where they are not mapped.
/// Where the process may not ask, they are taken to be as they should.
pub(super) fn access_of(at: u64, bytes: u64) -> Option<bool> {
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else { return Some(true) };
    let hex = |digits: &str| u64::from_str_radix(digits, 16).ok();
    let (mut reached, end, mut can_write) = (at, at.checked_add(bytes)?, true);
    for line in maps.lines() {
        let (range, rest) = line.split_once(' ')?;
        let (from, to) = range.split_once('-')?;
        let (from, to) = (hex(from)?, hex(to)?);
        if reached < end && (from..to).contains(&reached) {
            reached = to;
            can_write &= rest.as_bytes().get(1) == Some(&b'w');
        }
    }
    (reached >= end).then_some(can_write)
}
