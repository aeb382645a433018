//! Allocation of memory that the server and a worker process both see.
//!
//! Owns: [`Heap`], which cuts [`Range`]s from segments, and what it keeps of them. Reading order:
//! `budget` (how much memory the whole server may hand out), `segment` (what the system gives),
//! this file.
//!
//! Each heap belongs to one session, to one connection's staging, or to what one command of another
//! server's asks for ([`Heap::apart`]). Only in one way does memory pass from one to another: a
//! blob that fills a whole buffer becomes that buffer's memory, and the segment that the buffer had
//! goes to the connection's staging in return, once the queue is past it. Both belong to one
//! client: the memory of one client is never seen by another, scrubbed or not. Memory for new
//! buffers comes from the session's own heap alone.
//!
//! Absent: who else maps a segment, and when they let go (`imports`); when memory that queued work
//! may still touch can be used again (`slot`, `isolated`).

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use offset_allocator::{Allocation, Allocator};

use super::DeviceError;
pub use super::budget::Budget;
use super::budget::Charge;
pub(super) use super::segment::{Mapping, Segment, SharedFile, create_sealed};
use super::slot::{Dead, Graveyard};
use crate::config::DeviceLimits;

/// Sizes and offsets are 64 bits wide on the wire and in packets; so are this machine's pointers.
pub(super) fn to_usize(n: u64) -> usize {
    const { assert!(usize::BITS == 64) };
    usize::try_from(n).expect("pointers have 64 bits")
}

/// The converse of [`to_usize`].
pub(super) fn to_u64(n: usize) -> u64 {
    u64::try_from(n).expect("pointers have 64 bits")
}

/// Allocates memory of one session, or of one connection's staging.
#[derive(Clone)]
pub struct Heap(Rc<HeapState>);

struct HeapState {
    budget: Arc<Budget>,
    kind: Kind,
    areas: RefCell<BTreeMap<u64, Area>>,
    /// Segments that nobody uses, with all their pages, the one kept longest first. Of staging
    /// only.
    kept: RefCell<VecDeque<Rc<Segment>>>,
    kept_bytes: Cell<u64>,
    /// Grows with each allocation.
    uses: Cell<u64>,
    /// The number of uses at a tick, and when that tick first saw it.
    seen: Cell<Option<(u64, Instant)>>,
}

/// What becomes of freed memory.
enum Kind {
    /// Large blocks wait here until the worker's queue knows of them.
    Device(Rc<Graveyard>),
    /// It can be used again at once.
    Scratch,
    /// It can be used again at once, and some is kept for that.
    Staging,
}

/// A segment from which many ranges are cut.
struct Area {
    segment: Rc<Segment>,
    allocator: Allocator,
    used: u64,
    /// Up to here it has been used, so that pages exist.
    top: u64,
    /// What the budget knows of it as kept, while nobody uses it.
    kept: u64,
}

impl Heap {
    /// A heap of staging: one connection's. To be ticked after it was used; see [`Self::tick`].
    #[must_use]
    pub fn new(budget: Arc<Budget>) -> Heap {
        Self::with(budget, Kind::Staging)
    }

    /// The heap of a device, whose queue hears of freed memory through `grave`.
    pub(super) fn of_device(budget: Arc<Budget>, grave: Rc<Graveyard>) -> Heap {
        Self::with(budget, Kind::Device(grave))
    }

    /// A heap that keeps nothing and whose freed memory can be used again at once.
    pub(super) fn scratch(budget: Arc<Budget>) -> Heap {
        Self::with(budget, Kind::Scratch)
    }

    /// The same for memory of this one's budget, which has nothing that was another's.
    #[must_use]
    pub fn apart(&self) -> Heap {
        Self::scratch(Arc::clone(&self.0.budget))
    }

    fn with(budget: Arc<Budget>, kind: Kind) -> Heap {
        let (areas, kept) = (RefCell::default(), RefCell::default());
        let (kept_bytes, uses, seen) = (Cell::new(0), Cell::new(0), Cell::new(None));
        Heap(Rc::new(HeapState { budget, kind, areas, kept, kept_bytes, uses, seen }))
    }

    /// Whether `block` belongs to this heap.
    pub(super) fn owns(&self, block: &Block) -> bool {
        Rc::ptr_eq(&self.0, &block.heap.borrow())
    }

    /// `bytes` bytes, aligned to [`DeviceLimits::UNIT_BYTES`]; none is taken for one.
    ///
    /// # Errors
    ///
    /// [`DeviceError::OutOfMemory`] past the budget, [`DeviceError::Failed`] where the system gives
    /// no memory or no descriptor.
    pub fn alloc(&self, bytes: u64) -> Result<Range, DeviceError> {
        if bytes > DeviceLimits::ALLOCATION_BYTES_MAX {
            return Err(self.0.budget.refusal(bytes));
        }
        self.0.uses.update(|uses| uses + 1);
        if bytes >= self.0.own_segment_bytes_min() {
            let whole = page_multiple(bytes);
            let charge = Charge::new(&self.0.budget, whole)?;
            return Ok(self.0.range(own_segment(whole)?, bytes, whole, charge));
        }
        self.0.shared_range(bytes)
    }

    /// As [`Self::alloc`], for bytes that arrive little by little. Of a large range nothing is
    /// charged yet: its pages come into being when they are written, which [`Range::charge`] is to
    /// be told before. If it can be, it is memory whose pages are there already.
    ///
    /// # Errors
    ///
    /// Those of [`Self::alloc`].
    pub fn reserve(&self, bytes: u64) -> Result<Range, DeviceError> {
        if bytes < self.0.own_segment_bytes_min() {
            return self.alloc(bytes);
        }
        let budget = &self.0.budget;
        if bytes > DeviceLimits::ALLOCATION_BYTES_MAX.min(budget.reach(true)) {
            return Err(budget.refusal(bytes));
        }
        self.0.uses.update(|uses| uses + 1);
        if let Some((segment, charge)) = self.0.take_kept(bytes) {
            let whole = to_u64(segment.mapping().bytes());
            return Ok(self.0.range((segment, 0, None), bytes, whole, charge));
        }
        let whole = page_multiple(bytes);
        match own_segment(whole) {
            Ok(place) => Ok(self.0.range(place, bytes, whole, Charge::none(budget))),
            // Of descriptors and mappings there are only so many.
            Err(_) if bytes < DeviceLimits::OWN_SEGMENT_BYTES_MIN => self.0.shared_range(bytes),
            Err(error) => Err(error),
        }
    }

    /// A part of a segment that is not this heap's, kept as long as the range is. `None` where it
    /// has no such part.
    pub(super) fn borrow(&self, segment: &Rc<Segment>, offset: u64, bytes: u64) -> Option<Range> {
        segment.mapping().at(offset, bytes)?;
        let charge = Charge::none(&self.0.budget);
        Some(self.0.range((Rc::clone(segment), offset, None), bytes, bytes, charge))
    }

    /// Makes a block that waited in the graveyard usable again.
    pub(super) fn free(&self, freed: Freed) {
        self.0.free(freed);
    }

    /// Makes staged memory part of this heap, in the place of `old`, of the same length. The two
    /// exchange what they have taken from their budgets, and what `old` has goes to the staging
    /// heap when it is freed. `None` where the staged memory cannot be had.
    pub(super) fn adopt(&self, old: &Block, staged: &Range) -> Option<Range> {
        let block = &staged.0;
        let fits = block.is_stageds_own() && old.bytes == block.bytes && self.owns(old);
        if !fits || Rc::strong_count(block) > 1 {
            return None;
        }
        let (mut ours, mut theirs) = (old.charge.borrow_mut(), block.charge.borrow_mut());
        if theirs.bytes() < block.whole {
            return None;
        }
        ours.raise(block.whole, false).ok()?;
        ours.lower(block.whole);
        theirs.lower(old.whole);
        std::mem::swap(&mut *ours, &mut *theirs);
        drop((ours, theirs));
        let staging = block.heap.replace(Rc::clone(&self.0));
        // A block that was adopted, or replaced, has its staging heap: the same client's.
        let _ = old.staging.set(Rc::clone(&staging));
        let _ = block.staging.set(staging);
        Some(Range(Rc::clone(block)))
    }

    /// The most that one range can ever have, with what its budget may draw on.
    #[must_use]
    pub fn reach(&self) -> u64 {
        self.0.budget.reach(true)
    }

    /// Bytes of segments that nobody uses and that are kept for the next long blobs.
    #[must_use]
    pub fn kept_bytes(&self) -> u64 {
        self.0.kept_bytes.get()
    }

    /// To be called now and then after the heap was used, until it returns false: gives back what
    /// is kept after [`DeviceLimits::KEPT_TIME_MAX`] without use, or where others need it. Returns
    /// whether there is more to come.
    pub fn tick(&self, now: Instant) -> bool {
        let HeapState { budget, areas, kept, uses, seen, .. } = &*self.0;
        if kept.borrow().is_empty() && areas.borrow().is_empty() {
            return false;
        }
        let uses = uses.get();
        let since = seen.get().filter(|(then, _)| *then == uses).map_or(now, |(_, since)| since);
        seen.set(Some((uses, since)));
        let rests = now.saturating_duration_since(since) >= DeviceLimits::KEPT_TIME_MAX;
        if rests || budget.is_short() {
            self.0.let_go();
        }
        !rests
    }
}

type Place = (Rc<Segment>, u64, Option<Allocation>);

fn page_multiple(bytes: u64) -> u64 {
    bytes.next_multiple_of(to_u64(rustix::param::page_size()))
}

fn own_segment(bytes: u64) -> Result<Place, DeviceError> {
    Ok((Segment::create("outboard-region", bytes)?, 0, None))
}

impl HeapState {
    fn own_segment_bytes_min(&self) -> u64 {
        match self.kind {
            Kind::Staging if Segment::count() < DeviceLimits::STAGED_SEGMENTS_MAX => {
                DeviceLimits::STAGED_SEGMENT_BYTES_MIN
            }
            _ => DeviceLimits::OWN_SEGMENT_BYTES_MIN,
        }
    }

    fn range(self: &Rc<Self>, place: Place, bytes: u64, whole: u64, charge: Charge) -> Range {
        let (segment, offset, allocation) = place;
        let (heap, charge) = (RefCell::new(Rc::clone(self)), RefCell::new(charge));
        let staging = OnceCell::new();
        let block = Block { heap, segment, offset, bytes, whole, charge, allocation, staging };
        Range(Rc::new(block))
    }

    /// A part of a segment that others share.
    fn shared_range(self: &Rc<Self>, bytes: u64) -> Result<Range, DeviceError> {
        let whole = bytes.max(1).next_multiple_of(DeviceLimits::UNIT_BYTES);
        let charge = Charge::new(&self.budget, whole)?;
        Ok(self.range(self.cut(whole)?, bytes, whole, charge))
    }

    fn cut(&self, whole: u64) -> Result<Place, DeviceError> {
        let units = u32::try_from(whole / DeviceLimits::UNIT_BYTES).expect("below a segment");
        let mut areas = self.areas.borrow_mut();
        for area in areas.values_mut() {
            if let Some(place) = area.cut(units) {
                self.budget.unkeep(std::mem::take(&mut area.kept));
                return Ok(place);
            }
        }
        let mut area = Area::create()?;
        let place = area.cut(units).expect("an empty segment has room for all that comes here");
        areas.insert(area.segment.id(), area);
        Ok(place)
    }

    fn free(&self, freed: Freed) {
        let Some(allocation) = freed.allocation else { return self.free_segment(freed) };
        let mut areas = self.areas.borrow_mut();
        let area = areas.get_mut(&freed.segment.id()).expect("an area outlives its blocks");
        area.allocator.free(allocation);
        area.used -= freed.whole;
        if area.used > 0 {
            return;
        }
        drop(freed.charge);
        let goes = match self.kind {
            Kind::Staging if self.budget.keep(area.top) => {
                area.kept = area.top;
                false
            }
            Kind::Staging => true,
            Kind::Device(_) | Kind::Scratch => {
                areas.values().filter(|area| area.used == 0).nth(1).is_some()
            }
        };
        if goes {
            let emptied = areas.remove(&freed.segment.id());
            drop(areas);
            drop(emptied);
        }
    }

    /// A segment of its own goes to the client's staging, if it has been there, and is as good as
    /// new memory there.
    fn free_segment(&self, freed: Freed) {
        let Freed { segment, charge, staging, .. } = freed;
        drop(charge);
        match (staging, &self.kind) {
            (Some(staging), _) => staging.keep(segment),
            (None, Kind::Staging) => self.keep(segment),
            (None, _) => {}
        }
    }

    /// Keeps a segment whose pages exist, within bounds. Those make way that have been kept
    /// longest: nobody may ask for their lengths any more.
    fn keep(&self, segment: Rc<Segment>) {
        let bytes = to_u64(segment.mapping().bytes());
        if !segment.is_warm() || bytes > DeviceLimits::KEPT_BYTES_MAX {
            return;
        }
        for _ in 0..=DeviceLimits::KEPT_DROPPED_MAX {
            let room = DeviceLimits::KEPT_BYTES_MAX.saturating_sub(self.kept_bytes.get());
            if bytes <= room && self.budget.keep(bytes) {
                self.kept_bytes.update(|kept| kept + bytes);
                self.kept.borrow_mut().push_back(segment);
                return;
            }
            let Some(oldest) = self.kept.borrow_mut().pop_front() else { return };
            self.unkeep(&oldest);
        }
    }

    fn unkeep(&self, segment: &Segment) -> u64 {
        let bytes = to_u64(segment.mapping().bytes());
        self.kept_bytes.update(|kept| kept - bytes);
        self.budget.unkeep(bytes);
        bytes
    }

    /// The kept segment that fits best, charged to the budget.
    fn take_kept(&self, bytes: u64) -> Option<(Rc<Segment>, Charge)> {
        let mut kept = self.kept.borrow_mut();
        let most = bytes.saturating_add(bytes / DeviceLimits::KEPT_WASTE_DIVISOR);
        let lengths = kept.iter().map(|segment| to_u64(segment.mapping().bytes()));
        let fits = lengths.enumerate().filter(|(_, length)| (bytes..=most).contains(length));
        let (best, _) = fits.min_by_key(|(_, length)| *length)?;
        let segment = kept.remove(best)?;
        let length = self.unkeep(&segment);
        Some((segment, Charge::new(&self.budget, length).ok()?))
    }

    /// Gives back what nobody uses.
    fn let_go(&self) {
        self.budget.unkeep(self.kept_bytes.take());
        let segments = std::mem::take(&mut *self.kept.borrow_mut());
        let areas = self.areas.borrow_mut().extract_if(.., |_, area| area.used == 0).collect();
        let areas: Vec<(u64, Area)> = areas;
        self.budget.unkeep(areas.iter().map(|(_, area)| area.kept).sum());
        drop((segments, areas));
    }
}

impl Drop for HeapState {
    fn drop(&mut self) {
        self.let_go();
    }
}

impl fmt::Debug for Heap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Heap({} areas)", self.0.areas.borrow().len())
    }
}

impl Area {
    fn create() -> Result<Area, DeviceError> {
        let segment = Segment::create("outboard-heap", DeviceLimits::SEGMENT_BYTES)?;
        let units = DeviceLimits::SEGMENT_BYTES / DeviceLimits::UNIT_BYTES;
        let units = u32::try_from(units).expect("a segment has few units");
        let allocations = DeviceLimits::SEGMENT_ALLOCATIONS_MAX;
        let allocator = Allocator::with_max_allocs(units, allocations);
        Ok(Area { segment, allocator, used: 0, top: 0, kept: 0 })
    }

    fn cut(&mut self, units: u32) -> Option<Place> {
        let allocation = self.allocator.allocate(units)?;
        let bytes = u64::from(units) * DeviceLimits::UNIT_BYTES;
        let offset = u64::from(allocation.offset) * DeviceLimits::UNIT_BYTES;
        self.used += bytes;
        self.top = self.top.max(offset + bytes);
        Some((Rc::clone(&self.segment), offset, Some(allocation)))
    }
}

/// Memory of a heap, returned to it when the last owner lets go.
pub(super) struct Block {
    /// Changes when the block is adopted.
    heap: RefCell<Rc<HeapState>>,
    segment: Rc<Segment>,
    offset: u64,
    bytes: u64,
    /// `bytes` rounded up: to units, or to the length of its segment.
    whole: u64,
    charge: RefCell<Charge>,
    allocation: Option<Allocation>,
    /// The staging heap of the client, for a segment that has come from there or goes there.
    staging: OnceCell<Rc<HeapState>>,
}

impl Block {
    pub(super) fn segment(&self) -> &Rc<Segment> {
        &self.segment
    }

    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Whether it is staged memory in a segment of its own.
    fn is_stageds_own(&self) -> bool {
        self.allocation.is_none() && matches!(self.heap.borrow().kind, Kind::Staging)
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
        let heap = Rc::clone(&self.heap.borrow());
        let charge = self.charge.replace(Charge::none(&heap.budget));
        let (segment, staging) = (Rc::clone(&self.segment), self.staging.take());
        let (offset, whole, allocation) = (self.offset, self.whole, self.allocation);
        let freed = Freed { segment, offset, whole, charge, allocation, staging };
        let waits = match freed.allocation {
            Some(_) => whole >= DeviceLimits::DISCARD_BYTES_MIN,
            None => freed.staging.is_some(),
        };
        match &heap.kind {
            Kind::Device(grave) if waits && !grave.is_closed() => grave.push(Dead::Block(freed)),
            // A worker that is about to be killed may still write there.
            Kind::Device(_) if freed.is_segment() => drop(freed),
            _ => heap.free(freed),
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
    charge: Charge,
    allocation: Option<Allocation>,
    staging: Option<Rc<HeapState>>,
}

impl Freed {
    /// Whether it is a whole segment, which others will write at once.
    pub(super) fn is_segment(&self) -> bool {
        self.allocation.is_none()
    }
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
        let Block { charge, whole, segment, .. } = &*self.0;
        let draws = self.0.allocation.is_none();
        let wanted = bytes.next_multiple_of(DeviceLimits::CHARGE_BYTES).min(*whole);
        charge.borrow_mut().raise(wanted, draws)?;
        if draws {
            segment.warm_up(wanted);
        }
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

/// Part of a range that the kernel writes to, for as long as it takes: it keeps the memory.
#[derive(Debug)]
pub struct Landing {
    block: Rc<Block>,
    at: u64,
    bytes: u64,
}

impl Range {
    /// The bytes at `part`, for an operation of the kernel's to write to.
    ///
    /// # Panics
    ///
    /// If they are not in the range.
    #[must_use]
    pub fn landing(&self, part: std::ops::Range<usize>) -> Landing {
        assert!(part.start <= part.end && to_u64(part.end) <= self.0.bytes, "outside of the range");
        let (at, bytes) = (to_u64(part.start), to_u64(part.len()));
        Landing { block: Rc::clone(&self.0), at, bytes }
    }
}

impl Landing {
    /// Where the bytes are: mapped and writable as long as `self` lives.
    #[must_use]
    pub fn address(&self) -> *mut u8 {
        self.block.address(self.at, self.bytes).as_ptr()
    }

    /// How many they are.
    #[must_use]
    pub fn bytes(&self) -> usize {
        to_usize(self.bytes)
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

    fn filled(heap: &Heap, bytes: u64) -> Range {
        let range = heap.reserve(bytes).unwrap();
        for filled in (0..=bytes).step_by(1 << 20).chain([bytes]) {
            range.charge(filled).unwrap();
        }
        range
    }

    #[test]
    fn segment_that_was_filled_is_used_again_where_little_is_wasted() {
        let (heap, budget) = heap(100 << 20);
        let first = filled(&heap, 8 << 20);
        let id = first.block().segment.id();
        drop(first);
        assert_eq!((budget.used(), budget.kept(), heap.kept_bytes()), (0, 8 << 20, 8 << 20));
        for bytes in [6 << 20, (8 << 20) + 1] {
            assert_ne!(filled(&heap, bytes).block().segment.id(), id, "{bytes}");
        }
        let again = heap.reserve(7 << 20).unwrap();
        assert_eq!((again.block().segment.id(), again.bytes()), (id, 7 << 20));
        assert_eq!(budget.used(), 8 << 20, "its pages are there");
        drop(again);
        drop(heap);
        assert_eq!((budget.used(), budget.kept()), (0, 0));
    }

    #[test]
    fn segment_that_was_not_filled_is_not_kept() {
        let (heap, budget) = heap(100 << 20);
        let range = heap.reserve(8 << 20).unwrap();
        range.charge(4 << 20).unwrap();
        drop(range);
        assert_eq!((budget.used(), budget.kept()), (0, 0));
    }

    #[test]
    fn kept_segments_are_bounded_and_make_way() {
        let (heap, budget) = heap(100 << 20);
        let ranges: Vec<Range> = (0..3).map(|_| filled(&heap, 30 << 20)).collect();
        drop(ranges);
        assert_eq!(budget.kept(), 90 << 20);
        let other = Heap::new(Arc::clone(&budget));
        let large = filled(&other, 80 << 20);
        let now = Instant::now();
        assert!(heap.tick(now));
        assert_eq!(budget.kept(), 0, "others come first");
        drop(filled(&heap, 10 << 20));
        assert_eq!(budget.kept(), 10 << 20);
        drop(filled(&other, 15 << 20));
        assert_eq!(other.kept_bytes(), 0, "there is no room to keep it");
        drop(large);
    }

    #[test]
    fn segments_of_lengths_that_nobody_asks_for_make_way_for_newer_ones() {
        let (heap, budget) = heap(100 << 20);
        let ranges: Vec<Range> = (0..3).map(|_| filled(&heap, 30 << 20)).collect();
        drop(ranges);
        for _ in 0..2 {
            let newer = filled(&heap, 15 << 20);
            let id = newer.block().segment.id();
            drop(newer);
            assert_eq!((heap.kept_bytes(), budget.kept()), (75 << 20, 75 << 20));
            assert_eq!(filled(&heap, 15 << 20).block().segment.id(), id);
        }
    }

    #[test]
    fn kept_memory_goes_after_a_time_without_use() {
        let (heap, budget) = heap(100 << 20);
        drop((filled(&heap, 8 << 20), heap.alloc(1 << 16).unwrap()));
        assert_eq!(budget.kept(), (8 << 20) + (1 << 16));
        let begin = Instant::now();
        let later = begin + DeviceLimits::KEPT_TIME_MAX;
        assert!(heap.tick(begin));
        drop(heap.alloc(1 << 16).unwrap());
        assert!(heap.tick(later), "it was used in between");
        assert_eq!(heap.kept_bytes(), 8 << 20);
        assert!(!heap.tick(later + DeviceLimits::KEPT_TIME_MAX));
        assert_eq!((budget.used(), budget.kept(), heap.kept_bytes()), (0, 0, 0));
        assert!(!heap.tick(later + DeviceLimits::KEPT_TIME_MAX));
    }

    #[test]
    fn blob_beyond_the_staging_budget_draws_on_that_of_the_buffers() {
        let buffers = Arc::new(Budget::new(100 << 20));
        let staging = Arc::new(Budget::of_staging(4 << 20, Arc::clone(&buffers)));
        let heap = Heap::new(Arc::clone(&staging));
        let range = filled(&heap, 40 << 20);
        assert_eq!((staging.used(), buffers.used()), (4 << 20, 36 << 20));
        assert!(heap.alloc(1000).is_err(), "short ones do not");
        assert!(heap.reserve(105 << 20).is_err());
        let more = heap.reserve(90 << 20).unwrap();
        assert!(matches!(more.charge(70 << 20), Err(DeviceError::OutOfMemory { .. })));
        drop((range, more));
        assert_eq!((staging.used(), buffers.used()), (0, 0));
    }

    #[test]
    fn budget_is_shared_by_heaps_and_returned_by_ranges() {
        let (heap, budget) = heap(1 << 20);
        let other = Heap::new(Arc::clone(&budget));
        let range = heap.alloc(1 << 19).unwrap();
        let error = other.alloc((1 << 19) + 1).unwrap_err();
        let DeviceError::OutOfMemory { asked, free, limit } = error else { panic!("{error}") };
        assert_eq!((asked, free, limit), ((1 << 19) + 4096, 1 << 19, 1 << 20));
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
