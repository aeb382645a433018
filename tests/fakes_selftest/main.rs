//! Tests of the fake driver libraries themselves: that they do what the drivers do, and that each
//! broken rule is found.
//!
//! The fakes take their orders from the environment, once per process: so each scenario runs in a
//! process of its own, which is this test binary asked for one ignored test.

#[path = "../support/mod.rs"]
mod support;

mod cuda;
mod driver;
mod rules;

use std::process::{Command, Stdio};
use std::time::Duration;

use support::fakes::Watch;
use support::process::Process;

/// Until a scenario is over, on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs a scenario, an ignored test of this binary, with the fakes and these variables.
fn run(scenario: &str, libraries: &[&str], variables: &[(&str, &str)]) -> Watch {
    let watch = Watch::new(libraries);
    let binary = std::env::current_exe().expect("a test knows its own file");
    let mut command = Command::new(binary);
    command.args(["--ignored", "--exact", scenario, "--nocapture", "--test-threads=1"]);
    command.envs(watch.environment()).envs(variables.iter().copied());
    command.stdout(Stdio::null());
    let mut process = Process::spawn(&mut command);
    let status = process.wait(LIMIT);
    let status = status.unwrap_or_else(|| panic!("{scenario} does not end:\n{}", watch.trace()));
    assert!(status.success(), "{scenario} failed:\n{}\n{}", watch.report(), watch.trace());
    watch
}
