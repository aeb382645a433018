//! Trying something less often the more often it was in vain.
//!
//! Owns: [`Backoff`], the count of failures in a row; [`Watch`], which decides whether a device is
//! looked at once more or asked to tell. Absent: what is tried.

use std::time::Instant;

use super::Fence;
use crate::config::DeviceLimits;
use crate::cores;

/// After this many failures in a row the pauses do not get longer.
const FAILURES_MAX: u32 = 6;

/// Whether an occasion is one to try at.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    /// In a row.
    failures: u32,
    /// Occasions to let pass.
    passes_left: u32,
}

impl Backoff {
    /// To be asked at each occasion, once.
    pub(super) fn is_due(&mut self) -> bool {
        let is_due = self.passes_left == 0;
        self.passes_left = self.passes_left.saturating_sub(1);
        is_due
    }

    /// A try was in vain: twice as many occasions pass as after the one before.
    pub(super) fn failed(&mut self) {
        self.failures = FAILURES_MAX.min(self.failures + 1);
        self.passes_left = 1 << self.failures;
    }

    pub(super) fn succeeded(&mut self) {
        self.failures = 0;
    }
}

/// Whether to look at a device again and again for a fence, before it is asked to tell: for
/// [`DeviceLimits::WATCH`] at most, and ever more seldom where that was in vain.
#[derive(Debug)]
pub(super) struct Watch {
    /// Nothing is done on the only core while somebody looks.
    is_possible: bool,
    /// The last fence that was waited for, and when that began.
    last: Option<(Fence, Instant)>,
    /// Whether that wait is still worth looks.
    goes_on: bool,
    backoff: Backoff,
}

impl Default for Watch {
    fn default() -> Watch {
        let backoff = Backoff::default();
        Watch { is_possible: cores::are_several(), last: None, goes_on: false, backoff }
    }
}

impl Watch {
    /// Whether to look again for `fence`, now that the device has come to `completed`. A wait for
    /// an earlier fence than the last is part of that one, so that several waits at a time do not
    /// keep each other going.
    pub(super) fn goes_on(&mut self, fence: Fence, completed: Fence, now: Instant) -> bool {
        if !self.is_possible || fence <= completed {
            return false;
        }
        let Some((_, since)) = self.last.filter(|(last, _)| fence <= *last) else {
            if self.goes_on && self.last.is_some_and(|(last, _)| last <= completed) {
                self.backoff.succeeded();
            }
            self.last = Some((fence, now));
            self.goes_on = self.backoff.is_due();
            return self.goes_on;
        };
        if self.goes_on && now.saturating_duration_since(since) >= DeviceLimits::WATCH {
            self.goes_on = false;
            self.backoff.failed();
        }
        self.goes_on
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn watch() -> (Watch, Instant) {
        (Watch { is_possible: true, ..Watch::default() }, Instant::now())
    }

    #[test]
    fn watch_ends_after_its_time_and_is_rarer_where_it_was_in_vain() {
        let (mut watch, mut now) = watch();
        let mut watched = Vec::new();
        for fence in 1..190 {
            let begun = watch.goes_on(Fence(fence), Fence(fence - 1), now);
            now += DeviceLimits::WATCH;
            assert!(!watch.goes_on(Fence(fence), Fence(fence - 1), now), "not after its time");
            watched.extend(begun.then_some(fence));
        }
        let pauses: Vec<u64> = watched.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(pauses, [3, 5, 9, 17, 33, 65]);
    }

    #[test]
    fn watch_that_was_not_in_vain_is_kept_up() {
        let (mut watch, mut now) = watch();
        for fence in 1..200 {
            assert!(watch.goes_on(Fence(fence), Fence(fence - 1), now));
            now += Duration::from_micros(10);
            assert!(!watch.goes_on(Fence(fence), Fence(fence), now));
        }
    }

    #[test]
    fn waits_for_several_fences_of_a_device_that_hangs_do_not_keep_each_other_going() {
        let (mut watch, mut now) = watch();
        let mut looks = 0;
        for _ in 0..10_000 {
            now += Duration::from_micros(1);
            looks += usize::from(watch.goes_on(Fence(5), Fence(4), now));
            looks += usize::from(watch.goes_on(Fence(7), Fence(4), now));
        }
        assert!(looks < 2 * 2 * 10_000 / 100, "{looks}");
    }
}
