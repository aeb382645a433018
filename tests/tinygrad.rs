//! The real client, tinygrad 0.11.0 from PyPI, unmodified, against the server.
//!
//! Each of tinygrad's own test files that [`suite`] names is one test here, and so is each script
//! in `tests/client`. `cargo test` runs a quick part, `cargo test -- --include-ignored` everything.
//! `OUTBOARD_CLIENT_REQUIRED=1` turns "this machine cannot run the client" from a skip into a
//! failure.
//!
//! `OUTBOARD_TEST_ADDRESS=127.0.0.1:6667` runs the client against a server that is already there,
//! for instance the client's own Python server. `OUTBOARD_PYTHON` names the interpreter.
//!
//! Absent: what the server must answer to any one request. These tests tell only whether the
//! client computes what it should.

mod support;

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use support::process::Process;
use support::skip::skip;
use support::{Server, scratch_file};

/// Devices that the client opens on the one server; the files ask for up to six.
const DEVICES: usize = 6;
/// Of the first run, which downloads some 40 MB.
const PREPARE_LIMIT: Duration = Duration::from_secs(600);
/// `prepare.py` says with it that the machine lacks something.
const EXIT_IMPOSSIBLE: i32 = 3;
/// `matmul.py` says with it that the server cannot compile the type.
const EXIT_UNSUPPORTED: i32 = 77;
/// Steps of the training runs.
const STEPS: &str = "100";
/// How far the losses of two devices may be apart after as many steps, relative to the loss. The
/// compilers contract and order float32 operations differently; with clang here and gcc there the
/// curves were within 5e-7.
const LOSS_TOLERANCE: f64 = 1e-4;

/// Tests that cannot pass for a reason that lies outside the server.
const LEFT_OUT: &[(&str, &str)] = &[
    (
        "test_multitensor.py::TestMultiTensor::test_data_parallel_resnet",
        "downloads published weights",
    ),
    (
        "test_multitensor.py::TestMultiTensor::test_data_parallel_resnet_train_step",
        "downloads published weights",
    ),
];

/// What `prepare.py` has made, and the compiler that it has found.
struct Client {
    python: String,
    tests: String,
    cc: Option<String>,
}

/// A finished run of the client.
struct Run {
    status: ExitStatus,
    output: String,
    folder: PathBuf,
    seconds: f64,
}

/// The server under test: ours, for this one test, or one that is already there.
enum Target {
    Ours(Server),
    Running(String),
}

impl Target {
    fn new() -> Target {
        match std::env::var("OUTBOARD_TEST_ADDRESS") {
            Ok(address) => Target::Running(address),
            Err(_) => Target::Ours(Server::start()),
        }
    }

    /// The client's HOST variable.
    fn hosts(&self) -> String {
        match self {
            Target::Ours(server) => format!("{}*{DEVICES}", server.address()),
            Target::Running(address) => format!("{address}*{DEVICES}"),
        }
    }
}

/// Writes a line that `cargo test` shows even when the test passes.
fn announce(line: &str) {
    // Losing a line of the report is no reason to fail.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// The client, or `None` if the machine cannot have it.
fn client(name: &str) -> Option<&'static Client> {
    static CLIENT: OnceLock<Result<Client, String>> = OnceLock::new();
    let required = std::env::var_os("OUTBOARD_CLIENT_REQUIRED").is_some();
    match CLIENT.get_or_init(prepare) {
        Ok(client) => Some(client),
        Err(reason) => {
            assert!(!required, "the client cannot run here: {reason}");
            skip(name, &format!("the client cannot run here: {reason}"));
            None
        }
    }
}

/// Runs `prepare.py` with the first interpreter that it accepts.
fn prepare() -> Result<Client, String> {
    let root = concat!(env!("CARGO_TARGET_TMPDIR"), "/client");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/client/prepare.py");
    let named = std::env::var("OUTBOARD_PYTHON").ok();
    let usual = ["python3", "python3.13", "python3.12", "python3.11", "python3.10"];
    let mut reason = String::from("there is no python3");
    for python in named.as_deref().map_or(usual.to_vec(), |python| vec![python]) {
        if !exists(python) {
            continue;
        }
        let mut command = Command::new(python);
        command.args([script, root]).stdin(Stdio::null());
        let run = run(command, root.into(), "prepare.py", PREPARE_LIMIT);
        let last = run.output.lines().last().unwrap_or_default();
        match run.status.code() {
            Some(0) => return Ok(parse_client(last)),
            Some(EXIT_IMPOSSIBLE) => reason = last.to_owned(),
            _ => panic!("the client's environment could not be made:\n{}", run.output),
        }
    }
    Err(reason)
}

/// Whether it can be run: a version manager's launcher for an absent version is there and fails.
fn exists(python: &str) -> bool {
    let quiet = Stdio::null;
    let mut command = Command::new(python);
    command.arg("--version").stdin(quiet()).stdout(quiet()).stderr(quiet());
    command.status().is_ok_and(|status| status.success())
}

fn parse_client(line: &str) -> Client {
    let found: serde_json::Value = serde_json::from_str(line).expect("prepare.py prints JSON");
    let text = |key: &str| found[key].as_str().map(str::to_owned);
    Client {
        python: text("python").expect("prepare.py names the interpreter"),
        tests: text("tests").expect("prepare.py names the tests"),
        cc: text("cc"),
    }
}

/// Runs `command` to its end, and fails the test, with all output, if that does not come in time.
fn run(mut command: Command, folder: PathBuf, name: &str, limit: Duration) -> Run {
    let log = scratch_file("output");
    let file = File::create(&log).expect("the scratch folder can be written");
    command.stdout(file.try_clone().expect("a file can be shared")).stderr(file);
    let began = Instant::now();
    let status = Process::spawn(&mut command).wait(limit);
    let output = String::from_utf8_lossy(&fs::read(&log).unwrap_or_default()).into_owned();
    // Best effort: the folder belongs to the build and goes with it.
    let _ = fs::remove_file(&log);
    let status = status.unwrap_or_else(|| {
        panic!("{name} did not end within {limit:?} and was killed; so far it wrote:\n{output}")
    });
    Run { status, output, folder, seconds: began.elapsed().as_secs_f64() }
}

impl Client {
    /// Runs the interpreter with `args`, in an empty folder, with nothing of this process's
    /// environment but PATH, and with `env`.
    fn python(&self, name: &str, args: &[&str], env: &[(&str, &str)], seconds: u64) -> Run {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("runs").join(name);
        // It is there when the same test has run before.
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).expect("the scratch folder can be written");
        let standins = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/client/standins");
        let mut command = Command::new(&self.python);
        command.args(args).current_dir(&folder).stdin(Stdio::null()).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("HOME", &folder).env("TMPDIR", &folder);
        command.env("CACHEDB", folder.join("cache.db"));
        // Bytecode of the stand-ins stays out of the source tree.
        let bytecode = concat!(env!("CARGO_TARGET_TMPDIR"), "/client/bytecode");
        command.env("PYTHONPATH", standins).env("PYTHONPYCACHEPREFIX", bytecode);
        command.env("OUTBOARD_OUTCOMES", folder.join("outcomes"));
        // Some results are put together on the client's own CPU device.
        command.envs(self.cc.iter().map(|cc| ("CC", cc)));
        command.envs(env.iter().copied());
        run(command, folder, name, Duration::from_secs(seconds))
    }

    /// Runs a script of `tests/client` on the server.
    fn script(&self, name: &str, args: &[&str], env: &[(&str, &str)], seconds: u64) -> Run {
        let target = Target::new();
        let hosts = target.hosts();
        let env = [env, &[("REMOTE", "1"), ("HOST", &hosts)]].concat();
        let script = script_path(args[0]);
        self.python(name, &[&[script.as_str()], &args[1..]].concat(), &env, seconds)
    }
}

fn script_path(name: &str) -> String {
    format!("{}/tests/client/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Runs a script that must succeed, and reports its last line.
fn script(name: &str, args: &[&str], env: &[(&str, &str)]) {
    let Some(client) = client(name) else { return };
    let run = client.script(name, args, env, 120);
    assert!(run.status.success(), "{name}: {}\n{}", run.status, run.output);
    report_last_line(name, &run);
}

fn report_last_line(name: &str, run: &Run) {
    let last = run.output.lines().last().unwrap_or_default();
    announce(&format!("{name}: {last} ({:.1} s)", run.seconds));
}

/// Runs one of tinygrad's test files; exactly `passing` of its tests must pass, and none may fail.
fn suite(file: &str, passing: usize, limit_seconds: u64) {
    let Some(client) = client(file) else { return };
    let target = Target::new();
    let hosts = target.hosts();
    let path = format!("{}/{file}.py", client.tests);
    let rootdir = format!("--rootdir={}", client.tests);
    let mut args = vec!["-m", "pytest", "-p", "outboard_pytest", "-p", "no:cacheprovider", "-rfE"];
    args.extend(["-c", "/dev/null", &rootdir, &path]);
    let prefix = format!("{file}.py::");
    let left_out: Vec<_> = LEFT_OUT.iter().filter(|(id, _)| id.starts_with(&prefix)).collect();
    let deselect: Vec<_> = left_out.iter().map(|(id, _)| format!("--deselect={id}")).collect();
    args.extend(deselect.iter().map(String::as_str));
    let env = [("REMOTE", "1"), ("HOST", hosts.as_str())];
    let run = client.python(file, &args, &env, limit_seconds);

    let outcomes = fs::read_to_string(run.folder.join("outcomes")).unwrap_or_default();
    let count = |outcome: &str| {
        outcomes.lines().filter(|line| line.split(' ').next() == Some(outcome)).count()
    };
    let mut summary = format!("{file}: {} passed", count("passed"));
    for outcome in ["failed", "error", "skipped", "xfailed", "xpassed"] {
        if count(outcome) > 0 {
            summary += &format!(", {} {outcome}", count(outcome));
        }
    }
    if !left_out.is_empty() {
        summary += &format!(", {} left out", left_out.len());
    }
    announce(&format!("{summary} ({:.1} s)", run.seconds));
    for (id, reason) in left_out {
        announce(&format!("{file}: left out: {id}: {reason}"));
    }
    assert!(run.status.success(), "{summary}; {}\n{}", run.status, run.output);
    assert_eq!(count("passed"), passing, "{summary}\n{}", run.output);
}

#[test]
fn test_tiny_on_the_server_passes() {
    suite("test_tiny", 13, 120);
}

#[test]
fn test_subbuffer_on_the_server_passes() {
    suite("test_subbuffer", 13, 120);
}

#[test]
fn test_graph_on_the_server_passes() {
    suite("test_graph", 10, 300);
}

#[test]
fn test_tensor_variable_on_the_server_passes() {
    suite("test_tensor_variable", 13, 120);
}

#[test]
fn test_gc_on_the_server_passes() {
    suite("test_gc", 7, 120);
}

#[test]
#[ignore = "part of the full client suite"]
fn test_jit_on_the_server_passes() {
    suite("test_jit", 48, 300);
}

#[test]
#[ignore = "part of the full client suite"]
fn test_multitensor_on_the_server_passes() {
    suite("test_multitensor", 91, 900);
}

#[test]
#[ignore = "part of the full client suite"]
fn test_symbolic_jit_on_the_server_passes() {
    suite("test_symbolic_jit", 20, 300);
}

#[test]
#[ignore = "part of the full client suite"]
fn test_symbolic_ops_on_the_server_passes() {
    suite("test_symbolic_ops", 27, 300);
}

#[test]
#[ignore = "part of the full client suite"]
fn test_jit_cases_on_the_server_passes() {
    suite("test_jit_cases", 4, 120);
}

#[test]
#[ignore = "part of the full client suite"]
fn test_const_folding_on_the_server_passes() {
    suite("test_const_folding", 53, 120);
}

#[test]
#[ignore = "part of the full client suite"]
fn test_assign_on_the_server_passes() {
    suite("test_assign", 32, 120);
}

#[test]
#[ignore = "part of the full client suite"]
fn test_setitem_on_the_server_passes() {
    suite("test_setitem", 20, 180);
}

#[test]
#[ignore = "part of the full client suite"]
fn test_pickle_on_the_server_passes() {
    suite("test_pickle", 16, 120);
}

#[test]
fn float16_matmul_equals_numpy() {
    script("float16", &["matmul.py", "float16"], &[]);
}

#[test]
fn bfloat16_matmul_equals_numpy() {
    let Some(client) = client("bfloat16") else { return };
    let run = client.script("bfloat16", &["matmul.py", "bfloat16"], &[], 120);
    if run.status.code() == Some(EXIT_UNSUPPORTED) {
        let reason = run.output.lines().last().unwrap_or_default();
        skip("bfloat16", reason);
        return;
    }
    assert!(run.status.success(), "{}\n{}", run.status, run.output);
    report_last_line("bfloat16", &run);
}

#[test]
fn symbolic_shape_in_a_jitted_function_equals_numpy() {
    script("symbolic", &["symbolic.py"], &[]);
}

#[test]
fn gradients_of_one_step_equal_numpy() {
    script("backward", &["backward.py"], &[]);
}

#[test]
#[ignore = "part of the full client suite"]
fn beam_search_times_candidates_and_result_equals_numpy() {
    let env = [("BEAM", "1"), ("IGNORE_BEAM_CACHE", "1"), ("PARALLEL", "0")];
    script("beam", &["beam.py"], &env);
}

/// The losses that `train.py` has printed.
fn losses(run: &Run) -> Vec<f64> {
    assert!(run.status.success(), "{}\n{}", run.status, run.output);
    let last = run.output.lines().last().unwrap_or_default();
    serde_json::from_str(last).expect("train.py prints its losses last")
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

#[test]
#[ignore = "part of the full client suite"]
fn training_loss_falls_and_equals_the_local_cpu_device() {
    let Some(client) = client("training") else { return };
    let run = client.script("training", &["train.py", STEPS], &[], 300);
    let remote = losses(&run);
    let (first, last) = (mean(&remote[..10]), mean(&remote[remote.len() - 10..]));
    assert!(last < first / 2.0, "mean loss of ten steps: {first} at first, {last} at last");
    announce(&format!(
        "training: {} steps, mean loss of ten from {first:.3} to {last:.3} ({:.1} s)",
        remote.len(),
        run.seconds
    ));
    if client.cc.is_none() {
        skip("training", "no compiler for the local CPU device to compare with");
        return;
    }
    let path = script_path("train.py");
    let local = losses(&client.python("training-local", &[&path, STEPS], &[("CPU", "1")], 300));
    assert_eq!(remote.len(), local.len());
    let apart = remote.iter().zip(&local).map(|(a, b)| (a - b).abs() / b.abs());
    let worst = apart.fold(0.0, f64::max);
    announce(&format!("training: at most {worst:.1e} from the local CPU device, relative"));
    assert!(worst <= LOSS_TOLERANCE, "{worst} apart:\n{remote:?}\n{local:?}");
}
