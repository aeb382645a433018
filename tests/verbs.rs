//! Two servers that write each other's memory by a network card that is not there: the library of
//! `tests/fakes/ibverbs.rs` instead of the real one.
//!
//! What only a kernel's driver can tell is in `tests/rdma`, which needs a virtual machine. Absent:
//! tinygrad's own tests over such a card, which are in `tests/tinygrad.rs`.

mod support;

use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::Server;
use support::client::Client;
use support::hosts::{event, wait};
use support::wait::wait_until;

/// Well above what anything takes here.
const LIMIT: Duration = Duration::from_secs(30);
const CONNECTED: &str = "connected by RDMA";

fn server(arguments: &[&str], lost_completion: Option<u32>) -> Server {
    let mut builder = Server::builder().on_fake_card();
    for argument in arguments {
        builder = builder.arg(argument);
    }
    if let Some(lost) = lost_completion {
        builder = builder.env("FAKE_IBVERBS_LOSE", &lost.to_string());
    }
    builder.start()
}

/// A session of each server, of one client. Those of another length are others: sessions end only
/// some time after their connection.
fn sessions(near: &Server, far: &Server, bytes: u64) -> [Client; 2] {
    [near, far].map(|server| {
        let mut client =
            Client::connect(server.address(), &format!("pair{bytes}")).naming_its_server();
        client.batch(&[client.alloc(1, bytes), client.alloc(2, bytes)], &[]).ok();
        client
    })
}

/// Has `from` write its buffer 1 to buffer 2 of `to`.
fn transfer(from: &Client, to: &Client) -> String {
    let (session, to) = (from.session(0), to.key(0));
    format!("Transfer({session}, buffer_num=1, dsession={to}, dbuffer_num=2)")
}

/// The same, as graphs of several hosts say it.
fn batch_transfer(from: &Client, to: &Client) -> String {
    let (session, source, to) = (from.session(0), from.key(0), to.key(0));
    format!("BatchTransfer({session}, sbuffer_nums=[({source}, 1)], dbuffer_nums=[({to}, 2)])")
}

/// Bytes that are nowhere the same, and others for another seed.
fn pattern(bytes: usize, seed: u32) -> Vec<u8> {
    let words = (0..u32::MAX).map(|word| (word ^ seed).wrapping_mul(0x9e37_79b1));
    words.flat_map(u32::to_le_bytes).take(bytes).collect()
}

#[test]
fn copy_of_any_length_is_written_by_the_card() {
    let (a, b) = (server(&[], None), server(&[], None));
    for bytes in [1_usize, 4096, 300_001, (5 << 20) + 7] {
        let mut pair = sessions(&a, &b, bytes as u64);
        let [near, far] = &mut pair;
        let data = pattern(bytes, 1);
        near.batch(&[near.copy_in(1, &data), transfer(near, far)], &[&data]).ok();
        assert!(far.batch(&[far.copy_out(2)], &[]).ok() == data, "{bytes} bytes");
    }
    assert!(a.stderr().contains(CONNECTED), "{}", a.stderr());
    assert!(!b.stderr().contains(CONNECTED), "it had nothing to write");
}

/// What graphs of several hosts do, from both sides at once: each waits for what the other has
/// written, and neither may see anything older.
#[test]
fn copies_and_events_that_cross_bring_every_rounds_bytes() {
    const BYTES: usize = 100_000;
    let (a, b) = (server(&["--rdma-queue-pairs=3"], None), server(&[], None));
    let mut pair = sessions(&a, &b, BYTES as u64);
    for round in 0..40_u32 {
        let [near, far] = &mut pair;
        let data = [pattern(BYTES, 2 * round), pattern(BYTES, 2 * round + 1)];
        let number = u64::from(round);
        let batch = |own: &Client, other: &Client, data: &[u8]| {
            let (ready, written) = (2 * number, 2 * number + 1);
            let write =
                if round % 2 == 0 { transfer(own, other) } else { batch_transfer(own, other) };
            [
                own.copy_in(1, data),
                event(own, other, ready),
                wait(own, ready),
                write,
                event(own, other, written),
                wait(own, written),
                own.copy_out(2),
            ]
        };
        let batches = [batch(near, far, &data[0]), batch(far, near, &data[1])];
        near.send(&batches[0], &[&data[0]]);
        far.send(&batches[1], &[&data[1]]);
        assert!(near.receive().ok() == data[1], "round {round}");
        assert!(far.receive().ok() == data[0], "round {round}");
    }
    for server in [&a, &b] {
        assert_eq!(server.stderr().matches(CONNECTED).count(), 1, "{}", server.stderr());
    }
}

#[test]
fn completion_that_never_comes_ends_in_an_error_with_the_peers_name() {
    let (a, b) = (server(&["--peer-timeout=2"], Some(2)), server(&[], None));
    let mut pair = sessions(&a, &b, 5000);
    let [near, far] = &mut pair;
    let peer = format!("peer {}: nothing was heard of it for 2s", b.address());
    for round in 1..=3 {
        let data = pattern(5000, round);
        let begun = Instant::now();
        let reply = near.batch(&[near.copy_in(1, &data), transfer(near, far)], &[&data]);
        assert!(begun.elapsed() < LIMIT, "round {round}: {:?}", begun.elapsed());
        if round == 2 {
            let failure = reply.failure();
            assert!(failure.contains(&peer), "{failure}");
            continue;
        }
        reply.ok();
        assert!(far.batch(&[far.copy_out(2)], &[]).ok() == data, "round {round}");
    }
    assert_eq!(a.stderr().matches(CONNECTED).count(), 2, "a link that failed is not used again");
}

#[test]
fn peer_that_dies_is_named_and_the_server_serves_on() {
    let (a, b) = (server(&["--peer-timeout=2"], None), server(&[], None));
    let mut pair = sessions(&a, &b, 5000);
    let [near, far] = &mut pair;
    near.batch(&[transfer(near, far)], &[]).ok();
    b.signal(Signal::KILL);
    let peer = format!("peer {}: ", b.address());
    let failure = near.batch(&[transfer(near, far)], &[]).failure();
    assert!(failure.contains(&peer), "{failure}");
    let _ = b.wait(LIMIT);
    let data = pattern(5000, 7);
    assert_eq!(near.batch(&[near.copy_in(1, &data), near.copy_out(1)], &[&data]).ok(), data);
    // What was registered goes with its session, or the library would end the server.
    near.batch(&[format!("SessionFree({})", near.session(0))], &[]).ok();
}

#[test]
fn buffer_that_was_freed_is_not_written_by_its_old_key() {
    let (a, b) = (server(&[], None), server(&[], None));
    let mut pair = sessions(&a, &b, 5000);
    let [near, far] = &mut pair;
    near.batch(&[transfer(near, far)], &[]).ok();
    let free = format!("BufferFree({}, buffer_num=2)", far.session(0));
    far.batch(&[free], &[]).ok();
    let failure = near.batch(&[transfer(near, far)], &[]).failure();
    assert!(failure.contains("unknown buffer 2"), "{failure}");
    far.batch(&[far.alloc(2, 5000)], &[]).ok();
    let data = pattern(5000, 9);
    near.batch(&[near.copy_in(1, &data), transfer(near, far)], &[&data]).ok();
    assert_eq!(far.batch(&[far.copy_out(2)], &[]).ok(), data);
    wait_until("the refused links are gone", || a.stderr().matches(CONNECTED).count() == 2);
}

/// Long work of one session: so many copies of a large buffer onto another.
fn long_work(at: &Client) -> Vec<String> {
    let mut commands = vec![at.alloc(90, LONG_BYTES), at.alloc(91, LONG_BYTES)];
    commands.extend((0..40).map(|_| own_copy(at, 90, 91)));
    commands
}

/// Most of what lies in a heap's segment beside others.
const LONG_BYTES: u64 = 24 << 20;

fn own_copy(at: &Client, from: u64, to: u64) -> String {
    let (session, key) = (at.session(0), at.key(0));
    format!("Transfer({session}, buffer_num={from}, dsession={key}, dbuffer_num={to})")
}

fn free(at: &Client, buffer: u64) -> String {
    format!("BufferFree({}, buffer_num={buffer})", at.session(0))
}

/// Long enough for its pages to be given back to the system when it is freed.
const GIVEN_BACK_BYTES: usize = 1 << 20;

/// A card keeps the pages that it was told of, so it must not be told of those that are about to
/// be given back.
#[test]
fn source_where_another_buffer_was_is_written_as_it_is_now() {
    let (a, b) = (server(&[], None), server(&[], None));
    let mut pair = sessions(&a, &b, GIVEN_BACK_BYTES as u64);
    let [near, far] = &mut pair;
    for round in 0..3 {
        let data = pattern(GIVEN_BACK_BYTES, round);
        near.batch(&[near.copy_in(1, &data)], &[&data]).ok();
        // Behind long work the first buffer's pages are given back, and the second one filled.
        let mut commands = long_work(near);
        commands.extend([
            near.alloc(3, GIVEN_BACK_BYTES as u64),
            own_copy(near, 1, 3),
            free(near, 2),
            near.alloc(2, GIVEN_BACK_BYTES as u64),
            own_copy(near, 3, 2),
            free(near, 1),
            near.alloc(1, GIVEN_BACK_BYTES as u64),
            own_copy(near, 2, 1),
            transfer(near, far),
            free(near, 3),
            free(near, 90),
            free(near, 91),
        ]);
        near.batch(&commands, &[]).ok();
        assert!(far.batch(&[far.copy_out(2)], &[]).ok() == data, "round {round}");
    }
}

#[test]
fn destination_where_another_buffer_was_keeps_what_is_written() {
    let (a, b) = (server(&[], None), server(&[], None));
    // Those whose pages are given back, and those that are too short for that.
    for bytes in [GIVEN_BACK_BYTES, GIVEN_BACK_BYTES / 8] {
        let mut pair = sessions(&a, &b, bytes as u64);
        let [near, far] = &mut pair;
        let data = pattern(bytes, 3);
        near.batch(&[near.copy_in(1, &data)], &[&data]).ok();
        // What was written to the first buffer comes after long work, and nobody waits for it.
        let mut commands = long_work(far);
        commands.extend([own_copy(far, 1, 2), free(far, 2), far.alloc(2, bytes as u64)]);
        far.batch(&commands, &[]).ok();
        near.batch(&[transfer(near, far)], &[]).ok();
        assert!(far.batch(&[far.copy_out(2)], &[]).ok() == data, "{bytes} bytes");
    }
}
