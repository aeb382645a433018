//! Staging memory that the driver copies from where it is.
//!
//! Bytes that arrived in the server's memory go to the device through pinned memory, copied once
//! by the device's thread. A segment that is used again and again need not: it is registered with
//! the driver, which pins its pages, and from then on the driver takes bytes out of it by itself.
//! To register takes as long as to copy a few times, so it pays for segments that come back, which
//! a client's warm ones do. Where it fails the bytes are copied as before.
//!
//! Owns: [`Registration`], which ends with the segment or with the device, whichever is first;
//! [`Registered`], what a device knows of segments that it has seen.
//!
//! Absent: the copies (`transfer`, `clerk`).

use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::handles::{Context, Done};
use crate::config::{DeviceLimits, GpuLimits};
use crate::device::shared::{Block, SharedFile, to_u64};

/// Memory of a segment that is registered with the driver. Of each segment there is one at most in
/// a process: drivers refuse a second.
pub(super) struct Registration(Mutex<Option<Held>>);

struct Held {
    context: Arc<Context>,
    /// Its address, which is the file's mapping's.
    at: usize,
    file: Weak<SharedFile>,
}

impl Registration {
    /// Registers a whole segment. `None` where another device of this process has. Takes long.
    pub(super) fn create(context: &Arc<Context>, file: &Arc<SharedFile>) -> Done<Option<Ended>> {
        if !file.claim() {
            return Ok(None);
        }
        let mapping = file.mapping();
        let base = mapping.at(0, 0).expect("it begins where it begins").as_ptr();
        // SAFETY: the file unmaps it only after what is attached to it was dropped, which unpins.
        let pinned = unsafe { context.pin(base, mapping.bytes(), !file.is_writable()) };
        if let Err(trouble) = pinned {
            file.disclaim();
            return Err(trouble);
        }
        let (at, context) = (base.expose_provenance(), Arc::clone(context));
        let held = Held { context, at, file: Arc::downgrade(file) };
        let registration = Arc::new(Registration(Mutex::new(Some(held))));
        file.attach(Box::new(Ended(Arc::clone(&registration))));
        Ok(Some(Ended(registration)))
    }

    /// Unpins the memory. Whoever is second finds it done, and comes back only then.
    fn end(&self) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Held { context, at, file }) = held.take() {
            context.unpin(std::ptr::with_exposed_provenance_mut(at));
            if let Some(file) = file.upgrade() {
                file.disclaim();
            }
        }
    }
}

/// One of the two owners of a registration, which ends it by being dropped: the segment, and the
/// device behind all of its work. Neither may be dropped where it must not block.
pub(super) struct Ended(Arc<Registration>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// The segments that a device has seen.
#[derive(Default)]
pub(super) struct Registered(Vec<Known>);

struct Known {
    file: Weak<SharedFile>,
    uses: u32,
    state: State,
}

enum State {
    New,
    /// The upload with this number registers it.
    Asked(u64),
    Done(Ended),
    /// Never again: it was tried.
    Failed,
}

/// How an upload goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Copied to pinned memory.
    Copied,
    /// The same, unless its segment can be registered first.
    Registering,
    /// By the driver, from where it is.
    Direct,
}

impl Known {
    fn into_ended(self) -> Option<Ended> {
        if let State::Done(ended) = self.state { Some(ended) } else { None }
    }
}

impl Registered {
    /// The way of the next upload of `bytes` bytes of a block, which gets this number.
    pub(super) fn way(&mut self, block: &Block, bytes: u64, number: u64) -> Way {
        let file = block.segment().file();
        let whole = to_u64(file.mapping().bytes());
        let waste = bytes / DeviceLimits::KEPT_WASTE_DIVISOR;
        let page = to_u64(rustix::param::page_size());
        if block.offset() != 0 || whole > bytes.saturating_add(waste).saturating_add(page) {
            return Way::Copied;
        }
        let is_it = |known: &Known| std::ptr::eq(known.file.as_ptr(), Arc::as_ptr(file));
        let at = self.0.iter().position(is_it).unwrap_or_else(|| {
            let file = Arc::downgrade(file);
            self.0.push(Known { file, uses: 0, state: State::New });
            self.0.len() - 1
        });
        let known = &mut self.0[at];
        known.uses += 1;
        match known.state {
            State::Done(_) => Way::Direct,
            State::New if known.uses >= GpuLimits::REGISTERED_USES_MIN => {
                known.state = State::Asked(number);
                Way::Registering
            }
            State::New | State::Asked(_) | State::Failed => Way::Copied,
        }
    }

    /// What belongs to segments that are gone. It may end on another thread at this moment, which
    /// its drop waits for.
    pub(super) fn take_gone(&mut self) -> Vec<Ended> {
        let gone = self.0.extract_if(.., |known| known.file.strong_count() == 0);
        gone.filter_map(Known::into_ended).collect()
    }

    /// What became of the registration that upload `number` was to make.
    pub(super) fn heard(&mut self, number: u64, registration: Option<Ended>) {
        let is_it = |known: &&mut Known| matches!(known.state, State::Asked(of) if of == number);
        if let Some(known) = self.0.iter_mut().find(is_it) {
            known.state = registration.map_or(State::Failed, State::Done);
        }
    }

    /// What ends with the device, to be dropped behind its work.
    pub(super) fn close(&mut self) -> Vec<Ended> {
        self.0.drain(..).filter_map(Known::into_ended).collect()
    }
}
