//! A counter of one device's signals that other devices can wait for.
//!
//! Owns: the page in which it lies and the protocol of signalling and waiting. The page is written
//! by the worker whose timeline it is, and by the server at that worker's end; all others map it
//! read-only.
//!
//! The counter never goes back. The end of its device is the value [`ENDED`], past all others, so
//! nobody waits for the dead.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use rustix::thread::futex;

use super::shared::{Mapping, Segment};
use super::{DeviceError, Point};

/// The value of a timeline whose device is gone.
pub(super) const ENDED: u64 = u64::MAX;

/// Length of the page, which is also that of its segment.
pub(super) const PAGE_BYTES: u64 = 4096;

/// What lies in the page. All zero at first.
#[repr(C)]
pub(super) struct Words {
    value: AtomicU64,
    /// Changes with each change of `value`. What waiters sleep on.
    changes: AtomicU32,
    /// Whether anybody else may ever sleep here. Set by the server, which is the one who knows.
    watched: AtomicU32,
}

impl Words {
    /// The words of a mapped page.
    pub(super) fn of(page: &Mapping) -> &Words {
        let at = page.at(0, PAGE_BYTES).expect("a timeline's segment is one page");
        // SAFETY: the page is mapped as long as the borrow of `page`, aligned, and holds only
        // atomics, for which every bit pattern is a value and changes from elsewhere are allowed.
        unsafe { at.cast::<Words>().as_ref() }
    }

    pub(super) fn value(&self) -> u64 {
        self.value.load(Ordering::Acquire)
    }

    /// Sets the counter and wakes those who wait.
    pub(super) fn set(&self, value: u64) {
        self.value.store(value, Ordering::Release);
        self.changes.fetch_add(1, Ordering::Release);
        // Against `watch`: either its store is seen here, or the waiter, who sleeps only after it,
        // sees the new value.
        fence(Ordering::SeqCst);
        if self.watched.load(Ordering::Relaxed) != 0 {
            // Waking cannot fail on a mapped word, and there is nobody to tell.
            let _ = futex::wake(&self.changes, futex::Flags::empty(), i32::MAX.unsigned_abs());
        }
    }

    /// What changes with the counter, and its value: to be read before the counter.
    pub(super) fn changes(&self) -> (&AtomicU32, u32) {
        (&self.changes, self.changes.load(Ordering::Acquire))
    }

    fn watch(&self) {
        self.watched.store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Sleeps until the counter is at least `value`.
    pub(super) fn wait(&self, value: u64) {
        loop {
            let changes = self.changes.load(Ordering::Acquire);
            if self.value() >= value {
                return;
            }
            // An error is a change in the meantime or an interruption; both mean to look again.
            let _ = futex::wait(&self.changes, futex::Flags::empty(), changes, None);
        }
    }
}

/// The server's hold on a device's timeline.
#[derive(Debug)]
pub(super) struct Timeline {
    segment: Rc<Segment>,
    /// Signals queued.
    signals: Cell<u64>,
}

impl Timeline {
    pub(super) fn create() -> Result<Rc<Timeline>, DeviceError> {
        let segment = Segment::create("outboard-timeline", PAGE_BYTES)?;
        Ok(Rc::new(Timeline { segment, signals: Cell::new(0) }))
    }

    /// Where the timeline is after one more signal, which is queued before any other.
    pub(super) fn next(self: &Rc<Self>) -> Point {
        self.signals.update(|signals| signals + 1);
        Point::shared(self, self.signals.get())
    }

    pub(super) fn segment(&self) -> &Rc<Segment> {
        &self.segment
    }

    pub(super) fn words(&self) -> &Words {
        Words::of(self.segment.mapping())
    }

    /// Announces that somebody will wait. Comes before the wait is queued.
    pub(super) fn watch(&self) {
        self.words().watch();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn waiters_wake_for_each_value_and_for_the_end() {
        let (ping, pong) = (Timeline::create().unwrap(), Timeline::create().unwrap());
        ping.watch();
        pong.watch();
        let files = [&ping, &pong].map(|timeline| Arc::clone(timeline.segment().file()));
        let other = std::thread::spawn(move || {
            let [ping, pong] = files.each_ref().map(|file| Words::of(file.mapping()));
            for value in 1..=1000 {
                ping.wait(value);
                pong.set(value);
            }
            ping.wait(u64::MAX - 1);
        });
        for value in 1..=1000 {
            ping.words().set(value);
            pong.words().wait(value);
        }
        ping.words().set(ENDED);
        other.join().unwrap();
    }
}
