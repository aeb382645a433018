//! Memory of the devices and memory of the host that devices may use.
//!
//! A device's addresses lie where no process can have memory, each allocation has its bytes
//! elsewhere, and addresses are not used twice: so a pointer of the wrong side, one past the end,
//! and one to what was freed are all found. Fresh memory holds [`PATTERN`].

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::{BTreeMap, HashSet};
use std::ffi::c_int;
use std::os::fd::OwnedFd;

use super::clock::{History, Touch};
use super::files::report;
use super::map::{READ_WRITE, SHARED, mmap, munmap};
use super::{Code, Outcome, code, size};

/// `MAP_FIXED_NOREPLACE`.
const AT_ADDRESS: c_int = 0x10_0000;
/// `MAP_PRIVATE`, `MAP_ANONYMOUS`, `MAP_NORESERVE` and `MAP_FIXED_NOREPLACE`.
const PRIVATE_AT_ADDRESS: c_int = 0x2 | 0x20 | 0x4000 | 0x10_0000;

/// What fresh memory is filled with.
const PATTERN: u8 = 0xA5;
/// Larger allocations get the pattern at their two ends only.
const FILL_BYTES_MAX: usize = 64 << 20;
const FILL_END_BYTES: usize = 1 << 20;
/// Between the addresses of two devices.
const DEVICE_STRIDE: u64 = 1 << 40;
const ALIGNMENT: u64 = 4096;
/// Where the first device's addresses begin if kernels really use them: the host has nothing there.
const DIRECT_ADDRESSES: u64 =
    if crate::FACE.has_contexts { 0x1000_0000_0000 } else { 0x2000_0000_0000 };
/// At least so much lies between two allocations.
const GAP_BYTES: u64 = 4096;

/// Bytes of the host's that hold what a device's memory or pinned memory holds.
#[derive(Debug)]
pub(super) struct Bytes {
    at: *mut u8,
    layout: Layout,
    /// Mapped to an address of its own.
    is_mapped: bool,
}

// SAFETY: the bytes belong to the value alone and are reached under the lock of the whole machine.
unsafe impl Send for Bytes {}

impl Bytes {
    fn new(bytes: u64) -> Option<Bytes> {
        let layout = Layout::from_size_align(size(bytes).max(1), 4096).ok()?;
        // SAFETY: the layout has at least one byte.
        let at = unsafe { alloc_zeroed(layout) };
        if at.is_null() {
            return None;
        }
        Bytes { at, layout, is_mapped: false }.filled()
    }

    /// Bytes at an address that nothing else has.
    fn at(address: u64, bytes: u64) -> Option<Bytes> {
        let layout = Layout::from_size_align(size(bytes).max(1), 4096).ok()?;
        let wanted = std::ptr::with_exposed_provenance_mut(size(address));
        // SAFETY: the kernel maps fresh memory where nothing is, or refuses.
        let at = unsafe { mmap(wanted, layout.size(), READ_WRITE, PRIVATE_AT_ADDRESS, -1, 0) };
        (at == wanted).then_some(Bytes { at: at.cast(), layout, is_mapped: true })?.filled()
    }

    /// The bytes of a file, at an address that nothing else has or anywhere.
    pub(super) fn shared(file: c_int, bytes: usize, address: Option<u64>) -> Option<Bytes> {
        let layout = Layout::from_size_align(bytes, 4096).ok()?;
        let wanted = std::ptr::with_exposed_provenance_mut(size(address.unwrap_or(0)));
        let flags = if address.is_some() { SHARED | AT_ADDRESS } else { SHARED };
        // SAFETY: the kernel maps the file where nothing is, or refuses.
        let at = unsafe { mmap(wanted, bytes, READ_WRITE, flags, file, 0) };
        let is_there = at.addr() != usize::MAX && (address.is_none() || at == wanted);
        is_there.then_some(Bytes { at: at.cast(), layout, is_mapped: true })
    }

    pub(super) fn filled(self) -> Option<Bytes> {
        let at = self.at;
        let fill = |from: usize, count: usize| {
            // SAFETY: the callers below stay inside the allocation.
            let place = unsafe { at.add(from) };
            // SAFETY: as above, and it is nobody else's yet.
            unsafe { place.write_bytes(PATTERN, count) };
        };
        let bytes = self.layout.size();
        if bytes <= FILL_BYTES_MAX {
            fill(0, bytes);
        } else {
            fill(0, FILL_END_BYTES);
            fill(bytes - FILL_END_BYTES, FILL_END_BYTES);
        }
        Some(self)
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        if self.is_mapped {
            // SAFETY: it was mapped with this size, and nobody uses it any more.
            unsafe { munmap(self.at.cast(), self.layout.size()) };
            return;
        }
        // SAFETY: it was allocated with this layout and is freed once.
        unsafe { dealloc(self.at, self.layout) };
    }
}

/// A piece of a device's memory.
#[derive(Debug)]
pub(super) struct Allocation {
    store: Bytes,
    pub(super) bytes: u64,
    pub(super) device: usize,
    pub(super) pool: Option<u64>,
    /// Of what is mapped from a handle: the devices that may use it.
    pub(super) allowed: Option<HashSet<usize>>,
    /// And the file that is mapped, where network cards may be told of it.
    pub(super) file: Option<OwnedFd>,
    pub(super) context: u64,
    /// The stream has reached the allocation.
    pub(super) is_live: bool,
    /// The free is enqueued: nothing may use it that is enqueued from now on.
    pub(super) is_freed: bool,
    pub(super) history: History,
}

/// Host memory that devices may use.
#[derive(Debug)]
pub(super) struct Pin {
    store: Option<Bytes>,
    pub(super) bytes: u64,
    pub(super) context: u64,
    pub(super) history: History,
}

impl Pin {
    /// Whether it was there before, and only registered.
    pub(super) fn is_registered(&self) -> bool {
        self.store.is_none()
    }
}

#[derive(Debug)]
pub(super) struct Pool {
    pub(super) device: usize,
    pub(super) allowed: HashSet<usize>,
    pub(super) keep_bytes: u64,
}

#[derive(Debug)]
struct Device {
    next: u64,
    used_bytes: u64,
}

/// Why an address does not lead to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Miss {
    /// No device has such an address.
    Host,
    Freed,
    /// It begins in an allocation and ends behind it, or lies between two.
    Beyond,
}

/// Where something is to be mapped, and whose memory it is.
pub(super) struct Spot {
    pub(super) at: u64,
    pub(super) bytes: u64,
    pub(super) device: usize,
}

#[derive(Debug)]
pub(super) struct Memory {
    /// Where the first device's addresses begin.
    base: u64,
    /// The bytes of an allocation are at its address.
    is_direct: bool,
    devices: Vec<Device>,
    bytes_max: u64,
    pub(super) live: BTreeMap<u64, Allocation>,
    pub(super) pins: BTreeMap<u64, Pin>,
    /// Where allocations were, to tell a freed one from a gap; the newest only.
    freed: BTreeMap<u64, u64>,
}

const FREED_MAX: usize = 1 << 16;

impl Memory {
    pub(super) fn new(devices: usize, bytes_max: u64, is_direct: bool) -> Memory {
        let base = if is_direct { DIRECT_ADDRESSES } else { crate::FACE.addresses };
        let device = |index: usize| Device {
            next: base + DEVICE_STRIDE * index as u64 + ALIGNMENT,
            used_bytes: 0,
        };
        Memory {
            base,
            is_direct,
            devices: (0..devices).map(device).collect(),
            bytes_max,
            live: BTreeMap::new(),
            pins: BTreeMap::new(),
            freed: BTreeMap::new(),
        }
    }

    pub(super) fn free_bytes(&self, device: usize) -> u64 {
        self.bytes_max - self.devices[device].used_bytes
    }

    pub(super) fn total_bytes(&self) -> u64 {
        self.bytes_max
    }

    pub(super) fn alloc(
        &mut self,
        device: usize,
        bytes: u64,
        pool: Option<u64>,
        context: u64,
        is_live: bool,
    ) -> Outcome<u64> {
        if bytes == 0 {
            report("protocol", "an allocation of no bytes");
            return Err(code::INVALID_VALUE);
        }
        if bytes > self.free_bytes(device) {
            return Err(code::OUT_OF_MEMORY);
        }
        let at = self.addresses(device, bytes);
        let store = if self.is_direct { Bytes::at(at, bytes) } else { Bytes::new(bytes) };
        let store = store.ok_or(code::OUT_OF_MEMORY)?;
        self.take(device, bytes);
        let (is_freed, history) = (false, History::default());
        let allocation = Allocation {
            store,
            bytes,
            device,
            pool,
            allowed: None,
            file: None,
            context,
            is_live,
            is_freed,
            history,
        };
        self.live.insert(at, allocation);
        Ok(at)
    }

    /// Addresses that are not used twice.
    pub(super) fn addresses(&mut self, device: usize, bytes: u64) -> u64 {
        let at = self.devices[device].next;
        self.devices[device].next = (at + bytes + GAP_BYTES).next_multiple_of(ALIGNMENT);
        at
    }

    /// Memory of a device of this machine, or of another process's that has more of them.
    pub(super) fn take(&mut self, device: usize, bytes: u64) {
        if let Some(device) = self.devices.get_mut(device) {
            device.used_bytes += bytes;
        }
    }

    pub(super) fn give(&mut self, device: usize, bytes: u64) {
        if let Some(device) = self.devices.get_mut(device) {
            device.used_bytes -= bytes;
        }
    }

    pub(super) fn is_direct(&self) -> bool {
        self.is_direct
    }

    /// Bytes that are counted elsewhere appear at addresses that nothing has.
    pub(super) fn map(&mut self, spot: Spot, store: Bytes, file: Option<OwnedFd>) {
        let Spot { at, bytes, device } = spot;
        let mapping = Allocation {
            store,
            bytes,
            device,
            pool: None,
            allowed: Some(HashSet::new()),
            file,
            context: 0,
            is_live: true,
            is_freed: false,
            history: History::default(),
        };
        self.live.insert(at, mapping);
    }

    /// The memory counts as free from the moment its free is enqueued.
    pub(super) fn set_freed(&mut self, at: u64) {
        let allocation = self.live.get_mut(&at).expect("the caller has just found it");
        allocation.is_freed = true;
        self.devices[allocation.device].used_bytes -= allocation.bytes;
    }

    /// Gives the bytes back.
    pub(super) fn drop_allocation(&mut self, at: u64) {
        let Some(allocation) = self.live.remove(&at) else { return };
        if !allocation.is_freed && allocation.allowed.is_none() {
            self.give(allocation.device, allocation.bytes);
        }
        self.freed.insert(at, allocation.bytes);
        if self.freed.len() > FREED_MAX {
            self.freed.pop_first();
        }
    }

    /// The allocation that holds the bytes, with its address.
    pub(super) fn find(&self, at: u64, bytes: u64) -> Result<(u64, &Allocation), Miss> {
        if let Some((&start, allocation)) = self.live.range(..=at).next_back()
            && at - start < allocation.bytes
        {
            let inside = bytes <= allocation.bytes - (at - start);
            return if inside { Ok((start, allocation)) } else { Err(Miss::Beyond) };
        }
        if let Some((&start, &length)) = self.freed.range(..=at).next_back()
            && at - start < length
        {
            return Err(Miss::Freed);
        }
        Err(if self.device_of(at).is_some() { Miss::Beyond } else { Miss::Host })
    }

    /// Whose addresses these are.
    pub(super) fn device_of(&self, at: u64) -> Option<usize> {
        let from = at.checked_sub(self.base)?;
        let index = usize::try_from(from / DEVICE_STRIDE).ok()?;
        (index < self.devices.len()).then_some(index)
    }

    /// Where the bytes really are, for work that runs now.
    pub(super) fn reach(&self, at: u64, bytes: u64) -> Option<*mut u8> {
        if self.device_of(at).is_none() {
            let (&start, pin) = self.pins.range(..=at).next_back()?;
            let inside = at - start <= pin.bytes && bytes <= pin.bytes - (at - start);
            return inside.then(|| std::ptr::with_exposed_provenance_mut(size(at)));
        }
        let (start, allocation) = self.find(at, bytes).ok()?;
        if !allocation.is_live {
            return None;
        }
        // SAFETY: `find` has made sure that the offset lies inside the allocation.
        Some(unsafe { allocation.store.at.add(size(at - start)) })
    }

    /// The history of what holds the bytes.
    pub(super) fn history(&mut self, touch: &Touch) -> Option<&mut History> {
        let inside = |start: u64, bytes: u64| touch.at - start < bytes;
        if self.device_of(touch.at).is_some() {
            let (&start, allocation) = self.live.range_mut(..=touch.at).next_back()?;
            return inside(start, allocation.bytes).then_some(&mut allocation.history);
        }
        let (&start, pin) = self.pins.range_mut(..=touch.at).next_back()?;
        inside(start, pin.bytes).then_some(&mut pin.history)
    }

    pub(super) fn pin_alloc(&mut self, bytes: u64, context: u64) -> Outcome<u64> {
        if bytes == 0 {
            report("protocol", "pinned memory of no bytes");
            return Err(code::INVALID_VALUE);
        }
        let store = Bytes::new(bytes).ok_or(code::OUT_OF_MEMORY)?;
        let at = store.at.expose_provenance() as u64;
        let pin = Pin { store: Some(store), bytes, context, history: History::default() };
        self.pins.insert(at, pin);
        Ok(at)
    }

    pub(super) fn pin_register(&mut self, at: u64, bytes: u64, context: u64) -> Outcome<()> {
        if at == 0 || bytes == 0 {
            report("protocol", &format!("{bytes} bytes at {at:#x} are to be registered"));
            return Err(code::INVALID_VALUE);
        }
        let end = at.checked_add(bytes).ok_or(code::INVALID_VALUE)?;
        let before = self.pins.range(..end).next_back();
        if before.is_some_and(|(&start, pin)| start + pin.bytes > at) {
            report("protocol", &format!("memory at {at:#x} is registered or pinned already"));
            return Err(code::HOST_REGISTERED);
        }
        self.pins.insert(at, Pin { store: None, bytes, context, history: History::default() });
        Ok(())
    }

    /// Whether the bytes are memory of the host that devices may use.
    pub(super) fn is_pinned(&self, at: u64, bytes: u64) -> bool {
        self.device_of(at).is_none() && self.reach(at, bytes).is_some()
    }

    /// The miss as what a copy or launch answers to it, written down.
    pub(super) fn explain(miss: Miss, what: &str, at: u64, bytes: u64) -> Code {
        let why = match miss {
            Miss::Host => "is no device memory",
            Miss::Freed => "was freed before",
            Miss::Beyond => "is not inside one allocation",
        };
        report("protocol", &format!("{what}: {at:#x} with {bytes} bytes {why}"));
        code::INVALID_VALUE
    }
}
