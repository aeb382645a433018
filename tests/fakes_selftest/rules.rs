//! Each broken rule, seen by the CUDA fake.

use super::driver::{Cuda, packed, ptx};
use super::run;

/// Runs a scenario and asserts that the fake reports exactly one kind of thing.
fn reports(scenario: &str, class: &str, what: &str) {
    let watch = run(&format!("rules::{scenario}"), &["cuda"], &[]);
    let report = watch.report();
    assert!(report.lines().any(|line| line.starts_with(class) && line.contains(what)), "{report}");
}

#[test]
fn copy_without_event_before_it_is_a_race() {
    reports("reads_before_the_write", "race", "nothing orders the two");
}

#[test]
#[ignore = "a scenario"]
fn reads_before_the_write() {
    let cuda = Cuda::start();
    let [one, two] = [cuda.stream(), cuda.stream()];
    let (_, module) = cuda.load(&ptx(&[("fill_64", "pi")]));
    let fill = cuda.function(module, "fill_64");
    let (at, down) = (cuda.alloc(256), cuda.pinned(64));
    assert_eq!(cuda.launch(fill, (1, 64), &packed(&[at], &[7]), one), 0);
    assert_eq!(cuda.copy_out(down, at, two), 0);
    assert_eq!(cuda.synchronize(one), 0);
    assert_eq!(cuda.synchronize(two), 0);
}
