//! When a worker that computes lets others have its core.
//!
//! Owns: [`Pace`]. The kernel looks at who else wants a core with its clock's ticks, which are
//! milliseconds apart: a session whose worker wakes up for one launch would wait that long for one
//! that runs ten thousand. So a worker asks by itself, between two kernels, once its turn is over;
//! that costs a system call for each turn, and little where nobody else is there. A single long
//! kernel is ended by the ticks alone.
//!
//! To read the clock before each of many short kernels would cost more than they take: it is read
//! every so many kernels, more the shorter they are.

use std::cell::Cell;
use std::time::{Duration, Instant};

use crate::config::CoreLimits;

/// Kernels between two looks at the clock, at most.
const STRIDE_MAX: u32 = 64;

/// How long a worker has been computing.
#[derive(Debug)]
pub(super) struct Pace {
    began: Cell<Instant>,
    looked: Cell<Instant>,
    stride: Cell<u32>,
    left: Cell<u32>,
}

impl Default for Pace {
    fn default() -> Self {
        let now = Instant::now();
        let (began, looked) = (Cell::new(now), Cell::new(now));
        Pace { began, looked, stride: Cell::new(1), left: Cell::new(1) }
    }
}

impl Pace {
    /// Comes before each piece of work.
    pub(super) fn step(&self) {
        self.left.set(self.left.get() - 1);
        if self.left.get() == 0 && self.is_over(Instant::now()) {
            rustix::thread::sched_yield();
            self.rested();
        }
    }

    /// Others have had the core: a turn begins.
    pub(super) fn rested(&self) {
        self.began.set(Instant::now());
    }

    /// Whether the turn is over at this time; also says when to ask again.
    fn is_over(&self, now: Instant) -> bool {
        const TURN: Duration = CoreLimits::WORKER_YIELD;
        let since = now.saturating_duration_since(self.looked.replace(now));
        let stride = match self.stride.get() {
            stride if since > TURN / 2 => (stride / 2).max(1),
            stride if since < TURN / 8 => (stride * 2).min(STRIDE_MAX),
            stride => stride,
        };
        self.stride.set(stride);
        self.left.set(stride);
        now.saturating_duration_since(self.began.get()) >= TURN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TURN: Duration = CoreLimits::WORKER_YIELD;

    /// After how many steps of this length a turn is over.
    fn steps(pace: &Pace, length: Duration) -> u32 {
        let mut now = pace.looked.get();
        pace.began.set(now);
        for step in 1.. {
            now += length;
            pace.left.set(pace.left.get() - 1);
            if pace.left.get() == 0 && pace.is_over(now) {
                return step;
            }
        }
        unreachable!("a turn ends")
    }

    #[test]
    fn turn_of_short_kernels_ends_in_time_with_few_looks() {
        let pace = Pace::default();
        for _ in 0..10 {
            let taken = steps(&pace, TURN / 1000);
            assert!((1000..1000 + STRIDE_MAX).contains(&taken), "{taken}");
        }
        assert_eq!(pace.stride.get(), STRIDE_MAX, "the clock is not read before each");
    }

    #[test]
    fn turn_of_long_kernels_ends_with_each_soon() {
        let pace = Pace::default();
        steps(&pace, TURN / 1000);
        let taken: Vec<u32> = (0..9).map(|_| steps(&pace, 2 * TURN)).collect();
        assert_eq!(taken.last(), Some(&1), "{taken:?}");
        assert!(taken.iter().sum::<u32>() < 3 * STRIDE_MAX, "{taken:?}");
    }

    #[test]
    fn turn_begins_anew_after_a_rest() {
        let pace = Pace::default();
        let later = pace.looked.get() + TURN;
        assert!(pace.is_over(later));
        pace.began.set(later);
        assert!(!pace.is_over(later + TURN / 2));
    }
}
