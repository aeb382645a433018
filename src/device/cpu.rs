//! Loading and calling kernels of the CPU. Runs inside a worker process.
//!
//! Owns: [`Kernel`], an object file of `compile` in executable memory. Its sections are laid out in
//! one mapping, relocated, and made executable or read-only, never writable and executable at once.
//! The object is not trusted: every offset in it is checked, and what a kernel has no need of
//! (writable data, thread-local data, constructors, other libraries) is refused.
//!
//! Absent: libc. The few functions that compilers expect are in `runtime`. Also absent: any defence
//! against what a kernel does once it is called; that is the worker's.
//!
//! Reading order: this file (memory and the call), `link` (sections, symbols and relocations),
//! `runtime`.

mod link;
mod runtime;

use std::ffi::c_void;
use std::fmt;
use std::io;
use std::ptr::{self, NonNull};

use object::elf;
use object::read::elf::FileHeader;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

use link::{File, Layout};

#[cfg(not(target_arch = "x86_64"))]
compile_error!("outboard loads and calls CPU kernels on x86-64 only");

/// Bytes of an object file. Kernels make 2 to 200 KB.
const OBJECT_BYTES_MAX: usize = 64 << 20;

/// Bytes of a symbol's or section's name that an error shows.
const NAME_BYTES_MAX: usize = 64;

/// Arguments of one call. All past the sixth go on the stack; tinygrad's largest kernels have some
/// hundreds of buffers.
pub const ARGUMENTS_MAX: usize = 4096;

/// Why an object is no kernel.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("the object has {count} entry functions, a kernel has one")]
    Entries { count: usize },
    #[error("malformed object: {0}")]
    Malformed(#[from] object::Error),
    #[error("no memory for code: {0}")]
    Map(io::Error),
    /// Not x86-64, not relocatable, or not ELF as the compilers write it.
    #[error("not a relocatable x86-64 object")]
    NotRelocatable,
    #[error("relocation of type {kind}: {what}")]
    Relocation { kind: u32, what: &'static str },
    #[error("section `{name}`: {what}")]
    Section { name: Name, what: &'static str },
    #[error("symbol `{name}`: {what}")]
    Symbol { name: Name, what: &'static str },
    #[error("the object has {bytes} bytes, the limit is {bytes_max}")]
    TooLong { bytes: usize, bytes_max: usize },
    #[error("`{name}` is not defined: kernels have no library")]
    Undefined { name: Name },
}

/// A name in an object, cut to a length that fits a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name(String);

impl Name {
    fn new(name: &[u8]) -> Name {
        let cut = String::from_utf8_lossy(&name[..name.len().min(NAME_BYTES_MAX)]);
        Name(cut.chars().map(|c| if c.is_control() { '.' } else { c }).collect())
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A call with more arguments than [`ARGUMENTS_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a kernel with {count} arguments, the limit is {ARGUMENTS_MAX}")]
pub struct TooManyArguments {
    pub count: usize,
}

/// A loaded kernel. Unloaded when dropped.
#[derive(Debug)]
pub struct Kernel {
    mapping: Mapping,
    /// Offset of the entry function in the mapping's code.
    entry: usize,
}

impl Kernel {
    /// Loads an object file.
    ///
    /// # Errors
    ///
    /// The first thing in it that is malformed or that a kernel has no need of.
    pub fn load(object: &[u8]) -> Result<Kernel, LoadError> {
        if object.len() > OBJECT_BYTES_MAX {
            let bytes = object.len();
            return Err(LoadError::TooLong { bytes, bytes_max: OBJECT_BYTES_MAX });
        }
        let file = File::parse(object)?;
        let header = file.elf_header();
        let endian = file.endian();
        if header.e_machine(endian) != elf::EM_X86_64 || header.e_type(endian) != elf::ET_REL {
            return Err(LoadError::NotRelocatable);
        }
        let layout = Layout::of(&file, object.len())?;
        let entry = layout.entry(&file)?;
        let mut mapping = Mapping::new(layout.bytes)?;
        mapping.fill(&link::link(&file, &layout, mapping.address())?);
        mapping.seal(layout.code_bytes)?;
        Ok(Kernel { mapping, entry })
    }

    /// Calls the kernel. Each argument is a pointer, or an integer of at most 64 bits in the low
    /// bits: in the System V convention both take one integer register or one slot of the stack.
    ///
    /// # Errors
    ///
    /// More arguments than [`ARGUMENTS_MAX`]; nothing was called.
    ///
    /// # Safety
    ///
    /// The kernel is machine code that somebody else wrote. The caller must be a process that can
    /// afford whatever it does, and gives it the arguments that its source declares, with memory
    /// behind the pointers.
    pub unsafe fn call(&self, arguments: &[u64]) -> Result<(), TooManyArguments> {
        if arguments.len() > ARGUMENTS_MAX {
            return Err(TooManyArguments { count: arguments.len() });
        }
        let (first, rest) = arguments.split_at(arguments.len().min(6));
        let mut registers = [0; 6];
        registers[..first.len()].copy_from_slice(first);
        let entry = self.mapping.address() + self.entry;
        // SAFETY: `entry` is a function in executable memory that lives as long as `self`; the
        // arrays are valid for their lengths. What the function does is the caller's promise.
        unsafe { enter(entry, &registers, rest.as_ptr(), rest.len()) };
        Ok(())
    }
}

/// Calls `entry` with six register arguments, and with `count` more of `stack` on the stack.
#[unsafe(naked)]
unsafe extern "C" fn enter(entry: usize, registers: &[u64; 6], stack: *const u64, count: usize) {
    core::arch::naked_asm!(
        "push rbp",
        "mov rbp, rsp",
        // The stack is 16-byte aligned here and must be so at the call: an odd count needs padding.
        "test cl, 1",
        "jz 2f",
        "sub rsp, 8",
        "2:",
        // The last argument has the highest address.
        "test rcx, rcx",
        "jz 3f",
        "push qword ptr [rdx + 8 * rcx - 8]",
        "dec rcx",
        "jmp 2b",
        "3:",
        "mov rax, rdi",
        "mov r10, rsi",
        "mov rdi, [r10]",
        "mov rsi, [r10 + 8]",
        "mov rdx, [r10 + 16]",
        "mov rcx, [r10 + 24]",
        "mov r8, [r10 + 32]",
        "mov r9, [r10 + 40]",
        "call rax",
        "leave",
        "ret",
    )
}

/// Memory for one kernel: code, then constants. Unmapped when dropped.
#[derive(Debug)]
struct Mapping {
    start: NonNull<c_void>,
    bytes: usize,
}

impl Mapping {
    /// Writable memory of whole pages.
    fn new(bytes: usize) -> Result<Mapping, LoadError> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new private mapping at an address of the kernel's choice touches nothing that
        // exists.
        let start = unsafe { mmap_anonymous(ptr::null_mut(), bytes, access, MapFlags::PRIVATE) };
        let start = start.map_err(|error| LoadError::Map(error.into()))?;
        let start = NonNull::new(start).expect("the kernel maps nothing at address zero unasked");
        Ok(Mapping { start, bytes })
    }

    fn address(&self) -> usize {
        self.start.addr().get()
    }

    fn fill(&mut self, image: &[u8]) {
        assert_eq!(image.len(), self.bytes, "an image has the size of its mapping");
        let target = self.start.as_ptr().cast::<u8>();
        // SAFETY: the mapping has this many bytes, is writable until `seal`, and is borrowed
        // exclusively; the image is memory of its own.
        unsafe { ptr::copy_nonoverlapping(image.as_ptr(), target, image.len()) };
    }

    /// Makes the first `code_bytes`, whole pages, executable, and takes the right to write from
    /// all.
    fn seal(&mut self, code_bytes: usize) -> Result<(), LoadError> {
        assert!(code_bytes <= self.bytes, "code is a part of the mapping");
        let code = MprotectFlags::READ | MprotectFlags::EXEC;
        // SAFETY: these pages are ours and hold no Rust object.
        unsafe { mprotect(self.start.as_ptr(), code_bytes, code) }
            .map_err(|error| LoadError::Map(error.into()))?;
        let constants = self.start.as_ptr().wrapping_byte_add(code_bytes);
        // SAFETY: as above; `code_bytes` is within the mapping.
        unsafe { mprotect(constants, self.bytes - code_bytes, MprotectFlags::READ) }
            .map_err(|error| LoadError::Map(error.into()))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nothing that borrows it outlives it. Unmapping a whole
        // mapping of ours cannot fail.
        let _ = unsafe { munmap(self.start.as_ptr(), self.bytes) };
    }
}
