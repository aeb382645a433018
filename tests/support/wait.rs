//! Waiting for what has no event to wait for, and saying what could not be tested.

use std::io::Write as _;
use std::time::{Duration, Instant};

/// Well above what any condition takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);

/// Looks until `condition` holds; panics with `what` when it does not in time.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < until, "never happened: {what}");
        std::thread::yield_now();
    }
}

/// Says, so that `cargo test` shows it, that a test did not run.
pub(crate) fn skip(test: &str, why: &str) {
    // Losing a line of the report is no reason to fail.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: {why}");
}
