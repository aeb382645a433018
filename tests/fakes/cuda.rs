//! A fake `libcuda.so.1`: the names of the CUDA driver API that are used, over the fake machine.
//!
//! What is checked and which kernels there are is in `core/mod.rs`.

#![allow(dead_code, reason = "each face uses its own part of the machine")]
#![allow(non_snake_case, reason = "the names are the driver's")]

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
    library: "libcuda.so.1",
    variables: "CUDA",
    is_driver: true,
    arch: "sm_90",
    version: 13_000,
    addresses: 0xd000_0000_0000,
    has_contexts: true,
    extra_end: 0,
    total_threads_32_bits: false,
};

/// `CUDA_KERNEL_NODE_PARAMS_v2`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct KernelNode {
    function: *mut c_void,
    grid: [c_uint; 3],
    block: [c_uint; 3],
    shared_bytes: c_uint,
    parameters: *mut *mut c_void,
    extra: *mut *mut c_void,
    kernel: *mut c_void,
    context: *mut c_void,
}

/// One side of `CUDA_MEMCPY3D`.
#[repr(C)]
#[derive(Clone, Copy)]
struct CopySide {
    x_bytes: usize,
    y: usize,
    z: usize,
    lod: usize,
    kind: c_uint,
    host: *mut c_void,
    device: u64,
    array: *mut c_void,
    reserved: *mut c_void,
    pitch: usize,
    height: usize,
}

/// `CUDA_MEMCPY3D`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Copy3d {
    from: CopySide,
    to: CopySide,
    width_bytes: usize,
    height: usize,
    depth: usize,
}

calls! {
    Early fn cuInit(gpu, flags: c_uint) {
        if flags != 0 {
            return wrong("flags must be 0");
        }
        gpu.initialise()
    }
    Early fn cuDriverGetVersion(gpu, version: *mut c_int) {
        gpu.is_no_stub()?;
        give!(version, gpu.config_version())
    }
    Plain fn cuDeviceGetCount(gpu, count: *mut c_int) {
        give!(count, c_int::try_from(gpu.device_count()).unwrap_or(c_int::MAX))
    }
    Plain fn cuDeviceGet(gpu, device: *mut c_int, ordinal: c_int) {
        gpu.device(ordinal)?;
        give!(device, ordinal)
    }
    Plain fn cuDeviceGetName(gpu, name: *mut c_char, length: c_int, device: c_int) {
        let (text, _) = gpu.device_name(device)?;
        // SAFETY: the caller gives as much room as it says.
        unsafe { put_text(name, usize::try_from(length).unwrap_or(0), &text) }
    }
    Plain fn cuDeviceGetPCIBusId(gpu, place: *mut c_char, length: c_int, device: c_int) {
        let (_, text) = gpu.device_name(device)?;
        // SAFETY: as above.
        unsafe { put_text(place, usize::try_from(length).unwrap_or(0), &text) }
    }
    Plain fn cuDeviceTotalMem_v2(gpu, bytes: *mut usize, device: c_int) {
        gpu.device(device)?;
        give!(bytes, fake::size(gpu.total_memory()))
    }
    Plain fn cuDeviceGetAttribute(gpu, value: *mut c_int, attribute: c_int, device: c_int) {
        gpu.device(device)?;
        let int = |value: u32| c_int::try_from(value).unwrap_or(c_int::MAX);
        let capability = || {
            let digits = gpu.arch().trim_start_matches("sm_").trim_end_matches('a');
            digits.parse::<c_int>().unwrap_or(90)
        };
        let number = match attribute {
            1 => int(calls::BLOCK_THREADS_MAX),
            2..=4 => int(calls::BLOCK_MAX[usize::try_from(attribute - 2).unwrap_or(0)]),
            5..=7 => int(calls::GRID_MAX[usize::try_from(attribute - 5).unwrap_or(0)]),
            8 => 48 << 10,
            18 => c_int::from(gpu.is_integrated()),
            75 => capability() / 10,
            76 => capability() % 10,
            97 => int(calls::SHARED_BYTES_MAX),
            102 | 103 => c_int::from(gpu.shares()),
            110 | 124 => c_int::from(gpu.cards()),
            117 => 1,
            118 => if gpu.cards_are_flushed() { 0 } else { 100 },
            115 => c_int::from(gpu.has_pools()),
            _ => return wrong(&format!("attribute {attribute} is not known to the fake")),
        };
        give!(value, number)
    }
    Plain fn cuDeviceCanAccessPeer(gpu, can: *mut c_int, device: c_int, peer: c_int) {
        give!(can, c_int::from(gpu.can_access_peer(device, peer)?))
    }
    Plain fn cuCtxCreate_v2(gpu, context: *mut *mut c_void, flags: c_uint, device: c_int) {
        let _ = flags;
        give!(context, pointer(gpu.context_create(device)?))
    }
    Plain fn cuCtxCreate_v4(
        gpu, context: *mut *mut c_void, parameters: *mut c_void, flags: c_uint, device: c_int,
    ) {
        let _ = (parameters, flags);
        give!(context, pointer(gpu.context_create(device)?))
    }
    Release fn cuCtxDestroy_v2(gpu, context: *mut c_void) {
        gpu.context_destroy(address(context))
    }
    Plain fn cuCtxSetCurrent(gpu, context: *mut c_void) {
        gpu.set_current(address(context))
    }
    Plain fn cuCtxGetCurrent(gpu, context: *mut *mut c_void) {
        give!(context, pointer(gpu.get_current()))
    }
    Plain fn cuCtxPopCurrent_v2(gpu, context: *mut *mut c_void) {
        let popped = gpu.pop_current()?;
        if context.is_null() {
            return Ok(());
        }
        give!(context, pointer(popped))
    }
    Plain fn cuCtxSynchronize(gpu) {
        gpu.context_synchronize()
    }
    Plain fn cuCtxEnablePeerAccess(gpu, peer: *mut c_void, flags: c_uint) {
        if flags != 0 {
            return wrong("flags must be 0");
        }
        gpu.peer_enable_context(address(peer))
    }
    Plain fn cuMemGetInfo_v2(gpu, free: *mut usize, total: *mut usize) {
        let (free_bytes, total_bytes) = gpu.memory_info()?;
        give!(free, fake::size(free_bytes))?;
        give!(total, fake::size(total_bytes))
    }
    Plain fn cuStreamCreate(gpu, stream: *mut *mut c_void, flags: c_uint) {
        give!(stream, pointer(gpu.stream_create(flags)?))
    }
    Release fn cuStreamDestroy_v2(gpu, stream: *mut c_void) {
        gpu.stream_destroy(address(stream))
    }
    Plain fn cuStreamQuery(gpu, stream: *mut c_void) {
        gpu.stream_query(address(stream))
    }
    Plain fn cuStreamSynchronize(gpu, stream: *mut c_void) {
        gpu.stream_synchronize(address(stream))
    }
    Plain fn cuStreamWaitEvent(gpu, stream: *mut c_void, event: *mut c_void, flags: c_uint) {
        let _ = flags;
        gpu.stream_wait(address(stream), address(event))
    }
    Plain fn cuEventCreate(gpu, event: *mut *mut c_void, flags: c_uint) {
        give!(event, pointer(gpu.event_create(flags)?))
    }
    Release fn cuEventDestroy_v2(gpu, event: *mut c_void) {
        gpu.event_destroy(address(event))
    }
    Plain fn cuEventRecord(gpu, event: *mut c_void, stream: *mut c_void) {
        gpu.event_record(address(event), address(stream))
    }
    Plain fn cuEventQuery(gpu, event: *mut c_void) {
        gpu.event_query(address(event))
    }
    Plain fn cuEventSynchronize(gpu, event: *mut c_void) {
        gpu.event_synchronize(address(event))
    }
    Plain fn cuEventElapsedTime(gpu, ms: *mut f32, from: *mut c_void, to: *mut c_void) {
        give!(ms, gpu.elapsed(address(from), address(to))?.as_secs_f32() * 1e3)
    }
    Plain fn cuEventElapsedTime_v2(gpu, ms: *mut f32, from: *mut c_void, to: *mut c_void) {
        give!(ms, gpu.elapsed(address(from), address(to))?.as_secs_f32() * 1e3)
    }
}

calls! {
    Plain fn cuMemPoolCreate(gpu, pool: *mut *mut c_void, properties: *const PoolProperties) {
        // SAFETY: the caller gives the properties.
        let properties = unsafe { list(properties, 1) }?[0];
        give!(pool, pointer(gpu.pool_create(&properties)?))
    }
    Release fn cuMemPoolDestroy(gpu, pool: *mut c_void) {
        gpu.pool_destroy(address(pool))
    }
    Plain fn cuMemPoolSetAttribute(
        gpu, pool: *mut c_void, attribute: c_int, value: *mut c_void,
    ) {
        if attribute != 4 {
            return wrong(&format!("attribute {attribute} is not known to the fake"));
        }
        // SAFETY: the release threshold is a number of 64 bits.
        let bytes = unsafe { list(value.cast::<u64>(), 1) }?[0];
        gpu.pool_keep(address(pool), bytes)
    }
    Plain fn cuMemPoolSetAccess(
        gpu, pool: *mut c_void, map: *const AccessDescription, count: usize,
    ) {
        // SAFETY: the caller gives as many descriptions as it says.
        let descriptions = unsafe { list(map, count) }?;
        gpu.pool_allow(address(pool), &descriptions)
    }
    Plain fn cuMemAllocFromPoolAsync(
        gpu, at: *mut u64, bytes: usize, pool: *mut c_void, stream: *mut c_void,
    ) {
        give!(at, gpu.pool_alloc(address(pool), bytes as u64, address(stream))?)
    }
    Release fn cuMemFreeAsync(gpu, at: u64, stream: *mut c_void) {
        gpu.pool_free(at, address(stream))
    }
    Plain fn cuMemAlloc_v2(gpu, at: *mut u64, bytes: usize) {
        give!(at, gpu.memory_alloc(bytes as u64)?)
    }
    Release fn cuMemFree_v2(gpu, at: u64) {
        gpu.memory_free(at)
    }
    Plain fn cuMemsetD8Async(gpu, to: u64, value: u8, bytes: usize, stream: *mut c_void) {
        gpu.set(to, value, bytes as u64, address(stream))
    }
    Plain fn cuMemHostAlloc(gpu, at: *mut *mut c_void, bytes: usize, flags: c_uint) {
        let address = gpu.host_alloc(bytes as u64, flags)?;
        give!(at, std::ptr::with_exposed_provenance_mut(fake::size(address)))
    }
    Release fn cuMemFreeHost(gpu, at: *mut c_void) {
        gpu.host_release(address(at), false)
    }
    Plain fn cuMemHostRegister_v2(gpu, at: *mut c_void, bytes: usize, flags: c_uint) {
        gpu.host_register(address(at), bytes as u64, flags)
    }
    Release fn cuMemHostUnregister(gpu, at: *mut c_void) {
        gpu.host_release(address(at), true)
    }
    Plain fn cuMemcpyHtoDAsync_v2(
        gpu, to: u64, from: *const c_void, bytes: usize, stream: *mut c_void,
    ) {
        gpu.copy_in(to, address(from), bytes as u64, address(stream))
    }
    Plain fn cuMemcpyDtoHAsync_v2(
        gpu, to: *mut c_void, from: u64, bytes: usize, stream: *mut c_void,
    ) {
        gpu.copy_out(address(to), from, bytes as u64, address(stream))
    }
    Plain fn cuMemcpyDtoDAsync_v2(
        gpu, to: u64, from: u64, bytes: usize, stream: *mut c_void,
    ) {
        gpu.copy(to, from, bytes as u64, address(stream))
    }
    Plain fn cuMemcpyPeerAsync(
        gpu, to: u64, to_context: *mut c_void, from: u64, from_context: *mut c_void, bytes: usize,
        stream: *mut c_void,
    ) {
        let to = (gpu.device_of_context(address(to_context))?, to);
        let from = (gpu.device_of_context(address(from_context))?, from);
        gpu.copy_peer(to, from, bytes as u64, address(stream))
    }
}

calls! {
    Plain fn cuMemCreate(
        gpu, handle: *mut u64, bytes: usize, properties: *const MemoryProperties, flags: u64,
    ) {
        let _ = flags;
        // SAFETY: the caller gives the properties.
        let properties = unsafe { list(properties, 1) }?[0];
        give!(handle, gpu.handle_create(&properties, bytes as u64)?)
    }
    Release fn cuMemRelease(gpu, handle: u64) {
        gpu.handle_release(handle)
    }
    Plain fn cuMemExportToShareableHandle(
        gpu, to: *mut c_void, handle: u64, kind: c_int, flags: u64,
    ) {
        let _ = flags;
        give!(to.cast::<c_int>(), gpu.handle_export(handle, kind)?)
    }
    Plain fn cuMemImportFromShareableHandle(
        gpu, handle: *mut u64, descriptor: *mut c_void, kind: c_int,
    ) {
        give!(handle, gpu.handle_import(descriptor.addr(), kind)?)
    }
    Plain fn cuMemGetHandleForAddressRange(
        gpu, to: *mut c_void, at: u64, bytes: usize, kind: c_int, flags: u64,
    ) {
        if flags != 0 {
            return wrong("flags must be 0");
        }
        give!(to.cast::<c_int>(), gpu.range_export(at, bytes as u64, kind)?)
    }
    Plain fn cuFlushGPUDirectRDMAWrites(gpu, target: c_int, scope: c_int) {
        gpu.context()?;
        if (target, scope) != (0, 100) {
            return wrong("a flush is of the current context's memory, for its own work");
        }
        Ok(())
    }
    Plain fn cuMemAddressReserve(
        gpu, at: *mut u64, bytes: usize, alignment: usize, wanted: u64, flags: u64,
    ) {
        let _ = (wanted, flags);
        give!(at, gpu.addresses_reserve(bytes as u64, alignment)?)
    }
    Release fn cuMemAddressFree(gpu, at: u64, bytes: usize) {
        gpu.addresses_free(at, bytes as u64)
    }
    Plain fn cuMemMap(gpu, at: u64, bytes: usize, offset: usize, handle: u64, flags: u64) {
        let _ = flags;
        gpu.handle_map(at, bytes as u64, offset, handle)
    }
    Release fn cuMemUnmap(gpu, at: u64, bytes: usize) {
        gpu.handle_unmap(at, bytes as u64)
    }
    Plain fn cuMemSetAccess(
        gpu, at: u64, bytes: usize, map: *const AccessDescription, count: usize,
    ) {
        // SAFETY: the caller gives as many descriptions as it says.
        let descriptions = unsafe { list(map, count) }?;
        gpu.mapping_allow(at, bytes as u64, &descriptions)
    }
}

fn request(gpu: &Gpu, node: &KernelNode) -> Outcome<Request> {
    let function = address(node.function);
    // SAFETY: the caller gives arguments as the driver wants them.
    let arguments = unsafe { arguments(gpu, function, node.parameters, node.extra) }?;
    let KernelNode { grid, block, shared_bytes, .. } = *node;
    Ok(Request { function, grid, block, shared_bytes, arguments })
}

/// A copy of one row between places of devices.
fn copy_of(copy: *const Copy3d) -> Outcome<(u64, u64, u64)> {
    // SAFETY: the caller gives the description.
    let copy = unsafe { list(copy, 1) }?[0];
    for side in [copy.from, copy.to] {
        let offsets = [side.x_bytes, side.y, side.z, side.lod];
        if side.kind != 2 || !side.reserved.is_null() || offsets != [0; 4] {
            return wrong("a side of a copy node is not plain device memory");
        }
    }
    if (copy.height, copy.depth) != (1, 1) {
        return wrong("a copy node of more than a row");
    }
    Ok((copy.to.device, copy.from.device, copy.width_bytes as u64))
}

calls! {
    Plain fn cuModuleLoadData(gpu, module: *mut *mut c_void, image: *const c_void) {
        // SAFETY: the image ends where its format says.
        let made = unsafe { gpu.module_load(image.cast()) }.map_err(|(code, _)| code)?;
        give!(module, pointer(made))
    }
    Plain fn cuModuleLoadDataEx(
        gpu, module: *mut *mut c_void, image: *const c_void, count: c_uint, options: *mut c_int,
        values: *mut *mut c_void,
    ) {
        let count = usize::try_from(count).unwrap_or(0);
        // SAFETY: the caller gives as many options as it says.
        let options = unsafe { list(options, count) }?;
        // SAFETY: and as many values.
        let values = unsafe { list(values, count) }?;
        let value = |wanted: c_int| {
            options.iter().position(|&option| option == wanted).map(|index| values[index])
        };
        // SAFETY: the image ends where its format says.
        match unsafe { gpu.module_load(image.cast()) } {
            Ok(made) => give!(module, pointer(made)),
            Err((code, log)) => {
                if let (Some(buffer), Some(room)) = (value(5), value(6)) {
                    let log = &log[..log.len().min(room.addr().saturating_sub(1))];
                    // SAFETY: the log's room is as large as the caller says.
                    unsafe { put_text(buffer.cast(), room.addr(), log) }?;
                }
                Err(code)
            }
        }
    }
    Release fn cuModuleUnload(gpu, module: *mut c_void) {
        gpu.module_unload(address(module))
    }
    Plain fn cuModuleGetFunction(
        gpu, function: *mut *mut c_void, module: *mut c_void, name: *const c_char,
    ) {
        // SAFETY: the caller gives a C string.
        let name = unsafe { text(name) }?;
        give!(function, pointer(gpu.module_function(address(module), &name)?))
    }
    Plain fn cuFuncGetAttribute(
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
    Plain fn cuFuncSetAttribute(gpu, function: *mut c_void, attribute: c_int, value: c_int) {
        if attribute != 8 {
            return wrong(&format!("attribute {attribute} is not known to the fake"));
        }
        gpu.function_allow_shared(address(function), value)
    }
    Plain fn cuLaunchKernel(
        gpu, function: *mut c_void, grid_x: c_uint, grid_y: c_uint, grid_z: c_uint,
        block_x: c_uint, block_y: c_uint, block_z: c_uint, shared_bytes: c_uint,
        stream: *mut c_void, parameters: *mut *mut c_void, extra: *mut *mut c_void,
    ) {
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        let (kernel, context) = (std::ptr::null_mut(), std::ptr::null_mut());
        let node =
            KernelNode { function, grid, block, shared_bytes, parameters, extra, kernel, context };
        let request = request(gpu, &node)?;
        gpu.launch(request, address(stream))
    }
    Plain fn cuLaunchHostFunc(
        gpu, stream: *mut c_void, function: Option<unsafe extern "C" fn(*mut c_void)>,
        argument: *mut c_void,
    ) {
        let Some(function) = function else { return wrong("the host function is null") };
        gpu.launch_host(address(stream), function, argument)
    }
    Plain fn cuGraphCreate(gpu, graph: *mut *mut c_void, flags: c_uint) {
        let _ = flags;
        give!(graph, pointer(gpu.graph_create()?))
    }
    Release fn cuGraphDestroy(gpu, graph: *mut c_void) {
        gpu.graph_destroy(address(graph))
    }
    Plain fn cuGraphAddKernelNode_v2(
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
    Plain fn cuGraphAddMemcpyNode(
        gpu, node: *mut *mut c_void, graph: *mut c_void, after: *const u64, count: usize,
        copy: *const Copy3d, context: *mut c_void,
    ) {
        // SAFETY: the caller gives as many nodes as it says.
        let after = unsafe { list(after, count) }?;
        gpu.device_of_context(address(context))?;
        let copy = copy_of(copy)?;
        give!(node, pointer(gpu.graph_add_copy(address(graph), &after, copy)?))
    }
    Plain fn cuGraphInstantiateWithFlags(
        gpu, exec: *mut *mut c_void, graph: *mut c_void, flags: u64,
    ) {
        let _ = flags;
        give!(exec, pointer(gpu.graph_instantiate(address(graph))?))
    }
    Release fn cuGraphExecDestroy(gpu, exec: *mut c_void) {
        gpu.graph_exec_destroy(address(exec))
    }
    Plain fn cuGraphExecKernelNodeSetParams_v2(
        gpu, exec: *mut c_void, node: *mut c_void, parameters: *const KernelNode,
    ) {
        // SAFETY: the caller gives the parameters.
        let parameters = unsafe { list(parameters, 1) }?[0];
        let request = request(gpu, &parameters)?;
        gpu.graph_set_kernel(address(exec), address(node), request)
    }
    Plain fn cuGraphExecMemcpyNodeSetParams(
        gpu, exec: *mut c_void, node: *mut c_void, copy: *const Copy3d, context: *mut c_void,
    ) {
        gpu.device_of_context(address(context))?;
        gpu.graph_set_copy(address(exec), address(node), copy_of(copy)?)
    }
    Plain fn cuGraphLaunch(gpu, exec: *mut c_void, stream: *mut c_void) {
        gpu.graph_launch(address(exec), address(stream))
    }
}

calls! {
    Early fn cuGetErrorName(_gpu, error: c_int, name: *mut *const c_char) {
        give!(name, fake::errors::name(error).ok_or(code::INVALID_VALUE)?.as_ptr())
    }
    Early fn cuGetErrorString(_gpu, error: c_int, sentence: *mut *const c_char) {
        give!(sentence, fake::errors::sentence(error).ok_or(code::INVALID_VALUE)?.as_ptr())
    }
}

/// Writes the ledger now. Not a name of the driver's.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn fake_gpu_ledger() {
    Gpu::lock().write_ledger("asked");
}
