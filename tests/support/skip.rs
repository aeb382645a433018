//! Saying what could not be tested.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::sync::Mutex;

/// Says, once, that a test or a part of it did not run, and why: past the test runner, which keeps
/// what a passing test prints to itself.
pub(crate) fn skip(part: &str, why: &str) {
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let test = std::thread::current().name().unwrap_or_default().to_owned();
    let line = format!("SKIPPED: {test}: {part}: {why}");
    if SAID.lock().is_ok_and(|mut said| said.insert(line.clone())) {
        // Losing a line of the report is no reason to fail.
        let _ = writeln!(std::io::stderr(), "{line}");
    }
}
