//! A fake `libnvrtc.so.13`: a compiler whose binaries the fake CUDA driver loads.
//!
//! What it understands of a source is in `core/source.rs`. Options and headers end up as notes in
//! the binary, because a compiler in a sandbox has no other way to tell what it was given.
//! `FAKE_NVRTC_VERSION` (13000) and `FAKE_NVRTC_ARCHS` (`70,75,80,86,89,90,100`) change what it is.

#![allow(dead_code, reason = "each face uses its own part of the machine")]
#![allow(non_snake_case, reason = "the names are the library's")]

#[path = "core/mod.rs"]
mod fake;

use std::ffi::{c_char, c_int, c_void};
use std::sync::{Mutex, MutexGuard, PoisonError};

use fake::Role::{Early, Release};
use fake::calls::{address, list, pointer, put_text, text, wrong};
use fake::face::{calls, give};
use fake::source::{Job, Style, ptx_of};
use fake::table::{Kind, Table};
use fake::{Code, Outcome};

pub(crate) const FACE: fake::Face = fake::Face {
    library: "libnvrtc.so.13",
    variables: "NVRTC",
    is_driver: false,
    arch: "sm_90",
    version: 13_000,
    addresses: 0,
    has_contexts: false,
    extra_end: 0,
    total_threads_32_bits: false,
};

const INVALID_INPUT: Code = 3;
const INVALID_PROGRAM: Code = 4;
const INVALID_OPTION: Code = 5;
const COMPILATION: Code = 6;

#[derive(Debug, Default)]
struct Program {
    source: String,
    name: String,
    headers: Vec<String>,
    log: String,
    /// Empty where the target is not a device's.
    cubin: Vec<u8>,
    ptx: Vec<u8>,
}

static PROGRAMS: Mutex<Table<Program>> = Mutex::new(Table::new(Kind::Compiler));

fn programs() -> MutexGuard<'static, Table<Program>> {
    PROGRAMS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn with<T>(program: *mut c_void, run: impl FnOnce(&mut Program) -> Outcome<T>) -> Outcome<T> {
    run(programs().get_mut(address(program)).map_err(|_| INVALID_PROGRAM)?)
}

fn archs() -> Vec<c_int> {
    let list = fake::setting("ARCHS").unwrap_or_else(|| "70,75,80,86,89,90,100".into());
    list.split(',').filter_map(|arch| arch.parse().ok()).collect()
}

fn compile(program: &mut Program, options: &[String]) -> Outcome<()> {
    let value =
        |name: &str| options.iter().find_map(|option| option.strip_prefix(name)?.strip_prefix('='));
    let target = value("--gpu-architecture").or_else(|| value("-arch")).unwrap_or("compute_75");
    let number = target.rsplit('_').next().and_then(|number| number.parse::<c_int>().ok());
    if !number.is_some_and(|number| archs().contains(&number)) {
        program.log = format!("nvrtc: error: invalid value for --gpu-architecture ({target})\n");
        return Err(INVALID_OPTION);
    }
    let Program { source, name, headers, .. } = &*program;
    let arch = target.replace("compute_", "sm_");
    let job = Job { source, name, arch: &arch, headers, options, style: Style::Nvrtc };
    match job.compile() {
        Ok(image) => {
            program.log = String::new();
            program.ptx = ptx_of(&image, &arch).into_bytes();
            program.ptx.push(0);
            program.cubin = if target == arch { image.to_bytes() } else { Vec::new() };
            Ok(())
        }
        Err(log) => {
            program.log = log;
            Err(COMPILATION)
        }
    }
}

fn put_bytes(to: *mut c_char, bytes: &[u8]) -> Outcome<()> {
    if to.is_null() {
        return wrong("the place for the result is null");
    }
    // SAFETY: the caller has asked for the size and gives as much room.
    unsafe { to.cast::<u8>().copy_from(bytes.as_ptr(), bytes.len()) };
    Ok(())
}

calls! {
    Early fn nvrtcVersion(gpu, major: *mut c_int, minor: *mut c_int) {
        give!(major, gpu.config_version() / 1000)?;
        give!(minor, gpu.config_version() % 1000 / 10)
    }
    Early fn nvrtcGetNumSupportedArchs(_gpu, count: *mut c_int) {
        give!(count, c_int::try_from(archs().len()).unwrap_or(0))
    }
    Early fn nvrtcGetSupportedArchs(_gpu, to: *mut c_int) {
        for (index, arch) in archs().into_iter().enumerate() {
            // SAFETY: the caller has asked how many there are.
            let place = unsafe { to.add(index) };
            give!(place, arch)?;
        }
        Ok(())
    }
    Early fn nvrtcCreateProgram(
        gpu, program: *mut *mut c_void, source: *const c_char, name: *const c_char, count: c_int,
        headers: *const *const c_char, names: *const *const c_char,
    ) {
        let _ = headers;
        // SAFETY: the caller gives a C string.
        let source = unsafe { text(source) }.map_err(|_| INVALID_INPUT)?;
        // SAFETY: the same, or null.
        let name = if name.is_null() { "default_program".into() } else { unsafe { text(name) }? };
        // SAFETY: there are as many names as the count says.
        let names = unsafe { list(names, usize::try_from(count).unwrap_or(0)) }?;
        // SAFETY: and each is a C string.
        let headers = names.into_iter().map(|name| unsafe { text(name) });
        let headers = headers.collect::<Outcome<Vec<_>>>()?;
        let made = programs().add(Program { source, name, headers, ..Program::default() });
        *gpu.compiler.entry("programs").or_default() += 1;
        give!(program, pointer(made))
    }
    Release fn nvrtcDestroyProgram(gpu, program: *mut *mut c_void) {
        // SAFETY: the caller gives a place with a program in it.
        let handle = unsafe { list(program, 1) }?[0];
        programs().take(address(handle)).map_err(|_| INVALID_PROGRAM)?;
        *gpu.compiler.entry("programs").or_default() -= 1;
        give!(program, std::ptr::null_mut())
    }
    Early fn nvrtcGetCUBINSize(_gpu, program: *mut c_void, size: *mut usize) {
        with(program, |program| give!(size, program.cubin.len()))
    }
    Early fn nvrtcGetCUBIN(_gpu, program: *mut c_void, to: *mut c_char) {
        with(program, |program| put_bytes(to, &program.cubin))
    }
    Early fn nvrtcGetPTXSize(_gpu, program: *mut c_void, size: *mut usize) {
        with(program, |program| give!(size, program.ptx.len()))
    }
    Early fn nvrtcGetPTX(_gpu, program: *mut c_void, to: *mut c_char) {
        with(program, |program| put_bytes(to, &program.ptx))
    }
    Early fn nvrtcGetProgramLogSize(_gpu, program: *mut c_void, size: *mut usize) {
        with(program, |program| give!(size, program.log.len() + 1))
    }
    Early fn nvrtcGetProgramLog(_gpu, program: *mut c_void, to: *mut c_char) {
        with(program, |program| {
            // SAFETY: the caller has asked for the size and gives as much room.
            unsafe { put_text(to, program.log.len() + 1, &program.log) }
        })
    }
    Early fn nvrtcCompileProgram(
        _gpu, program: *mut c_void, count: c_int, options: *const *const c_char,
    ) {
        // SAFETY: there are as many options as the count says.
        let options = unsafe { list(options, usize::try_from(count).unwrap_or(0)) }?;
        // SAFETY: and each is a C string.
        let options = options.into_iter().map(|option| unsafe { text(option) });
        let options = options.collect::<Outcome<Vec<_>>>()?;
        with(program, |program| compile(program, &options))
    }
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn nvrtcGetErrorString(result: c_int) -> *const c_char {
    let text = match result {
        0 => c"NVRTC_SUCCESS",
        1 => c"NVRTC_ERROR_OUT_OF_MEMORY",
        2 => c"NVRTC_ERROR_PROGRAM_CREATION_FAILURE",
        INVALID_INPUT => c"NVRTC_ERROR_INVALID_INPUT",
        INVALID_PROGRAM => c"NVRTC_ERROR_INVALID_PROGRAM",
        INVALID_OPTION => c"NVRTC_ERROR_INVALID_OPTION",
        COMPILATION => c"NVRTC_ERROR_COMPILATION",
        11 => c"NVRTC_ERROR_INTERNAL_ERROR",
        _ => c"NVRTC_ERROR unknown",
    };
    text.as_ptr()
}
