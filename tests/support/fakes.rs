//! The fake driver libraries of `tests/fakes`: built by `rustc` when their sources are newer, found
//! by the loader through `LD_LIBRARY_PATH`.
//!
//! Each library has a folder of its own, so that a test chooses which of them a machine has. A
//! [`Watch`] hands out the environment for a process and reads what the fakes wrote down.
//! Absent: what the fakes do and check, which is in `tests/fakes/core/mod.rs`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::SystemTime;

use rustix::fs::{FlockOperation, flock};

/// The libraries: the source's name, and the name that the loader looks for.
const LIBRARIES: [(&str, &str); 5] = [
    ("cuda", "libcuda.so.1"),
    ("nvrtc", "libnvrtc.so.13"),
    ("hip", "libamdhip64.so.6"),
    ("comgr", "libamd_comgr.so.2"),
    ("ibverbs", "libibverbs.so.1"),
];

/// What NVRTC's users find beside it.
const HEADERS: [&str; 4] = ["cuda_fp16.h", "cuda_fp16.hpp", "cuda_bf16.h", "cuda_bf16.hpp"];

/// The folder of one library, such as `cuda` or `nvrtc`.
pub(crate) fn folder(library: &str) -> PathBuf {
    built().join(library)
}

/// The file of one library.
pub(crate) fn file(library: &str) -> PathBuf {
    let (_, name) = LIBRARIES.iter().find(|(source, _)| *source == library).expect("a known fake");
    folder(library).join(name)
}

/// Writes a copy of a library that lacks a symbol into `into`, which is then a folder for
/// `LD_LIBRARY_PATH`.
pub(crate) fn without(library: &str, symbol: &str, into: &Path) {
    let file = file(library);
    let mut bytes = fs::read(&file).expect("a library that was built is readable");
    let name = format!("\0{symbol}\0").into_bytes();
    let places: Vec<usize> = bytes
        .windows(name.len())
        .enumerate()
        .filter_map(|(at, window)| (window == name).then_some(at))
        .collect();
    assert!(!places.is_empty(), "{symbol} is no symbol of {library}");
    for at in places {
        // A name that nobody asks for; the linker's tables stay as they are.
        bytes[at + 1] = b'_';
    }
    let name = file.file_name().expect("libraries have names");
    fs::write(into.join(name), bytes).expect("a test's own folder is writable");
}

/// Writes a copy of a library into `into` that carries settings, such as `VERSION=12000`, for
/// processes that do not get their parent's environment: names as in `FAKE_NVRTC_VERSION` without
/// what stands in front, separated by semicolons.
pub(crate) fn with_settings(library: &str, settings: &str, into: &Path) {
    let file = file(library);
    let mut bytes = fs::read(&file).expect("a library that was built is readable");
    let mark = b"fake library's own settings:";
    let room: Vec<u8> = mark.iter().copied().chain([0; 256]).collect();
    let at = bytes.windows(room.len()).position(|window| window == room);
    let at = at.expect("every fake has room for settings") + mark.len();
    assert!(settings.len() < 256, "{settings} is too long");
    bytes[at..at + settings.len()].copy_from_slice(settings.as_bytes());
    let name = file.file_name().expect("libraries have names");
    fs::write(into.join(name), bytes).expect("a test's own folder is writable");
}

/// Where all fakes are, after building those that are older than their sources.
fn built() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("target holds it");
        let folder = target.join("fakes");
        fs::create_dir_all(&folder).expect("target is writable");
        let lock = File::create(folder.join("lock")).expect("target is writable");
        // Other test binaries may build at the same time.
        flock(&lock, FlockOperation::LockExclusive).expect("a file can be locked");
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fakes");
        // A toolkit has them in a folder beside that of its libraries. They hold nothing, because
        // the fake compiler knows half and bfloat16 by itself.
        let headers = folder.join("include");
        fs::create_dir_all(&headers).expect("target is writable");
        for path in HEADERS.map(|name| headers.join(name)).iter().filter(|path| !path.exists()) {
            fs::write(path, "// half and bfloat16\n").expect("target is writable");
        }
        let newest = newest(&sources);
        for (source, name) in LIBRARIES {
            let library = folder.join(source).join(name);
            let made = fs::metadata(&library).and_then(|file| file.modified());
            if made.map_or(true, |made| made < newest) {
                build(&sources.join(format!("{source}.rs")), &library);
            }
        }
        folder
    })
}

/// When anything below a folder was last changed.
fn newest(folder: &Path) -> SystemTime {
    let mut newest = SystemTime::UNIX_EPOCH;
    for entry in fs::read_dir(folder).expect("the sources are readable") {
        let path = entry.expect("the sources are readable").path();
        let changed = if path.is_dir() {
            self::newest(&path)
        } else {
            fs::metadata(&path).and_then(|file| file.modified()).expect("files have times")
        };
        newest = newest.max(changed);
    }
    newest
}

fn build(source: &Path, library: &Path) {
    let folder = library.parent().expect("each has its folder");
    fs::create_dir_all(folder).expect("target is writable");
    let name = library.file_name().expect("libraries have names").to_string_lossy();
    let fresh = folder.join(format!("{name}.new"));
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut command = Command::new(rustc);
    command.args(["--edition", "2024", "--crate-type", "cdylib", "-C", "panic=abort"]);
    command.args(["-C", "opt-level=1", "-C", "debuginfo=0", "-D", "warnings"]);
    command.args(["-W", "unreachable_pub", "-W", "unsafe_op_in_unsafe_fn"]);
    command.arg("-C").arg(format!("link-arg=-Wl,-soname,{name}"));
    command.arg("-o").arg(&fresh).arg(source);
    let output = command.output().unwrap_or_else(|error| panic!("cannot start rustc: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{errors}", source.display());
    fs::rename(&fresh, library).expect("target is writable");
}

/// What one test's processes write down about their use of the fakes.
pub(crate) struct Watch {
    folder: tempfile::TempDir,
    libraries: Vec<PathBuf>,
}

impl Watch {
    /// For processes that find these libraries and no others.
    pub(crate) fn new(libraries: &[&str]) -> Watch {
        Watch::at(libraries.iter().map(|library| folder(library)).collect())
    }

    /// For processes that look for libraries in these folders.
    pub(crate) fn at(libraries: Vec<PathBuf>) -> Watch {
        let folder = tempfile::tempdir().expect("a folder for the test's own files");
        Watch { folder, libraries }
    }

    /// For processes that may write nothing but devices and shared memory.
    pub(crate) fn of_confined(libraries: &[&str]) -> Watch {
        let folder = tempfile::tempdir_in("/dev/shm").expect("a folder in shared memory");
        let libraries = libraries.iter().map(|library| self::folder(library)).collect();
        Watch { folder, libraries }
    }

    /// What the processes need in their environment.
    pub(crate) fn environment(&self) -> Vec<(String, String)> {
        let list = std::env::join_paths(&self.libraries).expect("no colons in these paths");
        let mut variables =
            vec![("LD_LIBRARY_PATH".to_owned(), list.to_string_lossy().into_owned())];
        for name in ["REPORT", "TRACE", "LEDGER"] {
            let path = self.path(name).to_string_lossy().into_owned();
            variables.push((format!("FAKE_GPU_{name}"), path));
        }
        variables
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name.to_lowercase())
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// Broken rules, races and leaks, a line each.
    pub(crate) fn report(&self) -> String {
        self.text("REPORT")
    }

    /// Every call with its arguments and result; what ran; lines of `#` say more.
    pub(crate) fn trace(&self) -> String {
        self.text("TRACE")
    }

    /// What was alive when contexts and processes ended.
    pub(crate) fn ledger(&self) -> String {
        self.text("LEDGER")
    }

    /// How often a call was made.
    pub(crate) fn calls(&self, name: &str) -> usize {
        let is_call = |line: &&str| line.split(' ').next() == Some(name);
        self.trace().lines().filter(is_call).count()
    }

    /// Fails if any rule was broken, anything raced, or anything was left behind.
    pub(crate) fn assert_clean(&self) {
        self.assert_clean_but(&[]);
    }

    /// The same, with classes of findings that the test provokes, such as `arguments`.
    pub(crate) fn assert_clean_but(&self, classes: &[&str]) {
        let report = self.report();
        let is_expected = |line: &str| classes.iter().any(|class| line.starts_with(class));
        let findings: Vec<&str> = report.lines().filter(|line| !is_expected(line)).collect();
        assert!(findings.is_empty(), "the fakes report:\n{}", findings.join("\n"));
    }
}
