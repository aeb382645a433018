//! Memory nodes: a connection is served next to the device that it names first.

mod support;

use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use outboard::identity::Access;
use support::client::{Client, body_of, request_of};
use support::nodes::TwoNodes;

/// Of these all come to the same shard by chance once in tens of thousands of runs.
const CONNECTIONS: usize = 16;

/// Allocates a buffer on a device.
fn alloc(client: &Client, index: u64) -> String {
    client.alloc(1, 8).replace(&client.session(0), &client.session(index))
}

fn copy_in(client: &Client, index: u64, blob: &[u8]) -> String {
    client.copy_in(1, blob).replace(&client.session(0), &client.session(index))
}

fn copy_out(client: &Client, index: u64) -> String {
    client.copy_out(1).replace(&client.session(0), &client.session(index))
}

#[test]
fn session_lives_next_to_its_device_wherever_its_connection_was_accepted() {
    let server = TwoNodes::start(Access::default());
    for turn in 0..CONNECTIONS {
        let mut client = Client::connect(server.address(), &format!("n{turn}"));
        let index = turn as u64 % 2;
        client.batch(&[alloc(&client, index)], &[]).ok();
        assert_eq!(server.opened(), [(index, format!("shard-{index}"))]);
        // Later sessions live where the first does.
        client.batch(&[alloc(&client, 1 - index)], &[]).ok();
        assert_eq!(server.opened(), [(1 - index, format!("shard-{index}"))]);
        client.batch(&[copy_in(&client, index, b"12345678")], &[b"12345678"]).ok();
        assert_eq!(client.batch(&[copy_out(&client, index)], &[]).ok(), b"12345678");
    }
    server.finish();
}

#[test]
fn requests_behind_the_first_are_answered_in_order_however_they_are_cut() {
    let server = TwoNodes::start(Access::default());
    for turn in 0..2 * CONNECTIONS {
        let mut client = Client::connect(server.address(), &format!("p{turn}"));
        let first = [alloc(&client, 1)];
        let mut sent = request_of(&body_of(&format!("[{}]", first.join(", ")), &[]));
        let first_bytes = sent.len();
        for round in 0..20_u8 {
            let blob = [round; 8];
            let text = format!("[{}, {}]", copy_in(&client, 1, &blob), copy_out(&client, 1));
            sent.extend(request_of(&body_of(&text, &[&blob])));
        }
        // Together, in the middle of the first, at its end, in the middle of the second.
        let cut = [0, first_bytes / 2, first_bytes, first_bytes + 40][turn % 4];
        let (before, behind) = sent.split_at(cut);
        client.stream.write_all(before).expect("the server reads");
        if turn % 8 < 4 {
            std::thread::yield_now();
        }
        client.stream.write_all(behind).expect("the server reads");
        client.receive().ok();
        for round in 0..20 {
            assert_eq!(client.receive().ok(), [round; 8]);
        }
        assert_eq!(server.opened(), [(1, "shard-1".to_owned())]);
    }
    server.finish();
}

#[test]
fn connection_whose_first_request_brings_data_stays_where_its_data_landed() {
    let server = TwoNodes::start(Access::default());
    let mut threads = std::collections::BTreeSet::new();
    for turn in 0..CONNECTIONS {
        let mut client = Client::connect(server.address(), &format!("d{turn}"));
        let commands = [alloc(&client, 1), copy_in(&client, 1, b"12345678"), copy_out(&client, 1)];
        assert_eq!(client.batch(&commands, &[b"12345678"]).ok(), b"12345678");
        threads.extend(server.opened());
    }
    assert_eq!(threads, [(1, "shard-0".to_owned()), (1, "shard-1".to_owned())].into());
    server.finish();
}

#[test]
fn connection_that_names_a_session_of_another_shard_reaches_it() {
    let server = TwoNodes::start(Access::default());
    let mut client = Client::connect(server.address(), "shared");
    client.batch(&[alloc(&client, 1)], &[]).ok();
    client.batch(&[copy_in(&client, 1, b"12345678")], &[b"12345678"]).ok();
    for _ in 0..CONNECTIONS {
        let mut other = Client::connect(server.address(), "shared");
        assert_eq!(other.batch(&[copy_out(&other, 1)], &[]).ok(), b"12345678");
    }
    assert_eq!(server.opened(), [(1, "shard-1".to_owned())]);
    drop(client);
    server.finish();
}

/// Whether a first request is answered; a connection that is one too many is not.
fn is_served(client: &mut Client) -> bool {
    let text = format!("[{}]", alloc(client, 1));
    // Whoever is turned away may not hear why.
    let sent = client.stream.write_all(&request_of(&body_of(&text, &[])));
    let mut head = [0; 12];
    sent.is_ok() && client.stream.read_exact(&mut head).is_ok() && head == *b"HTTP/1.1 200"
}

#[test]
fn connection_stays_where_it_is_while_the_other_shard_serves_as_many_as_it_may() {
    const LIMIT: usize = 4;
    let server = TwoNodes::with_limit(Access::default(), LIMIT);
    let connect = |turn: usize| {
        let mut client = Client::connect(server.address(), &format!("f{turn}"));
        is_served(&mut client).then_some(client)
    };
    let clients: Vec<_> = (0..3 * CONNECTIONS).filter_map(connect).collect();
    let opened = server.opened();
    assert_eq!(opened.len(), clients.len());
    let at =
        |shard| opened.iter().filter(|(_, opened)| *opened == format!("shard-{shard}")).count();
    assert_eq!((at(0), at(1)), (LIMIT, LIMIT));
    drop(clients);
    // Places come back with the connections' ends.
    let begun = Instant::now();
    while connect(3 * CONNECTIONS).is_none() || server.opened()[0].1 != "shard-1" {
        assert!(begun.elapsed() < Duration::from_secs(60), "no place has come free");
        std::thread::yield_now();
    }
    server.finish();
}

#[test]
fn first_request_that_is_bad_is_answered_and_the_connection_goes_on() {
    let server = TwoNodes::start(Access::default());
    for turn in 0..CONNECTIONS {
        let mut client = Client::connect(server.address(), &format!("b{turn}"));
        assert!(client.batch(&["1".to_owned()], &[]).failure().contains("bad command text"));
        client.batch(&[alloc(&client, 1)], &[]).ok();
        // A device that is not there moves nobody.
        let mut client = Client::connect(server.address(), &format!("c{turn}"));
        assert!(client.batch(&[alloc(&client, 7)], &[]).failure().contains("device"));
    }
    server.finish();
}
