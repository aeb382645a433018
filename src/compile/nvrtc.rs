//! CUDA C++ to machine code, through NVRTC.
//!
//! Owns: the calls of NVRTC that are used, declared by hand, and the options. Runs in the child
//! process only (`worker`). NVRTC needs no driver and no GPU.
//!
//! The options are those that tinygrad's own CUDA device uses, so that results agree with it, but
//! for where the result is read: machine code of the device's own architecture instead of PTX.
//! Where NVRTC is too old to know that architecture, it is asked for PTX of the newest one that it
//! knows and that the device is a successor of; the driver compiles that.

use std::ffi::{CStr, CString, OsStr, c_char, c_int};
use std::path::{Path, PathBuf};
use std::ptr;

use super::dynamic::Library;
use super::worker::{Code, Failure};

/// How the source is called in messages.
pub(super) const SOURCE_NAME: &CStr = c"kernel.cu";

/// What the headers that a source may include consist of.
pub(super) const HEADER_FILES: [&CStr; 4] =
    [c"cuda_bf16.h", c"cuda_bf16.hpp", c"cuda_fp16.h", c"cuda_fp16.hpp"];

/// What those include besides, up to version 12. NVRTC has all of it built in.
pub(super) const HEADERS_EMPTY: [&CStr; 2] = [c"vector_functions.h", c"vector_types.h"];

const VERSION_SYMBOL: &CStr = c"nvrtcVersion";
/// From this version NVRTC can leave out what needs more of the runtime than kernels do.
const MINIMAL_SINCE: (c_int, c_int) = (12, 4);

type Status = c_int;
type Program = *mut std::ffi::c_void;
type SizeOf = unsafe extern "C" fn(Program, *mut usize) -> Status;
type BytesOf = unsafe extern "C" fn(Program, *mut c_char) -> Status;

/// The calls, as in `nvrtc.h`.
struct Calls {
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> Status,
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> Status,
    destroy: unsafe extern "C" fn(*mut Program) -> Status,
    error_string: unsafe extern "C" fn(Status) -> *const c_char,
    cubin: (SizeOf, BytesOf),
    log: (SizeOf, BytesOf),
    ptx: (SizeOf, BytesOf),
    arch_count: unsafe extern "C" fn(*mut c_int) -> Status,
    archs: unsafe extern "C" fn(*mut c_int) -> Status,
    version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> Status,
}

/// A loaded NVRTC.
pub(super) struct Nvrtc {
    library: Library,
    calls: Calls,
    version: (c_int, c_int),
    archs: Vec<c_int>,
}

impl Nvrtc {
    /// Loads it, and what it would load itself when it compiles.
    pub(super) fn load(name: &OsStr) -> Result<Nvrtc, String> {
        let library = Library::open(name)?;
        let calls = Calls::of(&library)?;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both pointers are valid.
        let status = unsafe { (calls.version)(&raw mut major, &raw mut minor) };
        calls.check(status)?;
        let mut count = 0;
        // SAFETY: the pointer is valid.
        calls.check(unsafe { (calls.arch_count)(&raw mut count) })?;
        let mut archs = vec![0; usize::try_from(count).unwrap_or(0)];
        if !archs.is_empty() {
            // SAFETY: there is room for as many as the library says it has.
            calls.check(unsafe { (calls.archs)(archs.as_mut_ptr()) })?;
        }
        let nvrtc = Nvrtc { library, calls, version: (major, minor), archs };
        nvrtc.load_builtins();
        Ok(nvrtc)
    }

    /// Its built-in functions are a library of their own, which is looked for by its name when a
    /// source is compiled: too late here, and not beside NVRTC, where it is. A library that is
    /// loaded already is found. One that is missing shows when something is compiled.
    fn load_builtins(&self) {
        let (major, minor) = self.version;
        let name = format!("libnvrtc-builtins.so.{major}.{minor}");
        let beside = self.path().and_then(|path| Some(path.parent()?.join(&name)));
        let beside = beside.filter(|path| path.exists());
        let _ = Library::open(beside.unwrap_or_else(|| name.into()).as_os_str());
    }

    pub(super) fn version(&self) -> String {
        format!("{}.{}", self.version.0, self.version.1)
    }

    pub(super) fn path(&self) -> Option<PathBuf> {
        self.library.path(VERSION_SYMBOL)
    }

    /// Compiles for an architecture such as `sm_90`. `headers` are names and contents.
    pub(super) fn compile(
        &self,
        source: &CStr,
        arch: &str,
        headers: &[(&CStr, CString)],
    ) -> Result<Code, Failure> {
        let (arch, is_binary) = self.target(arch)?;
        let mut options = vec![arch];
        if self.version >= MINIMAL_SINCE {
            options.push(c"--minimal".to_owned());
        }
        let program = Compilation::new(&self.calls, source, headers)?;
        program.compile(&options)?;
        program.bytes(if is_binary { self.calls.cubin } else { self.calls.ptx })
    }

    /// The option that names the architecture, and whether the result is machine code.
    fn target(&self, arch: &str) -> Result<(CString, bool), Failure> {
        let number = arch.strip_prefix("sm_").and_then(|number| number.parse::<c_int>().ok());
        let number = number.ok_or_else(|| Failure::Broken(format!("no architecture: {arch}")))?;
        let known = self.archs.iter().copied().filter(|&known| known <= number).max();
        let (option, is_binary) = match known {
            Some(known) if known == number => (format!("--gpu-architecture=sm_{number}"), true),
            Some(known) => (format!("--gpu-architecture=compute_{known}"), false),
            None => {
                let version = self.version();
                let message = format!("error: the server's NVRTC {version} has no code for {arch}");
                return Err(Failure::Rejected(message.into_bytes()));
            }
        };
        let option = CString::new(option).map_err(|e| Failure::Broken(e.to_string()))?;
        Ok((option, is_binary))
    }
}

impl Calls {
    fn of(library: &Library) -> Result<Calls, String> {
        // SAFETY: the type is that of `nvrtc.h`.
        let compile = unsafe { library.function(c"nvrtcCompileProgram") }?;
        // SAFETY: as above.
        let create = unsafe { library.function(c"nvrtcCreateProgram") }?;
        // SAFETY: as above.
        let destroy = unsafe { library.function(c"nvrtcDestroyProgram") }?;
        // SAFETY: as above.
        let error_string = unsafe { library.function(c"nvrtcGetErrorString") }?;
        // SAFETY: as above.
        let arch_count = unsafe { library.function(c"nvrtcGetNumSupportedArchs") }?;
        // SAFETY: as above.
        let archs = unsafe { library.function(c"nvrtcGetSupportedArchs") }?;
        // SAFETY: as above.
        let version = unsafe { library.function(VERSION_SYMBOL) }?;
        let result = |size: &CStr, bytes: &CStr| -> Result<(SizeOf, BytesOf), String> {
            // SAFETY: all calls of this kind have one type, that of `nvrtc.h`.
            let size = unsafe { library.function(size) }?;
            // SAFETY: as above.
            let bytes = unsafe { library.function(bytes) }?;
            Ok((size, bytes))
        };
        let cubin = result(c"nvrtcGetCUBINSize", c"nvrtcGetCUBIN")?;
        let log = result(c"nvrtcGetProgramLogSize", c"nvrtcGetProgramLog")?;
        let ptx = result(c"nvrtcGetPTXSize", c"nvrtcGetPTX")?;
        Ok(Calls {
            compile,
            create,
            destroy,
            error_string,
            cubin,
            log,
            ptx,
            arch_count,
            archs,
            version,
        })
    }

    fn check(&self, status: Status) -> Result<(), String> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: the call takes any number.
        let text = unsafe { (self.error_string)(status) };
        if text.is_null() {
            return Err(format!("NVRTC error {status}"));
        }
        // SAFETY: a constant string of the library's.
        let text = unsafe { CStr::from_ptr(text) };
        Err(format!("NVRTC error {status} ({})", text.to_string_lossy()))
    }
}

/// A source on its way through NVRTC.
struct Compilation<'c> {
    calls: &'c Calls,
    program: Program,
}

impl<'c> Compilation<'c> {
    fn new(
        calls: &'c Calls,
        source: &CStr,
        headers: &[(&CStr, CString)],
    ) -> Result<Compilation<'c>, Failure> {
        let contents: Vec<_> = headers.iter().map(|(_, content)| content.as_ptr()).collect();
        let names: Vec<_> = headers.iter().map(|(name, _)| name.as_ptr()).collect();
        let count = c_int::try_from(headers.len()).map_err(|e| Failure::Broken(e.to_string()))?;
        let mut program = ptr::null_mut();
        // SAFETY: all strings end in a zero byte and outlive the call, which copies them; the two
        // arrays have `count` members.
        let status = unsafe {
            (calls.create)(
                &raw mut program,
                source.as_ptr(),
                SOURCE_NAME.as_ptr(),
                count,
                contents.as_ptr(),
                names.as_ptr(),
            )
        };
        calls.check(status).map_err(Failure::Broken)?;
        Ok(Compilation { calls, program })
    }

    fn compile(&self, options: &[CString]) -> Result<(), Failure> {
        let options: Vec<_> = options.iter().map(|option| option.as_ptr()).collect();
        let count = c_int::try_from(options.len()).map_err(|e| Failure::Broken(e.to_string()))?;
        // SAFETY: the program is alive; `options` has `count` strings.
        let status = unsafe { (self.calls.compile)(self.program, count, options.as_ptr()) };
        let Err(error) = self.calls.check(status) else { return Ok(()) };
        let mut log = self.bytes(self.calls.log).unwrap_or_default();
        log.retain(|&byte| byte != 0);
        // Errors of NVRTC itself have no log.
        log.extend_from_slice(b"\n");
        log.extend_from_slice(error.as_bytes());
        Err(Failure::Rejected(log))
    }

    fn bytes(&self, (size, bytes): (SizeOf, BytesOf)) -> Result<Vec<u8>, Failure> {
        let mut count = 0;
        // SAFETY: the program is alive and the pointer valid.
        let status = unsafe { size(self.program, &raw mut count) };
        self.calls.check(status).map_err(Failure::Broken)?;
        let mut content = vec![0_u8; count];
        // SAFETY: there is room for as many bytes as the library says it has.
        let status = unsafe { bytes(self.program, content.as_mut_ptr().cast()) };
        self.calls.check(status).map_err(Failure::Broken)?;
        Ok(content)
    }
}

impl Drop for Compilation<'_> {
    fn drop(&mut self) {
        // SAFETY: the program was made by `create` and is destroyed once.
        unsafe { (self.calls.destroy)(&raw mut self.program) };
    }
}

/// The folder with the headers: beside the library as the toolkit, the distributions and NVIDIA's
/// packages for Python lay them out, or where a toolkit usually is.
pub(super) fn include_dir(library: &Path) -> Option<PathBuf> {
    let dir = library.parent()?;
    let beside = ["../include", "../../include", "../../../include", "../../cuda_runtime/include"];
    let usual = ["/usr/local/cuda/include", "/opt/cuda/include", "/usr/include"];
    let told = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(std::env::var_os);
    let told = told.map(|root| PathBuf::from(root).join("include"));
    let beside = beside.iter().map(|path| dir.join(path));
    let usual = usual.iter().map(PathBuf::from);
    let has_all = |dir: &PathBuf| {
        HEADER_FILES.iter().all(|name| dir.join(OsStr::new(&*name.to_string_lossy())).is_file())
    };
    beside.chain(told).chain(usual).find(has_all)?.canonicalize().ok()
}
