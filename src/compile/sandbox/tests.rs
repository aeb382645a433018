//! bash stands in for a compiler that works for an attacker: it reads, writes, connects, kills and
//! forks without starting another program.

use super::*;

const BASH: &str = "/bin/bash";

fn rights(processes: bool) -> Rights {
    let read = ["/usr/lib", "/lib", "/lib64", "/usr/lib64", "/etc/ld.so.cache"];
    let execute = [BASH, "/lib64/ld-linux-x86-64.so.2", "/lib/ld-musl-x86_64.so.1"];
    Rights {
        read: read.map(PathBuf::from).to_vec(),
        execute: execute.map(PathBuf::from).to_vec(),
        write: Vec::new(),
        processes: if processes { Processes::Children } else { Processes::None },
        memory_bytes_max: 1 << 30,
        cpu_seconds_max: 30,
        output_bytes_max: 1 << 16,
        time_max: Duration::from_secs(30),
    }
}

/// Runs a script; `None`, loudly, where there is no bash.
fn run(sandbox: &Sandbox, script: &str) -> Option<(End, String)> {
    if !std::path::Path::new(BASH).exists() {
        skipped(&format!("needs {BASH}"));
        return None;
    }
    let program = CString::new(BASH).unwrap();
    let args = [c"-c".to_owned(), CString::new(script).unwrap()];
    let finished = sandbox.run(&program, &args, &[c"LC_ALL=C"], b"the input\n").unwrap();
    Some((finished.end, String::from_utf8_lossy(&finished.output).into_owned()))
}

/// What a script prints with all walls, and what it prints without one of them.
fn check(script: &str, open: impl FnOnce(&mut Sandbox), inside: &str, outside: &str) {
    let mut sandbox = Sandbox::new(&rights(true)).unwrap();
    if sandbox.landlock.is_none() || sandbox.seccomp.is_none() {
        skipped("this kernel lacks landlock or seccomp");
        return;
    }
    let Some((_, found)) = run(&sandbox, script) else { return };
    assert_eq!(found.trim_end(), inside, "inside: {script}");
    open(&mut sandbox);
    let (_, found) = run(&sandbox, script).unwrap();
    assert_eq!(found.trim_end(), outside, "outside: {script}");
}

#[test]
fn program_gets_its_input_and_nothing_of_the_environment() {
    let sandbox = Sandbox::new(&rights(false)).unwrap();
    let script = "read line; echo \"$line\"; pwd; echo \"[$HOME$USER$CARGO]\"; exit 3";
    let Some(result) = run(&sandbox, script) else { return };
    assert_eq!(result, (End::Exit(3), "the input\n/\n[]\n".to_owned()));
}

#[test]
fn program_reads_no_file_outside_its_rights() {
    let script = "read line < /etc/passwd && echo read || echo denied";
    check(script, |sandbox| sandbox.landlock = None, "denied", "read");
}

#[test]
fn program_writes_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("written");
    let script = format!("echo x > {} && echo written || echo denied", path.display());
    check(&script, |sandbox| sandbox.landlock = None, "denied", "written");
}

#[test]
fn program_starts_no_other_program() {
    let script = "/bin/cat /dev/null && echo started || echo denied";
    check(script, |sandbox| sandbox.landlock = None, "denied", "started");
}

#[test]
fn program_connects_to_nothing() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let script = format!("exec 3<>/dev/tcp/127.0.0.1/{port} && echo connected || echo denied");
    let open = |sandbox: &mut Sandbox| (sandbox.landlock, sandbox.seccomp) = (None, None);
    check(&script, open, "denied", "connected");
}

#[test]
fn program_signals_no_other_process() {
    let script = format!("kill -0 {} && echo signalled || echo denied", std::process::id());
    let open = |sandbox: &mut Sandbox| (sandbox.landlock, sandbox.seccomp) = (None, None);
    check(&script, open, "denied", "signalled");
}

#[test]
fn program_has_no_power_of_root() {
    let mut sandbox = Sandbox::new(&rights(false)).unwrap();
    // The rules would hide the file that tells.
    sandbox.landlock = None;
    let script = "while read name value; do [ \"$name\" = CapEff: ] && echo $value; done \
        < /proc/self/status; exit 0";
    let Some(result) = run(&sandbox, script) else { return };
    assert_eq!(result, (End::Exit(0), "0000000000000000\n".to_owned()));
}

#[test]
fn program_without_right_to_processes_makes_none() {
    for (processes, expected) in [(false, "0"), (true, "1")] {
        let sandbox = Sandbox::new(&rights(processes)).unwrap();
        if sandbox.seccomp.is_none() {
            skipped("this kernel lacks seccomp");
            return;
        }
        let Some((_, found)) = run(&sandbox, "(echo child); true") else { return };
        assert_eq!(found.matches("child").count().to_string(), expected);
    }
}

#[test]
fn program_past_its_output_limit_is_stopped() {
    let sandbox = Sandbox::new(&rights(false)).unwrap();
    let Some((end, output)) = run(&sandbox, "while :; do echo 0123456789; done") else { return };
    assert_eq!((end, output.len()), (End::Signal(libc::SIGXFSZ), 1 << 16));
}

#[test]
fn program_past_its_time_limit_is_killed_with_its_children() {
    let rights = Rights { time_max: Duration::from_secs(1), ..rights(true) };
    let sandbox = Sandbox::new(&rights).unwrap();
    let script = "(echo $BASHPID; while :; do :; done) & wait";
    let Some((end, output)) = run(&sandbox, script) else { return };
    assert_eq!(end, End::Timeout);
    let child = format!("/proc/{}/stat", output.trim());
    assert!(child.len() > "/proc//stat".len(), "{output}");
    // A killed process may take a moment to vanish, and stays as a zombie where nobody reaps.
    let gone = || std::fs::read_to_string(&child).map_or(true, |s| s.contains(") Z"));
    let started = Instant::now();
    while !gone() {
        assert!(started.elapsed() < Duration::from_secs(30), "the child lives on");
        std::thread::yield_now();
    }
}

#[test]
fn program_past_its_memory_limit_fails() {
    let rights = Rights { memory_bytes_max: 64 << 20, ..rights(false) };
    let script = "x=0123456789abcdef; while :; do x=$x$x; done";
    let Some((end, _)) = run(&Sandbox::new(&rights).unwrap(), script) else { return };
    assert!(end != End::Timeout && end != End::Exit(0), "{end:?}");
}

#[test]
fn program_that_does_not_exist_is_an_error_with_the_step() {
    let sandbox = Sandbox::new(&rights(false)).unwrap();
    let error = sandbox.run(c"/nowhere", &[], &[], b"").unwrap_err().to_string();
    assert!(error.starts_with("start program: "), "{error}");
}

#[test]
fn status_says_what_is_enforced() {
    let text = Status { landlock_abi: Some(7), seccomp: true }.to_string();
    assert_eq!(text, "landlock (ABI 7), seccomp, resource limits");
    let text = Status { landlock_abi: None, seccomp: false }.to_string();
    assert!(text.contains("NO landlock") && text.contains("NO seccomp"), "{text}");
}

/// Says what could not be tested, past the test runner.
fn skipped(why: &str) {
    let test = std::thread::current().name().unwrap_or_default().to_owned();
    // Losing a line of the report is no reason to fail.
    let _ = std::io::Write::write_all(
        &mut std::io::stderr(),
        format!("SKIPPED: {test}: {why}\n").as_bytes(),
    );
}
