//! Limits, met by clients over sockets: what is said, and what goes on all the same.
//!
//! Limits of the parsers are met in their own tests, without a server: `tests/framing.rs` for
//! requests, `src/wire/tests.rs` for commands, `src/wire/envelope.rs` for bodies.

mod support;

use std::io::{Read as _, Write as _};

use support::Server;
use support::client::{Client, Reply, body_of, request_of};
use support::holdings::resident_bytes;
use support::tokens::{TokenFile, ann, bob};
use support::wait::wait_until;

const MIB: u64 = 1 << 20;

/// Checks that a batch of one command is refused in words that have all of these.
fn refused(client: &mut Client, command: String, parts: &[&str]) {
    let words = client.batch(&[command], &[]).failure();
    for part in parts {
        assert!(words.contains(part), "{part:?} is missing: {words}");
    }
}

fn allocate(client: &mut Client, buffer: u64, bytes: u64) {
    let alloc = [client.alloc(buffer, bytes)];
    client.batch(&alloc, &[]).ok();
}

fn free(client: &mut Client, buffer: u64) {
    let free = [format!("BufferFree({}, buffer_num={buffer})", client.session(0))];
    client.batch(&free, &[]).ok();
}

/// Sends the head of a batch that is never sent, and receives the answer.
fn head_alone(client: &mut Client, fields: &str) -> Reply {
    let head = format!(
        "POST /batch HTTP/1.1\r\nHost: h\r\n{fields}Expect: 100-continue\r\n\
         Content-Length: 1000000000\r\n\r\n"
    );
    client.stream.write_all(head.as_bytes()).expect("the server takes it");
    client.receive()
}

#[test]
fn session_past_its_memory_is_refused_more_until_it_frees_some() {
    let server = Server::builder().arg("--session-memory=64M").start();
    let mut client = Client::connect(server.address(), "a");
    allocate(&mut client, 1, 40 * MIB);
    let said = ["(BufferAlloc)", "of the 67108864", "one session", "--session-memory"];
    let more = client.alloc(2, 40 * MIB);
    refused(&mut client, more, &said);
    // What is uploaded becomes the buffer's memory, and counts as it did before.
    for _ in 0..3 {
        client.upload(1, 40 * MIB, &[7; 1 << 20], &mut || {});
    }
    let more = client.alloc(3, 25 * MIB);
    refused(&mut client, more, &said);
    let out = [client.copy_out(1)];
    let back = client.batch(&out, &[]).ok();
    assert!(back.len() == 40 << 20 && back.iter().all(|byte| *byte == 7));
    free(&mut client, 1);
    allocate(&mut client, 1, 64 * MIB);
    // Another session of the same client has as much.
    allocate(&mut Client::connect(server.address(), "b"), 1, 64 * MIB);
}

#[test]
fn identity_past_its_memory_is_refused_more_on_every_connection() {
    let file = TokenFile::of_both();
    let server = file.server().arg("--identity-memory=64M").start();
    let mut first = ann(&server, "a");
    allocate(&mut first, 1, 48 * MIB);
    let said = ["(BufferAlloc)", "of the 67108864", "one identity", "--identity-memory"];
    // Among many connections some are on the first one's shard, and some are not.
    for round in 0..8 {
        let mut other = ann(&server, &format!("b{round}"));
        let more = other.alloc(1, 17 * MIB);
        refused(&mut other, more, &said);
        allocate(&mut other, 2, 15 * MIB);
        free(&mut other, 2);
        // What was freed is given back behind the work that is queued.
        let out = [other.alloc(3, 4), other.copy_out(3)];
        other.batch(&out, &[]).ok();
    }
    allocate(&mut bob(&server, "a"), 1, 64 * MIB);
    drop(first);
    let mut late = ann(&server, "late");
    let alloc = [late.alloc(1, 64 * MIB)];
    wait_until("the first one's memory is free", || late.batch(&alloc, &[]).status == 200);
}

#[test]
fn bodies_of_one_identity_leave_room_for_those_of_another() {
    let file = TokenFile::of_both();
    let server = file
        .server()
        .args(["--staging-memory=32M", "--cpu-memory=96M", "--identity-memory=32M"])
        .start();
    // One fills the memory for buffers, so that what arrives has that for bodies alone.
    let mut filler = bob(&server, "a");
    allocate(&mut filler, 1, 28 * MIB);
    allocate(&mut filler, 2, 4 * MIB);
    let before = resident_bytes(server.pid());
    let mut greedy: Vec<Client> = (0..3).map(|_| ann(&server, "a")).collect();
    for client in &mut greedy {
        client.stream.set_nonblocking(true).unwrap();
        let head = format!(
            "POST /batch HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {}\r\n\
             Content-Length: 1000000000\r\n\r\n",
            support::tokens::ANN
        );
        let blob_head = [&[1; 32][..], &(30 * MIB).to_le_bytes()].concat();
        client.stream.write_all(&[head.as_bytes(), &blob_head].concat()).unwrap();
    }
    // Each sends for as long as anything is taken, and never all of it.
    let piece = vec![1; 1 << 20];
    let mut left = [29 << 20; 3];
    wait_until("they hold what they can get", || {
        for (client, left) in greedy.iter_mut().zip(&mut left) {
            while *left > 0
                && let Ok(sent) = client.stream.write(&piece[..piece.len().min(*left)])
            {
                *left -= sent;
            }
        }
        // They get about 50 MiB. What else the server has used since differs by some.
        resident_bytes(server.pid()) >= before + (36 << 20)
    });
    let bytes = vec![9; 4 << 20];
    let copy = [filler.copy_in(2, &bytes), filler.copy_out(2)];
    assert!(filler.batch(&copy, &[&bytes]).ok() == bytes);
    drop(greedy);
}

#[test]
fn identity_past_its_connections_is_told_so_before_its_body() {
    let file = TokenFile::of_both();
    let server = file.server().arg("--identity-connections=3").start();
    let mut open: Vec<Client> = (0..3).map(|_| ann(&server, "a")).collect();
    open.iter_mut().for_each(|client| drop(client.batch(&[], &[]).ok()));
    for _ in 0..4 {
        let mut more = ann(&server, "a");
        let fields = format!("Authorization: Bearer {}\r\n", support::tokens::ANN);
        let reply = head_alone(&mut more, &fields);
        assert_eq!(reply.status, 429, "{}", reply.text());
        for part in ["one identity has at most 3", "close some", "--identity-connections"] {
            assert!(reply.text().contains(part), "{}", reply.text());
        }
        assert_eq!(more.stream.read(&mut [0]).unwrap(), 0, "it closes");
    }
    // A small body does not cost the connection, which is served once there is room.
    let mut late = ann(&server, "a");
    assert_eq!(late.batch(&[], &[]).status, 429);
    bob(&server, "a").batch(&[], &[]).ok();
    open.iter_mut().for_each(|client| drop(client.batch(&[], &[]).ok()));
    drop(open.pop());
    wait_until("there is room", || late.batch(&[], &[]).status == 200);
    // So is one that says to be somebody else from now on.
    let mut other = late.with_token(support::tokens::BOB);
    other.batch(&[], &[]).ok();
    ann(&server, "a").batch(&[], &[]).ok();
}

#[test]
fn connections_that_say_nothing_count_where_their_address_is_known() {
    // One shard, which counts them in their order.
    let server = Server::builder()
        .args(["--shards=1", "--identity-connections=2", "--head-timeout=0.5"])
        .start();
    let mut silent = Client::connect(server.address(), "a");
    silent.batch(&[], &[]).ok();
    let idle = Client::connect(server.address(), "a");
    assert_eq!(Client::connect(server.address(), "a").batch(&[], &[]).status, 429);
    // What has no place lives for the time of a head only.
    let mut more = Client::connect(server.address(), "a");
    assert_eq!(more.stream.read(&mut [0]).unwrap(), 0, "it closes");
    silent.batch(&[], &[]).ok();
    drop(idle);
    wait_until("there is room", || {
        Client::connect(server.address(), "a").batch(&[], &[]).status == 200
    });
}

#[test]
fn connection_beyond_those_of_its_shard_is_told_so_and_closed() {
    let server = Server::builder().args(["--shards=1", "--connection-limit=2"]).start();
    let mut first = Client::connect(server.address(), "a");
    let mut second = Client::connect(server.address(), "b");
    first.batch(&[], &[]).ok();
    second.batch(&[], &[]).ok();
    for says_nothing in [true, false] {
        let mut third = Client::connect(server.address(), "c");
        if !says_nothing {
            third.send(&[], &[]);
        }
        let reply = third.receive();
        assert_eq!(reply.status, 503, "{}", reply.text());
        for part in ["at most 2", "try again", "--connection-limit"] {
            assert!(reply.text().contains(part), "{}", reply.text());
        }
        assert_eq!(third.stream.read(&mut [0]).unwrap(), 0, "it closes");
    }
    first.batch(&[], &[]).ok();
    drop(second);
    wait_until("there is room", || {
        let mut third = Client::connect(server.address(), "c");
        third.send(&[], &[]);
        third.receive().status == 200
    });
}

/// A request whose body is not announced, in chunks of a megabyte.
fn chunked(body: &[u8]) -> Vec<u8> {
    let mut request =
        b"POST /batch HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for chunk in body.chunks(1 << 20) {
        request.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        request.extend_from_slice(&[chunk, b"\r\n"].concat());
    }
    request.extend_from_slice(b"0\r\n\r\n");
    request
}

#[test]
fn text_past_its_limit_is_refused_however_its_length_is_told() {
    let server = Server::start();
    let text = format!("[{}]", " ".repeat(16 << 20));
    let body = body_of(&text, &[]);
    let fits = body_of(&text[2..].replacen(' ', "[", 1), &[]);
    for as_request in [|body: &[u8]| chunked(body), |body: &[u8]| request_of(body)] {
        let mut client = Client::connect(server.address(), "a");
        let mut writer = client.stream.try_clone().unwrap();
        let request = as_request(&body);
        let writing = std::thread::spawn(move || writer.write_all(&request));
        let reply = client.receive();
        assert_eq!(reply.status, 413, "{}", reply.text());
        assert!(reply.text().contains("16777218 bytes, the limit is 16777216"), "{}", reply.text());
        // The connection may close before all of it is taken.
        drop(writing.join());
        let mut client = Client::connect(server.address(), "a");
        client.stream.write_all(&as_request(&fits)).unwrap();
        client.receive().ok();
    }
}

#[test]
fn short_blobs_by_the_thousand_are_charged_as_long_ones_are() {
    let limits = ["--staging-memory=8M", "--cpu-memory=4M", "--staging-timeout=1"];
    let server = Server::builder().args(limits).start();
    let mut client = Client::connect(server.address(), "a");
    let blobs: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte; 16 << 10]).collect();
    let some: Vec<&[u8]> = blobs.iter().map(Vec::as_slice).collect();
    let commands = [client.alloc(1, 16 << 10), client.copy_in(1, &blobs[200]), client.copy_out(1)];
    assert!(client.batch(&commands, &some).ok() == blobs[200]);
    // Four times as many, each with a name of its own.
    let mut body = Vec::new();
    for number in 0..1024_u64 {
        let name = [number.to_le_bytes(); 4].concat();
        let length = (16_u64 << 10).to_le_bytes();
        body.extend_from_slice(&[&name[..], &length, &[7; 16 << 10]].concat());
    }
    body.extend_from_slice(&body_of("[]", &[]));
    let mut writer = client.stream.try_clone().unwrap();
    let writing = std::thread::spawn(move || writer.write_all(&request_of(&body)));
    let reply = client.receive();
    assert_eq!(reply.status, 503, "{}", reply.text());
    assert!(reply.text().contains("no staging memory"), "{}", reply.text());
    drop(client);
    // It ends with the connection, of which not all was taken.
    drop(writing.join());
}
