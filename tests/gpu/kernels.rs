//! The kernels that the tests send, in each language that a server may ask for.
//!
//! Names begin as the fake drivers' kernels do, which know kernels by name: the tests of this
//! folder that need no real arithmetic run there too.

/// What a server compiles, as its properties say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    C,
    Cuda,
    Hip,
    Ptx,
}

/// Elements that one thread group, or one call on a CPU, takes care of.
pub(crate) const GROUP: usize = 256;

impl Dialect {
    /// The language for the renderer that a reply to `GetProperties` names.
    pub(crate) fn of(properties: &str) -> Dialect {
        let renderers = [
            ("ClangRenderer", Dialect::C),
            ("CUDARenderer", Dialect::Cuda),
            ("HIPRenderer", Dialect::Hip),
            ("PTXRenderer", Dialect::Ptx),
        ];
        let found = renderers.iter().find(|(name, _)| properties.contains(name));
        found.unwrap_or_else(|| panic!("a renderer that is not known: {properties}")).1
    }

    /// Launch sizes for so many elements, as arguments of a command.
    pub(crate) fn sizes(self, elements: usize) -> String {
        assert!(elements.is_multiple_of(GROUP), "{elements} elements are not whole groups");
        match self {
            Dialect::C => "global_size=None, local_size=None".to_owned(),
            _ => format!("global_size=({}, 1, 1), local_size=({GROUP}, 1, 1)", elements / GROUP),
        }
    }
}

/// A kernel's name and source.
#[derive(Clone)]
pub(crate) struct Kernel {
    pub(crate) name: &'static str,
    pub(crate) source: String,
}

/// `a[i] = b[i] + c[i]`, wrapping, for so many elements.
pub(crate) fn add(dialect: Dialect, elements: usize) -> Kernel {
    let name = "add_integers";
    let parameters = "unsigned* a, unsigned* b, unsigned* c";
    let source = match dialect {
        Dialect::C => format!(
            "void {name}({parameters}) {{\n  for (int i = 0; i < {elements}; i++) \
             a[i] = b[i] + c[i];\n}}\n"
        ),
        Dialect::Ptx => ptx(
            name,
            3,
            "    mov.u32 %r1, %ctaid.x;\n    mov.u32 %r2, %ntid.x;\n    mov.u32 %r3, %tid.x;\n    \
             mad.lo.u32 %r4, %r1, %r2, %r3;\n    mul.wide.u32 %d9, %r4, 4;\n    \
             add.u64 %d0, %d0, %d9;\n    add.u64 %d1, %d1, %d9;\n    add.u64 %d2, %d2, %d9;\n    \
             ld.global.u32 %r5, [%d1];\n    ld.global.u32 %r6, [%d2];\n    \
             add.u32 %r7, %r5, %r6;\n    st.global.u32 [%d0], %r7;\n",
        ),
        _ => gpu(dialect, name, parameters, "a[i] = b[i] + c[i];"),
    };
    Kernel { name, source }
}

/// Writes where no memory is.
pub(crate) fn illegal_write(dialect: Dialect) -> Kernel {
    let name = "illegal_address_written";
    // Buffers are aligned, so this is address 16; a constant would be taken for a mistake.
    let body = "*(volatile int*)((unsigned long long)a % 16 + 16) = 1;";
    let ptx_body = "    and.b64 %d9, %d0, 15;\n    st.volatile.global.u32 [%d9+16], 1;\n";
    Kernel { name, source: faulty(dialect, name, body, ptx_body) }
}

/// Reads far beyond its buffer.
pub(crate) fn out_of_bounds_read(dialect: Dialect) -> Kernel {
    let name = "illegal_address_read";
    // Terabytes away: what lies close by may be another buffer's.
    let body = "a[0] = *(volatile int*)((char*)a + (1ull << 45));";
    let ptx_body = "    mov.u64 %d9, 35184372088832;\n    add.u64 %d9, %d0, %d9;\n    \
                    ld.volatile.global.u32 %r1, [%d9];\n    st.global.u32 [%d0], %r1;\n";
    Kernel { name, source: faulty(dialect, name, body, ptx_body) }
}

/// Stops itself: an assertion that fails, or a trap where there are none.
pub(crate) fn assertion(dialect: Dialect) -> Kernel {
    let name = "assert_fails";
    let source = match dialect {
        // NVRTC declares it itself.
        Dialect::Cuda => {
            let call = "__assertfail(\"false\", \"kernel\", 1, \"assert_fails\", 1);";
            gpu(dialect, name, "int* a", call)
        }
        _ => faulty(dialect, name, "__builtin_trap();", "    trap;\n"),
    };
    Kernel { name, source }
}

/// Never ends, unless somebody writes a certain number into its buffer.
pub(crate) fn endless(dialect: Dialect) -> Kernel {
    let name = "hang";
    let body = "while (*(volatile int*)a != 123456789) { }";
    let ptx_body = "AGAIN:\n    ld.volatile.global.u32 %r1, [%d0];\n    \
                    setp.ne.u32 %p0, %r1, 123456789;\n    @%p0 bra AGAIN;\n";
    Kernel { name, source: faulty(dialect, name, body, ptx_body) }
}

/// A kernel of one buffer `a`.
fn faulty(dialect: Dialect, name: &str, body: &str, ptx_body: &str) -> String {
    match dialect {
        Dialect::C => format!("void {name}(int* a) {{\n  {body}\n}}\n"),
        Dialect::Ptx => ptx(name, 1, ptx_body),
        _ => gpu(dialect, name, "int* a", body),
    }
}

/// A kernel in which `i` is the number of the thread.
fn gpu(dialect: Dialect, name: &str, parameters: &str, body: &str) -> String {
    let (before, head, index) = match dialect {
        Dialect::Cuda => (
            "",
            format!("extern \"C\" __global__ void __launch_bounds__({GROUP}) {name}"),
            format!("blockIdx.x * {GROUP} + threadIdx.x"),
        ),
        Dialect::Hip => (
            "extern \"C\" __attribute__((device, const)) unsigned long __ockl_get_group_id(\
             unsigned);\nextern \"C\" __attribute__((device, const)) unsigned long \
             __ockl_get_local_id(unsigned);\n",
            format!(
                "extern \"C\" __attribute__((global)) void \
                 __attribute__((amdgpu_flat_work_group_size(1, {GROUP}))) {name}"
            ),
            format!("__ockl_get_group_id(0) * {GROUP} + __ockl_get_local_id(0)"),
        ),
        Dialect::C | Dialect::Ptx => unreachable!("not a language of this form"),
    };
    format!("{before}{head}({parameters}) {{\n  unsigned i = {index};\n  {body}\n}}\n")
}

/// A module with one kernel, whose pointers are in `%d0` and up. What tinygrad leaves to the server
/// to fill in, `VERSION` and `TARGET`, is left to it here too.
fn ptx(name: &str, pointers: usize, body: &str) -> String {
    let parameters: Vec<_> =
        (0..pointers).map(|number| format!("    .param .u64 data{number}")).collect();
    let loads: String = (0..pointers)
        .map(|number| format!("    ld.param.u64 %d{number}, [data{number}];\n"))
        .collect();
    format!(
        ".version VERSION\n.target TARGET\n.address_size 64\n.visible .entry {name}(\n{}\n)\n\
         .maxntid {GROUP}\n{{\n    .reg .pred %p<2>;\n    .reg .u32 %r<10>;\n    \
         .reg .u64 %d<10>;\n{loads}{body}    ret;\n}}\n",
        parameters.join(",\n")
    )
}
