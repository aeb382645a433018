//! Any bytes as a kernel's source. What passes holds nothing by which a compiler reads a file, as
//! far as a second, simpler look can tell.
//!
//! Input: a byte that chooses the language, the rest the source.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outboard::compile::{CompileError, Target, admit};

const BYTES_MAX: usize = 1 << 16;

const WORDS: [&[u8]; 8] = [
    b"_Pragma",
    b"__asm",
    b"__asm__",
    b"__has_embed",
    b"__has_include",
    b"__has_include_next",
    b"__pragma",
    b"asm",
];

fn words(source: &[u8]) -> impl Iterator<Item = &[u8]> {
    source.split(|b| !b.is_ascii_alphanumeric() && !matches!(b, b'_' | b'$'))
}

fn has(source: &[u8], part: &[u8]) -> bool {
    source.windows(part.len()).any(|window| window == part)
}

fuzz_target!(|input: &[u8]| {
    let [language, source @ ..] = input else { return };
    let arch = || "sm_90".into();
    let target = match language % 3 {
        0 => Target::Cpu,
        1 => Target::Cuda { arch: arch() },
        _ => Target::Hip { arch: arch() },
    };
    let is_cuda = matches!(target, Target::Cuda { .. });
    let ptx = match admit(&target, source, BYTES_MAX) {
        Ok(ptx) => ptx,
        Err(CompileError::Refused { line, column, what }) => {
            assert!(line <= source.len() + 1 && column <= source.len() + 1 && what.len() < 100);
            return;
        }
        Err(_) => return,
    };
    assert!(source.iter().all(|b| matches!(b, b'\t' | b'\n' | b'\r' | b' '..=b'~')));
    if let Some(ptx) = ptx {
        assert!(ptx.len() <= source.len() + 16 && ptx.ends_with(&[0]));
        for behind_dot in source.split(|b| *b == b'.').skip(1) {
            let directive = words(behind_dot).next().unwrap_or_default();
            assert!(![b"file".as_slice(), b"loc", b"section"].contains(&directive));
        }
        return;
    }
    for spelling in [b"\\".as_slice(), b"%:", b"??=", b"??/"] {
        assert!(!has(source, spelling));
    }
    let refused = WORDS.iter().filter(|word| !is_cuda || **word != b"asm");
    refused.for_each(|refused| assert!(!words(source).any(|word| word == *refused)));
    // A directive is a macro with a name and a body, or one of two headers.
    for line in source.split(|b| matches!(b, b'\n' | b'\r')) {
        let Some(at) = line.iter().position(|b| *b == b'#') else { continue };
        let directive = line[at..].trim_ascii_end();
        assert!(line[..at].iter().all(|b| matches!(b, b' ' | b'\t')), "a # inside a line");
        assert!(target != Target::Cpu, "a # in C");
        assert_eq!(directive.iter().filter(|b| **b == b'#').count(), 1);
        let headers = [b"#include <cuda_fp16.h>".as_slice(), b"#include <cuda_bf16.h>"];
        let is_header = is_cuda && headers.contains(&directive);
        assert!(directive.starts_with(b"#define ") || is_header);
    }
});
