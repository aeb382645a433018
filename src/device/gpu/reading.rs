//! What a device reads straight out of another's memory, which has to stay until then.
//!
//! Owns: [`Readings`] (the reader's end) and [`Reading`], of which the source knows too. The
//! callers' signals have a source wait for its readers, but the source may end before its caller
//! has come to that. So its end (`closing`) looks whether there are readings. Absent: copies
//! through pinned memory, whose first half is the source's own work (`relay`).

use std::rc::{self, Rc};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::device::GpuDevice;
use super::memory::Site;
use super::queue::{Lane, Queue};
use super::signal::Signal;

/// There until its reader is past all that it reads from one source, or reads no more.
#[derive(Default)]
pub(super) struct Reading {
    is_stuck: AtomicBool,
    is_abandoned: AtomicBool,
}

impl Reading {
    /// The reader's work does not end, and what it is stuck at is not the source's.
    pub(super) fn set_stuck(&self) {
        self.is_stuck.store(true, Ordering::Release);
    }

    pub(super) fn is_stuck(&self) -> bool {
        self.is_stuck.load(Ordering::Acquire)
    }

    /// The source's work does not end, and its context waits for this alone.
    pub(super) fn abandon(&self) {
        self.is_abandoned.store(true, Ordering::Release);
    }
}

struct Source {
    site: rc::Weak<Site>,
    reading: Arc<Reading>,
    /// The last work that reads there.
    last: u64,
}

/// All that a device reads of others.
#[derive(Default)]
pub(super) struct Readings(Vec<Source>);

impl Readings {
    /// The next work of the computing stream reads there.
    pub(super) fn begin(&mut self, site: &Rc<Site>, queue: &Queue) {
        let last = queue.last() + 1;
        let is_it = |known: &&mut Source| std::ptr::eq(known.site.as_ptr(), Rc::as_ptr(site));
        if let Some(known) = self.0.iter_mut().find(is_it) {
            known.last = last;
            return;
        }
        let reading = Arc::new(Reading::default());
        site.reach(|reach| {
            reach.readers.retain(|reading| reading.strong_count() > 0);
            reach.readers.push(Arc::downgrade(&reading));
        });
        self.0.push(Source { site: Rc::downgrade(site), reading, last });
    }

    /// Forgets what the queue is past.
    pub(super) fn look(&mut self, queue: &Queue) {
        let done = queue.done(Lane::Compute);
        self.0.retain(|source| source.last > done);
    }

    /// Whether a source waits for this device, and this device perhaps for the source.
    pub(super) fn are_abandoned(&self) -> bool {
        self.0.iter().any(|source| source.reading.is_abandoned.load(Ordering::Acquire))
    }

    /// What is to be kept until nothing runs any more, and whether the queue may wait for its
    /// source, as it does for all that is `awaited`.
    fn close(&mut self, awaited: &[Rc<Signal>]) -> Vec<(Arc<Reading>, bool)> {
        let may_wait = |site| awaited.iter().any(|signal| signal.is_of(&site));
        let close = |source: Source| (source.reading, source.site.upgrade().is_some_and(may_wait));
        self.0.drain(..).map(close).collect()
    }
}

impl GpuDevice {
    /// At the end: whether work may wait for others', and what it reads there.
    pub(super) fn leave_others(&mut self) -> (bool, Vec<(Arc<Reading>, bool)>) {
        let awaited = self.watchdog.awaited(&self.queue);
        self.signals.close();
        (!awaited.is_empty(), self.readings.close(&awaited))
    }
}
