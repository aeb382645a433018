//! Copies: to the device, from it, on it, and between devices.
//!
//! Short ones go through the computing stream, where nothing has to wait for anything: handing work
//! from one stream to another costs more than they take. Long ones have streams of their own, one
//! for each direction, beside which kernels run. What is staged in the server's memory is carried
//! by the device's thread (`clerk`): it is not pinned, and to copy it here would hold the shard.
//! Segments that come back are registered, and copied from directly (`registered`).

use std::rc::Rc;
use std::sync::Arc;

use super::clerk::{Job, Upload};
use super::device::{GpuDevice, Stop};
use super::driver::DevicePointer;
use super::handles::{Context, Far, Trouble};
use super::memory::{Access, Allocation};
use super::queue::Lane;
use super::registered::Way;
use super::relay::gone;
use super::staging::host_bytes;
use crate::config::GpuLimits;
use crate::device::shared::{Range, to_u64, to_usize};
use crate::device::{DeviceError, Fence, HostBytes, Span};

/// Where a span lies.
pub(super) fn place(allocation: &Allocation, span: &Span<'_>) -> DevicePointer {
    DevicePointer(allocation.at.0 + span.offset)
}

fn lane_of(bytes: u64, long: Lane) -> Lane {
    if bytes <= GpuLimits::SHORT_COPY_BYTES_MAX { Lane::Compute } else { long }
}

impl GpuDevice {
    /// Bytes that are taken before the call returns.
    pub(super) fn upload_short(&mut self, to: &Span<'_>, bytes: &[u8]) -> Result<Fence, Stop> {
        let allocation = Rc::clone(self.own(to)?);
        let lane = lane_of(to_u64(bytes.len()), Lane::In);
        self.queue.begin(lane)?;
        allocation.uses.order(&mut self.queue, lane, Access::Write)?;
        let Some(parts) = &mut self.parts else { return Err(closed()) };
        let (queue, at) = (&mut self.queue, place(&allocation, to));
        let context = Arc::clone(queue.context());
        let number = parts.inbox.pass(bytes, lane, &context, |from| {
            // SAFETY: the inbox keeps what it gave until the lane is past the number returned here.
            let copied = unsafe { queue.stream(lane).copy_in(at, from, to_u64(bytes.len())) };
            copied.map_err(|trouble| context.meaning(trouble))?;
            Ok(queue.push(lane, 1))
        })?;
        allocation.uses.note(lane, Access::Write, number);
        Ok(Fence(number))
    }

    /// Bytes that the caller keeps until the fence.
    pub(super) fn upload(&mut self, to: &Span<'_>, from: &Range) -> Result<Fence, Stop> {
        if from.bytes() < to.bytes() {
            let why = "the source is shorter than the destination".to_owned();
            return Err(DeviceError::Failed { what: "copy", why }.into());
        }
        if to.bytes() <= to_u64(GpuLimits::COPIED_HERE_BYTES_MAX) {
            return self.upload_short(to, &from.slice()[..to_usize(to.bytes())]);
        }
        let allocation = Rc::clone(self.own(to)?);
        self.queue.begin(Lane::In)?;
        allocation.uses.order(&mut self.queue, Lane::In, Access::Write)?;
        let gone = self.registered.take_gone();
        if !gone.is_empty() {
            self.clerk.send(Job::Drop(Box::new(gone)));
        }
        let way = self.registered.way(from.block(), to.bytes(), self.queue.last() + 1);
        if way == Way::Direct {
            return self.upload_directly(&allocation, to, from);
        }
        let after = self.queue.event()?;
        self.queue.stream(Lane::In).record(&after)?;
        let number = self.queue.push(Lane::Clerk, to.bytes().div_ceil(GpuLimits::UNIT_COPY_BYTES));
        // Until it is done nothing is queued, so no use has to be noted.
        self.gate = Some(number);
        let block = from.block();
        let file = Arc::clone(block.segment().file());
        let (to, bytes, offset) = (place(&allocation, to), to.bytes(), block.offset());
        let registers = way == Way::Registering;
        self.clerk.send(Job::Upload(Upload { number, to, file, offset, bytes, after, registers }));
        Ok(Fence(number))
    }

    /// Bytes of a registered segment, which need nobody's help.
    fn upload_directly(
        &mut self,
        allocation: &Allocation,
        to: &Span<'_>,
        from: &Range,
    ) -> Result<Fence, Stop> {
        let (block, bytes) = (from.block(), to.bytes());
        let file = Arc::clone(block.segment().file());
        let at = file.mapping().at(block.offset(), bytes).expect("a block is in its segment");
        // SAFETY: the file keeps the memory, and is itself kept below until the work is done. The
        // caller keeps the bytes as they are until the fence.
        unsafe { self.queue.stream(Lane::In).copy_in(place(allocation, to), at, bytes)? };
        let number = self.queue.push(Lane::In, bytes.div_ceil(GpuLimits::UNIT_COPY_BYTES));
        self.retired.push_back((number, Box::new(file)));
        allocation.uses.note(Lane::In, Access::Write, number);
        // The next is queued before somebody asks for this one.
        self.queue.mark_here(Lane::In)?;
        Ok(Fence(number))
    }

    /// Begins to copy the first piece of a span to where the server sees it.
    pub(super) fn download(&mut self, of: &Span<'_>) -> Result<(Fence, HostBytes), Stop> {
        let allocation = Rc::clone(self.own(of)?);
        let bytes = of.bytes().min(to_u64(GpuLimits::OUT_PIECE_BYTES));
        let lane = lane_of(bytes, Lane::Out);
        self.queue.begin(lane)?;
        allocation.uses.order(&mut self.queue, lane, Access::Read)?;
        let Some(parts) = &mut self.parts else { return Err(closed()) };
        let lent = parts.outbox.lend(self.queue.context(), &self.clerk)?;
        let to = lent.memory().part(0, to_usize(bytes));
        // SAFETY: the outbox keeps the piece until the lane is past the copy, and whoever borrows
        // it knows that it is stable only then.
        unsafe { self.queue.stream(lane).copy_out(to, place(&allocation, of), bytes)? };
        let number = self.queue.push(lane, 1);
        parts.outbox.hold(lane, number, Arc::clone(&lent));
        allocation.uses.note(lane, Access::Read, number);
        if lane == Lane::Out {
            // The next piece is queued before this one is asked for.
            self.queue.mark_here(lane)?;
        }
        Ok((Fence(number), host_bytes(lent, bytes)))
    }

    pub(super) fn copy_between(&mut self, to: &Span<'_>, from: &Span<'_>) -> Result<Fence, Stop> {
        let target = Rc::clone(self.own(to)?);
        let source = Rc::clone(from.region.gpu()?);
        if !Rc::ptr_eq(&source.site, &self.site) {
            return self.copy_from_afar(&target, to, &source, from);
        }
        self.queue.begin(Lane::Compute)?;
        target.uses.order(&mut self.queue, Lane::Compute, Access::Write)?;
        source.uses.order(&mut self.queue, Lane::Compute, Access::Read)?;
        let (at, from, bytes) = (place(&target, to), place(&source, from), to.bytes());
        self.copy_here(at, from, bytes)?;
        let number = self.queue.push(Lane::Compute, bytes.div_ceil(GpuLimits::UNIT_COPY_BYTES));
        source.uses.note(Lane::Compute, Access::Read, number);
        target.uses.note(Lane::Compute, Access::Write, number);
        Ok(Fence(number))
    }

    /// Copies inside the device, in the computing stream. The two may overlap.
    pub(super) fn copy_here(
        &mut self,
        to: DevicePointer,
        from: DevicePointer,
        bytes: u64,
    ) -> Result<(), Stop> {
        let (stream, last) = (self.queue.stream(Lane::Compute), self.queue.last());
        let context = self.queue.context();
        if to.0.abs_diff(from.0) >= bytes {
            return Ok(stream.copy(to, from, bytes)?);
        }
        let taken = self.site.reach(|reach| match reach.store.is_ordered() {
            true => reach.store.alloc(context, bytes, stream).map(Some),
            false => Ok(None),
        });
        let Some(between) = taken.unwrap_or(Ok(None))? else {
            // Forwards or backwards, in steps in which the two do not overlap.
            return self.copy_in_steps(to, from, bytes);
        };
        let copied =
            stream.copy(between, from, bytes).and_then(|()| stream.copy(to, between, bytes));
        // What follows it in the queue is what this is a part of.
        let freed = self.site.reach(|reach| reach.store.free(context, between, stream, last + 1));
        copied?;
        Ok(freed.unwrap_or(Ok(()))?)
    }

    fn copy_in_steps(
        &self,
        to: DevicePointer,
        from: DevicePointer,
        bytes: u64,
    ) -> Result<(), Stop> {
        let step = to.0.abs_diff(from.0);
        if step == 0 {
            return Ok(());
        }
        if bytes / step > GpuLimits::COPY_STEPS_MAX {
            let why = "source and destination overlap too closely for this device".to_owned();
            return Err(DeviceError::Failed { what: "copy", why }.into());
        }
        let stream = self.queue.stream(Lane::Compute);
        let mut offsets: Vec<u64> = (0..bytes).step_by(to_usize(step)).collect();
        if to > from {
            offsets.reverse();
        }
        for at in offsets {
            let length = step.min(bytes - at);
            stream.copy(DevicePointer(to.0 + at), DevicePointer(from.0 + at), length)?;
        }
        Ok(())
    }

    /// Copies from another device, which signalled that the source is there.
    fn copy_from_afar(
        &mut self,
        target: &Allocation,
        to: &Span<'_>,
        source: &Rc<Allocation>,
        from: &Span<'_>,
    ) -> Result<Fence, Stop> {
        if !self.is_within_reach(source)? {
            return self.copy_relayed(target, to, source, from);
        }
        let theirs = self.peer(source)?;
        self.queue.begin(Lane::Compute)?;
        target.uses.order(&mut self.queue, Lane::Compute, Access::Write)?;
        let (at, far, bytes) = (place(target, to), place(source, from), to.bytes());
        self.readings.begin(&source.site, &self.queue);
        let copied = self.copy_far(at, &theirs, far, bytes);
        let number = self.queue.push(Lane::Compute, bytes.div_ceil(GpuLimits::UNIT_COPY_BYTES));
        target.uses.note(Lane::Compute, Access::Write, number);
        copied?;
        Ok(Fence(number))
    }

    /// Copies from another device, in the computing stream.
    pub(super) fn copy_far(
        &self,
        to: DevicePointer,
        theirs: &Context,
        from: DevicePointer,
        bytes: u64,
    ) -> Result<(), Stop> {
        let to = Far { context: self.queue.context(), at: to };
        let from = Far { context: theirs, at: from };
        Ok(self.queue.stream(Lane::Compute).copy_peer(to, from, bytes)?)
    }

    /// The context of another device's memory, which this one's may reach from now on where the
    /// hardware can.
    pub(super) fn peer(&mut self, source: &Allocation) -> Result<Arc<Context>, Stop> {
        let ours = Arc::clone(self.queue.context());
        let (device, serial) = (ours.device(), ours.serial());
        let known = source.site.reach(|reach| {
            let known = reach.allowed.contains(&serial);
            (Arc::clone(&reach.context), known)
        });
        let Some((theirs, known)) = known else { return Err(gone()) };
        if known || device == theirs.device() || !self.can_reach(&theirs)? {
            return Ok(theirs);
        }
        ours.enable_peer(&theirs)?;
        let allowed = source.site.reach(|reach| {
            reach.store.allow(device)?;
            reach.allowed.push(serial);
            Ok::<(), Trouble>(())
        });
        allowed.unwrap_or(Ok(()))?;
        Ok(theirs)
    }

    /// Whether this device's copies reach that memory by themselves.
    pub(super) fn is_within_reach(&self, source: &Allocation) -> Result<bool, Stop> {
        if Rc::ptr_eq(&source.site, &self.site) {
            return Ok(true);
        }
        let theirs = source.site.reach(|reach| Arc::clone(&reach.context)).ok_or_else(gone)?;
        self.can_reach(&theirs)
    }

    /// Whether this device reaches the memory of another by itself.
    pub(super) fn can_reach(&self, theirs: &Context) -> Result<bool, Stop> {
        let ours = self.queue.context();
        Ok(ours.device() == theirs.device() || ours.can_access(theirs)?)
    }
}

pub(super) fn closed() -> Stop {
    let why = "it is not open".to_owned();
    DeviceError::Failed { what: "device", why }.into()
}
