//! Tests of the fake driver libraries themselves: that they do what the drivers do, and that each
//! broken rule is found.
//!
//! The fakes take their orders from the environment, once per process: so each scenario runs in a
//! process of its own, which is this test binary asked for the same test. Reading order: [`driver`]
//! (calls by name), [`cuda`], [`hip`] and [`compilers`] (what is right), [`faults`] (what the
//! environment asks for), [`rules`] (what is wrong).

#[path = "../support/mod.rs"]
mod support;

mod compilers;
mod cuda;
mod driver;
mod faults;
mod graphs;
mod hip;
mod peers;
mod rules;

use std::process::{Command, Stdio};
use std::time::Duration;

use support::fakes::Watch;
use support::process::Process;

/// Until a scenario is over, on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);
/// Set in the process that runs the scenario.
const INSIDE: &str = "FAKES_SELFTEST_SCENARIO";

/// Runs a scenario in a process with these fakes and variables, and returns what they wrote down.
/// In that process it runs the scenario and returns nothing. It has to be the only closure of the
/// test that calls this, whose name is taken from it.
fn scenario<F: FnOnce()>(libraries: &[&str], variables: &[(&str, &str)], body: F) -> Option<Watch> {
    run(Watch::new(libraries), variables, body)
}

/// The same with other folders to look for the libraries in.
fn run<F: FnOnce()>(watch: Watch, variables: &[(&str, &str)], body: F) -> Option<Watch> {
    if std::env::var_os(INSIDE).is_some() {
        body();
        return None;
    }
    let name = std::any::type_name::<F>();
    let (_, name) = name.split_once("::").expect("the crate comes first");
    let name = name.split("::{{closure}}").next().unwrap_or(name);
    let binary = std::env::current_exe().expect("a test knows its own file");
    let mut command = Command::new(binary);
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]);
    command.env(INSIDE, "1").envs(watch.environment()).envs(variables.iter().copied());
    command.stdout(Stdio::null());
    let mut process = Process::spawn(&mut command);
    let status = process.wait(LIMIT);
    let status = status.unwrap_or_else(|| panic!("{name} does not end:\n{}", watch.trace()));
    assert!(status.success(), "{name} failed:\n{}\n{}", watch.report(), watch.trace());
    assert!(!watch.trace().is_empty(), "{name} made no call");
    Some(watch)
}
