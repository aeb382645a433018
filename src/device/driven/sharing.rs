//! Memory of a driven device that others get: other workers, and network cards.
//!
//! Owns: what a worker does about it. The server asks, and makes the channel through which the
//! descriptor goes; where there is none, the channel's end says so. Absent: what the server does
//! with it (`passage`, `remote`).

use std::os::fd::AsFd;

use super::{Driven, End, Memory, Then, region, span};
use crate::device::packet::Address;
use crate::device::{DeviceError, imports, worker};

impl Driven<'_> {
    /// Makes memory that another worker shares, which hears nothing where there is none.
    pub(super) fn share(&mut self, segment: u32, bytes: u64) -> Result<(), End> {
        let channel = worker::receive_segment(self.socket)?;
        let region = match self.device.share(bytes) {
            Ok((region, memory)) => {
                // What was in that memory before is gone by then.
                self.after(self.device.last(), Then::Share { channel, memory });
                Memory::Region(region)
            }
            Err(DeviceError::Failed { .. }) => Memory::Unshared,
            Err(error) => return Err(error.into()),
        };
        worker::put(&mut self.segments, segment, Some(region));
        Ok(())
    }

    /// Takes memory that another worker shares, if there is any, and says what came of it.
    pub(super) fn open_shared(
        &mut self,
        segment: u32,
        bytes: u64,
        status: Address,
    ) -> Result<(), End> {
        let channel = worker::receive_segment(self.socket)?;
        let opened = match worker::receive_shared(channel.as_fd()) {
            Some(memory) => self.device.open_shared(memory.as_fd(), bytes),
            None => Err(DeviceError::Failed { what: "shared memory", why: "none came".to_owned() }),
        };
        let (region, why) = match opened {
            Ok(region) => (Some(Memory::Region(region)), None),
            Err(error @ DeviceError::Failed { .. }) => (None, Some(error.to_string())),
            Err(error) => return Err(error.into()),
        };
        worker::put(&mut self.segments, segment, region);
        Ok(self.say(status, why.as_deref())?)
    }

    /// Hands a descriptor of memory to the server, for a network card.
    pub(super) fn export(&mut self, at: Address, bytes: u64) -> Result<(), End> {
        let channel = worker::receive_segment(self.socket)?;
        let span = span(region(&self.segments, at)?, at.offset(), bytes)?;
        match self.device.export(span) {
            Ok(Some(export)) => {
                if let Some(memory) = export.take() {
                    let offset = memory.offset().to_ne_bytes();
                    // Where it cannot be sent, the server sees the channel's end.
                    let _ = imports::send(&channel, &offset, &[memory.descriptor()]);
                }
                Ok(())
            }
            Ok(None) | Err(DeviceError::Failed { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
