//! What the faces of the two drivers share beyond handles: memory, copies, launches, and the
//! helpers with which they read and write through C pointers.

use std::collections::HashSet;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::Arc;

use super::clock::Touch;
use super::files::{report, trace};
use super::image::Kernel;
use super::kernel::{Launch, Native, Work};
use super::memory::{Memory, Miss, Pool};
use super::stream::{Action, HostFunction, Progress};
use super::{Code, Gpu, Outcome, State, code, size};

/// Sizes and arguments of a launch, as they came.
pub(crate) struct Request {
    pub(crate) function: u64,
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) shared_bytes: u32,
    pub(crate) arguments: Vec<u8>,
}

pub(crate) const GRID_MAX: [u32; 3] = [0x7fff_ffff, 65535, 65535];
pub(crate) const BLOCK_MAX: [u32; 3] = [1024, 1024, 64];
pub(crate) const BLOCK_THREADS_MAX: u32 = 1024;
pub(crate) const SHARED_BYTES_MAX: u32 = 227 << 10;
const ARGUMENT_BYTES_MAX: usize = 4096;

/// `CUmemLocation` and `hipMemLocation`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Location {
    pub(super) kind: c_int,
    pub(super) id: c_int,
}

/// `CUmemPoolProps` and `hipMemPoolProps`, as far as they are looked at.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct PoolProperties {
    pub(super) allocation: c_int,
    handles: c_int,
    pub(super) location: Location,
}

/// `CUmemAccessDesc` and `hipMemAccessDesc`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct AccessDescription {
    pub(super) location: Location,
    pub(super) flags: c_int,
}

pub(super) const DEVICE_LOCATION: c_int = 1;
/// Registered memory is not written by devices, and need not be writable.
const READ_ONLY: u32 = 8;

/// Writes down that a call breaks a rule, and answers that an argument is wrong.
pub(crate) fn wrong<T>(what: &str) -> Outcome<T> {
    report("protocol", what);
    Err(code::INVALID_VALUE)
}

/// Writes a result through a pointer of the caller's.
///
/// # Safety
///
/// `to` is null or valid for a write of a `T`.
pub(crate) unsafe fn put<T>(to: *mut T, value: T) -> Outcome<()> {
    if to.is_null() {
        report("protocol", "the place for the result is null");
        return Err(code::INVALID_VALUE);
    }
    // SAFETY: it is not null, and the caller guarantees the rest.
    unsafe { to.write(value) };
    Ok(())
}

/// Writes text and its zero byte into `room` bytes.
///
/// # Safety
///
/// `to` is null or valid for writes of `room` bytes.
pub(crate) unsafe fn put_text(to: *mut c_char, room: usize, text: &str) -> Outcome<()> {
    if to.is_null() || room <= text.len() {
        report("protocol", &format!("{room} bytes are too few for a text of {}", text.len()));
        return Err(code::INVALID_VALUE);
    }
    // SAFETY: there is room for the text, by the test above.
    unsafe { to.cast::<u8>().copy_from(text.as_ptr(), text.len()) };
    // SAFETY: the room is larger than the text.
    let end = unsafe { to.add(text.len()) };
    // SAFETY: so there is room for the zero byte behind it.
    unsafe { end.write(0) };
    Ok(())
}

/// Reads a C string.
///
/// # Safety
///
/// `text` is null or ends in a zero byte.
pub(crate) unsafe fn text(text: *const c_char) -> Outcome<String> {
    if text.is_null() {
        report("protocol", "a text is null");
        return Err(code::INVALID_VALUE);
    }
    // SAFETY: it is not null, and the caller guarantees the rest.
    let text = unsafe { CStr::from_ptr(text) };
    Ok(text.to_string_lossy().into_owned())
}

/// Reads a list.
///
/// # Safety
///
/// `list` is valid for reads of `count` values, unless `count` is 0.
pub(crate) unsafe fn list<T: Copy>(list: *const T, count: usize) -> Outcome<Vec<T>> {
    if count == 0 {
        return Ok(Vec::new());
    }
    if list.is_null() {
        report("protocol", &format!("a list of {count} is null"));
        return Err(code::INVALID_VALUE);
    }
    // SAFETY: it is not null, and the caller guarantees the rest.
    Ok(unsafe { std::slice::from_raw_parts(list, count) }.to_vec())
}

/// The address that a pointer holds, as a number.
pub(crate) fn address<T>(pointer: *const T) -> u64 {
    pointer.expose_provenance() as u64
}

/// A handle as the pointer that callers take it for.
pub(crate) fn pointer(handle: u64) -> *mut c_void {
    std::ptr::without_provenance_mut(size(handle))
}

/// Reads a launch's arguments: packed in `extra`, or one pointer for each parameter.
///
/// # Safety
///
/// What is not null is as the documentation of the driver wants it.
pub(crate) unsafe fn arguments(
    gpu: &State,
    function: u64,
    parameters: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> Outcome<Vec<u8>> {
    let kernel = Arc::clone(&gpu.functions.get(function)?.kernel);
    if !extra.is_null() && parameters.is_null() {
        // SAFETY: the caller guarantees a list that ends.
        return unsafe { extra_arguments(extra) };
    }
    if !extra.is_null() {
        report("protocol", "both kinds of arguments are given");
        return Err(code::INVALID_VALUE);
    }
    if kernel.parameters.is_empty() {
        return Ok(Vec::new());
    }
    // SAFETY: there is one pointer for each parameter.
    let pointers = unsafe { list(parameters, kernel.parameters.len()) }?;
    let mut bytes = Vec::new();
    for (parameter, pointer) in kernel.parameters.iter().zip(pointers) {
        let count = match parameter {
            super::image::Parameter::Pointer => 8,
            super::image::Parameter::Int => 4,
        };
        bytes.resize(bytes.len().next_multiple_of(count), 0);
        // SAFETY: each pointer leads to a value of the parameter's type.
        bytes.extend(unsafe { list(pointer.cast::<u8>(), count) }?);
    }
    Ok(bytes)
}

/// # Safety
///
/// The list ends with the face's end word within eight words, and its pointers are valid.
unsafe fn extra_arguments(extra: *mut *mut c_void) -> Outcome<Vec<u8>> {
    let word = |index: usize| {
        // SAFETY: the words up to the end are there.
        let place = unsafe { extra.add(index) };
        // SAFETY: as above.
        unsafe { place.read() }
    };
    let (mut buffer, mut bytes) = (std::ptr::null::<u8>(), None);
    for pair in 0..4 {
        match word(2 * pair).addr() {
            1 => buffer = word(2 * pair + 1).cast(),
            2 => {
                let count: *const usize = word(2 * pair + 1).cast();
                // SAFETY: the word behind a 2 points to the size.
                bytes = Some(unsafe { count.read() });
            }
            end if end == crate::FACE.extra_end => {
                let count = bytes.ok_or_else(|| {
                    report("protocol", "the arguments' size is missing");
                    code::INVALID_VALUE
                })?;
                // SAFETY: the buffer holds as many bytes as the size says.
                return unsafe { list(buffer, count) };
            }
            other => {
                report("protocol", &format!("{other} in the list of extra launch options"));
                return Err(code::INVALID_VALUE);
            }
        }
    }
    report("protocol", "the list of extra launch options does not end");
    Err(code::INVALID_VALUE)
}

impl State {
    /// Checks that device memory may be used now by work of the current context.
    fn check_device(&self, what: &str, at: u64, bytes: u64) -> Outcome<()> {
        let found = self.memory.find(at, bytes.max(1));
        let (_, allocation) = found.map_err(|miss| Memory::explain(miss, what, at, bytes))?;
        if allocation.is_freed {
            return Err(Memory::explain(Miss::Freed, what, at, bytes));
        }
        let device = self.current_device()?;
        if allocation.allowed.as_ref().is_some_and(|allowed| !allowed.contains(&device)) {
            return wrong(&format!(
                "{what}: {at:#x} is mapped, and device {device} may not use it"
            ));
        }
        Ok(())
    }

    /// Checks that the current device reaches the memory without the help of the driver.
    fn check_access(&self, what: &str, at: u64) -> Outcome<()> {
        let context = self.contexts.get(self.context()?)?;
        let Ok((_, allocation)) = self.memory.find(at, 1) else { return Ok(()) };
        // What is mapped has been looked at already.
        let is_allowed = allocation.allowed.is_some()
            || allocation.device == context.device
            || match allocation.pool {
                Some(pool) => {
                    self.pools.find(pool).is_some_and(|pool| pool.allowed.contains(&context.device))
                }
                None => context.peers.contains(&allocation.device),
            };
        if !is_allowed {
            let (owner, device) = (allocation.device, context.device);
            let what = format!("{what}: {at:#x} of device {owner} is out of reach of {device}");
            report("protocol", &what);
            return Err(code::INVALID_VALUE);
        }
        Ok(())
    }

    fn check_pinned(&self, what: &str, at: u64, bytes: u64) -> Outcome<()> {
        if self.memory.is_pinned(at, bytes) {
            return Ok(());
        }
        report("protocol", &format!("{what}: {at:#x} with {bytes} bytes is not pinned memory"));
        Err(code::INVALID_VALUE)
    }

    /// Checks work that was checked when it was made, but may not be right any more.
    pub(super) fn check_work(&self, work: &Work) -> Outcome<()> {
        match work {
            &Work::Copy { to, from, bytes } => {
                self.check_device("target", to, bytes)?;
                self.check_device("source", from, bytes)?;
                self.check_access("target", to)?;
                self.check_access("source", from)
            }
            &Work::Set { to, bytes, .. } => self.check_device("target", to, bytes),
            Work::Kernel(launch) => {
                self.modules.get(launch.module)?;
                self.check_pointers(launch)
            }
        }
    }

    fn check_pointers(&self, launch: &Launch) -> Outcome<()> {
        for &at in &launch.pointers {
            self.check_device("argument", at, 1)?;
            self.check_access("argument", at)?;
        }
        Ok(())
    }

    fn enqueue_work(&mut self, stream: u64, work: Work) -> Outcome<()> {
        let touches = work.touches(&self.memory);
        self.enqueue(stream, Action::Work(work, Progress::Waiting), touches)
    }

    pub(crate) fn copy_in(&mut self, to: u64, from: u64, bytes: u64, stream: u64) -> Outcome<()> {
        self.own_stream(stream)?;
        self.check_device("target", to, bytes)?;
        self.check_pinned("source", from, bytes)?;
        self.enqueue_work(stream, Work::Copy { to, from, bytes })
    }

    pub(crate) fn copy_out(&mut self, to: u64, from: u64, bytes: u64, stream: u64) -> Outcome<()> {
        self.own_stream(stream)?;
        self.check_pinned("target", to, bytes)?;
        self.check_device("source", from, bytes)?;
        self.enqueue_work(stream, Work::Copy { to, from, bytes })
    }

    /// Inside a device, or between two: the driver finds a way.
    pub(crate) fn copy(&mut self, to: u64, from: u64, bytes: u64, stream: u64) -> Outcome<()> {
        self.own_stream(stream)?;
        self.check_device("target", to, bytes)?;
        self.check_device("source", from, bytes)?;
        let (to_end, from_end) = (to.saturating_add(bytes), from.saturating_add(bytes));
        if to < from_end && from < to_end && bytes > 0 {
            report("protocol", &format!("{to:#x} and {from:#x} with {bytes} bytes overlap"));
            return Err(code::INVALID_VALUE);
        }
        self.enqueue_work(stream, Work::Copy { to, from, bytes })
    }

    /// Between two devices that the caller names.
    pub(crate) fn copy_peer(
        &mut self,
        to: (usize, u64),
        from: (usize, u64),
        bytes: u64,
        stream: u64,
    ) -> Outcome<()> {
        for (device, at) in [to, from] {
            if self.memory.device_of(at).is_some_and(|owner| owner != device) {
                report("protocol", &format!("{at:#x} is not memory of device {device}"));
                return Err(code::INVALID_VALUE);
            }
        }
        self.copy(to.1, from.1, bytes, stream)
    }

    pub(crate) fn device_of_context(&self, context: u64) -> Outcome<usize> {
        Ok(self.contexts.get(context)?.device)
    }

    pub(crate) fn set(&mut self, to: u64, value: u8, bytes: u64, stream: u64) -> Outcome<()> {
        self.own_stream(stream)?;
        self.check_device("target", to, bytes)?;
        self.enqueue_work(stream, Work::Set { to, value, bytes })
    }

    pub(crate) fn memory_info(&self) -> Outcome<(u64, u64)> {
        let device = self.current_device()?;
        Ok((self.memory.free_bytes(device), self.memory.total_bytes()))
    }

    pub(crate) fn pool_create(&mut self, properties: &PoolProperties) -> Outcome<u64> {
        if properties.allocation != 1 || properties.location.kind != DEVICE_LOCATION {
            return wrong("a pool is of pinned memory of a device");
        }
        let device = self.device(properties.location.id)?;
        if !self.config.pools {
            return Err(code::NOT_SUPPORTED);
        }
        Ok(self.pools.add(Pool { device, allowed: HashSet::new(), keep_bytes: 0 }))
    }

    pub(crate) fn pool_destroy(&mut self, pool: u64) -> Outcome<()> {
        self.pools.take(pool).map(|_| ())
    }

    pub(crate) fn pool_keep(&mut self, pool: u64, bytes: u64) -> Outcome<()> {
        self.pools.get_mut(pool)?.keep_bytes = bytes;
        Ok(())
    }

    pub(crate) fn pool_allow(&mut self, pool: u64, list: &[AccessDescription]) -> Outcome<()> {
        let own = self.pools.get(pool)?.device;
        for description in list {
            if description.location.kind != DEVICE_LOCATION || description.flags != 3 {
                return wrong("access is for a device, to read and write");
            }
            let device = self.device(description.location.id)?;
            if own != device && !self.config.reach_each_other(own, device) {
                return Err(code::INVALID_DEVICE);
            }
            self.pools.get_mut(pool)?.allowed.insert(device);
        }
        Ok(())
    }

    pub(crate) fn pool_alloc(&mut self, pool: u64, bytes: u64, stream: u64) -> Outcome<u64> {
        let context = self.own_stream(stream)?;
        let device = self.pools.get(pool)?.device;
        let at = self.memory.alloc(device, bytes, Some(pool), context, false)?;
        let touch = Touch { at, bytes, writes: true };
        self.enqueue(stream, Action::Alloc(at), vec![touch])?;
        Ok(at)
    }

    pub(crate) fn pool_free(&mut self, at: u64, stream: u64) -> Outcome<()> {
        let owned = self.own_stream(stream);
        let Some(allocation) = self.memory.live.get(&at).filter(|piece| !piece.is_freed) else {
            report("protocol", &format!("{at:#x} is freed, which is no live allocation"));
            return Err(code::INVALID_VALUE);
        };
        let bytes = allocation.bytes;
        if let Err(error) = owned {
            // Lost with its context, so that nobody has to answer for it.
            if self.contexts.find(allocation.context).is_some_and(|owner| owner.error.is_some()) {
                self.memory.drop_allocation(at);
            }
            return Err(error);
        }
        self.memory.set_freed(at);
        let touch = Touch { at, bytes, writes: true };
        self.enqueue(stream, Action::Free(at), vec![touch])
    }

    pub(crate) fn memory_alloc(&mut self, bytes: u64) -> Outcome<u64> {
        let context = self.context()?;
        let device = self.current_device()?;
        self.memory.alloc(device, bytes, None, context, true)
    }

    pub(crate) fn memory_free(&mut self, at: u64) -> Outcome<()> {
        let Some(allocation) = self.memory.live.get(&at).filter(|piece| !piece.is_freed) else {
            report("protocol", &format!("{at:#x} is freed, which is no live allocation"));
            return Err(code::INVALID_VALUE);
        };
        let (bytes, owner) = (allocation.bytes, allocation.context);
        self.right_context("memory", at, owner)?;
        if self.is_in_use(at, bytes) {
            report("protocol", &format!("{at:#x} is freed before the work that uses it has run"));
        }
        self.memory.drop_allocation(at);
        self.context().map(|_| ())
    }

    pub(crate) fn host_alloc(&mut self, bytes: u64, flags: u32) -> Outcome<u64> {
        let context = self.context()?;
        if flags & 1 == 0 {
            report("protocol", "pinned memory of one context only");
        }
        self.memory.pin_alloc(bytes, context)
    }

    pub(crate) fn host_register(&mut self, at: u64, bytes: u64, flags: u32) -> Outcome<()> {
        let context = self.context()?;
        if flags & 1 == 0 {
            report("protocol", "pinned memory of one context only");
        }
        let can_write = super::files::access_of(at, bytes);
        if can_write.is_none_or(|can_write| !can_write && flags & READ_ONLY == 0) {
            report("protocol", &format!("{bytes} bytes at {at:#x} cannot be registered so"));
            return Err(code::INVALID_VALUE);
        }
        self.memory.pin_register(at, bytes, context)
    }

    /// Ends the pinning of memory, which was registered or allocated.
    pub(crate) fn host_release(&mut self, at: u64, is_registered: bool) -> Outcome<()> {
        let found = self.memory.pins.get(&at).filter(|pin| pin.is_registered() == is_registered);
        let Some(pin) = found else {
            report("protocol", &format!("{at:#x} was not pinned in this way"));
            let unknown =
                if is_registered { code::HOST_NOT_REGISTERED } else { code::INVALID_VALUE };
            return Err(unknown);
        };
        if is_registered && super::files::access_of(at, pin.bytes).is_none() {
            report("protocol", &format!("{at:#x} was unmapped before it was unregistered"));
        }
        if self.is_in_use(at, pin.bytes) {
            report(
                "protocol",
                &format!("{at:#x} is unpinned before the work that uses it has run"),
            );
        }
        self.memory.pins.remove(&at);
        self.context().map(|_| ())
    }

    pub(crate) fn launch(&mut self, request: Request, stream: u64) -> Outcome<()> {
        self.own_stream(stream)?;
        let work = self.kernel_work(request)?;
        self.enqueue_work(stream, work)
    }

    pub(crate) fn launch_host(
        &mut self,
        stream: u64,
        function: HostFunction,
        argument: *mut c_void,
    ) -> Outcome<()> {
        self.own_stream(stream)?;
        let argument = argument.expose_provenance();
        self.enqueue(stream, Action::Host(function, argument), Vec::new())
    }

    /// Checks a launch and makes it work.
    fn kernel_work(&mut self, request: Request) -> Outcome<Work> {
        let function = self.functions.get(request.function)?;
        let (owner, module, entry) = (function.context, function.module, function.entry);
        let (kernel, dynamic_max) = (Arc::clone(&function.kernel), function.shared_bytes_max);
        self.right_context("function", request.function, owner)?;
        check_limits(&request, &kernel, dynamic_max)?;
        if request.arguments.len() != kernel.argument_bytes() {
            let (given, wanted) = (request.arguments.len(), kernel.argument_bytes());
            let name = &kernel.name;
            report("arguments", &format!("{name} takes {wanted} bytes, and {given} are given"));
            return Err(code::INVALID_VALUE);
        }
        let (pointers, ints) = kernel.unpacked(&request.arguments);
        let total = |sizes: [u32; 3]| sizes.iter().map(|&size| u64::from(size)).product::<u64>();
        let threads = total(request.grid).saturating_mul(total(request.block));
        trace(|| {
            let (name, grid, block) = (&kernel.name, request.grid, request.block);
            format!("# kernel {name} grid={grid:?} block={block:?} {pointers:x?} {ints:?}")
        });
        let name = kernel.name.as_str().into();
        let Request { grid, block, arguments, .. } = request;
        let native = entry.map(|entry| Native { entry, grid, block, arguments });
        let launch = Launch { name, module, pointers, ints, threads, native };
        self.check_pointers(&launch)?;
        Ok(Work::Kernel(launch))
    }

    pub(crate) fn graph_add_kernel(
        &mut self,
        graph: u64,
        after: &[u64],
        request: Request,
    ) -> Outcome<u64> {
        self.context()?;
        let work = self.kernel_work(request)?;
        self.graph_add(graph, after, work)
    }

    pub(crate) fn graph_set_kernel(
        &mut self,
        exec: u64,
        node: u64,
        request: Request,
    ) -> Outcome<()> {
        self.context()?;
        let work = self.kernel_work(request)?;
        self.graph_set(exec, node, work)
    }

    pub(crate) fn graph_add_copy(
        &mut self,
        graph: u64,
        after: &[u64],
        (to, from, bytes): (u64, u64, u64),
    ) -> Outcome<u64> {
        self.context()?;
        let work = Work::Copy { to, from, bytes };
        self.check_work(&work)?;
        self.graph_add(graph, after, work)
    }

    pub(crate) fn graph_set_copy(
        &mut self,
        exec: u64,
        node: u64,
        (to, from, bytes): (u64, u64, u64),
    ) -> Outcome<()> {
        self.context()?;
        let work = Work::Copy { to, from, bytes };
        self.check_work(&work)?;
        self.graph_set(exec, node, work)
    }

    /// Whether work of a module's kernels is still enqueued.
    pub(super) fn is_launched(&self, module: u64) -> bool {
        self.streams.iter().any(|(_, stream)| {
            stream.queue.iter().any(|operation| {
                matches!(&operation.action,
                    Action::Work(Work::Kernel(launch), _) if launch.module == module)
            })
        })
    }

    pub(crate) fn function_info(&self, function: u64) -> Outcome<(u32, u32)> {
        self.context()?;
        let kernel = &self.functions.get(function)?.kernel;
        let threads =
            if kernel.block_threads == 0 { BLOCK_THREADS_MAX } else { kernel.block_threads };
        Ok((threads, kernel.shared_bytes))
    }

    pub(crate) fn function_allow_shared(&mut self, function: u64, bytes: i32) -> Outcome<()> {
        self.context()?;
        let statically = self.functions.get(function)?.kernel.shared_bytes;
        let bytes = u32::try_from(bytes).map_err(|_| code::INVALID_VALUE)?;
        if bytes.saturating_add(statically) > SHARED_BYTES_MAX {
            return Err(code::INVALID_VALUE);
        }
        self.functions.get_mut(function)?.shared_bytes_max = bytes;
        Ok(())
    }
}

impl Gpu {
    /// The name of a device and the place where it is on the bus.
    pub(crate) fn device_name(&self, device: i32) -> Outcome<(String, String)> {
        let index = self.device(device)?;
        let place = self.config.pci.get(index).cloned();
        let place = place.unwrap_or_else(|| format!("0000:{:02x}:00.0", 0x3b + index));
        Ok((format!("Fake {} {index}", self.config.arch), place))
    }

    pub(crate) fn arch(&self) -> &str {
        &self.config.arch
    }

    pub(crate) fn has_pools(&self) -> bool {
        self.config.pools
    }

    pub(crate) fn is_integrated(&self) -> bool {
        self.config.integrated
    }

    pub(crate) fn total_memory(&self) -> u64 {
        self.memory.total_bytes()
    }

    pub(crate) fn device_count(&self) -> usize {
        self.config.devices
    }
}

fn check_limits(request: &Request, kernel: &Kernel, dynamic_max: u32) -> Result<(), Code> {
    let Request { grid, block, shared_bytes, arguments, .. } = request;
    let name = &kernel.name;
    let wrong = |what: String, code: Code| {
        report("limits", &format!("{name}: {what}"));
        Err(code)
    };
    let outside = |sizes: &[u32; 3], limits: [u32; 3]| {
        sizes.iter().zip(limits).any(|(&size, limit)| size == 0 || size > limit)
    };
    if outside(grid, GRID_MAX) || outside(block, BLOCK_MAX) {
        return wrong(format!("grid {grid:?} block {block:?}"), code::INVALID_VALUE);
    }
    let too_many = |(&grid, &block)| u64::from(grid) * u64::from(block) > u64::from(u32::MAX);
    let is_total_limited = crate::FACE.total_threads_32_bits;
    if is_total_limited && grid.iter().zip(block).any(too_many) {
        return wrong(format!("grid {grid:?} times block {block:?}"), code::INVALID_VALUE);
    }
    let threads: u32 = block.iter().product();
    if threads > BLOCK_THREADS_MAX {
        return wrong(format!("{threads} threads in a block"), code::INVALID_VALUE);
    }
    if kernel.block_threads != 0 && threads > kernel.block_threads {
        let what = format!("{threads} threads for bounds of {}", kernel.block_threads);
        return wrong(what, code::LAUNCH_OUT_OF_RESOURCES);
    }
    if *shared_bytes > dynamic_max {
        return wrong(format!("{shared_bytes} bytes of shared memory"), code::INVALID_VALUE);
    }
    if arguments.len() > ARGUMENT_BYTES_MAX {
        return wrong(format!("{} bytes of arguments", arguments.len()), code::INVALID_VALUE);
    }
    Ok(())
}
