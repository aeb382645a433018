//! Copies between two sessions' buffers.

use super::session::SessionId;
use super::{Cause, DONE, Engine, Step, Stop};
use crate::wire::command;

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
        let destination = self.get_mut(to_id)?;
        let device = destination.open_device()?;
        device.wait(&written)?;
        device.copy(to.span(), from.span())?;
        let read = destination.signal()?;
        self.get_mut(at)?.wait_for_reader(&read)?;
        DONE
    }
}
