//! Bodies that lie about themselves, and connections that waste time.

use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use super::commands::{ADD_ONE, ready};
use super::support::Server;
use super::support::client::{Client, body_of, name_of, request_of};
use super::support::holdings::{Holdings, resident_bytes};
use super::support::wait::wait_until;

/// The header of a blob.
fn blob_head(bytes: u64) -> Vec<u8> {
    [&[1; 32][..], &bytes.to_le_bytes()].concat()
}

/// Sends bytes as they are, and checks the status and words of the reply.
fn answers(client: &mut Client, bytes: &[u8], status: u16, part: &str) {
    client.stream.write_all(bytes).expect("the server takes it");
    let reply = client.receive();
    assert_eq!(reply.status, status, "{}", reply.text());
    assert!(reply.text().contains(part), "{part}: {}", reply.text());
}

fn chunked(body: &[u8], chunk_bytes: usize) -> Vec<u8> {
    let mut request =
        b"POST /batch HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for chunk in body.chunks(chunk_bytes) {
        request.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        request.extend_from_slice(&[chunk, b"\r\n"].concat());
    }
    request.extend_from_slice(b"0\r\n\r\n");
    request
}

#[test]
fn blob_named_twice_is_refused() {
    let server = Server::start();
    for bytes in [4, 20_000, 600_000] {
        let mut client = Client::connect(server.address(), "a");
        let (first, second) = (vec![1; bytes], vec![2; bytes]);
        let mut body = Vec::new();
        for blob in [&first, &second] {
            body.extend_from_slice(&[&[7; 32][..], &(bytes as u64).to_le_bytes(), blob].concat());
        }
        body.extend_from_slice(&body_of("[]", &[]));
        answers(&mut client, &request_of(&body), 400, "is named twice in one batch");
        // The session of one that has just left may still be there, and about to end.
        ready(&mut Client::connect(server.address(), &format!("b{bytes}")));
    }
}

#[test]
fn blob_of_impossible_length_is_refused_at_once() {
    let server = Server::start();
    ready(&mut Client::connect(server.address(), "b"));
    let before = resident_bytes(server.pid());
    for (bytes, status, part) in [
        (u64::MAX, 413, "longer than the limit"),
        (1 << 63, 413, "longer than the limit"),
        (u64::MAX - 39, 413, "longer than the limit"),
        (1 << 37, 400, "before the end of a blob"),
    ] {
        // Of known and of unknown length.
        let body = [blob_head(bytes), vec![0; 100]].concat();
        let mut client = Client::connect(server.address(), "a");
        answers(&mut client, &request_of(&body), status, part);
        if status == 413 {
            let mut client = Client::connect(server.address(), "a");
            answers(&mut client, &chunked(&body, 64), status, part);
        }
    }
    assert!(resident_bytes(server.pid()) < before + (8 << 20));
}

#[test]
fn body_that_ends_in_a_header_is_refused() {
    let server = Server::start();
    let whole = body_of("[]", &[b"blob"]);
    for length in [1, 31, 32, 39, 43, 45, 60, 83] {
        let mut client = Client::connect(server.address(), "a");
        answers(&mut client, &request_of(&whole[..length]), 400, "bad body");
        let mut client = Client::connect(server.address(), "a");
        answers(&mut client, &chunked(&whole[..length], 5), 400, "bad body");
    }
    let mut client = Client::connect(server.address(), "a");
    answers(&mut client, &request_of(b""), 400, "bad body");
}

#[test]
fn blob_is_known_to_its_own_batch_only() {
    let server = Server::start();
    let mut client = Client::connect(server.address(), "a");
    let blob = b"sixteen bytes...";
    let copy = [client.alloc(1, 16), client.copy_in(1, blob)];
    client.batch(&copy, &[blob]).ok();
    // Nobody is told more about it than about one that never was.
    let unknown = |client: &mut Client, blob: &[u8]| {
        let copy = [client.copy_in(1, blob)];
        client.batch(&copy, &[]).failure().replace(&name_of(blob), "NAME")
    };
    let mut other = Client::connect(server.address(), "b");
    ready(&mut other);
    let never = unknown(&mut other, b"something else..");
    assert!(never.contains("no blob NAME in this batch"), "{never}");
    assert_eq!(unknown(&mut client, blob), never);
    assert_eq!(unknown(&mut other, blob), never);
    // A name is what its batch says, and means nothing to the next.
    let name = name_of(blob);
    let text = format!(
        "[CopyIn({}, buffer_num=1, datahash='{name}'), {}]",
        other.session(0),
        other.copy_out(1)
    );
    let mut body = body_of("", &[blob]);
    body.truncate(40 + blob.len());
    body[40..].copy_from_slice(b"not these bytes!");
    body.extend_from_slice(&body_of(&text, &[]));
    other.stream.write_all(&request_of(&body)).unwrap();
    assert_eq!(other.receive().ok(), b"not these bytes!");
    let out = [client.copy_out(1)];
    assert_eq!(client.batch(&out, &[]).ok(), blob);
}

#[test]
fn flood_of_tiny_chunks_costs_no_memory() {
    let server = Server::builder().arg("--shards=1").start();
    let mut client = Client::connect(server.address(), "a");
    let mut other = Client::connect(server.address(), "b");
    ready(&mut other);
    let blob = vec![5; 3 << 20];
    let commands = [client.alloc(1, 3 << 20), client.copy_in(1, &blob), client.copy_out(1)];
    let body = body_of(&format!("[{}]", commands.join(", ")), &[&blob]);
    let request = chunked(&body, 6);
    let before = resident_bytes(server.pid());
    let mut writer = client.stream.try_clone().unwrap();
    let writing = std::thread::spawn(move || writer.write_all(&request).unwrap());
    let mut slowest = Duration::ZERO;
    while !writing.is_finished() {
        let begun = Instant::now();
        other.batch(&[], &[]).ok();
        slowest = slowest.max(begun.elapsed());
    }
    writing.join().unwrap();
    assert!(client.receive().ok() == blob);
    assert!(slowest < Duration::from_secs(2), "others wait {slowest:?}");
    // The blob, its buffer, and little else.
    let after = resident_bytes(server.pid());
    assert!(after < before + (20 << 20), "{} KiB more", (after - before) >> 10);
}

#[test]
fn terabytes_announced_cost_nothing() {
    let server = Server::builder().args(["--body-timeout=0.5", "--body-limit=4T"]).start();
    ready(&mut Client::connect(server.address(), "b"));
    let before = resident_bytes(server.pid());
    let silent = |fields: &str, body: &[u8]| {
        let mut client = Client::connect(server.address(), "a");
        let head = format!("POST /batch HTTP/1.1\r\nHost: h\r\n{fields}\r\n");
        client.stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
        client
    };
    let mut kept: Vec<(Client, u16)> = Vec::new();
    for _ in 0..8 {
        kept.push((silent("Content-Length: 3000000000000\r\n", &blob_head(200 << 30)), 503));
        kept.push((silent("Content-Length: 3000000000000\r\n", &[]), 408));
        kept.push((silent("Content-Length: 5000000000000\r\n", &[]), 413));
        kept.push((silent("Content-Length: 99999999999999999999\r\n", &[]), 400));
        let chunk = [b"2000000000\r\n", &blob_head(1 << 20)[..]].concat();
        kept.push((silent("Transfer-Encoding: chunked\r\n", &chunk), 408));
    }
    for (client, status) in &mut kept {
        let reply = client.receive();
        assert_eq!(reply.status, *status, "{}", reply.text());
        assert_eq!(client.stream.read(&mut [0]).unwrap(), 0, "it closes");
    }
    assert!(resident_bytes(server.pid()) < before + (16 << 20));
}

#[test]
fn client_that_reads_nothing_of_its_reply_is_given_up() {
    let server = Server::builder().arg("--reply-timeout=1").start();
    let mut idle = Client::connect(server.address(), "idle");
    ready(&mut idle);
    wait_until("its worker runs", || Holdings::of(server.pid()).children == 1);
    let ask = |client: &mut Client| {
        let (bytes, source) = (64 << 20, ADD_ONE);
        let commands = [
            client.alloc(1, bytes),
            client.program("add1", source),
            client.exec("add1", source, &[1], false),
            client.copy_out(1),
        ];
        client.send(&commands, &[source.as_bytes()]);
    };
    // One that reads a little now and then is served.
    let mut slow = Client::connect(server.address(), "slow");
    ask(&mut slow);
    let mut client = Client::connect(server.address(), "a");
    ask(&mut client);
    let head = slow.receive_head();
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let mut left = 64 << 20;
    let mut piece = vec![0; 1 << 20];
    let begun = Instant::now();
    wait_until("who reads nothing has no session any more", || {
        if left > 24 << 20 {
            slow.stream.read_exact(&mut piece).unwrap();
            left -= piece.len();
            // Not as a way to wait for anything: this is a client that takes its time.
            std::thread::park_timeout(Duration::from_millis(50));
        }
        begun.elapsed() > Duration::from_secs(1) && Holdings::of(server.pid()).children == 2
    });
    while left > 0 {
        slow.stream.read_exact(&mut piece).unwrap();
        left -= piece.len();
    }
    slow.batch(&[], &[]).ok();
    // Nor does it cost anything to be idle for longer than that.
    idle.batch(&[], &[]).ok();
    let mut rest = Vec::new();
    let ended = client.stream.read_to_end(&mut rest);
    assert!(ended.is_err() || rest.len() < 64 << 20, "all of it came");
}

#[test]
fn pipelined_requests_of_a_client_that_reads_nothing_are_given_up() {
    let server = Server::builder().args(["--reply-timeout=1", "--shards=1"]).start();
    let mut other = Client::connect(server.address(), "other");
    let client = Client::connect(server.address(), "a");
    let properties = format!("[GetProperties({})]", client.session(0));
    let request = request_of(&body_of(&properties, &[]));
    let mut writer = client.stream.try_clone().unwrap();
    let begun = Instant::now();
    let writing = std::thread::spawn(move || while writer.write_all(&request).is_ok() {});
    while !writing.is_finished() {
        other.batch(&[], &[]).ok();
        assert!(begun.elapsed() < Duration::from_secs(60), "it is never given up");
    }
    writing.join().unwrap();
    other.batch(&[], &[]).ok();
    drop(client.stream.shutdown(std::net::Shutdown::Both));
}
