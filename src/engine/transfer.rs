//! Copies between two sessions' buffers.
//!
//! Owns: [`Copying`], a copy of which a part is queued: where bytes go through the host's memory, a
//! device takes long copies in parts.

use super::batch::Pending;
use super::buffer::Buffer;
use super::session::SessionId;
use super::{Cause, DONE, Engine, Step, Stop};
use crate::device::Device;
use crate::wire::command;

/// A copy between two sessions that is under way.
#[derive(Debug)]
pub(super) struct Copying {
    source: SessionId,
    destination: SessionId,
    from: Buffer,
    to: Buffer,
    /// Bytes up to here are queued.
    queued: u64,
}

/// Queues as much of a copy of the first `bytes` bytes as `device` takes in one call, from `at` on.
/// How far that goes.
pub(super) fn copy_on(
    device: &mut dyn Device,
    [to, from]: [&Buffer; 2],
    bytes: u64,
    at: u64,
) -> Result<u64, Cause> {
    let part = device.copy_bytes_max(&from.region).min(bytes - at);
    device.copy(to.part(at, part), from.part(at, part))?;
    Ok(at + part)
}

impl Engine {
    /// The copy runs in the destination's queue. The source's queue does not go on to later work,
    /// which may overwrite the source, until the copy is done.
    pub(super) fn transfer(
        &mut self,
        at: SessionId,
        c: &command::Transfer<'_>,
    ) -> Result<Step, Stop> {
        if c.destination_session.host != self.get(at)?.host() {
            return self.transfer_to_peer(at, c);
        }
        let to_id = self.other_session(at, &c.destination_session)?;
        let from = self.device(at)?.buffer(c.source)?.clone();
        let to = self.device(to_id)?.buffer(c.destination)?.clone();
        if from.bytes != to.bytes {
            return Err(Cause::Length {
                what: format!("source buffer {}", c.source.0),
                left: from.bytes,
                other: format!("destination buffer {}", c.destination.0),
                right: to.bytes,
            }
            .into());
        }
        if to_id == at {
            self.get_mut(at)?.open_device()?.copy(to.span(), from.span())?;
            return DONE;
        }
        let written = self.get_mut(at)?.signal()?;
        self.get_mut(to_id)?.open_device()?.wait(&written)?;
        self.transfer_on(Copying { source: at, destination: to_id, from, to, queued: 0 })
    }

    /// Goes on with a copy, as far as there is room.
    pub(super) fn transfer_on(&mut self, mut copying: Copying) -> Result<Step, Stop> {
        let Copying { source, destination, ref from, ref to, ref mut queued } = copying;
        let copied = loop {
            // The source has its part in each, and waits for the last.
            let source = self.device(source).map(drop);
            match source.and_then(|()| self.device(destination)) {
                Ok(session) => {
                    let device = session.open_device()?.as_mut();
                    match copy_on(device, [to, from], from.bytes, *queued) {
                        Ok(until) => *queued = until,
                        Err(cause) => break Err(cause),
                    }
                }
                Err(Stop::Retry(room)) => {
                    return Ok(Step::Wait(room, Pending::Transfer(Box::new(copying))));
                }
                Err(stop) => return Err(stop),
            }
            if *queued == from.bytes {
                break Ok(());
            }
        };
        // The source may be read even where the copy has failed.
        let read = self.get_mut(destination)?.signal();
        if let Ok(read) = &read {
            self.get_mut(source)?.wait_for_reader(read)?;
        }
        copied.and(read.map(drop))?;
        DONE
    }
}
