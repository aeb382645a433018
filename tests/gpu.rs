//! The server on a real GPU: many sessions, long graphs, large copies, faults, and the stock client
//! with its own tests.
//!
//! `on_gpu` has each test on this machine's GPU; where there is none it says `SKIPPED`, and fails
//! with `REQUIRE_GPU=1`. `on_cpu` has those that are not tinygrad's own on the CPU device too, so
//! that bodies which are run on a GPU now and then stay right.
//!
//!     REQUIRE_GPU=1 cargo test --release --test gpu -- --nocapture --test-threads 1
//!
//! `OUTBOARD_TEST_GPU=cuda|hip|cpu` stands in for looking; `OUTBOARD_TEST_BYTES` is what is sent
//! up and down. Where the server leaves something to the driver, what the driver does is found out
//! and not required: such lines begin with `FOUND`. For a machine without Rust see `perf/gpu`.
//!
//! Reading order: this file's bodies, then its list of tests; `gpu/kernels.rs`, `gpu/rig.rs`.

#![expect(clippy::unwrap_used, reason = "a test ends where its session cannot go on")]

#[path = "gpu/kernels.rs"]
mod kernels;
#[path = "gpu/rig.rs"]
mod rig;
mod support;

use std::io::{Read, Write};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use kernels::{Dialect, GROUP, Kernel};
use rig::{Place, Session, bytes_of, sums, values, values_of};
use support::Server;
use support::client::{body_of, name_of};
use support::skip::skip;
use support::tinygrad::{announce, client, report_last_line};

const NO_PROCESS: &str = "sessions of the CPU device always have processes of their own";
/// Sessions at once, each with a connection of its own.
const SESSIONS: u32 = 64;
/// Launches of each of them.
const LAUNCHES: usize = 100;
/// Kernels of the long graph.
const GRAPH_KERNELS: usize = 1_000;
/// What is sent up and down: on a GPU, and on the CPU device.
const LARGE_BYTES: u64 = 8 << 30;
const SMALL_BYTES: u64 = 256 << 20;
const PIECE_BYTES: usize = 16 << 20;
/// What is copied between two sessions of GPUs.
const COPIED_BYTES: u64 = 256 << 20;
/// `--kernel-timeout` of the servers that get a kernel without end.
const KERNEL_SECONDS: &str = "2";
/// Until such a kernel is noticed and its session ended, at most.
const ENDLESS_LIMIT: Duration = Duration::from_secs(60);
/// A sum of two arrays.
fn kernel_adds(place: &Place) {
    let server = place.builder().start();
    let mut session = Session::begin(server.address(), "one");
    check_sum(&mut session, 1);
}

/// Runs a kernel in a session that has nothing yet, and checks what comes out.
fn check_sum(session: &mut Session, seed: u32) {
    const ELEMENTS: usize = 64 * GROUP;
    let (b, c) = (values(seed, ELEMENTS), values(seed + 1, ELEMENTS));
    session.fill(&[(0, &vec![0; ELEMENTS]), (1, &b), (2, &c)]);
    let kernel = kernels::add(session.dialect, ELEMENTS);
    session.load(&kernel).ok();
    let launch = session.launch(&kernel, &[0, 1, 2], ELEMENTS, true);
    let seconds = session.client.batch(&[launch], &[]).ok();
    let seconds: f64 = String::from_utf8(seconds).unwrap().parse().unwrap();
    assert!(seconds > 0.0 && seconds < 1.0, "the kernel is said to take {seconds} s");
    assert_eq!(session.read(0), sums(&b, &c));
}

/// Sessions that begin, compile, compute and copy at the same time.
fn many_sessions_at_once(place: &Place) {
    const ELEMENTS: usize = GROUP;
    let server = place.builder().start();
    let (address, barrier) = (server.address(), Barrier::new(SESSIONS as usize));
    let began = Instant::now();
    std::thread::scope(|scope| {
        for number in 0..SESSIONS {
            let barrier = &barrier;
            scope.spawn(move || {
                barrier.wait();
                let mut session = Session::begin(address, &format!("session {number}"));
                let (step, zeros) = (values(number, ELEMENTS), vec![0; ELEMENTS]);
                session.fill(&[(0, &zeros), (1, &step)]);
                let kernel = kernels::add(session.dialect, ELEMENTS);
                session.load(&kernel).ok();
                // In place: every launch depends on the one before.
                let launch = session.launch(&kernel, &[0, 0, 1], ELEMENTS, false);
                session.client.batch(&vec![launch; LAUNCHES], &[]).ok();
                let times = u32::try_from(LAUNCHES).unwrap();
                let want: Vec<_> = step.iter().map(|value| value.wrapping_mul(times)).collect();
                assert_eq!(session.read(0), want, "session {number}");
            });
        }
    });
    announce(&format!("{SESSIONS} sessions of a {}: {:.1} s", place.device, seconds(began)));
}

/// A graph in which each kernel needs the results of the two before it, run with several inputs.
fn long_graph_follows_its_dependencies(place: &Place) {
    const ELEMENTS: usize = GROUP;
    let server = place.builder().start();
    let mut session = Session::begin(server.address(), "graph");
    let inputs: Vec<_> = (0..4).map(|seed| values(seed + 7, ELEMENTS)).collect();
    let last = u64::try_from(GRAPH_KERNELS).unwrap() + 1;
    let numbers = (0..2).chain([5_000, 5_001]);
    let filled: Vec<_> = numbers.zip(inputs.iter().map(Vec::as_slice)).collect();
    session.fill(&filled);
    let bytes = u64::try_from(ELEMENTS * 4).unwrap();
    let buffers: Vec<_> = (2..=last).map(|number| session.client.alloc(number, bytes)).collect();
    session.client.batch(&buffers, &[]).ok();
    let kernel = kernels::add(session.dialect, ELEMENTS);
    session.load(&kernel).ok();
    let record = graph_alloc(&session, &kernel, last, ELEMENTS);
    session.client.batch(&[record], &[]).ok();
    for (first, inputs) in [(0, &inputs[..2]), (5_000, &inputs[2..]), (0, &inputs[..2])] {
        let key = session.client.session(0);
        let key = key.strip_prefix("session=").unwrap();
        let run = format!(
            "GraphExec(session={key}, graph_num=1, bufs=(({key}, {first}), ({key}, {})), \
             var_vals={{}}, wait=True)",
            first + 1
        );
        let took = String::from_utf8(session.client.batch(&[run], &[]).ok()).unwrap();
        let (mut older, mut newer) = (inputs[0].clone(), inputs[1].clone());
        for _ in 0..GRAPH_KERNELS {
            (older, newer) = (newer.clone(), sums(&newer, &older));
        }
        assert_eq!(session.read(last), newer, "with inputs from buffer {first}");
        announce(&format!("graph of {GRAPH_KERNELS} kernels on a {}: {took} s", place.device));
    }
}

/// Records kernels that each add the two buffers before theirs; the first two are inputs.
fn graph_alloc(session: &Session, kernel: &Kernel, last: u64, elements: usize) -> String {
    let key = session.client.session(0);
    let (hash, sizes) = (name_of(kernel.source.as_bytes()), session.dialect.sizes(elements));
    let items: Vec<_> = (2..=last)
        .map(|to| {
            format!(
                "GraphComputeItem({key}, name='{}', datahash='{hash}', bufs=({to}, {}, {}), \
                 vars=(), fixedvars={{}}, ins=(1, 2), outs=(0,), {sizes})",
                kernel.name,
                to - 1,
                to - 2
            )
        })
        .collect();
    let owner = key.strip_prefix("session=").unwrap();
    format!(
        "GraphAlloc({key}, graph_num=1, jit_cache=({}), bufs=(({owner}, 0), ({owner}, 1)), \
         var_vals={{}})",
        items.join(", ")
    )
}

/// One buffer of many gigabytes, up and down, every byte compared.
fn large_buffer_comes_back_as_it_was(place: &Place) {
    let told = std::env::var("OUTBOARD_TEST_BYTES").ok().map(|bytes| bytes.parse().unwrap());
    let bytes = told.unwrap_or(if place.is_gpu() { LARGE_BYTES } else { SMALL_BYTES });
    let server = place.builder().start();
    let mut session = Session::begin(server.address(), "large");
    let alloc = session.client.alloc(1, bytes);
    session.client.batch(&[alloc], &[]).ok();
    let mut piece = bytes_of(&values(3, PIECE_BYTES / 4));
    let began = Instant::now();
    let text = format!("[{}]", session.client.copy_in(1, b"")).replace(&name_of(b""), ZEROS);
    let length = 80 + bytes + text.len() as u64;
    let head = format!("POST /batch HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n");
    let stream = &mut session.client.stream;
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&[&[0; 32][..], &bytes.to_le_bytes()].concat()).unwrap();
    for number in pieces(bytes) {
        piece[..8].copy_from_slice(&number.to_le_bytes());
        stream.write_all(&piece).unwrap();
    }
    stream.write_all(&body_of(&text, &[])).unwrap();
    session.client.receive().ok();
    let up = seconds(began);

    let began = Instant::now();
    let read = session.client.copy_out(1);
    session.client.send(&[read], &[]);
    let head = session.client.receive_head();
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(head.contains(&format!("Content-Length: {bytes}\r\n")), "{head}");
    let mut back = vec![0; PIECE_BYTES];
    for number in pieces(bytes) {
        session.client.stream.read_exact(&mut back).unwrap();
        piece[..8].copy_from_slice(&number.to_le_bytes());
        assert!(back == piece, "piece {number} came back as something else");
    }
    let (down, gigabytes) = (seconds(began), bytes as f64 / 1e9);
    announce(&format!(
        "{} MiB to a {} at {:.2} GB/s and back at {:.2} GB/s",
        bytes >> 20,
        place.device,
        gigabytes / up,
        gigabytes / down
    ));
}

/// Copies between two sessions, of two devices where there are as many. On a GPU the first of them
/// goes another way than those after it.
fn copies_between_sessions_arrive(place: &Place) {
    let bytes = if place.is_gpu() { COPIED_BYTES } else { COPIED_BYTES / 8 };
    let server = place.builder().start();
    let mut session = Session::begin(server.address(), "source");
    let client = &mut session.client;
    let (here, index) = (client.session(0), u64::from(place.count > 1));
    let there = client.key(index).replace("'source'", "'target'");
    let at_target = |command: &str| command.replace(&here, &format!("session={there}"));
    let begin = [
        client.alloc(1, bytes),
        client.alloc(4, 8),
        at_target(&client.alloc(2, bytes)),
        at_target(&client.alloc(3, 8)),
    ];
    client.batch(&begin, &[]).ok();
    let transfer = format!("Transfer({here}, buffer_num=1, dsession={there}, dbuffer_num=2)");
    let mut rates = Vec::new();
    for seed in 0..4 {
        let blob = bytes_of(&values(seed, usize::try_from(bytes / 4).unwrap()));
        // What is read is there once the device has done what came before.
        client.batch(&[client.copy_in(1, &blob), client.copy_out(4)], &[&blob]).ok();
        let (began, at_end) = (Instant::now(), at_target(&client.copy_out(3)));
        client.batch(&[transfer.clone(), at_end], &[]).ok();
        rates.push(format!("{:.2}", bytes as f64 / 1e9 / seconds(began)));
        let read = at_target(&client.copy_out(2));
        assert!(client.batch(&[read], &[]).ok() == blob, "copy {seed} is something else");
    }
    announce(&format!(
        "{} MiB from a session of a {} to one of {}: {} GB/s",
        bytes >> 20,
        place.device,
        if index == 0 { "the same" } else { "another" },
        rates.join(", "),
    ));
}

/// The name of the long blob: to the server a name is only a name.
const ZEROS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

fn pieces(bytes: u64) -> impl Iterator<Item = u64> {
    assert!(bytes.is_multiple_of(PIECE_BYTES as u64), "{bytes} bytes are not whole pieces");
    0..bytes / PIECE_BYTES as u64
}

/// What a fault costs: its own session, which hears why, and with a process for each session
/// nobody else.
fn fault_costs_its_session(place: &Place, make: fn(Dialect) -> Kernel) {
    let server = place.builder().arg("--kernel-timeout").arg(KERNEL_SECONDS).start();
    let mut neighbour = Session::begin(server.address(), "neighbour");
    check_sum(&mut neighbour, 1);
    let said = fault(&server, make);
    announce(&format!("{}: {said}", place.device));
    // Buffers that it had, and programs, are still its own.
    let kernel = kernels::add(neighbour.dialect, 64 * GROUP);
    let launch = neighbour.launch(&kernel, &[0, 0, 1], 64 * GROUP, true);
    neighbour.client.batch(&[launch], &[]).ok();
    let (b, c) = (values(1, 64 * GROUP), values(2, 64 * GROUP));
    assert_eq!(neighbour.read(0), sums(&sums(&b, &c), &b));
    let mut newcomer = Session::begin(server.address(), "newcomer");
    check_sum(&mut newcomer, 5);
}

/// Runs a kernel that ends its session; returns what the session is told. It is told again when it
/// asks for anything else.
fn fault(server: &Server, make: fn(Dialect) -> Kernel) -> String {
    let mut session = Session::begin(server.address(), "doomed");
    session.fill(&[(0, &[0; GROUP])]);
    let kernel = make(session.dialect);
    session.load(&kernel).ok();
    let launch = session.launch(&kernel, &[0], GROUP, true);
    let began = Instant::now();
    let said = session.client.batch(&[launch], &[]).failure();
    assert!(began.elapsed() < ENDLESS_LIMIT, "heard of it after {:?}", began.elapsed());
    let names_the_loss = said.contains("start a new session");
    assert!(said.contains("RuntimeError") && names_the_loss, "{}: {said}", kernel.name);
    let read = session.client.copy_out(0);
    let again = session.client.batch(&[read], &[]).failure();
    assert!(again.contains("start a new session"), "{}: {again}", kernel.name);
    format!("{}: {said}", kernel.name)
}

/// In one process it is the driver that decides what else a fault takes with it. The session that
/// made it hears why, and the server goes on running; the rest is found out.
fn fault_in_one_process_is_told(place: &Place, make: fn(Dialect) -> Kernel) {
    if !place.is_gpu() {
        skip("one process", NO_PROCESS);
        return;
    }
    let server = place
        .builder()
        .arg("--isolation=process")
        .arg(&format!("--kernel-timeout={KERNEL_SECONDS}"))
        .start();
    let mut neighbour = Session::begin(server.address(), "neighbour");
    check_sum(&mut neighbour, 1);
    let said = fault(&server, make);
    announce(&format!("{}, in one process: {said}", place.device));
    let read = neighbour.client.copy_out(0);
    let reply = neighbour.client.batch(&[read], &[]);
    let expected = sums(&values(1, 64 * GROUP), &values(2, 64 * GROUP));
    let memory = outcome(&reply, values_of(&reply.body) == expected);
    announce(&format!("FOUND: another context's memory after {}: {memory}", make(Dialect::C).name));
    let kernel = kernels::add(neighbour.dialect, 64 * GROUP);
    let launch = neighbour.launch(&kernel, &[0, 0, 1], 64 * GROUP, true);
    let reply = neighbour.client.batch(&[launch], &[]);
    announce(&format!(
        "FOUND: another context's launches after {}: {}",
        make(Dialect::C).name,
        outcome(&reply, true)
    ));
    let mut newcomer = Session::begin(server.address(), "newcomer");
    let alloc = newcomer.client.alloc(0, 1 << 20);
    let reply = newcomer.client.batch(&[alloc], &[]);
    announce(&format!(
        "FOUND: a new context after {}: {}",
        make(Dialect::C).name,
        outcome(&reply, true)
    ));
}

fn outcome(reply: &support::client::Reply, is_right: bool) -> String {
    match (reply.status, is_right) {
        (200, true) => "goes on".to_owned(),
        (200, false) => "IS WRONG".to_owned(),
        _ => format!("lost: {}", reply.text()),
    }
}

fn seconds(began: Instant) -> f64 {
    began.elapsed().as_secs_f64()
}

/// Runs one of tinygrad's own test files on the server. How many of its tests are skipped depends
/// on the kind of device; none may fail.
fn suite(place: &Place, file: &str, options: &[&str], limit_seconds: u64) {
    let name = format!("{file}-{}{}", place.device, options.concat());
    let Some(client) = client(&name) else { return };
    let server = options.iter().fold(place.builder(), |builder, arg| builder.arg(arg)).start();
    let hosts = place.hosts(&server);
    let env = [("REMOTE", "1"), ("HOST", hosts.as_str())];
    let suite = client.suite(&name, file, &env, limit_seconds);
    let failed: Vec<_> = suite.failed().collect();
    let (run, summary) = (&suite.run, &suite.summary);
    assert!(failed.is_empty(), "{summary}: {failed:?}\n{}", run.output);
    assert!(run.status.success(), "{summary}; {}\n{}", run.status, run.output);
    assert!(suite.count("passed") > 0, "{summary}: nothing was tested");
}

/// Runs a script of `tests/client` that must succeed.
fn script(place: &Place, args: &[&str]) {
    let name = format!("{}-{}", args.join("-"), place.device);
    let Some(client) = client(&name) else { return };
    let server = place.builder().start();
    let run = client.script(&name, args, &place.hosts(&server), &[], 300);
    report_last_line(&name, &run);
}

/// The tests of a body: on this machine's GPU, and on the CPU device if it is said so.
macro_rules! bodies {
    (
        gpu { $($gpu:ident: $gpu_body:expr;)* }
        both { $($both:ident: $both_body:expr;)* }
    ) => {
        mod on_gpu {
            use super::*;
            $(bodies!(@gpu $gpu, $gpu_body);)*
            $(bodies!(@gpu $both, $both_body);)*
        }
        mod on_cpu {
            use super::*;
            $(#[test]
            fn $both() {
                let body: fn(&Place) = $both_body;
                body(&Place::cpu());
            })*
        }
    };
    (@gpu $name:ident, $body:expr) => {
        #[test]
        fn $name() {
            let body: fn(&Place) = $body;
            if let Some(place) = Place::gpu() {
                body(&place);
            }
        }
    };
}

bodies! {
    gpu {
        // In the order in which one would want to know.
        test_tiny_passes: |place| suite(place, "test_tiny", &[], 300);
        test_tiny_passes_as_ptx: |place| {
            match place.device {
                "cuda" => suite(place, "test_tiny", &["--renderer=ptx"], 300),
                other => skip("PTX", &format!("{other} has none")),
            }
        };
        test_tiny_passes_in_one_process: |place| {
            match place.is_gpu() {
                true => suite(place, "test_tiny", &["--isolation=process"], 300),
                false => skip("one process", NO_PROCESS),
            }
        };
        test_graph_passes: |place| suite(place, "test_graph", &[], 300);
        test_subbuffer_passes: |place| suite(place, "test_subbuffer", &[], 300);
        test_tensor_variable_passes: |place| suite(place, "test_tensor_variable", &[], 300);
        test_gc_passes: |place| suite(place, "test_gc", &[], 300);
        test_jit_passes: |place| suite(place, "test_jit", &[], 300);
        test_multitensor_passes: |place| suite(place, "test_multitensor", &[], 600);
        test_symbolic_jit_passes: |place| suite(place, "test_symbolic_jit", &[], 300);
        test_symbolic_ops_passes: |place| suite(place, "test_symbolic_ops", &[], 300);
        test_jit_cases_passes: |place| suite(place, "test_jit_cases", &[], 300);
        test_const_folding_passes: |place| suite(place, "test_const_folding", &[], 300);
        test_assign_passes: |place| suite(place, "test_assign", &[], 300);
        test_setitem_passes: |place| suite(place, "test_setitem", &[], 300);
        test_pickle_passes: |place| suite(place, "test_pickle", &[], 300);
        float16_matmul_equals_numpy: |place| script(place, &["matmul.py", "float16"]);
        bfloat16_matmul_equals_numpy: |place| script(place, &["matmul.py", "bfloat16"]);
        symbolic_shape_equals_numpy: |place| script(place, &["symbolic.py"]);
        gradients_equal_numpy: |place| script(place, &["backward.py"]);
        illegal_write_in_one_process_is_told: |place| {
            fault_in_one_process_is_told(place, kernels::illegal_write);
        };
        out_of_bounds_read_in_one_process_is_told: |place| {
            fault_in_one_process_is_told(place, kernels::out_of_bounds_read);
        };
        assertion_in_one_process_is_told: |place| {
            fault_in_one_process_is_told(place, kernels::assertion);
        };
        endless_kernel_in_one_process_is_told: |place| {
            fault_in_one_process_is_told(place, kernels::endless);
        };
    }
    both {
        kernel_over_many_groups_adds: kernel_adds;
        sessions_at_once_each_compute: many_sessions_at_once;
        graph_of_1000_kernels_follows_its_dependencies: long_graph_follows_its_dependencies;
        large_buffer_sent_up_comes_down_as_it_was: large_buffer_comes_back_as_it_was;
        copies_between_two_sessions_arrive: copies_between_sessions_arrive;
        illegal_write_costs_its_session: |place| {
            fault_costs_its_session(place, kernels::illegal_write);
        };
        out_of_bounds_read_costs_its_session: |place| {
            fault_costs_its_session(place, kernels::out_of_bounds_read);
        };
        assertion_costs_its_session: |place| fault_costs_its_session(place, kernels::assertion);
        endless_kernel_costs_its_session: |place| fault_costs_its_session(place, kernels::endless);
        transformer_block_in_half_equals_numpy: |place| {
            script(place, &["gpu_transformer.py", "check"]);
        };
    }
}
