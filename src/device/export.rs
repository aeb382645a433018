//! Memory of a device that network cards reach, on its way to whoever tells a card of it.
//!
//! Owns: [`CardMemory`], a descriptor and which of its bytes are meant, and [`Export`], the promise
//! of one. Absent: who makes it (`gpu`), and the network card.
//!
//! What a worker process says is believed by nobody: the kernel looks at what the descriptor is,
//! and that the bytes lie inside, when a card is told of it. What is behind it can be nothing that
//! the worker could not have reached itself.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::Fence;
use super::worker;

/// Memory of a device, by a descriptor (`dmabuf`).
#[derive(Debug)]
pub struct CardMemory {
    descriptor: OwnedFd,
    offset: u64,
    bytes: u64,
}

impl CardMemory {
    pub(super) fn new(descriptor: OwnedFd, offset: u64, bytes: u64) -> CardMemory {
        CardMemory { descriptor, offset, bytes }
    }

    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    /// Where the bytes begin in what the descriptor is of.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// How many they are.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// Memory that a device was asked for.
pub struct Export {
    fence: Fence,
    way: Way,
}

enum Way {
    /// Through a channel from the process that drives the device.
    Channel {
        end: OwnedFd,
        bytes: u64,
    },
    Here(CardMemory),
}

impl Export {
    pub(super) fn here(fence: Fence, memory: CardMemory) -> Export {
        Export { fence, way: Way::Here(memory) }
    }

    pub(super) fn through(fence: Fence, end: OwnedFd, bytes: u64) -> Export {
        Export { fence, way: Way::Channel { end, bytes } }
    }

    /// When it is there.
    #[must_use]
    pub fn fence(&self) -> Fence {
        self.fence
    }

    /// What has come of it, after the fence. `None` where it could not be had.
    #[must_use]
    pub fn take(self) -> Option<CardMemory> {
        match self.way {
            Way::Here(memory) => Some(memory),
            Way::Channel { end, bytes } => {
                let (descriptor, offset) = worker::receive_exported(end.as_fd())?;
                Some(CardMemory { descriptor, offset, bytes })
            }
        }
    }
}

impl fmt::Debug for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Export(at {:?})", self.fence)
    }
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketFlags, SocketType};

    use super::*;
    use crate::device::imports;

    /// What comes of a worker that sends these bytes with so many descriptors.
    fn taken(bytes: &[u8], descriptors: usize) -> Option<CardMemory> {
        let (family, kind) = (AddressFamily::UNIX, SocketType::STREAM);
        let pair = rustix::net::socketpair(family, kind, SocketFlags::CLOEXEC, None);
        let (ours, theirs) = pair.unwrap();
        let file = tempfile::tempfile().unwrap();
        match descriptors {
            0 if bytes.is_empty() => {}
            0 => drop(rustix::io::write(&theirs, bytes).unwrap()),
            _ => imports::send(&theirs, bytes, &vec![file.as_fd(); descriptors]).unwrap(),
        }
        Export::through(Fence(1), ours, 100).take()
    }

    #[test]
    fn worker_that_sends_anything_else_has_nothing_to_reach() {
        let memory = taken(&7_u64.to_ne_bytes(), 1).unwrap();
        assert_eq!((memory.offset(), memory.bytes()), (7, 100));
        assert!(taken(&[], 0).is_none(), "it is gone or has nothing to send");
        assert!(taken(&[0; 8], 0).is_none());
        assert!(taken(&[0; 4], 1).is_none());
        assert!(taken(&[0; 8], 2).is_none());
    }
}
