//! Commands that ask for what nobody may have.

use std::io::Write as _;
use std::time::{Duration, Instant};

use super::support::Server;
use super::support::client::{Client, Reply, body_of, name_of, request_of};
use super::support::wait::wait_until;

pub(crate) const ADD_ONE: &str = "void add1(unsigned char* restrict data0) {\n\
    for (int i = 0; i < 16; i++) { data0[i] = data0[i] + 1; }\n}\n";

/// Checks that a batch of one command is refused in words that have this part.
pub(crate) fn refused(client: &mut Client, command: String, part: &str) {
    let words = client.batch(std::slice::from_ref(&command), &[]).failure();
    assert!(words.contains(part), "{command}\n{words}");
}

/// Sixteen bytes that count up, in buffer 1.
pub(crate) fn ready(client: &mut Client) -> Vec<u8> {
    let bytes: Vec<u8> = (0..16).collect();
    let commands = [client.alloc(1, 16), client.copy_in(1, &bytes)];
    client.batch(&commands, &[&bytes]).ok();
    bytes
}

fn is_as_before(client: &mut Client, bytes: &[u8]) {
    let out = [client.copy_out(1)];
    assert_eq!(client.batch(&out, &[]).ok(), bytes);
}

fn view(client: &Client, size: u64, offset: u64) -> String {
    let session = client.session(0);
    format!("BufferOffset({session}, buffer_num=2, size={size}, offset={offset}, sbuffer_num=1)")
}

#[test]
fn buffer_at_a_pointer_of_the_clients_is_refused() {
    let server = Server::start();
    let mut client = Client::connect(server.address(), "a");
    let bytes = ready(&mut client);
    for pointer in ["0", "1", "140737488355328", "18446744073709551615"] {
        let alloc = client.alloc(2, 16).replace("=None))", &format!("={pointer}))"));
        assert!(alloc.contains(pointer), "{alloc}");
        refused(&mut client, alloc, "external_ptr is refused");
        let out = client.copy_out(2);
        refused(&mut client, out, "external_ptr is refused");
    }
    is_as_before(&mut client, &bytes);
}

#[test]
fn view_past_its_base_reads_and_writes_nothing() {
    let server = Server::start();
    let mut client = Client::connect(server.address(), "a");
    let bytes = ready(&mut client);
    for (size, offset) in [
        (17, 0),
        (16, 1),
        (1, 16),
        (1, u64::MAX),
        (u64::MAX, 1),
        (u64::MAX, u64::MAX),
        (1 << 63, 1 << 63),
        (8, u64::MAX - 7),
    ] {
        let over = view(&client, size, offset);
        refused(&mut client, over, "lie outside of buffer 1, which has 16");
        let copy = client.copy_out(2);
        refused(&mut client, copy, "lie outside of buffer 1");
    }
    let last = [view(&client, 1, 15), client.copy_out(2)];
    assert_eq!(client.batch(&last, &[]).ok(), [15]);
    is_as_before(&mut client, &bytes);
}

#[test]
fn buffer_of_no_or_too_many_bytes_is_refused() {
    let server = Server::builder().arg("--cpu-memory=64M").start();
    let mut client = Client::connect(server.address(), "a");
    let bytes = ready(&mut client);
    let alloc = client.alloc(2, 0);
    refused(&mut client, alloc, "at least one byte");
    for size in [64 << 20, 1 << 40, (1 << 40) + 1, 1 << 63, u64::MAX] {
        let alloc = client.alloc(2, size);
        refused(&mut client, alloc, "out of memory");
    }
    is_as_before(&mut client, &bytes);
    let alloc = [client.alloc(3, 63 << 20)];
    client.batch(&alloc, &[]).ok();
}

#[test]
fn device_that_there_is_not_is_refused() {
    let server = Server::builder().arg("--cpu-devices=4").start();
    let mut client = Client::connect(server.address(), "a");
    let bytes = ready(&mut client);
    for index in [4, 1 << 32, u64::MAX] {
        let ask = format!("GetProperties({})", client.session(index));
        refused(&mut client, ask, "4 CPU devices, 0 to 3");
    }
    is_as_before(&mut client, &bytes);
}

#[test]
fn launch_with_the_wrong_arguments_harms_only_its_session() {
    let server = Server::start();
    let mut other = Client::connect(server.address(), "other");
    let bytes = ready(&mut other);
    let mut client = Client::connect(server.address(), "a");
    let commands = [client.alloc(1, 16), client.program("add1", ADD_ONE)];
    client.batch(&commands, &[ADD_ONE.as_bytes()]).ok();
    let exec = client.exec("add1", ADD_ONE, &[1], true);
    for sizes in ["(0, 1, 1)", "(-1, 1, 1)", "(4294967296, 1, 1)"] {
        let exec = exec.replace("global_size=None", &format!("global_size={sizes}"));
        refused(&mut client, exec, "is not a launch size");
    }
    let many = client.exec("add1", ADD_ONE, &[1; 5000], true);
    refused(&mut client, many, "5000 arguments, the limit is 4096");
    let wide = exec.replace("vals=()", "vals=(4294967296,)");
    refused(&mut client, wide, "does not fit the 32-bit integer");
    let more = [client.exec("add1", ADD_ONE, &[1, 1, 1], true)];
    client.batch(&more, &[]).ok();
    // Too few are what the processor's registers hold, in a process without rights.
    let none = [client.exec("add1", ADD_ONE, &[], true)];
    client.batch(&none, &[]);
    is_as_before(&mut other, &bytes);
    let free = [format!("SessionFree({})", client.session(0))];
    client.batch(&free, &[]).ok();
    let again = ready(&mut client);
    is_as_before(&mut client, &again);
}

#[test]
fn graph_runs_on_what_its_client_has_freed() {
    let server = Server::start();
    let mut client = Client::connect(server.address(), "a");
    ready(&mut client);
    let (session, hash) = (client.session(0), name_of(ADD_ONE.as_bytes()));
    let graph = format!(
        "GraphAlloc({session}, graph_num=1, jit_cache=(GraphComputeItem({session}, name='add1', \
         datahash='{hash}', bufs=(1,), vars=(), fixedvars={{}}, ins=(0,), outs=(0,), \
         global_size=None, local_size=None),), bufs=(), var_vals={{}})"
    );
    let run = format!("GraphExec({session}, graph_num=1, bufs=(), var_vals={{}}, wait=False)");
    let whole = format!("BufferOffset({session}, buffer_num=2, size=16, offset=0, sbuffer_num=1)");
    let commands = [
        client.program("add1", ADD_ONE),
        graph,
        whole,
        format!("BufferFree({session}, buffer_num=1)"),
        format!("ProgramFree({session}, name='add1', datahash='{hash}')"),
        client.alloc(1, 16),
        run.clone(),
        run,
        client.copy_out(2),
    ];
    let expected: Vec<u8> = (2..18).collect();
    assert_eq!(client.batch(&commands, &[ADD_ONE.as_bytes()]).ok(), expected);
    let new = [client.copy_out(1)];
    assert_eq!(client.batch(&new, &[]).ok(), [0; 16]);
}

#[test]
fn rdma_that_there_is_not_is_refused() {
    let server = Server::start();
    let mut client = Client::connect(server.address(), "a");
    let bytes = ready(&mut client);
    let (session, key) = (client.session(0), client.session(0).replace("session=", ""));
    let other = key.replace("nonce='a'", "nonce='b'");
    for command in [
        format!("IBConnect({session}, host='h', gid=b'{}', qp_num=1)", "\\x00".repeat(16)),
        format!("BufferIOVAS({session}, buffer_nums=[({key}, 1)])"),
        format!("BufferIOVAS({session}, buffer_nums=[({key}, 9)])"),
        format!("BufferIOVAS({session}, buffer_nums=[({other}, 1)])"),
        format!("BlobLanding({session}, blobs=[('{}', 1)])", "00".repeat(32)),
    ] {
        let name = command.split('(').next().unwrap().to_owned();
        refused(&mut client, command, &name);
    }
    is_as_before(&mut client, &bytes);
}

#[test]
fn host_of_a_session_key_is_never_connected_to() {
    let server = Server::start();
    let listener = std::net::TcpListener::bind("127.0.0.2:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let mut client = Client::connect(server.address(), "a");
    let bytes = ready(&mut client);
    let session = client.session(0);
    let address = listener.local_addr().unwrap();
    for host in [address.to_string(), "192.0.2.1:80".to_owned(), "file:///etc".to_owned()] {
        let there = format!("SessionKey(host='{host}', idx=0, nonce='b')");
        for command in [
            format!("Event({session}, event_session={there}, event=1)"),
            format!("Transfer({session}, buffer_num=1, dsession={there}, dbuffer_num=1)"),
            format!("BatchTransfer({session}, sbuffer_nums=[({there}, 1)], dbuffer_nums=[])"),
        ] {
            // A peer has to be one that the server was told of.
            if !host.starts_with("127.") {
                let begun = Instant::now();
                client.batch(&[command], &[]).failure();
                assert!(begun.elapsed() < Duration::from_secs(10), "{host}");
            }
        }
    }
    let error = listener.accept().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "somebody has connected");
    is_as_before(&mut client, &bytes);
}

#[test]
fn wait_for_what_nobody_sets_ends_in_time() {
    let servers = [(); 2].map(|()| Server::builder().arg("--wait-timeout=1").start());
    let mut clients = servers.each_ref().map(|server| Client::connect(server.address(), "a"));
    let begun = Instant::now();
    // Each waits for what the other's client would do next.
    for client in &mut clients {
        ready(client);
        let wait = [format!("Wait({}, event=7)", client.session(0)), client.copy_out(1)];
        client.send(&wait, &[]);
    }
    for client in &mut clients {
        let words = client.receive().failure();
        assert!(words.contains("nobody set event 7 within 1s"), "{words}");
        let out = [client.copy_out(1)];
        client.batch(&out, &[]).ok();
    }
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

#[test]
fn events_beyond_the_limit_are_refused_until_some_are_waited_for() {
    let server = Server::start();
    let mut client = Client::connect(server.address(), "a");
    let (session, key) = (client.session(0), client.session(0).replace("session=", ""));
    let set = |n: u32| format!("Event({session}, event_session={key}, event={n})");
    let wait = |n: u32| format!("Wait({session}, event={n})");
    for first in (0..1 << 16).step_by(1 << 14) {
        let events: Vec<String> = (first..first + (1 << 14)).map(set).collect();
        client.batch(&events, &[]).ok();
    }
    refused(&mut client, set(1 << 16), "too many events: the limit is 65536");
    client.batch(&[wait(5), set(1 << 16)], &[]).ok();
    refused(&mut client, set(1 << 17), "too many events");
    client.batch(&[wait(1 << 16), wait(0)], &[]).ok();
}

#[test]
fn names_that_look_like_paths_are_names() {
    let server = Server::start();
    let mut client = Client::connect(server.address(), "a");
    ready(&mut client);
    let place = super::support::scratch_file("hostile");
    for name in
        ["../../../etc/passwd", "/etc/passwd", "..", ".", "a/b", "%s%n", &place.to_string_lossy()]
    {
        let source = ADD_ONE.replace("add1", "E_4");
        let commands = [client.program(name, &source), client.exec(name, &source, &[1], true)];
        // The name of a function is the source's business, not the name's.
        let reply = client.batch(&commands, &[source.as_bytes()]);
        assert!(matches!(reply.status, 200 | 500), "{}", reply.text());
        assert!(!reply.text().contains("root:"), "{}", reply.text());
    }
    assert_eq!(std::fs::read(&place).unwrap(), b"", "nothing was written there");
    std::fs::remove_file(place).unwrap();
}

/// The reply to a text that is sent as it is.
fn told(client: &mut Client, text: &[u8]) -> Reply {
    let mut body = body_of("", &[]);
    body.truncate(32);
    body.extend_from_slice(&(text.len() as u64).to_le_bytes());
    body.extend_from_slice(text);
    client.stream.write_all(&request_of(&body)).expect("the server takes it");
    client.receive()
}

#[test]
fn text_of_monstrous_shape_is_refused_and_the_connection_stays() {
    let server = Server::start();
    let mut client = Client::connect(server.address(), "a");
    let bytes = ready(&mut client);
    let session = client.session(0);
    let million = 1_000_000;
    for (text, part) in [
        ("[".repeat(million), "levels of brackets"),
        (format!("[CopyOut({session}, buffer_num={})]", "(".repeat(million)), "levels of brackets"),
        (format!("[CopyOut({session}, buffer_num={})]", "9".repeat(million)), "digits"),
        (format!("[{}]", "GetProperties(),".repeat(million)), "command 0"),
        (format!("[{}]", format!("SessionFree({session}),").repeat(270_000)), "262144 commands"),
        (format!("[{}]", "0,".repeat(8_000_000)), "command 0"),
    ] {
        let reply = told(&mut client, text.as_bytes());
        assert_eq!(reply.status, 500, "{}", reply.text());
        assert!(reply.text().contains(part), "{part}: {}", reply.text());
        assert!(reply.body.len() < 4096, "{} bytes of an answer", reply.body.len());
    }
    is_as_before(&mut client, &bytes);
}

#[test]
fn text_that_names_what_there_is_not_is_refused() {
    let server = Server::start();
    let mut client = Client::connect(server.address(), "a");
    let bytes = ready(&mut client);
    let session = client.session(0);
    for (text, part) in [
        ("[__import__('os').system('id')]".to_owned(), "command 0"),
        ("[().__class__]".to_owned(), "command 0"),
        (format!("[Exec({session})]"), "is not a command"),
        (format!("[CopyOut({session}, buffer_num=1, colour=2)]"), "has no field `colour`"),
        (format!("[CopyOut({session}, buffer_num=1, buffer_num=1)]"), "twice"),
        (format!("[CopyOut({session}, buffer_num=-1)]"), "out of range"),
        (client.session(0).replace("idx=0", "idx=-1"), "bad command text"),
        (format!("[BufferFree({session}, buffer_num='1')]"), "expected an int"),
        (format!("[Wait({session}, event=-1)]"), "out of range"),
        (format!("[ProgramFree({session}, name='\\ud800', datahash='')]"), "surrogate"),
        (format!("[ProgramFree({session}, name='\\x00', datahash='')]"), "without NUL"),
        ("[\0]".to_owned(), "NUL"),
        ("lambda: 0".to_owned(), "bad command text"),
    ] {
        let reply = told(&mut client, text.as_bytes());
        assert_eq!(reply.status, 500, "{text}: {}", reply.text());
        assert!(reply.text().contains(part), "{text}: {}", reply.text());
    }
    for bad in [&b"[\xff]"[..], b"['\xed\xa0\x80']", b"['\xc0\x80']", b"\xef\xbb\xbf[]"] {
        let reply = told(&mut client, bad);
        assert_eq!(reply.status, 500, "{bad:?}");
        assert!(reply.text().contains("bad command text"), "{bad:?}: {}", reply.text());
    }
    is_as_before(&mut client, &bytes);
}

#[test]
fn source_too_long_is_refused_and_the_connection_stays() {
    let server = Server::start();
    let mut client = Client::connect(server.address(), "a");
    let bytes = ready(&mut client);
    let source = " ".repeat((4 << 20) + 1);
    let program = [client.program("long", &source)];
    let words = client.batch(&program, &[source.as_bytes()]).failure();
    assert!(words.contains("longer than this server compiles"), "{words}");
    is_as_before(&mut client, &bytes);
}

/// A batch that records a graph of a thousand runs of a kernel, and waits for a run of it.
fn long_graph(client: &Client, name: &str, source: &str) -> Vec<String> {
    let (session, hash) = (client.session(0), name_of(source.as_bytes()));
    let item = format!(
        "GraphComputeItem({session}, name='{name}', datahash='{hash}', bufs=(1,), vars=(), \
         fixedvars={{}}, ins=(), outs=(0,), global_size=None, local_size=None), "
    );
    let items = item.repeat(1000);
    vec![
        client.program(name, source),
        format!("GraphAlloc({session}, graph_num=1, jit_cache=({items}), bufs=(), var_vals={{}})"),
        format!("GraphExec({session}, graph_num=1, bufs=(), var_vals={{}}, wait=True)"),
    ]
}

#[test]
fn client_killed_in_mid_graph_leaves_nothing_behind() {
    use super::support::holdings::{Holdings, worker_ticks};
    let server = Server::builder().arg("--shards=1").start();
    let mut asks = Client::connect(server.address(), "asks");
    // So that what is made once and kept is part of the baseline.
    let mut first = Client::connect(server.address(), "first");
    ready(&mut first);
    let graph = long_graph(&first, "add1", ADD_ONE);
    first.batch(&graph, &[ADD_ONE.as_bytes()]).ok();
    drop(first);
    wait_until("the first session has ended", || Holdings::of(server.pid()).children == 0);
    asks.batch(&[], &[]).ok();
    let baseline = Holdings::of(server.pid());
    let endless = "void bad(volatile int* data0) { for (;;) { data0[0] = 1; } }";
    let mut client = Client::connect(server.address(), "a");
    ready(&mut client);
    let graph = long_graph(&client, "bad", endless);
    client.batch(&graph[..2], &[endless.as_bytes()]).ok();
    client.send(&graph[2..], &[]);
    wait_until("the graph runs", || worker_ticks(server.pid()) > 0);
    drop(client);
    baseline.wait_until_back(server.pid());
    asks.batch(&[], &[]).ok();
}
