//! Which source a client is told to write for a GPU.
//!
//! The properties name one of tinygrad's renderers: a module, a class and the arguments of its
//! constructor, which the client imports and calls. All of those here need nothing on the client's
//! side but tinygrad itself: no CUDA, no ROCm.
//!
//! Absent: compiling what is written then (`compile`).

use crate::device::Renderer;

/// What clients of a CUDA device are to write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CudaSource {
    /// CUDA C++ where the server has NVRTC, else PTX.
    #[default]
    Any,
    /// CUDA C++. NVRTC compiles it here.
    Cuda,
    /// PTX, which the driver compiles. bfloat16 is missing in it.
    Ptx,
}

/// The renderer for a CUDA device of an architecture such as `sm_90`.
#[must_use]
pub(super) fn cuda(arch: &str, choice: CudaSource, has_nvrtc: bool) -> Renderer {
    let arch = literal(arch);
    if choice == CudaSource::Ptx || (choice == CudaSource::Any && !has_nvrtc) {
        let (module, class) = ("tinygrad.renderer.ptx", "PTXRenderer");
        return Renderer { module, class, arguments: format!("({arch}, 'CUDA')") };
    }
    let (module, class) = ("tinygrad.renderer.cstyle", "CUDARenderer");
    Renderer { module, class, arguments: format!("({arch},)") }
}

/// The renderer for a HIP device of an architecture such as `gfx90a:sramecc+:xnack-`.
#[must_use]
pub(super) fn hip(arch: &str) -> Renderer {
    let arch = literal(matrix_arch(arch));
    let (module, class) = ("tinygrad.renderer.cstyle", "HIPRenderer");
    Renderer { module, class, arguments: format!("({arch},)") }
}

/// The architecture whose matrix instructions a device has. tinygrad's renderer chooses those by
/// its argument, and nothing else; for what it does not know it takes those of RDNA 3, which no
/// other device has. The earlier CDNA devices have those of `gfx942` that it uses: all from
/// `gfx90a` on, and those for half on `gfx908`.
fn matrix_arch(arch: &str) -> &str {
    match arch.split(':').next() {
        Some("gfx908" | "gfx90a" | "gfx940" | "gfx941") => "gfx942",
        _ => arch,
    }
}

/// A Python string. The driver's name of an architecture has nothing that would need escaping; what
/// else it might hold is left out.
fn literal(arch: &str) -> String {
    let is_plain = |c: &char| c.is_ascii_alphanumeric() || "_:+-.".contains(*c);
    format!("'{}'", arch.chars().filter(is_plain).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::{CudaSource, cuda, hip};

    #[test]
    fn cuda_source_is_written_where_nvrtc_can_compile_it() {
        let check = |choice, has_nvrtc, class, arguments: &str| {
            let renderer = cuda("sm_90", choice, has_nvrtc);
            assert_eq!((renderer.class, renderer.arguments.as_str()), (class, arguments));
        };
        check(CudaSource::Any, true, "CUDARenderer", "('sm_90',)");
        check(CudaSource::Any, false, "PTXRenderer", "('sm_90', 'CUDA')");
        check(CudaSource::Cuda, false, "CUDARenderer", "('sm_90',)");
        check(CudaSource::Ptx, true, "PTXRenderer", "('sm_90', 'CUDA')");
    }

    #[test]
    fn modules_are_those_of_the_classes() {
        let module = |choice| cuda("sm_90", choice, true).module;
        assert_eq!(module(CudaSource::Cuda), "tinygrad.renderer.cstyle");
        assert_eq!(module(CudaSource::Ptx), "tinygrad.renderer.ptx");
        assert_eq!(hip("gfx942").module, "tinygrad.renderer.cstyle");
    }

    #[test]
    fn hip_architecture_is_one_whose_matrix_instructions_the_device_has() {
        for (arch, arguments) in [
            ("gfx942:sramecc+:xnack-", "('gfx942:sramecc+:xnack-',)"),
            ("gfx90a:sramecc+:xnack-", "('gfx942',)"),
            ("gfx908", "('gfx942',)"),
            ("gfx1100", "('gfx1100',)"),
            ("gfx1201", "('gfx1201',)"),
        ] {
            let renderer = hip(arch);
            assert_eq!((renderer.class, renderer.arguments.as_str()), ("HIPRenderer", arguments));
        }
    }

    #[test]
    fn argument_cannot_end_its_literal() {
        assert_eq!(hip("gfx9', x('\\\n").arguments, "('gfx9x',)");
    }
}
