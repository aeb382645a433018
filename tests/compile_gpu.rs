//! CUDA, PTX and HIP sources through the compile service: what is refused, what the process that a
//! library compiles in can and cannot do, what is cached, and real compilers where there are any.
//!
//! The library of most tests is `compile_gpu/attacker.rs`, which does what a source tells it to.
//! Real ones, which need no GPU, are those that `NVRTC_LIBRARY` and `COMGR_LIBRARY` name, else what
//! lies below `target/nvrtc` and `target/comgr`, else what the server would find. Where there are
//! none, the tests of them say `SKIPPED:`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use outboard::compile::{
    CompileError, CompileResult, Kind, Report, SandboxStatus, Service, Target,
};
use outboard::config::{CacheDir, CompileConfig};

#[path = "support/skip.rs"]
mod skip;

use skip::skip;

const HEADERS: [&str; 4] = ["cuda_bf16.h", "cuda_bf16.hpp", "cuda_fp16.h", "cuda_fp16.hpp"];

/// A toolkit with the attacker in it: `lib/libnvrtc.so.13`, `lib/libamd_comgr.so.2` and `.so.3`,
/// `include`.
fn toolkit() -> &'static Path {
    static TOOLKIT: OnceLock<PathBuf> = OnceLock::new();
    TOOLKIT.get_or_init(|| {
        let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("attacker");
        fs::create_dir_all(root.join("lib")).unwrap();
        fs::create_dir_all(root.join("include")).unwrap();
        for name in HEADERS {
            fs::write(root.join("include").join(name), format!("<{name}>")).unwrap();
        }
        build(&root.join("lib/libnvrtc.so.13"), &[]);
        fs::copy(root.join("lib/libnvrtc.so.13"), root.join("lib/libamd_comgr.so.2")).unwrap();
        build(&root.join("lib/libamd_comgr.so.3"), &["--cfg=comgr3"]);
        root
    })
}

fn build(library: &Path, options: &[&str]) {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let status = Command::new(rustc)
        .args(["--edition=2024", "--crate-type=cdylib", "-Cpanic=abort", "-Awarnings"])
        .args(options)
        .arg("-o")
        .arg(library)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/compile_gpu/attacker.rs"))
        .status();
    assert!(status.unwrap().success());
}

fn real_config() -> CompileConfig {
    CompileConfig {
        worker_exe: PathBuf::from(env!("CARGO_BIN_EXE_outboard")),
        cache_dir: CacheDir::Off,
        ..CompileConfig::default()
    }
}

fn config() -> CompileConfig {
    CompileConfig {
        nvrtc: Some(toolkit().join("lib/libnvrtc.so.13")),
        comgr: Some(toolkit().join("lib/libamd_comgr.so.2")),
        ..real_config()
    }
}

fn cuda(arch: &str) -> Target {
    Target::Cuda { arch: arch.into() }
}

fn hip(arch: &str) -> Target {
    Target::Hip { arch: arch.into() }
}

/// One of each.
fn targets() -> [Target; 2] {
    [cuda("sm_90"), hip("gfx90a:sramecc+:xnack-")]
}

fn compile(service: &Service, target: &Target, source: &str) -> CompileResult {
    service.compile(target, source.as_bytes().into()).wait()
}

fn compiled(service: &Service, target: &Target, source: &str) -> String {
    let object = compile(service, target, source);
    String::from_utf8(object.unwrap_or_else(|e| panic!("{source}: {e}")).to_vec()).unwrap()
}

// What is asked of the libraries.

#[test]
fn cuda_source_is_compiled_for_the_architecture_with_headers_from_memory() {
    let service = Service::new(config());
    let headers = HEADERS.map(|name| format!("{name}=<{name}>")).join(" ");
    let expected = format!(
        "int x; --gpu-architecture=sm_90 --minimal {headers} vector_functions.h= vector_types.h="
    );
    assert_eq!(compiled(&service, &cuda("sm_90"), "int x;"), expected);
}

#[test]
fn cuda_source_for_an_architecture_newer_than_the_library_becomes_ptx() {
    let service = Service::new(config());
    let text = compiled(&service, &cuda("sm_100"), "int x;");
    assert!(text.starts_with("int x; --gpu-architecture=compute_90 "), "{text}");
    assert!(text.ends_with('\0'), "the driver takes text that ends in a zero byte");
    let error = compile(&service, &cuda("sm_70"), "int x;").unwrap_err().to_string();
    assert_eq!(error, "error: the server's NVRTC 13.0 has no code for sm_70");
}

#[test]
fn hip_source_goes_through_three_actions_with_their_options() {
    let service = Service::new(config());
    let text = compiled(&service, &hip("gfx942"), "int x;");
    let isa = "amdgcn-amd-amdhsa--gfx942";
    let first = "-O3,-mcumode,--hip-version=6.0.0,-D__HIPCC_RTC__,-std=c++14,-nogpuinc,-Xclang,\
        -disable-llvm-passes,--offload-arch=gfx942";
    let second = "-O3,-mllvm,-amdgpu-internalize-symbols";
    assert_eq!(text, format!("int x; 15:{isa}:{first} 6:{isa}:{second} 9:{isa}:"));
    let error = compile(&service, &hip("gfx1"), "int x;").unwrap_err().to_string();
    assert_eq!(error, "error: the server's comgr has no code for gfx1");
}

#[test]
fn hip_source_goes_through_the_actions_of_version_3_by_their_numbers() {
    let comgr = Some(toolkit().join("lib/libamd_comgr.so.3"));
    let service = Service::new(CompileConfig { comgr, ..config() });
    let text = compiled(&service, &hip("gfx942"), "int x;");
    let actions: Vec<_> = text.split(' ').filter_map(|word| word.split_once(':')).collect();
    let numbers: Vec<_> = actions.into_iter().map(|(number, _)| number).collect();
    assert_eq!(numbers, ["12", "4", "7"]);
    let error = compile(&service, &hip("gfx942"), "int apart;").unwrap_err().to_string();
    assert_eq!(
        error,
        "lld: error: undefined hidden symbol: __ockl_get_group_id\ncomgr error 1 (ERROR)"
    );
}

#[test]
fn hip_source_that_lacks_device_libraries_is_linked_with_them_apart() {
    let text = compiled(&Service::new(config()), &hip("gfx90a"), "int apart;");
    assert!(text.starts_with("libraries int apart; 2:"), "{text}");
    assert!(text.contains(" 3:") && text.contains(" 4:") && text.contains(" 9:"), "{text}");
}

#[test]
fn ptx_is_passed_on_without_a_library() {
    let nowhere = Some(PathBuf::from("/nowhere/libnvrtc.so.13"));
    let service = Service::new(CompileConfig { nvrtc: nowhere, ..config() });
    let source = include_str!("compile_gpu/kernels/reduce.ptx");
    let text = compiled(&service, &cuda("sm_90"), source);
    let expected = source.replace(".version VERSION", ".version 7.8");
    let expected = expected.replace(".target TARGET", ".target sm_90") + "\0";
    assert_eq!(text, expected);
    let error = compile(&service, &cuda("sm_90"), ".version 7.5\n.file 1 \"x\"\n").unwrap_err();
    assert_eq!(error.to_string(), "line 2, column 1: `.file` is not allowed in a kernel");
    // The text is no PTX to a HIP device.
    assert!(compiled(&service, &hip("gfx90a"), ".version 7.5").contains("gfx90a"));
}

// What is missing.

#[test]
fn library_that_is_missing_is_named_with_its_remedy() {
    let nowhere = || Some(PathBuf::from("/nowhere/lib.so"));
    let service = Service::new(CompileConfig { nvrtc: nowhere(), comgr: nowhere(), ..config() });
    for (target, kind) in targets().into_iter().zip([Kind::Nvrtc, Kind::Comgr]) {
        let error = compile(&service, &target, "int x;").unwrap_err();
        let expected = CompileError::NoLibrary { library: kind.name(), remedy: kind.remedy() };
        assert_eq!(error, expected);
        assert!(error.to_string().contains("install") && !error.to_string().contains("nowhere"));
        let operator = service.library(kind).unwrap_err().to_string();
        assert!(operator.contains("/nowhere/lib.so: ") && operator.contains("No such file"));
        // It is refused for what it is all the same.
        let refused = compile(&service, &target, "#include </etc/passwd>\n");
        assert!(matches!(refused, Err(CompileError::Refused { .. })), "{refused:?}");
    }
}

#[test]
fn library_of_another_kind_is_named_with_what_it_lacks() {
    let libc = fs::read_to_string("/proc/self/maps").unwrap();
    let libc = libc.lines().find_map(|l| Some(&l[l.find('/')?..])).filter(|p| p.contains("libc."));
    let libc = libc.unwrap_or("libc.so.6");
    let service = Service::new(CompileConfig { nvrtc: Some(libc.into()), ..config() });
    let error = service.library(Kind::Nvrtc).unwrap_err().to_string();
    assert!(error.contains("nvrtcCompileProgram"), "{error}");
}

#[test]
fn headers_that_are_missing_fail_only_what_includes_them() {
    let dir = tempfile::tempdir().unwrap();
    let library = dir.path().join("a/b/c/d/libnvrtc.so.13");
    fs::create_dir_all(library.parent().unwrap()).unwrap();
    fs::copy(toolkit().join("lib/libnvrtc.so.13"), &library).unwrap();
    let service = Service::new(CompileConfig { nvrtc: Some(library), ..config() });
    if let Some(dir) = &service.library(Kind::Nvrtc).unwrap().include_dir {
        skip("headers that are missing", &format!("this machine has some in {}", dir.display()));
        return;
    }
    let text = compiled(&service, &cuda("sm_90"), "int x;");
    assert_eq!(text, "int x; --gpu-architecture=sm_90 --minimal");
    let error = compile(&service, &cuda("sm_90"), "#include <cuda_fp16.h>\n").unwrap_err();
    assert!(error.to_string().contains("headers cuda_fp16.h"), "{error}");
}

#[test]
fn report_says_what_was_found_and_what_to_do() {
    let kinds = [Kind::Nvrtc, Kind::Comgr];
    for (kind, version) in kinds.into_iter().zip(["13.0 at ", "2.9 at "]) {
        let report = Report::of(kind, &config());
        assert!(report.found.starts_with(version), "{report:?}");
        assert!(report.found.ends_with(" compiles") && report.remedy.is_none(), "{report:?}");
        let nowhere = Some(PathBuf::from("/nowhere/lib.so"));
        let text = Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"));
        for (path, found) in [(nowhere, "loaded"), (text, "invalid ELF header")] {
            let (nvrtc, comgr) = (path.clone(), path);
            let report = Report::of(kind, &CompileConfig { nvrtc, comgr, ..real_config() });
            assert!(report.found.ends_with(found), "{report:?}");
            assert_eq!(report.remedy.as_deref(), Some(kind.remedy()));
        }
    }
}

// What the process can do.

/// What a source that tells the library to do something comes to, in both.
fn told(order: &str, expected_nvrtc: &str, expected_comgr: &str) {
    let status = SandboxStatus::of_this_kernel();
    if status.landlock_abi.is_none() || !status.seccomp {
        skip(order, "this kernel lacks landlock or seccomp");
        return;
    }
    let service = Service::new(config());
    for (target, expected) in targets().iter().zip([expected_nvrtc, expected_comgr]) {
        let text = compiled(&service, target, &format!("// {order}\n"));
        assert_eq!(text.split(' ').next(), Some(expected), "{target:?} {order}");
    }
}

#[test]
fn library_reads_no_file_and_does_not_learn_of_one() {
    told("read /etc/passwd", "denied", "denied");
    told("read /proc/self/maps", "denied", "denied");
    for own in ["libnvrtc.so.13", "libamd_comgr.so.2"] {
        let own = toolkit().join("lib").join(own);
        told(&format!("read {}", own.display()), "denied", "denied");
    }
    // Landlock does not keep from comgr, which needs files of its own, what exists.
    told("stat /etc/passwd", "denied", "done");
    told("load libm.so.6", "done", "done");
    let other = toolkit().join("lib/libamd_comgr.so.2");
    let this = toolkit().join("lib/libother.so");
    fs::copy(other, &this).unwrap();
    told(&format!("load {}", this.display()), "denied", "denied");
}

#[test]
fn library_starts_no_program_and_no_process_but_threads() {
    told("exec /bin/true", "denied", "denied");
    told("fork", "denied", "denied");
    told("thread", "done", "done");
}

#[test]
fn library_connects_to_nothing() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    told(&format!("connect {}", listener.local_addr().unwrap()), "denied", "denied");
}

#[test]
fn library_writes_to_a_directory_of_its_own_that_is_gone_afterwards() {
    told("write", "denied", "done");
    let text = compiled(&Service::new(config()), &targets()[1], "// where\n");
    let dir = Path::new(text.split(' ').next().unwrap());
    assert!(dir.starts_with(std::env::temp_dir()) && dir != std::env::temp_dir(), "{text}");
    assert!(!dir.exists(), "{text}");
}

#[test]
fn library_that_prints_does_not_print_into_the_object() {
    told("noise", "quiet", "quiet");
}

// How it ends.

#[test]
fn source_with_error_is_rejected_with_its_place_and_no_path_of_the_server() {
    let service = Service::new(config());
    let expected = [
        "kernel.cu(2): error: cuda says no ((path))",
        "kernel.hip:2:1: error: hip says no ((path))",
    ];
    for (target, message) in targets().iter().zip(expected) {
        let error = compile(&service, target, "// reject\n").unwrap_err();
        assert_eq!(error, CompileError::Rejected { message: message.to_owned() });
    }
}

#[test]
fn source_that_breaks_the_library_costs_itself_only() {
    let service = Service::new(CompileConfig { threads: 1, ..config() });
    let limit = Duration::from_secs(1);
    let impatient = Service::new(CompileConfig { time_max: limit, ..config() });
    let bytes_max = CompileConfig::default().object_bytes_max;
    for target in targets() {
        let error = |source| compile(&service, &target, source).unwrap_err();
        assert!(matches!(error("// abort\n"), CompileError::Crashed { .. }));
        assert!(matches!(error("// hog\n"), CompileError::Crashed { .. }));
        let result = compile(&impatient, &target, "// loop\n");
        assert_eq!(result, Err(CompileError::Timeout { limit }));
        assert_eq!(error("// big\n"), CompileError::ObjectTooLong { bytes_max });
        assert!(compile(&service, &target, "int x;").is_ok());
    }
}

#[test]
fn source_that_reads_files_is_refused_before_the_library() {
    let service = Service::new(config());
    for source in [
        "#include \"/etc/passwd\"\n",
        "#include <cuda_fp16.h>/../../x\n",
        "int x; /*\n#pragma once\n*/",
        "#define X __has_include(</etc/passwd>)\n",
        "__asm__(\".incbin 'x'\");\n",
        "void f() {}\0",
    ] {
        for target in targets() {
            let result = compile(&service, &target, source);
            assert!(matches!(result, Err(CompileError::Refused { .. })), "{source} {result:?}");
        }
    }
    let giant = " ".repeat((4 << 20) + 1);
    for target in targets() {
        let result = compile(&service, &target, &giant);
        assert!(matches!(result, Err(CompileError::SourceTooLong { .. })), "{result:?}");
    }
}

// The cache.

fn entries(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().count()
}

#[test]
fn source_is_cached_by_target_and_library() {
    let cache = tempfile::tempdir().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let library = dir.path().join("libnvrtc.so.13");
    fs::copy(toolkit().join("lib/libnvrtc.so.13"), &library).unwrap();
    let service = || {
        let cache_dir = CacheDir::At(cache.path().to_owned());
        Service::new(CompileConfig { cache_dir, nvrtc: Some(library.clone()), ..config() })
    };
    let first = service();
    for target in [cuda("sm_80"), cuda("sm_90"), hip("gfx942"), hip("gfx90a")] {
        let text = compiled(&first, &target, "int x;");
        let (Target::Cuda { arch } | Target::Hip { arch }) = &target else { panic!() };
        assert!(text.contains(&**arch), "{target:?} {text}");
        // Once from memory, once from disk.
        assert_eq!(compiled(&first, &target, "int x;"), text);
        assert_eq!(compiled(&service(), &target, "int x;"), text);
    }
    assert_eq!(entries(cache.path()), 4);
    let time = std::time::SystemTime::now() - Duration::from_secs(1000);
    fs::File::options().write(true).open(&library).unwrap().set_modified(time).unwrap();
    compiled(&service(), &cuda("sm_90"), "int x;");
    compiled(&service(), &hip("gfx942"), "int x;");
    assert_eq!(entries(cache.path()), 5, "the changed library compiles again, the other does not");
}

/// Puts a file in the place of another, as an installation does.
fn replace(library: &Path, with: &Path) {
    let fresh = library.with_extension("fresh");
    fs::copy(with, &fresh).unwrap();
    fs::rename(&fresh, library).unwrap();
}

#[test]
fn library_that_is_replaced_while_the_server_runs_is_found_anew() {
    let dir = tempfile::tempdir().unwrap();
    let none = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let names = ["libnvrtc.so.13", "libamd_comgr.so.2"];
    let libraries = names.map(|name| (toolkit().join("lib").join(name), dir.path().join(name)));
    let [(nvrtc, own_nvrtc), (comgr, own_comgr)] = &libraries;
    fs::copy(nvrtc, own_nvrtc).unwrap();
    fs::copy(comgr, own_comgr).unwrap();
    let (nvrtc, comgr) = (Some(own_nvrtc.clone()), Some(own_comgr.clone()));
    let service = Service::new(CompileConfig { nvrtc, comgr, ..config() });
    let kinds = [Kind::Nvrtc, Kind::Comgr];
    for ((target, kind), (original, library)) in targets().into_iter().zip(kinds).zip(&libraries) {
        assert!(compiled(&service, &target, "int a;").starts_with("int a;"));
        replace(library, original);
        assert!(compiled(&service, &target, "int b;").starts_with("int b;"), "{kind:?}");
        // One that is not whole yet.
        replace(library, &none);
        let error = compile(&service, &target, "int c;").unwrap_err();
        let expected = CompileError::Replaced { library: kind.name(), remedy: kind.remedy() };
        assert_eq!(error, expected);
        fs::remove_file(library).unwrap();
        assert_eq!(compile(&service, &target, "int d;").unwrap_err(), expected);
        fs::copy(original, library).unwrap();
        assert!(compiled(&service, &target, "int e;").starts_with("int e;"), "{kind:?}");
    }
}

// Real compilers.

const CUDA_KERNELS: [&str; 4] = [
    include_str!("compile_gpu/kernels/softmax.cu"),
    include_str!("compile_gpu/kernels/half_elementwise.cu"),
    include_str!("compile_gpu/kernels/half_matmul_acc.cu"),
    include_str!("compile_gpu/kernels/bf16_elementwise.cu"),
];

const HIP_KERNELS: [&str; 4] = [
    include_str!("compile_gpu/kernels/softmax.hip"),
    include_str!("compile_gpu/kernels/half_elementwise.hip"),
    include_str!("compile_gpu/kernels/half_matmul_acc.hip"),
    include_str!("compile_gpu/kernels/bf16_elementwise.hip"),
];

/// A library that the environment names, or one below `target`, unpacked there by hand.
fn unpacked(variable: &str, dir: &str, name: &str) -> Option<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return Some(path.into());
    }
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent()?;
    let mut folders = vec![target.join(dir)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).ok()?.flatten() {
            let path = entry.path();
            if path.file_name() == Some(OsStr::new(name)) {
                return Some(path);
            }
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                folders.push(path);
            }
        }
    }
    None
}

fn found_config() -> CompileConfig {
    CompileConfig {
        nvrtc: unpacked("NVRTC_LIBRARY", "nvrtc", "libnvrtc.so.13"),
        comgr: unpacked("COMGR_LIBRARY", "comgr", "libamd_comgr.so.2"),
        ..real_config()
    }
}

/// A service with a real compiler, if there is one.
fn real(kind: Kind) -> Option<Service> {
    let service = Service::new(found_config());
    match service.library(kind) {
        Ok(_) => Some(service),
        Err(error) => {
            skip("real compilers", &error.to_string());
            None
        }
    }
}

#[test]
fn nvrtc_compiles_kernels_of_tinygrad() {
    let Some(service) = real(Kind::Nvrtc) else { return };
    let report = Report::of(Kind::Nvrtc, &found_config());
    assert!(report.found.contains(" compiles"), "{report:?}");
    let has_headers = service.library(Kind::Nvrtc).unwrap().include_dir.is_some();
    for source in CUDA_KERNELS {
        if source.contains("#include") && !has_headers {
            skip("half and bfloat16", "NVRTC without headers");
            continue;
        }
        let object = compile(&service, &cuda("sm_90"), source).unwrap_or_else(|e| panic!("{e}"));
        assert!(object.starts_with(b"\x7fELF"));
    }
    let source = "extern \"C\" __global__ void f(float* a) {\n  *a = b;\n}\n";
    let error = compile(&service, &cuda("sm_90"), source).unwrap_err().to_string();
    assert_eq!(error, "kernel.cu(2): error: identifier \"b\" is undefined");
}

#[test]
fn comgr_compiles_kernels_of_tinygrad() {
    let Some(service) = real(Kind::Comgr) else { return };
    let report = Report::of(Kind::Comgr, &found_config());
    assert!(report.found.ends_with(" compiles"), "{report:?}");
    for source in HIP_KERNELS {
        let target = hip("gfx90a:sramecc+:xnack-");
        let object = compile(&service, &target, source).unwrap_or_else(|e| panic!("{e}"));
        assert!(object.starts_with(b"\x7fELF"));
    }
    let source = "extern \"C\" __attribute__((global)) void f(float* a) {\n  *a = b;\n}\n";
    let error = compile(&service, &hip("gfx90a"), source).unwrap_err().to_string();
    assert_eq!(error, "kernel.hip:2:8: error: use of undeclared identifier 'b'");
}

// Figures, for people: `cargo test --release --test compile_gpu -- --ignored --nocapture figures`.

#[test]
#[ignore = "prints figures, checks nothing"]
fn figures() {
    let best = |mut run: Box<dyn FnMut() + '_>| {
        let time = |_| {
            let started = Instant::now();
            run();
            started.elapsed()
        };
        (0..10).map(time).min().unwrap()
    };
    for (kind, target, sources) in [
        (Kind::Nvrtc, cuda("sm_90"), &CUDA_KERNELS[..]),
        (Kind::Comgr, hip("gfx90a:sramecc+:xnack-"), &HIP_KERNELS[..]),
    ] {
        if real(kind).is_none() {
            continue;
        }
        let config = || CompileConfig { cache_memory_bytes_max: 0, ..found_config() };
        let find = best(Box::new(|| assert!(Service::new(config()).library(kind).is_ok())));
        eprintln!("{}: found in {find:?}", kind.name());
        let cache = tempfile::tempdir().unwrap();
        let at = || CacheDir::At(cache.path().to_owned());
        let service = Service::new(config());
        let disk = Service::new(CompileConfig { cache_dir: at(), ..config() });
        for (index, source) in sources.iter().enumerate() {
            let compiled = best(Box::new(|| drop(compile(&service, &target, source))));
            drop(compile(&disk, &target, source));
            let hit = best(Box::new(|| drop(compile(&disk, &target, source))));
            eprintln!("kernel {index}: compiled {compiled:?}, disk hit {hit:?}");
        }
    }
    let service = Service::new(CompileConfig { cache_memory_bytes_max: 0, ..found_config() });
    let source = include_str!("compile_gpu/kernels/reduce.ptx");
    let passed = best(Box::new(|| drop(compile(&service, &cuda("sm_90"), source))));
    eprintln!("PTX of {} bytes: passed on in {passed:?}", source.len());
}
