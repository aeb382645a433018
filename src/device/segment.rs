//! Memory that the server and a worker process both see, as the system gives it.
//!
//! Owns: `Mapping`, `SharedFile` (a sealed memfd, mapped here), `Segment` (one such file with the
//! list of who else maps it), and how pages come into being. Absent: allocation (`shared`).
//!
//! A page that is touched for the first time costs several times what it costs to fill it. Where
//! many are to be filled, they are made beforehand, as huge pages where the kernel has them: on the
//! machine where this was measured 11 GB/s of pages come into being that way, and 1 GB/s by being
//! touched. Huge pages also make a worker's first access to memory that the server filled free.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};

use super::DeviceError;
use super::shared::{to_u64, to_usize};
use super::slot::{Dead, Graveyard};
use crate::config::{CoreLimits, DeviceLimits};
use crate::cores;

/// Length of a huge page where pages have 4 KiB. Elsewhere the kernel refuses to make one, and
/// small ones are made instead.
const HUGE_PAGE_BYTES: u64 = 2 << 20;

/// Mapped shared memory.
pub(super) struct Mapping {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: a mapping is plain memory that belongs to no thread; `Mapping` hands out pointers only,
// and unmaps when the last owner lets go.
unsafe impl Send for Mapping {}
// SAFETY: as for `Send`; there is no interior state besides the shared bytes, whose users keep the
// rules of `Range` and of `timeline::Words`.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the whole of a file of `bytes` bytes. `writable` must be what the descriptor allows.
    pub(super) fn open(fd: &OwnedFd, bytes: usize, writable: bool) -> io::Result<Mapping> {
        let mut access = ProtFlags::READ;
        access.set(ProtFlags::WRITE, writable);
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        let hint = if to_u64(bytes) < HUGE_PAGE_BYTES { NO_HINT } else { aligned_room(bytes)? };
        // SAFETY: the kernel chooses a free address range, near the hint where that is free;
        // nothing here lies in it.
        let base = unsafe { rustix::mm::mmap(hint, bytes, access, flags, fd, 0)? };
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Mapping { base, bytes })
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The address of `bytes` bytes at `offset`, if they lie inside.
    pub(super) fn at(&self, offset: u64, bytes: u64) -> Option<NonNull<u8>> {
        let end = offset.checked_add(bytes)?;
        if end > to_u64(self.bytes) {
            return None;
        }
        // SAFETY: `offset` is at most the length of the mapping, checked above.
        Some(unsafe { self.base.add(to_usize(offset)) })
    }
}

impl Mapping {
    /// Makes the pages from `start` to `end`, huge ones where `huge` says so. False where huge ones
    /// cannot be had. Where nothing can be had the pages come into being when they are touched.
    fn make_pages(&self, start: u64, end: u64, huge: bool) -> bool {
        let page = to_u64(rustix::param::page_size());
        let (first, last) = (start.next_multiple_of(HUGE_PAGE_BYTES), end & !(HUGE_PAGE_BYTES - 1));
        let mut made = huge;
        if huge && first < last {
            // The kernel makes huge pages only where there is a small one.
            let pieces = (first..last).step_by(to_usize(HUGE_PAGE_BYTES));
            let touched = pieces.map(|at| self.advise(at, page, libc::MADV_POPULATE_WRITE));
            made = touched.fold(true, |all, one| all & one)
                && self.advise(first, last - first, libc::MADV_COLLAPSE);
        }
        let start = start & !(page - 1);
        self.advise(start, end.next_multiple_of(page) - start, libc::MADV_POPULATE_WRITE);
        made
    }

    fn advise(&self, offset: u64, bytes: u64, advice: libc::c_int) -> bool {
        let bytes = bytes.min(to_u64(self.bytes).saturating_sub(offset));
        let Some(at) = self.at(offset, bytes) else { return false };
        // SAFETY: inside of the mapping, and neither advice changes what is read there.
        unsafe { libc::madvise(at.as_ptr().cast(), to_usize(bytes), advice) == 0 }
    }
}

const NO_HINT: *mut std::ffi::c_void = std::ptr::null_mut();

/// An address where a mapping of `bytes` bytes can have huge pages. It is free, unless another
/// thread takes it meanwhile; then the mapping goes elsewhere.
fn aligned_room(bytes: usize) -> io::Result<*mut std::ffi::c_void> {
    let whole = bytes + to_usize(HUGE_PAGE_BYTES);
    let (access, flags) = (ProtFlags::empty(), MapFlags::PRIVATE | MapFlags::NORESERVE);
    // SAFETY: the kernel chooses a free address range; nothing here lies in it.
    let room = unsafe { rustix::mm::mmap_anonymous(NO_HINT, whole, access, flags)? };
    // SAFETY: just mapped, and nobody knows of it.
    unsafe { rustix::mm::munmap(room, whole)? };
    Ok(room.map_addr(|address| address.next_multiple_of(to_usize(HUGE_PAGE_BYTES))))
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `open` and is unmapped only here; whoever had pointers
        // into it held this value.
        let unmapped = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.bytes) };
        debug_assert!(unmapped.is_ok(), "a mapping can be unmapped");
    }
}

/// A sealed memfd and its mapping in this process. It can neither shrink nor grow, so no access
/// inside the mapping can fault for lack of a file.
pub(super) struct SharedFile {
    /// What drivers know of the memory, which ends before the memory does: fields are dropped in
    /// this order.
    attached: Mutex<Vec<Box<dyn Any + Send>>>,
    is_claimed: AtomicBool,
    mapping: Mapping,
    is_writable: bool,
    fd: OwnedFd,
}

impl SharedFile {
    fn create(name: &str, bytes: usize) -> io::Result<SharedFile> {
        let fd = create_sealed(name, bytes)?;
        SharedFile::open(fd, bytes, true)
    }

    /// A file of another process. `is_writable` must be what the descriptor allows.
    fn open(fd: OwnedFd, bytes: usize, is_writable: bool) -> io::Result<SharedFile> {
        let mapping = Mapping::open(&fd, bytes, is_writable)?;
        let (attached, is_claimed) = (Mutex::default(), AtomicBool::new(false));
        Ok(SharedFile { attached, is_claimed, mapping, is_writable, fd })
    }

    /// Whether this process may write there.
    pub(super) fn is_writable(&self) -> bool {
        self.is_writable
    }

    /// Keeps something until right before the memory is unmapped.
    pub(super) fn attach(&self, what: Box<dyn Any + Send>) {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner).push(what);
    }

    /// Makes the caller the one that may do with the memory what can be done once at a time. False
    /// where there is one.
    pub(super) fn claim(&self) -> bool {
        !self.is_claimed.swap(true, Ordering::AcqRel)
    }

    /// Lets another caller do it.
    pub(super) fn disclaim(&self) {
        self.is_claimed.store(false, Ordering::Release);
    }

    pub(super) fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    /// A descriptor of the same memory through which nobody can ever write.
    pub(super) fn read_only(&self) -> io::Result<OwnedFd> {
        let path = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
    }
}

impl AsFd for SharedFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A memfd of fixed length, not executable where the kernel knows how to say so (6.3).
pub(super) fn create_sealed(name: &str, bytes: usize) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = match rustix::fs::memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        Err(rustix::io::Errno::INVAL) => rustix::fs::memfd_create(name, flags)?,
        created => created?,
    };
    rustix::fs::ftruncate(&fd, to_u64(bytes))?;
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(fd)
}

/// Memory shared with workers, and the list of workers that map it.
pub(super) struct Segment {
    id: u64,
    file: Option<Arc<SharedFile>>,
    importers: RefCell<Vec<Weak<Graveyard>>>,
    /// Up to here pages exist, as far as is known.
    warm: Cell<u64>,
    /// Whether huge pages are worth asking for.
    huge: Cell<bool>,
}

static COUNT: AtomicU64 = AtomicU64::new(0);

impl Segment {
    /// How many there are in this process.
    pub(super) fn count() -> u64 {
        COUNT.load(Ordering::Relaxed)
    }

    pub(super) fn create(name: &str, bytes: u64) -> Result<Rc<Segment>, DeviceError> {
        let file = SharedFile::create(name, to_usize(bytes))
            .map_err(|e| DeviceError::Failed { what: "memory", why: e.to_string() })?;
        Ok(Segment::of(file))
    }

    /// A segment of another process. `writable` must be what the descriptor allows.
    pub(super) fn open(fd: OwnedFd, bytes: u64, writable: bool) -> io::Result<Rc<Segment>> {
        Ok(Segment::of(SharedFile::open(fd, to_usize(bytes), writable)?))
    }

    fn of(file: SharedFile) -> Rc<Segment> {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let id = LAST.fetch_add(1, Ordering::Relaxed) + 1;
        COUNT.fetch_add(1, Ordering::Relaxed);
        let (file, importers) = (Some(Arc::new(file)), RefCell::default());
        let (warm, huge) = (Cell::new(0), Cell::new(true));
        Rc::new(Segment { id, file, importers, warm, huge })
    }

    /// No two segments of this process ever have the same.
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn file(&self) -> &Arc<SharedFile> {
        self.file.as_ref().expect("taken only by drop")
    }

    pub(super) fn mapping(&self) -> &Mapping {
        self.file().mapping()
    }

    /// Makes pages up to `bytes`, which are about to be filled.
    pub(super) fn warm_up(&self, bytes: u64) {
        let bytes = bytes.min(to_u64(self.mapping().bytes()));
        if bytes > self.warm.get() {
            // Where it failed once it is not tried again: a failure may take long.
            self.huge.set(self.mapping().make_pages(self.warm.get(), bytes, self.huge.get()));
            self.warm.set(bytes);
        }
    }

    /// Whether all of its pages exist.
    pub(super) fn is_warm(&self) -> bool {
        self.warm.get() >= to_u64(self.mapping().bytes())
    }

    /// Has `grave` told when this segment is gone, so that its worker forgets it too.
    pub(super) fn tell(&self, grave: &Rc<Graveyard>) {
        let mut importers = self.importers.borrow_mut();
        importers.retain(|importer| importer.strong_count() > 0);
        importers.push(Rc::downgrade(grave));
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        COUNT.fetch_sub(1, Ordering::Relaxed);
        for grave in self.importers.get_mut().drain(..).filter_map(|grave| grave.upgrade()) {
            grave.push(Dead::Segment(self.id));
        }
        let file = self.file.take().expect("taken only here");
        // What a driver knows of it takes long to end.
        let is_claimed = file.is_claimed.load(Ordering::Acquire);
        if is_claimed || file.mapping().bytes() >= DeviceLimits::UNMAP_ELSEWHERE_BYTES_MIN {
            unmap_elsewhere(file);
        }
    }
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Segment({}, {} bytes)", self.id, self.mapping().bytes())
    }
}

/// Drops a mapping on a thread that has nothing else to do: freeing gigabytes of pages takes a
/// good part of a second. Where the thread cannot be had, the caller pays.
fn unmap_elsewhere(file: Arc<SharedFile>) {
    static JANITOR: OnceLock<Option<Sender<Arc<SharedFile>>>> = OnceLock::new();
    let janitor = JANITOR.get_or_init(|| {
        let (sender, receiver) = mpsc::channel();
        let name = "outboard-memory".to_owned();
        let run = move || {
            cores::spread();
            cores::step_back(CoreLimits::WORKER_NICE);
            cores::take_turns(CoreLimits::LONG_TURN);
            receiver.into_iter().for_each(drop);
        };
        std::thread::Builder::new().name(name).spawn(run).ok().map(|_| sender)
    });
    if let Some(janitor) = janitor {
        // A failed send hands the file back in its error, which drops it here.
        drop(janitor.send(file));
    }
}
