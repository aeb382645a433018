//! Two servers that speak TLS to each other: all works as without, and whom they refuse.

#![expect(clippy::unwrap_used, reason = "a test ends where its client cannot go on")]

mod support;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use socket2::{Domain, Socket, Type};
use support::client::Client;
use support::holdings::Holdings;
use support::hosts::{event, pattern, transfer, wait};
use support::tls::{Private, Stream, batch, connect, file};
use support::tokens::TokenFile;
use support::wait::{wait_for, wait_until};
use support::{Server, ServerBuilder};

/// Well above what anything takes here.
const LIMIT: Duration = Duration::from_secs(30);

/// A port that nobody else gets, before a server listens there.
struct Reserved {
    address: SocketAddr,
    _socket: Socket,
}

impl Reserved {
    fn new() -> Reserved {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        Reserved { address, _socket: socket }
    }
}

/// A server that speaks TLS with one of the certificates, and without at a second address.
fn with_certificate(certificate: &str, key: &Private) -> ServerBuilder {
    Server::builder()
        .arg(&format!("--tls-cert={}", file(certificate).display()))
        .arg(&format!("--tls-key={}", key.path().display()))
}

/// A server with a good certificate, for this machine.
fn secure(key: &Private) -> ServerBuilder {
    with_certificate("server.pem", key).arg("--listen-plain=127.0.0.1:0")
}

/// The address where a server of [`secure`] does without TLS.
fn plain_of(server: &Server) -> SocketAddr {
    let line = server.ready_line();
    let second = line.split(&[' ', ',']).filter_map(|word| word.parse().ok()).nth(1);
    second.unwrap_or_else(|| panic!("no second address: {line}"))
}

/// `--peer` with TLS.
fn peer(address: SocketAddr, more: &str) -> String {
    format!("--peer={address},ca={}{more}", file("ca.pem").display())
}

/// What shows a client's certificate; both files have to live for as long as it is used.
fn showing(certificate: &str, key: &Private) -> String {
    format!(",cert={},key={}", file(certificate).display(), key.path().display())
}

/// A client whose sessions are named after where servers speak TLS, and that does without.
fn client(server: &Server) -> Client {
    Client::connect(plain_of(server), "pair").naming(&server.address().to_string())
}

/// Two servers that are each other's peers, and nobody else's.
fn pair(key: &Private, argument: &str) -> [Server; 2] {
    let reserved = [(); 2].map(|()| Reserved::new());
    [0, 1].map(|index| {
        let (own, other) = (reserved[index].address, reserved[1 - index].address);
        secure(key).listen(&own.to_string()).arg(&peer(other, "")).arg(argument).start()
    })
}

/// A client of a server that does without TLS itself, with `bytes` of a pattern in its buffer 1.
fn near_of(server: &Server, bytes: u64) -> Client {
    near_as(server, "pair", bytes)
}

/// The same, beside others.
fn near_as(server: &Server, nonce: &str, bytes: u64) -> Client {
    let mut near = Client::connect(server.address(), nonce).naming_its_server();
    let data = pattern(bytes);
    near.batch(&[near.alloc(1, bytes), near.copy_in(1, &data)], &[&data]).ok();
    near
}

/// The command that has `near` send its buffer to a session of the server at `to`.
fn transfer_to(near: &Client, to: SocketAddr) -> String {
    let own = near.stream.peer_addr().unwrap().to_string();
    let far = near.key(0).replace(&own, &to.to_string());
    format!("Transfer({}, buffer_num=1, dsession={far}, dbuffer_num=1)", near.session(0))
}

/// Fails to send to the server at `to`; what is said then, which has to name it.
fn refusal(near: &mut Client, to: SocketAddr) -> String {
    let begun = Instant::now();
    let failure = near.batch(&[transfer_to(near, to)], &[]).failure();
    assert!(failure.contains(&format!("peer {to}: ")), "{failure}");
    assert!(begun.elapsed() < LIMIT, "{failure} after {:?}", begun.elapsed());
    failure
}

/// A server that is none: each connection that it accepts is `serve`d, all at once.
fn stand_in(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serve = Arc::new(serve);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (serve, stream) = (Arc::clone(&serve), stream.unwrap());
            std::thread::spawn(move || serve(stream));
        }
    });
    address
}

/// Passes bytes on, as long as any are `left`, and ends both connections behind them.
fn pass_on(mut from: TcpStream, mut to: TcpStream, left: &AtomicUsize) {
    let mut piece = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut piece) {
        let count = count.min(left.load(Ordering::SeqCst));
        left.fetch_sub(count, Ordering::SeqCst);
        if to.write_all(&piece[..count]).is_err() || left.load(Ordering::SeqCst) == 0 {
            break;
        }
    }
    // Either may have gone before.
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

/// A server in front of `to`, that passes on what comes to `pass` and what is answered as it is.
fn in_front_of(
    to: SocketAddr,
    pass: impl Fn(TcpStream, TcpStream) + Send + Sync + 'static,
) -> SocketAddr {
    stand_in(move |stream| {
        let there = TcpStream::connect(to).unwrap();
        let (back, answers) = (stream.try_clone().unwrap(), there.try_clone().unwrap());
        std::thread::spawn(move || pass_on(answers, back, &AtomicUsize::new(usize::MAX)));
        pass(stream, there);
    })
}

#[test]
fn transfer_over_tls_brings_the_bytes_to_the_other_server_and_back() {
    let key = Private::key();
    let [a, b] = pair(&key, "--staging-memory=1G");
    let (mut near, mut far) = (client(&a), client(&b));
    for (number, bytes) in [4, 20_000, 300_000, (8 << 20) + 4].into_iter().enumerate() {
        let number = number as u64;
        let free = |of: &Client| format!("BufferFree({}, buffer_num=1)", of.session(0));
        near.batch(&[near.alloc(1, bytes)], &[]).ok();
        far.batch(&[far.alloc(1, bytes)], &[]).ok();
        let data = pattern(bytes);
        let there = [near.copy_in(1, &data), transfer(&near, &far), event(&near, &far, number)];
        near.send(&there, &[&data]);
        let all = far.batch(&[wait(&far, number), far.copy_out(1)], &[]).ok();
        assert!(all == data, "{bytes} bytes");
        near.receive().ok();
        let zeros = vec![0; data.len()];
        near.batch(&[near.copy_in(1, &zeros)], &[&zeros]).ok();
        far.send(&[transfer(&far, &near), event(&far, &near, number)], &[]);
        let all = near.batch(&[wait(&near, number), near.copy_out(1)], &[]).ok();
        assert!(all == data, "{bytes} bytes back");
        far.receive().ok();
        near.batch(&[free(&near)], &[]).ok();
        far.batch(&[free(&far)], &[]).ok();
    }
}

#[test]
fn batch_transfer_over_tls_brings_all_buffers_of_all_sizes() {
    let key = Private::key();
    let [a, b] = pair(&key, "--staging-memory=1G");
    let (mut near, mut far) = (client(&a), client(&b));
    let sizes = [4_u64, 16, 5000, 200_000, 3 << 20, 12];
    let (mut sources, mut destinations) = (Vec::new(), Vec::new());
    for (number, bytes) in sizes.iter().enumerate() {
        let (number, data) = (number as u64, pattern(*bytes));
        near.batch(&[near.alloc(number, *bytes), near.copy_in(number, &data)], &[&data]).ok();
        far.batch(&[far.alloc(number, *bytes)], &[]).ok();
        sources.push(format!("({}, {number})", near.key(0)));
        destinations.push(format!("({}, {number})", far.key(0)));
    }
    let (sources, destinations) = (sources.join(", "), destinations.join(", "));
    let session = near.session(0);
    let all = format!(
        "BatchTransfer({session}, sbuffer_nums=[{sources}], dbuffer_nums=[{destinations}])"
    );
    near.batch(&[all], &[]).ok();
    for (number, bytes) in sizes.iter().enumerate() {
        let out = far.batch(&[far.copy_out(number as u64)], &[]).ok();
        assert!(out == pattern(*bytes), "{bytes} bytes");
    }
}

#[test]
fn servers_whose_staging_memory_is_full_copy_to_each_other_over_tls_all_the_same() {
    let key = Private::key();
    let [a, b] = pair(&key, "--staging-memory=1M");
    let (mut near, mut far) = (client(&a), client(&b));
    let (ones, twos) = (vec![1; 12 << 20], vec![2; 12 << 20]);
    for (of, bytes) in [(&mut near, &ones), (&mut far, &twos)] {
        let fill = [of.alloc(1, 12 << 20), of.alloc(2, 12 << 20), of.copy_in(1, bytes)];
        of.batch(&fill, &[bytes]).ok();
    }
    let to_second =
        |from: &Client, to: &Client| transfer(from, to).replace("dbuffer_num=1", "dbuffer_num=2");
    near.send(&[to_second(&near, &far)], &[]);
    far.send(&[to_second(&far, &near)], &[]);
    near.receive().ok();
    far.receive().ok();
    assert!(near.batch(&[near.copy_out(2)], &[]).ok() == twos);
    assert!(far.batch(&[far.copy_out(2)], &[]).ok() == ones);
}

/// A client of a server that wants certificates, with a buffer 1 of so many bytes.
struct Far {
    words: Client,
    stream: Stream,
}

impl Far {
    fn new(server: &Server, certificate: &str, nonce: &str, bytes: u64) -> Far {
        let words = Client::connect(server.address(), nonce).naming_its_server();
        let mut far = Far { words, stream: connect(server.address(), Some(certificate)) };
        let alloc = far.words.alloc(1, bytes);
        assert_eq!(batch(&mut far.stream, &[alloc], &[]).0, 200);
        far
    }

    fn bytes(&mut self) -> Vec<u8> {
        let (status, bytes) = batch(&mut self.stream, &[self.words.copy_out(1)], &[]);
        assert_eq!(status, 200);
        bytes
    }
}

#[test]
fn peer_that_asks_is_shown_a_certificate_and_lets_it_to_the_sessions_of_that_name_alone() {
    let (key, client_key) = (Private::key(), Private::of("client.key"));
    let ca = format!("--client-ca={}", file("ca.pem").display());
    let b = with_certificate("server.pem", &key).arg(&ca).start();
    let bytes = 8 << 20;
    let mut ann = Far::new(&b, "ann.pem", "pair", bytes);
    let mut bob = Far::new(&b, "bob.pem", "bobs", bytes);
    // Its own, where nothing else is said.
    let own = with_certificate("ann.pem", &client_key).arg("--listen-plain=127.0.0.1:0");
    let a = own.arg(&peer(b.address(), "")).start();
    let mut near = client(&a);
    let data = pattern(bytes);
    near.batch(&[near.alloc(1, bytes), near.copy_in(1, &data)], &[&data]).ok();
    near.batch(&[transfer(&near, &ann.words)], &[]).ok();
    assert!(ann.bytes() == data);
    let failure = near.batch(&[transfer(&near, &bob.words)], &[]).failure();
    assert!(failure.contains("unknown session"), "{failure}");
    assert!(bob.bytes().iter().all(|byte| *byte == 0));
    // Another, where one is named.
    let c = Server::builder().arg(&peer(b.address(), &showing("bob.pem", &client_key))).start();
    let mut third = near_of(&c, bytes);
    third.batch(&[transfer(&third, &bob.words)], &[]).ok();
    assert!(bob.bytes() == data);
    let failure = third.batch(&[transfer(&third, &ann.words)], &[]).failure();
    assert!(failure.contains("unknown session"), "{failure}");
}

#[test]
fn peer_that_refuses_a_certificate_is_named_with_why_however_much_was_to_be_sent() {
    let (key, client_key) = (Private::key(), Private::of("client.key"));
    let ca = format!("--client-ca={}", file("ca.pem").display());
    let b = with_certificate("server.pem", &key).arg(&ca).start();
    for (options, words) in [
        (String::new(), "wants a certificate of this server"),
        (showing("expired.pem", &client_key), "CertificateExpired"),
        (showing("stranger.pem", &client_key), "UnknownCA"),
    ] {
        let a = Server::builder().arg(&peer(b.address(), &options)).start();
        // It may be refused before or after all is sent.
        for (turn, bytes) in [4, 4, 4, 4, 4, 4, 8 << 20].into_iter().enumerate() {
            let mut near = near_as(&a, &format!("turn{turn}"), bytes);
            let failure = refusal(&mut near, b.address());
            assert!(failure.contains(words) && failure.contains("cert="), "{bytes}: {failure}");
        }
    }
}

#[test]
fn certificate_that_is_not_the_peers_is_refused_with_the_remedy_and_at_once() {
    let (key, client_key) = (Private::key(), Private::of("client.key"));
    let start = |certificate, key| with_certificate(certificate, key).arg("--log=debug").start();
    let (good, expired) = (start("server.pem", &key), start("expired.pem", &client_key));
    let clients = start("ann.pem", &client_key);
    let strangers = file("other-ca.pem").display().to_string();
    let authorities = file("ca.pem").display().to_string();
    for (b, authorities, name, words) in [
        (&good, &strangers, "", "of none of the authorities that --peer names for it with ca="),
        (&good, &authorities, ",name=elsewhere.lab", "is only valid for"),
        (&expired, &authorities, ",name=ann.lab", "it needs a new one"),
        (&clients, &authorities, ",name=ann.lab", "its certificate is no good"),
    ] {
        let rule = format!("--peer={},ca={authorities}{name}", b.address());
        let a = Server::builder().arg(&rule).start();
        let mut near = near_of(&a, 16);
        let refusals = || b.stderr().matches("no handshake").count();
        for _ in 0..2 {
            let before = refusals();
            let failure = refusal(&mut near, b.address());
            assert!(failure.contains(words), "{failure}");
            wait_until("the other server has heard of it", || refusals() > before);
            assert_eq!(refusals(), before + 1, "{}", b.stderr());
        }
        // The session works on.
        assert_eq!(near.batch(&[near.copy_out(1)], &[]).ok(), pattern(16));
    }
    let a = Server::builder().arg(&peer(good.address(), ",name=localhost")).start();
    let mut near = near_of(&a, 16);
    let failure = refusal(&mut near, good.address());
    assert!(failure.contains("unknown session"), "by another of its names: {failure}");
}

#[test]
fn peer_that_does_not_speak_tls_gets_no_byte_without_it() {
    let own = TokenFile::new("token.token.token.token.token");
    let heard = Arc::new(std::sync::Mutex::new(Vec::new()));
    let answering = |answer: &'static [u8], hangs_up: bool| {
        let heard = Arc::clone(&heard);
        stand_in(move |mut stream| {
            let mut piece = [0; 4096];
            let count = stream.read(&mut piece).unwrap_or(0);
            heard.lock().unwrap().push(piece[..count].to_vec());
            let _ = stream.write_all(answer);
            let mut is_open = !hangs_up;
            while is_open {
                let count = stream.read(&mut piece).unwrap_or(0);
                heard.lock().unwrap().push(piece[..count].to_vec());
                is_open = count > 0;
            }
        })
    };
    let plain = Server::start();
    let http = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    for (address, words) in [
        (plain.address(), "not TLS"),
        (answering(http, false), "not TLS"),
        (answering(b"\x15\x03\x03\x00\x02\x02\x46", false), "does not speak TLS 1.3"),
        (answering(b"\x15\x03\x01\x00\x02\x02\x28", true), "HandshakeFailure"),
        (answering(b"", false), "the handshake of TLS was not over after 2s"),
        (answering(b"", true), "ended the connection before the handshake"),
        (answering(&[0; 100], true), "not TLS"),
    ] {
        let rule = peer(address, &format!(",token={}", own.path().display()));
        // Only who says nothing is waited for.
        let seconds = if words.contains("after 2s") { 2 } else { 60 };
        let a = Server::builder().arg(&rule).arg(&format!("--peer-timeout={seconds}")).start();
        let mut near = near_of(&a, 1 << 20);
        let failure = refusal(&mut near, address);
        assert!(failure.contains(words), "{failure}");
        assert_eq!(near.batch(&[near.copy_out(1)], &[]).ok().len(), 1 << 20);
    }
    for bytes in heard.lock().unwrap().iter().filter(|bytes| !bytes.is_empty()) {
        // A handshake, or an alert: nothing of a request.
        assert!(matches!(bytes[0], 21 | 22), "{}", bytes.escape_ascii());
        let is_request = |word: &[u8]| bytes.windows(word.len()).any(|bytes| bytes == word);
        assert!(!is_request(b"token.token") && !is_request(b"POST"), "{}", bytes.escape_ascii());
    }
}

#[test]
fn peer_that_wants_tls_says_so_to_who_does_without_however_much_was_to_be_sent() {
    let key = Private::key();
    let b = with_certificate("server.pem", &key).start();
    let a = Server::start();
    for bytes in [4, 8 << 20] {
        let mut near = near_as(&a, &format!("of{bytes}"), bytes);
        let failure = refusal(&mut near, b.address());
        assert!(failure.contains("it speaks TLS: --peer names its authorities"), "{failure}");
    }
}

#[test]
fn connection_with_tls_that_is_cut_anywhere_fails_what_needs_it_and_leaves_nothing() {
    let key = Private::key();
    let b = secure(&key).start();
    let left = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&left);
    let between = in_front_of(b.address(), move |from, to| pass_on(from, to, &counter));
    let a = Server::builder().arg("--shards=1").arg(&peer(between, "")).start();
    let mut far = Client::connect(plain_of(&b), "pair").naming(&between.to_string());
    let bytes = 6 << 20;
    far.batch(&[far.alloc(1, bytes)], &[]).ok();
    let zeros = vec![0; 6 << 20];
    let mut cut_everywhere = || {
        let mut near = near_of(&a, bytes);
        for cut in [3, 100, 400, 2_000, 100_000, 3 << 20, 5 << 20] {
            left.store(cut, Ordering::SeqCst);
            refusal(&mut near, between);
        }
        // The next is not hurt by it, nor by the end of a connection that was kept.
        for cut in [10, 4 << 20] {
            far.batch(&[far.copy_in(1, &zeros)], &[&zeros]).ok();
            left.store(usize::MAX, Ordering::SeqCst);
            near.batch(&[transfer_to(&near, between)], &[]).ok();
            assert!(far.batch(&[far.copy_out(1)], &[]).ok() == pattern(bytes), "{cut}");
            left.store(cut, Ordering::SeqCst);
            refusal(&mut near, between);
        }
    };
    // What is kept for the next time is there before it is looked at.
    cut_everywhere();
    wait_until("the session of the first round is gone", || Holdings::of(a.pid()).children == 0);
    let baseline = Holdings::of(a.pid());
    cut_everywhere();
    drop(far);
    b.signal(Signal::KILL);
    b.wait(LIMIT);
    baseline.wait_until_back(a.pid());
}

#[test]
fn bytes_that_are_changed_on_the_way_are_never_taken() {
    let key = Private::key();
    let b = secure(&key).start();
    let between = in_front_of(b.address(), |mut stream, mut there| {
        let (mut piece, mut passed) = ([0; 4096], 0);
        while let Ok(count @ 1..) = stream.read(&mut piece) {
            // In the middle of what is copied.
            if (passed..passed + count).contains(&(1 << 20)) {
                piece[(1 << 20) - passed] ^= 1;
            }
            passed += count;
            if there.write_all(&piece[..count]).is_err() {
                break;
            }
        }
    });
    let a = Server::builder().arg(&peer(between, "")).start();
    let mut far = Client::connect(plain_of(&b), "pair").naming(&between.to_string());
    far.batch(&[far.alloc(1, 4 << 20)], &[]).ok();
    refusal(&mut near_of(&a, 4 << 20), between);
    assert!(far.batch(&[far.copy_out(1)], &[]).ok().iter().all(|byte| *byte == 0));
}

#[test]
fn peer_that_falls_silent_in_the_middle_of_a_copy_over_tls_is_given_up_in_time() {
    let key = Private::key();
    let b = secure(&key).start();
    let between = in_front_of(b.address(), |mut stream, mut there| {
        let mut piece = [0; 4096];
        for _ in 0..64 {
            let count = stream.read(&mut piece).unwrap();
            there.write_all(&piece[..count]).unwrap();
        }
        // Nothing more is read while the other server lives.
        let mut ended = [rustix::event::PollFd::new(&there, rustix::event::PollFlags::HUP)];
        rustix::event::poll(&mut ended, None).unwrap();
    });
    let a = Server::builder().arg(&peer(between, "")).arg("--peer-timeout=2").start();
    let mut far = Client::connect(plain_of(&b), "pair").naming(&between.to_string());
    far.batch(&[far.alloc(1, 24 << 20)], &[]).ok();
    let mut near = near_of(&a, 24 << 20);
    let failure = refusal(&mut near, between);
    assert!(failure.contains("nothing was heard of it for 2s"), "{failure}");
    near.batch(&[near.alloc(2, 16)], &[]).ok();
    // The rest of a body is waited for there.
    b.signal(Signal::KILL);
    b.wait(LIMIT);
}

#[test]
fn peer_that_dies_and_comes_back_is_connected_to_again_over_tls() {
    let key = Private::key();
    let [a, b] = pair(&key, "--staging-memory=1G");
    let address = b.address();
    let (mut near, mut far) = (client(&a), client(&b));
    near.batch(&[near.alloc(1, 16)], &[]).ok();
    far.batch(&[far.alloc(1, 16)], &[]).ok();
    near.batch(&[transfer(&near, &far)], &[]).ok();
    b.signal(Signal::KILL);
    b.wait(LIMIT);
    let failure = near.batch(&[transfer(&near, &far)], &[]).failure();
    assert!(failure.contains(&format!("peer {address}: ")), "{failure}");
    let b = secure(&key).listen(&address.to_string()).start();
    let mut far = client(&b);
    far.batch(&[far.alloc(1, 16)], &[]).ok();
    near.batch(&[transfer(&near, &far)], &[]).ok();
}

#[test]
fn files_of_a_peer_are_read_again_on_sighup_and_kept_connections_made_anew() {
    let key = Private::key();
    let b = secure(&key).start();
    let read = |name: &str| fs::read_to_string(file(name)).unwrap();
    let authorities = Private::new(&read("ca.pem"));
    let rule = format!("--peer={},ca={}", b.address(), authorities.path().display());
    let a = Server::builder().arg(&rule).start();
    let (mut near, mut far) = (near_of(&a, 16), client(&b));
    far.batch(&[far.alloc(1, 16)], &[]).ok();
    let copy = transfer(&near, &far);
    near.batch(std::slice::from_ref(&copy), &[]).ok();
    fs::write(authorities.path(), read("other-ca.pem")).unwrap();
    a.signal(Signal::HUP);
    // A connection that was made before is there, and would do.
    wait_for("the new authorities count", || match near.batch(std::slice::from_ref(&copy), &[]) {
        reply if reply.status == 500 && reply.text().contains("none of the authorities") => Ok(()),
        reply => Err(reply),
    });
    fs::write(authorities.path(), read("ca.pem")).unwrap();
    a.signal(Signal::HUP);
    wait_for("the old authorities count again", || {
        match near.batch(std::slice::from_ref(&copy), &[]) {
            reply if reply.status == 200 => Ok(()),
            reply => Err(reply),
        }
    });
    fs::write(authorities.path(), "nothing\n").unwrap();
    a.signal(Signal::HUP);
    wait_until("the file is refused", || a.stderr().contains("stays in force"));
    let log = a.stderr();
    assert!(log.contains("no certificate in PEM") && log.contains("--peer"), "{log}");
    near.batch(&[copy], &[]).ok();
}

#[test]
fn token_goes_over_tls_and_without_it_to_another_machine_with_a_warning() {
    let key = Private::key();
    let token = "a-peer-0123456789abcdefghijklm";
    let tokens = TokenFile::new(&format!("bob {}\na {token} peer\n", support::tokens::BOB));
    let b = secure(&key).arg(&format!("--token-file={}", tokens.path().display())).start();
    let own = TokenFile::new(token);
    let option = format!(",token={}", own.path().display());
    // Nobody is asked there.
    let open = format!("--peer=192.0.2.1:1{option}");
    let closed = format!("--peer=192.0.2.2:1,ca={}{option}", file("ca.pem").display());
    let a = Server::builder().arg(&peer(b.address(), &option)).args([&open, &closed]).start();
    let log = a.stderr();
    assert!(log.contains("192.0.2.1:1") && log.contains("can be read on the way"), "{log}");
    assert!(!log.contains("192.0.2.2") && !log.contains("127.0.0.1"), "{log}");
    let mut near = near_of(&a, 16);
    let mut far = client(&b).with_token(support::tokens::BOB);
    far.batch(&[far.alloc(1, 16)], &[]).ok();
    near.batch(&[transfer(&near, &far)], &[]).ok();
    assert_eq!(far.batch(&[far.copy_out(1)], &[]).ok(), pattern(16));
}

#[test]
fn bad_rules_and_files_of_peers_are_refused_with_the_remedy() {
    let key = Private::key();
    let said = |rule: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_outboard"))
            .args(["serve", "--listen=127.0.0.1:0", &format!("--peer=127.0.0.1:1{rule}")])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(!output.status.success(), "{rule}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let ca = format!(",ca={}", file("ca.pem").display());
    let missing = format!("{ca}.not");
    let mismatched = format!("{ca}{}", showing("ann.pem", &key));
    let open = Private::of("client.key");
    std::process::Command::new("chmod").arg("604").arg(open.path()).status().unwrap();
    let readable = format!("{ca}{}", showing("ann.pem", &open));
    for (rule, words) in [
        (",tls", "perhaps ,token=FILE and ,ca=FILE"),
        (",cert=a,key=b", "for TLS, which ca=FILE asks for"),
        (&missing, "No such file"),
        (&mismatched, "the certificate "),
        (&readable, "chmod 600"),
    ] {
        let words_said = said(rule);
        assert!(words_said.contains(words), "{rule}: {words_said}");
    }
}
