//! Memory of buffers that network cards reach.
//!
//! Owns: how a buffer is registered: as it is where the server has its memory, else by a descriptor
//! that its device is asked for first; and that a device sees what peers have written. Absent: whom
//! it is registered for (`rdma`).
//!
//! A network card knows pages and no queue. So memory is registered once the device is past all
//! work that it was given before: that may still write to a buffer that lay there earlier, or give
//! its pages back to the system, and what the card reads and writes would be nobody's.
//!
//! A peer writes at any time, without a word to this server. Its client has the server wait: for
//! an event that the peer's server sets, or until it has heard of the copy's end itself. Either way
//! the work that is to see the bytes comes in a later turn of the engine than the bytes. So a
//! device whose memory peers may write is told before the first work of each turn.

use std::time::Instant;

use super::buffer::Buffer;
use super::peer::Parcel;
use super::session::SessionId;
use super::{Cause, Engine, Stop, WaitFor};
use crate::device::Fence;
use crate::device::export::Export;
use crate::rdma::{Promise, Reach};
use crate::wire::command::BufferNumber;

/// What is known of a buffer's memory, once somebody asked.
#[derive(Debug)]
pub(super) enum Reachable {
    /// Of the server's own memory: it is registered once the device is past this.
    After(Fence),
    /// Its device has been asked for a descriptor.
    Asked(Export),
    /// Device or card have said that it cannot be reached.
    Never,
    Registered(Promise),
}

/// What comes of asking.
pub(super) enum Found {
    Never,
    /// Of a device's memory only once it is registered.
    Registered(Promise),
    /// There is nothing to be told yet.
    Wait(WaitFor),
}

impl Engine {
    /// The registration of what has this number, which is begun where there is none.
    pub(super) fn registration(
        &mut self,
        id: SessionId,
        number: BufferNumber,
        reach: &dyn Reach,
        now: Instant,
    ) -> Result<Found, Stop> {
        let session = self.get_mut(id)?;
        let (buffer, after) = (session.buffer(number)?.clone(), session.last());
        let known = session.registrations.remove(&number);
        let (found, known) = self.register(id, (&buffer, after), known, reach, now)?;
        self.get_mut(id)?.registrations.insert(number, known);
        Ok(found)
    }

    /// The registration of what a copy found by its number, whatever has that now.
    pub(super) fn registration_of(
        &mut self,
        parcel: &mut Parcel,
        reach: &dyn Reach,
        now: Instant,
    ) -> Result<Found, Stop> {
        let (id, number) = parcel.from;
        let session = self.get_mut(id)?;
        let is_named = session.buffer(number).is_ok_and(|named| named.is_same(&parcel.buffer));
        let known = match is_named {
            true => session.registrations.remove(&number),
            false => parcel.reachable.take(),
        };
        let buffer = (&parcel.buffer, parcel.after);
        let (found, known) = self.register(id, buffer, known, reach, now)?;
        match is_named {
            true => drop(self.get_mut(id)?.registrations.insert(number, known)),
            false => parcel.reachable = Some(known),
        }
        Ok(found)
    }

    /// A further step towards a buffer's registration.
    fn register(
        &mut self,
        id: SessionId,
        (buffer, after): (&Buffer, Option<(SessionId, Fence)>),
        known: Option<Reachable>,
        reach: &dyn Reach,
        now: Instant,
    ) -> Result<(Found, Reachable), Stop> {
        let memory = buffer.shared_bytes();
        let is_device = memory.is_none();
        let known = match known {
            Some(known) => known,
            None if is_device => self.ask_device(id, buffer)?,
            None => Reachable::After(after.map_or_else(Fence::default, |(_, fence)| fence)),
        };
        let known = match (known, memory) {
            (Reachable::After(fence), Some(memory)) if self.is_past(id, fence, now)? => {
                Reachable::Registered(reach.register(memory))
            }
            (Reachable::Asked(export), _) if self.is_past(id, export.fence(), now)? => {
                match export.take() {
                    Some(memory) => Reachable::Registered(reach.register_device(memory)),
                    None => Reachable::Never,
                }
            }
            (known, _) => known,
        };
        let wait = |fence| Found::Wait(WaitFor::Device { session: id, fence });
        Ok(match known {
            Reachable::After(fence) => (wait(fence), known),
            Reachable::Asked(ref export) => (wait(export.fence()), known),
            Reachable::Never => (Found::Never, known),
            Reachable::Registered(ref promise) => match promise.target() {
                Some(Err(_)) if is_device => (Found::Never, Reachable::Never),
                None if is_device && !promise.is_late(now) => {
                    (Found::Wait(WaitFor::Rdma(promise.awaited())), known)
                }
                _ => (Found::Registered(promise.clone()), known),
            },
        })
    }

    fn ask_device(&mut self, id: SessionId, buffer: &Buffer) -> Result<Reachable, Stop> {
        Ok(match self.device(id)?.open_device()?.export(buffer.span()) {
            Ok(Some(export)) => Reachable::Asked(export),
            Ok(None) => Reachable::Never,
            Err(error) => {
                tracing::debug!(%error, "a buffer is out of the network card's reach");
                Reachable::Never
            }
        })
    }

    /// Whether a device is past this work.
    fn is_past(&mut self, id: SessionId, fence: Fence, now: Instant) -> Result<bool, Stop> {
        if !self.get_mut(id)?.reached(fence, now) {
            return Ok(false);
        }
        self.finished(id, fence)?;
        Ok(true)
    }

    /// Peers may write memory of a session's device from now on.
    pub(super) fn expose(&mut self, id: SessionId, number: BufferNumber) -> Result<(), Cause> {
        let session = self.get_mut(id)?;
        if session.buffer(number)?.shared_bytes().is_none() {
            session.is_exposed = true;
        }
        Ok(())
    }
}
