//! Buffers that the kernel takes for bytes that have arrived, and gets back.
//!
//! A receive that waits holds none of them: the kernel picks one when there is something to put
//! into it. So idle connections cost no buffer, and a few buffers serve many busy ones.
//!
//! Absent: what to do when none is left (`io`).

use std::cell::Cell;
use std::io;
use std::ops::Deref;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::IoUring;
use io_uring::types::BufRingEntry;
use rustix::mm::{MapFlags, ProtFlags};

/// Name of the one group of buffers that a ring has.
pub(super) const GROUP: u16 = 0;

/// The buffers, and the ring through which the kernel gets them.
pub(super) struct Chunks {
    /// The kernel's ring of free buffers, in front of the buffers themselves.
    base: NonNull<u8>,
    mapped_bytes: usize,
    ring_bytes: usize,
    chunk_bytes: usize,
    /// A power of two.
    count: u16,
    tail: Cell<u16>,
}

/// A buffer with what was received into it; goes back when dropped.
pub(in crate::shard) struct Chunk {
    chunks: Rc<Chunks>,
    id: u16,
    bytes: usize,
}

impl Chunks {
    /// Buffers for `uring`, which has to be gone, or to refer to nothing any more, before they are.
    pub(super) fn register(
        uring: &IoUring,
        count: u16,
        chunk_bytes: usize,
    ) -> io::Result<Rc<Chunks>> {
        let count = count.next_power_of_two();
        let entries = usize::from(count) * size_of::<BufRingEntry>();
        let ring_bytes = entries.next_multiple_of(rustix::param::page_size());
        let mapped_bytes = ring_bytes + usize::from(count) * chunk_bytes;
        let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: the kernel chooses a free address range; nothing here lies in it.
        let base = unsafe {
            rustix::mm::mmap_anonymous(std::ptr::null_mut(), mapped_bytes, access, flags)?
        };
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        let tail = Cell::new(0);
        let chunks = Chunks { base, mapped_bytes, ring_bytes, chunk_bytes, count, tail };
        let address = base.as_ptr().addr() as u64;
        // SAFETY: the range is page-aligned, holds `count` entries and stays mapped as long as the
        // ring uses it, which the caller promises.
        unsafe {
            uring.submitter().register_buf_ring_with_flags(address, count, GROUP, 0)?;
        }
        (0..count).for_each(|id| chunks.give(id));
        Ok(Rc::new(chunks))
    }

    /// The buffer that a completion named, with what came into it.
    pub(super) fn taken(self: &Rc<Self>, id: u16, bytes: usize) -> Chunk {
        assert!(id < self.count && bytes <= self.chunk_bytes, "the kernel names a known buffer");
        Chunk { chunks: Rc::clone(self), id, bytes }
    }

    fn address(&self, id: u16) -> NonNull<u8> {
        let offset = self.ring_bytes + usize::from(id) * self.chunk_bytes;
        // SAFETY: `id` is below `count`, so the offset lies in the mapping.
        unsafe { self.base.add(offset) }
    }

    /// Lets the kernel have a buffer.
    fn give(&self, id: u16) {
        let tail = self.tail.get();
        let entries: NonNull<BufRingEntry> = self.base.cast();
        let at = usize::from(tail & (self.count - 1));
        // SAFETY: `at` is below the number of entries, which lie at the start of the mapping.
        let entry = unsafe { entries.add(at) };
        // SAFETY: the mapping begins zeroed, which is a valid entry, and the kernel reads entries
        // in front of the tail only, so nobody else uses this one. One thread has the value.
        let entry = unsafe { &mut *entry.as_ptr() };
        entry.set_addr(self.address(id).as_ptr().addr() as u64);
        entry.set_len(u32::try_from(self.chunk_bytes).expect("a buffer is small"));
        entry.set_bid(id);
        self.tail.set(tail.wrapping_add(1));
        // SAFETY: the entries begin at `base` and are initialised.
        let shared = unsafe { BufRingEntry::tail(entries.as_ptr()) };
        // SAFETY: the tail is two bytes inside the first entry, aligned, which the setters above do
        // not touch; this process and the kernel use it atomically.
        let shared = unsafe { AtomicU16::from_ptr(shared.cast_mut()) };
        shared.store(self.tail.get(), Ordering::Release);
    }
}

impl Drop for Chunks {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `register` and is unmapped only here; chunks hold this
        // value, and `register`'s caller keeps it as long as the kernel uses it.
        let unmapped = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.mapped_bytes) };
        debug_assert!(unmapped.is_ok(), "a mapping can be unmapped");
    }
}

impl Deref for Chunk {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let address = self.chunks.address(self.id);
        // SAFETY: `bytes` is at most the buffer's length; the kernel has given this buffer to the
        // completion that made `self` and touches it no more until `drop` gives it back.
        unsafe { std::slice::from_raw_parts(address.as_ptr(), self.bytes) }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        self.chunks.give(self.id);
    }
}
