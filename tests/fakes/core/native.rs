//! Real kernels: sources compiled for the host by a C++ compiler and run there.
//!
//! Only where `FAKE_GPU_NATIVE` names a folder for what is compiled, not for PTX, and only in a
//! process that may start a compiler: `FAKE_CUDA_CXX`, `g++` if not said, or `FAKE_HIP_CXX`, which
//! has to be clang and is `clang++`. Devices' memory then lies where their addresses say, and what
//! a kernel does beyond its buffers is not found.

use std::collections::hash_map::DefaultHasher;
use std::ffi::{CString, c_char, c_int, c_void};
use std::fmt::Write;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::files::trace;
use super::image::Image;

unsafe extern "C" {
    fn dlopen(name: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
}

const RTLD_NOW: c_int = 2;

/// A kernel of the host's: arguments, grid, block.
pub(super) type Entry = unsafe extern "C" fn(*const u8, *const u32, *const u32);

/// A compiled source, which stays loaded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Library(*mut c_void);

// SAFETY: it is a handle that any thread may use.
unsafe impl Send for Library {}

impl Library {
    /// Compiles the source of an image, or finds what was compiled before.
    pub(super) fn build(image: &Image, folder: &Path) -> Result<Library, String> {
        let text = text(image);
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        let library = folder.join(format!("{:016x}.so", hasher.finish()));
        if !library.exists() {
            compile(&text, folder, &library)?;
        }
        let name = CString::new(library.to_string_lossy().into_owned());
        let name = name.map_err(|error| error.to_string())?;
        // SAFETY: the library has no constructors.
        let handle = unsafe { dlopen(name.as_ptr(), RTLD_NOW) };
        if handle.is_null() {
            return Err(format!("{} cannot be loaded", library.display()));
        }
        Ok(Library(handle))
    }

    pub(super) fn entry(self, kernel: &str) -> Option<Entry> {
        let name = CString::new(format!("fake_entry_{kernel}")).ok()?;
        // SAFETY: the handle is of a library that is never closed.
        let symbol = unsafe { dlsym(self.0, name.as_ptr()) };
        // SAFETY: `text` declares what has such a name with this type.
        (!symbol.is_null()).then(|| unsafe { std::mem::transmute::<*mut c_void, Entry>(symbol) })
    }
}

/// The source for the host's compiler.
fn text(image: &Image) -> String {
    let is_cuda = crate::FACE.has_contexts;
    let extras =
        if is_cuda { include_str!("native_cuda.hpp") } else { include_str!("native_hip.hpp") };
    let mut text = include_str!("native.hpp").to_owned() + extras;
    let shared = "__attribute__((shared, aligned(16)))";
    let source = image.source.replace(shared, "static __attribute__((aligned(16)))");
    for line in source.lines() {
        // What these headers give is there already.
        if !line.trim_start().starts_with("#include") {
            text += line;
        }
        text.push('\n');
    }
    let barriers = source.contains("__syncthreads") || source.contains("s_barrier");
    for kernel in &image.kernels {
        let name = &kernel.name;
        let _ = write!(
            text,
            "static void fake_body_{name}() {{ fake_apply({name}); }}\n\
             extern \"C\" void fake_entry_{name}(const char *arguments, const fake_sizes *grid, \
             const fake_sizes *block) {{\n  fake_arguments = arguments;\n  \
             fake_run(fake_body_{name}, grid, block, {barriers});\n}}\n"
        );
    }
    text
}

fn compile(text: &str, folder: &Path, library: &Path) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
    fs::create_dir_all(folder).map_err(failed)?;
    let unique: PathBuf = library.with_extension(format!("{}.cpp", std::process::id()));
    let made = unique.with_extension("new");
    fs::write(&unique, text).map_err(failed)?;
    let is_cuda = crate::FACE.has_contexts;
    let (variable, usual) =
        if is_cuda { ("FAKE_CUDA_CXX", "g++") } else { ("FAKE_HIP_CXX", "clang++") };
    let compiler = std::env::var_os(variable).unwrap_or_else(|| usual.into());
    let mut command = Command::new(compiler);
    command.args(["-shared", "-fPIC", "-O1", "-w", "-std=c++17", "-fno-strict-aliasing"]);
    command.args(["-ffp-contract=off", "-o"]).arg(&made).arg(&unique);
    let output = command.output().map_err(failed)?;
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    trace(|| format!("# compiled {} {}", library.display(), log.replace('\n', " | ")));
    if !output.status.success() {
        return Err(log);
    }
    fs::remove_file(&unique).map_err(failed)?;
    fs::rename(&made, library).map_err(failed)
}
