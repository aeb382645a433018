//! Names of blobs that are checked against their bytes, on a whole server.

mod support;

use std::io::Write;

use support::Server;
use support::client::{Client, Reply};

/// Beyond what a receive buffer holds and beyond one hashed piece, so that all ways in are taken.
const LONG_BYTES: usize = 3 << 20;

/// Sends a batch that fills a buffer with `blob` under `name` and reads it back. `name_of` makes
/// the name of the text; `fields` go into the head.
fn copy(
    client: &mut Client,
    fields: &str,
    name: [u8; 32],
    blob: &[u8],
    name_of: fn(&[u8]) -> [u8; 32],
) -> Reply {
    let hex = blake3::Hash::from_bytes(name).to_hex();
    let session = client.session(0);
    let text = format!(
        "[{}, CopyIn({session}, buffer_num=1, datahash='{hex}'), {}, {}]",
        client.alloc(1, blob.len() as u64),
        client.copy_out(1),
        format_args!("BufferFree({session}, buffer_num=1)"),
    );
    let mut body = Vec::new();
    for (name, bytes) in [(name, blob), (name_of(text.as_bytes()), text.as_bytes())] {
        body.extend_from_slice(&name);
        body.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        body.extend_from_slice(bytes);
    }
    let length = body.len();
    write!(
        client.stream,
        "POST /batch HTTP/1.1\r\nHost: h\r\n{fields}Content-Length: {length}\r\n\r\n"
    )
    .and_then(|()| client.stream.write_all(&body))
    .expect("the server reads it all");
    client.receive()
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    <sha2::Sha256 as sha2::Digest>::digest(bytes).into()
}

fn blake3(bytes: &[u8]) -> [u8; 32] {
    *blake3::hash(bytes).as_bytes()
}

fn blobs() -> [Vec<u8>; 3] {
    let pattern = |bytes: usize| (0..=250_u8).cycle().take(bytes).collect();
    [pattern(4), pattern(40_000), pattern(LONG_BYTES)]
}

/// True names are accepted, and a batch under one false name is refused and has no effect.
fn check(server: &Server, fields: &str, name_of: fn(&[u8]) -> [u8; 32]) {
    for blob in blobs() {
        let mut client = Client::connect(server.address(), "a");
        let name = name_of(&blob);
        assert!(copy(&mut client, fields, name, &blob, name_of).ok() == blob);
        let mut damaged = blob.clone();
        damaged[blob.len() - 1] ^= 1;
        let reply = copy(&mut client, fields, name, &damaged, name_of);
        assert_eq!(reply.status, 400, "{}", reply.text());
        let (name, found) = [name, name_of(&damaged)].map(blake3::Hash::from_bytes).into();
        assert!(reply.text().contains(&format!("is {found}, not {name}")), "{}", reply.text());
        let mut client = Client::connect(server.address(), "a");
        let reply = copy(&mut client, fields, name_of(&blob), &blob, |_| [0; 32]);
        assert_eq!(reply.status, 400, "the text's name is checked too: {}", reply.text());
        let mut client = Client::connect(server.address(), "a");
        let alloc = [client.alloc(1, 4)];
        assert!(client.batch(&alloc, &[]).ok().is_empty(), "no refused batch made the buffer");
    }
}

#[test]
fn names_that_are_said_to_be_blake3_are_always_checked() {
    check(&Server::start(), "Outboard-Digest: blake3\r\n", blake3);
}

#[test]
fn names_that_are_said_to_be_sha256_are_always_checked() {
    check(&Server::start(), "Outboard-Digest: sha256\r\n", sha256);
}

#[test]
fn names_are_checked_as_sha256_where_the_server_is_told_to() {
    check(&Server::builder().arg("--verify-sha256").start(), "", sha256);
}

#[test]
fn names_that_nothing_is_said_of_are_names_only() {
    let server = Server::start();
    let mut client = Client::connect(server.address(), "a");
    for blob in blobs() {
        assert!(copy(&mut client, "", [7; 32], &blob, |_| [0; 32]).ok() == blob);
    }
}

#[test]
fn digest_that_is_not_known_is_refused_with_those_that_are() {
    let server = Server::start();
    let mut client = Client::connect(server.address(), "a");
    let reply = copy(&mut client, "Outboard-Digest: md5\r\n", [7; 32], b"blob", |_| [0; 32]);
    assert_eq!(reply.status, 400);
    assert!(reply.text().contains("md5 is not known; use blake3 or sha256"), "{}", reply.text());
}
