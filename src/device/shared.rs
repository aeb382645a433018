//! Memory that the server and a worker process both see.
//!
//! Owns: [`Budget`] (how much memory the whole server may hand out), `Segment` (one sealed memfd,
//! mapped here), [`Heap`] (allocates [`Range`]s from segments).
//!
//! Each heap belongs to exactly one session, or to one connection's staging, and segments are
//! never passed from heap to heap: the memory of one session is never seen by another, scrubbed or
//! not.
//!
//! Absent: who else maps a segment, and when they let go (`imports`); when memory that queued work
//! may still touch can be used again (`slot`, `isolated`).

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, OnceLock};

use offset_allocator::{Allocation, Allocator};
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};

use super::DeviceError;
use super::slot::{Dead, Graveyard};
use crate::config::DeviceLimits;
use crate::cores;

/// Sizes and offsets are 64 bits wide on the wire and in packets; so are this machine's pointers.
pub(super) fn to_usize(n: u64) -> usize {
    const { assert!(usize::BITS == 64) };
    usize::try_from(n).expect("pointers have 64 bits")
}

/// The converse of [`to_usize`].
pub(super) fn to_u64(n: usize) -> u64 {
    u64::try_from(n).expect("pointers have 64 bits")
}

/// How much memory all heaps together may hand out.
#[derive(Debug)]
pub struct Budget {
    limit: u64,
    used: AtomicU64,
}

impl Budget {
    /// A budget of `limit` bytes.
    #[must_use]
    pub fn new(limit: u64) -> Budget {
        Budget { limit, used: AtomicU64::new(0) }
    }

    /// Bytes handed out and not yet given back.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: u64) -> Result<(), DeviceError> {
        let add = |used: u64| used.checked_add(bytes).filter(|total| *total <= self.limit);
        match self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add) {
            Ok(_) => Ok(()),
            Err(used) => Err(self.refusal(bytes, used)),
        }
    }

    fn refusal(&self, asked: u64, used: u64) -> DeviceError {
        DeviceError::OutOfMemory { asked, free: self.limit - used, limit: self.limit }
    }

    fn give(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

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
        // SAFETY: the kernel chooses a free address range; nothing here lies in it.
        let base = unsafe { rustix::mm::mmap(std::ptr::null_mut(), bytes, access, flags, fd, 0)? };
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
    mapping: Mapping,
    fd: OwnedFd,
}

impl SharedFile {
    fn create(name: &str, bytes: usize) -> io::Result<SharedFile> {
        let fd = create_sealed(name, bytes)?;
        Ok(SharedFile { mapping: Mapping::open(&fd, bytes, true)?, fd })
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
}

impl Segment {
    pub(super) fn create(name: &str, bytes: u64) -> Result<Rc<Segment>, DeviceError> {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let file = SharedFile::create(name, to_usize(bytes))
            .map_err(|e| DeviceError::Failed { what: "memory", why: e.to_string() })?;
        let id = LAST.fetch_add(1, Ordering::Relaxed) + 1;
        let importers = RefCell::default();
        Ok(Rc::new(Segment { id, file: Some(Arc::new(file)), importers }))
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

    /// Has `grave` told when this segment is gone, so that its worker forgets it too.
    pub(super) fn tell(&self, grave: &Rc<Graveyard>) {
        let mut importers = self.importers.borrow_mut();
        importers.retain(|importer| importer.strong_count() > 0);
        importers.push(Rc::downgrade(grave));
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        for grave in self.importers.get_mut().drain(..).filter_map(|grave| grave.upgrade()) {
            grave.push(Dead::Segment(self.id));
        }
        let file = self.file.take().expect("taken only here");
        if file.mapping().bytes() >= DeviceLimits::UNMAP_ELSEWHERE_BYTES_MIN {
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
            receiver.into_iter().for_each(drop);
        };
        std::thread::Builder::new().name(name).spawn(run).ok().map(|_| sender)
    });
    if let Some(janitor) = janitor {
        // A failed send hands the file back in its error, which drops it here.
        drop(janitor.send(file));
    }
}

/// Allocates memory of one session, or of one connection's staging.
#[derive(Clone)]
pub struct Heap(Rc<HeapState>);

struct HeapState {
    budget: Arc<Budget>,
    /// What this heap holds of the budget.
    used: Cell<u64>,
    /// Where large freed blocks wait until the worker's queue knows of them. Without one they are
    /// free at once.
    grave: Option<Rc<Graveyard>>,
    areas: RefCell<BTreeMap<u64, Area>>,
}

/// A segment from which many ranges are cut.
struct Area {
    segment: Rc<Segment>,
    allocator: Allocator,
    used: u64,
}

impl Heap {
    /// A heap whose freed memory can be used again at once, as staging is.
    #[must_use]
    pub fn new(budget: Arc<Budget>) -> Heap {
        Self::with(budget, None)
    }

    /// The heap of a device, whose queue hears of freed memory through `grave`.
    pub(super) fn of_device(budget: Arc<Budget>, grave: Rc<Graveyard>) -> Heap {
        Self::with(budget, Some(grave))
    }

    fn with(budget: Arc<Budget>, grave: Option<Rc<Graveyard>>) -> Heap {
        Heap(Rc::new(HeapState { budget, used: Cell::new(0), grave, areas: RefCell::default() }))
    }

    /// Whether `block` came from here.
    pub(super) fn owns(&self, block: &Block) -> bool {
        Rc::ptr_eq(&self.0, &block.heap)
    }

    /// `bytes` bytes, aligned to [`DeviceLimits::UNIT_BYTES`]; none is taken for one.
    ///
    /// # Errors
    ///
    /// [`DeviceError::OutOfMemory`] past the budget, [`DeviceError::Failed`] where the system gives
    /// no memory or no descriptor.
    pub fn alloc(&self, bytes: u64) -> Result<Range, DeviceError> {
        let budget = &self.0.budget;
        if bytes > DeviceLimits::ALLOCATION_BYTES_MAX {
            return Err(budget.refusal(bytes, budget.used()));
        }
        let whole = bytes.max(1).next_multiple_of(DeviceLimits::UNIT_BYTES);
        budget.take(whole)?;
        self.0.used.update(|used| used + whole);
        let place = match whole {
            DeviceLimits::OWN_SEGMENT_BYTES_MIN.. => own_segment(whole),
            _ => self.0.cut(whole),
        };
        match place {
            Ok((segment, offset, allocation)) => {
                let heap = Rc::clone(&self.0);
                let charged = Cell::new(whole);
                let block = Block { heap, segment, offset, bytes, whole, charged, allocation };
                Ok(Range(Rc::new(block)))
            }
            Err(error) => {
                self.0.give(whole);
                Err(error)
            }
        }
    }

    /// As [`Self::alloc`], for bytes that arrive little by little. Of a large range nothing is
    /// charged yet: its pages come into being when they are written, which [`Range::charge`] is to
    /// be told before.
    ///
    /// # Errors
    ///
    /// Those of [`Self::alloc`].
    pub fn reserve(&self, bytes: u64) -> Result<Range, DeviceError> {
        if bytes < DeviceLimits::OWN_SEGMENT_BYTES_MIN {
            return self.alloc(bytes);
        }
        let budget = &self.0.budget;
        if bytes > DeviceLimits::ALLOCATION_BYTES_MAX.min(budget.limit) {
            return Err(budget.refusal(bytes, budget.used()));
        }
        let whole = bytes.next_multiple_of(DeviceLimits::UNIT_BYTES);
        let (segment, offset, allocation) = own_segment(whole)?;
        let heap = Rc::clone(&self.0);
        let charged = Cell::new(0);
        Ok(Range(Rc::new(Block { heap, segment, offset, bytes, whole, charged, allocation })))
    }

    /// Makes a block that waited in the graveyard usable again.
    pub(super) fn free(&self, freed: &Freed) {
        self.0.free(freed);
    }
}

type Place = (Rc<Segment>, u64, Option<Allocation>);

fn own_segment(bytes: u64) -> Result<Place, DeviceError> {
    let page = to_u64(rustix::param::page_size());
    Ok((Segment::create("outboard-region", bytes.next_multiple_of(page))?, 0, None))
}

impl HeapState {
    fn cut(&self, whole: u64) -> Result<Place, DeviceError> {
        let units = u32::try_from(whole / DeviceLimits::UNIT_BYTES).expect("below a segment");
        let mut areas = self.areas.borrow_mut();
        for area in areas.values_mut() {
            if let Some(place) = area.cut(units) {
                return Ok(place);
            }
        }
        let mut area = Area::create()?;
        let place = area.cut(units).expect("an empty segment has room for all that comes here");
        areas.insert(area.segment.id(), area);
        Ok(place)
    }

    fn free(&self, freed: &Freed) {
        self.give(freed.charged);
        let Some(allocation) = freed.allocation else { return };
        let mut areas = self.areas.borrow_mut();
        let area = areas.get_mut(&freed.segment.id()).expect("an area outlives its blocks");
        area.allocator.free(allocation);
        area.used -= freed.whole;
        if area.used == 0 && areas.values().filter(|area| area.used == 0).nth(1).is_some() {
            let emptied = areas.remove(&freed.segment.id());
            drop(areas);
            drop(emptied);
        }
    }

    fn give(&self, bytes: u64) {
        self.used.update(|used| used - bytes);
        self.budget.give(bytes);
    }
}

impl Drop for HeapState {
    /// Blocks that still wait in the graveyard of a device that is gone.
    fn drop(&mut self) {
        self.budget.give(self.used.get());
    }
}

impl fmt::Debug for Heap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Heap({} bytes)", self.0.used.get())
    }
}

impl Area {
    fn create() -> Result<Area, DeviceError> {
        let segment = Segment::create("outboard-heap", DeviceLimits::SEGMENT_BYTES)?;
        let units = DeviceLimits::SEGMENT_BYTES / DeviceLimits::UNIT_BYTES;
        let units = u32::try_from(units).expect("a segment has few units");
        let allocations = DeviceLimits::SEGMENT_ALLOCATIONS_MAX;
        Ok(Area { segment, allocator: Allocator::with_max_allocs(units, allocations), used: 0 })
    }

    fn cut(&mut self, units: u32) -> Option<Place> {
        let allocation = self.allocator.allocate(units)?;
        self.used += u64::from(units) * DeviceLimits::UNIT_BYTES;
        let offset = u64::from(allocation.offset) * DeviceLimits::UNIT_BYTES;
        Some((Rc::clone(&self.segment), offset, Some(allocation)))
    }
}

/// Memory of a heap, returned to it when the last owner lets go.
pub(super) struct Block {
    heap: Rc<HeapState>,
    segment: Rc<Segment>,
    offset: u64,
    bytes: u64,
    /// `bytes` rounded up to units.
    whole: u64,
    /// What it has taken from the budget.
    charged: Cell<u64>,
    allocation: Option<Allocation>,
}

impl Block {
    pub(super) fn segment(&self) -> &Rc<Segment> {
        &self.segment
    }

    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    fn address(&self, offset: u64, bytes: u64) -> NonNull<u8> {
        let inside = offset.checked_add(bytes).is_some_and(|end| end <= self.whole);
        assert!(inside, "bytes outside of their block");
        self.segment.mapping().at(self.offset + offset, bytes).expect("a block is in its segment")
    }

    /// The bytes at `offset`. See [`Range::slice`].
    pub(super) fn slice(&self, offset: u64, bytes: u64) -> &[u8] {
        let address = self.address(offset, bytes);
        // SAFETY: the address range is mapped and readable as long as the segment, which `self`
        // holds. Another process may write it; see `Range::slice` for why that does no harm.
        unsafe { std::slice::from_raw_parts(address.as_ptr(), to_usize(bytes)) }
    }

    /// Copies bytes to `offset`.
    pub(super) fn write(&self, offset: u64, bytes: &[u8]) {
        let address = self.address(offset, to_u64(bytes.len()));
        // SAFETY: mapped for as many bytes, which `address` has checked; overlap is allowed.
        unsafe { std::ptr::copy(bytes.as_ptr(), address.as_ptr(), bytes.len()) };
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let segment = Rc::clone(&self.segment);
        let (offset, whole, allocation) = (self.offset, self.whole, self.allocation);
        let freed = Freed { segment, offset, whole, charged: self.charged.get(), allocation };
        let large = whole >= DeviceLimits::DISCARD_BYTES_MIN && allocation.is_some();
        match &self.heap.grave {
            Some(grave) if large && !grave.is_closed() => grave.push(Dead::Block(freed)),
            _ => self.heap.free(&freed),
        }
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes at {} of {:?}", self.bytes, self.offset, self.segment)
    }
}

/// A block that nobody owns any more.
pub(super) struct Freed {
    pub(super) segment: Rc<Segment>,
    pub(super) offset: u64,
    pub(super) whole: u64,
    charged: u64,
    allocation: Option<Allocation>,
}

/// A piece of shared memory, returned to its heap when dropped.
#[derive(Debug)]
pub struct Range(Rc<Block>);

impl Range {
    /// Length in bytes, as asked for.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.bytes
    }

    pub(super) fn block(&self) -> &Rc<Block> {
        &self.0
    }

    /// Charges the first `bytes` bytes of a range from [`Heap::reserve`], in steps that are large
    /// against a receive and small against the budget.
    ///
    /// # Errors
    ///
    /// [`DeviceError::OutOfMemory`] past the budget.
    pub fn charge(&self, bytes: u64) -> Result<(), DeviceError> {
        let Block { heap, charged, whole, .. } = &*self.0;
        let wanted = bytes.next_multiple_of(DeviceLimits::CHARGE_BYTES).min(*whole);
        let more = wanted.saturating_sub(charged.get());
        heap.budget.take(more)?;
        heap.used.update(|used| used + more);
        charged.update(|charged| charged + more);
        Ok(())
    }

    /// The bytes.
    ///
    /// A worker process may map the same memory and change it at any time, so what is read here
    /// may differ from read to read. It is sound for what the server does with it: the bytes are
    /// only copied or handed to system calls, and no decision is taken on a byte that was read
    /// before.
    #[must_use]
    pub fn slice(&self) -> &[u8] {
        self.0.slice(0, self.0.bytes)
    }

    /// The bytes, to be written. The caveat of [`Self::slice`] holds.
    #[must_use]
    pub fn slice_mut(&mut self) -> &mut [u8] {
        let address = self.0.address(0, self.0.bytes);
        // SAFETY: mapped and writable as long as the segment; ranges of one heap do not overlap,
        // and `&mut self` keeps this process's other uses of this range out. For other processes
        // see `slice`.
        unsafe { std::slice::from_raw_parts_mut(address.as_ptr(), to_usize(self.0.bytes)) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn heap(limit: u64) -> (Heap, Arc<Budget>) {
        let budget = Arc::new(Budget::new(limit));
        (Heap::new(Arc::clone(&budget)), budget)
    }

    #[test]
    fn range_reserved_is_charged_as_it_fills() {
        let (heap, budget) = heap(100 << 20);
        let range = heap.reserve(90 << 20).expect("within the budget");
        assert_eq!(budget.used(), 0);
        range.charge(1).expect("within the budget");
        assert_eq!(budget.used(), DeviceLimits::CHARGE_BYTES);
        range.charge(90 << 20).expect("within the budget");
        assert_eq!(budget.used(), 90 << 20);
        let other = heap.reserve(90 << 20).expect("nothing is charged yet");
        assert!(matches!(other.charge(90 << 20), Err(DeviceError::OutOfMemory { .. })));
        assert!(matches!(heap.reserve(101 << 20), Err(DeviceError::OutOfMemory { .. })));
        drop((range, other));
        assert_eq!(budget.used(), 0);
    }

    fn place(range: &Range) -> (u64, std::ops::Range<u64>) {
        let block = range.block();
        (block.segment.id(), block.offset..block.offset + block.whole)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn ranges_never_overlap_and_all_comes_back(
            steps in prop::collection::vec(
                (any::<prop::sample::Index>(), 0..40_u64 << 20, any::<bool>()),
                0..60,
            ),
        ) {
            let (heap, budget) = heap(1 << 40);
            let mut ranges: Vec<Range> = Vec::new();
            for (index, bytes, small) in steps {
                if bytes % 3 == 0 && !ranges.is_empty() {
                    ranges.swap_remove(index.index(ranges.len()));
                    continue;
                }
                let range = heap.alloc(if small { bytes % 5000 } else { bytes }).unwrap();
                let (segment, new) = place(&range);
                prop_assert!(new.start.is_multiple_of(DeviceLimits::UNIT_BYTES));
                prop_assert!(range.slice().as_ptr().addr().is_multiple_of(128));
                for (other, old) in ranges.iter().map(place) {
                    prop_assert!(other != segment || new.end <= old.start || old.end <= new.start);
                }
                ranges.push(range);
            }
            let held: u64 = ranges.iter().map(|range| range.block().whole).sum();
            prop_assert_eq!(budget.used(), held);
            drop(ranges);
            prop_assert_eq!(budget.used(), 0);
            prop_assert!(heap.0.areas.borrow().len() <= 1, "one empty segment is kept");
        }
    }

    #[test]
    fn budget_is_shared_by_heaps_and_returned_by_ranges() {
        let (heap, budget) = heap(1 << 20);
        let other = Heap::new(Arc::clone(&budget));
        let range = heap.alloc(1 << 19).unwrap();
        let error = other.alloc((1 << 19) + 1).unwrap_err();
        let DeviceError::OutOfMemory { asked, free, limit } = error else { panic!("{error}") };
        assert_eq!((asked, free, limit), ((1 << 19) + 128, 1 << 19, 1 << 20));
        drop(range);
        assert!(other.alloc(1 << 20).is_ok());
    }

    #[test]
    fn bytes_past_a_range_are_not_reached() {
        let (heap, _) = heap(1 << 30);
        let mut range = heap.alloc(1000).unwrap();
        assert_eq!((range.slice().len(), range.slice_mut().len()), (1000, 1000));
        let mapping = range.block().segment.mapping();
        assert!(mapping.at(DeviceLimits::SEGMENT_BYTES - 1, 1).is_some());
        assert!(mapping.at(DeviceLimits::SEGMENT_BYTES, 1).is_none());
        assert!(mapping.at(u64::MAX, 2).is_none());
    }

    #[test]
    fn read_only_descriptor_cannot_be_mapped_for_writing() {
        let (heap, _) = heap(1 << 30);
        let mut range = heap.alloc(4096).unwrap();
        range.slice_mut().fill(7);
        let file = range.block().segment.file();
        let (fd, bytes) = (file.read_only().unwrap(), file.mapping().bytes());
        assert!(Mapping::open(&fd, bytes, true).is_err());
        let theirs = Mapping::open(&fd, bytes, false).unwrap();
        let first = theirs.at(range.block().offset, 1).unwrap();
        // SAFETY: mapped for one byte at least.
        assert_eq!(unsafe { first.read() }, 7);
    }

    #[test]
    fn segment_can_neither_shrink_nor_grow() {
        let fd = create_sealed("outboard-test", 4096).unwrap();
        assert!(rustix::fs::ftruncate(&fd, 0).is_err());
        assert!(rustix::fs::ftruncate(&fd, 8192).is_err());
    }
}
