//! The CUDA fake's functions, found by name, as few as the scenarios need.

use std::ffi::{CString, c_int, c_uint, c_void};
use std::ptr;

/// A library that stays loaded.
#[derive(Clone, Copy)]
pub(crate) struct Library(pub(crate) *mut c_void);

impl Library {
    pub(crate) fn open(name: &str) -> Library {
        let text = CString::new(name).expect("no zero bytes");
        // SAFETY: the fakes run nothing dangerous when they are loaded.
        let handle = unsafe { libc::dlopen(text.as_ptr(), libc::RTLD_NOW) };
        assert!(!handle.is_null(), "{name} is not found");
        Library(handle)
    }

    /// The address of a symbol.
    pub(crate) fn find(self, name: &str) -> *mut c_void {
        let text = CString::new(name).expect("no zero bytes");
        // SAFETY: the handle is of a library that is never closed.
        unsafe { libc::dlsym(self.0, text.as_ptr()) }
    }
}

/// Calls a function of a library by name, with the type of each argument:
/// `call!(library, cuInit(0 => c_uint))`. The result is the driver's code.
macro_rules! call {
    ($library:expr, $name:ident($($arg:expr => $type:ty),* $(,)?)) => {{
        let symbol = $library.find(stringify!($name));
        assert!(!symbol.is_null(), concat!(stringify!($name), " is missing"));
        // SAFETY: the types are those of the driver's documentation.
        let function = unsafe {
            std::mem::transmute::<
                *mut std::ffi::c_void,
                unsafe extern "C" fn($($type),*) -> std::ffi::c_int,
            >(symbol)
        };
        // SAFETY: the fake checks what it is given.
        unsafe { function($($arg),*) }
    }};
}
pub(crate) use call;

pub(crate) type Handle = *mut c_void;

/// Of shared memory: what it comes in multiples of.
pub(crate) const SHARED_BYTES: usize = 2 << 20;

/// A context of the CUDA fake, current on this thread, with what most scenarios do to it.
pub(crate) struct Cuda {
    pub(crate) library: Library,
    pub(crate) context: Handle,
}

#[track_caller]
pub(crate) fn ok(code: c_int) {
    assert_eq!(code, 0);
}

/// PTX text with kernels of pointers and ints, such as `("add_", "ppp")`.
pub(crate) fn ptx(kernels: &[(&str, &str)]) -> CString {
    let mut text = "// a comment\n.version 8.0\n.target sm_90\n.address_size 64\n".to_owned();
    for (name, parameters) in kernels {
        let parameter = |(index, letter): (usize, char)| {
            let kind = if letter == 'p' { ".u64" } else { ".s32" };
            format!("  .param {kind} a{index}")
        };
        let list: Vec<String> = parameters.chars().enumerate().map(parameter).collect();
        text += &format!(".visible .entry {name}(\n{}\n)\n{{\nret;\n}}\n", list.join(",\n"));
    }
    CString::new(text).expect("no zero bytes")
}

impl Cuda {
    pub(crate) fn start() -> Cuda {
        Cuda::on(0)
    }

    /// A context on a device.
    pub(crate) fn on(device: c_int) -> Cuda {
        let library = Library::open("libcuda.so.1");
        ok(call!(library, cuInit(0 => c_uint)));
        let mut context = ptr::null_mut();
        let place = &raw mut context;
        ok(call!(library, cuCtxCreate_v2(place => *mut Handle, 4 => c_uint, device => c_int)));
        Cuda { library, context }
    }

    pub(crate) fn end(self) {
        ok(call!(self.library, cuCtxDestroy_v2(self.context => Handle)));
    }

    pub(crate) fn make_current(&self) {
        ok(call!(self.library, cuCtxSetCurrent(self.context => Handle)));
    }

    pub(crate) fn pool(&self, device: c_int) -> Handle {
        let mut properties = [0_i32; 22];
        (properties[0], properties[2], properties[3]) = (1, 1, device);
        let (mut pool, at) = (ptr::null_mut(), properties.as_ptr());
        ok(call!(self.library,
            cuMemPoolCreate(&raw mut pool => *mut Handle, at => *const i32)));
        pool
    }

    /// Addresses where shared memory of the device is mapped, which may use it or not, and its
    /// handle.
    pub(crate) fn mapped(&self, device: c_int, may_use: bool) -> (u64, u64) {
        let properties = [1, 1, 1, device, 0, 0, 0, 0];
        let (mut handle, mut at) = (0, 0);
        let list: *const c_int = properties.as_ptr();
        ok(call!(self.library, cuMemCreate(
            &raw mut handle => *mut u64, SHARED_BYTES => usize, list => *const c_int, 0 => u64)));
        ok(call!(self.library, cuMemAddressReserve(
            &raw mut at => *mut u64, SHARED_BYTES => usize, 0 => usize, 0 => u64, 0 => u64)));
        ok(call!(self.library, cuMemMap(
            at => u64, SHARED_BYTES => usize, 0 => usize, handle => u64, 0 => u64)));
        if may_use {
            let map = [1, device, 3];
            ok(call!(self.library, cuMemSetAccess(
                at => u64, SHARED_BYTES => usize, map.as_ptr() => *const c_int, 1 => usize)));
        }
        (at, handle)
    }

    pub(crate) fn unmap(&self, at: u64) -> c_int {
        call!(self.library, cuMemUnmap(at => u64, SHARED_BYTES => usize))
    }

    pub(crate) fn pool_alloc(&self, pool: Handle, bytes: usize, stream: Handle) -> u64 {
        let mut at = 0;
        ok(call!(self.library, cuMemAllocFromPoolAsync(
            &raw mut at => *mut u64, bytes => usize, pool => Handle, stream => Handle)));
        at
    }

    pub(crate) fn pool_free(&self, at: u64, stream: Handle) -> c_int {
        call!(self.library, cuMemFreeAsync(at => u64, stream => Handle))
    }

    pub(crate) fn drop_pool(&self, pool: Handle) {
        ok(call!(self.library, cuMemPoolDestroy(pool => Handle)));
    }

    pub(crate) fn call_later(
        &self,
        stream: Handle,
        function: unsafe extern "C" fn(Handle),
        argument: Handle,
    ) -> c_int {
        call!(self.library, cuLaunchHostFunc(
            stream => Handle, function => unsafe extern "C" fn(Handle), argument => Handle))
    }

    /// The one kernel of a module that is loaded from PTX text.
    pub(crate) fn kernel(&self, name: &str, parameters: &str) -> (Handle, Handle) {
        let (code, module) = self.load(&ptx(&[(name, parameters)]));
        ok(code);
        (module, self.function(module, name))
    }

    pub(crate) fn stream(&self) -> Handle {
        let mut stream = ptr::null_mut();
        ok(call!(self.library, cuStreamCreate(&raw mut stream => *mut Handle, 1 => c_uint)));
        stream
    }

    pub(crate) fn drop_stream(&self, stream: Handle) {
        ok(call!(self.library, cuStreamDestroy_v2(stream => Handle)));
    }

    pub(crate) fn synchronize(&self, stream: Handle) -> c_int {
        call!(self.library, cuStreamSynchronize(stream => Handle))
    }

    pub(crate) fn event(&self) -> Handle {
        let mut event = ptr::null_mut();
        ok(call!(self.library, cuEventCreate(&raw mut event => *mut Handle, 0 => c_uint)));
        event
    }

    /// Lets one stream wait for what is on another now.
    pub(crate) fn join(&self, waits: Handle, for_: Handle) {
        let event = self.event();
        ok(call!(self.library, cuEventRecord(event => Handle, for_ => Handle)));
        ok(call!(self.library, cuStreamWaitEvent(waits => Handle, event => Handle, 0 => c_uint)));
        ok(call!(self.library, cuEventDestroy_v2(event => Handle)));
    }

    pub(crate) fn alloc(&self, bytes: usize) -> u64 {
        let mut at = 0;
        ok(call!(self.library, cuMemAlloc_v2(&raw mut at => *mut u64, bytes => usize)));
        at
    }

    pub(crate) fn free(&self, at: u64) -> c_int {
        call!(self.library, cuMemFree_v2(at => u64))
    }

    /// Pinned memory of words.
    pub(crate) fn pinned(&self, words: usize) -> &'static mut [i32] {
        let mut at = ptr::null_mut();
        let bytes = 4 * words;
        ok(call!(self.library,
            cuMemHostAlloc(&raw mut at => *mut Handle, bytes => usize, 1 => c_uint)));
        // SAFETY: the fake gave as many bytes, aligned to a page, until they are freed.
        unsafe { std::slice::from_raw_parts_mut(at.cast(), words) }
    }

    pub(crate) fn unpin(&self, memory: &mut [i32]) -> c_int {
        call!(self.library, cuMemFreeHost(memory.as_mut_ptr().cast() => Handle))
    }

    pub(crate) fn copy_in(&self, to: u64, from: &[i32], stream: Handle) -> c_int {
        let at: *const c_void = from.as_ptr().cast();
        call!(self.library, cuMemcpyHtoDAsync_v2(
            to => u64, at => *const c_void, size_of_val(from) => usize, stream => Handle))
    }

    pub(crate) fn copy_out(&self, to: &mut [i32], from: u64, stream: Handle) -> c_int {
        let bytes = size_of_val(to);
        let at: *mut c_void = to.as_mut_ptr().cast();
        call!(self.library, cuMemcpyDtoHAsync_v2(
            at => Handle, from => u64, bytes => usize, stream => Handle))
    }

    pub(crate) fn load(&self, image: &CString) -> (c_int, Handle) {
        let mut module = ptr::null_mut();
        let code = call!(self.library, cuModuleLoadDataEx(
            &raw mut module => *mut Handle, image.as_ptr().cast() => *const c_void, 0 => c_uint,
            ptr::null_mut() => *mut c_int, ptr::null_mut() => *mut Handle));
        (code, module)
    }

    pub(crate) fn unload(&self, module: Handle) {
        ok(call!(self.library, cuModuleUnload(module => Handle)));
    }

    pub(crate) fn function(&self, module: Handle, name: &str) -> Handle {
        let mut function = ptr::null_mut();
        let name = CString::new(name).expect("no zero bytes");
        ok(call!(self.library, cuModuleGetFunction(
            &raw mut function => *mut Handle, module => Handle, name.as_ptr() => *const i8)));
        function
    }

    /// Launches with packed arguments.
    pub(crate) fn launch(
        &self,
        function: Handle,
        (grid, block): (u32, u32),
        arguments: &[u8],
        stream: Handle,
    ) -> c_int {
        let mut bytes = arguments.len();
        let mut extra: [Handle; 5] = [
            ptr::without_provenance_mut(1),
            arguments.as_ptr().cast_mut().cast(),
            ptr::without_provenance_mut(2),
            (&raw mut bytes).cast(),
            ptr::null_mut(),
        ];
        call!(self.library, cuLaunchKernel(
            function => Handle, grid => c_uint, 1 => c_uint, 1 => c_uint, block => c_uint,
            1 => c_uint, 1 => c_uint, 0 => c_uint, stream => Handle,
            ptr::null_mut() => *mut Handle, extra.as_mut_ptr() => *mut Handle))
    }
}

/// Arguments as the driver wants them: pointers, then ints.
pub(crate) fn packed(pointers: &[u64], ints: &[i32]) -> Vec<u8> {
    let pointers = pointers.iter().flat_map(|pointer| pointer.to_le_bytes());
    pointers.chain(ints.iter().flat_map(|int| int.to_le_bytes())).collect()
}
