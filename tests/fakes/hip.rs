//! A fake `libamdhip64.so.6`: the names of the HIP runtime API that are used, over the fake
//! machine.
//!
//! What is checked and which kernels there are is in `core/mod.rs`. HIP has a current device where
//! CUDA has contexts; the fake keeps one context for each device, which nobody makes or destroys.

#![allow(dead_code, reason = "each face uses its own part of the machine")]
#![allow(non_snake_case, reason = "the names are the library's")]

#[path = "core/mod.rs"]
mod fake;

use std::ffi::{c_char, c_int, c_uint, c_void};

use fake::Role::{Early, Plain, Release};
use fake::calls::{self, AccessDescription, PoolProperties, Request};
use fake::calls::{address, arguments, list, pointer, put_text, text, wrong};
use fake::face::{calls, give};
use fake::share::MemoryProperties;
use fake::{Gpu, Outcome, code};

pub(crate) const FACE: fake::Face = fake::Face {
    library: "libamdhip64.so.6",
    variables: "HIP",
    is_driver: true,
    arch: "gfx90a:sramecc+:xnack-",
    version: 60_443_483,
    addresses: 0xb000_0000_0000,
    has_contexts: false,
    extra_end: 3,
    total_threads_32_bits: true,
};

/// `hipKernelNodeParams`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct KernelNode {
    block: [c_uint; 3],
    extra: *mut *mut c_void,
    function: *mut c_void,
    grid: [c_uint; 3],
    parameters: *mut *mut c_void,
    shared_bytes: c_uint,
}

/// Bytes of the properties from ROCm 6 on and where the architecture's name is in them, and before.
const PROPERTIES: (usize, usize) = (1472, 1160);
const OLD_PROPERTIES: (usize, usize) = (792, 396);
const ARCH_BYTES: usize = 256;

fn properties(gpu: &Gpu, to: *mut c_void, device: c_int, layout: (usize, usize)) -> Outcome<()> {
    let (bytes, at) = layout;
    gpu.device(device)?;
    if to.is_null() {
        return wrong("the place for the properties is null");
    }
    // SAFETY: the caller gives room for the structure of this name.
    unsafe { to.cast::<u8>().write_bytes(0, bytes) };
    // SAFETY: the name's room is inside of it.
    let arch = unsafe { to.cast::<c_char>().add(at) };
    // SAFETY: and is as long as this.
    unsafe { put_text(arch, ARCH_BYTES, gpu.arch()) }
}

calls! {
    Early fn hipInit(gpu, flags: c_uint) {
        if flags != 0 {
            return wrong("flags must be 0");
        }
        gpu.initialise()
    }
    Early fn hipRuntimeGetVersion(gpu, version: *mut c_int) {
        give!(version, gpu.config_version())
    }
    Early fn hipGetDeviceCount(gpu, count: *mut c_int) {
        if gpu.device_count() == 0 {
            return Err(code::NO_DEVICE);
        }
        give!(count, c_int::try_from(gpu.device_count()).unwrap_or(c_int::MAX))
    }
    Plain fn hipDeviceGetName(gpu, name: *mut c_char, length: c_int, device: c_int) {
        let (text, _) = gpu.device_name(device)?;
        // SAFETY: the caller gives as much room as it says.
        unsafe { put_text(name, usize::try_from(length).unwrap_or(0), &text) }
    }
    Plain fn hipDeviceGetPCIBusId(gpu, place: *mut c_char, length: c_int, device: c_int) {
        let (_, text) = gpu.device_name(device)?;
        // SAFETY: as above.
        unsafe { put_text(place, usize::try_from(length).unwrap_or(0), &text) }
    }
    Plain fn hipDeviceTotalMem(gpu, bytes: *mut usize, device: c_int) {
        gpu.device(device)?;
        give!(bytes, fake::size(gpu.total_memory()))
    }
    Plain fn hipDeviceGetAttribute(gpu, value: *mut c_int, attribute: c_int, device: c_int) {
        gpu.device(device)?;
        let int = |value: u32| c_int::try_from(value).unwrap_or(c_int::MAX);
        let number = match attribute {
            16 => c_int::from(gpu.is_integrated()),
            26..=28 => int(calls::BLOCK_MAX[usize::try_from(attribute - 26).unwrap_or(0)]),
            29..=31 => int(calls::GRID_MAX[usize::try_from(attribute - 29).unwrap_or(0)]),
            56 => int(calls::BLOCK_THREADS_MAX),
            74 => 64 << 10,
            88 => c_int::from(gpu.has_pools()),
            89 => c_int::from(gpu.shares()),
            _ => return wrong(&format!("attribute {attribute} is not known to the fake")),
        };
        give!(value, number)
    }
    Plain fn hipGetDevicePropertiesR0600(gpu, to: *mut c_void, device: c_int) {
        properties(gpu, to, device, PROPERTIES)
    }
    Plain fn hipGetDeviceProperties(gpu, to: *mut c_void, device: c_int) {
        properties(gpu, to, device, OLD_PROPERTIES)
    }
    Plain fn hipDeviceCanAccessPeer(gpu, can: *mut c_int, device: c_int, peer: c_int) {
        give!(can, c_int::from(gpu.can_access_peer(device, peer)?))
    }
    Plain fn hipSetDevice(gpu, device: c_int) {
        gpu.set_device(device)
    }
    Plain fn hipDeviceEnablePeerAccess(gpu, peer: c_int, flags: c_uint) {
        if flags != 0 {
            return wrong("flags must be 0");
        }
        gpu.peer_enable_device(peer)
    }
    Plain fn hipDeviceSynchronize(gpu) {
        gpu.context_synchronize()
    }
    Plain fn hipMemGetInfo(gpu, free: *mut usize, total: *mut usize) {
        let (free_bytes, total_bytes) = gpu.memory_info()?;
        give!(free, fake::size(free_bytes))?;
        give!(total, fake::size(total_bytes))
    }
    Plain fn hipStreamCreateWithFlags(gpu, stream: *mut *mut c_void, flags: c_uint) {
        give!(stream, pointer(gpu.stream_create(flags)?))
    }
    Release fn hipStreamDestroy(gpu, stream: *mut c_void) {
        gpu.stream_destroy(address(stream))
    }
    Plain fn hipStreamQuery(gpu, stream: *mut c_void) {
        gpu.stream_query(address(stream))
    }
    Plain fn hipStreamSynchronize(gpu, stream: *mut c_void) {
        gpu.stream_synchronize(address(stream))
    }
    Plain fn hipStreamWaitEvent(gpu, stream: *mut c_void, event: *mut c_void, flags: c_uint) {
        let _ = flags;
        gpu.stream_wait(address(stream), address(event))
    }
    Plain fn hipEventCreateWithFlags(gpu, event: *mut *mut c_void, flags: c_uint) {
        give!(event, pointer(gpu.event_create(flags)?))
    }
    Release fn hipEventDestroy(gpu, event: *mut c_void) {
        gpu.event_destroy(address(event))
    }
    Plain fn hipEventRecord(gpu, event: *mut c_void, stream: *mut c_void) {
        gpu.event_record(address(event), address(stream))
    }
    Plain fn hipEventQuery(gpu, event: *mut c_void) {
        gpu.event_query(address(event))
    }
    Plain fn hipEventSynchronize(gpu, event: *mut c_void) {
        gpu.event_synchronize(address(event))
    }
    Plain fn hipEventElapsedTime(gpu, ms: *mut f32, from: *mut c_void, to: *mut c_void) {
        give!(ms, gpu.elapsed(address(from), address(to))?.as_secs_f32() * 1e3)
    }
}

calls! {
    Plain fn hipMemPoolCreate(gpu, pool: *mut *mut c_void, properties: *const PoolProperties) {
        // SAFETY: the caller gives the properties.
        let properties = unsafe { list(properties, 1) }?[0];
        give!(pool, pointer(gpu.pool_create(&properties)?))
    }
    Release fn hipMemPoolDestroy(gpu, pool: *mut c_void) {
        gpu.pool_destroy(address(pool))
    }
    Plain fn hipMemPoolSetAttribute(
        gpu, pool: *mut c_void, attribute: c_int, value: *mut c_void,
    ) {
        if attribute != 4 {
            return wrong(&format!("attribute {attribute} is not known to the fake"));
        }
        // SAFETY: the release threshold is a number of 64 bits.
        let bytes = unsafe { list(value.cast::<u64>(), 1) }?[0];
        gpu.pool_keep(address(pool), bytes)
    }
    Plain fn hipMemPoolSetAccess(
        gpu, pool: *mut c_void, map: *const AccessDescription, count: usize,
    ) {
        // SAFETY: the caller gives as many descriptions as it says.
        let descriptions = unsafe { list(map, count) }?;
        gpu.pool_allow(address(pool), &descriptions)
    }
    Plain fn hipMallocFromPoolAsync(
        gpu, at: *mut *mut c_void, bytes: usize, pool: *mut c_void, stream: *mut c_void,
    ) {
        let memory = gpu.pool_alloc(address(pool), bytes as u64, address(stream))?;
        give!(at, pointer(memory))
    }
    Release fn hipFreeAsync(gpu, at: *mut c_void, stream: *mut c_void) {
        gpu.pool_free(address(at), address(stream))
    }
    Plain fn hipMalloc(gpu, at: *mut *mut c_void, bytes: usize) {
        give!(at, pointer(gpu.memory_alloc(bytes as u64)?))
    }
    Release fn hipFree(gpu, at: *mut c_void) {
        gpu.memory_free(address(at))
    }
    Plain fn hipMemsetAsync(
        gpu, to: *mut c_void, value: c_int, bytes: usize, stream: *mut c_void,
    ) {
        let byte = value.to_le_bytes()[0];
        gpu.set(address(to), byte, bytes as u64, address(stream))
    }
    Plain fn hipHostMalloc(gpu, at: *mut *mut c_void, bytes: usize, flags: c_uint) {
        let address = gpu.host_alloc(bytes as u64, flags)?;
        give!(at, std::ptr::with_exposed_provenance_mut(fake::size(address)))
    }
    Release fn hipHostFree(gpu, at: *mut c_void) {
        gpu.host_release(address(at), false)
    }
    Plain fn hipHostRegister(gpu, at: *mut c_void, bytes: usize, flags: c_uint) {
        gpu.host_register(address(at), bytes as u64, flags)
    }
    Release fn hipHostUnregister(gpu, at: *mut c_void) {
        gpu.host_release(address(at), true)
    }
    Plain fn hipMemcpyHtoDAsync(
        gpu, to: *mut c_void, from: *const c_void, bytes: usize, stream: *mut c_void,
    ) {
        gpu.copy_in(address(to), address(from), bytes as u64, address(stream))
    }
    Plain fn hipMemcpyDtoHAsync(
        gpu, to: *mut c_void, from: *mut c_void, bytes: usize, stream: *mut c_void,
    ) {
        gpu.copy_out(address(to), address(from), bytes as u64, address(stream))
    }
    Plain fn hipMemcpyDtoDAsync(
        gpu, to: *mut c_void, from: *mut c_void, bytes: usize, stream: *mut c_void,
    ) {
        gpu.copy(address(to), address(from), bytes as u64, address(stream))
    }
    Plain fn hipMemcpyPeerAsync(
        gpu, to: *mut c_void, to_device: c_int, from: *const c_void, from_device: c_int,
        bytes: usize, stream: *mut c_void,
    ) {
        let to = (gpu.device(to_device)?, address(to));
        let from = (gpu.device(from_device)?, address(from));
        gpu.copy_peer(to, from, bytes as u64, address(stream))
    }
}

calls! {
    Plain fn hipMemCreate(
        gpu, handle: *mut *mut c_void, bytes: usize, properties: *const MemoryProperties,
        flags: u64,
    ) {
        let _ = flags;
        // SAFETY: the caller gives the properties.
        let properties = unsafe { list(properties, 1) }?[0];
        give!(handle, pointer(gpu.handle_create(&properties, bytes as u64)?))
    }
    Release fn hipMemRelease(gpu, handle: *mut c_void) {
        gpu.handle_release(address(handle))
    }
    Plain fn hipMemExportToShareableHandle(
        gpu, to: *mut c_void, handle: *mut c_void, kind: c_int, flags: u64,
    ) {
        let _ = flags;
        give!(to.cast::<c_int>(), gpu.handle_export(address(handle), kind)?)
    }
    Plain fn hipMemImportFromShareableHandle(
        gpu, handle: *mut *mut c_void, descriptor: *mut c_void, kind: c_int,
    ) {
        give!(handle, pointer(gpu.handle_import(descriptor.addr(), kind)?))
    }
    Plain fn hipMemGetHandleForAddressRange(
        gpu, to: *mut c_void, at: *mut c_void, bytes: usize, kind: c_int, flags: u64,
    ) {
        if flags != 0 {
            return wrong("flags must be 0");
        }
        give!(to.cast::<c_int>(), gpu.range_export(address(at), bytes as u64, kind)?)
    }
    Plain fn hipMemAddressReserve(
        gpu, at: *mut *mut c_void, bytes: usize, alignment: usize, wanted: *mut c_void, flags: u64,
    ) {
        let _ = (wanted, flags);
        give!(at, pointer(gpu.addresses_reserve(bytes as u64, alignment)?))
    }
    Release fn hipMemAddressFree(gpu, at: *mut c_void, bytes: usize) {
        gpu.addresses_free(address(at), bytes as u64)
    }
    Plain fn hipMemMap(
        gpu, at: *mut c_void, bytes: usize, offset: usize, handle: *mut c_void, flags: u64,
    ) {
        let _ = flags;
        gpu.handle_map(address(at), bytes as u64, offset, address(handle))
    }
    Release fn hipMemUnmap(gpu, at: *mut c_void, bytes: usize) {
        gpu.handle_unmap(address(at), bytes as u64)
    }
    Plain fn hipMemSetAccess(
        gpu, at: *mut c_void, bytes: usize, map: *const AccessDescription, count: usize,
    ) {
        // SAFETY: the caller gives as many descriptions as it says.
        let descriptions = unsafe { list(map, count) }?;
        gpu.mapping_allow(address(at), bytes as u64, &descriptions)
    }
}

fn request(gpu: &Gpu, node: &KernelNode) -> Outcome<Request> {
    let function = address(node.function);
    // SAFETY: the caller gives arguments as the library wants them.
    let arguments = unsafe { arguments(gpu, function, node.parameters, node.extra) }?;
    let KernelNode { grid, block, shared_bytes, .. } = *node;
    Ok(Request { function, grid, block, shared_bytes, arguments })
}

const DEVICE_TO_DEVICE: c_int = 3;

fn copy_of(
    to: *mut c_void,
    from: *const c_void,
    bytes: usize,
    kind: c_int,
) -> Outcome<(u64, u64, u64)> {
    if kind != DEVICE_TO_DEVICE {
        return wrong("a copy node that is not from device to device");
    }
    Ok((address(to), address(from), bytes as u64))
}

calls! {
    Plain fn hipModuleLoadData(gpu, module: *mut *mut c_void, image: *const c_void) {
        // SAFETY: the image ends where its format says.
        let made = unsafe { gpu.module_load(image.cast()) }.map_err(|(code, _)| code)?;
        give!(module, pointer(made))
    }
    Release fn hipModuleUnload(gpu, module: *mut c_void) {
        gpu.module_unload(address(module))
    }
    Plain fn hipModuleGetFunction(
        gpu, function: *mut *mut c_void, module: *mut c_void, name: *const c_char,
    ) {
        // SAFETY: the caller gives a C string.
        let name = unsafe { text(name) }?;
        give!(function, pointer(gpu.module_function(address(module), &name)?))
    }
    Plain fn hipFuncGetAttribute(
        gpu, value: *mut c_int, attribute: c_int, function: *mut c_void,
    ) {
        let (threads, shared) = gpu.function_info(address(function))?;
        let number = match attribute {
            0 => threads,
            1 => shared,
            _ => return wrong(&format!("attribute {attribute} is not known to the fake")),
        };
        give!(value, c_int::try_from(number).unwrap_or(c_int::MAX))
    }
    Plain fn hipModuleLaunchKernel(
        gpu, function: *mut c_void, grid_x: c_uint, grid_y: c_uint, grid_z: c_uint,
        block_x: c_uint, block_y: c_uint, block_z: c_uint, shared_bytes: c_uint,
        stream: *mut c_void, parameters: *mut *mut c_void, extra: *mut *mut c_void,
    ) {
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        let node = KernelNode { block, extra, function, grid, parameters, shared_bytes };
        let request = request(gpu, &node)?;
        gpu.launch(request, address(stream))
    }
    Plain fn hipLaunchHostFunc(
        gpu, stream: *mut c_void, function: Option<unsafe extern "C" fn(*mut c_void)>,
        argument: *mut c_void,
    ) {
        let Some(function) = function else { return wrong("the host function is null") };
        gpu.launch_host(address(stream), function, argument)
    }
    Plain fn hipGraphCreate(gpu, graph: *mut *mut c_void, flags: c_uint) {
        let _ = flags;
        give!(graph, pointer(gpu.graph_create()?))
    }
    Release fn hipGraphDestroy(gpu, graph: *mut c_void) {
        gpu.graph_destroy(address(graph))
    }
    Plain fn hipGraphAddKernelNode(
        gpu, node: *mut *mut c_void, graph: *mut c_void, after: *const u64, count: usize,
        parameters: *const KernelNode,
    ) {
        // SAFETY: the caller gives as many nodes as it says.
        let after = unsafe { list(after, count) }?;
        // SAFETY: the caller gives the parameters.
        let parameters = unsafe { list(parameters, 1) }?[0];
        let request = request(gpu, &parameters)?;
        give!(node, pointer(gpu.graph_add_kernel(address(graph), &after, request)?))
    }
    Plain fn hipGraphAddMemcpyNode1D(
        gpu, node: *mut *mut c_void, graph: *mut c_void, after: *const u64, count: usize,
        to: *mut c_void, from: *const c_void, bytes: usize, kind: c_int,
    ) {
        // SAFETY: the caller gives as many nodes as it says.
        let after = unsafe { list(after, count) }?;
        let copy = copy_of(to, from, bytes, kind)?;
        give!(node, pointer(gpu.graph_add_copy(address(graph), &after, copy)?))
    }
    Plain fn hipGraphInstantiateWithFlags(
        gpu, exec: *mut *mut c_void, graph: *mut c_void, flags: u64,
    ) {
        let _ = flags;
        give!(exec, pointer(gpu.graph_instantiate(address(graph))?))
    }
    Release fn hipGraphExecDestroy(gpu, exec: *mut c_void) {
        gpu.graph_exec_destroy(address(exec))
    }
    Plain fn hipGraphExecKernelNodeSetParams(
        gpu, exec: *mut c_void, node: *mut c_void, parameters: *const KernelNode,
    ) {
        // SAFETY: the caller gives the parameters.
        let parameters = unsafe { list(parameters, 1) }?[0];
        let request = request(gpu, &parameters)?;
        gpu.graph_set_kernel(address(exec), address(node), request)
    }
    Plain fn hipGraphExecMemcpyNodeSetParams1D(
        gpu, exec: *mut c_void, node: *mut c_void, to: *mut c_void, from: *const c_void,
        bytes: usize, kind: c_int,
    ) {
        let copy = copy_of(to, from, bytes, kind)?;
        gpu.graph_set_copy(address(exec), address(node), copy)
    }
    Plain fn hipGraphLaunch(gpu, exec: *mut c_void, stream: *mut c_void) {
        gpu.graph_launch(address(exec), address(stream))
    }
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn hipGetErrorName(error: c_int) -> *const c_char {
    fake::errors::name(error).unwrap_or(c"hipErrorUnknown").as_ptr()
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn hipGetErrorString(error: c_int) -> *const c_char {
    fake::errors::sentence(error).unwrap_or(c"unknown error").as_ptr()
}

/// Writes the ledger now. Not a name of the library's.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn fake_gpu_ledger() {
    Gpu::lock().write_ledger("asked");
}
