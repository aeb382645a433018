//! What `outboard check` says of drivers that are there and cannot be used: libraries made for the
//! occasion, found by the loader as the vendors' would be.
//!
//! Absent: drivers that work, and a machine without any, which a machine with one cannot play.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use hip_sys::hiprt::{LIBRARIES, Runtime};

/// Compiles a library into a folder.
fn library(folder: &Path, name: &str, source: &str, link: &[&str]) {
    let source_file = folder.join("library.c");
    fs::write(&source_file, source).expect("the folder is writable");
    let status = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .arg(folder.join(name))
        .arg(&source_file)
        .args(link)
        .stdin(Stdio::null())
        .status();
    assert!(status.expect("a C compiler, as for the build").success());
}

/// The lines of `outboard check` about a vendor, with a folder where the loader looks first.
fn check(folder: &Path, subject: &str) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outboard"));
    for hiding in ["CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"] {
        command.env_remove(hiding);
    }
    let output = command.arg("check").env("LD_LIBRARY_PATH", folder).output();
    let output = output.expect("the binary was built");
    let text = String::from_utf8(output.stdout).expect("the lines are text");
    let of_subject = |line: &&str| line.split_whitespace().nth(1) == Some(subject);
    text.lines().filter(of_subject).collect::<Vec<_>>().join("\n")
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

#[test]
fn cuda_stub_is_named_and_told_from_a_driver() {
    let folder = folder();
    let source =
        "int cuInit(unsigned f) { return 34; } int cuDriverGetVersion(int *v) { return 34; }";
    library(folder.path(), "libcuda.so.1", source, &[]);
    let path = folder.path().join("libcuda.so.1");
    let expected =
        format!("lacks  CUDA       {} is a stub for linking, not a driver -> take its", {
            path.display()
        });
    let line = check(folder.path(), "CUDA");
    assert!(line.starts_with(&expected), "{line}");
}

#[test]
fn driver_of_cuda_11_is_too_old_and_says_what_it_lacks() {
    let folder = folder();
    let source = "int cuInit(unsigned f) { return 0; } \
                  int cuDriverGetVersion(int *v) { *v = 11080; return 0; }";
    library(folder.path(), "libcuda.so.1", source, &[]);
    let line = check(folder.path(), "CUDA");
    assert!(line.contains("driver 11.8 ("), "{line}");
    assert!(line.contains("is too old, it lacks cuCtxDestroy_v2 -> install NVIDIA's"), "{line}");
}

#[test]
fn library_that_is_no_library_is_broken() {
    let folder = folder();
    fs::write(folder.path().join("libcuda.so.1"), "text, and no library at all").expect("a file");
    // No other file of these names may come before: the loader stops at the first.
    let line = check(folder.path(), "CUDA");
    assert!(line.starts_with("lacks  CUDA       libcuda.so.1: "), "{line}");
    assert!(line.contains("file too short") || line.contains("invalid ELF header"), "{line}");
}

#[test]
fn library_that_lacks_another_names_the_other() {
    let folder = folder();
    library(folder.path(), "liboutboard-needed.so", "int needed(void) { return 0; }", &[]);
    let search = format!("-L{}", folder.path().display());
    let source = "int needed(void); int hipInit(unsigned f) { return needed(); }";
    let link = [search.as_str(), "-loutboard-needed"];
    library(folder.path(), LIBRARIES[0], source, &link);
    fs::remove_file(folder.path().join("liboutboard-needed.so")).expect("it was made");
    let line = check(folder.path(), "HIP");
    assert!(line.contains(&format!("{}: liboutboard-needed.so: ", LIBRARIES[0])), "{line}");
    assert!(line.contains("-> install what the message names"), "{line}");
}

/// A HIP runtime of version 6.4 whose every other call returns `code`.
fn hip_runtime(folder: &Path, code: i32) {
    let mut source = "int hipRuntimeGetVersion(int *v) { *v = 60443482; return 0; }\n\
                      const char *hipGetErrorName(int e) { return \"hipErrorNamed\"; }\n\
                      const char *hipGetErrorString(int e) { return 0; }\n\
                      int hipGetDevicePropertiesR0600(void *p, int d) { return 0; }\n"
        .to_owned();
    let special = ["hipRuntimeGetVersion", "hipGetErrorName", "hipGetErrorString"];
    for call in Runtime::CALLS.iter().filter(|call| !special.contains(call)) {
        source += &format!("int {call}(void) {{ return {code}; }}\n");
    }
    library(folder, LIBRARIES[0], &source, &[]);
}

#[test]
fn hip_runtime_without_a_device_says_so() {
    // Initialising says the second where there is no device, and counting the first.
    for code in [100, 101] {
        let folder = folder();
        hip_runtime(folder.path(), code);
        let line = check(folder.path(), "HIP");
        assert!(line.starts_with("lacks  HIP        driver 6.4 ("), "{line}");
        assert!(line.contains(") finds no device -> "), "{line}");
    }
}

#[test]
fn hip_runtime_that_does_not_start_says_the_code() {
    let folder = folder();
    hip_runtime(folder.path(), 999);
    let line = check(folder.path(), "HIP");
    assert!(line.contains("driver 6.4 does not start: hipErrorNamed (999) -> "), "{line}");
}
