//! Bodies as they arrive at the whole server: in pieces of any size, more of them than there are
//! buffers, and more bytes than there is memory.

#![expect(clippy::unwrap_used, reason = "a test ends where its client cannot go on")]

mod support;

use std::io::Write as _;
use std::time::{Duration, Instant};

use support::Server;
use support::client::{Client, body_of, request_of};

/// Bytes that differ from place to place.
fn pattern(bytes: usize, seed: u8) -> Vec<u8> {
    (0..bytes).map(|i| u8::try_from((i * 7 + i / 256) % 251).expect("below 251") ^ seed).collect()
}

#[test]
fn request_in_pieces_of_any_size_gives_the_same_reply() {
    send_in_pieces(&Server::builder().arg("--shards=1").start());
}

#[test]
fn request_in_pieces_to_a_server_that_watches_its_sockets_gives_the_same_reply() {
    send_in_pieces(&Server::builder().arg("--shards=1").arg("--busy-poll=300").start());
}

fn send_in_pieces(server: &Server) {
    let mut client = Client::connect(server.address(), "a");
    // Short and long blobs, and a text of several buffers.
    let blobs = [pattern(5_000, 1), pattern(100_000, 2), pattern(20, 3)];
    let sizes = blobs.iter().map(Vec::len);
    let allocs: Vec<String> =
        (1..).zip(sizes).map(|(n, size)| client.alloc(n, size as u64)).collect();
    client.batch(&allocs, &[]).ok();
    let copies: Vec<String> = (1..).zip(&blobs).map(|(n, blob)| client.copy_in(n, blob)).collect();
    for repeats in [1, 400] {
        let mut commands = vec![copies.clone(); repeats].concat();
        commands.push(client.copy_out(2));
        let blobs: Vec<&[u8]> = blobs.iter().map(Vec::as_slice).collect();
        let body = body_of(&format!("[{}]", commands.join(", ")), &blobs);
        let request = request_of(&body);
        for piece in [97, 4_096, 16_384, 16_385, 70_001, request.len()] {
            for part in request.chunks(piece) {
                client.stream.write_all(part).unwrap();
            }
            assert_eq!(client.receive().ok(), blobs[1], "pieces of {piece}");
        }
        // Several at once, of which each begins where the one before it ends.
        client.stream.write_all(&[&request[..], &request, &request].concat()).unwrap();
        for _ in 0..3 {
            assert_eq!(client.receive().ok(), blobs[1]);
        }
        // One and the beginning of another's head.
        let (begin, rest) = request.split_at(30);
        client.stream.write_all(&[&request[..], begin].concat()).unwrap();
        assert_eq!(client.receive().ok(), blobs[1]);
        client.stream.write_all(rest).unwrap();
        assert_eq!(client.receive().ok(), blobs[1]);
    }
}

#[test]
fn reply_is_not_held_back_by_a_request_behind_it_that_waits() {
    let server = Server::builder().arg("--shards=1").start();
    let mut client = Client::connect(server.address(), "a");
    let mut other = Client::connect(server.address(), "a");
    client.batch(&[client.alloc(1, 16)], &[]).ok();
    let session = client.session(0);
    let first = request_of(&body_of("[]", &[]));
    let second = request_of(&body_of(&format!("[Wait({session}, event=1)]"), &[]));
    client.stream.write_all(&[first, second].concat()).unwrap();
    client.receive().ok();
    other.batch(&[format!("Event({session}, event_{session}, event=1)")], &[]).ok();
    client.receive().ok();
}

#[test]
fn more_waiting_batches_than_buffers_leave_room_for_the_one_they_wait_for() {
    const WAITING: usize = 400;
    let server = Server::builder().arg("--shards").arg("1").start();
    let mut first = Client::connect(server.address(), "a");
    first.batch(&[first.alloc(1, 16)], &[]).ok();
    let session = first.session(0);
    let mut waiting: Vec<Client> =
        (0..WAITING).map(|_| Client::connect(server.address(), "a")).collect();
    for (number, client) in waiting.iter_mut().enumerate() {
        client.send(&[format!("Wait({session}, event={number})")], &[]);
    }
    // The one that ends the waits comes last, to a connection that was idle meanwhile.
    let events: Vec<String> = (0..WAITING)
        .map(|number| format!("Event({session}, event_{session}, event={number})"))
        .collect();
    first.batch(&events, &[]).ok();
    for client in &mut waiting {
        client.receive().ok();
        client.batch(&[], &[]).ok();
    }
}

/// The request of a client that copies blobs into buffers of its own.
fn upload(client: &mut Client, blobs: &[Vec<u8>]) -> Vec<u8> {
    let allocs: Vec<String> =
        (1..).zip(blobs).map(|(n, blob)| client.alloc(n, blob.len() as u64)).collect();
    client.batch(&allocs, &[]).ok();
    let mut commands: Vec<String> =
        (1..).zip(blobs).map(|(n, blob)| client.copy_in(n, blob)).collect();
    commands.push(client.copy_out(1));
    let blobs: Vec<&[u8]> = blobs.iter().map(Vec::as_slice).collect();
    request_of(&body_of(&format!("[{}]", commands.join(", ")), &blobs))
}

#[test]
fn upload_that_finds_no_staging_memory_waits_for_it() {
    // The buffers take all of the other budget, which long blobs may draw on.
    let server = Server::builder()
        .arg("--shards=1")
        .arg("--staging-memory=4M")
        .arg("--cpu-memory=5M")
        .start();
    let mut first = Client::connect(server.address(), "first");
    let mut second = Client::connect(server.address(), "second");
    let (ours, theirs) = (vec![pattern(3 << 20, 1)], vec![pattern(2 << 20, 2)]);
    let request = upload(&mut first, &ours);
    let other = upload(&mut second, &theirs);
    // The first holds three of four megabytes as soon as it has begun.
    let (begin, rest) = request.split_at(1 << 20);
    first.stream.write_all(begin).unwrap();
    first_is_seen(&server);
    std::thread::scope(|scope| {
        let mut writer = second.stream.try_clone().unwrap();
        // The server does not read what it has no room for, and this may not end before it does.
        scope.spawn(move || writer.write_all(&other).unwrap());
        first_is_seen(&server);
        first.stream.write_all(rest).unwrap();
        assert_eq!(first.receive().ok(), ours[0]);
        assert_eq!(second.receive().ok(), theirs[0]);
    });
}

/// Waits until the server has looked at what other connections have sent so far.
fn first_is_seen(server: &Server) {
    let mut probe = Client::connect(server.address(), "probe");
    for _ in 0..3 {
        probe.batch(&[], &[]).ok();
    }
}

/// A server, two clients and their requests, of which each has sent so much: its first blob. For
/// the second of either there is too little memory.
fn uploads_without_room(timeout: &str) -> (Server, [Client; 2], [Vec<u8>; 2], usize) {
    let server = Server::builder()
        .arg("--shards=1")
        .arg("--staging-memory=4M")
        .arg("--cpu-memory=6M")
        .arg(timeout)
        .start();
    let blobs = || vec![pattern(3 << 19, 1), pattern(3 << 19, 2)];
    let mut clients = ["first", "second"].map(|name| Client::connect(server.address(), name));
    let requests = clients.each_mut().map(|client| upload(client, &blobs()));
    let begin = requests[0].len() - (3 << 19) - 1000;
    for (client, request) in clients.iter_mut().zip(&requests) {
        client.stream.write_all(&request[..begin]).unwrap();
        first_is_seen(&server);
    }
    (server, clients, requests, begin)
}

#[test]
fn uploads_that_wait_for_each_others_memory_do_not_wait_for_ever() {
    let (server, mut clients, requests, begin) = uploads_without_room("--staging-timeout=0.5");
    let next = begin + 2000;
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for (client, request) in clients.iter_mut().zip(&requests) {
            client.stream.write_all(&request[begin..next]).unwrap();
            first_is_seen(&server);
            let mut writer = client.stream.try_clone().unwrap();
            // The one that is refused is not read to its end.
            scope.spawn(move || drop(writer.write_all(&request[next..])));
        }
        // The one that has waited longer gets on.
        let replies = clients.map(|mut client| client.receive());
        assert_eq!(replies[0].status, 200, "{}", replies[0].text());
        assert_eq!(replies[1].status, 503, "{}", replies[1].text());
        assert!(replies[1].text().contains("no staging memory came free"), "{}", replies[1].text());
    });
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[test]
fn client_that_hangs_up_while_its_upload_waits_gives_its_memory_back() {
    let begun = Instant::now();
    let (server, clients, requests, begin) = uploads_without_room("--staging-timeout=60");
    let [mut first, second] = clients;
    // What is sent behind that is not read.
    (&second.stream).write_all(&requests[1][begin..begin + 2000]).unwrap();
    first_is_seen(&server);
    drop(second);
    first.stream.write_all(&requests[0][begin..]).unwrap();
    assert_eq!(first.receive().status, 200);
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
}

#[test]
fn upload_that_never_fits_is_refused_at_once() {
    let server = Server::builder().arg("--staging-memory=4M").arg("--cpu-memory=1M").start();
    let mut client = Client::connect(server.address(), "a");
    let blobs = [pattern(3 << 20, 1), pattern(3 << 20, 2)];
    let request = request_of(&body_of("[]", &blobs.each_ref().map(Vec::as_slice)));
    // One that waits for memory which it holds itself would wait for ever.
    let mut writer = client.stream.try_clone().unwrap();
    std::thread::spawn(move || drop(writer.write_all(&request)));
    let reply = client.receive();
    assert_eq!(reply.status, 503, "{}", reply.text());
    assert!(reply.text().contains("no staging memory for"), "{}", reply.text());
}

#[test]
fn client_that_is_slow_in_a_long_blob_but_never_pauses_is_served() {
    let server = Server::builder().arg("--shards=1").arg("--body-timeout=1").start();
    let mut client = Client::connect(server.address(), "a");
    let blobs = [pattern(3 << 20, 1)];
    let request = upload(&mut client, &blobs);
    // Far fewer bytes at a time than the server is woken for.
    let (begin, rest) = request.split_at(1 << 20);
    let (slow, rest) = rest.split_at(12_000);
    client.stream.write_all(begin).unwrap();
    for piece in slow.chunks(1_000) {
        std::thread::sleep(Duration::from_millis(300));
        client.stream.write_all(piece).unwrap();
    }
    client.stream.write_all(rest).unwrap();
    assert!(client.receive().ok() == blobs[0]);
}

#[test]
fn client_that_pauses_in_a_long_blob_is_refused() {
    let server = Server::builder().arg("--shards=1").arg("--body-timeout=0.5").start();
    let mut client = Client::connect(server.address(), "a");
    let request = upload(&mut client, &[pattern(3 << 20, 1)]);
    client.stream.write_all(&request[..1 << 20]).unwrap();
    let begun = Instant::now();
    assert_eq!(client.receive().status, 408);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}
