//! What a session can see of memory that others have used: nothing.
//!
//! Everything is tried against the whole server, by clients that look where leftovers would be: in
//! new buffers of every way to make them, and behind the ends of buffers.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use support::Server;
use support::client::Client;
use support::scratch_file;

const ANN: &str = "ann-0123456789abcdefghijklmnop";
const BOB: &str = "bob-0123456789abcdefghijklmnop";

/// What the first client leaves wherever it can. No byte is zero.
const SECRET: u8 = 0xa5;

/// Lengths that are kept in different ways: parts of a shared segment that stay as they are, that
/// give their pages back, and segments of their own.
const LENGTHS: [u64; 5] = [64, 20 << 10, 300 << 10, 3 << 20, 33 << 20];

fn session_free(client: &Client) -> String {
    format!("SessionFree({})", client.session(0))
}

/// Fills a buffer of each length, in every way in which buffers are filled.
fn leave_secrets(client: &mut Client) {
    for (number, bytes) in (0..).zip(LENGTHS) {
        let secret = vec![SECRET; usize::try_from(bytes).unwrap()];
        let commands = [client.alloc(number, bytes), client.copy_in(number, &secret)];
        client.batch(&commands, &[&secret]).ok();
        // The second time memory is exchanged for what was received.
        client.batch(&[client.copy_in(number, &secret)], &[&secret]).ok();
        assert!(client.batch(&[client.copy_out(number)], &[]).ok() == secret);
    }
}

fn expect_zeros(client: &mut Client) {
    for (number, bytes) in (100..).zip(LENGTHS) {
        let commands = [client.alloc(number, bytes), client.copy_out(number)];
        let found = client.batch(&commands, &[]).ok();
        assert_eq!(found.len() as u64, bytes);
        let leftover = found.iter().position(|byte| *byte != 0);
        assert_eq!(leftover, None, "in a new buffer of {bytes} bytes");
    }
}

#[test]
fn new_buffers_hold_nothing_of_sessions_that_have_ended() {
    let server = Server::start();
    let mut first = Client::connect(server.address(), "first");
    leave_secrets(&mut first);
    // While the first lives, after it has ended its session, and after it has gone.
    expect_zeros(&mut Client::connect(server.address(), "beside"));
    first.batch(&[session_free(&first)], &[]).ok();
    expect_zeros(&mut Client::connect(server.address(), "after"));
    // Its own next session, on the connection whose staging has kept what it sent.
    expect_zeros(&mut first);
    drop(first);
    expect_zeros(&mut Client::connect(server.address(), "last"));
}

/// Copies the bytes behind the end of the second buffer, up to the end of its page, to the first.
fn look_behind(buffer_bytes: usize, bytes: usize) -> String {
    format!(
        "void look(unsigned char* restrict data0, unsigned char* restrict data1) {{\n\
         for (int i = 0; i < {bytes}; i++) {{ data0[i] = data1[{buffer_bytes} + i]; }}\n}}\n"
    )
}

#[test]
fn connection_of_two_identities_passes_no_memory_from_one_to_the_other() {
    const WHOLE: usize = 300 << 10;
    const BEHIND: usize = 1000;
    let tokens = scratch_file("tokens");
    std::fs::write(&tokens, format!("ann {ANN}\nbob {BOB}\n")).unwrap();
    let server = Server::builder().arg("--token-file").arg(&tokens.to_string_lossy()).start();
    // As a proxy would, that has one connection for all its clients.
    let mut client = Client::connect(server.address(), "ann").with_token(ANN);
    let secret = vec![SECRET; WHOLE];
    let commands = [client.alloc(1, WHOLE as u64), client.copy_in(1, &secret)];
    client.batch(&commands, &[&secret]).ok();
    client.batch(&[session_free(&client)], &[]).ok();
    // What nobody takes is kept, as it is, for the next blob.
    client.batch(&[], &[&secret]).ok();
    // A blob that is a little shorter becomes the memory of a buffer, whose kernel looks further.
    let mut client = client.with_token(BOB);
    let (own, source) = (vec![1; WHOLE - BEHIND], look_behind(WHOLE - BEHIND, BEHIND));
    let commands = [
        client.alloc(1, own.len() as u64),
        client.alloc(2, BEHIND as u64),
        client.copy_in(1, &own),
        client.program("look", &source),
        client.exec("look", &source, &[2, 1], false),
        client.copy_out(2),
    ];
    let found = client.batch(&commands, &[&own, source.as_bytes()]).ok();
    assert_eq!(found, vec![0; BEHIND]);
    drop(client);
    drop(server);
    std::fs::remove_file(tokens).unwrap();
}
