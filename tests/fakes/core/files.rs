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

fn opened(variable: &str) -> Option<File> {
    let path = std::env::var_os(variable)?;
    OpenOptions::new().append(true).create(true).open(path).ok()
}

fn files() -> &'static Files {
    FILES.get_or_init(|| Files {
        report: opened("FAKE_GPU_REPORT"),
        trace: opened("FAKE_GPU_TRACE"),
        ledger: opened("FAKE_GPU_LEDGER"),
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
