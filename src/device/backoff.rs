//! Trying something less often the more often it was in vain.
//!
//! Owns: the count of failures in a row. Absent: what is tried, and the time that a try takes.

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
