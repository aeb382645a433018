//! Whether registered memory is still in the pages that it was registered in.
//!
//! A real card knows pages, not addresses. Those that the system takes back under a registration,
//! or puts others in the place of, it goes on reading and writing, where nobody else looks. This
//! library goes by addresses and would see the new ones; so it asks the kernel whether each page is
//! mapped as it was found.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::LazyLock;

unsafe extern "C" {
    safe fn getpagesize() -> std::ffi::c_int;
}

/// A word for each page of this process.
static PAGEMAP: LazyLock<Option<File>> = LazyLock::new(|| File::open("/proc/self/pagemap").ok());
const WORD_BYTES: usize = 8;
/// In memory, or on its way to another place there.
const MAPPED: u64 = 1 << 63 | 1 << 62;

fn pages(address: usize, bytes: usize) -> std::ops::Range<usize> {
    let page_bytes = usize::try_from(getpagesize()).expect("pages have a length");
    address / page_bytes..(address + bytes).div_ceil(page_bytes)
}

/// Has the kernel map every page.
///
/// # Safety
///
/// The bytes are mapped.
pub(crate) unsafe fn touch(address: usize, bytes: usize) {
    let page_bytes = usize::try_from(getpagesize()).expect("pages have a length");
    for page in pages(address, bytes) {
        let place = std::ptr::with_exposed_provenance::<u8>((page * page_bytes).max(address));
        // SAFETY: in a page of the caller's bytes.
        unsafe { place.read_volatile() };
    }
}

/// Whether no page was taken away since it was touched. Nobody can say where the kernel does not.
pub(crate) fn are_there(address: usize, bytes: usize) -> bool {
    let pages = pages(address, bytes);
    let mut words = vec![0; pages.len() * WORD_BYTES];
    let at = (pages.start * WORD_BYTES) as u64;
    let read = PAGEMAP.as_ref().map(|map| map.read_exact_at(&mut words, at));
    !matches!(read, Some(Ok(())))
        || words
            .as_chunks::<WORD_BYTES>()
            .0
            .iter()
            .all(|word| u64::from_ne_bytes(*word) & MAPPED != 0)
}
