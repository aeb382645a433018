//! What the server measures of a worker's work: which timer is whose, and what does not move.
//!
//! Owns: [`Timers`], [`Watchdog`]. Absent: what is done about work that takes too long (`link`).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::Fence;
use super::ring::Producer;
use crate::config::DeviceLimits;

/// Which timer measures which work.
#[derive(Default)]
pub(super) struct Timers {
    next: u32,
    running: VecDeque<(Fence, u32)>,
}

impl Timers {
    pub(super) fn next(&mut self) -> u32 {
        let timers = u32::try_from(DeviceLimits::TIMERS).expect("few timers");
        self.next = (self.next + 1) % timers;
        self.next
    }

    pub(super) fn started(&mut self, fence: Fence, timer: u32) {
        if self.running.len() == DeviceLimits::TIMERS {
            self.running.pop_front();
        }
        self.running.push_back((fence, timer));
    }

    pub(super) fn take(&mut self, fence: Fence) -> Option<u32> {
        let at = self.running.iter().position(|(running, _)| *running == fence)?;
        self.running.remove(at).map(|(_, timer)| timer)
    }
}

/// Notices work that does not move.
pub(super) struct Watchdog {
    pub(super) limit: Duration,
    /// What was seen when the work last moved, and when that was.
    seen: Option<(u64, u64, Instant)>,
    /// Packets that may wait for other devices, which is no fault of theirs.
    waits: VecDeque<u64>,
}

impl Watchdog {
    pub(super) fn new(limit: Duration) -> Watchdog {
        Watchdog { limit, seen: None, waits: VecDeque::new() }
    }

    pub(super) fn may_wait(&mut self, fence: Fence) {
        self.waits.push_back(fence.0);
    }

    /// Whether a worker takes longer than `limit` to start, as of a look before it has.
    pub(super) fn is_starting_late(&mut self, limit: Duration, now: Instant) -> bool {
        let (_, _, since) = *self.seen.get_or_insert((0, 0, now));
        now.saturating_duration_since(since) > limit
    }

    pub(super) fn is_late(&mut self, ring: &Producer, now: Instant) -> bool {
        let (completed, progress) = (ring.completed(), ring.progress());
        while self.waits.front().is_some_and(|wait| *wait <= completed) {
            self.waits.pop_front();
        }
        let is_waiting = self.waits.front() == Some(&(completed + 1)) && ring.is_waiting();
        if completed == ring.submitted() || is_waiting {
            self.seen = None;
            return false;
        }
        match self.seen {
            Some((seen, begun, since)) if (seen, begun) == (completed, progress) => {
                now.saturating_duration_since(since) > self.limit
            }
            _ => {
                self.seen = Some((completed, progress, now));
                false
            }
        }
    }
}
