//! Real kernels: loaded, called, and compared with plain Rust.

use std::process::Command;
use std::sync::Arc;

use outboard::compile::{CompileResult, Family, Toolchain};
use outboard::device::cpu::{ARGUMENTS_MAX, Kernel, LoadError, TooManyArguments};

use super::skip::skip;
use super::{compile, run_plain, services};

mod objects;

macro_rules! sources {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!($name, ".c")))),*]
    };
}

pub(crate) const SOURCES: [(&str, &str); 15] = sources![
    "bfloat16_elementwise",
    "buffers_11_ints_2",
    "buffers_25",
    "convolution",
    "elementwise",
    "exp",
    "half_elementwise",
    "half_equal",
    "half_matmul",
    "half_to_double",
    "int_to_half",
    "matmul",
    "reduce",
    "trunc",
    "unsigned_to_half",
];

pub(crate) fn source(name: &str) -> &'static str {
    SOURCES.iter().find(|(known, _)| *known == name).expect("a source of that name").1
}

pub(crate) fn load(object: &[u8]) -> Kernel {
    Kernel::load(object).expect("a kernel")
}

/// Compiles without the service, for any CPU. `None` if the compiler cannot.
pub(crate) fn compile_plain(toolchain: &Toolchain, march: &str, source: &str) -> Option<Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("kernel.o");
    let mut command = Command::new(&toolchain.path);
    command.args("-x c -O2 -fPIC -ffreestanding -fno-math-errno -nostdlib -nostdinc".split(' '));
    command.arg(format!("-march={march}"));
    match toolchain.family {
        Family::Clang => command.arg("--target=x86_64-none-unknown-elf"),
        Family::Gcc => command.args(["-D__fp16=_Float16", "-fno-strict-aliasing", "-fno-plt"]),
    };
    run_plain(command.args(["-c", "-", "-o"]).arg(&output), source)?;
    Some(std::fs::read(output).unwrap())
}

/// Every object of a source that this machine's compilers make: by the service, and for the least
/// of all x86-64 CPUs, where more helper functions are called.
fn objects_of(name: &str) -> Vec<Arc<[u8]>> {
    let mut objects = Vec::new();
    for service in services() {
        let toolchain = service.toolchain().unwrap();
        let result: CompileResult = compile(&service, source(name));
        match result {
            Ok(object) => objects.push(object),
            Err(error) => {
                skip(name, &format!("{}: {error}", toolchain.version));
                assert!(name.starts_with("bfloat16") && !toolchain.bfloat16, "{error}");
                continue;
            }
        }
        for march in ["x86-64", "x86-64-v2"] {
            objects.push(compile_plain(toolchain, march, source(name)).unwrap().into());
        }
    }
    objects
}

/// Memory as tinygrad aligns it.
#[repr(align(128))]
#[derive(Clone)]
struct Buffer<T, const N: usize>([T; N]);

impl<T: Copy, const N: usize> Buffer<T, N> {
    fn of(item: impl Fn(usize) -> T) -> Buffer<T, N> {
        Buffer(std::array::from_fn(item))
    }

    fn address(&mut self) -> u64 {
        u64::try_from(self.0.as_mut_ptr().addr()).unwrap()
    }
}

fn call(object: &[u8], arguments: &[u64]) {
    let kernel = load(object);
    // SAFETY: the sources beside this file do what they say, and the tests give them the buffers
    // they declare.
    unsafe { kernel.call(arguments) }.unwrap();
}

/// Small numbers of both signs without a pattern.
fn number(i: usize) -> f32 {
    let hash = (u32::try_from(i).unwrap() + 1).wrapping_mul(2_654_435_761) >> 16;
    f32::from(u16::try_from(hash).unwrap()) / 8192.0 - 4.0
}

#[track_caller]
fn assert_close(found: &[f32], expected: &[f32], relative: f32) {
    for (i, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        let close = (found - expected).abs() <= relative * expected.abs().max(1.0);
        assert!(close, "{i}: {found} is not {expected}");
    }
}

#[test]
fn kernel_elementwise_gives_the_numbers() {
    for object in objects_of("elementwise") {
        let mut out = Buffer::<f32, 64>::of(|_| f32::NAN);
        let (mut a, mut b) =
            (Buffer::<f32, 64>::of(number), Buffer::<f32, 64>::of(|i| number(i + 64)));
        call(&object, &[out.address(), a.address(), b.address()]);
        let expected: Vec<f32> =
            a.0.iter().zip(&b.0).map(|(a, b)| (a * 2.0 + b).max(0.0)).collect();
        assert_close(&out.0, &expected, 1e-6);
    }
}

#[test]
fn kernel_reduce_gives_the_numbers() {
    for object in objects_of("reduce") {
        let mut out = Buffer::<f32, 32>::of(|_| f32::NAN);
        let mut a = Buffer::<f32, 2048>::of(number);
        call(&object, &[out.address(), a.address()]);
        let expected: Vec<f32> = a.0.chunks(64).map(|row| row.iter().sum()).collect();
        assert_close(&out.0, &expected, 1e-5);
    }
}

/// Row by column of 16 by 16.
fn product(a: &[f32], b: &[f32]) -> Vec<f32> {
    let cell = |i: usize| (0..16).map(|k| a[i / 16 * 16 + k] * b[k * 16 + i % 16]).sum();
    (0..256).map(cell).collect()
}

#[test]
fn kernel_matmul_gives_the_numbers() {
    for object in objects_of("matmul") {
        let mut out = Buffer::<f32, 256>::of(|_| f32::NAN);
        let (mut a, mut b) =
            (Buffer::<f32, 256>::of(number), Buffer::<f32, 256>::of(|i| number(i * 3)));
        call(&object, &[out.address(), a.address(), b.address()]);
        assert_close(&out.0, &product(&a.0, &b.0), 1e-5);
    }
}

#[test]
fn kernel_convolution_gives_the_numbers() {
    for object in objects_of("convolution") {
        let mut out = Buffer::<f32, 144>::of(|_| f32::NAN);
        let (mut image, mut weights) =
            (Buffer::<f32, 256>::of(number), Buffer::<f32, 144>::of(|i| number(i * 5)));
        call(&object, &[out.address(), image.address(), weights.address()]);
        let cell = |i: usize| {
            let (filter, y, x) = (i / 36, i / 6 % 6, i % 6);
            let taps = (0..36).map(|tap| (tap / 9, tap / 3 % 3, tap % 3));
            taps.map(|(channel, v, u)| {
                image.0[channel * 64 + (y + v) * 8 + x + u]
                    * weights.0[filter * 36 + channel * 9 + v * 3 + u]
            })
            .sum()
        };
        let expected: Vec<f32> = (0..144).map(cell).collect();
        assert_close(&out.0, &expected, 1e-5);
    }
}

#[test]
fn kernel_exp_gives_the_numbers() {
    for object in objects_of("exp") {
        let mut out = Buffer::<f32, 64>::of(|_| f32::NAN);
        let mut a = Buffer::<f32, 64>::of(number);
        a.0[..3].copy_from_slice(&[f32::INFINITY, f32::NEG_INFINITY, f32::NAN]);
        call(&object, &[out.address(), a.address()]);
        assert_eq!((out.0[0], out.0[1], out.0[2].is_nan()), (f32::INFINITY, 0.0, true));
        let expected: Vec<f32> = a.0.iter().map(|a| a.exp()).collect();
        assert_close(&out.0[3..], &expected[3..], 1e-5);
    }
}

#[test]
fn kernel_trunc_gives_the_numbers() {
    for object in objects_of("trunc") {
        let mut out = Buffer::<f32, 64>::of(|_| f32::NAN);
        let mut a = Buffer::<f32, 64>::of(|i| number(i) * 1000.0);
        call(&object, &[out.address(), a.address()]);
        assert_eq!(out.0, a.0.map(f32::trunc));
    }
}

#[test]
fn kernel_with_buffers_and_ints_gets_each_in_its_place() {
    for object in objects_of("buffers_11_ints_2") {
        let mut out = Buffer::<f32, 100>::of(|_| -1.0);
        let mut inputs: Vec<Buffer<f32, 100>> =
            (0..8).map(|b| Buffer::of(|i| f32::from(u16::try_from(i << b).unwrap()))).collect();
        let (mut x, mut y) = (Buffer::<f32, 1>::of(|_| 3.0), Buffer::<f32, 1>::of(|_| 0.5));
        let mut arguments = vec![out.address()];
        arguments.extend(inputs.iter_mut().map(Buffer::address));
        // The upper half of an integer argument is anything.
        let int = |value: i32| 0xdead_beef << 32 | u64::from(value.cast_unsigned());
        arguments.extend([x.address(), y.address(), int(7), int(4)]);
        call(&object, &arguments);
        for (at, &found) in out.0.iter().enumerate() {
            let i = at / 4 * 10 + at % 4;
            let expected =
                if at < 28 { f32::from(u16::try_from(i * 255).unwrap()) * 1.5 } else { -1.0 };
            assert_eq!(found, expected, "{at}");
        }
    }
}

#[test]
fn kernel_with_25_buffers_gets_each_in_its_place() {
    for object in objects_of("buffers_25") {
        let mut out = Buffer::<f32, 96>::of(|_| f32::NAN);
        let mut inputs: Vec<Buffer<f32, 4>> =
            (0..24).map(|b| Buffer::of(|i| number(b * 4 + i))).collect();
        let mut arguments = vec![out.address()];
        arguments.extend(inputs.iter_mut().map(Buffer::address));
        call(&object, &arguments);
        assert_eq!(out.0, std::array::from_fn(number));
    }
}

/// What the 16 bits of a half mean. Subnormals, infinities and NaN do not occur here.
fn half_value(bits: u16) -> f32 {
    assert!(bits & 0x7fff == 0 || (1..31).contains(&(bits >> 10 & 31)));
    let magnitude = u32::from(bits & 0x7fff) << 13;
    let value = f32::from_bits(if magnitude == 0 { 0 } else { magnitude + (112 << 23) });
    if bits & 0x8000 == 0 { value } else { -value }
}

/// Halves between 1 and 4, of both signs.
fn half(i: usize) -> u16 {
    (u16::try_from(i * 29 % 2048).unwrap() + 0x3c00) | (u16::from(i.is_multiple_of(3)) << 15)
}

#[test]
fn kernel_half_elementwise_gives_the_numbers() {
    for object in objects_of("half_elementwise") {
        let mut out = Buffer::<u16, 64>::of(|_| 0);
        let (mut a, mut b) = (Buffer::<u16, 64>::of(half), Buffer::<u16, 64>::of(|i| half(i + 7)));
        call(&object, &[out.address(), a.address(), b.address()]);
        for i in 0..64 {
            let expected = half_value(a.0[i]) + 2.0 * half_value(b.0[i]);
            let found = half_value(out.0[i]);
            // Half a step of a half at most, twice where a compiler rounds between operations.
            assert!((found - expected).abs() <= expected.abs() / 1024.0, "{found} {expected}");
        }
    }
}

#[test]
fn kernel_half_matmul_gives_the_numbers() {
    for object in objects_of("half_matmul") {
        let mut out = Buffer::<u16, 256>::of(|_| 0);
        let (mut a, mut b) =
            (Buffer::<u16, 256>::of(half), Buffer::<u16, 256>::of(|i| half(i * 5)));
        call(&object, &[out.address(), a.address(), b.address()]);
        let expected = product(&a.0.map(half_value), &b.0.map(half_value));
        for (&found, expected) in out.0.iter().zip(expected) {
            let found = half_value(found);
            // Sixteen products of up to 16, each rounded to a half.
            assert!((found - expected).abs() <= 0.15, "{found} {expected}");
        }
    }
}

#[test]
fn kernel_half_equal_gives_the_truth() {
    for object in objects_of("half_equal") {
        let mut out = Buffer::<u8, 64>::of(|_| 9);
        let mut a = Buffer::<u16, 64>::of(half);
        let mut b = a.clone();
        (a.0[0], b.0[0]) = (0, 0x8000);
        (a.0[1], b.0[1]) = (0x7e00, 0x7e00);
        b.0[2] ^= 1;
        call(&object, &[out.address(), a.address(), b.address()]);
        assert_eq!(out.0, std::array::from_fn(|i| u8::from(i != 1 && i != 2)));
    }
}

#[test]
fn kernel_converting_to_and_from_half_gives_the_numbers() {
    for object in objects_of("half_to_double") {
        let mut out = Buffer::<f64, 64>::of(|_| f64::NAN);
        let mut a = Buffer::<u16, 64>::of(half);
        call(&object, &[out.address(), a.address()]);
        assert_eq!(out.0, a.0.map(|bits| f64::from(half_value(bits))));
    }
    let expected: [f32; 64] = std::array::from_fn(|i| f32::from(u16::try_from(i * 32).unwrap()));
    for object in objects_of("unsigned_to_half") {
        let mut out = Buffer::<u16, 64>::of(|_| 0);
        let mut a = Buffer::<u64, 64>::of(|i| u64::try_from(i * 32).unwrap());
        a.0[63] = u64::MAX;
        call(&object, &[out.address(), a.address()]);
        assert_eq!(out.0[63], 0x7c00, "past the largest half lies infinity");
        assert_eq!(out.0[..63].iter().map(|&h| half_value(h)).collect::<Vec<_>>(), expected[..63]);
    }
    for object in objects_of("int_to_half") {
        let mut out = Buffer::<u16, 64>::of(|_| 0);
        let mut a = Buffer::<i32, 64>::of(|i| -i32::try_from(i * 32).unwrap());
        call(&object, &[out.address(), a.address()]);
        assert_eq!(out.0.map(half_value), expected.map(|x| -x));
    }
}

#[test]
fn kernel_bfloat16_elementwise_gives_the_numbers() {
    let objects = objects_of("bfloat16_elementwise");
    for object in &objects {
        let bfloat16 = |i: usize| u16::try_from(number(i).to_bits() >> 16).unwrap();
        let value = |bits: u16| f32::from_bits(u32::from(bits) << 16);
        let mut out = Buffer::<u16, 64>::of(|_| 0);
        let (mut a, mut b) =
            (Buffer::<u16, 64>::of(bfloat16), Buffer::<u16, 64>::of(|i| bfloat16(i + 7)));
        call(object, &[out.address(), a.address(), b.address()]);
        for i in 0..64 {
            let expected = value(a.0[i]) + 2.0 * value(b.0[i]);
            let found = value(out.0[i]);
            assert!((found - expected).abs() <= expected.abs() / 256.0, "{found} {expected}");
        }
    }
    if objects.is_empty() {
        skip("bfloat16 kernels", "no compiler here knows bfloat16");
    }
}

/// Kernels that need more of the loader than tinygrad's: the other places where compilers put
/// constants, and the other ways to reach them.
#[test]
fn kernel_with_tables_and_helpers_of_its_own_is_loaded() {
    let source = "const float weights[4] = {1.0f, 2.0f, 3.0f, 4.0f};\n\
        static const float* const rows[2] = {weights + 1, weights + 2};\n\
        static __attribute__((noinline)) float pick(int i, int j) { return rows[i][j]; }\n\
        void f(float* restrict out, const int i) {\n\
          struct big { float x[64]; } a, *volatile p = &a;\n\
          for (int k = 0; k < 64; k++) { p->x[k] = k; }\n\
          struct big b = *p; out[0] = pick(i, 1) + weights[i] + b.x[i];\n}\n";
    for service in services() {
        let object = compile(&service, source).unwrap();
        let plain = compile_plain(service.toolchain().unwrap(), "x86-64", source).unwrap();
        for object in [&object[..], &plain[..]] {
            let mut out = Buffer::<f32, 1>::of(|_| f32::NAN);
            call(object, &[out.address(), 1]);
            assert_eq!(out.0, [4.0 + 2.0 + 1.0]);
        }
    }
}

#[test]
fn call_with_any_number_of_arguments_passes_all_of_them() {
    for count in [1, 2, 5, 6, 7, 8, 9, 16, 63, 500] {
        let declared: Vec<String> = (0..count).map(|i| format!("long a{i}")).collect();
        let sum: Vec<String> = (0..count).map(|i| format!("a{i} * {}", i + 1)).collect();
        // The vector needs an aligned stack where it is spilled.
        let source = format!(
            "typedef float v __attribute__((vector_size(16)));\n\
             void f(long* out, {}) {{ volatile v x = {{1, 2, 3, 4}}; *out = {} + (long)x[3]; }}\n",
            declared.join(", "),
            sum.join(" + ")
        );
        for service in services() {
            let object = compile(&service, &source).unwrap();
            let mut out = Buffer::<i64, 1>::of(|_| 0);
            let mut arguments = vec![out.address()];
            arguments.extend((0..count).map(|i| i * i));
            call(&object, &arguments);
            let expected: u64 = (0..count).map(|i| i * i * (i + 1)).sum::<u64>() + 4;
            assert_eq!(out.0[0].cast_unsigned(), expected, "{count}");
        }
    }
}

#[test]
fn call_with_too_many_arguments_calls_nothing() {
    let services = services();
    let kernel = load(&compile(&services[0], "void f(int* a) { *a = 1; }").unwrap());
    let count = ARGUMENTS_MAX + 1;
    // SAFETY: nothing is called.
    let result = unsafe { kernel.call(&vec![0; count]) };
    assert_eq!(result, Err(TooManyArguments { count }));
}
