//! Memory of the fake GPUs by its descriptor: a file in memory, whose position says which of its
//! pages are meant.
//!
//! Like the kernel, this looks at what a descriptor is and whether the bytes lie inside.

use std::ffi::{c_int, c_void};
use std::ptr::null_mut;

use crate::map::{READ_WRITE, SHARED, mmap, munmap};

unsafe extern "C" {
    fn lseek(file: c_int, to: i64, from: c_int) -> i64;
}

const CURRENT: c_int = 1;
const PAGE: u64 = 4096;

/// Bytes that are mapped as long as the value lives.
pub(crate) struct Mapped {
    base: *mut c_void,
    bytes: usize,
    offset: usize,
}

// SAFETY: plain memory that belongs to no thread.
unsafe impl Send for Mapped {}

impl Mapped {
    /// The part at `offset` of what a descriptor is of, if it is of a device's memory.
    pub(crate) fn of_descriptor(file: c_int, offset: u64, length: usize) -> Option<Mapped> {
        let path = std::fs::read_link(format!("/proc/self/fd/{file}")).ok()?;
        if !path.to_string_lossy().starts_with("/memfd:fake-gpu-memory") {
            return None;
        }
        // SAFETY: asks where the position is.
        let place = u64::try_from(unsafe { lseek(file, 0, CURRENT) }).ok()?;
        let (first, pages) = (place >> 32, place & u64::from(u32::MAX));
        if offset.checked_add(length as u64)? > pages * PAGE {
            return None;
        }
        let bytes = usize::try_from(pages * PAGE).ok()?;
        let from = i64::try_from(first * PAGE).ok()?;
        // SAFETY: the kernel maps the file where nothing is, or refuses.
        let base = unsafe { mmap(null_mut(), bytes, READ_WRITE, SHARED, file, from) };
        let offset = usize::try_from(offset).ok()?;
        (base.addr() != usize::MAX).then_some(Mapped { base, bytes, offset })
    }

    pub(crate) fn address(&self) -> usize {
        self.base.expose_provenance() + self.offset
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: mapped with this length, and taken back under the lock of the tables, without
        // which nobody looks there.
        unsafe { munmap(self.base, self.bytes) };
    }
}
