//! The table of calls for CUDA.
//!
//! Owns: [`Cuda`], which is [`Driver`] by the calls of `libcuda.so.1`, one for one.
//!
//! Reading order: `calls` (the calls, looked up, and what their results mean), this file, `cards`
//! (what network cards reach), `start` (finding the library and starting the driver).

mod calls;
mod cards;
mod start;

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::time::Duration;

use cudarc::driver::sys;
use sys::CUresult::*;

use self::calls::{Calls, kind};
pub(super) use self::start::load;
use super::driver::{
    Code, Context, DeviceInfo, DevicePointer, Driver, Event, EventUse, Function, FunctionInfo,
    GraphExec, GraphTemplate, HostFunction, Kernel, Kind, LaunchLimits, MemoryHandle, Module, Node,
    Ordinal, Outcome, Pool, Stream,
};
use super::loading;

/// Arguments of a launch; more for devices from Volta on, from CUDA 12.1 on.
const ARGUMENT_BYTES: u32 = 4096;
const ARGUMENT_BYTES_VOLTA: u32 = 32_764;

/// Room for what the driver's compiler has to say.
const LOG_BYTES: usize = 16 << 10;

/// [`Driver`] by the calls of `libcuda.so.1`.
struct Cuda {
    calls: Calls,
    /// 1000 times the major and 10 times the minor version.
    version: c_int,
}

fn version_text(number: c_int) -> String {
    format!("{}.{}", number / 1000, number % 1000 / 10)
}

/// A result as an outcome.
fn check(result: c_int) -> Outcome<()> {
    match result {
        0 => Ok(()),
        code => Err(Code(code)),
    }
}

/// A handle as the driver has it.
fn raw<T>(handle: NonZeroUsize) -> *mut T {
    ptr::with_exposed_provenance_mut(handle.get())
}

/// A handle that the driver made.
fn handle<T>(raw: *mut T) -> Outcome<NonZeroUsize> {
    NonZeroUsize::new(raw.expose_provenance()).ok_or(Code(CUDA_ERROR_UNKNOWN as c_int))
}

/// A length, which is as long as an address on every system that has a driver.
fn length(bytes: u64) -> Outcome<usize> {
    usize::try_from(bytes).map_err(|_| Code(CUDA_ERROR_INVALID_VALUE as c_int))
}

/// The list that hands packed arguments to a launch; `bytes` is their number.
fn extra(arguments: &[u8], bytes: &mut usize) -> [*mut c_void; 5] {
    let (pointer, size, end) = (1, 2, 0);
    [
        ptr::without_provenance_mut(pointer),
        arguments.as_ptr().cast_mut().cast(),
        ptr::without_provenance_mut(size),
        ptr::from_mut(bytes).cast(),
        ptr::without_provenance_mut(end),
    ]
}

fn node_params(kernel: &Kernel<'_>, extra: &mut [*mut c_void; 5]) -> sys::CUDA_KERNEL_NODE_PARAMS {
    let ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]) = (kernel.grid, kernel.block);
    sys::CUDA_KERNEL_NODE_PARAMS {
        func: raw(kernel.function.0),
        gridDimX: grid_x,
        gridDimY: grid_y,
        gridDimZ: grid_z,
        blockDimX: block_x,
        blockDimY: block_y,
        blockDimZ: block_z,
        sharedMemBytes: kernel.dynamic_shared_bytes,
        kernelParams: ptr::null_mut(),
        extra: extra.as_mut_ptr(),
        kern: ptr::null_mut(),
        ctx: ptr::null_mut(),
    }
}

/// A copy of one row of one slice. Pitches are left unspecified: one row has none, and they have a
/// limit that a row does not have.
fn copy_params(to: DevicePointer, from: DevicePointer, bytes: usize) -> sys::CUDA_MEMCPY3D {
    sys::CUDA_MEMCPY3D {
        srcXInBytes: 0,
        srcY: 0,
        srcZ: 0,
        srcLOD: 0,
        srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
        srcHost: ptr::null(),
        srcDevice: from.0,
        srcArray: ptr::null_mut(),
        reserved0: ptr::null_mut(),
        srcPitch: 0,
        srcHeight: 0,
        dstXInBytes: 0,
        dstY: 0,
        dstZ: 0,
        dstLOD: 0,
        dstMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
        dstHost: ptr::null_mut(),
        dstDevice: to.0,
        dstArray: ptr::null_mut(),
        reserved1: ptr::null_mut(),
        dstPitch: 0,
        dstHeight: 0,
        WidthInBytes: bytes,
        Height: 1,
        Depth: 1,
    }
}

/// By descriptors: nothing else of them passes a sandbox, and nobody has to trust a number.
const SHARED_BY: sys::CUmemAllocationHandleType =
    sys::CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;

/// A handle of memory that the driver made.
fn memory_handle(raw: sys::CUmemGenericAllocationHandle) -> Outcome<MemoryHandle> {
    let number = NonZeroUsize::new(length(raw)?);
    number.map(MemoryHandle).ok_or(Code(CUDA_ERROR_UNKNOWN as c_int))
}

fn raw_memory(handle: MemoryHandle) -> sys::CUmemGenericAllocationHandle {
    handle.0.get() as sys::CUmemGenericAllocationHandle
}

fn location(device: Ordinal) -> sys::CUmemLocation {
    sys::CUmemLocation { type_: sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE, id: device.0 }
}

impl Cuda {
    fn device(&self, ordinal: Ordinal) -> Outcome<sys::CUdevice> {
        let mut device = 0;
        // SAFETY: `device` takes one handle.
        check(unsafe { (self.calls.cuDeviceGet)(&mut device, ordinal.0) })?;
        Ok(device)
    }

    fn attribute(&self, device: sys::CUdevice, what: sys::CUdevice_attribute) -> Outcome<u32> {
        let mut value = 0;
        // SAFETY: `value` takes one integer.
        check(unsafe { (self.calls.cuDeviceGetAttribute)(&mut value, what, device) })?;
        Ok(u32::try_from(value).unwrap_or(0))
    }

    fn function_attribute(
        &self,
        function: Function,
        what: sys::CUfunction_attribute,
    ) -> Outcome<u32> {
        let mut value = 0;
        // SAFETY: `value` takes one integer; that the function is loaded is the caller's promise.
        check(unsafe { (self.calls.cuFuncGetAttribute)(&mut value, what, raw(function.0)) })?;
        Ok(u32::try_from(value).unwrap_or(0))
    }

    fn limits(&self, device: sys::CUdevice) -> Outcome<LaunchLimits> {
        use sys::CUdevice_attribute::*;
        let of = |what| self.attribute(device, what);
        let is_volta = of(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)? >= 7;
        Ok(LaunchLimits {
            grid: [
                of(CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X)?,
                of(CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y)?,
                of(CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z)?,
            ],
            block: [
                of(CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X)?,
                of(CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y)?,
                of(CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z)?,
            ],
            block_threads: of(CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?,
            shared_bytes: of(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
            argument_bytes: match is_volta && self.version >= 12_010 {
                true => ARGUMENT_BYTES_VOLTA,
                false => ARGUMENT_BYTES,
            },
        })
    }

    fn current_context(&self) -> Outcome<sys::CUcontext> {
        let mut context = ptr::null_mut();
        // SAFETY: `context` takes one handle.
        check(unsafe { (self.calls.cuCtxGetCurrent)(&mut context) })?;
        Ok(context)
    }

    /// What one of the two calls that explain a code says.
    fn words(
        &self,
        explain: unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int,
        code: Code,
    ) -> Option<String> {
        let mut words = ptr::null();
        // SAFETY: `words` takes one pointer; the call takes any number.
        check(unsafe { explain(code.0, &mut words) }).ok()?;
        if words.is_null() {
            return None;
        }
        // SAFETY: the driver's own text, which it never frees.
        let words = unsafe { CStr::from_ptr(words) };
        Some(words.to_string_lossy().into_owned())
    }
}

impl Driver for Cuda {
    fn name(&self) -> &'static str {
        "CUDA"
    }

    fn kind(&self, code: Code) -> Kind {
        kind(code)
    }

    fn describe(&self, code: Code) -> String {
        let name = self.words(self.calls.cuGetErrorName, code);
        let sentence = self.words(self.calls.cuGetErrorString, code);
        match (name, sentence) {
            (Some(name), Some(sentence)) => format!("{name} ({}): {sentence}", code.0),
            (Some(name), None) => format!("{name} ({})", code.0),
            _ => format!("CUDA error {}", code.0),
        }
    }

    fn device_count(&self) -> Outcome<i32> {
        let mut count = 0;
        // SAFETY: `count` takes one integer.
        check(unsafe { (self.calls.cuDeviceGetCount)(&mut count) })?;
        Ok(count)
    }

    fn device_info(&self, ordinal: Ordinal) -> Outcome<DeviceInfo> {
        use sys::CUdevice_attribute::*;
        let device = self.device(ordinal)?;
        let mut name = [0_u8; 256];
        // SAFETY: the call writes at most the 256 bytes that it is told of.
        check(unsafe { (self.calls.cuDeviceGetName)(name.as_mut_ptr().cast(), 256, device) })?;
        let mut pci = [0_u8; 32];
        // SAFETY: the call writes at most the 32 bytes that it is told of.
        check(unsafe { (self.calls.cuDeviceGetPCIBusId)(pci.as_mut_ptr().cast(), 32, device) })?;
        let mut memory = 0_usize;
        // SAFETY: `memory` takes one integer.
        check(unsafe { (self.calls.cuDeviceTotalMem_v2)(&mut memory, device) })?;
        let major = self.attribute(device, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = self.attribute(device, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        Ok(DeviceInfo {
            name: loading::text(&name),
            arch: format!("sm_{major}{minor}"),
            pci: loading::pci_address(&loading::text(&pci)),
            memory_bytes: memory as u64,
            limits: self.limits(device)?,
            has_pools: self.attribute(device, CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED)? != 0,
            has_shareable_memory: self
                .attribute(device, CU_DEVICE_ATTRIBUTE_VIRTUAL_ADDRESS_MANAGEMENT_SUPPORTED)?
                != 0
                && self.attribute(
                    device,
                    CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED,
                )? != 0,
            card_access: self.card_access(device)?,
            is_integrated: self.attribute(device, CU_DEVICE_ATTRIBUTE_INTEGRATED)? != 0,
        })
    }

    /// The new context takes the place of the current one: the thread's stack stays one deep.
    fn context_create(&self, ordinal: Ordinal) -> Outcome<Context> {
        // A thread that waits sleeps instead of spinning.
        let flags = sys::CUctx_flags::CU_CTX_SCHED_BLOCKING_SYNC as c_uint;
        let device = self.device(ordinal)?;
        let mut context = ptr::null_mut();
        // SAFETY: `context` takes one handle.
        check(unsafe { (self.calls.cuCtxCreate_v2)(&mut context, flags, device) })?;
        let mut popped = ptr::null_mut();
        // SAFETY: the context that was made is on top of this thread's stack; `popped` takes it.
        let popped = check(unsafe { (self.calls.cuCtxPopCurrent_v2)(&mut popped) });
        // SAFETY: the context was made just now.
        let set = || check(unsafe { (self.calls.cuCtxSetCurrent)(context) });
        if let Err(code) = popped.and_then(|()| set()) {
            // SAFETY: the context was made just now, and nobody else knows of it.
            let _ = check(unsafe { (self.calls.cuCtxDestroy_v2)(context) });
            return Err(code);
        }
        handle(context).map(Context)
    }

    unsafe fn context_destroy(&self, context: Context) -> Outcome<()> {
        // SAFETY: the caller says that the context is alive.
        check(unsafe { (self.calls.cuCtxDestroy_v2)(raw(context.0)) })
    }

    unsafe fn context_set_current(&self, context: Context) -> Outcome<()> {
        // SAFETY: the caller says that the context is alive.
        check(unsafe { (self.calls.cuCtxSetCurrent)(raw(context.0)) })
    }

    fn memory_info(&self) -> Outcome<(u64, u64)> {
        let (mut free, mut total) = (0_usize, 0_usize);
        // SAFETY: both take one integer.
        check(unsafe { (self.calls.cuMemGetInfo_v2)(&mut free, &mut total) })?;
        Ok((free as u64, total as u64))
    }

    fn stream_create(&self) -> Outcome<Stream> {
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as c_uint;
        let mut stream = ptr::null_mut();
        // SAFETY: `stream` takes one handle.
        check(unsafe { (self.calls.cuStreamCreate)(&mut stream, flags) })?;
        handle(stream).map(Stream)
    }

    unsafe fn stream_destroy(&self, stream: Stream) -> Outcome<()> {
        // SAFETY: the caller says that the stream is alive.
        check(unsafe { (self.calls.cuStreamDestroy_v2)(raw(stream.0)) })
    }

    unsafe fn stream_query(&self, stream: Stream) -> Outcome<()> {
        // SAFETY: the caller says that the stream is alive.
        check(unsafe { (self.calls.cuStreamQuery)(raw(stream.0)) })
    }

    unsafe fn stream_synchronize(&self, stream: Stream) -> Outcome<()> {
        // SAFETY: the caller says that the stream is alive.
        check(unsafe { (self.calls.cuStreamSynchronize)(raw(stream.0)) })
    }

    unsafe fn stream_wait(&self, stream: Stream, event: Event) -> Outcome<()> {
        // SAFETY: the caller says that both are alive.
        check(unsafe { (self.calls.cuStreamWaitEvent)(raw(stream.0), raw(event.0), 0) })
    }

    fn event_create(&self, for_: EventUse) -> Outcome<Event> {
        let flags = match for_ {
            EventUse::Order => sys::CUevent_flags::CU_EVENT_DISABLE_TIMING,
            EventUse::Time => sys::CUevent_flags::CU_EVENT_DEFAULT,
        };
        let mut event = ptr::null_mut();
        // SAFETY: `event` takes one handle.
        check(unsafe { (self.calls.cuEventCreate)(&mut event, flags as c_uint) })?;
        handle(event).map(Event)
    }

    unsafe fn event_destroy(&self, event: Event) -> Outcome<()> {
        // SAFETY: the caller says that the event is alive.
        check(unsafe { (self.calls.cuEventDestroy_v2)(raw(event.0)) })
    }

    unsafe fn event_record(&self, event: Event, stream: Stream) -> Outcome<()> {
        // SAFETY: the caller says that both are alive.
        check(unsafe { (self.calls.cuEventRecord)(raw(event.0), raw(stream.0)) })
    }

    unsafe fn event_query(&self, event: Event) -> Outcome<()> {
        // SAFETY: the caller says that the event is alive.
        check(unsafe { (self.calls.cuEventQuery)(raw(event.0)) })
    }

    unsafe fn elapsed(&self, from: Event, to: Event) -> Outcome<Duration> {
        let mut milliseconds = 0.0;
        let (from, to) = (raw(from.0), raw(to.0));
        // SAFETY: the caller says that both are alive; `milliseconds` takes one number.
        check(unsafe { (self.calls.cuEventElapsedTime)(&mut milliseconds, from, to) })?;
        Ok(loading::duration(milliseconds))
    }

    fn pool_create(&self, device: Ordinal, keep_bytes: u64) -> Outcome<Pool> {
        let props = sys::CUmemPoolProps {
            allocType: sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED,
            handleTypes: sys::CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_NONE,
            location: location(device),
            win32SecurityAttributes: ptr::null_mut(),
            maxSize: 0,
            usage: 0,
            reserved: [0; 54],
        };
        let mut pool = ptr::null_mut();
        // SAFETY: `pool` takes one handle; the properties are read during the call.
        check(unsafe { (self.calls.cuMemPoolCreate)(&mut pool, &props) })?;
        let handle = handle(pool).map(Pool)?;
        let threshold = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        let mut keep = keep_bytes;
        let value = ptr::from_mut(&mut keep).cast();
        // SAFETY: the pool was made just now; this attribute's value is a 64-bit integer.
        let kept = check(unsafe { (self.calls.cuMemPoolSetAttribute)(pool, threshold, value) });
        if kept.is_err() {
            // SAFETY: the pool was made just now and nobody knows of it. What counts is the failure
            // before.
            let _ = unsafe { self.pool_destroy(handle) };
        }
        kept.map(|()| handle)
    }

    unsafe fn pool_destroy(&self, pool: Pool) -> Outcome<()> {
        // SAFETY: the caller says that the pool is alive.
        check(unsafe { (self.calls.cuMemPoolDestroy)(raw(pool.0)) })
    }

    unsafe fn pool_allow(&self, pool: Pool, device: Ordinal) -> Outcome<()> {
        let access = sys::CUmemAccessDesc {
            location: location(device),
            flags: sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
        };
        // SAFETY: the caller says that the pool is alive; one description is read during the call.
        check(unsafe { (self.calls.cuMemPoolSetAccess)(raw(pool.0), &access, 1) })
    }

    unsafe fn pool_alloc(&self, pool: Pool, bytes: u64, stream: Stream) -> Outcome<DevicePointer> {
        let (pool, bytes, stream) = (raw(pool.0), length(bytes)?, raw(stream.0));
        let mut at = 0;
        // SAFETY: the caller says that pool and stream are alive; `at` takes one address.
        check(unsafe { (self.calls.cuMemAllocFromPoolAsync)(&mut at, bytes, pool, stream) })?;
        Ok(DevicePointer(at))
    }

    unsafe fn pool_free(&self, pointer: DevicePointer, stream: Stream) -> Outcome<()> {
        // SAFETY: the caller says that the memory is from a pool and the stream is alive.
        check(unsafe { (self.calls.cuMemFreeAsync)(pointer.0, raw(stream.0)) })
    }

    fn memory_alloc(&self, bytes: u64) -> Outcome<DevicePointer> {
        let mut at = 0;
        // SAFETY: `at` takes one address.
        check(unsafe { (self.calls.cuMemAlloc_v2)(&mut at, length(bytes)?) })?;
        Ok(DevicePointer(at))
    }

    unsafe fn memory_free(&self, pointer: DevicePointer) -> Outcome<()> {
        // SAFETY: the caller says that this is memory which `memory_alloc` made.
        check(unsafe { (self.calls.cuMemFree_v2)(pointer.0) })
    }

    unsafe fn memory_zero(&self, at: DevicePointer, bytes: u64, stream: Stream) -> Outcome<()> {
        // SAFETY: the caller says that the memory is there, so long, and the stream is alive.
        check(unsafe { (self.calls.cuMemsetD8Async)(at.0, 0, length(bytes)?, raw(stream.0)) })
    }

    fn handle_create(&self, device: Ordinal, bytes: u64, for_cards: bool) -> Outcome<MemoryHandle> {
        let flags = sys::CUmemAllocationProp_st__bindgen_ty_1 {
            compressionType: 0,
            gpuDirectRDMACapable: u8::from(for_cards),
            usage: 0,
            reserved: [0; 4],
        };
        let props = sys::CUmemAllocationProp {
            type_: sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED,
            requestedHandleTypes: SHARED_BY,
            location: location(device),
            win32HandleMetaData: ptr::null_mut(),
            allocFlags: flags,
        };
        let (mut handle, bytes) = (0, length(bytes)?);
        // SAFETY: `handle` takes one handle; the properties are read during the call.
        check(unsafe { (self.calls.cuMemCreate)(&mut handle, bytes, &props, 0) })?;
        memory_handle(handle)
    }

    unsafe fn handle_release(&self, handle: MemoryHandle) -> Outcome<()> {
        // SAFETY: the caller says that the handle is alive.
        check(unsafe { (self.calls.cuMemRelease)(raw_memory(handle)) })
    }

    unsafe fn handle_export(&self, handle: MemoryHandle) -> Outcome<OwnedFd> {
        let (mut descriptor, handle): (c_int, _) = (-1, raw_memory(handle));
        let (to, call) = (ptr::from_mut(&mut descriptor), self.calls.cuMemExportToShareableHandle);
        // SAFETY: the caller says that the handle is alive; what it becomes is an integer here.
        check(unsafe { call(to.cast(), handle, SHARED_BY, 0) })?;
        if descriptor < 0 {
            return Err(Code(CUDA_ERROR_UNKNOWN as c_int));
        }
        // SAFETY: the driver has just opened it, for the caller to close.
        Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
    }

    fn handle_import(&self, from: BorrowedFd<'_>) -> Outcome<MemoryHandle> {
        // The descriptor itself in the place of a pointer.
        let from = usize::try_from(from.as_raw_fd()).unwrap_or(usize::MAX);
        let (mut handle, from) = (0, ptr::without_provenance_mut(from));
        let call = self.calls.cuMemImportFromShareableHandle;
        // SAFETY: `handle` takes one handle; what the descriptor is the driver looks at itself.
        check(unsafe { call(&mut handle, from, SHARED_BY) })?;
        memory_handle(handle)
    }

    fn addresses_reserve(&self, bytes: u64) -> Outcome<DevicePointer> {
        let (mut at, bytes) = (0, length(bytes)?);
        // SAFETY: `at` takes one address.
        check(unsafe { (self.calls.cuMemAddressReserve)(&mut at, bytes, 0, 0, 0) })?;
        Ok(DevicePointer(at))
    }

    unsafe fn addresses_free(&self, at: DevicePointer, bytes: u64) -> Outcome<()> {
        // SAFETY: the caller says that these were reserved and that nothing is mapped there.
        check(unsafe { (self.calls.cuMemAddressFree)(at.0, length(bytes)?) })
    }

    unsafe fn handle_map(&self, at: DevicePointer, bytes: u64, of: MemoryHandle) -> Outcome<()> {
        let (bytes, handle) = (length(bytes)?, raw_memory(of));
        // SAFETY: the caller says that the addresses are reserved and the handle is alive.
        check(unsafe { (self.calls.cuMemMap)(at.0, bytes, 0, handle, 0) })
    }

    unsafe fn handle_unmap(&self, at: DevicePointer, bytes: u64) -> Outcome<()> {
        // SAFETY: the caller says that this is what was mapped, and that no work uses it.
        check(unsafe { (self.calls.cuMemUnmap)(at.0, length(bytes)?) })
    }

    unsafe fn mapping_allow(&self, at: DevicePointer, bytes: u64, device: Ordinal) -> Outcome<()> {
        let access = sys::CUmemAccessDesc {
            location: location(device),
            flags: sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
        };
        // SAFETY: the caller says that this is mapped; one description is read during the call.
        check(unsafe { (self.calls.cuMemSetAccess)(at.0, length(bytes)?, &access, 1) })
    }

    unsafe fn range_export(&self, at: DevicePointer, bytes: u64) -> Outcome<OwnedFd> {
        // SAFETY: as the caller says.
        unsafe { self.export_range(at, bytes) }
    }

    fn writes_flush(&self) -> Outcome<()> {
        self.flush_writes()
    }

    unsafe fn host_register(&self, at: *mut u8, bytes: usize, read_only: bool) -> Outcome<()> {
        let access = if read_only { sys::CU_MEMHOSTREGISTER_READ_ONLY } else { 0 };
        let flags = sys::CU_MEMHOSTREGISTER_PORTABLE | access;
        // SAFETY: the caller says that the memory is there and stays.
        check(unsafe { (self.calls.cuMemHostRegister_v2)(at.cast(), bytes, flags) })
    }

    unsafe fn host_unregister(&self, at: *mut u8) -> Outcome<()> {
        // SAFETY: the caller says that this is memory which `host_register` pinned.
        check(unsafe { (self.calls.cuMemHostUnregister)(at.cast()) })
    }

    unsafe fn copy_in(
        &self,
        to: DevicePointer,
        from: *const u8,
        bytes: u64,
        stream: Stream,
    ) -> Outcome<()> {
        let (bytes, stream) = (length(bytes)?, raw(stream.0));
        // SAFETY: the caller says that both places are there, so long, until the stream is past.
        check(unsafe { (self.calls.cuMemcpyHtoDAsync_v2)(to.0, from.cast(), bytes, stream) })
    }

    unsafe fn copy_out(
        &self,
        to: *mut u8,
        from: DevicePointer,
        bytes: u64,
        stream: Stream,
    ) -> Outcome<()> {
        let (bytes, stream) = (length(bytes)?, raw(stream.0));
        // SAFETY: the caller says that both places are there, so long, until the stream is past.
        check(unsafe { (self.calls.cuMemcpyDtoHAsync_v2)(to.cast(), from.0, bytes, stream) })
    }

    unsafe fn copy(
        &self,
        to: DevicePointer,
        from: DevicePointer,
        bytes: u64,
        stream: Stream,
    ) -> Outcome<()> {
        let (bytes, stream) = (length(bytes)?, raw(stream.0));
        // SAFETY: the caller says that both places are there, so long, until the stream is past.
        check(unsafe { (self.calls.cuMemcpyDtoDAsync_v2)(to.0, from.0, bytes, stream) })
    }

    unsafe fn copy_peer(
        &self,
        to: (Context, DevicePointer),
        from: (Context, DevicePointer),
        bytes: u64,
        stream: Stream,
    ) -> Outcome<()> {
        let (bytes, stream) = (length(bytes)?, raw(stream.0));
        let ((to_context, to), (from_context, from)) = (to, from);
        let (to_context, from_context) = (raw(to_context.0), raw(from_context.0));
        let call = self.calls.cuMemcpyPeerAsync;
        // SAFETY: the caller says that the contexts are alive and that both places are there, so
        // long, until the stream is past.
        check(unsafe { call(to.0, to_context, from.0, from_context, bytes, stream) })
    }

    fn can_access_peer(&self, device: Ordinal, peer: Ordinal) -> Outcome<bool> {
        let (device, peer) = (self.device(device)?, self.device(peer)?);
        let mut can = 0;
        // SAFETY: `can` takes one integer.
        check(unsafe { (self.calls.cuDeviceCanAccessPeer)(&mut can, device, peer) })?;
        Ok(can != 0)
    }

    unsafe fn peer_enable(&self, peer: Context) -> Outcome<()> {
        // SAFETY: the caller says that the context is alive.
        check(unsafe { (self.calls.cuCtxEnablePeerAccess)(raw(peer.0), 0) })
    }

    fn module_load(&self, image: &[u8]) -> Result<Module, (Code, String)> {
        use sys::CUjit_option::*;
        let mut log = vec![0_u8; LOG_BYTES];
        let mut options = [CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
        // The second option's value is a number in the place of a pointer.
        let mut values = [log.as_mut_ptr().cast(), ptr::without_provenance_mut(LOG_BYTES)];
        let mut module = ptr::null_mut();
        // SAFETY: the compiler made the image: a whole binary, which says how long it is, or text
        // up to a zero byte. The log has the length that the options give.
        let result = unsafe {
            (self.calls.cuModuleLoadDataEx)(
                &mut module,
                image.as_ptr().cast(),
                2,
                options.as_mut_ptr(),
                values.as_mut_ptr(),
            )
        };
        let made = check(result).and_then(|()| handle(module));
        made.map(Module).map_err(|code| (code, loading::text(&log)))
    }

    unsafe fn module_unload(&self, module: Module) -> Outcome<()> {
        // SAFETY: the caller says that the module is loaded.
        check(unsafe { (self.calls.cuModuleUnload)(raw(module.0)) })
    }

    unsafe fn module_function(&self, module: Module, name: &CStr) -> Outcome<Function> {
        let (mut function, module) = (ptr::null_mut(), raw(module.0));
        // SAFETY: the caller says that the module is loaded; `function` takes one handle.
        check(unsafe { (self.calls.cuModuleGetFunction)(&mut function, module, name.as_ptr()) })?;
        handle(function).map(Function)
    }

    unsafe fn function_info(&self, function: Function) -> Outcome<FunctionInfo> {
        use sys::CUfunction_attribute::*;
        let of = |what| self.function_attribute(function, what);
        Ok(FunctionInfo {
            block_threads: of(CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?,
            static_shared_bytes: of(CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?,
        })
    }

    unsafe fn launch(&self, kernel: &Kernel<'_>, stream: Stream) -> Outcome<()> {
        let mut bytes = kernel.arguments.len();
        let mut extra = extra(kernel.arguments, &mut bytes);
        let ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]) = (kernel.grid, kernel.block);
        // SAFETY: the caller says that function and stream are alive and that the arguments are the
        // kernel's; they and the list are read during the call.
        check(unsafe {
            (self.calls.cuLaunchKernel)(
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
        check(unsafe { (self.calls.cuLaunchHostFunc)(stream, Some(function), argument) })
    }

    fn graph_create(&self) -> Outcome<GraphTemplate> {
        let mut graph = ptr::null_mut();
        // SAFETY: `graph` takes one handle.
        check(unsafe { (self.calls.cuGraphCreate)(&mut graph, 0) })?;
        handle(graph).map(GraphTemplate)
    }

    unsafe fn graph_destroy(&self, graph: GraphTemplate) -> Outcome<()> {
        // SAFETY: the caller says that the graph is alive.
        check(unsafe { (self.calls.cuGraphDestroy)(raw(graph.0)) })
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
        let (mut node, call) = (ptr::null_mut(), self.calls.cuGraphAddKernelNode_v2);
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
        let params = copy_params(to, from, length(bytes)?);
        let context = self.current_context()?;
        let (mut node, call) = (ptr::null_mut(), self.calls.cuGraphAddMemcpyNode);
        let (before, count) = (after.as_ptr().cast(), after.len());
        // SAFETY: the caller says that graph and nodes are alive and that both places are there, so
        // long. A node is one pointer in both declarations; all is read during the call.
        check(unsafe { call(&mut node, raw(graph.0), before, count, &params, context) })?;
        handle(node).map(Node)
    }

    unsafe fn graph_instantiate(&self, graph: GraphTemplate) -> Outcome<GraphExec> {
        let mut exec = ptr::null_mut();
        // SAFETY: the caller says that the graph is alive; `exec` takes one handle.
        check(unsafe { (self.calls.cuGraphInstantiateWithFlags)(&mut exec, raw(graph.0), 0) })?;
        handle(exec).map(GraphExec)
    }

    unsafe fn graph_exec_destroy(&self, exec: GraphExec) -> Outcome<()> {
        // SAFETY: the caller says that it is alive.
        check(unsafe { (self.calls.cuGraphExecDestroy)(raw(exec.0)) })
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
        let call = self.calls.cuGraphExecKernelNodeSetParams_v2;
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
        let params = copy_params(to, from, length(bytes)?);
        let (context, call) = (self.current_context()?, self.calls.cuGraphExecMemcpyNodeSetParams);
        // SAFETY: the caller says that both are alive, that the node is of the template, and that
        // both places are there, so long.
        check(unsafe { call(raw(exec.0), raw(node.0), &params, context) })
    }

    unsafe fn graph_launch(&self, exec: GraphExec, stream: Stream) -> Outcome<()> {
        // SAFETY: the caller says that both are alive and that the memory of all nodes is there
        // until the stream is past.
        check(unsafe { (self.calls.cuGraphLaunch)(raw(exec.0), raw(stream.0)) })
    }
}
