//! A place in one device's queue that other devices of the platform can wait for.
//!
//! Owns: [`Signal`], an event behind all that was queued before it, and [`Signals`], all those of a
//! device. A signal may outlive its device: then it is over, and nobody begins to wait for it.

use std::cell::Cell;
use std::fmt;
use std::rc::{Rc, Weak};
use std::sync::mpsc::Sender;

use super::clerk::Job;
use super::device::{GpuDevice, Stop};
use super::handles::{Done, Event};
use super::memory::Site;
use super::queue::Lane;

pub(in crate::device) struct Signal {
    /// Taken by the drop only.
    event: Option<Event>,
    site: Rc<Site>,
    jobs: Sender<Job>,
    /// Whether it was when its device ended.
    was_reached: Cell<bool>,
}

impl Signal {
    /// Behind everything that is queued.
    pub(super) fn record(device: &mut GpuDevice) -> Result<Signal, Stop> {
        let site = Rc::clone(&device.site);
        device.queue.begin(Lane::Compute)?;
        device.queue.join()?;
        let event = match site.reach(|reach| reach.events.pop()).flatten() {
            Some(event) => event,
            None => device.queue.event()?,
        };
        device.queue.stream(Lane::Compute).record(&event)?;
        let (event, jobs, was_reached) = (Some(event), device.clerk.jobs(), Cell::new(false));
        Ok(Signal { event, site, jobs, was_reached })
    }

    /// Whether it is of the device with this site.
    pub(super) fn is_of(&self, site: &Rc<Site>) -> bool {
        Rc::ptr_eq(&self.site, site)
    }

    /// Whether its device is gone.
    pub(super) fn is_over(&self) -> bool {
        self.site.is_closed()
    }

    pub(super) fn event(&self) -> &Event {
        self.event.as_ref().expect("taken by the drop only")
    }

    pub(super) fn is_reached(&self) -> Done<bool> {
        if self.is_over() { Ok(true) } else { self.event().is_reached() }
    }

    /// Whether work that waits for it may be held up, as far as is known of a device that is gone.
    pub(super) fn may_hold_up(&self) -> bool {
        match self.is_over() {
            true => !self.was_reached.get(),
            false => !self.event().is_reached().unwrap_or(true),
        }
    }
}

/// A device's signals for which somebody may wait.
#[derive(Default)]
pub(super) struct Signals {
    given: Vec<Weak<Signal>>,
    /// So many are worth a look whether they are gone.
    many: usize,
}

impl Signals {
    const FEW: usize = 16;

    pub(super) fn add(&mut self, signal: &Rc<Signal>) {
        if self.given.len() >= self.many {
            self.given.retain(|signal| signal.strong_count() > 0);
            self.many = (2 * self.given.len()).max(Self::FEW);
        }
        self.given.push(Rc::downgrade(signal));
    }

    /// The device is about to end: how far it has come is not known later.
    pub(super) fn close(&mut self) {
        for signal in self.given.drain(..).filter_map(|signal| signal.upgrade()) {
            signal.was_reached.set(!signal.may_hold_up());
        }
    }
}

impl fmt::Debug for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signal(over: {})", self.is_over())
    }
}

impl Drop for Signal {
    fn drop(&mut self) {
        let mut event = self.event.take();
        self.site.reach(|reach| reach.events.extend(event.take()));
        // The device is gone, but its thread waits for this.
        if let Some(event) = event {
            drop(self.jobs.send(Job::Drop(Box::new(event))));
        }
    }
}
