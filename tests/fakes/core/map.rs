//! The system's mappings, which the standard library does not have.

use std::ffi::{c_int, c_void};

unsafe extern "C" {
    pub(crate) fn mmap(
        at: *mut c_void,
        bytes: usize,
        protection: c_int,
        flags: c_int,
        file: c_int,
        from: i64,
    ) -> *mut c_void;
    pub(crate) fn munmap(at: *mut c_void, bytes: usize) -> c_int;
}

pub(crate) const READ_WRITE: c_int = 3;
pub(crate) const SHARED: c_int = 1;
