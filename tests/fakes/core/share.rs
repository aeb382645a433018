//! Memory that processes share: physical memory by handles, which descriptors carry to others, and
//! addresses at which it is mapped.
//!
//! The bytes are a file in memory, so that processes really share them. Like the drivers' it lives
//! as long as anybody has a handle, a descriptor or a mapping of it. Between processes the clocks
//! say nothing: a test sees by the bytes whether one waits for the other.

use std::collections::HashSet;
use std::ffi::{c_char, c_int, c_uint};
use std::fs::File;
use std::io::{Seek as _, SeekFrom};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

use super::calls::{AccessDescription, DEVICE_LOCATION, Location, wrong};
use super::files::report;
use super::memory::{Bytes, Memory, Spot};
use super::{Outcome, State, code, size};

unsafe extern "C" {
    fn memfd_create(name: *const c_char, flags: c_uint) -> c_int;
}

const CLOSE_ON_EXEC: c_uint = 1;
/// By descriptors.
pub(crate) const POSIX_DESCRIPTOR: c_int = 1;
/// For network cards.
const CARD_DESCRIPTOR: c_int = 1;
const PAGE: u64 = 4096;
/// What memory and addresses come in multiples of.
const GRANULARITY: u64 = 2 << 20;
/// What the names of the files begin with.
const NAME: &str = "fake-gpu-memory";

/// `CUmemAllocationProp` and `hipMemAllocationProp`, as far as they are looked at.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct MemoryProperties {
    allocation: c_int,
    handles: c_int,
    location: Location,
    metadata: usize,
    compression: u8,
    for_cards: u8,
}

/// What a handle stands for.
#[derive(Debug)]
pub(super) struct Physical {
    file: OwnedFd,
    bytes: u64,
    device: usize,
    for_cards: bool,
}

fn is_multiple(bytes: u64) -> bool {
    bytes > 0 && bytes.is_multiple_of(GRANULARITY)
}

impl State {
    pub(crate) fn handle_create(
        &mut self,
        properties: &MemoryProperties,
        bytes: u64,
    ) -> Outcome<u64> {
        self.context()?;
        if properties.allocation != 1 || properties.location.kind != DEVICE_LOCATION {
            return wrong("shared memory is pinned memory of a device");
        }
        if properties.handles != POSIX_DESCRIPTOR {
            return wrong("memory is to be shared by descriptors");
        }
        if !self.config.shares {
            return Err(code::NOT_SUPPORTED);
        }
        if !is_multiple(bytes) {
            return wrong(&format!("{bytes} bytes of memory are no multiple of its granularity"));
        }
        let device = self.device(properties.location.id)?;
        if bytes > self.memory.free_bytes(device) {
            return Err(code::OUT_OF_MEMORY);
        }
        let name = format!("{NAME}-{device}-{bytes}\0");
        // SAFETY: the name ends in a zero byte.
        let file = unsafe { memfd_create(name.as_ptr().cast(), CLOSE_ON_EXEC) };
        if file < 0 {
            return Err(code::OUT_OF_MEMORY);
        }
        // SAFETY: just opened, and nobody else's.
        let file = unsafe { File::from_raw_fd(file) };
        file.set_len(bytes).map_err(|_| code::OUT_OF_MEMORY)?;
        let file = OwnedFd::from(file);
        // What was there before is not nothing.
        drop(Bytes::of_file(&file, bytes, None).and_then(Bytes::filled));
        self.memory.take(device, bytes);
        let for_cards = properties.for_cards != 0;
        Ok(self.handles.add(Physical { file, bytes, device, for_cards }))
    }

    pub(crate) fn handle_release(&mut self, handle: u64) -> Outcome<()> {
        let Physical { bytes, device, .. } = self.handles.take(handle)?;
        self.memory.give(device, bytes);
        Ok(())
    }

    pub(crate) fn handle_export(&mut self, handle: u64, kind: c_int) -> Outcome<c_int> {
        if kind != POSIX_DESCRIPTOR {
            return wrong("a handle is exported as another kind than it was made for");
        }
        let file = self.handles.get(handle)?.file.try_clone();
        file.map(IntoRawFd::into_raw_fd).map_err(|_| code::OUT_OF_MEMORY)
    }

    /// Of a descriptor that is no device memory nothing is reported: whoever imports it may have it
    /// from somebody who lies.
    pub(crate) fn handle_import(&mut self, descriptor: usize, kind: c_int) -> Outcome<u64> {
        self.context()?;
        if kind != POSIX_DESCRIPTOR {
            return wrong("a handle is imported as another kind than descriptors");
        }
        let descriptor = c_int::try_from(descriptor).map_err(|_| code::INVALID_VALUE)?;
        let path = format!("/proc/self/fd/{descriptor}");
        let path = std::fs::read_link(path).map_err(|_| code::INVALID_VALUE)?;
        let path = path.to_string_lossy();
        let parsed = path.strip_prefix("/memfd:").and_then(|name| {
            let name = name.split(' ').next()?.strip_prefix(NAME)?.strip_prefix('-')?;
            let (device, bytes) = name.split_once('-')?;
            Some((device.parse().ok()?, bytes.parse().ok()?))
        });
        let (device, bytes): (usize, u64) = parsed.ok_or(code::INVALID_VALUE)?;
        // SAFETY: the link shows that it is open, and the caller keeps it during the call.
        let file = unsafe { BorrowedFd::borrow_raw(descriptor) }.try_clone_to_owned();
        let file = file.map_err(|_| code::OUT_OF_MEMORY)?;
        // It was counted where it was made, and is counted there twice if that is here too.
        self.memory.take(device, bytes);
        Ok(self.handles.add(Physical { file, bytes, device, for_cards: false }))
    }

    pub(crate) fn addresses_reserve(&mut self, bytes: u64, alignment: usize) -> Outcome<u64> {
        let device = self.current_device()?;
        if !is_multiple(bytes) || alignment != 0 {
            return wrong(&format!("{bytes} bytes of addresses, aligned to {alignment}"));
        }
        let at = self.memory.addresses(device, bytes);
        self.reserved.insert(at, bytes);
        Ok(at)
    }

    pub(crate) fn addresses_free(&mut self, at: u64, bytes: u64) -> Outcome<()> {
        if self.reserved.get(&at) != Some(&bytes) {
            return wrong(&format!("{bytes} addresses at {at:#x} were not reserved so"));
        }
        if self.memory.live.contains_key(&at) {
            report("protocol", &format!("addresses at {at:#x} are freed that are mapped"));
        }
        self.reserved.remove(&at);
        Ok(())
    }

    pub(crate) fn handle_map(
        &mut self,
        at: u64,
        bytes: u64,
        offset: usize,
        handle: u64,
    ) -> Outcome<()> {
        let (device, length) = {
            let memory = self.handles.get(handle)?;
            (memory.device, memory.bytes)
        };
        if self.reserved.get(&at) != Some(&bytes) || self.memory.live.contains_key(&at) {
            return wrong(&format!("{bytes} bytes are mapped at {at:#x}, which is not free"));
        }
        if bytes > length || offset != 0 {
            return Err(code::INVALID_VALUE);
        }
        let direct = self.memory.is_direct().then_some(at);
        let Physical { file, for_cards, .. } = self.handles.get(handle)?;
        let store = Bytes::of_file(file, bytes, direct).ok_or(code::OUT_OF_MEMORY)?;
        let file = for_cards.then(|| file.try_clone().map_err(|_| code::OUT_OF_MEMORY));
        self.memory.map(Spot { at, bytes, device }, store, file.transpose()?);
        Ok(())
    }

    pub(crate) fn handle_unmap(&mut self, at: u64, bytes: u64) -> Outcome<()> {
        let is_it = self
            .memory
            .live
            .get(&at)
            .is_some_and(|mapping| mapping.allowed.is_some() && mapping.bytes == bytes);
        if !is_it {
            return wrong(&format!("{bytes} bytes at {at:#x} are unmapped, which are not mapped"));
        }
        if self.is_in_use(at, bytes) {
            report("protocol", &format!("{at:#x} is unmapped before its work has run"));
        }
        self.memory.drop_allocation(at);
        Ok(())
    }

    pub(crate) fn mapping_allow(
        &mut self,
        at: u64,
        bytes: u64,
        list: &[AccessDescription],
    ) -> Outcome<()> {
        for description in list {
            if description.location.kind != DEVICE_LOCATION || description.flags != 3 {
                return wrong("access is for a device, to read and write");
            }
            let device = self.device(description.location.id)?;
            let found = self.memory.live.get(&at).filter(|mapping| mapping.bytes == bytes);
            let Some(owner) = found.filter(|mapping| mapping.allowed.is_some()) else {
                return wrong(&format!("access to {bytes} bytes at {at:#x}, which are not mapped"));
            };
            let owner = owner.device;
            if owner != device && !self.config.reach_each_other(owner, device) {
                return Err(code::NOT_SUPPORTED);
            }
            if let Some(mapping) = self.memory.live.get_mut(&at) {
                mapping.allowed.get_or_insert_with(HashSet::new).insert(device);
            }
        }
        Ok(())
    }

    /// A descriptor for network cards: the file once more, whose position says which of its pages
    /// are meant.
    pub(crate) fn range_export(&mut self, at: u64, bytes: u64, kind: c_int) -> Outcome<c_int> {
        self.context()?;
        if kind != CARD_DESCRIPTOR {
            return wrong("a range is exported as another kind than descriptors");
        }
        if !self.config.cards {
            return Err(code::NOT_SUPPORTED);
        }
        if bytes == 0 || !at.is_multiple_of(PAGE) || !bytes.is_multiple_of(PAGE) {
            return wrong(&format!("{bytes} bytes at {at:#x} are no whole pages"));
        }
        let (start, allocation) = match self.memory.find(at, bytes) {
            Ok(found) => found,
            Err(miss) => return Err(Memory::explain(miss, "export", at, bytes)),
        };
        let Some(file) = &allocation.file else {
            return wrong(&format!("memory at {at:#x} was not made for network cards"));
        };
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let again = File::options().read(true).write(true).open(path);
        let mut again = again.map_err(|_| code::OUT_OF_MEMORY)?;
        let place = (((at - start) / PAGE) << 32) | (bytes / PAGE);
        again.seek(SeekFrom::Start(place)).map_err(|_| code::OUT_OF_MEMORY)?;
        Ok(again.into_raw_fd())
    }

    /// Whether network cards reach the memory of devices.
    pub(crate) fn cards(&self) -> bool {
        self.config.cards
    }

    /// Whether devices see what cards have written only when they are told to look.
    pub(crate) fn cards_are_flushed(&self) -> bool {
        self.config.flushes
    }

    pub(crate) fn shares(&self) -> bool {
        self.config.shares
    }
}

impl Bytes {
    /// The bytes of a file that processes share.
    fn of_file(file: &OwnedFd, bytes: u64, at: Option<u64>) -> Option<Bytes> {
        Bytes::shared(file.as_raw_fd(), size(bytes), at)
    }
}
