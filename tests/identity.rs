//! Who may use the server, and what belongs to whom, over sockets.

mod support;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use support::Server;
use support::client::{Client, body_of, request_of};
use support::tokens::{ANN, BOB, TokenFile, ann, bob};
use support::wait::wait_until;

/// The words of a reply that has to be a denial.
fn denial(client: &mut Client) -> String {
    let head = client.receive_head();
    assert!(head.starts_with("HTTP/1.1 401 Unauthorized\r\n"), "{head}");
    assert!(head.contains("\r\nWWW-Authenticate: Bearer\r\n"), "{head}");
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
    let mut body = vec![0; length.and_then(|length| length.parse().ok()).expect("a length")];
    client.stream.read_exact(&mut body).expect("the body is there");
    String::from_utf8(body).expect("text")
}

/// Starts a server that has to refuse, and gives its words.
fn refusal(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_outboard"))
        .arg("serve")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("the program starts");
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{words}");
    words
}

#[test]
fn request_without_a_known_token_is_told_how_to_connect() {
    let file = TokenFile::of_both();
    let server = file.server().start();
    let mut stock = Client::connect(server.address(), "a");
    for token in [None, Some("ann"), Some("ann-0123456789abcdefghijklmnox"), Some("")] {
        let mut client = Client::connect(server.address(), "a");
        if let Some(token) = token {
            client = client.with_token(token);
        }
        client.send(&[], &[]);
        let words = denial(&mut client);
        for part in ["token", "stock", "ssh -N -L", "--trust"] {
            assert!(words.contains(part), "{token:?}: {words}");
        }
    }
    // A body that is here already does not cost the connection.
    for _ in 0..3 {
        stock.send(&[], &[]);
        denial(&mut stock);
    }
    let mut client = stock.with_token(ANN);
    assert!(client.batch(&[], &[]).ok().is_empty());
}

#[test]
fn denied_body_is_not_asked_for() {
    let file = TokenFile::of_both();
    let server = file.server().start();
    for fields in ["Expect: 100-continue\r\n", ""] {
        let mut client = Client::connect(server.address(), "a");
        let head = format!(
            "POST /batch HTTP/1.1\r\nHost: h\r\n{fields}Content-Length: 1000000000\r\n\r\n"
        );
        client.stream.write_all(head.as_bytes()).unwrap();
        denial(&mut client);
        assert_eq!(client.stream.read(&mut [0]).unwrap(), 0, "it closes");
    }
    let mut client = Client::connect(server.address(), "a");
    let head = format!(
        "POST /batch HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {ANN}\r\n\
         Expect: 100-continue\r\nContent-Length: 42\r\n\r\n"
    );
    client.stream.write_all(head.as_bytes()).unwrap();
    assert_eq!(client.receive_head(), "HTTP/1.1 100 Continue\r\n\r\n");
    client.stream.write_all(&body_of("[]", &[])).unwrap();
    assert!(client.receive().ok().is_empty());
}

#[test]
fn unknown_peer_that_says_nothing_is_not_kept() {
    let file = TokenFile::of_both();
    let server = file.server().arg("--head-timeout=0.3").start();
    let mut known = ann(&server, "a");
    known.batch(&[], &[]).ok();
    let mut silent = TcpStream::connect(server.address()).unwrap();
    silent.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    assert_eq!(silent.read(&mut [0]).unwrap(), 0, "it closes");
    known.batch(&[], &[]).ok();
}

#[test]
fn tokens_are_read_again_on_sighup() {
    let file = TokenFile::new(&format!("ann {ANN}\n"));
    let server = file.server().start();
    let mut first = ann(&server, "a");
    let make = [first.alloc(1, 16)];
    first.batch(&make, &[]).ok();
    // A bad file changes nothing.
    file.write("ann short\n");
    server.signal(Signal::HUP);
    wait_until("the file is refused", || server.stderr().contains("stays in force"));
    let log = server.stderr();
    assert!(log.contains(":1: a token needs at least"), "{log}");
    first.batch(&[], &[]).ok();
    let renewed = "ann-a-new-token-ABCDEFGHIJKLMNOP";
    file.write(&format!("bob {BOB}\nann {renewed}\n"));
    server.signal(Signal::HUP);
    wait_until("the new file is in force", || {
        bob(&server, "b").batch(&[], &[]).status == 200 && first.batch(&[], &[]).status == 401
    });
    // The name is the same, and so is what belongs to it.
    let mut again = first.with_token(renewed);
    let out = [again.copy_out(1)];
    wait_until("every shard has heard", || again.batch(&out, &[]).status == 200);
}

#[test]
fn bad_file_of_tokens_is_refused_with_the_remedy() {
    let file = TokenFile::of_both();
    let path = file.path().to_string_lossy().into_owned();
    for (mode, text, words) in [
        (0o640, format!("ann {ANN}"), format!("{path}: others than its owner may read")),
        (0o602, format!("ann {ANN}"), "chmod 600".to_owned()),
        (0o600, format!("ann {ANN}\nbob {ANN}"), format!("{path}:2: the token is that of line 1")),
        (0o600, "# nobody\n".to_owned(), "it has no tokens".to_owned()),
    ] {
        file.write(&text);
        file.set_mode(mode);
        let said = refusal(&["--listen", "127.0.0.1:0", "--token-file", &path]);
        assert!(said.contains(&words) && !said.contains(ANN), "{said}");
    }
    let said = refusal(&["--listen", "127.0.0.1:0", "--token-file", "/nonexistent/tokens"]);
    assert!(said.contains("/nonexistent/tokens: No such file"), "{said}");
}

#[test]
fn address_that_others_reach_without_a_guard_is_refused() {
    let said = refusal(&["--listen", "0.0.0.0:0"]);
    for part in ["--listen 0.0.0.0:0", "--token-file FILE", "--trust CIDR", "ssh -L"] {
        assert!(said.contains(part), "{said}");
    }
    let said = refusal(&["--listen", "127.0.0.1:0", "--listen", "[::]:0"]);
    assert!(said.contains("--listen [::]:0"), "{said}");
}

/// Connects from an address of this machine's own.
fn connect_from(server: &Server, from: &str) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
    let socket = socket.expect("a socket can be made");
    let from: SocketAddr = format!("{from}:0").parse().expect("an address");
    socket.bind(&from.into()).expect("all of 127.0.0.0/8 is this machine's");
    socket.connect(&server.address().into()).expect("the server listens");
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("not zero");
    stream
}

#[test]
fn peer_of_a_trusted_network_needs_no_token() {
    let file = TokenFile::of_both();
    let server = file.server().arg("--trust=127.0.0.0/30").arg("--trust=::1").start();
    let mut near = Client::connect(server.address(), "a");
    let make = [near.alloc(1, 16)];
    near.batch(&make, &[]).ok();
    // The whole network is one identity, and a token is another.
    let mut neighbour = Client::connect(server.address(), "a");
    neighbour.stream = connect_from(&server, "127.0.0.2");
    let out = [neighbour.copy_out(1)];
    neighbour.batch(&out, &[]).ok();
    assert!(ann(&server, "a").batch(&out, &[]).failure().contains("unknown buffer 1"));
    let mut far = Client::connect(server.address(), "a");
    far.stream = connect_from(&server, "127.0.0.4");
    far.stream.write_all(&request_of(&body_of("[]", &[]))).unwrap();
    assert!(denial(&mut far).contains("wants a token"));
    let mut far = far.with_token(ANN);
    far.batch(&[], &[]).ok();
}

#[test]
fn hosts_that_are_trusted_one_by_one_are_kept_apart() {
    let server = Server::builder().arg("--trust=127.0.0.0/8").arg("--trust=127.0.0.2").start();
    let mut near = Client::connect(server.address(), "a");
    let make = [near.alloc(1, 16)];
    near.batch(&make, &[]).ok();
    let mut apart = Client::connect(server.address(), "a");
    apart.stream = connect_from(&server, "127.0.0.2");
    let out = [apart.copy_out(1)];
    assert!(apart.batch(&out, &[]).failure().contains("unknown buffer 1"));
    near.batch(&out, &[]).ok();
}

#[test]
fn session_of_another_identity_looks_like_one_that_is_not_there() {
    let file = TokenFile::of_both();
    let server = file.server().start();
    let bytes = [7; 16];
    let mut owner = ann(&server, "leaked");
    let make = [owner.alloc(1, 16), owner.copy_in(1, &bytes)];
    owner.batch(&make, &[&bytes]).ok();
    let name = |nonce: &str| format!("SessionKey(host='h', idx=0, nonce='{nonce}')");
    // Among many connections some are on the session's shard, and some are not.
    for round in 0..16 {
        let said = |nonce: &str| {
            let mut thief = bob(&server, nonce);
            let commands = [thief.copy_out(1), format!("SessionFree({})", thief.session(0))];
            let first = thief.batch(&commands, &[]).failure();
            let mut thief = bob(&server, &format!("bob{round}{nonce}"));
            let make = [thief.alloc(1, 16)];
            thief.batch(&make, &[]).ok();
            let session = thief.session(0);
            let to = name(nonce);
            let transfer =
                [format!("Transfer({session}, buffer_num=1, dsession={to}, dbuffer_num=1)")];
            let event = [format!("Event({session}, event_session={to}, event=1)")];
            let input = [format!(
                "GraphAlloc({session}, graph_num=1, jit_cache=(), bufs=(({to}, 1),), var_vals={{}})"
            )];
            let others = [transfer, event, input].map(|commands| {
                let words = thief.batch(&commands, &[]).failure();
                assert!(words.contains("unknown session of device 0"), "{words}");
                words
            });
            (first, others)
        };
        assert_eq!(said("leaked"), said(&format!("nobody{round}")));
        // It may have the same key for a session of its own.
        let mut namesake = bob(&server, "leaked");
        let other = [round; 16];
        let use_own = [namesake.alloc(1, 16), namesake.copy_in(1, &other), namesake.copy_out(1)];
        assert_eq!(namesake.batch(&use_own, &[&other]).ok(), other);
        let free = [format!("SessionFree({})", namesake.session(0))];
        namesake.batch(&free, &[]).ok();
        // The owner reaches it from everywhere, by way of the mesh too.
        let mut again = ann(&server, "leaked");
        let out = [again.copy_out(1)];
        assert_eq!(again.batch(&out, &[]).ok(), bytes);
    }
}

#[test]
fn identity_has_a_number_of_sessions_over_all_connections() {
    let file = TokenFile::of_both();
    let server = file.server().arg("--session-limit=3").start();
    let properties = |client: &Client| [format!("GetProperties({})", client.session(0))];
    let mut open: Vec<Client> = (0..3)
        .map(|number| {
            let mut client = ann(&server, &format!("n{number}"));
            client.batch(&properties(&client), &[]).ok();
            client
        })
        .collect();
    for _ in 0..8 {
        let mut more = ann(&server, "more");
        let words = more.batch(&properties(&more), &[]).failure();
        assert!(words.contains("one identity has at most 3"), "{words}");
        assert!(words.contains("--session-limit"), "{words}");
    }
    let mut other = bob(&server, "n0");
    other.batch(&properties(&other), &[]).ok();
    // One that is ended, or whose connection ends, makes room.
    let free = [format!("SessionFree({})", open[0].session(0))];
    open[0].batch(&free, &[]).ok();
    let mut more = ann(&server, "more");
    more.batch(&properties(&more), &[]).ok();
    let mut late = ann(&server, "late");
    late.batch(&properties(&late), &[]).failure();
    drop(open);
    wait_until("there is room", || late.batch(&properties(&late), &[]).status == 200);
}
