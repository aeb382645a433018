//! Buffers: memory, views of it, and copies between it and the client.

use std::rc::Rc;

use super::batch::{Batch, Blob, Output, Pending, Reading, Rest, Sender, UseOfOutput};
use super::session::{SessionId, Thing};
use super::{Cause, DONE, Engine, Step, Stop, WaitFor};
use crate::device::{Device, Region, SharedBytes, Source, Span};
use crate::wire::command::{self, BufferNumber};

/// A buffer: all of a region, or a view of a part.
#[derive(Clone, Debug)]
pub(super) struct Buffer {
    pub(super) region: Rc<Region>,
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

impl Buffer {
    pub(super) fn span(&self) -> Span<'_> {
        Span::new(&self.region, self.offset, self.bytes).expect("views are checked when made")
    }

    /// Its bytes where the server has them, if it does.
    pub(super) fn shared_bytes(&self) -> Option<SharedBytes> {
        self.region.shared_bytes(self.offset, self.bytes)
    }

    /// A part, of which the caller has seen that it lies inside.
    pub(super) fn part(&self, at: u64, bytes: u64) -> Span<'_> {
        assert!(at + bytes <= self.bytes, "the caller has compared the lengths");
        Span::new(&self.region, self.offset + at, bytes).expect("views are checked when made")
    }

    /// Whether it is the same memory.
    pub(super) fn is_same(&self, other: &Buffer) -> bool {
        let place = |buffer: &Buffer| (buffer.offset, buffer.bytes);
        Rc::ptr_eq(&self.region, &other.region) && place(self) == place(other)
    }

    /// Whether it is all of its region, to which nobody else refers: no view, no graph, no output.
    fn is_sole(&self) -> bool {
        self.bytes == self.region.bytes() && Rc::strong_count(&self.region) == 1
    }
}

/// Begins to read a buffer, as much of it as the device gives at once.
fn read(session: SessionId, device: &mut dyn Device, buffer: Buffer) -> Result<Reading, Cause> {
    let (fence, bytes) = device.read(buffer.span())?;
    let read = bytes.slice().len() as u64;
    let region = Rc::clone(&buffer.region);
    let rest = (read < buffer.bytes).then(|| {
        let (offset, bytes) = (buffer.offset + read, buffer.bytes - read);
        Rest { session, buffer: Buffer { offset, bytes, ..buffer } }
    });
    Ok(Reading { session, fence, output: Output::Bytes { bytes, region, rest } })
}

impl Engine {
    pub(super) fn buffer_alloc(
        &mut self,
        at: SessionId,
        c: &command::BufferAlloc,
    ) -> Result<Step, Stop> {
        if c.options.external_ptr.is_some() {
            return Err(Cause::ExternalPointer.into());
        }
        if c.options.image.is_some() {
            return Err(Cause::Image { name: self.platform.name() }.into());
        }
        if c.size == 0 {
            return Err(Cause::SizeZero.into());
        }
        self.check_new_buffer(at, c.buffer)?;
        let session = self.device(at)?;
        let region = session.open_device()?.alloc(c.size)?;
        let buffer = Buffer { region: Rc::new(region), offset: 0, bytes: c.size };
        session.forget_missing(&Thing::Buffer(c.buffer));
        session.buffers.insert(c.buffer, buffer);
        DONE
    }

    pub(super) fn buffer_offset(
        &mut self,
        at: SessionId,
        c: &command::BufferOffset,
    ) -> Result<Step, Stop> {
        if c.size == 0 {
            return Err(Cause::SizeZero.into());
        }
        self.check_new_buffer(at, c.buffer)?;
        let session = self.get_mut(at)?;
        let base = session.buffer(c.base)?;
        if c.offset.checked_add(c.size).is_none_or(|end| end > base.bytes) {
            return Err(Cause::ViewOutside {
                base: c.base.0,
                base_bytes: base.bytes,
                offset: c.offset,
                bytes: c.size,
            }
            .into());
        }
        let view = Buffer {
            region: Rc::clone(&base.region),
            offset: base.offset + c.offset,
            bytes: c.size,
        };
        session.forget_missing(&Thing::Buffer(c.buffer));
        session.buffers.insert(c.buffer, view);
        DONE
    }

    pub(super) fn buffer_free(
        &mut self,
        at: SessionId,
        number: BufferNumber,
    ) -> Result<Step, Stop> {
        let session = self.get_mut(at)?;
        if !session.registrations.is_empty() {
            session.registrations.remove(&number);
        }
        let known = session.buffers.remove(&number).is_some()
            || session.forget_missing(&Thing::Buffer(number));
        if known { DONE } else { Err(Cause::BufferUnknown { buffer: number.0 }.into()) }
    }

    /// A blob that fills a whole buffer may become its memory. Otherwise it is copied.
    pub(super) fn copy_in(
        &mut self,
        at: SessionId,
        c: &command::CopyIn,
        batch: &Batch<'_>,
    ) -> Result<Step, Stop> {
        let (number, blob) = (c.buffer, batch.blobs.find(&c.source)?);
        let session = self.device(at)?;
        let buffer = session.buffer(number)?;
        if blob.bytes() != buffer.bytes {
            return Err(Cause::Length {
                what: "the blob".to_owned(),
                left: blob.bytes(),
                other: format!("buffer {}", number.0),
                right: buffer.bytes,
            }
            .into());
        }
        // What a peer knows of has to stay where it is.
        let is_sole = buffer.is_sole() && !session.registrations.contains_key(&number);
        let buffer = buffer.clone();
        let is_own = match batch.sender {
            Sender::Client => session.belongs_to(batch.owner),
            // It is the client's memory, or no other request has it.
            Sender::Peer | Sender::PeerOfAll => true,
        };
        let device = session.open_device()?;
        match blob {
            Blob::Private(bytes) => {
                device.copy_in(buffer.span(), Source::Bytes(bytes))?;
            }
            Blob::Staged(range) => {
                // Another's blob, or one that is needed more than once, has to stay as it is.
                let may = is_sole && is_own && Rc::strong_count(range) == 1;
                if may
                    && !batch.names_twice(&c.source)
                    && let Some(region) = device.adopt(&buffer.region, range)
                {
                    let buffer = Buffer { region: Rc::new(region), ..buffer };
                    session.buffers.insert(number, buffer);
                    return DONE;
                }
                let fence = device.copy_in(buffer.span(), Source::Staged(range))?;
                session.keep_staged(fence, Rc::clone(range));
            }
        }
        DONE
    }

    /// Bytes are sent straight from where the device has them. Where later commands of the batch
    /// may change them first, they are taken from a copy that the device makes.
    pub(super) fn copy_out(
        &mut self,
        at: SessionId,
        number: BufferNumber,
        use_of_output: UseOfOutput,
    ) -> Result<Step, Stop> {
        let session = self.device(at)?;
        let mut buffer = session.buffer(number)?.clone();
        if use_of_output == UseOfOutput::Dropped {
            return DONE;
        }
        let device = session.open_device()?;
        if use_of_output == UseOfOutput::SentAfterOthers {
            let copy = Rc::new(device.alloc(buffer.bytes)?);
            let copy = Buffer { region: copy, offset: 0, bytes: buffer.bytes };
            device.copy(copy.span(), buffer.span())?;
            buffer = copy;
        }
        let reading = read(at, &mut **device, buffer)?;
        Ok(Step::Wait(reading.wait(), Pending::Bytes(reading)))
    }

    /// Begins to read what an output did not hold yet.
    ///
    /// # Errors
    ///
    /// Where its session has ended or its device is lost.
    pub fn read_on(&mut self, rest: Rest) -> Result<Reading, Cause> {
        let Rest { session, buffer } = rest;
        match self.device(session) {
            Ok(state) => read(session, &mut **state.open_device()?, buffer),
            Err(Stop::Failed(cause)) => Err(cause),
            Err(Stop::Retry(WaitFor::Device { session, fence })) => {
                let output = Output::Later(Rest { session, buffer });
                Ok(Reading { session, fence, output })
            }
            Err(Stop::Retry(_) | Stop::Forward(_)) => Err(Cause::SessionEnded),
        }
    }

    /// What was read, once [`Reading::wait`] is over.
    ///
    /// # Errors
    ///
    /// Where the device was lost before.
    pub fn finish_reading(&mut self, reading: Reading) -> Result<Output, Cause> {
        self.finished(reading.session, reading.fence)?;
        Ok(reading.output)
    }

    fn check_new_buffer(&self, at: SessionId, number: BufferNumber) -> Result<(), Cause> {
        let session = self.get(at)?;
        let limit = self.limits.buffers_per_session_max;
        if session.buffers.contains_key(&number) {
            Err(Cause::BufferExists { buffer: number.0 })
        } else if session.buffers.len() >= limit {
            Err(Cause::Limit { what: "buffers", limit })
        } else {
            Ok(())
        }
    }
}
