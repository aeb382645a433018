//! What a kernel's source may not hold.
//!
//! Every compiler reads files for whoever writes its input: `#include` and its spellings put lines
//! of a file into the messages, `__has_include` tells whether a file exists, `.incbin` and `#embed`
//! copy one into the object. tinygrad's CPU kernels hold no directive, no backslash and no
//! assembly, so none of that reaches the compiler. Its GPU kernels hold three kinds of lines more,
//! and those pass in one spelling each: `#define` with a body on the same line, and in CUDA the
//! includes of [`CUDA_INCLUDES`], which are answered from memory. CUDA's tensor cores need `asm`;
//! what it holds is PTX, which has no way to name a file that is read.
//!
//! The sandbox of the compiler is the second lock on the same door, and does not lean on this one;
//! nor does the sandbox that kernels run in lean on the absence of assembly.
//!
//! Absent: a parser. The scan knows neither strings nor comments, and refuses inside them too. PTX
//! text has rules of its own (`ptx`).

use super::CompileError;

/// The language of a source, as far as it decides what is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// C for the CPU.
    C,
    /// CUDA C++.
    Cuda,
    /// HIP C++.
    Hip,
}

/// What CUDA source may include.
pub(super) const CUDA_INCLUDES: [&str; 2] = ["cuda_bf16.h", "cuda_fp16.h"];

/// Identifiers that reach files or the assembler.
const WORDS_REFUSED: [&str; 8] = [
    "_Pragma",
    "__asm",
    "__asm__",
    "__has_embed",
    "__has_include",
    "__has_include_next",
    "__pragma",
    ASM,
];

const ASM: &str = "asm";

/// Names that begin with an underscore belong to the compiler and its headers, which ask for some
/// of them before they include more. tinygrad's own begin like this.
const MACRO_PREFIX: &[u8] = b"__WMMA_";

/// Refuses a source that is too long or asks the compiler for more than to compile it.
pub(super) fn check(dialect: Dialect, source: &[u8], bytes_max: usize) -> Result<(), CompileError> {
    check_length(source, bytes_max)?;
    let mut at = 0;
    // Where the line begins, as long as it is blank.
    let mut blank = true;
    let mut in_directive = false;
    while at < source.len() {
        let rest = &source[at..];
        if blank && dialect != Dialect::C && rest[0] == b'#' {
            at += directive_bytes(dialect, rest)
                .ok_or_else(|| refused(source, at, "this directive".to_owned()))?;
            (blank, in_directive) = (false, true);
            continue;
        }
        if let Some(what) = refused_start(rest) {
            return Err(refused(source, at, what.to_owned()));
        }
        let word = word_bytes(rest);
        if let Some(word) = WORDS_REFUSED.iter().find(|w| w.as_bytes() == &rest[..word])
            && (*word != ASM || dialect != Dialect::Cuda || in_directive)
        {
            return Err(refused(source, at, format!("`{word}`")));
        }
        match rest[0] {
            b'\n' | b'\r' => (blank, in_directive) = (true, false),
            b' ' | b'\t' => {}
            _ => blank = false,
        }
        at += word.max(1);
    }
    Ok(())
}

/// Refuses a source that is too long.
pub(super) fn check_length(source: &[u8], bytes_max: usize) -> Result<(), CompileError> {
    if source.len() > bytes_max {
        return Err(CompileError::SourceTooLong { bytes: source.len(), bytes_max });
    }
    Ok(())
}

/// Bytes of the directive that `rest` begins with, up to what is scanned as any other text: the
/// body of a macro, the end of an include's line. `None` for a directive that is refused.
fn directive_bytes(dialect: Dialect, rest: &[u8]) -> Option<usize> {
    if let Some(after) = rest.strip_prefix(b"#define ") {
        let name = word_bytes(after);
        let first = *after.first()?;
        let is_free = first.is_ascii_alphabetic() || after.starts_with(MACRO_PREFIX);
        let is_free = is_free && &after[..name] != ASM.as_bytes();
        return (is_free && name > 0).then_some(rest.len() - after.len() + name);
    }
    let after = rest.strip_prefix(b"#include <")?;
    let line = after.split(|b| matches!(b, b'\n' | b'\r')).next()?.trim_ascii_end();
    let is_known = CUDA_INCLUDES.iter().any(|name| line == [name.as_bytes(), b">"].concat());
    (dialect == Dialect::Cuda && is_known).then_some(rest.len() - after.len() + line.len())
}

/// Whether a CUDA source includes a header, if it has passed [`check`].
pub(super) fn includes(source: &[u8]) -> bool {
    source.windows(INCLUDE.len()).any(|w| w == INCLUDE)
}

const INCLUDE: &[u8] = b"#include";

/// Names what may not stand at the start of `rest`, if it does.
fn refused_start(rest: &[u8]) -> Option<&'static str> {
    match rest {
        [b'#', ..] => Some("`#`"),
        [b'%', b':', ..] => Some("`%:`"),
        [b'?', b'?', b'=', ..] => Some("`??=`"),
        [b'?', b'?', b'/', ..] => Some("`??/`"),
        [b'\\', ..] => Some("a backslash"),
        [byte, ..] => refused_byte(*byte),
        [] => None,
    }
}

/// Names a byte that no source holds, in any language.
pub(super) fn refused_byte(byte: u8) -> Option<&'static str> {
    match byte {
        0 => Some("a NUL byte"),
        b'\t' | b'\n' | b'\r' | b' '..=b'~' => None,
        _ => Some("a byte that is not printable ASCII"),
    }
}

/// Length of the identifier or number that `rest` begins with. Numbers are skipped whole, so that
/// nothing inside one looks like a word.
pub(super) fn word_bytes(rest: &[u8]) -> usize {
    rest.iter().take_while(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'$')).count()
}

pub(super) fn refused(source: &[u8], at: usize, what: String) -> CompileError {
    let line_start = source[..at].iter().rposition(|&b| b == b'\n').map_or(0, |i| i + 1);
    let line = source[..at].iter().filter(|&&b| b == b'\n').count() + 1;
    CompileError::Refused { line, column: at - line_start + 1, what }
}

#[cfg(test)]
mod tests {
    use super::{CompileError, Dialect, check};

    fn refusal_in(dialect: Dialect, source: &[u8]) -> (usize, usize, String) {
        match check(dialect, source, 1 << 20) {
            Err(CompileError::Refused { line, column, what }) => (line, column, what),
            other => panic!("{} {other:?}", String::from_utf8_lossy(source)),
        }
    }

    fn refusal(source: &[u8]) -> (usize, usize, String) {
        refusal_in(Dialect::C, source)
    }

    #[test]
    fn source_with_directive_in_any_spelling_is_refused_with_its_place() {
        assert_eq!(refusal(b"#include \"/etc/passwd\"\n"), (1, 1, "`#`".into()));
        assert_eq!(refusal(b"int x;\n  %:include <a>\n"), (2, 3, "`%:`".into()));
        assert_eq!(refusal(b"\n\n??=include <a>\n"), (3, 1, "`??=`".into()));
        assert_eq!(refusal(b"int a; ??/\n"), (1, 8, "`??/`".into()));
        assert_eq!(refusal(b"void f(void) { a\\\n"), (1, 17, "a backslash".into()));
        assert_eq!(refusal(b"int\0 x;"), (1, 4, "a NUL byte".into()));
        assert_eq!(refusal(b"int \xc3\xa9;"), (1, 5, "a byte that is not printable ASCII".into()));
        assert_eq!(refusal(b"#define X 1\n"), (1, 1, "`#`".into()));
    }

    #[test]
    fn macro_with_the_name_of_assembly_is_refused() {
        for dialect in [Dialect::Cuda, Dialect::Hip] {
            let refused = (1, 1, "this directive".to_owned());
            assert_eq!(refusal_in(dialect, b"#define asm x\n"), refused);
            assert!(check(dialect, b"#define asma x\n", 100).is_ok());
        }
    }

    #[test]
    fn source_with_word_for_files_or_assembly_is_refused() {
        for word in super::WORDS_REFUSED {
            let source = format!("void f(void) {{ {word}(\"x\"); }}");
            assert_eq!(refusal(source.as_bytes()), (1, 16, format!("`{word}`")));
            assert_eq!(refusal_in(Dialect::Hip, source.as_bytes()), (1, 16, format!("`{word}`")));
            if word != super::ASM {
                refusal_in(Dialect::Cuda, source.as_bytes());
            }
        }
    }

    #[test]
    fn source_with_word_inside_longer_word_is_accepted() {
        let source = b"int plasm, asm_, asmx, x__asm__; float y = 1e5f % 3 ? 2 : 1;";
        assert_eq!(check(Dialect::C, source, 1 << 20), Ok(()));
    }

    #[test]
    fn source_longer_than_limit_is_refused() {
        assert_eq!(check(Dialect::C, b"12345678", 8), Ok(()));
        let error = CompileError::SourceTooLong { bytes: 9, bytes_max: 8 };
        assert_eq!(check(Dialect::Cuda, b"123456789", 8), Err(error));
    }

    #[test]
    fn gpu_source_with_lines_of_the_renderers_is_accepted() {
        let cuda = "#define INFINITY (__int_as_float(0x7f800000))\n\
            #include <cuda_fp16.h>\n#include <cuda_bf16.h>\r\n\
            __device__ void f(int *c) {\n  asm(\"mma.sync {%0, %1};\"\n    : \"+r\"(c[0]));\n}\n";
        assert_eq!(check(Dialect::Cuda, cuda.as_bytes(), 1 << 20), Ok(()));
        let hip = "#define NAN (__builtin_nanf(\"\"))\n#define half _Float16\n\
            #define __WMMA_16_16_16_half_float __builtin_amdgcn_wmma_f32_16x16x16_f16_w32\n";
        assert_eq!(check(Dialect::Hip, hip.as_bytes(), 1 << 20), Ok(()));
    }

    #[test]
    fn gpu_source_with_any_other_directive_is_refused() {
        for source in [
            "#include \"/etc/passwd\"\n",
            "#include </etc/passwd>\n",
            "#include <cuda_fp16.h>/../x\n",
            "#include <cuda_fp16.h> // x\n",
            "#include <cuda_runtime.h>\n",
            "#include  <cuda_fp16.h>\n",
            "# include <cuda_fp16.h>\n",
            "#include CUDA\n",
            "#include_next <cuda_fp16.h>\n",
            "#import <cuda_fp16.h>\n",
            "#embed <cuda_fp16.h>\n",
            "#pragma GCC poison x\n",
            "#line 1 \"/etc/passwd\"\n",
            "#undef __CUDACC_RTC__\n",
            "#define __CUDACC_RTC__ 1\n",
            "#define _X 1\n",
            "#define\n",
            "#define ",
            "#if 1\n",
            "int x; #define X 1\n",
            "#define X(a) #a\n",
            "#define X(a) a##a\n",
            "#define X \\\n",
            "#define X asm\n",
            "#define X __has_include(<a>)\n",
            "/* */ #define X 1\n",
            "%:define X 1\n",
        ] {
            refusal_in(Dialect::Cuda, source.as_bytes());
            refusal_in(Dialect::Hip, source.as_bytes());
        }
        refusal_in(Dialect::Hip, b"#include <cuda_fp16.h>\n");
    }
}
