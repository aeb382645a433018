//! libibverbs: the library, devices, protection domains, and registered memory.
//!
//! Owns: opening the library when it is first wanted, what this machine has, and the lifetimes of
//! what the library hands out: each object keeps those alive that the library wants to be freed
//! later. Absent: queue pairs (`pair`).
//!
//! The library is safe to be called from several threads at once.

use std::ffi::{CStr, c_int};
use std::io;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::{Arc, OnceLock};

use rdma_sys::{
    Missing, Verbs, ibv_access_flags, ibv_context, ibv_device, ibv_device_attr, ibv_gid_entry,
    ibv_gid_type, ibv_mr, ibv_pd, ibv_port_attr, ibv_port_state, ibv_query_port,
};
use rustix::rand::{GetRandomFlags, getrandom};

use super::choice::{Candidate, Chosen, Gid, GidKind, Mtu, Port, choose};
use super::{RdmaError, Target};
use crate::config::RdmaConfig;
use crate::device::SharedBytes;
use crate::device::export::CardMemory;

/// What an address for the device is a multiple of, but for the part that it has in common with the
/// memory's own: a huge page, so that the device can map memory by such pages.
const IOVA_GRAIN_BYTES: u64 = 2 << 20;
/// Addresses for devices stay below what every device can say.
const IOVA_BITS: u32 = 46;

/// What peers and the device itself may do with registered memory.
fn access() -> ibv_access_flags {
    ibv_access_flags::IBV_ACCESS_LOCAL_WRITE
        | ibv_access_flags::IBV_ACCESS_REMOTE_READ
        | ibv_access_flags::IBV_ACCESS_REMOTE_WRITE
}

/// The library, opened once in a process and never closed.
fn library() -> Result<&'static Verbs, RdmaError> {
    static FOUND: OnceLock<Result<Verbs, RdmaError>> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        // SAFETY: what the library does when it is loaded is as trusted as the operator who
        // installed it: it is found by a fixed name in the loader's search.
        let opened = unsafe { libloading::Library::new(rdma_sys::LIBRARY) };
        let library = opened.map_err(|error| RdmaError::Library { why: error.to_string() })?;
        let library = ManuallyDrop::new(library);
        // SAFETY: that is libibverbs by its name, and it is never closed.
        let verbs = unsafe { Verbs::look_up(&library) };
        verbs.map_err(|Missing(call)| RdmaError::TooOld { call })
    });
    found.as_ref().copied_err()
}

/// [`Result::as_ref`] with an error of its own.
trait CopiedError<'r, T> {
    fn copied_err(self) -> Result<&'r T, RdmaError>;
}

impl<'r, T> CopiedError<'r, T> for Result<&'r T, &'r RdmaError> {
    fn copied_err(self) -> Result<&'r T, RdmaError> {
        self.map_err(Clone::clone)
    }
}

pub(super) fn last_error(call: &'static str) -> RdmaError {
    RdmaError::Call { call, why: io::Error::last_os_error().to_string() }
}

/// What a call says that returns an error number, or sets one and returns something negative.
pub(super) fn check(call: &'static str, code: c_int) -> Result<(), RdmaError> {
    match code {
        0 => Ok(()),
        code if code < 0 => Err(last_error(call)),
        code => Err(RdmaError::Call { call, why: io::Error::from_raw_os_error(code).to_string() }),
    }
}

/// An open context of a device.
struct Context {
    verbs: &'static Verbs,
    raw: NonNull<ibv_context>,
}

// SAFETY: the library's objects belong to no thread, and its calls take locks of their own.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: opened once and closed here alone; what was made of it held this value.
        let code = unsafe { (self.verbs.ibv_close_device)(self.raw.as_ptr()) };
        debug_assert_eq!(code, 0, "a context that nothing uses can be closed");
    }
}

impl Context {
    /// What is known of the device as a whole.
    fn attributes(&self) -> Result<ibv_device_attr, RdmaError> {
        let mut found = MaybeUninit::<ibv_device_attr>::zeroed();
        // SAFETY: the context is open, and there is room for the answer.
        let code = unsafe { (self.verbs.ibv_query_device)(self.raw.as_ptr(), found.as_mut_ptr()) };
        check("ibv_query_device", code)?;
        // SAFETY: integers, for which any bits are valid, zero to begin with.
        Ok(unsafe { found.assume_init() })
    }

    fn port(&self, number: u8) -> Result<Port, RdmaError> {
        let mut found = MaybeUninit::<ibv_port_attr>::zeroed();
        // SAFETY: the context is open, and there is room for the answer.
        let code = unsafe { ibv_query_port(self.raw.as_ptr(), number, found.as_mut_ptr()) };
        check("ibv_query_port", code)?;
        // SAFETY: integers, for which any bits are valid, zero to begin with.
        let found = unsafe { found.assume_init() };
        let down = match found.state {
            ibv_port_state::IBV_PORT_ACTIVE | ibv_port_state::IBV_PORT_ACTIVE_DEFER => None,
            ibv_port_state::IBV_PORT_DOWN => Some("down"),
            ibv_port_state::IBV_PORT_INIT => Some("initialising"),
            ibv_port_state::IBV_PORT_ARMED => Some("armed, not active"),
            _ => Some("in a state without a name"),
        };
        let mtu = Mtu::from_code(found.active_mtu).ok_or_else(|| RdmaError::Call {
            call: "ibv_query_port",
            why: format!("unknown MTU {}", found.active_mtu),
        })?;
        let gids = (0..u32::try_from(found.gid_tbl_len).unwrap_or(0).min(256))
            .filter_map(|index| self.gid(number, index))
            .collect();
        Ok(Port { number, down, mtu, message_bytes_max: found.max_msg_sz, gids })
    }

    /// An entry of a port's table, if it is in use.
    fn gid(&self, port: u8, index: u32) -> Option<Gid> {
        let mut found = MaybeUninit::<ibv_gid_entry>::zeroed();
        // SAFETY: the context is open, there is room for an entry, and its length is said.
        let code = unsafe {
            (self.verbs._ibv_query_gid_ex)(
                self.raw.as_ptr(),
                u32::from(port),
                index,
                found.as_mut_ptr(),
                0,
                size_of::<ibv_gid_entry>(),
            )
        };
        if code != 0 {
            return None;
        }
        // SAFETY: integers, for which any bits are valid, zero to begin with.
        let found = unsafe { found.assume_init() };
        // SAFETY: both members of the union are 16 bytes of any value.
        let raw = unsafe { found.gid.raw };
        let kind = match found.gid_type {
            ibv_gid_type::IBV_GID_TYPE_IB => GidKind::InfiniBand,
            ibv_gid_type::IBV_GID_TYPE_ROCE_V1 => GidKind::RoceV1,
            ibv_gid_type::IBV_GID_TYPE_ROCE_V2 => GidKind::RoceV2,
            _ => return None,
        };
        (raw != [0; 16]).then_some(Gid { index: u8::try_from(index).ok()?, raw, kind })
    }

    fn candidate(&self, name: &str) -> Result<Candidate, RdmaError> {
        let ports = 1..=self.attributes()?.phys_port_cnt;
        let ports = ports.map(|number| self.port(number)).collect::<Result<_, _>>()?;
        Ok(Candidate { name: name.to_owned(), ports })
    }
}

/// Every device, open, with its name. Those that cannot be opened are left out.
fn open_all(verbs: &'static Verbs) -> Result<Vec<(String, Context)>, RdmaError> {
    let mut count = 0;
    // SAFETY: `count` takes one integer.
    let list = unsafe { (verbs.ibv_get_device_list)(&raw mut count) };
    let Some(list) = NonNull::new(list) else {
        return match io::Error::last_os_error().raw_os_error() {
            // The kernel has no RDMA at all, or its modules are not loaded.
            Some(libc::ENOSYS | libc::ENOENT) => Err(RdmaError::NoDevice),
            _ => Err(last_error("ibv_get_device_list")),
        };
    };
    let mut opened = Vec::new();
    for at in 0..usize::try_from(count).unwrap_or(0) {
        // SAFETY: the list has as many entries as it said.
        let entry = unsafe { list.add(at) };
        // SAFETY: as above.
        let device = unsafe { entry.read() };
        if let Some(device) = open(verbs, device) {
            opened.push(device);
        }
    }
    // SAFETY: the library's own list, freed once; devices that were opened stay.
    unsafe { (verbs.ibv_free_device_list)(list.as_ptr()) };
    Ok(opened)
}

fn open(verbs: &'static Verbs, device: *mut ibv_device) -> Option<(String, Context)> {
    // SAFETY: the device is in a list that is not freed yet.
    let name = unsafe { (verbs.ibv_get_device_name)(device) };
    if name.is_null() {
        return None;
    }
    // SAFETY: the library's text, which ends, and lasts as long as the list.
    let name = unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
    // SAFETY: the device is in a list that is not freed yet.
    let raw = NonNull::new(unsafe { (verbs.ibv_open_device)(device) })?;
    Some((name, Context { verbs, raw }))
}

/// The device that is used, with the port and address that were chosen.
pub struct Device {
    context: Context,
    chosen: Chosen,
}

impl Device {
    /// Opens the best device, as far as the configuration does not say which.
    ///
    /// # Errors
    ///
    /// Why there is none; [`RdmaError::remedy`] says what to do.
    pub fn open(config: &RdmaConfig) -> Result<Arc<Device>, RdmaError> {
        let opened = open_all(library()?)?;
        let candidates: Vec<Candidate> = opened
            .iter()
            .map(|(name, context)| context.candidate(name))
            .collect::<Result<_, _>>()?;
        let chosen = choose(&candidates, config)?;
        let of_name = opened.into_iter().find(|(name, _)| *name == chosen.device);
        let (_, context) = of_name.ok_or(RdmaError::NoDevice)?;
        Ok(Arc::new(Device { context, chosen }))
    }

    /// Which it is.
    #[must_use]
    pub fn chosen(&self) -> &Chosen {
        &self.chosen
    }

    pub(super) fn verbs(&self) -> &'static Verbs {
        self.context.verbs
    }

    pub(super) fn raw(&self) -> *mut ibv_context {
        self.context.raw.as_ptr()
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Device({})", self.chosen)
    }
}

/// Memory and queue pairs that may have to do with each other. A key of one domain means nothing to
/// the queue pairs of another, whatever their peers know.
#[derive(Debug)]
pub struct Domain {
    raw: NonNull<ibv_pd>,
    device: Arc<Device>,
}

// SAFETY: as for `Context`.
unsafe impl Send for Domain {}
// SAFETY: as for `Context`.
unsafe impl Sync for Domain {}

impl Domain {
    /// A domain without anything in it.
    ///
    /// # Errors
    ///
    /// Where the device has no more.
    pub fn new(device: &Arc<Device>) -> Result<Arc<Domain>, RdmaError> {
        // SAFETY: the context is open.
        let raw = unsafe { (device.verbs().ibv_alloc_pd)(device.raw()) };
        let raw = NonNull::new(raw).ok_or_else(|| last_error("ibv_alloc_pd"))?;
        Ok(Arc::new(Domain { raw, device: Arc::clone(device) }))
    }

    #[must_use]
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    pub(super) fn raw(&self) -> *mut ibv_pd {
        self.raw.as_ptr()
    }

    /// Makes memory known to the device, and pins it: peers with the key may read and write it as
    /// long as the registration lives. Takes time for each page; some 50 ms for a gigabyte.
    ///
    /// # Errors
    ///
    /// [`RdmaError::Locked`] where the system lets no more be pinned.
    pub fn register<M: HostMemory>(
        self: &Arc<Self>,
        memory: M,
    ) -> Result<Registration<M>, RdmaError> {
        let (address, bytes) = memory.place();
        let iova = unguessable(address.as_ptr().addr() as u64)?;
        let length = usize::try_from(bytes).unwrap_or(usize::MAX);
        let access = access().0;
        // SAFETY: the memory is mapped and stays so as long as the registration keeps `memory`,
        // which `HostMemory` promises.
        let raw = unsafe {
            (self.device.verbs().ibv_reg_mr_iova2)(
                self.raw(),
                address.as_ptr().cast(),
                length,
                iova,
                access,
            )
        };
        self.registered(raw, iova, bytes, memory)
    }

    /// As [`Self::register`], for memory of another device. The kernel looks at what the descriptor
    /// is and whether the bytes lie inside, and keeps what is behind it.
    ///
    /// # Errors
    ///
    /// [`RdmaError::DeviceMemory`], also where the card's driver cannot do it at all.
    pub fn register_device(
        self: &Arc<Self>,
        part: &CardMemory,
    ) -> Result<Registration<()>, RdmaError> {
        let (offset, bytes) = (part.offset(), part.bytes());
        let iova = unguessable(offset)?;
        let length = usize::try_from(bytes).unwrap_or(usize::MAX);
        let access = c_int::try_from(access().0).expect("three small flags");
        // SAFETY: the descriptor is open; the kernel checks what it is and how long.
        let raw = unsafe {
            (self.device.verbs().ibv_reg_dmabuf_mr)(
                self.raw(),
                offset,
                length,
                iova,
                part.descriptor().as_raw_fd(),
                access,
            )
        };
        let refused = |why| RdmaError::DeviceMemory { bytes, why };
        self.registered(raw, iova, bytes, ()).map_err(|error| match error {
            RdmaError::Locked { why, .. } => refused(why),
            error => error,
        })
    }

    fn registered<M>(
        self: &Arc<Self>,
        raw: *mut ibv_mr,
        iova: u64,
        bytes: u64,
        keep: M,
    ) -> Result<Registration<M>, RdmaError> {
        let Some(raw) = NonNull::new(raw) else {
            let why = io::Error::last_os_error().to_string();
            return Err(RdmaError::Locked { bytes, why });
        };
        let domain = Arc::clone(self);
        Ok(Registration { pinned: Pinned { raw, domain }, iova, bytes, _keep: keep })
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        // SAFETY: made once and freed here alone; what belongs to it held this value.
        let code = unsafe { (self.device.verbs().ibv_dealloc_pd)(self.raw()) };
        debug_assert_eq!(code, 0, "a domain without anything in it can be freed");
    }
}

/// An address for the device that agrees with `address` inside of a huge page. The rest is drawn,
/// so that who has a key of one registration does not know where others are.
fn unguessable(address: u64) -> Result<u64, RdmaError> {
    let mut random = [0; 8];
    getrandom(&mut random, GetRandomFlags::empty())
        .map_err(|error| RdmaError::Call { call: "getrandom", why: error.to_string() })?;
    let above = u64::from_le_bytes(random) >> (u64::BITS - IOVA_BITS);
    // Never zero, which some take for no address.
    Ok((above & !(IOVA_GRAIN_BYTES - 1)) + IOVA_GRAIN_BYTES + address % IOVA_GRAIN_BYTES)
}

/// Memory of this process that a device may be told of.
///
/// # Safety
///
/// The bytes at [`Self::place`] are mapped and writable, and stay where they are as long as the
/// value lives, wherever it is moved. They may be written at any time while they are registered, so
/// whoever has references to them takes no decision on a byte that was read before.
pub unsafe trait HostMemory {
    /// Where it begins, and how many bytes it has.
    fn place(&self) -> (NonNull<u8>, u64);
}

// SAFETY: the value keeps the mapping that the bytes are in, which is for reading and writing, and
// which other processes write anyway.
unsafe impl HostMemory for SharedBytes {
    fn place(&self) -> (NonNull<u8>, u64) {
        (self.address(), self.bytes())
    }
}

#[derive(Debug)]
struct Pinned {
    raw: NonNull<ibv_mr>,
    domain: Arc<Domain>,
}

// SAFETY: as for `Context`.
unsafe impl Send for Pinned {}
// SAFETY: as for `Context`.
unsafe impl Sync for Pinned {}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: registered once and taken back here alone.
        let code = unsafe { (self.domain.device.verbs().ibv_dereg_mr)(self.raw.as_ptr()) };
        debug_assert_eq!(code, 0, "a registration can be taken back");
    }
}

/// Memory that the device knows. Dropping it ends that first, then lets go of the memory.
#[derive(Debug)]
pub struct Registration<M> {
    pinned: Pinned,
    iova: u64,
    bytes: u64,
    _keep: M,
}

impl<M> Registration<M> {
    /// What a peer is told, so that it can write there.
    #[must_use]
    pub fn target(&self) -> Target {
        // SAFETY: the registration lives; the library filled this in when it was made.
        let key = unsafe { (*self.pinned.raw.as_ptr()).rkey };
        Target { iova: self.iova, key, bytes: self.bytes }
    }

    /// The key by which this side's requests read it.
    #[must_use]
    pub fn local_key(&self) -> u32 {
        // SAFETY: as in `target`.
        unsafe { (*self.pinned.raw.as_ptr()).lkey }
    }

    /// Where it is, for the device.
    #[must_use]
    pub fn iova(&self) -> u64 {
        self.iova
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_for_the_device_agrees_inside_a_huge_page_and_cannot_be_guessed() {
        let address = 0x7f12_3456_7890;
        let drawn: std::collections::HashSet<u64> =
            (0..64).map(|_| unguessable(address).unwrap()).collect();
        assert!(drawn.len() > 60);
        for iova in drawn {
            assert_eq!(iova % IOVA_GRAIN_BYTES, address % IOVA_GRAIN_BYTES);
            assert!((IOVA_GRAIN_BYTES..1 << (IOVA_BITS + 1)).contains(&iova));
        }
    }

    #[test]
    fn machine_without_devices_says_why() {
        let config = RdmaConfig { device: Some("none-such".to_owned()), ..RdmaConfig::default() };
        let error = Device::open(&config).unwrap_err();
        assert!(
            matches!(
                error,
                RdmaError::Library { .. }
                    | RdmaError::NoDevice
                    | RdmaError::DeviceUnknown { .. }
                    | RdmaError::TooOld { .. }
            ),
            "{error}"
        );
        assert!(!error.remedy().is_empty());
    }
}
