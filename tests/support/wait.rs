//! Waiting for what has no event to wait for.

use std::fmt::Debug;
use std::time::{Duration, Instant};

/// Well above what any condition takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);

/// Looks until `condition` holds; panics with `what` when it does not in time.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    wait_for(what, || condition().then_some(()).ok_or(()));
}

/// Looks until `look` succeeds; panics with `what` and what it saw last when it does not in time.
pub(crate) fn wait_for<T: Debug>(what: &str, mut look: impl FnMut() -> Result<(), T>) {
    let until = Instant::now() + LIMIT;
    while let Err(seen) = look() {
        assert!(Instant::now() < until, "never happened: {what}; last seen: {seen:?}");
        std::thread::yield_now();
    }
}
