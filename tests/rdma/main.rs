//! Two ends of RDMA over two devices of one machine, rxe0 and rxe1, by `outboard::rdma`.
//!
//! `tests/rdma/run` boots a virtual machine that has them and runs this inside. Elsewhere each test
//! says in a line that begins with `SKIPPED:` that it did nothing, or fails where
//! `OUTBOARD_RDMA_REQUIRED` is set. Whoever waits here waits for the completions' descriptor.

mod intruder;
#[path = "../support/mod.rs"]
mod support;

use std::process::Command;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outboard::config::RdmaConfig;
use outboard::rdma::{
    Device, Domain, HostMemory, Link, QueuePair, Registration, Target, Turn, WorkStatus, Write,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

const DEVICES: [&str; 2] = ["rxe0", "rxe1"];
/// Far more than any of this takes on an emulated processor.
const PATIENCE: Duration = Duration::from_secs(60);
const REMOTE_ACCESS_ERROR: WorkStatus = WorkStatus(10);

/// Memory of this process that does not move.
struct Memory(Box<[u8]>);

// SAFETY: a box's bytes stay where they are when the box is moved; the tests look at what was
// written only once the writer says that it is done.
unsafe impl HostMemory for &'static Memory {
    fn place(&self) -> (NonNull<u8>, u64) {
        (NonNull::from(&*self.0).cast(), self.0.len() as u64)
    }
}

impl Memory {
    /// For as long as the process: a test that fails leaves registrations behind.
    fn of(bytes: Vec<u8>) -> &'static Memory {
        Box::leak(Box::new(Memory(bytes.into_boxed_slice())))
    }

    fn zeroed(bytes: usize) -> &'static Memory {
        Memory::of(vec![0; bytes])
    }

    fn pattern(bytes: usize, seed: u64) -> &'static Memory {
        let mut state = seed | 1;
        let words = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state.to_le_bytes()
        });
        Memory::of(words.take(bytes.div_ceil(8)).flatten().take(bytes).collect())
    }
}

type Pinned = Registration<&'static Memory>;

/// The writer's domain and the other's, or `None` where there are no devices.
fn domains() -> Option<[Arc<Domain>; 2]> {
    let open = |name: &str| {
        let config = RdmaConfig { device: Some(name.to_owned()), ..RdmaConfig::default() };
        Device::open(&config).and_then(|device| Domain::new(&device))
    };
    match (open(DEVICES[0]), open(DEVICES[1])) {
        (Ok(writer), Ok(other)) => Some([writer, other]),
        (Err(error), _) | (_, Err(error)) => {
            let required = std::env::var_os("OUTBOARD_RDMA_REQUIRED").is_some();
            assert!(!required, "{error} -> {}", error.remedy());
            println!("SKIPPED: {error}: tests/rdma/run has both devices");
            None
        }
    }
}

/// A link of some queue pairs, and their other ends.
fn connect(domains: &[Arc<Domain>; 2], pairs: usize) -> (Link<()>, Vec<QueuePair>) {
    let mut link = Link::new(&domains[0], pairs).expect("a link");
    let addresses: Vec<_> = link.addresses().collect();
    let mut ends = Vec::new();
    for (at, address) in addresses.into_iter().enumerate() {
        let mut end = QueuePair::passive(&domains[1]).expect("a queue pair");
        end.connect(address).expect("the writer's end");
        link.connect(at, end.address()).expect("the other end");
        ends.push(end);
    }
    (link, ends)
}

fn write(from: &Pinned, offset: u64, to: Target, bytes: u64) -> Write {
    Write {
        local: from.iova() + offset,
        local_key: from.local_key(),
        remote: to.iova + offset,
        remote_key: to.key,
        bytes,
    }
}

/// Waits until all transfers of a link are over; what the last one came to.
fn settle(link: &mut Link<()>) -> Result<(), WorkStatus> {
    let begin = Instant::now();
    let mut outcome = Ok(());
    loop {
        let turn = link.turn().expect("the driver takes all calls");
        while let Some(finished) = link.next_finished() {
            outcome = finished.outcome;
        }
        if turn == Turn::Idle {
            return outcome;
        }
        assert!(begin.elapsed() < PATIENCE, "nothing came of it");
        let timeout = Timespec::try_from(PATIENCE).expect("short");
        let fd = link.descriptor();
        poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)).expect("it can be waited for");
    }
}

fn transfer(link: &mut Link<()>, writes: Vec<Write>) -> Result<(), WorkStatus> {
    link.submit(writes, ());
    settle(link)
}

/// What this process has used of processors.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(time).expect("it runs forward")
}

/// How many objects the devices have, as the kernel counts them: queue pairs, registrations, ...
fn objects() -> String {
    let shown = Command::new("rdma").args(["resource", "show"]).output().expect("iproute2");
    String::from_utf8(shown.stdout).expect("plain text")
}

#[test]
fn bytes_arrive_whole_in_all_lengths() {
    let Some(domains) = domains() else { return };
    let (mut link, _ends) = connect(&domains, 2);
    for bytes in [4, 4095, 4096, 4097, 1 << 20, (1 << 20) + 1, 16 << 20] {
        let (source, sink) = (Memory::pattern(bytes, 7), Memory::zeroed(bytes + 64));
        let from = domains[0].register(source).expect("it can be pinned");
        let to = domains[1].register(sink).expect("it can be pinned");
        let outcome = transfer(&mut link, vec![write(&from, 0, to.target(), bytes as u64)]);
        assert_eq!(outcome, Ok(()), "{bytes} bytes");
        assert!(sink.0[..bytes] == source.0[..], "{bytes} bytes are not those that were sent");
        assert!(sink.0[bytes..].iter().all(|byte| *byte == 0), "{bytes} bytes and more came");
    }
}

#[test]
fn many_messages_arrive_over_several_queue_pairs() {
    const EACH: u64 = 512;
    const COUNT: u64 = 3000;
    let Some(domains) = domains() else { return };
    let (mut link, _ends) = connect(&domains, 4);
    let bytes = usize::try_from(EACH * COUNT).expect("short");
    let (source, sink) = (Memory::pattern(bytes, 3), Memory::zeroed(bytes));
    let from = domains[0].register(source).expect("it can be pinned");
    let to = domains[1].register(sink).expect("it can be pinned");
    let writes = (0..COUNT).map(|at| write(&from, at * EACH, to.target(), EACH));
    assert_eq!(transfer(&mut link, writes.collect()), Ok(()));
    assert!(sink.0 == source.0);
}

/// What a key that is not right comes to; nothing may be written by it.
fn refused(domains: &[Arc<Domain>; 2], sink: &'static Memory, target: Target) {
    let (mut link, _ends) = connect(domains, 1);
    let source = Memory::pattern(4096, 1);
    let from = domains[0].register(source).expect("it can be pinned");
    let outcome = transfer(&mut link, vec![write(&from, 0, target, target.bytes)]);
    assert_eq!(outcome, Err(REMOTE_ACCESS_ERROR));
    assert_eq!(link.failed(), Some(REMOTE_ACCESS_ERROR));
    assert!(sink.0.iter().all(|byte| *byte == 0), "something was written");
}

#[test]
fn forged_stale_and_foreign_keys_reach_no_memory() {
    let Some(domains) = domains() else { return };
    let sink = Memory::zeroed(4096);
    let to = domains[1].register(sink).expect("it can be pinned");
    let right = Target { bytes: 4096, ..to.target() };
    refused(&domains, sink, Target { key: right.key ^ 0x55, ..right });
    refused(&domains, sink, Target { iova: right.iova + 1, ..right });
    refused(&domains, sink, Target { iova: right.iova - 4096, ..right });
    let foreign = Domain::new(domains[1].device()).expect("another domain");
    let theirs = foreign.register(sink).expect("it can be pinned");
    refused(&domains, sink, Target { bytes: 4096, ..theirs.target() });
    let stale = to.target();
    drop(to);
    refused(&domains, sink, stale);
}

#[test]
fn peer_that_dies_in_the_middle_is_reported_and_leaves_nothing() {
    let Some(domains) = domains() else { return };
    let before = objects();
    let bytes = 16 << 20;
    let (source, sink) = (Memory::pattern(bytes, 9), Memory::zeroed(bytes));
    {
        let (mut link, ends) = connect(&domains, 2);
        let from = domains[0].register(source).expect("it can be pinned");
        let to = domains[1].register(sink).expect("it can be pinned");
        link.submit(vec![write(&from, 0, to.target(), bytes as u64)], ());
        assert_eq!(link.turn().expect("the driver takes all calls"), Turn::Wait);
        drop((ends, to));
        let begin = Instant::now();
        let outcome = settle(&mut link);
        let status = outcome.expect_err("nobody could have taken it all");
        println!("the writer was told after {:?}: {status}", begin.elapsed());
        assert!([10, 12].contains(&status.0), "{status}");
        assert!(begin.elapsed() < Duration::from_secs(20));
        link.submit(vec![write(&from, 0, Target { iova: 0, key: 0, bytes: 4 }, 4)], ());
        assert_eq!(settle(&mut link), Err(status), "a link that failed takes nothing more");
    }
    assert_eq!(objects(), before, "something was left behind");
    let (mut link, _ends) = connect(&domains, 1);
    let from = domains[0].register(source).expect("it can be pinned");
    let to = domains[1].register(sink).expect("it can be pinned");
    let outcome = transfer(&mut link, vec![write(&from, 0, to.target(), 1 << 20)]);
    assert_eq!(outcome, Ok(()), "the next connection works");
    assert!(sink.0[..1 << 20] == source.0[..1 << 20]);
}

#[test]
fn memory_is_freed_in_the_middle_of_a_write_without_harm() {
    let Some(domains) = domains() else { return };
    let bytes = 8 << 20;
    let (source, sink) = (Memory::pattern(bytes, 5), Memory::zeroed(bytes));
    let (mut link, _ends) = connect(&domains, 1);
    let from = domains[0].register(source).expect("it can be pinned");
    let to = domains[1].register(sink).expect("it can be pinned");
    link.submit(vec![write(&from, 0, to.target(), bytes as u64)], ());
    assert_eq!(link.turn().expect("the driver takes all calls"), Turn::Wait);
    drop(to);
    let after = sink.0.to_vec();
    let outcome = settle(&mut link);
    assert_eq!(outcome, Err(REMOTE_ACCESS_ERROR), "the memory is not the peer's any more");
    assert!(sink.0[..] == after[..], "bytes came after the registration had ended");
}

#[test]
fn transfer_that_is_abandoned_ends_at_once() {
    let Some(domains) = domains() else { return };
    let bytes = 4 << 20;
    let (source, sink) = (Memory::pattern(bytes, 5), Memory::zeroed(bytes));
    let (mut link, _ends) = connect(&domains, 2);
    let from = domains[0].register(source).expect("it can be pinned");
    let to = domains[1].register(sink).expect("it can be pinned");
    link.submit(vec![write(&from, 0, to.target(), bytes as u64)], ());
    assert_eq!(link.turn().expect("the driver takes all calls"), Turn::Wait);
    link.abandon();
    let finished = link.next_finished().expect("it is over");
    assert_eq!(finished.outcome, Err(WorkStatus::FLUSHED));
    assert_eq!(link.turn().expect("nothing is called"), Turn::Idle);
}

/// Numbers of queue pairs that are compared, in turns.
const PAIRS: [usize; 3] = [1, 2, 4];
const ROUNDS: usize = 5;

/// Figures for `tests/rdma/run`, which has those of perftest beside them.
#[test]
fn figures() {
    let Some(domains) = domains() else { return };
    let bytes = 16 << 20;
    let (source, sink) = (Memory::pattern(bytes, 5), Memory::zeroed(bytes));
    let from = domains[0].register(source).expect("it can be pinned");
    let to = domains[1].register(sink).expect("it can be pinned");
    let mut rates = [const { Vec::new() }; PAIRS.len()];
    for _ in 0..ROUNDS {
        for (pairs, rates) in PAIRS.into_iter().zip(&mut rates) {
            let (mut link, _ends) = connect(&domains, pairs);
            let (begin, worked) = (Instant::now(), processor_time());
            let writes = vec![write(&from, 0, to.target(), bytes as u64)];
            assert_eq!(transfer(&mut link, writes), Ok(()));
            rates.push(bytes as f64 / begin.elapsed().as_secs_f64() / 1e6);
            let share = (processor_time() - worked).as_secs_f64() / begin.elapsed().as_secs_f64();
            assert!(share < 0.5, "whoever waits for a write has to sleep");
        }
    }
    for (pairs, mut rates) in PAIRS.into_iter().zip(rates) {
        let each: Vec<String> = rates.iter().map(|rate| format!("{rate:.1}")).collect();
        rates.sort_by(f64::total_cmp);
        let (median, each) = (rates[ROUNDS / 2], each.join(" "));
        println!("FIGURE ours: 16 MiB over {pairs} queue pairs: {median:.1} MB/s, each {each}");
    }
    // As perftest does it: one megabyte again and again, which stays in caches.
    let (mut link, _ends) = connect(&domains, 1);
    let begin = Instant::now();
    let same = (0..16).map(|_| write(&from, 0, to.target(), 1 << 20));
    assert_eq!(transfer(&mut link, same.collect()), Ok(()));
    let rate = bytes as f64 / begin.elapsed().as_secs_f64() / 1e6;
    println!("FIGURE ours: the same 1 MiB 16 times: {rate:.1} MB/s");
    let (mut link, _ends) = connect(&domains, 1);
    let mut times: Vec<Duration> = (0..100)
        .map(|_| {
            let begin = Instant::now();
            assert_eq!(transfer(&mut link, vec![write(&from, 0, to.target(), 4096)]), Ok(()));
            begin.elapsed()
        })
        .collect();
    times.sort();
    println!("FIGURE ours: 4 KiB, told by the descriptor: median {:?}", times[times.len() / 2]);
}
