//! What one client learns of another, or takes from it.

use super::commands::{ADD_ONE, ready, refused};
use super::support::Server;
use super::support::client::Client;
use super::support::holdings::Holdings;
use super::support::tokens::{TokenFile, ann, bob};

#[test]
fn sessions_never_freed_are_bounded_and_end_with_their_connection() {
    // One shard, whose tables have grown to their size before what is held is looked at.
    let server = Server::builder().args(["--cpu-devices=1024", "--shards=1"]).start();
    let ask = |client: &Client, index| format!("GetProperties({})", client.session(index));
    let all = |client: &Client| (0..256).map(|index| ask(client, index)).collect::<Vec<_>>();
    let mut asks = Client::connect(server.address(), "asks");
    for nonce in ["first", "second"] {
        let mut client = Client::connect(server.address(), nonce);
        client.batch(&all(&client), &[]).ok();
        drop(client);
        asks.batch(&[], &[]).ok();
    }
    let baseline = Holdings::of(server.pid());
    let mut client = Client::connect(server.address(), "a");
    client.batch(&all(&client), &[]).ok();
    let more = ask(&client, 256);
    refused(&mut client, more, "too many sessions: the limit is 256");
    let free = [format!("SessionFree({})", client.session(3)), ask(&client, 256)];
    client.batch(&free, &[]).ok();
    drop(client);
    let mut next = Client::connect(server.address(), "b");
    next.batch(&all(&next), &[]).ok();
    drop(next);
    baseline.wait_until_back(server.pid());
}

#[test]
fn new_buffer_holds_nothing_of_another_session() {
    let server = Server::builder().arg("--shards=1").start();
    // Cut from a segment, a segment of its own, memory that was a blob's.
    for bytes in [4096_usize, 5 << 16, 40 << 20] {
        let secret = vec![0xa5; bytes.min(1 << 16)];
        for round in 0..3 {
            let mut owner = Client::connect(server.address(), &format!("owner{round}"));
            let alloc = [owner.alloc(1, bytes as u64)];
            owner.batch(&alloc, &[]).ok();
            owner.upload(1, bytes as u64, &secret, &mut || {});
            match round {
                0 => drop(owner.batch(&[format!("SessionFree({})", owner.session(0))], &[]).ok()),
                1 => drop(owner.batch(&[owner_free(&owner)], &[]).ok()),
                _ => {}
            }
            drop(owner);
            let mut next = Client::connect(server.address(), &format!("next{round}"));
            let look = [next.alloc(1, bytes as u64), next.copy_out(1)];
            let seen = next.batch(&look, &[]).ok();
            assert!(seen.iter().all(|byte| *byte == 0), "{bytes} bytes, round {round}");
        }
    }
}

fn owner_free(owner: &Client) -> String {
    format!("BufferFree({}, buffer_num=1)", owner.session(0))
}

#[test]
fn program_of_another_identity_answers_as_a_new_one_does() {
    let file = TokenFile::of_both();
    let server = file.server().start();
    // The place where the other identity may have left it.
    let said = |client: &mut Client, source: &str| {
        ready(client);
        let commands = [client.program("add1", source), client.exec("add1", source, &[1], false)];
        let reply = client.batch(&commands, &[source.as_bytes()]);
        let free = [format!("SessionFree({})", client.session(0))];
        client.batch(&free, &[]).ok();
        (reply.status, reply.text())
    };
    for (number, source) in [ADD_ONE.to_owned(), "void broken(".to_owned()].iter().enumerate() {
        let unique = format!("{source}\n// {number} {}", std::process::id());
        let first = said(&mut ann(&server, "a"), &unique);
        assert_eq!(said(&mut bob(&server, "a"), &unique), first);
        // The name of its bytes alone gets nobody anything.
        let mut thief = bob(&server, "b");
        let name = [thief.program("add1", &unique)];
        assert!(thief.batch(&name, &[]).failure().contains("no blob"));
    }
}

#[test]
fn errors_tell_nothing_of_the_server_or_of_others() {
    let file = TokenFile::of_both();
    let server = file.server().arg("--kernel-timeout=1").start();
    let mut other = ann(&server, "a-secret-nonce");
    ready(&mut other);
    let named = [other.program("a_secret_name", ADD_ONE)];
    other.batch(&named, &[ADD_ONE.as_bytes()]).ok();
    let exe = env!("CARGO_MANIFEST_DIR");
    let mut client = bob(&server, "a");
    let session = client.session(0);
    let sources = [
        "void bad(int* data0) { undeclared(data0); }",
        "void bad(int* data0) { *(volatile int*)(data0[0] * 0ul) = 1; }",
        "#include \"/etc/passwd\"\nvoid bad(int* data0) {}",
        "int open(const char*, int);\nvoid bad(int* data0) { data0[0] = open(\"/\", 0); }",
        "void bad(int* data0) { data0[0] = 1 / (data0[0] * 0); for (;;) {} }",
    ];
    let mut words = Vec::new();
    for source in sources {
        let commands = [
            client.alloc(1, 16),
            client.program("bad", source),
            client.exec("bad", source, &[1], true),
            client.copy_out(1),
        ];
        words.push(client.batch(&commands, &[source.as_bytes()]).failure());
        let free = [format!("SessionFree({session})")];
        client.batch(&free, &[]).ok();
    }
    for command in [
        client.alloc(1, 1 << 60),
        client.copy_out(9),
        client.program("bad", "never sent"),
        format!(
            "Transfer({session}, buffer_num=1, dsession=SessionKey(host='h', idx=0, \
                 nonce='a-secret-nonce'), dbuffer_num=1)"
        ),
        format!("GraphFree({session}, graph_num=1)"),
        format!("Wait({session}, event='x')"),
        format!("GetProperties({})", client.session(99)),
    ] {
        words.push(client.batch(&[command], &[]).failure());
    }
    for said in words {
        for secret in [
            "/usr", "/home", "/tmp", "/proc", "/lib", "/etc/", "root:", exe, "0x7f", "a_secret",
            "secret-",
        ] {
            assert!(!said.contains(secret), "{secret}: {said}");
        }
        assert!(said.len() < 8 << 10, "{said}");
    }
}
