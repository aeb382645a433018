//! Waiting for what has no event to wait for.

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
