//! A compiler that is a library, loaded at run time.
//!
//! Owns: opening it, finding its functions, and saying where it came from. A library stays loaded
//! for good: its functions are called through plain pointers, and compilers leave threads and exit
//! handlers behind.

use std::ffi::{CStr, OsStr, c_void};
use std::mem::{ManuallyDrop, MaybeUninit};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use libloading::os::unix::{self, RTLD_LOCAL, RTLD_NOW};

/// A library that will not be unloaded.
#[derive(Debug)]
pub(super) struct Library(ManuallyDrop<unix::Library>);

impl Library {
    /// Opens a library by its path, or by its name through the loader's search.
    pub(super) fn open(name: &OsStr) -> Result<Library, String> {
        // SAFETY: what the library does when it is loaded is as trusted as the operator who
        // installed it: it is found by fixed names in the loader's search, or by a path from the
        // server's configuration. This process does nothing else meanwhile.
        let opened = unsafe { unix::Library::open(Some(name), RTLD_NOW | RTLD_LOCAL) };
        opened.map(|library| Library(ManuallyDrop::new(library))).map_err(|e| reason(&e))
    }

    /// A function of the library.
    ///
    /// # Safety
    ///
    /// `F` is the type of a pointer to the function of this name.
    pub(super) unsafe fn function<F: Copy>(&self, name: &CStr) -> Result<F, String> {
        // SAFETY: passed on to the caller.
        let symbol = unsafe { self.0.get::<F>(name) };
        // The copy outlives the symbol's borrow: the library is never unloaded.
        symbol.map(|symbol| *symbol).map_err(|e| reason(&e))
    }

    /// The file that a function of this library was loaded from.
    pub(super) fn path(&self, name: &CStr) -> Option<PathBuf> {
        // SAFETY: any symbol has an address; it is not called.
        let symbol = unsafe { self.0.get::<*const c_void>(name) }.ok()?;
        let mut found = MaybeUninit::<libc::Dl_info>::zeroed();
        // SAFETY: `found` is writable. The address only has to be some number.
        if unsafe { libc::dladdr(symbol.as_raw_ptr(), found.as_mut_ptr()) } == 0 {
            return None;
        }
        // SAFETY: its members are pointers, for which zero is valid, and the call has succeeded.
        let found = unsafe { found.assume_init() };
        if found.dli_fname.is_null() {
            return None;
        }
        // SAFETY: the loader's own string, which lives as long as the library, which is for ever.
        let path = unsafe { CStr::from_ptr(found.dli_fname) };
        PathBuf::from(OsStr::from_bytes(path.to_bytes())).canonicalize().ok()
    }
}

/// The loader's own words, without the layers around them.
fn reason(error: &libloading::Error) -> String {
    use std::error::Error;
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}
