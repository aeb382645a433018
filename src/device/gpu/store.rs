//! Where a device's memory comes from.
//!
//! Owns: [`Store`]: the driver's stream-ordered pool as a rule; memory that network cards can be
//! told of (`arena`), where there is such a card; plain allocations on devices that have no pools.
//! And how a device has memory from it and gives it back.

use std::rc::Rc;

use super::arena::Arena;
use super::clerk::Job;
use super::device::{GpuDevice, Stop};
use super::driver::{DevicePointer, Ordinal};
use super::handles::{Context, Done, Pool, Stream};
use super::memory::{Access, Allocation, Uses};
use super::queue::{Lane, STREAMS};
use crate::config::GpuLimits;
use crate::device::budget::Charge;
use crate::device::{DeviceError, Memory, Region};

/// The source of one device's memory.
pub(super) enum Store {
    Arena(Arena),
    /// Allocations that wait for the device.
    Plain,
    Pool(Pool),
}

impl Store {
    /// Memory that what comes later in the computing stream may use.
    pub(super) fn alloc(
        &mut self,
        context: &Context,
        bytes: u64,
        computing: &Stream,
    ) -> Done<DevicePointer> {
        match self {
            Store::Arena(arena) => arena.alloc(bytes),
            Store::Plain => context.alloc(bytes),
            Store::Pool(pool) => pool.alloc(bytes, computing),
        }
    }

    /// Whether memory is given back behind what is in the computing stream. If not, it may be given
    /// back once its work is done.
    pub(super) fn is_ordered(&self) -> bool {
        !matches!(self, Store::Plain)
    }

    /// Gives memory back behind what is in the computing stream, or what is done. `last` is the
    /// last work that was queued.
    pub(super) fn free(
        &mut self,
        context: &Context,
        at: DevicePointer,
        computing: &Stream,
        last: u64,
    ) -> Done<()> {
        match self {
            Store::Arena(arena) => {
                arena.free(at, last);
                Ok(())
            }
            Store::Plain => context.free(at),
            Store::Pool(pool) => pool.free(at, computing),
        }
    }

    /// Lets another device's copies reach all memory, as far as that has to be said.
    pub(super) fn allow(&mut self, device: Ordinal) -> Done<()> {
        match self {
            Store::Arena(arena) => arena.allow(device),
            Store::Plain => Ok(()),
            Store::Pool(pool) => pool.allow(device),
        }
    }

    pub(super) fn arena(&mut self) -> Option<&mut Arena> {
        match self {
            Store::Arena(arena) => Some(arena),
            Store::Plain | Store::Pool(_) => None,
        }
    }
}

impl GpuDevice {
    /// Memory that reads as zero to whatever is queued later.
    pub(super) fn allocate(&mut self, bytes: u64) -> Result<Region, Stop> {
        let whole = bytes.max(1).next_multiple_of(GpuLimits::UNIT_BYTES);
        let charge = Charge::new(self.budget(), whole)?;
        self.queue.begin(Lane::Compute)?;
        let mut taken = self.take(whole);
        if taken.is_err_and(|trouble| self.is_out_of_memory(trouble)) && self.give_idle_back()? {
            taken = self.take(whole);
        }
        let at = match taken {
            Err(trouble) if self.is_out_of_memory(trouble) => return Err(self.no_room(whole)),
            taken => taken?,
        };
        self.parts().live.insert(at);
        let allocation = Allocation::new(at, bytes, &self.site, charge);
        // What was this session's before is zeroed too: nobody knows which parts were.
        self.queue.stream(Lane::Compute).zero(at, whole)?;
        let number = self.queue.push(Lane::Compute, 1);
        allocation.uses.note(Lane::Compute, Access::Write, number);
        Ok(Region(Memory::Gpu(Rc::new(allocation))))
    }

    fn take(&self, bytes: u64) -> Done<DevicePointer> {
        let (context, stream) = (self.queue.context(), self.queue.stream(Lane::Compute));
        let taken = self.site.reach(|reach| reach.store.alloc(context, bytes, stream));
        taken.expect("calls come after `ready`")
    }

    /// Memory that is kept free is given back now, so that there is room for something else. Waits
    /// for all work: what is in the way may just have been freed. Whether there was any.
    fn give_idle_back(&self) -> Done<bool> {
        let has_arena = self.site.reach(|reach| reach.store.arena().is_some());
        if has_arena != Some(true) {
            return Ok(false);
        }
        STREAMS.iter().try_for_each(|lane| self.queue.stream(*lane).synchronize())?;
        let idle = self.site.reach(|reach| reach.store.arena().map(Arena::take_idle));
        Ok(idle.flatten().is_some_and(|idle| !idle.is_empty()))
    }

    /// Free memory beyond what is kept goes back to the driver, by the device's thread.
    pub(super) fn trim(&mut self) {
        let completed = self.queue.completed();
        let idle = self.site.reach(|reach| Some(reach.store.arena()?.trim(completed)));
        if let Some(idle) = idle.flatten().filter(|idle| !idle.is_empty()) {
            self.clerk.send(Job::Drop(Box::new(idle)));
        }
    }

    /// The driver has no memory, though the budget has.
    fn no_room(&mut self, asked: u64) -> Stop {
        match self.queue.context().memory_info() {
            Ok((free, limit)) => DeviceError::OutOfMemory { asked, free, limit }.into(),
            Err(trouble) => trouble.into(),
        }
    }

    /// Frees memory behind the work that uses it.
    pub(super) fn free(&mut self, at: DevicePointer, uses: &Uses) -> Result<(), Stop> {
        if let Some(window) = self.windows.remove(&at) {
            self.retired.push_back((self.queue.last(), Box::new(window)));
            return Ok(());
        }
        if uses.is_relayed() {
            self.wait_for_relays()?;
        }
        let is_ordered = self.site.reach(|reach| reach.store.is_ordered()).unwrap_or_default();
        if !is_ordered {
            self.retired_memory.push_back((self.queue.last(), at));
            return Ok(());
        }
        self.queue.begin(Lane::Compute)?;
        uses.order(&mut self.queue, Lane::Compute, Access::Write)?;
        let (context, stream) = (self.queue.context(), self.queue.stream(Lane::Compute));
        let last = self.queue.last();
        let freed = self.site.reach(|reach| reach.store.free(context, at, stream, last));
        // It is never freed twice: a free may fail for what other work did, and be done.
        self.parts().live.remove(&at);
        Ok(freed.unwrap_or(Ok(()))?)
    }
}
