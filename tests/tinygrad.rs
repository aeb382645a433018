//! The real client, tinygrad 0.11.0 from PyPI, unmodified, against the server.
//!
//! Each of tinygrad's own test files that [`suite`] names is one test here, and so is each script
//! in `tests/client`. `cargo test` runs a quick part, `cargo test -- --include-ignored` everything.
//!
//! `OUTBOARD_TEST_ADDRESS=127.0.0.1:6667` runs the client against a server that is already there,
//! for instance the client's own Python server. Other variables are explained in
//! `support::tinygrad`.
//!
//! Absent: what the server must answer to any one request. These tests tell only whether the
//! client computes what it should.

mod support;

use support::Server;
use support::skip::skip;
use support::tinygrad::{
    self, LeftOut, Reference, Run, announce, client, report_last_line, script_path,
};

/// Devices that the client opens on the one server; the files ask for up to six.
const DEVICES: usize = 6;
/// `matmul.py` says with it that the server cannot compile the type.
const EXIT_UNSUPPORTED: i32 = 77;
/// Steps of the training runs.
const STEPS: &str = "100";
/// How far the losses of two devices may be apart after as many steps, relative to the loss. The
/// compilers contract and order float32 operations differently; with clang here and gcc there the
/// curves were within 5e-7.
const LOSS_TOLERANCE: f64 = 1e-4;

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

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ours,
    /// With a network card that is not there.
    OursByRdma,
    /// The client's own server.
    Reference,
}

/// A server of a client that has two.
enum Host {
    Ours(Server),
    Reference(Reference),
}

impl Host {
    fn new(client: &tinygrad::Client, kind: Kind) -> Option<Host> {
        match kind {
            Kind::Ours => Some(Host::Ours(Server::start())),
            Kind::OursByRdma => Some(Host::Ours(Server::builder().on_fake_card().start())),
            Kind::Reference => client.reference().map(Host::Reference),
        }
    }

    fn address(&self) -> String {
        match self {
            Host::Ours(server) => server.address().to_string(),
            Host::Reference(reference) => reference.address.clone(),
        }
    }
}

/// Runs a script of `tests/client` on a server.
fn run_script(
    client: &tinygrad::Client,
    name: &str,
    args: &[&str],
    env: &[(&str, &str)],
    seconds: u64,
) -> Run {
    let target = Target::new();
    client.script(name, args, &target.hosts(), env, seconds)
}

/// Runs a script that must succeed, and reports its last line.
fn script(name: &str, args: &[&str], env: &[(&str, &str)]) {
    let Some(client) = client(name) else { return };
    report_last_line(name, &run_script(client, name, args, env, 120));
}

/// Runs one of tinygrad's test files; exactly `passing` of its tests must pass, and none may fail.
fn suite(file: &str, passing: usize, limit_seconds: u64) {
    let Some(client) = client(file) else { return };
    let target = Target::new();
    let hosts = target.hosts();
    let env = [("REMOTE", "1"), ("HOST", hosts.as_str())];
    let suite = client.suite(file, file, &env, limit_seconds);
    let (run, summary) = (&suite.run, &suite.summary);
    assert!(run.status.success(), "{summary}; {}\n{}", run.status, run.output);
    assert_eq!(suite.count("passed"), passing, "{summary}\n{}", run.output);
}

/// One of tinygrad's test files on two hosts.
struct OnTwo<'a> {
    file: &'a str,
    kinds: [Kind; 2],
    devices: [usize; 2],
    left_out: &'a [LeftOut<'a>],
    /// How many of its tests pass.
    passing: usize,
    /// Tests that fail on the client's own server alone. No others may.
    failing: &'a [&'a str],
}

impl OnTwo<'_> {
    fn run(&self) {
        let OnTwo { file, left_out, .. } = *self;
        let named = |kind| match kind {
            Kind::Ours => "ours",
            Kind::OursByRdma => "rdma",
            Kind::Reference => "reference",
        };
        let name = format!("{file}-{}-{}", named(self.kinds[0]), named(self.kinds[1]));
        let Some(client) = client(&name) else { return };
        let hosts = self.kinds.into_iter().map(|kind| Host::new(client, kind));
        let Some(hosts) = hosts.collect::<Option<Vec<Host>>>() else {
            return skip(&name, "the client's own server cannot run here");
        };
        let each = hosts.iter().zip(self.devices);
        let each = each.map(|(host, devices)| format!("{}*{devices}", host.address()));
        let hosts_of_client = each.collect::<Vec<_>>().join(",");
        let env = [("REMOTE", "1"), ("HOST", hosts_of_client.as_str())];
        let suite = client.suite_without(&name, file, left_out, &env, 900);
        let (run, summary) = (&suite.run, &suite.summary);
        let is_known = |test: &&str| self.failing.iter().any(|name| test.contains(name));
        let unexpected = suite.failed().filter(|test| !is_known(test));
        assert_eq!(unexpected.count(), 0, "{summary}\n{}", run.output);
        assert_eq!(suite.count("passed"), self.passing, "{summary}\n{}", run.output);
        let is_connected = |host: &Host| match host {
            Host::Ours(server) => server.stderr().contains("connected by RDMA"),
            Host::Reference(_) => false,
        };
        let is_by_rdma = self.kinds == OURS_BY_RDMA;
        assert!(!is_by_rdma || hosts.iter().any(is_connected), "{name}: it was not RDMA");
    }
}

const OURS: [Kind; 2] = [Kind::Ours; 2];
const OURS_BY_RDMA: [Kind; 2] = [Kind::OursByRdma; 2];
const OURS_FIRST: [Kind; 2] = [Kind::Ours, Kind::Reference];
const OURS_LAST: [Kind; 2] = [Kind::Reference, Kind::Ours];

/// Runs one of tinygrad's test files on two hosts of six devices.
fn suite_on_two(file: &str, kinds: [Kind; 2], passing: usize, failing: &[&str]) {
    OnTwo { file, kinds, devices: [DEVICES; 2], left_out: &[], passing, failing }.run();
}

#[test]
#[ignore = "part of the full client suite"]
fn test_remote_on_two_servers_that_write_by_rdma_passes() {
    suite_on_two("test_remote", OURS_BY_RDMA, 10, &[]);
}

/// As [`suite_on_two`], by RDMA, and with the devices so that most tests of several devices copy.
fn suite_by_rdma(file: &str, left_out: &[LeftOut<'_>], passing: usize) {
    OnTwo { file, kinds: OURS_BY_RDMA, devices: SPLIT, left_out, passing, failing: &[] }.run();
}

#[test]
#[ignore = "part of the full client suite"]
fn test_graph_on_two_servers_that_write_by_rdma_passes() {
    suite_by_rdma("test_graph", &[], 10);
}

#[test]
#[ignore = "part of the full client suite"]
fn test_multitensor_on_two_servers_that_write_by_rdma_passes() {
    let is_unscheduled = |left_out: &&LeftOut<'_>| left_out.1 == UNSCHEDULED;
    let left_out: Vec<_> = OF_MULTITENSOR.iter().filter(is_unscheduled).copied().collect();
    suite_by_rdma("test_multitensor", &left_out, 83);
}

#[test]
#[ignore = "part of the full client suite"]
fn test_remote_on_two_servers_passes() {
    suite_on_two("test_remote", OURS, 10, &[]);
}

#[test]
#[ignore = "part of the full client suite"]
fn test_graph_on_two_servers_passes() {
    suite_on_two("test_graph", OURS, 10, &[]);
}

#[test]
#[ignore = "part of the full client suite"]
fn test_jit_on_two_servers_passes() {
    suite_on_two("test_jit", OURS, 48, &[]);
}

#[test]
#[ignore = "part of the full client suite"]
fn test_multitensor_on_two_servers_passes() {
    suite_on_two("test_multitensor", OURS, 91, &[]);
}

/// Fails on the client's own server, which does not take several devices in one graph.
const SCHEDULE: &str = "test_multihost_aware_schedule";
/// Fail on the client's own server, whose graphs of the CPU take no copies.
const COPIES: [&str; 3] =
    ["test_graph_offset_bufs", "test_order_copy_then_read", "test_order_copy_writed"];

#[test]
#[ignore = "part of the full client suite"]
fn test_remote_on_this_server_and_the_clients_own_passes() {
    suite_on_two("test_remote", OURS_FIRST, 9, &[SCHEDULE]);
    suite_on_two("test_remote", OURS_LAST, 9, &[SCHEDULE]);
}

#[test]
#[ignore = "part of the full client suite"]
fn test_graph_on_this_server_and_the_clients_own_passes() {
    suite_on_two("test_graph", OURS_FIRST, 10, &[]);
    suite_on_two("test_graph", OURS_LAST, 7, &COPIES);
}

/// With two devices of the first host REMOTE:1 and REMOTE:2, which most tests of several devices
/// take, are on different hosts.
const SPLIT: [usize; 2] = [2, 4];

const DEADLINE: &str = "has to be done in 20 s, however busy the machine is";

#[test]
#[ignore = "part of the full client suite"]
fn test_jit_on_this_server_and_the_clients_own_passes() {
    let left_out = &[("test_jit.py::TestJit::test_approx_jit_timeout", DEADLINE)];
    let file = "test_jit";
    for kinds in [OURS_FIRST, OURS_LAST] {
        OnTwo { file, kinds, devices: SPLIT, left_out, passing: 47, failing: &[] }.run();
    }
}

const UNSCHEDULED: &str = "the client cannot schedule it for devices of several hosts";
const LONG: &str = "takes many seconds on the client's own server";
/// What is left out of `test_multitensor` where the client's own server is one of two.
const OF_MULTITENSOR: [LeftOut<'_>; 13] = [
    ("test_multitensor.py::TestMultiTensor::test_allreduce_ring", UNSCHEDULED),
    ("test_multitensor.py::TestMultiTensor::test_allreduce_ring_jit", UNSCHEDULED),
    ("test_multitensor.py::TestMultiTensor::test_elementwise_dtype", UNSCHEDULED),
    ("test_multitensor.py::TestMultiTensor::test_four_add", UNSCHEDULED),
    ("test_multitensor.py::TestMultiTensor::test_reshape_on_axis", UNSCHEDULED),
    ("test_multitensor.py::TestMultiTensor::test_simple_reduce", UNSCHEDULED),
    ("test_multitensor.py::TestShrinkMultiTensorShardedAxis::test_add_two_partitions", UNSCHEDULED),
    ("test_multitensor.py::TestShrinkMultiTensorShardedAxis::test_ops", UNSCHEDULED),
    ("test_multitensor.py::TestMultiTensor::test_backprop_conv_wino", LONG),
    ("test_multitensor.py::TestMultiTensor::test_fuzz_allreduce", LONG),
    ("test_multitensor.py::TestMultiTransformer::test_transformer", LONG),
    ("test_multitensor.py::TestTensorOps::test_bitcast", LONG),
    ("test_multitensor.py::TestTensorOps::test_interpolate", LONG),
];

#[test]
#[ignore = "part of the full client suite"]
fn test_multitensor_on_this_server_and_the_clients_own_passes() {
    let (file, left_out) = ("test_multitensor", &OF_MULTITENSOR);
    for kinds in [OURS_FIRST, OURS_LAST] {
        OnTwo { file, kinds, devices: SPLIT, left_out, passing: 78, failing: &[] }.run();
    }
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
    let run = run_script(client, "bfloat16", &["matmul.py", "bfloat16"], &[], 120);
    if run.status.code() == Some(EXIT_UNSUPPORTED) {
        let reason = run.output.lines().last().unwrap_or_default();
        skip("bfloat16", reason);
        return;
    }
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
    let run = run_script(client, "training", &["train.py", STEPS], &[], 300);
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
