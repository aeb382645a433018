//! From source text to numbers: real kernels through the compile service and the loader, hostile
//! sources against the sandbox, and the cache on disk.
//!
//! What needs clang says `SKIPPED:` where there is none. Loader and helper functions are also
//! tested with code for plain x86-64, where compilers call more of them than on this CPU.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Wake, Waker};
use std::time::{Duration, Instant};

use outboard::compile::{Asker, CompileError, CompileResult, Family, Service, Target, Ticket};
use outboard::config::{CacheDir, CompileConfig, CompilerChoice};

mod kernels;
#[path = "support/skip.rs"]
mod skip;

use skip::skip;

/// A source of one kilobyte that keeps every compiler busy for minutes: a copy of 2^28 members.
fn endless_source(salt: usize) -> Arc<[u8]> {
    let mut source = format!("typedef int t0; enum {{ salt = {salt} }};\n");
    for level in 0..28 {
        source += &format!("typedef struct {{ t{level} a, b; }} t{};\n", level + 1);
    }
    source += "void f(t28* restrict a, t28* restrict b) { *a = *b; }\n";
    source.into_bytes().into()
}

fn small_source(salt: usize) -> Arc<[u8]> {
    format!("void f(int* a) {{ *a = {salt}; }}\n").into_bytes().into()
}

fn config(compiler: CompilerChoice) -> CompileConfig {
    CompileConfig { compiler, cache_dir: CacheDir::Off, ..CompileConfig::default() }
}

fn gcc() -> CompileConfig {
    config(CompilerChoice::Gcc)
}

fn cached(dir: &Path) -> CompileConfig {
    CompileConfig { cache_dir: CacheDir::At(dir.to_owned()), ..gcc() }
}

/// One service for each family that this machine has.
fn services() -> Vec<Service> {
    static SERVICES: OnceLock<[Service; 2]> = OnceLock::new();
    let services =
        SERVICES.get_or_init(|| [Service::new(gcc()), Service::new(config(CompilerChoice::Clang))]);
    let mut services = services.to_vec();
    if let Err(error) = services[1].toolchain() {
        skip("the half that needs clang", &error.to_string());
        services.pop();
    }
    services
}

fn compile(service: &Service, source: &str) -> CompileResult {
    service.compile(&Target::Cpu, source.as_bytes().into()).wait()
}

/// Waits for what another thread is about to do.
fn until(what: &str, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < Duration::from_secs(60), "never happened: {what}");
        std::thread::yield_now();
    }
}

#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

// Tickets and the queue.

#[test]
fn ticket_done_wakes_whoever_asked_before_and_after() {
    let service = Service::new(gcc());
    let wakes = Arc::new(Wakes::default());
    let waker = Waker::from(Arc::clone(&wakes));
    let ticket = service.compile(&Target::Cpu, small_source(1));
    ticket.wake_on_done(&waker);
    until("a wake", || wakes.0.load(Ordering::SeqCst) == 1);
    assert!(matches!(ticket.poll(), Some(Ok(_))));
    ticket.wake_on_done(&waker);
    assert_eq!(wakes.0.load(Ordering::SeqCst), 2);
    assert!(matches!(Ticket::ready(Err(CompileError::Closed)).poll(), Some(Err(_))));
}

#[test]
fn source_beyond_full_queue_is_busy_and_source_in_flight_is_shared() {
    let config =
        CompileConfig { threads: 1, queue_max: 1, time_max: Duration::from_secs(3), ..gcc() };
    let service = Service::new(config);
    let running = service.compile(&Target::Cpu, endless_source(1));
    // The thread takes the first source from the queue at a time of its own.
    let busy = || matches!(service.compile(&Target::Cpu, small_source(1)).poll(), Some(Err(_)));
    until("room in the queue", || !busy());
    let waiting = service.compile(&Target::Cpu, small_source(2));
    assert_eq!(waiting.poll(), None);
    let error = CompileError::Busy { queue_max: 1 };
    assert_eq!(service.compile(&Target::Cpu, small_source(3)).poll(), Some(Err(error)));
    assert_eq!(
        service.compile(&Target::Cpu, small_source(2)).poll(),
        None,
        "the same source is no second job"
    );
    let limit = Duration::from_secs(3);
    assert_eq!(running.wait(), Err(CompileError::Timeout { limit }));
    assert!(waiting.wait().is_ok());
}

#[test]
fn long_sources_of_one_client_do_not_hold_up_another() {
    let time_max = Duration::from_secs(4);
    let service = Service::new(CompileConfig { threads: 1, time_max, ..gcc() });
    service.toolchain().unwrap();
    let greedy = Asker { client: 1, shard: 0, connection: 0 };
    let tickets: Vec<Ticket> = (0..3)
        .map(|salt| service.compile_for(greedy, &Target::Cpu, endless_source(20 + salt)))
        .collect();
    let shared = service.compile_for(greedy, &Target::Cpu, small_source(20));
    for (client, connection, salt) in [(1, 1, 20), (2, 0, 21)] {
        let asker = Asker { client, shard: 0, connection };
        let ticket = service.compile_for(asker, &Target::Cpu, small_source(salt));
        assert!(ticket.wait().is_ok());
    }
    assert!(shared.wait().is_ok(), "somebody else's turn came first");
    assert_eq!(tickets[2].poll(), None, "there is much to do for the greedy one");
}

#[test]
fn ticket_dropped_before_its_turn_is_never_compiled() {
    let dir = tempfile::tempdir().unwrap();
    let time_max = Duration::from_secs(3);
    let service = Service::new(CompileConfig { threads: 1, time_max, ..cached(dir.path()) });
    let running = service.compile(&Target::Cpu, endless_source(2));
    let (first, second) = (
        service.compile(&Target::Cpu, small_source(1)),
        service.compile(&Target::Cpu, small_source(2)),
    );
    let copy = first.clone();
    drop((first, second));
    assert!(running.wait().is_err());
    assert!(copy.wait().is_ok());
    // The queue is served in order, so the dropped one has been passed over by now.
    assert!(service.compile(&Target::Cpu, small_source(3)).wait().is_ok());
    assert_eq!(entries(dir.path()).len(), 2);
}

#[test]
fn service_dropped_closes_what_waits() {
    let time_max = Duration::from_secs(3);
    let service = Service::new(CompileConfig { threads: 1, time_max, ..gcc() });
    let tickets: Vec<Ticket> =
        (0..4).map(|i| service.compile(&Target::Cpu, endless_source(10 + i))).collect();
    drop(service);
    let closed = tickets.iter().filter(|t| t.wait() == Err(CompileError::Closed)).count();
    assert!(closed >= 3, "{closed}");
}

// Hostile sources.

#[test]
fn source_that_reads_files_is_refused_before_the_compiler() {
    for service in services() {
        for source in [
            "#include \"/etc/passwd\"\n",
            "  %:include \"/etc/passwd\"\n",
            "??=include \"/etc/passwd\"\n",
            "#inc\\\nlude \"/etc/passwd\"\n",
            "const char d[] = {\n#embed \"/etc/passwd\"\n};\n",
            "int x = __has_include(\"/etc/passwd\");\n",
            "__asm__(\".incbin \\\"/etc/passwd\\\"\");\n",
            "asm(\".include 'x'\");\n",
            "_Pragma(\"clang __debug crash\") int x;\n",
            "void f(void) {}\0",
        ] {
            let result = compile(&service, source);
            assert!(matches!(result, Err(CompileError::Refused { .. })), "{source} {result:?}");
        }
        let giant = format!("void f(void) {{ }}{}", " ".repeat(4 << 20));
        let result = compile(&service, &giant);
        assert!(matches!(result, Err(CompileError::SourceTooLong { .. })), "{result:?}");
    }
}

#[test]
fn source_with_error_is_rejected_with_its_place_and_no_path_of_the_server() {
    for service in services() {
        let result = compile(&service, "void f(int* a) {\n  *a = b;\n}\n");
        let Err(CompileError::Rejected { message }) = result else { panic!("{result:?}") };
        assert!(message.starts_with("<stdin>:2:8: error: "), "{message}");
        assert!(!message.contains("/usr"), "{message}");
        // Ten thousand errors are as short as a few.
        let many = "void f(int* a) {\n".to_owned() + &"  *a = b + c;\n".repeat(10_000) + "}\n";
        let Err(CompileError::Rejected { message }) = compile(&service, &many) else { panic!() };
        assert!(message.len() <= CompileConfig::default().message_bytes_max + 3);
    }
}

#[test]
fn source_that_takes_for_ever_is_killed_with_all_its_processes() {
    let time_max = Duration::from_secs(3);
    for service in services() {
        let family = service.toolchain().unwrap().family;
        let choice = match family {
            Family::Clang => CompilerChoice::Clang,
            Family::Gcc => CompilerChoice::Gcc,
        };
        let service = Service::new(CompileConfig { time_max, threads: 1, ..config(choice) });
        let ticket = service.compile(&Target::Cpu, endless_source(3));
        let result = ticket.wait();
        assert_eq!(result, Err(CompileError::Timeout { limit: time_max }), "{family:?}");
        // The next source finds the thread and the machine in order.
        assert!(compile(&service, "void f(void) { }\n").is_ok());
    }
}

#[test]
fn source_with_giant_object_fails_and_costs_bounded_memory() {
    let source = "const int t[1 << 26] = { [0 ... (1 << 26) - 1] = 7 };\n\
        void f(int* a, const int i) { *a = t[i]; }\n";
    for service in services() {
        let toolchain = service.toolchain().unwrap();
        let config = CompileConfig {
            compiler: CompilerChoice::Path(toolchain.path.clone()),
            object_bytes_max: 1 << 20,
            time_max: Duration::from_secs(20),
            ..gcc()
        };
        let result = compile(&Service::new(config), source);
        assert!(result.is_err(), "{:?} {}", toolchain.family, result.unwrap().len());
    }
}

#[test]
fn source_that_crashes_the_compiler_fails_cleanly() {
    for service in services() {
        let deep = format!("void f(int* a) {{ *a = {}*a; }}\n", "- ".repeat(200_000));
        let nested =
            format!("void f(int* a) {{ *a = {}1{}; }}\n", "(".repeat(99_999), ")".repeat(99_999));
        for source in [deep, nested] {
            // Some compilers manage the first. What matters is an answer without a path in it.
            if let Err(error) = compile(&service, &source) {
                assert!(!error.to_string().contains("/usr"), "{error}");
            }
        }
        assert!(compile(&service, "void f(void) { }\n").is_ok());
    }
}

/// Where nobody has made the links that systems have in `/dev`, as in the smallest of containers.
#[test]
fn gcc_compiles_where_dev_has_no_stdout() {
    let new_dev = tempfile::tempdir().unwrap();
    let script = "set -e
        mount -t tmpfs none \"$1\"
        for name in null urandom zero; do
            : >\"$1/$name\"
            mount --bind /dev/$name \"$1/$name\"
        done
        mount --rbind \"$1\" /dev
        echo mounted
        exec \"$2\" --listen 127.0.0.1:0 --device cpu --no-cache \
            --compiler \"$(command -v gcc)\"";
    let mut server = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"])
        .args([new_dev.path(), Path::new(env!("CARGO_BIN_EXE_outboard"))])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(server.stdout.take().unwrap()).lines();
    let lines: Vec<String> = lines.map_while(Result::ok).take(2).collect();
    server.kill().unwrap();
    server.wait().unwrap();
    match &lines[..] {
        [] => skip("all of it", "needs unshare, and a user who may make name spaces"),
        lines => assert!(lines.last().unwrap().contains("listening on"), "{lines:?}"),
    }
}

#[test]
fn bfloat16_without_a_compiler_for_it_names_the_remedy() {
    let service = Service::new(gcc());
    let source = include_str!("kernels/bfloat16_elementwise.c");
    if service.toolchain().unwrap().bfloat16 {
        skip("bfloat16 without a compiler for it", "this gcc knows it");
        return;
    }
    let error = compile(&service, source).unwrap_err().to_string();
    assert!(error.contains("bfloat16") && error.contains("clang 17 or later"), "{error}");
}

// The cache on disk.

fn entries(dir: &Path) -> BTreeSet<PathBuf> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// The only entry of a directory.
fn entry(dir: &Path) -> PathBuf {
    let entries = entries(dir);
    assert_eq!(entries.len(), 1, "{entries:?}");
    entries.into_iter().next().unwrap()
}

/// An entry with another object for the same key, as the server would have written it.
fn planted(entry: &[u8], object: &[u8]) -> Vec<u8> {
    let (head, _) = entry.split_at(16 + 32);
    let length = u64::try_from(object.len()).unwrap().to_le_bytes();
    [head, &length, object, blake3::hash(object).as_bytes()].concat()
}

#[test]
fn cache_entry_is_used_by_the_next_server_and_private() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("a/b");
    let first = Service::new(cached(&cache)).compile(&Target::Cpu, small_source(1)).wait().unwrap();
    let path = entry(&cache);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(&cache).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(
        Service::new(cached(&cache)).compile(&Target::Cpu, small_source(1)).wait().unwrap(),
        first
    );
    // Only a server that reads the entry gives back what was planted there.
    fs::write(&path, planted(&fs::read(&path).unwrap(), b"planted")).unwrap();
    let found = Service::new(cached(&cache)).compile(&Target::Cpu, small_source(1)).wait().unwrap();
    assert_eq!(&found[..], b"planted");
}

#[test]
fn cache_entry_cut_or_altered_is_a_miss_and_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let object =
        Service::new(cached(dir.path())).compile(&Target::Cpu, small_source(1)).wait().unwrap();
    let path = entry(dir.path());
    let good = fs::read(&path).unwrap();
    let mut altered = vec![good[..good.len() - 1].to_vec(), good[..40].to_vec(), Vec::new()];
    altered.push([&good[..], b"x"].concat());
    altered.extend([0, 16, 48, 56, good.len() / 2, good.len() - 1].map(|at| {
        let mut flipped = good.clone();
        flipped[at] ^= 0x10;
        flipped
    }));
    for entry in altered {
        fs::write(&path, entry).unwrap();
        let found =
            Service::new(cached(dir.path())).compile(&Target::Cpu, small_source(1)).wait().unwrap();
        assert_eq!(found, object);
        assert_eq!(fs::read(&path).unwrap(), good);
    }
}

#[test]
fn cache_past_its_limit_loses_what_was_not_used_longest() {
    let dir = tempfile::tempdir().unwrap();
    let old = |path: &Path, seconds| {
        let time = std::time::SystemTime::now() - Duration::from_secs(seconds);
        fs::File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
    };
    let service = |cache_bytes_max| {
        Service::new(CompileConfig { cache_bytes_max, threads: 1, ..cached(dir.path()) })
    };
    let mut paths = Vec::new();
    for salt in 0..4 {
        service(1 << 30).compile(&Target::Cpu, small_source(salt)).wait().unwrap();
        let new = entries(dir.path()).into_iter().find(|p| !paths.contains(p)).unwrap();
        old(&new, 1000 - u64::try_from(salt).unwrap());
        paths.push(new);
    }
    // A hit makes the oldest the newest.
    service(1 << 30).compile(&Target::Cpu, small_source(0)).wait().unwrap();
    // Five entries of one block each, room for four, and a tenth is freed on top: three stay.
    service(4 * 4096).compile(&Target::Cpu, small_source(4)).wait().unwrap();
    let left = entries(dir.path());
    assert_eq!(left.len(), 3, "{left:?}");
    assert!(left.contains(&paths[0]) && left.contains(&paths[3]));
    assert!(!left.contains(&paths[1]) && !left.contains(&paths[2]));
}

#[test]
fn cache_shared_by_writers_at_once_holds_whole_entries_only() {
    let dir = tempfile::tempdir().unwrap();
    let services: Vec<Service> = (0..3).map(|_| Service::new(cached(dir.path()))).collect();
    let tickets: Vec<Vec<Ticket>> = services
        .iter()
        .map(|service| {
            (0..6).map(|salt| service.compile(&Target::Cpu, small_source(salt))).collect()
        })
        .collect();
    for salt in 0..6 {
        let objects: Vec<_> = tickets.iter().map(|t| t[salt].wait().unwrap()).collect();
        assert!(objects.iter().all(|object| *object == objects[0]));
    }
    let paths = entries(dir.path());
    assert_eq!(paths.len(), 6, "{paths:?}");
    for path in paths {
        let entry = fs::read(path).unwrap();
        let object = &entry[56..entry.len() - 32];
        assert_eq!(blake3::hash(object).as_bytes(), &entry[entry.len() - 32..]);
    }
}

#[test]
fn cache_that_cannot_be_used_fails_no_compile() {
    // Gone after it was opened, as good as a full disk.
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("cache");
    let service = Service::new(cached(&cache));
    assert!(service.compile(&Target::Cpu, small_source(1)).wait().is_ok());
    fs::remove_dir_all(&cache).unwrap();
    fs::write(&cache, "a file").unwrap();
    assert!(service.compile(&Target::Cpu, small_source(2)).wait().is_ok());
    // A file from the start.
    assert!(Service::new(cached(&cache)).compile(&Target::Cpu, small_source(1)).wait().is_ok());
    // Others could write code into it.
    let open = dir.path().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    assert!(Service::new(cached(&open)).compile(&Target::Cpu, small_source(1)).wait().is_ok());
    assert!(entries(&open).is_empty());
}

/// gcc in a directory of its own, with the parts of the one that is installed.
fn own_gcc(dir: &Path) -> Option<PathBuf> {
    let part = Command::new("gcc").arg("-print-prog-name=cc1").output().ok()?.stdout;
    let part = PathBuf::from(String::from_utf8(part).ok()?.trim_end());
    let parts = part.ancestors().find(|dir| dir.file_name().is_some_and(|name| name == "gcc"))?;
    fs::create_dir_all(dir.join("lib")).ok()?;
    std::os::unix::fs::symlink(parts, dir.join("lib/gcc")).ok()?;
    let own = dir.join("bin/gcc");
    fs::create_dir(dir.join("bin")).ok()?;
    fs::copy(fs::canonicalize(which("gcc")?).ok()?, &own).ok()?;
    let parts = Command::new(&own).arg("-print-prog-name=cc1").output().ok()?.stdout;
    parts.starts_with(b"/").then_some(own)
}

fn which(name: &str) -> Option<PathBuf> {
    let dirs = std::env::var_os("PATH")?;
    std::env::split_paths(&dirs).map(|dir| dir.join(name)).find(|path| path.is_file())
}

/// Puts a file in the place of another, as an installation does.
fn replace(program: &Path, with: &Path) {
    let fresh = program.with_extension("fresh");
    fs::copy(with, &fresh).unwrap();
    fs::rename(&fresh, program).unwrap();
}

#[test]
fn compiler_that_is_replaced_while_the_server_runs_is_found_anew() {
    let dir = tempfile::tempdir().unwrap();
    let Some(own) = own_gcc(dir.path()) else {
        return skip("a compiler that is replaced", "gcc does not work from another directory");
    };
    let none = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let kept = own.with_extension("kept");
    fs::copy(&own, &kept).unwrap();
    let service = Service::new(config(CompilerChoice::Path(own.clone())));
    let compiled = |salt| service.compile(&Target::Cpu, small_source(salt)).wait();
    compiled(1).unwrap();
    replace(&own, &kept);
    compiled(2).unwrap();
    // One that is not whole yet.
    replace(&own, &none);
    assert_eq!(compiled(3), Err(CompileError::NoCompiler));
    fs::remove_file(&own).unwrap();
    assert_eq!(compiled(4), Err(CompileError::NoCompiler));
    fs::copy(&kept, &own).unwrap();
    compiled(5).unwrap();
}

// Figures, for people: `cargo test --release --test compile -- --ignored --nocapture figures`.

#[test]
#[ignore = "prints figures, checks nothing"]
fn figures() {
    for service in services() {
        let toolchain = service.toolchain().unwrap();
        eprintln!("{}", toolchain.version);
        for (name, source) in kernels::SOURCES {
            let best = |mut run: Box<dyn FnMut() + '_>| {
                let time = |_| {
                    let started = Instant::now();
                    run();
                    started.elapsed()
                };
                (0..10).map(time).min().unwrap()
            };
            let config = || config(CompilerChoice::Path(toolchain.path.clone()));
            let service = Service::new(CompileConfig { cache_memory_bytes_max: 0, ..config() });
            let Ok(object) = compile(&service, source) else { continue };
            let sandboxed = best(Box::new(|| drop(compile(&service, source))));
            let plain = best(Box::new(|| {
                kernels::compile_plain(toolchain, "native", source).unwrap();
            }));
            let dir = tempfile::tempdir().unwrap();
            let at = CacheDir::At(dir.path().to_owned());
            let disk = CompileConfig { cache_dir: at, cache_memory_bytes_max: 0, ..config() };
            let disk = Service::new(disk);
            drop(compile(&disk, source));
            let disk_hit = best(Box::new(|| drop(compile(&disk, source))));
            let memory = Service::new(config());
            drop(compile(&memory, source));
            let memory_hit = best(Box::new(|| drop(compile(&memory, source))));
            let load = best(Box::new(|| drop(kernels::load(&object))));
            eprintln!(
                "{name}: plain {plain:?}, sandboxed {sandboxed:?}, disk hit {disk_hit:?}, memory \
                 hit {memory_hit:?}, load {load:?}"
            );
        }
    }
}

/// The compilers of this machine, started without a sandbox and with any flags.
fn run_plain(command: &mut Command, source: &str) -> Option<()> {
    use std::io::Write;
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()?;
    child.stdin.take()?.write_all(source.as_bytes()).ok()?;
    child.wait().ok()?.success().then_some(())
}
