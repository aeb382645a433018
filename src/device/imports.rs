//! What one worker has mapped.
//!
//! Owns: the numbers of segments in the worker's table, and the descriptors that are on their way
//! to it. A segment is imported when the first packet that names it is queued. Its descriptor goes
//! through the socket, in the order of the import packets; what the socket does not take at once
//! is sent later, and a worker that finds none rings the doorbell and waits. Ends of channels
//! between workers go the same way.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use super::packet::Address;
use super::shared::{Segment, SharedFile};
use super::slot::{Graveyard, Slots};

#[derive(Default)]
pub(super) struct Imports {
    slots: Slots,
    by_segment: BTreeMap<u64, Import>,
    /// The segment that was found last, which most memory of a session lies in, and its number.
    found: Cell<Option<(u64, u32)>>,
    unsent: VecDeque<Unsent>,
}

#[derive(Clone, Copy)]
struct Import {
    slot: u32,
    writable: bool,
}

enum Unsent {
    /// The end of a channel.
    Channel(OwnedFd),
    Segment {
        file: Arc<SharedFile>,
        writable: bool,
    },
}

impl Imports {
    /// The segment's number in the worker's table, if it has one.
    pub(super) fn find(&self, segment: u64) -> Option<u32> {
        if let Some((found, slot)) = self.found.get()
            && found == segment
        {
            return Some(slot);
        }
        let slot = self.by_segment.get(&segment)?.slot;
        self.found.set(Some((segment, slot)));
        Some(slot)
    }

    /// Whether the worker has the segment, and cannot write it.
    pub(super) fn is_read_only(&self, segment: u64) -> bool {
        self.by_segment.get(&segment).is_some_and(|import| !import.writable)
    }

    /// A number in the worker's table. `None` where it is full.
    pub(super) fn reserve(&mut self) -> Option<u32> {
        let slot = self.slots.take();
        if slot >= Address::SEGMENTS_MAX {
            self.slots.give(slot);
            return None;
        }
        Some(slot)
    }

    /// The number is free for packets queued from now on.
    pub(super) fn release(&mut self, slot: u32) {
        self.slots.give(slot);
    }

    /// Gives the segment a number. Its import packet is queued next. `None` where the table is
    /// full.
    pub(super) fn add(
        &mut self,
        segment: &Rc<Segment>,
        writable: bool,
        grave: &Rc<Graveyard>,
    ) -> Option<u32> {
        let slot = self.reserve()?;
        self.by_segment.insert(segment.id(), Import { slot, writable });
        segment.tell(grave);
        self.unsent.push_back(Unsent::Segment { file: Arc::clone(segment.file()), writable });
        Some(slot)
    }

    /// The end of a channel is what the packet queued last asks for.
    pub(super) fn pass(&mut self, channel: OwnedFd) {
        self.unsent.push_back(Unsent::Channel(channel));
    }

    /// The segment is gone. Its number, if it had one, is free for packets queued from now on.
    pub(super) fn remove(&mut self, segment: u64) -> Option<u32> {
        self.found.set(None);
        let Import { slot, .. } = self.by_segment.remove(&segment)?;
        self.slots.give(slot);
        Some(slot)
    }

    /// Sends what the socket takes.
    pub(super) fn flush(&mut self, socket: &OwnedFd) -> io::Result<()> {
        while let Some(unsent) = self.unsent.front() {
            let sent = match unsent {
                Unsent::Channel(end) => send(socket, b"\0", &[end.as_fd()]),
                Unsent::Segment { file, writable: true } => send(socket, b"\0", &[file.as_fd()]),
                Unsent::Segment { file, writable: false } => {
                    send(socket, b"\0", &[file.read_only()?.as_fd()])
                }
            };
            match sent {
                // The second: too many descriptors of this user are on their way to others.
                Err(Errno::AGAIN | Errno::TOOMANYREFS) => return Ok(()),
                sent => sent?,
            }
            self.unsent.pop_front();
        }
        Ok(())
    }
}

/// Sends a few bytes with descriptors, all or nothing.
pub(super) fn send(socket: &OwnedFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fits = control.push(SendAncillaryMessage::ScmRights(fds));
    assert!(fits, "at most two descriptors");
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    match rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags) {
        // The worker is gone; its end is reported by the one who reaps it.
        Err(Errno::PIPE | Errno::CONNRESET) | Ok(_) => Ok(()),
        Err(error) => Err(error),
    }
}
