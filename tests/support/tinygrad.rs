//! The stock client, tinygrad 0.11.0 from PyPI, unmodified: its environment, its scripts, its own
//! test files.
//!
//! `OUTBOARD_CLIENT_REQUIRED=1` turns "this machine cannot run the client" from a skip into a
//! failure; `OUTBOARD_PYTHON` names the interpreter. The environment is made by
//! `tests/client/prepare.py`, which takes packages from where pip is told to (`PIP_NO_INDEX`,
//! `PIP_FIND_LINKS`).
//!
//! Absent: which server it talks to, and what it must compute.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::process::Process;
use super::skip::skip;
use super::{first_line, place, scratch_file};

/// Of the first run, which downloads some 40 MB.
const PREPARE_LIMIT: Duration = Duration::from_secs(600);
/// `prepare.py` says with it that the machine lacks something.
const EXIT_IMPOSSIBLE: i32 = 3;

/// A test, as `file.py::class::test`, and why it is not run.
pub(crate) type LeftOut<'a> = (&'a str, &'a str);

/// Tests that cannot pass for a reason that lies outside the server.
const LEFT_OUT: &[LeftOut<'_>] = &[
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
pub(crate) struct Client {
    python: String,
    tests: String,
    pub(crate) cc: Option<String>,
}

/// The client's own Python server, on a port of its choice.
pub(crate) struct Reference {
    _process: Process,
    pub(crate) address: String,
}

/// A finished run of the client.
pub(crate) struct Run {
    pub(crate) status: ExitStatus,
    pub(crate) output: String,
    pub(crate) seconds: f64,
    folder: PathBuf,
}

/// How the tests of one of tinygrad's own files came out.
pub(crate) struct Suite {
    pub(crate) run: Run,
    pub(crate) summary: String,
    /// Pairs of outcome and test.
    outcomes: Vec<(String, String)>,
}

impl Suite {
    /// How many tests came out so.
    pub(crate) fn count(&self, outcome: &str) -> usize {
        self.outcomes.iter().filter(|(found, _)| found == outcome).count()
    }

    /// The tests that failed.
    pub(crate) fn failed(&self) -> impl Iterator<Item = &str> {
        let bad = |outcome: &str| matches!(outcome, "failed" | "error");
        self.outcomes.iter().filter(move |(found, _)| bad(found)).map(|(_, test)| test.as_str())
    }
}

/// Writes a line that `cargo test` shows even when the test passes.
pub(crate) fn announce(line: &str) {
    // Losing a line of the report is no reason to fail.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// The client, or `None` if the machine cannot have it.
pub(crate) fn client(name: &str) -> Option<&'static Client> {
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

/// A script of `tests/client`.
pub(crate) fn script_path(name: &str) -> String {
    place::sources().join("tests/client").join(name).to_string_lossy().into_owned()
}

/// Runs `prepare.py` with the first interpreter that it accepts.
fn prepare() -> Result<Client, String> {
    let root = place::scratch().join("client");
    let script = script_path("prepare.py");
    let named = std::env::var("OUTBOARD_PYTHON").ok();
    let usual = ["python3", "python3.13", "python3.12", "python3.11", "python3.10"];
    let mut reason = String::from("there is no python3");
    for python in named.as_deref().map_or(usual.to_vec(), |python| vec![python]) {
        if !exists(python) {
            continue;
        }
        let mut command = Command::new(python);
        command.arg(&script).arg(&root).stdin(Stdio::null());
        let run = run(command, root.clone(), "prepare.py", PREPARE_LIMIT);
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
    pub(crate) fn python(
        &self,
        name: &str,
        args: &[&str],
        env: &[(&str, &str)],
        seconds: u64,
    ) -> Run {
        let folder = place::scratch().join("runs").join(name);
        // It is there when the same test has run before.
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).expect("the scratch folder can be written");
        let mut command = Command::new(&self.python);
        command.args(args).current_dir(&folder).stdin(Stdio::null()).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("HOME", &folder).env("TMPDIR", &folder);
        command.env("CACHEDB", folder.join("cache.db"));
        command.env("PYTHONPATH", script_path("standins"));
        // Bytecode of the stand-ins stays out of the source tree.
        command.env("PYTHONPYCACHEPREFIX", place::scratch().join("client/bytecode"));
        command.env("OUTBOARD_OUTCOMES", folder.join("outcomes"));
        // Some results are put together on the client's own CPU device.
        command.envs(self.cc.iter().map(|cc| ("CC", cc)));
        command.envs(env.iter().copied());
        run(command, folder, name, Duration::from_secs(seconds))
    }

    /// Starts the client's own server, if it can compile here.
    pub(crate) fn reference(&self) -> Option<Reference> {
        let folder = place::scratch().join("runs/reference");
        fs::create_dir_all(&folder).expect("the scratch folder can be written");
        let script = place::sources().join("perf/reference.py");
        let mut command = Command::new(&self.python);
        command.arg(script).current_dir(&folder).stdin(Stdio::null()).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("HOME", &folder).env("TMPDIR", &folder).env("CACHELEVEL", "0");
        command.env("CC", self.cc.as_ref()?);
        let log = File::create(folder.join("log")).expect("the scratch folder can be written");
        command.stdout(Stdio::piped()).stderr(log);
        let mut process = Process::spawn(&mut command);
        let line = first_line(process.stdout()?)?;
        let address = line.strip_prefix("reference: listening on ")?.to_owned();
        Some(Reference { _process: process, address })
    }

    /// Runs a script of `tests/client`; `hosts` is the client's HOST variable.
    pub(crate) fn script(
        &self,
        name: &str,
        args: &[&str],
        hosts: &str,
        env: &[(&str, &str)],
        seconds: u64,
    ) -> Run {
        let env = [env, &[("REMOTE", "1"), ("HOST", hosts)]].concat();
        let script = script_path(args[0]);
        self.python(name, &[&[script.as_str()], &args[1..]].concat(), &env, seconds)
    }

    /// Runs one of tinygrad's test files; `name` is that of the run.
    pub(crate) fn suite(
        &self,
        name: &str,
        file: &str,
        env: &[(&str, &str)],
        limit_seconds: u64,
    ) -> Suite {
        self.suite_without(name, file, &[], env, limit_seconds)
    }

    /// As [`Self::suite`], without some of the tests.
    pub(crate) fn suite_without(
        &self,
        name: &str,
        file: &str,
        left_out: &[LeftOut<'_>],
        env: &[(&str, &str)],
        limit_seconds: u64,
    ) -> Suite {
        let path = format!("{}/{file}.py", self.tests);
        let rootdir = format!("--rootdir={}", self.tests);
        let mut args = vec!["-m", "pytest", "-p", "outboard_pytest", "-p", "no:cacheprovider"];
        args.extend(["-rfE", "-c", "/dev/null", &rootdir, &path]);
        let prefix = format!("{file}.py::");
        let all = LEFT_OUT.iter().chain(left_out);
        let left_out: Vec<_> = all.filter(|(id, _)| id.starts_with(&prefix)).collect();
        let deselect: Vec<_> = left_out.iter().map(|(id, _)| format!("--deselect={id}")).collect();
        args.extend(deselect.iter().map(String::as_str));
        let run = self.python(name, &args, env, limit_seconds);

        let outcomes = fs::read_to_string(run.folder.join("outcomes")).unwrap_or_default();
        let pairs = outcomes.lines().filter_map(|line| line.split_once(' '));
        let outcomes = pairs.map(|(outcome, test)| (outcome.to_owned(), test.to_owned())).collect();
        let mut suite = Suite { run, summary: String::new(), outcomes };
        let mut summary = format!("{name}: {} passed", suite.count("passed"));
        for outcome in ["failed", "error", "skipped", "xfailed", "xpassed"] {
            if suite.count(outcome) > 0 {
                summary += &format!(", {} {outcome}", suite.count(outcome));
            }
        }
        if !left_out.is_empty() {
            summary += &format!(", {} left out", left_out.len());
        }
        announce(&format!("{summary} ({:.1} s)", suite.run.seconds));
        for (id, reason) in left_out {
            announce(&format!("{name}: left out: {id}: {reason}"));
        }
        suite.summary = summary;
        suite
    }
}

/// Reports the last line of a run that must have been a success.
pub(crate) fn report_last_line(name: &str, run: &Run) {
    assert!(run.status.success(), "{name}: {}\n{}", run.status, run.output);
    let last = run.output.lines().last().unwrap_or_default();
    announce(&format!("{name}: {last} ({:.1} s)", run.seconds));
}
