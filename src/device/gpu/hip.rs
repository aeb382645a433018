//! The table of calls for HIP.
//!
//! Owns: [`Hip`], which is [`Driver`] by the calls of `libamdhip64.so`, one for one; what the
//! driver's codes mean; finding the library and starting the driver (`start`); memory that other
//! processes may have too (`shared`).
//!
//! Absent: contexts, which HIP has not: all of a process's use of a device is one. Making a context
//! makes the device current, ending it does nothing, and the handle holds the device's number. So
//! two sessions in one process share the fate of a device, and a kernel that reaches outside of its
//! memory may end the process: AMD's runtime aborts then.

mod shared;
mod start;

use std::ffi::{CStr, c_char, c_int, c_void};
use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr;
use std::time::Duration;

use hip_sys::hiprt::{self as hip, Runtime};

use super::driver::{
    Code, Context, DeviceInfo, DevicePointer, Driver, Event, EventUse, Function, FunctionInfo,
    GraphExec, GraphTemplate, HostFunction, Kernel, Kind, LaunchLimits, MemoryHandle, Module, Node,
    Ordinal, Outcome, Pool, Stream,
};
use super::loading;

pub(super) use self::start::load;

/// Arguments of a launch. The runtime names no limit; this is what all of CUDA's versions take.
const ARGUMENT_BYTES: u32 = 4096;

/// Of version 5.4's documentation, and named nowhere else here.
const PRIOR_LAUNCH_FAILURE: hip::hipError_t = 53;
const RUNTIME_MEMORY: hip::hipError_t = 1052;
const RUNTIME_OTHER: hip::hipError_t = 1053;

/// All other codes that versions up to 7 document: they say why a call was refused.
const REFUSALS: [RangeInclusive<i32>; 10] = [
    1..=21,
    35..=35,
    52..=52,
    98..=101,
    200..=219,
    300..=304,
    400..=401,
    701..=713,
    720..=720,
    801..=916,
];

/// The codes that mean something to the server. What a kernel did is not always told apart: most of
/// it is one code, or the end of the process.
const KINDS: &[(hip::hipError_t, Kind)] = &[
    (hip::hipErrorNotReady, Kind::NotReady),
    (hip::hipErrorOutOfMemory, Kind::OutOfMemory),
    (hip::hipErrorPeerAccessAlreadyEnabled, Kind::PeerEnabled),
    (hip::hipErrorInvalidDeviceFunction, Kind::BadProgram),
    (hip::hipErrorInvalidImage, Kind::BadProgram),
    (hip::hipErrorNoBinaryForGpu, Kind::BadProgram),
    (hip::hipErrorInvalidKernelFile, Kind::BadProgram),
    (hip::hipErrorInvalidSource, Kind::BadProgram),
    (hip::hipErrorFileNotFound, Kind::BadProgram),
    (hip::hipErrorSharedObjectSymbolNotFound, Kind::BadProgram),
    (hip::hipErrorSharedObjectInitFailed, Kind::BadProgram),
    (hip::hipErrorNotFound, Kind::BadProgram),
    (hip::hipErrorIllegalAddress, Kind::Fault("illegal address")),
    (hip::hipErrorLaunchTimeOut, Kind::Fault("ran too long for the driver")),
    (hip::hipErrorAssert, Kind::Fault("failed assertion")),
    (hip::hipErrorLaunchFailure, Kind::Fault("exception in a kernel")),
    (PRIOR_LAUNCH_FAILURE, Kind::Fault("exception in an earlier kernel")),
    (hip::hipErrorDeinitialized, Kind::Lost("the driver is shutting down")),
    (hip::hipErrorECCNotCorrectable, Kind::Lost("memory error that ECC cannot correct")),
    (hip::hipErrorContextIsDestroyed, Kind::Lost("the context was destroyed")),
    (hip::hipErrorUnknown, Kind::Lost("the driver does not know what is wrong")),
    (RUNTIME_MEMORY, Kind::Lost("the runtime below HIP failed with memory")),
    (RUNTIME_OTHER, Kind::Lost("the runtime below HIP failed")),
    (hip::hipErrorPeerAccessUnsupported, Kind::Unsupported),
    (hip::hipErrorNotSupported, Kind::Unsupported),
];

/// [`Driver`] by the calls of `libamdhip64.so`.
struct Hip {
    calls: Runtime,
    version: c_int,
}

/// From 10,000,000 times the major plus 100,000 times the minor version and the patch.
fn version_text(number: c_int) -> String {
    format!("{}.{}", number / 10_000_000, number % 10_000_000 / 100_000)
}

/// A result as an outcome.
fn check(result: hip::hipError_t) -> Outcome<()> {
    match result {
        hip::hipSuccess => Ok(()),
        code => Err(Code(code)),
    }
}

fn kind(code: Code) -> Kind {
    let known = KINDS.iter().find(|(result, _)| *result == code.0);
    known.map_or_else(|| Kind::of_unlisted(code, &REFUSALS), |(_, kind)| *kind)
}

/// A handle as the driver has it.
fn raw<T>(handle: NonZeroUsize) -> *mut T {
    ptr::with_exposed_provenance_mut(handle.get())
}

/// A handle that the driver made.
fn handle<T>(raw: *mut T) -> Outcome<NonZeroUsize> {
    NonZeroUsize::new(raw.expose_provenance()).ok_or(Code(hip::hipErrorUnknown))
}

/// A length, which is as long as an address on every system that has a driver.
fn length(bytes: u64) -> Outcome<usize> {
    usize::try_from(bytes).map_err(|_| Code(hip::hipErrorInvalidValue))
}

/// A place in a device's memory as HIP has it: a pointer.
fn place(at: DevicePointer) -> Outcome<*mut c_void> {
    length(at.0).map(ptr::with_exposed_provenance_mut)
}

fn device_pointer(at: *mut c_void) -> DevicePointer {
    DevicePointer(at.expose_provenance() as u64)
}

/// The context of a device.
fn context(device: Ordinal) -> Outcome<Context> {
    let number = usize::try_from(device.0).ok().and_then(|number| number.checked_add(1));
    number.and_then(NonZeroUsize::new).map(Context).ok_or(Code(hip::hipErrorInvalidDevice))
}

/// The device of a context.
fn device(context: Context) -> Outcome<c_int> {
    c_int::try_from(context.0.get() - 1).map_err(|_| Code(hip::hipErrorInvalidDevice))
}

/// The list that hands packed arguments to a launch; `bytes` is their number.
fn extra(arguments: &[u8], bytes: &mut usize) -> [*mut c_void; 5] {
    [
        ptr::without_provenance_mut(hip::HIP_LAUNCH_PARAM_BUFFER_POINTER),
        arguments.as_ptr().cast_mut().cast(),
        ptr::without_provenance_mut(hip::HIP_LAUNCH_PARAM_BUFFER_SIZE),
        ptr::from_mut(bytes).cast(),
        ptr::without_provenance_mut(hip::HIP_LAUNCH_PARAM_END),
    ]
}

fn node_params(kernel: &Kernel<'_>, extra: &mut [*mut c_void; 5]) -> hip::hipKernelNodeParams {
    let size = |[x, y, z]: [u32; 3]| hip::dim3 { x, y, z };
    hip::hipKernelNodeParams {
        blockDim: size(kernel.block),
        extra: extra.as_mut_ptr(),
        func: raw(kernel.function.0),
        gridDim: size(kernel.grid),
        kernelParams: ptr::null_mut(),
        sharedMemBytes: kernel.dynamic_shared_bytes,
    }
}

fn location(device: Ordinal) -> hip::hipMemLocation {
    hip::hipMemLocation { type_: hip::hipMemLocationTypeDevice, id: device.0 }
}

/// A text of the driver's that it never frees.
fn words(words: *const c_char) -> Option<String> {
    if words.is_null() {
        return None;
    }
    // SAFETY: not null, and the driver's documentation says that it is text.
    let words = unsafe { CStr::from_ptr(words) };
    Some(words.to_string_lossy().into_owned())
}

impl Hip {
    fn attribute(&self, device: Ordinal, what: hip::hipDeviceAttribute_t) -> Outcome<u32> {
        let mut value = 0;
        // SAFETY: `value` takes one integer.
        check(unsafe { (self.calls.hipDeviceGetAttribute)(&mut value, what, device.0) })?;
        Ok(u32::try_from(value).unwrap_or(0))
    }

    /// What code has to be compiled for, features included, such as `gfx90a:sramecc+:xnack-`.
    fn arch(&self, device: Ordinal) -> Outcome<String> {
        let (call, offset) = self.calls.properties;
        let mut room = Box::new(hip::PropertiesRoom::EMPTY);
        // SAFETY: the room is larger than the properties of any version.
        check(unsafe { call(&mut *room, device.0) })?;
        Ok(loading::text(&room.0[offset..offset + hip::GCN_ARCH_NAME_BYTES]))
    }

    fn function_attribute(
        &self,
        function: Function,
        what: hip::hipFunction_attribute,
    ) -> Outcome<u32> {
        let mut value = 0;
        // SAFETY: `value` takes one integer; that the function is loaded is the caller's promise.
        check(unsafe { (self.calls.hipFuncGetAttribute)(&mut value, what, raw(function.0)) })?;
        Ok(u32::try_from(value).unwrap_or(0))
    }

    fn limits(&self, device: Ordinal) -> Outcome<LaunchLimits> {
        let of = |what| self.attribute(device, what);
        Ok(LaunchLimits {
            grid: [
                of(hip::hipDeviceAttributeMaxGridDimX)?,
                of(hip::hipDeviceAttributeMaxGridDimY)?,
                of(hip::hipDeviceAttributeMaxGridDimZ)?,
            ],
            block: [
                of(hip::hipDeviceAttributeMaxBlockDimX)?,
                of(hip::hipDeviceAttributeMaxBlockDimY)?,
                of(hip::hipDeviceAttributeMaxBlockDimZ)?,
            ],
            block_threads: of(hip::hipDeviceAttributeMaxThreadsPerBlock)?,
            shared_bytes: of(hip::hipDeviceAttributeMaxSharedMemoryPerBlock)?,
            argument_bytes: ARGUMENT_BYTES,
        })
    }
}

impl Driver for Hip {
    fn name(&self) -> &'static str {
        "HIP"
    }

    fn kind(&self, code: Code) -> Kind {
        kind(code)
    }

    fn describe(&self, code: Code) -> String {
        // SAFETY: the call takes any number and returns a text.
        let name = words(unsafe { (self.calls.hipGetErrorName)(code.0) });
        // SAFETY: as above.
        let sentence = words(unsafe { (self.calls.hipGetErrorString)(code.0) });
        match (name, sentence) {
            (Some(name), Some(sentence)) => format!("{name} ({}): {sentence}", code.0),
            (Some(name), None) => format!("{name} ({})", code.0),
            _ => format!("HIP error {}", code.0),
        }
    }

    fn device_count(&self) -> Outcome<i32> {
        let mut count = 0;
        // SAFETY: `count` takes one integer.
        check(unsafe { (self.calls.hipGetDeviceCount)(&mut count) })?;
        Ok(count)
    }

    fn device_info(&self, device: Ordinal) -> Outcome<DeviceInfo> {
        let mut name = [0_u8; 256];
        // SAFETY: the call writes at most the 256 bytes that it is told of.
        check(unsafe { (self.calls.hipDeviceGetName)(name.as_mut_ptr().cast(), 256, device.0) })?;
        let mut pci = [0_u8; 32];
        // SAFETY: the call writes at most the 32 bytes that it is told of.
        check(unsafe { (self.calls.hipDeviceGetPCIBusId)(pci.as_mut_ptr().cast(), 32, device.0) })?;
        let mut memory = 0_usize;
        // SAFETY: `memory` takes one integer.
        check(unsafe { (self.calls.hipDeviceTotalMem)(&mut memory, device.0) })?;
        Ok(DeviceInfo {
            name: loading::text(&name),
            arch: self.arch(device)?,
            pci: loading::pci_address(&loading::text(&pci)),
            memory_bytes: memory as u64,
            limits: self.limits(device)?,
            has_pools: self.attribute(device, hip::hipDeviceAttributeMemoryPoolsSupported)? != 0,
            has_shareable_memory: self.shares_memory(device)?,
            card_access: self.card_access(device)?,
            is_integrated: self.attribute(device, hip::hipDeviceAttributeIntegrated)? != 0,
        })
    }

    fn context_create(&self, device: Ordinal) -> Outcome<Context> {
        let context = context(device)?;
        // SAFETY: the call takes any number.
        check(unsafe { (self.calls.hipSetDevice)(device.0) })?;
        Ok(context)
    }

    unsafe fn context_destroy(&self, _context: Context) -> Outcome<()> {
        Ok(())
    }

    unsafe fn context_set_current(&self, context: Context) -> Outcome<()> {
        // SAFETY: the call takes any number.
        check(unsafe { (self.calls.hipSetDevice)(device(context)?) })
    }

    fn memory_info(&self) -> Outcome<(u64, u64)> {
        let (mut free, mut total) = (0_usize, 0_usize);
        // SAFETY: both take one integer.
        check(unsafe { (self.calls.hipMemGetInfo)(&mut free, &mut total) })?;
        Ok((free as u64, total as u64))
    }

    fn stream_create(&self) -> Outcome<Stream> {
        let mut stream = ptr::null_mut();
        let flags = hip::hipStreamNonBlocking;
        // SAFETY: `stream` takes one handle.
        check(unsafe { (self.calls.hipStreamCreateWithFlags)(&mut stream, flags) })?;
        handle(stream).map(Stream)
    }

    unsafe fn stream_destroy(&self, stream: Stream) -> Outcome<()> {
        // SAFETY: the caller says that the stream is alive.
        check(unsafe { (self.calls.hipStreamDestroy)(raw(stream.0)) })
    }

    unsafe fn stream_query(&self, stream: Stream) -> Outcome<()> {
        // SAFETY: the caller says that the stream is alive.
        check(unsafe { (self.calls.hipStreamQuery)(raw(stream.0)) })
    }

    unsafe fn stream_synchronize(&self, stream: Stream) -> Outcome<()> {
        // SAFETY: the caller says that the stream is alive.
        check(unsafe { (self.calls.hipStreamSynchronize)(raw(stream.0)) })
    }

    unsafe fn stream_wait(&self, stream: Stream, event: Event) -> Outcome<()> {
        // SAFETY: the caller says that both are alive.
        check(unsafe { (self.calls.hipStreamWaitEvent)(raw(stream.0), raw(event.0), 0) })
    }

    fn event_create(&self, for_: EventUse) -> Outcome<Event> {
        let flags = match for_ {
            EventUse::Order => hip::hipEventDisableTiming,
            EventUse::Time => hip::hipEventDefault,
        };
        let mut event = ptr::null_mut();
        // SAFETY: `event` takes one handle.
        check(unsafe { (self.calls.hipEventCreateWithFlags)(&mut event, flags) })?;
        handle(event).map(Event)
    }

    unsafe fn event_destroy(&self, event: Event) -> Outcome<()> {
        // SAFETY: the caller says that the event is alive.
        check(unsafe { (self.calls.hipEventDestroy)(raw(event.0)) })
    }

    unsafe fn event_record(&self, event: Event, stream: Stream) -> Outcome<()> {
        // SAFETY: the caller says that both are alive.
        check(unsafe { (self.calls.hipEventRecord)(raw(event.0), raw(stream.0)) })
    }

    unsafe fn event_query(&self, event: Event) -> Outcome<()> {
        // SAFETY: the caller says that the event is alive.
        check(unsafe { (self.calls.hipEventQuery)(raw(event.0)) })
    }

    unsafe fn elapsed(&self, from: Event, to: Event) -> Outcome<Duration> {
        let mut milliseconds = 0.0;
        let (from, to) = (raw(from.0), raw(to.0));
        // SAFETY: the caller says that both are alive; `milliseconds` takes one number.
        check(unsafe { (self.calls.hipEventElapsedTime)(&mut milliseconds, from, to) })?;
        Ok(loading::duration(milliseconds))
    }

    fn pool_create(&self, device: Ordinal, keep_bytes: u64) -> Outcome<Pool> {
        let props = hip::hipMemPoolProps {
            allocType: hip::hipMemAllocationTypePinned,
            handleTypes: hip::hipMemHandleTypeNone,
            location: location(device),
            win32SecurityAttributes: ptr::null_mut(),
            maxSize: 0,
            reserved: [0; 56],
        };
        let mut pool = ptr::null_mut();
        // SAFETY: `pool` takes one handle; the properties are read during the call.
        check(unsafe { (self.calls.hipMemPoolCreate)(&mut pool, &props) })?;
        let handle = handle(pool).map(Pool)?;
        let threshold = hip::hipMemPoolAttrReleaseThreshold;
        let mut keep = keep_bytes;
        let value = ptr::from_mut(&mut keep).cast();
        // SAFETY: the pool was made just now; this attribute's value is a 64-bit integer.
        let kept = check(unsafe { (self.calls.hipMemPoolSetAttribute)(pool, threshold, value) });
        if kept.is_err() {
            // SAFETY: the pool was made just now and nobody knows of it. What counts is the failure
            // before.
            let _ = unsafe { self.pool_destroy(handle) };
        }
        kept.map(|()| handle)
    }

    unsafe fn pool_destroy(&self, pool: Pool) -> Outcome<()> {
        // SAFETY: the caller says that the pool is alive.
        check(unsafe { (self.calls.hipMemPoolDestroy)(raw(pool.0)) })
    }

    unsafe fn pool_allow(&self, pool: Pool, device: Ordinal) -> Outcome<()> {
        let access = hip::hipMemAccessDesc {
            location: location(device),
            flags: hip::hipMemAccessFlagsProtReadWrite,
        };
        // SAFETY: the caller says that the pool is alive; one description is read during the call.
        check(unsafe { (self.calls.hipMemPoolSetAccess)(raw(pool.0), &access, 1) })
    }

    unsafe fn pool_alloc(&self, pool: Pool, bytes: u64, stream: Stream) -> Outcome<DevicePointer> {
        let (pool, bytes, stream) = (raw(pool.0), length(bytes)?, raw(stream.0));
        let mut at = ptr::null_mut();
        // SAFETY: the caller says that pool and stream are alive; `at` takes one address.
        check(unsafe { (self.calls.hipMallocFromPoolAsync)(&mut at, bytes, pool, stream) })?;
        Ok(device_pointer(at))
    }

    unsafe fn pool_free(&self, pointer: DevicePointer, stream: Stream) -> Outcome<()> {
        // SAFETY: the caller says that the memory is from a pool and the stream is alive.
        check(unsafe { (self.calls.hipFreeAsync)(place(pointer)?, raw(stream.0)) })
    }

    fn memory_alloc(&self, bytes: u64) -> Outcome<DevicePointer> {
        let (mut at, bytes) = (ptr::null_mut(), length(bytes)?);
        // SAFETY: `at` takes one address.
        check(unsafe { (self.calls.hipMalloc)(&mut at, bytes) })?;
        Ok(device_pointer(at))
    }

    unsafe fn memory_free(&self, pointer: DevicePointer) -> Outcome<()> {
        // SAFETY: the caller says that this is memory which `memory_alloc` made.
        check(unsafe { (self.calls.hipFree)(place(pointer)?) })
    }

    unsafe fn memory_zero(&self, at: DevicePointer, bytes: u64, stream: Stream) -> Outcome<()> {
        let (at, bytes, stream) = (place(at)?, length(bytes)?, raw(stream.0));
        // SAFETY: the caller says that the memory is there, so long, and the stream is alive.
        check(unsafe { (self.calls.hipMemsetAsync)(at, 0, bytes, stream) })
    }

    fn handle_create(&self, device: Ordinal, bytes: u64, for_cards: bool) -> Outcome<MemoryHandle> {
        self.create_handle(device, bytes, for_cards)
    }

    unsafe fn handle_release(&self, handle: MemoryHandle) -> Outcome<()> {
        // SAFETY: the caller says that the handle is alive.
        check(unsafe { (self.calls.hipMemRelease)(raw(handle.0)) })
    }

    unsafe fn handle_export(&self, handle: MemoryHandle) -> Outcome<OwnedFd> {
        self.export_handle(handle)
    }

    fn handle_import(&self, from: BorrowedFd<'_>) -> Outcome<MemoryHandle> {
        self.import_handle(from)
    }

    fn addresses_reserve(&self, bytes: u64) -> Outcome<DevicePointer> {
        let (mut at, bytes) = (ptr::null_mut(), length(bytes)?);
        // SAFETY: `at` takes one address.
        check(unsafe { (self.calls.hipMemAddressReserve)(&mut at, bytes, 0, ptr::null_mut(), 0) })?;
        Ok(device_pointer(at))
    }

    unsafe fn addresses_free(&self, at: DevicePointer, bytes: u64) -> Outcome<()> {
        // SAFETY: the caller says that these were reserved and that nothing is mapped there.
        check(unsafe { (self.calls.hipMemAddressFree)(place(at)?, length(bytes)?) })
    }

    unsafe fn handle_map(&self, at: DevicePointer, bytes: u64, of: MemoryHandle) -> Outcome<()> {
        let (at, bytes) = (place(at)?, length(bytes)?);
        // SAFETY: the caller says that the addresses are reserved and the handle is alive.
        check(unsafe { (self.calls.hipMemMap)(at, bytes, 0, raw(of.0), 0) })
    }

    unsafe fn handle_unmap(&self, at: DevicePointer, bytes: u64) -> Outcome<()> {
        // SAFETY: the caller says that this is what was mapped, and that no work uses it.
        check(unsafe { (self.calls.hipMemUnmap)(place(at)?, length(bytes)?) })
    }

    unsafe fn mapping_allow(&self, at: DevicePointer, bytes: u64, device: Ordinal) -> Outcome<()> {
        let access = hip::hipMemAccessDesc {
            location: location(device),
            flags: hip::hipMemAccessFlagsProtReadWrite,
        };
        let (at, bytes) = (place(at)?, length(bytes)?);
        // SAFETY: the caller says that this is mapped; one description is read during the call.
        check(unsafe { (self.calls.hipMemSetAccess)(at, bytes, &access, 1) })
    }

    unsafe fn range_export(&self, at: DevicePointer, bytes: u64) -> Outcome<OwnedFd> {
        // SAFETY: as the caller says.
        unsafe { self.export_range(at, bytes) }
    }

    /// A kernel's beginning has the device look at memory that others have written.
    fn writes_flush(&self) -> Outcome<()> {
        Ok(())
    }

    unsafe fn host_register(&self, at: *mut u8, bytes: usize, read_only: bool) -> Outcome<()> {
        let access = if read_only { hip::hipHostRegisterReadOnly } else { 0 };
        let flags = hip::hipHostRegisterPortable | access;
        // SAFETY: the caller says that the memory is there and stays.
        check(unsafe { (self.calls.hipHostRegister)(at.cast(), bytes, flags) })
    }

    unsafe fn host_unregister(&self, at: *mut u8) -> Outcome<()> {
        // SAFETY: the caller says that this is memory which `host_register` pinned.
        check(unsafe { (self.calls.hipHostUnregister)(at.cast()) })
    }

    unsafe fn copy_in(
        &self,
        to: DevicePointer,
        from: *const u8,
        bytes: u64,
        stream: Stream,
    ) -> Outcome<()> {
        let (to, bytes, stream) = (place(to)?, length(bytes)?, raw(stream.0));
        // SAFETY: the caller says that both places are there, so long, until the stream is past.
        check(unsafe { (self.calls.hipMemcpyHtoDAsync)(to, from.cast(), bytes, stream) })
    }

    unsafe fn copy_out(
        &self,
        to: *mut u8,
        from: DevicePointer,
        bytes: u64,
        stream: Stream,
    ) -> Outcome<()> {
        let (from, bytes, stream) = (place(from)?, length(bytes)?, raw(stream.0));
        // SAFETY: the caller says that both places are there, so long, until the stream is past.
        check(unsafe { (self.calls.hipMemcpyDtoHAsync)(to.cast(), from, bytes, stream) })
    }

    unsafe fn copy(
        &self,
        to: DevicePointer,
        from: DevicePointer,
        bytes: u64,
        stream: Stream,
    ) -> Outcome<()> {
        let (to, from) = (place(to)?, place(from)?);
        let (bytes, stream) = (length(bytes)?, raw(stream.0));
        // SAFETY: the caller says that both places are there, so long, until the stream is past.
        check(unsafe { (self.calls.hipMemcpyDtoDAsync)(to, from, bytes, stream) })
    }

    unsafe fn copy_peer(
        &self,
        to: (Context, DevicePointer),
        from: (Context, DevicePointer),
        bytes: u64,
        stream: Stream,
    ) -> Outcome<()> {
        let (to_device, from_device) = (device(to.0)?, device(from.0)?);
        let (to, from) = (place(to.1)?, place(from.1)?);
        let (bytes, stream, call) = (length(bytes)?, raw(stream.0), self.calls.hipMemcpyPeerAsync);
        // SAFETY: the caller says that both places are there, so long, until the stream is past.
        check(unsafe { call(to, to_device, from, from_device, bytes, stream) })
    }

    fn can_access_peer(&self, device: Ordinal, peer: Ordinal) -> Outcome<bool> {
        let mut can = 0;
        // SAFETY: `can` takes one integer.
        check(unsafe { (self.calls.hipDeviceCanAccessPeer)(&mut can, device.0, peer.0) })?;
        Ok(can != 0)
    }

    unsafe fn peer_enable(&self, peer: Context) -> Outcome<()> {
        // SAFETY: the call takes any number.
        check(unsafe { (self.calls.hipDeviceEnablePeerAccess)(device(peer)?, 0) })
    }

    /// HIP's runtime has no compiler of its own that could say more than the code does.
    fn module_load(&self, image: &[u8]) -> Result<Module, (Code, String)> {
        let mut module = ptr::null_mut();
        // SAFETY: the image is a whole binary, which says how long it is: the compiler made it.
        // `module` takes one handle.
        let result = unsafe { (self.calls.hipModuleLoadData)(&mut module, image.as_ptr().cast()) };
        let made = check(result).and_then(|()| handle(module));
        made.map(Module).map_err(|code| (code, String::new()))
    }

    unsafe fn module_unload(&self, module: Module) -> Outcome<()> {
        // SAFETY: the caller says that the module is loaded.
        check(unsafe { (self.calls.hipModuleUnload)(raw(module.0)) })
    }

    unsafe fn module_function(&self, module: Module, name: &CStr) -> Outcome<Function> {
        let (mut function, module) = (ptr::null_mut(), raw(module.0));
        // SAFETY: the caller says that the module is loaded; `function` takes one handle.
        check(unsafe { (self.calls.hipModuleGetFunction)(&mut function, module, name.as_ptr()) })?;
        handle(function).map(Function)
    }

    unsafe fn function_info(&self, function: Function) -> Outcome<FunctionInfo> {
        let of = |what| self.function_attribute(function, what);
        Ok(FunctionInfo {
            block_threads: of(hip::HIP_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?,
            static_shared_bytes: of(hip::HIP_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?,
        })
    }

    unsafe fn launch(&self, kernel: &Kernel<'_>, stream: Stream) -> Outcome<()> {
        let mut bytes = kernel.arguments.len();
        let mut extra = extra(kernel.arguments, &mut bytes);
        let ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]) = (kernel.grid, kernel.block);
        // SAFETY: the caller says that function and stream are alive and that the arguments are the
        // kernel's; they and the list are read during the call.
        check(unsafe {
            (self.calls.hipModuleLaunchKernel)(
                raw(kernel.function.0),
                grid_x,
                grid_y,
                grid_z,
                block_x,
                block_y,
                block_z,
                kernel.dynamic_shared_bytes,
                raw(stream.0),
                ptr::null_mut(),
                extra.as_mut_ptr(),
            )
        })
    }

    unsafe fn launch_host(
        &self,
        stream: Stream,
        function: HostFunction,
        argument: *mut c_void,
    ) -> Outcome<()> {
        let stream = raw(stream.0);
        // SAFETY: the caller says that the stream is alive and that the function may be called with
        // the argument, from any thread.
        check(unsafe { (self.calls.hipLaunchHostFunc)(stream, Some(function), argument) })
    }

    fn graph_create(&self) -> Outcome<GraphTemplate> {
        let mut graph = ptr::null_mut();
        // SAFETY: `graph` takes one handle.
        check(unsafe { (self.calls.hipGraphCreate)(&mut graph, 0) })?;
        handle(graph).map(GraphTemplate)
    }

    unsafe fn graph_destroy(&self, graph: GraphTemplate) -> Outcome<()> {
        // SAFETY: the caller says that the graph is alive.
        check(unsafe { (self.calls.hipGraphDestroy)(raw(graph.0)) })
    }

    unsafe fn graph_add_kernel(
        &self,
        graph: GraphTemplate,
        after: &[Node],
        kernel: &Kernel<'_>,
    ) -> Outcome<Node> {
        let mut bytes = kernel.arguments.len();
        let mut extra = extra(kernel.arguments, &mut bytes);
        let params = node_params(kernel, &mut extra);
        let (mut node, call) = (ptr::null_mut(), self.calls.hipGraphAddKernelNode);
        let (before, count) = (after.as_ptr().cast(), after.len());
        // SAFETY: the caller says that graph, nodes and function are alive and that the arguments
        // are the kernel's. A node is one pointer in both declarations; all is read in the call.
        check(unsafe { call(&mut node, raw(graph.0), before, count, &params) })?;
        handle(node).map(Node)
    }

    unsafe fn graph_add_copy(
        &self,
        graph: GraphTemplate,
        after: &[Node],
        to: DevicePointer,
        from: DevicePointer,
        bytes: u64,
    ) -> Outcome<Node> {
        let (to, from, bytes) = (place(to)?, place(from)?, length(bytes)?);
        let (mut node, call) = (ptr::null_mut(), self.calls.hipGraphAddMemcpyNode1D);
        let (before, count) = (after.as_ptr().cast(), after.len());
        let (graph, way) = (raw(graph.0), hip::hipMemcpyDeviceToDevice);
        // SAFETY: the caller says that graph and nodes are alive and that both places are there, so
        // long. A node is one pointer in both declarations; the list is read during the call.
        check(unsafe { call(&mut node, graph, before, count, to, from, bytes, way) })?;
        handle(node).map(Node)
    }

    unsafe fn graph_instantiate(&self, graph: GraphTemplate) -> Outcome<GraphExec> {
        let mut exec = ptr::null_mut();
        // SAFETY: the caller says that the graph is alive; `exec` takes one handle.
        check(unsafe { (self.calls.hipGraphInstantiateWithFlags)(&mut exec, raw(graph.0), 0) })?;
        handle(exec).map(GraphExec)
    }

    unsafe fn graph_exec_destroy(&self, exec: GraphExec) -> Outcome<()> {
        // SAFETY: the caller says that it is alive.
        check(unsafe { (self.calls.hipGraphExecDestroy)(raw(exec.0)) })
    }

    unsafe fn graph_set_kernel(
        &self,
        exec: GraphExec,
        node: Node,
        kernel: &Kernel<'_>,
    ) -> Outcome<()> {
        let mut bytes = kernel.arguments.len();
        let mut extra = extra(kernel.arguments, &mut bytes);
        let params = node_params(kernel, &mut extra);
        let call = self.calls.hipGraphExecKernelNodeSetParams;
        // SAFETY: the caller says that all three are alive, that the node is of the template, and
        // that the arguments are the kernel's; they are read during the call.
        check(unsafe { call(raw(exec.0), raw(node.0), &params) })
    }

    unsafe fn graph_set_copy(
        &self,
        exec: GraphExec,
        node: Node,
        to: DevicePointer,
        from: DevicePointer,
        bytes: u64,
    ) -> Outcome<()> {
        let (to, from, bytes) = (place(to)?, place(from)?, length(bytes)?);
        let (call, way) =
            (self.calls.hipGraphExecMemcpyNodeSetParams1D, hip::hipMemcpyDeviceToDevice);
        // SAFETY: the caller says that both are alive, that the node is of the template, and that
        // both places are there, so long.
        check(unsafe { call(raw(exec.0), raw(node.0), to, from, bytes, way) })
    }

    unsafe fn graph_launch(&self, exec: GraphExec, stream: Stream) -> Outcome<()> {
        // SAFETY: the caller says that both are alive and that the memory of all nodes is there
        // until the stream is past.
        check(unsafe { (self.calls.hipGraphLaunch)(raw(exec.0), raw(stream.0)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_mean_what_the_documentation_says() {
        assert_eq!(kind(Code(hip::hipErrorNotReady)), Kind::NotReady);
        assert_eq!(kind(Code(hip::hipErrorIllegalAddress)), Kind::Fault("illegal address"));
        assert!(matches!(kind(Code(hip::hipErrorECCNotCorrectable)), Kind::Lost(_)));
        assert_eq!(kind(Code(hip::hipErrorSharedObjectInitFailed)), Kind::BadProgram);
        assert_eq!(kind(Code(hip::hipErrorPeerAccessAlreadyEnabled)), Kind::PeerEnabled);
        for code in [1, 9, 21, 52, 101, 201, 401, 701, 705, 712, 720, 900, 916] {
            assert_eq!(kind(Code(code)), Kind::Other, "{code}");
        }
    }

    #[test]
    fn codes_that_nobody_knows_lose_the_device() {
        // What CUDA has between 714 and 718 HIP does not have.
        for code in
            [-1, 54, 714, 715, 716, 717, 718, 722, 999, 1052, 1053, 1054, i32::MAX, i32::MIN]
        {
            assert!(matches!(kind(Code(code)), Kind::Lost(_)), "{code}");
        }
        for code in [53, 700, 702, 710, 719] {
            assert!(matches!(kind(Code(code)), Kind::Fault(_)), "{code}");
        }
    }

    #[test]
    fn no_code_has_two_meanings() {
        for (at, (code, _)) in KINDS.iter().enumerate() {
            assert!(!KINDS[..at].iter().any(|(before, _)| before == code), "{code}");
        }
    }

    #[test]
    fn context_is_its_device() {
        for ordinal in [0, 7, i32::MAX] {
            let context = context(Ordinal(ordinal)).expect("a device's number");
            assert_eq!(device(context), Ok(ordinal));
        }
        assert_eq!(context(Ordinal(-1)), Err(Code(hip::hipErrorInvalidDevice)));
    }

    #[test]
    fn versions_are_spelled_as_everywhere() {
        assert_eq!(version_text(50_422_804), "5.4");
        assert_eq!(version_text(60_443_482), "6.4");
        assert_eq!(version_text(71_400_000), "7.14");
    }
}
