//! A place in one device's queue that other devices of the platform can wait for.
//!
//! Owns: [`Signal`], an event behind all that was queued before it. It may outlive its device: then
//! it is over, and nobody waits for it.

use std::fmt;
use std::rc::Rc;
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
        Ok(Signal { event: Some(event), site, jobs: device.clerk.jobs() })
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
