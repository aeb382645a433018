//! Pinned memory through which bytes pass on their way to the device and back.
//!
//! Owns: [`Inbox`] (a ring for short uploads), [`Outbox`] (pieces for downloads, lent to whoever
//! sends them on). Absent: large uploads, which the device's thread carries (`clerk`).

use std::collections::VecDeque;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use super::clerk::{Clerk, Home, Lent};
use super::handles::{Context, Pinned};
use super::queue::{Lane, Queue};
use crate::config::GpuLimits;
use crate::device::shared::{to_u64, to_usize};
use crate::device::{DeviceError, HostBytes, Visible};

/// Alignment of what lies in the ring: a cache line.
const ALIGN: usize = 64;

/// A ring of pinned memory. Places are taken and come free in the same order.
pub(super) struct Inbox {
    memory: Pinned,
    /// Bytes ever taken and ever freed, gaps at the end of the memory included.
    taken: usize,
    freed: usize,
    /// What is in use: until which work, and what is free after it.
    used: VecDeque<(Lane, u64, usize)>,
    /// Memory of its own for what the ring had no room for.
    extra: Vec<(Lane, u64, Pinned)>,
}

impl Inbox {
    pub(super) fn new(memory: Pinned) -> Inbox {
        Inbox { memory, taken: 0, freed: 0, used: VecDeque::new(), extra: Vec::new() }
    }

    /// Whether there is room for `bytes` bytes.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.place(bytes).is_some()
    }

    /// Until which work the ring has to wait for half of its memory.
    pub(super) fn halfway(&self) -> Option<u64> {
        let half = self.freed + self.memory.bytes() / 2;
        let enough = self.used.iter().find(|(_, _, end)| *end >= half);
        enough.or(self.used.back()).map(|(_, number, _)| *number)
    }

    fn place(&self, bytes: usize) -> Option<usize> {
        let length = self.memory.bytes();
        let at = self.taken.next_multiple_of(ALIGN);
        let at = if at % length + bytes > length { at.next_multiple_of(length) } else { at };
        (bytes <= length && at + bytes - self.freed <= length).then_some(at)
    }

    /// Puts bytes in, calls `copy` with their address, and keeps them until the work that it
    /// numbers is done.
    pub(super) fn pass(
        &mut self,
        bytes: &[u8],
        lane: Lane,
        context: &Arc<Context>,
        copy: impl FnOnce(NonNull<u8>) -> Result<u64, DeviceError>,
    ) -> Result<u64, DeviceError> {
        let Some(at) = self.place(bytes.len()) else {
            let memory = Pinned::create(context, bytes.len())?;
            memory.write(0, bytes);
            let number = copy(memory.part(0, bytes.len()))?;
            self.extra.push((lane, number, memory));
            return Ok(number);
        };
        let offset = at % self.memory.bytes();
        self.memory.write(offset, bytes);
        let number = copy(self.memory.part(offset, bytes.len()))?;
        self.taken = at + bytes.len();
        self.used.push_back((lane, number, self.taken));
        Ok(number)
    }

    /// Frees what the queue is past; gives what is to be given back.
    pub(super) fn look(&mut self, queue: &Queue) -> impl Iterator<Item = Pinned> {
        while let Some((lane, number, end)) = self.used.front()
            && *number <= queue.done(*lane)
        {
            self.freed = *end;
            self.used.pop_front();
        }
        let over = |(lane, number, _): &mut (Lane, u64, Pinned)| *number <= queue.done(*lane);
        let over: Vec<_> = match self.extra.is_empty() {
            true => Vec::new(),
            false => self.extra.extract_if(.., over).collect(),
        };
        over.into_iter().map(|(_, _, memory)| memory)
    }

    pub(super) fn into_memory(self) -> impl Iterator<Item = Pinned> {
        let extra = self.extra.into_iter().map(|(_, _, memory)| memory);
        std::iter::once(self.memory).chain(extra)
    }
}

/// Pieces of pinned memory for downloads.
pub(super) struct Outbox {
    home: Home,
    /// Lent, and to be kept until the work is done, whatever becomes of the borrower.
    held: VecDeque<(Lane, u64, Arc<Lent>)>,
}

impl Outbox {
    pub(super) fn new(pieces: Vec<Pinned>) -> Outbox {
        Outbox { home: Arc::new(Mutex::new(Some(pieces))), held: VecDeque::new() }
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Option<Vec<Pinned>>> {
        self.home.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A piece for a download.
    pub(super) fn lend(
        &self,
        context: &Arc<Context>,
        clerk: &Clerk,
    ) -> Result<Arc<Lent>, DeviceError> {
        let kept = self.kept().as_mut().and_then(Vec::pop);
        let memory = match kept {
            Some(memory) => memory,
            None => Pinned::create(context, GpuLimits::OUT_PIECE_BYTES)?,
        };
        Ok(Arc::new(Lent::new(memory, &self.home, clerk)))
    }

    pub(super) fn hold(&mut self, lane: Lane, number: u64, lent: Arc<Lent>) {
        self.held.push_back((lane, number, lent));
    }

    /// Lets go of what the queue is past.
    pub(super) fn look(&mut self, queue: &Queue) {
        self.held.retain(|(lane, number, _)| *number > queue.done(*lane));
    }

    /// What is lent, and what is not.
    pub(super) fn close(self) -> (Vec<Arc<Lent>>, Vec<Pinned>) {
        let kept = self.kept().take().unwrap_or_default();
        (self.held.into_iter().map(|(_, _, lent)| lent).collect(), kept)
    }
}

/// What a borrower sees.
pub(super) fn host_bytes(lent: Arc<Lent>, bytes: u64) -> HostBytes {
    HostBytes { memory: Rc::new(Window(lent)), offset: 0, bytes }
}

struct Window(Arc<Lent>);

impl std::fmt::Debug for Window {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", to_u64(self.0.memory().bytes()))
    }
}

impl Visible for Window {
    fn slice(&self, offset: u64, bytes: u64) -> &[u8] {
        let at = self.0.memory().part(to_usize(offset), to_usize(bytes));
        // SAFETY: mapped and initialised as long as the piece, which `self` keeps. The device may
        // write there until the fence; what was said of `Range::slice` holds here too.
        unsafe { std::slice::from_raw_parts(at.as_ptr(), to_usize(bytes)) }
    }
}
