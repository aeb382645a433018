//! HIP C++ to machine code, through AMD's code object manager (amd_comgr).
//!
//! Owns: the calls of comgr that are used, declared by hand, and the options. Runs in the child
//! process only (`worker`). comgr needs no driver and no GPU.
//!
//! HIPRTC, which ends in the same library, brings a prelude whose vector types clash with those
//! that tinygrad defines. comgr takes the source as it is.
//!
//! The numbers of languages and actions are others from version 3 on, so the library is asked for
//! its version first.

use std::ffi::{CStr, CString, OsStr, c_char, c_int};
use std::path::PathBuf;

use super::dynamic::Library;
use super::worker::{Code, Failure};

/// How the source is called in messages.
pub(super) const SOURCE_NAME: &CStr = c"kernel.hip";

const VERSION_SYMBOL: &CStr = c"amd_comgr_get_version";

/// Compiles as a runtime compiler would, without a header or a host side. Optimising is left to
/// the next step, which sees the device libraries too.
const COMPILE_OPTIONS: [&CStr; 8] = [
    c"-O3",
    c"-mcumode",
    c"--hip-version=6.0.0",
    c"-D__HIPCC_RTC__",
    c"-std=c++14",
    c"-nogpuinc",
    c"-Xclang",
    c"-disable-llvm-passes",
];
const CODEGEN_OPTIONS: [&CStr; 3] = [c"-O3", c"-mllvm", c"-amdgpu-internalize-symbols"];

/// Where functions of the device libraries are missing, the linker names one of these.
const DEVICE_LIBRARIES: [&[u8]; 2] = [b"__ockl_", b"__ocml_"];

const DATA_SOURCE: c_int = 1;
const DATA_LOG: c_int = 5;
const DATA_EXECUTABLE: c_int = 8;

type Status = c_int;

/// `struct { uint64_t handle; }` of `amd_comgr.h`, passed by value.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Handle {
    handle: u64,
}

/// What has other numbers in version 3.
#[derive(Clone, Copy, Debug)]
struct Numbers {
    language_hip: c_int,
    compile: c_int,
    codegen: c_int,
    link: c_int,
    /// Compiling without the device libraries, adding them, and linking both: for builds of
    /// version 2 whose compile action does not find them. Gone in version 3.
    apart: Option<[c_int; 3]>,
}

impl Numbers {
    fn of(major: usize) -> Numbers {
        if major >= 3 {
            Numbers { language_hip: 3, compile: 12, codegen: 4, link: 7, apart: None }
        } else {
            Numbers { language_hip: 4, compile: 15, codegen: 6, link: 9, apart: Some([2, 3, 4]) }
        }
    }
}

/// The calls, as in `amd_comgr.h`.
struct Calls {
    add: unsafe extern "C" fn(Handle, Handle) -> Status,
    count: unsafe extern "C" fn(Handle, c_int, *mut usize) -> Status,
    create_data: unsafe extern "C" fn(c_int, *mut Handle) -> Status,
    create_info: unsafe extern "C" fn(*mut Handle) -> Status,
    create_set: unsafe extern "C" fn(*mut Handle) -> Status,
    destroy_info: unsafe extern "C" fn(Handle) -> Status,
    destroy_set: unsafe extern "C" fn(Handle) -> Status,
    do_action: unsafe extern "C" fn(c_int, Handle, Handle, Handle) -> Status,
    get: unsafe extern "C" fn(Handle, *mut usize, *mut c_char) -> Status,
    member: unsafe extern "C" fn(Handle, c_int, usize, *mut Handle) -> Status,
    release: unsafe extern "C" fn(Handle) -> Status,
    set: unsafe extern "C" fn(Handle, usize, *const c_char) -> Status,
    set_isa: unsafe extern "C" fn(Handle, *const c_char) -> Status,
    set_language: unsafe extern "C" fn(Handle, c_int) -> Status,
    set_logging: unsafe extern "C" fn(Handle, bool) -> Status,
    set_name: unsafe extern "C" fn(Handle, *const c_char) -> Status,
    set_options: unsafe extern "C" fn(Handle, *const *const c_char, usize) -> Status,
    status_string: unsafe extern "C" fn(Status, *mut *const c_char) -> Status,
}

/// A loaded comgr.
pub(super) struct Comgr {
    library: Library,
    calls: Calls,
    version: (usize, usize),
}

impl Comgr {
    pub(super) fn load(name: &OsStr) -> Result<Comgr, String> {
        let library = Library::open(name)?;
        let calls = Calls::of(&library)?;
        // SAFETY: the type is that of `amd_comgr.h`.
        let version: unsafe extern "C" fn(*mut usize, *mut usize) =
            unsafe { library.function(VERSION_SYMBOL) }?;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both pointers are valid.
        unsafe { version(&raw mut major, &raw mut minor) };
        if major < 2 {
            return Err(format!("version {major}.{minor} is too old: version 2 or later"));
        }
        Ok(Comgr { library, calls, version: (major, minor) })
    }

    pub(super) fn version(&self) -> String {
        format!("{}.{}", self.version.0, self.version.1)
    }

    pub(super) fn path(&self) -> Option<PathBuf> {
        self.library.path(VERSION_SYMBOL)
    }

    /// Compiles for an architecture such as `gfx90a:sramecc+:xnack-`.
    pub(super) fn compile(&self, source: &[u8], arch: &str) -> Result<Code, Failure> {
        let numbers = Numbers::of(self.version.0);
        let calls = &self.calls;
        let action = Action::new(calls, numbers.language_hip, arch)?;
        let text = Set::of_source(calls, source)?;
        let offload = CString::new(format!("--offload-arch={arch}"))
            .map_err(|e| Failure::Broken(e.to_string()))?;
        let options: Vec<&CStr> = COMPILE_OPTIONS.into_iter().chain([&*offload]).collect();
        let bitcode = action.run(numbers.compile, &options, &text)?;
        match action.finish(numbers, &bitcode) {
            Err(Failure::Rejected(log)) if lacks_libraries(&log) && numbers.apart.is_some() => {
                let [compile, add, link] = numbers.apart.unwrap_or_default();
                let bitcode = action.run(compile, &options, &text)?;
                let bitcode = action.run(add, &[], &bitcode)?;
                let bitcode = action.run(link, &[], &bitcode)?;
                action.finish(numbers, &bitcode)
            }
            result => result,
        }
    }
}

fn lacks_libraries(log: &[u8]) -> bool {
    DEVICE_LIBRARIES.iter().any(|name| log.windows(name.len()).any(|window| window == *name))
}

impl Calls {
    #[rustfmt::skip]
    fn of(library: &Library) -> Result<Calls, String> {
        /// Looks one call up: its type is that of the field, which is that of `amd_comgr.h`.
        macro_rules! call {
            ($name:literal) => {{
                // SAFETY: the field that this becomes has the type of the header.
                unsafe { library.function($name) }?
            }};
        }
        Ok(Calls {
            add: call!(c"amd_comgr_data_set_add"),
            count: call!(c"amd_comgr_action_data_count"),
            create_data: call!(c"amd_comgr_create_data"),
            create_info: call!(c"amd_comgr_create_action_info"),
            create_set: call!(c"amd_comgr_create_data_set"),
            destroy_info: call!(c"amd_comgr_destroy_action_info"),
            destroy_set: call!(c"amd_comgr_destroy_data_set"),
            do_action: call!(c"amd_comgr_do_action"),
            get: call!(c"amd_comgr_get_data"),
            member: call!(c"amd_comgr_action_data_get_data"),
            release: call!(c"amd_comgr_release_data"),
            set: call!(c"amd_comgr_set_data"),
            set_isa: call!(c"amd_comgr_action_info_set_isa_name"),
            set_language: call!(c"amd_comgr_action_info_set_language"),
            set_logging: call!(c"amd_comgr_action_info_set_logging"),
            set_name: call!(c"amd_comgr_set_data_name"),
            set_options: call!(c"amd_comgr_action_info_set_option_list"),
            status_string: call!(c"amd_comgr_status_string"),
        })
    }

    fn check(&self, status: Status) -> Result<(), Failure> {
        if status == 0 { Ok(()) } else { Err(Failure::Broken(self.describe(status))) }
    }

    fn describe(&self, status: Status) -> String {
        let mut text = std::ptr::null();
        // SAFETY: the pointer is valid.
        let known = unsafe { (self.status_string)(status, &raw mut text) } == 0;
        if !known || text.is_null() {
            return format!("comgr error {status}");
        }
        // SAFETY: a constant string of the library's.
        let text = unsafe { CStr::from_ptr(text) };
        format!("comgr error {status} ({})", text.to_string_lossy())
    }
}

/// What is done, with which options.
struct Action<'c> {
    calls: &'c Calls,
    info: Handle,
}

impl<'c> Action<'c> {
    fn new(calls: &'c Calls, language: c_int, arch: &str) -> Result<Action<'c>, Failure> {
        let isa = CString::new(format!("amdgcn-amd-amdhsa--{arch}"))
            .map_err(|e| Failure::Broken(e.to_string()))?;
        let mut info = Handle::default();
        // SAFETY: the pointer is valid.
        calls.check(unsafe { (calls.create_info)(&raw mut info) })?;
        let action = Action { calls, info };
        // SAFETY: the handle is alive.
        calls.check(unsafe { (calls.set_language)(info, language) })?;
        // SAFETY: the handle is alive; the string is copied.
        let status = unsafe { (calls.set_isa)(info, isa.as_ptr()) };
        if status != 0 {
            let message = format!("error: the server's comgr has no code for {arch}");
            return Err(Failure::Rejected(message.into_bytes()));
        }
        // SAFETY: the handle is alive.
        calls.check(unsafe { (calls.set_logging)(info, true) })?;
        Ok(action)
    }

    /// Bitcode to an executable.
    fn finish(&self, numbers: Numbers, bitcode: &Set<'_>) -> Result<Code, Failure> {
        let object = self.run(numbers.codegen, &CODEGEN_OPTIONS, bitcode)?;
        let executable = self.run(numbers.link, &[], &object)?;
        let found = executable.first(DATA_EXECUTABLE)?;
        found.ok_or_else(|| Failure::Broken("comgr made no executable".to_owned()))
    }

    fn run(&self, kind: c_int, options: &[&CStr], input: &Set<'_>) -> Result<Set<'c>, Failure> {
        let options: Vec<_> = options.iter().map(|option| option.as_ptr()).collect();
        // SAFETY: the handle is alive; the strings are copied.
        let status =
            unsafe { (self.calls.set_options)(self.info, options.as_ptr(), options.len()) };
        self.calls.check(status)?;
        let result = Set::new(self.calls)?;
        // SAFETY: all handles are alive.
        let status =
            unsafe { (self.calls.do_action)(kind, self.info, input.handle, result.handle) };
        if status == 0 {
            return Ok(result);
        }
        let mut log = result.first(DATA_LOG).ok().flatten().unwrap_or_default();
        log.retain(|&byte| byte != 0);
        log.extend_from_slice(b"\n");
        log.extend_from_slice(self.calls.describe(status).as_bytes());
        Err(Failure::Rejected(log))
    }
}

impl Drop for Action<'_> {
    fn drop(&mut self) {
        // SAFETY: the handle is alive and destroyed once.
        unsafe { (self.calls.destroy_info)(self.info) };
    }
}

/// A set of data, as actions take and make it.
struct Set<'c> {
    calls: &'c Calls,
    handle: Handle,
}

impl<'c> Set<'c> {
    fn new(calls: &'c Calls) -> Result<Set<'c>, Failure> {
        let mut handle = Handle::default();
        // SAFETY: the pointer is valid.
        calls.check(unsafe { (calls.create_set)(&raw mut handle) })?;
        Ok(Set { calls, handle })
    }

    fn of_source(calls: &'c Calls, source: &[u8]) -> Result<Set<'c>, Failure> {
        let set = Set::new(calls)?;
        let mut data = Handle::default();
        // SAFETY: the pointer is valid.
        calls.check(unsafe { (calls.create_data)(DATA_SOURCE, &raw mut data) })?;
        let data = Data { calls, handle: data };
        // SAFETY: the handle is alive; the bytes are copied.
        let status = unsafe { (calls.set)(data.handle, source.len(), source.as_ptr().cast()) };
        calls.check(status)?;
        // SAFETY: the handle is alive; the string is copied.
        calls.check(unsafe { (calls.set_name)(data.handle, SOURCE_NAME.as_ptr()) })?;
        // SAFETY: both handles are alive; the set holds the data from here on.
        calls.check(unsafe { (calls.add)(set.handle, data.handle) })?;
        Ok(set)
    }

    /// The first datum of a kind, if there is one.
    fn first(&self, kind: c_int) -> Result<Option<Vec<u8>>, Failure> {
        let calls = self.calls;
        let mut count = 0;
        // SAFETY: the handle is alive and the pointer valid.
        calls.check(unsafe { (calls.count)(self.handle, kind, &raw mut count) })?;
        if count == 0 {
            return Ok(None);
        }
        let mut data = Handle::default();
        // SAFETY: the handle is alive, the pointer valid, and there is a member of index 0.
        calls.check(unsafe { (calls.member)(self.handle, kind, 0, &raw mut data) })?;
        let data = Data { calls, handle: data };
        let mut bytes = 0;
        // SAFETY: the handle is alive; without a buffer the call only says how long it has to be.
        let status = unsafe { (calls.get)(data.handle, &raw mut bytes, std::ptr::null_mut()) };
        calls.check(status)?;
        let mut content = vec![0_u8; bytes];
        // SAFETY: there is room for `bytes` bytes.
        let status =
            unsafe { (calls.get)(data.handle, &raw mut bytes, content.as_mut_ptr().cast()) };
        calls.check(status)?;
        Ok(Some(content))
    }
}

impl Drop for Set<'_> {
    fn drop(&mut self) {
        // SAFETY: the handle is alive and destroyed once.
        unsafe { (self.calls.destroy_set)(self.handle) };
    }
}

/// A datum that this side holds.
struct Data<'c> {
    calls: &'c Calls,
    handle: Handle,
}

impl Drop for Data<'_> {
    fn drop(&mut self) {
        // SAFETY: the handle is alive and released once.
        unsafe { (self.calls.release)(self.handle) };
    }
}
