//! Time: how long work ran, and work that does not end.
//!
//! Owns: [`Timers`] (pairs of events around timed work) and [`Watchdog`].

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::handles::{Done, Event};
use super::memory::Site;
use super::queue::Queue;
use super::signal::Signal;
use crate::config::DeviceLimits;
use crate::device::Fence;

/// Work whose duration may be asked for.
#[derive(Default)]
pub(super) struct Timers {
    running: VecDeque<(Fence, Event, Event)>,
    free: Vec<Event>,
}

impl Timers {
    pub(super) fn take_event(&mut self) -> Option<Event> {
        self.free.pop()
    }

    pub(super) fn started(&mut self, fence: Fence, from: Event, to: Event) {
        if self.running.len() == DeviceLimits::TIMERS
            && let Some((_, from, to)) = self.running.pop_front()
        {
            self.free.extend([from, to]);
        }
        self.running.push_back((fence, from, to));
    }

    /// How long the work at `fence` ran, which is done. Zero where nobody knows.
    pub(super) fn elapsed(&mut self, fence: Fence) -> Done<Duration> {
        let at = self.running.iter().position(|(running, _, _)| *running == fence);
        let Some((_, from, to)) = at.and_then(|at| self.running.remove(at)) else {
            return Ok(Duration::ZERO);
        };
        let elapsed = from.until(&to);
        self.free.extend([from, to]);
        elapsed
    }

    pub(super) fn close(&mut self) -> Vec<Event> {
        let running = self.running.drain(..).flat_map(|(_, from, to)| [from, to]);
        let mut events: Vec<Event> = running.collect();
        events.append(&mut self.free);
        events
    }
}

/// Notices work that does not move.
pub(super) struct Watchdog {
    limit: Duration,
    /// How far the work was when it last moved, and when that was.
    seen: Option<(u64, Instant)>,
    /// Work that may wait for other devices, which is no fault of its own.
    waits: VecDeque<(u64, Rc<Signal>)>,
}

impl Watchdog {
    pub(super) fn new(limit: Duration) -> Watchdog {
        Watchdog { limit, seen: None, waits: VecDeque::new() }
    }

    pub(super) fn limit(&self) -> Duration {
        self.limit
    }

    pub(super) fn may_wait(&mut self, number: u64, signal: Rc<Signal>) {
        self.waits.push_back((number, signal));
    }

    /// The last signal of the device with that site that may still be waited for.
    pub(super) fn awaited_from(&self, site: &Rc<Site>) -> Option<Rc<Signal>> {
        let (_, last) = self.waits.iter().rev().find(|(_, signal)| signal.is_of(site))?;
        Some(Rc::clone(last))
    }

    /// What the work may wait for.
    pub(super) fn awaited(&self, queue: &Queue) -> Vec<Rc<Signal>> {
        let completed = queue.completed();
        let may_wait =
            |(number, signal): &&(u64, Rc<Signal>)| *number > completed && signal.may_hold_up();
        self.waits.iter().filter(may_wait).map(|(_, signal)| Rc::clone(signal)).collect()
    }

    /// Whether the oldest work has been under way for too long. A graph has the time of as many
    /// kernels as it is.
    pub(super) fn is_late(&mut self, queue: &Queue, now: Instant) -> bool {
        let completed = queue.completed();
        while self.waits.front().is_some_and(|(number, _)| *number <= completed) {
            self.waits.pop_front();
        }
        let Some((oldest, units)) = queue.awaited() else {
            self.seen = None;
            return false;
        };
        let is_waiting = |(number, signal): &(u64, Rc<Signal>)| {
            *number == oldest && !signal.is_reached().unwrap_or(true)
        };
        if self.waits.front().is_some_and(is_waiting) {
            self.seen = None;
            return false;
        }
        match self.seen {
            Some((seen, since)) if seen == completed => {
                let kernels = u32::try_from(units.max(1)).unwrap_or(u32::MAX);
                let limit = self.limit.checked_mul(kernels).unwrap_or(Duration::MAX);
                now.saturating_duration_since(since) > limit
            }
            _ => {
                self.seen = Some((completed, now));
                false
            }
        }
    }
}
