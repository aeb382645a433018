//! Two servers and a client of both: events, transfers, and what is left when one of them dies.

#![expect(clippy::unwrap_used, reason = "a test ends where its client cannot go on")]

mod support;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::Server;
use support::client::Client;
use support::holdings::Holdings;
use support::hosts::{event, pattern, transfer, wait};
use support::wait::wait_until;

/// Well above what anything takes here.
const LIMIT: Duration = Duration::from_secs(30);

const ANN: &str = "ann.ann.ann.ann.ann.ann.ann";
const BOB: &str = "bob.bob.bob.bob.bob.bob.bob";
const EVE: &str = "eve.eve.eve.eve.eve.eve.eve";

/// Counts to a few hundred millions.
const SLOW: &str = "void slow(volatile int* data0) {\n\
                    for (int i = 0; i < 300000000; i++) { data0[0] = i; }\n}\n";

/// A session of device 0 on each of two servers, of one client.
struct Pair {
    near: Client,
    far: Client,
}

impl Pair {
    fn connect(near: SocketAddr, far: SocketAddr, nonce: &str) -> Pair {
        let connect = |address| Client::connect(address, nonce).naming_its_server();
        Pair { near: connect(near), far: connect(far) }
    }

    fn of(near: &Server, far: &Server) -> Pair {
        Pair::connect(near.address(), far.address(), "pair")
    }

    /// Both sessions with a buffer 1 of so many bytes.
    fn alloc(&mut self, near_bytes: u64, far_bytes: u64) {
        self.near.batch(&[self.near.alloc(1, near_bytes)], &[]).ok();
        self.far.batch(&[self.far.alloc(1, far_bytes)], &[]).ok();
    }
}

/// A server that is none: what it accepts is `serve`d, one after the other.
fn stand_in(serve: impl Fn(TcpStream) + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            serve(stream.unwrap());
        }
    });
    address
}

/// Reads so many bytes, or to the end.
fn drain(stream: &mut TcpStream, bytes: usize) {
    let mut piece = [0; 4096];
    let mut left = bytes;
    while left > 0 {
        match stream.read(&mut piece) {
            Ok(0) | Err(_) => return,
            Ok(count) => left = left.saturating_sub(count),
        }
    }
}

#[test]
fn event_of_the_other_server_ends_a_wait_that_began_before_or_after_it() {
    let (a, b) = (Server::start(), Server::start());
    let mut pair = Pair::of(&a, &b);
    pair.alloc(16, 16);
    for number in 0..20 {
        let Pair { near, far } = &mut pair;
        // The wait begins first, or the event has long been there.
        let (wait_near, wait_far) = (wait(near, number), wait(far, number));
        if number % 2 == 0 {
            near.send(&[wait_near], &[]);
            far.batch(&[event(far, near, number)], &[]).ok();
            near.receive().ok();
        } else {
            near.batch(&[event(near, far, number)], &[]).ok();
            far.batch(&[wait_far], &[]).ok();
        }
    }
    // Each sends before it waits, in one batch.
    let Pair { near, far } = &mut pair;
    let batches = [
        [event(near, far, 1), wait(near, 1), near.copy_out(1)],
        [event(far, near, 1), wait(far, 1), far.copy_out(1)],
    ];
    near.send(&batches[0], &[]);
    far.send(&batches[1], &[]);
    assert_eq!((near.receive().ok().len(), far.receive().ok().len()), (16, 16));
}

#[test]
fn servers_that_wait_for_each_other_end_in_time_and_serve_on() {
    let [a, b] = [(); 2].map(|()| Server::builder().arg("--wait-timeout=1").start());
    let mut pair = Pair::of(&a, &b);
    pair.alloc(16, 16);
    let Pair { near, far } = &mut pair;
    let begun = Instant::now();
    // What each waits for comes behind what the other waits for.
    let batches = [
        [wait(near, 1), transfer(near, far), event(near, far, 1)],
        [wait(far, 1), transfer(far, near), event(far, near, 1)],
    ];
    near.send(&batches[0], &[]);
    far.send(&batches[1], &[]);
    let replies = [near.receive(), far.receive()];
    assert!(begun.elapsed() < LIMIT, "{:?}", begun.elapsed());
    // What the first to give up does next may reach the other in time.
    let failures: Vec<String> = replies
        .into_iter()
        .filter(|reply| reply.status != 200)
        .map(|reply| reply.failure())
        .collect();
    assert!(!failures.is_empty(), "neither had to give up");
    for failure in &failures {
        assert!(failure.contains("nobody set event 1 within 1s"), "{failure}");
    }
    let data = pattern(16);
    near.batch(&[near.copy_in(1, &data), transfer(near, far), event(near, far, 2)], &[&data]).ok();
    assert_eq!(far.batch(&[wait(far, 2), far.copy_out(1)], &[]).ok(), data);
}

#[test]
fn servers_whose_staging_memory_is_full_copy_to_each_other_all_the_same() {
    let [a, b] = [(); 2].map(|()| Server::builder().arg("--staging-memory=1M").start());
    let mut pair = Pair::of(&a, &b);
    let bytes = 24 << 20;
    pair.alloc(bytes, bytes);
    let Pair { near, far } = &mut pair;
    let (ones, twos) = (vec![1; 24 << 20], vec![2; 24 << 20]);
    near.batch(&[near.copy_in(1, &ones), near.alloc(2, bytes)], &[&ones]).ok();
    far.batch(&[far.copy_in(1, &twos), far.alloc(2, bytes)], &[&twos]).ok();
    let to_second =
        |from: &Client, to: &Client| transfer(from, to).replace("dbuffer_num=1", "dbuffer_num=2");
    for _ in 0..3 {
        let batches = [to_second(near, far), to_second(far, near)];
        near.send(&[batches[0].clone()], &[]);
        far.send(&[batches[1].clone()], &[]);
        near.receive().ok();
        far.receive().ok();
    }
    assert!(near.batch(&[near.copy_out(2)], &[]).ok() == twos);
    assert!(far.batch(&[far.copy_out(2)], &[]).ok() == ones);
}

#[test]
fn event_for_the_other_server_waits_for_all_work_of_its_client() {
    let (a, b) = (Server::start(), Server::start());
    let mut pair = Pair::of(&a, &b);
    pair.alloc(16, 16);
    let Pair { near, far } = &mut pair;
    // The kernel is that of another session than the one that sets the event.
    let of_other = |command: String| command.replace("idx=0", "idx=1");
    let setup = [of_other(near.alloc(1, 16)), of_other(near.program("slow", SLOW))];
    near.batch(&setup, &[SLOW.as_bytes()]).ok();
    let exec = |near: &Client, wait| of_other(near.exec("slow", SLOW, &[1], wait));
    let taken: f64 =
        String::from_utf8(near.batch(&[exec(near, true)], &[]).ok()).unwrap().parse().unwrap();
    let begun = Instant::now();
    far.send(&[wait(far, 1)], &[]);
    // The batch itself does not stop: what it says behind the event is done before.
    let commands = [exec(near, false), event(near, far, 1), near.alloc(2, 16)];
    near.send(&commands, &[]);
    far.receive().ok();
    let waited = begun.elapsed().as_secs_f64();
    assert!(waited > taken / 2.0, "the event came after {waited} s of {taken} s");
    near.receive().ok();
    near.batch(&[near.copy_out(2)], &[]).ok();
}

#[test]
fn transfer_brings_the_bytes_to_the_other_server_and_back() {
    let (a, b) = (Server::start(), Server::start());
    for bytes in [4, 20_000, 300_000, 64 << 20] {
        let mut pair = Pair::connect(a.address(), b.address(), &format!("pair{bytes}"));
        pair.alloc(bytes, bytes);
        let Pair { near, far } = &mut pair;
        let data = pattern(bytes);
        let there = [near.copy_in(1, &data), transfer(near, far), event(near, far, 1)];
        near.send(&there, &[&data]);
        assert!(far.batch(&[wait(far, 1), far.copy_out(1)], &[]).ok() == data, "{bytes} bytes");
        near.receive().ok();
        let zeros = vec![0; usize::try_from(bytes).unwrap()];
        near.batch(&[near.copy_in(1, &zeros)], &[&zeros]).ok();
        far.send(&[transfer(far, near), event(far, near, 1)], &[]);
        assert!(near.batch(&[wait(near, 1), near.copy_out(1)], &[]).ok() == data, "{bytes} back");
        far.receive().ok();
    }
}

#[test]
fn batch_transfer_brings_all_buffers_of_all_sessions() {
    let (a, b) = (Server::start(), Server::start());
    let pair = Pair::of(&a, &b);
    let Pair { mut near, mut far } = pair;
    let of = |index: u64, command: String| command.replace("idx=0", &format!("idx={index}"));
    let sizes = [4_u64, 16, 5000, 200_000, 3 << 20];
    let (mut sources, mut destinations) = (Vec::new(), Vec::new());
    for (number, bytes) in sizes.iter().enumerate() {
        let (number, session) = (number as u64, number as u64 % 2);
        let data = pattern(*bytes);
        let fill =
            [of(session, near.alloc(number, *bytes)), of(session, near.copy_in(number, &data))];
        near.batch(&fill, &[&data]).ok();
        far.batch(&[of(1 - session, far.alloc(number, *bytes))], &[]).ok();
        sources.push(format!("({}, {number})", near.key(session)));
        destinations.push(format!("({}, {number})", far.key(1 - session)));
    }
    let batch = |sources: &[String], destinations: &[String]| {
        let (sources, destinations) = (sources.join(", "), destinations.join(", "));
        let session = near.session(0);
        format!("BatchTransfer({session}, sbuffer_nums=[{sources}], dbuffer_nums=[{destinations}])")
    };
    let (all, odd) = (batch(&sources, &destinations), batch(&sources, &destinations[1..]));
    near.batch(&[all], &[]).ok();
    for (number, bytes) in sizes.iter().enumerate() {
        let number = number as u64;
        let out = far.batch(&[of(1 - number % 2, far.copy_out(number))], &[]).ok();
        assert!(out == pattern(*bytes), "{bytes} bytes");
    }
    let failure = near.batch(&[odd], &[]).failure();
    assert!(failure.contains("5 sources and 4 destinations"), "{failure}");
}

#[test]
fn transfer_that_does_not_fit_fails_and_names_the_peer() {
    let (a, b) = (Server::start(), Server::start());
    let mut pair = Pair::of(&a, &b);
    pair.alloc(16, 8);
    let Pair { near, far } = &mut pair;
    let peer = format!("peer {}", b.address());
    let failure = near.batch(&[transfer(near, far), near.alloc(2, 16)], &[]).failure();
    assert!(failure.contains("command 0 (Transfer)") && failure.contains(&peer), "{failure}");
    assert!(failure.contains("16 bytes") && failure.contains("has 8"), "{failure}");
    // The command behind it has run, and the destination is as it was.
    near.batch(&[near.copy_out(2)], &[]).ok();
    assert_eq!(far.batch(&[far.copy_out(1)], &[]).ok(), [0; 8]);
    // Neither buffers nor sessions that are not there come into being.
    far.batch(&[format!("BufferFree({}, buffer_num=1)", far.session(0))], &[]).ok();
    let failure = near.batch(&[transfer(near, far)], &[]).failure();
    assert!(failure.contains("unknown buffer 1"), "{failure}");
    far.batch(&[format!("SessionFree({})", far.session(0))], &[]).ok();
    let failure = near.batch(&[event(near, far, 1)], &[]).failure();
    assert!(failure.contains("unknown session") && failure.contains(&peer), "{failure}");
}

#[test]
fn host_that_is_no_peer_is_refused_and_never_connected_to() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap();
    let a = Server::builder().arg("--peer=127.0.0.1:1").start();
    let mut near = Client::connect(a.address(), "n").naming_its_server();
    near.batch(&[near.alloc(1, 16)], &[]).ok();
    let far = near.key(0).replace(&a.address().to_string(), &host.to_string());
    let session = near.session(0);
    for command in [
        format!("Event({session}, event_session={far}, event=1)"),
        format!("Transfer({session}, buffer_num=1, dsession={far}, dbuffer_num=1)"),
        format!(
            "BatchTransfer({session}, sbuffer_nums=[({}, 1)], dbuffer_nums=[({far}, 1)])",
            near.key(0)
        ),
    ] {
        let failure = near.batch(&[command], &[]).failure();
        assert!(failure.contains(&host.to_string()) && failure.contains("--peer"), "{failure}");
    }
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "somebody has connected");
}

#[test]
fn dead_peer_fails_what_needs_it_in_time_and_leaves_nothing_behind() {
    let a = Server::builder().arg("--peer-timeout=2").start();
    let mut first = Client::connect(a.address(), "first").naming_its_server();
    first.batch(&[first.alloc(1, 4)], &[]).ok();
    drop(first);
    wait_until("the server holds no more than before", || Holdings::of(a.pid()).children == 0);
    let baseline = Holdings::of(a.pid());
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let silent = stand_in(|mut stream| drain(&mut stream, usize::MAX));
    let dying = stand_in(|mut stream| drain(&mut stream, 1 << 20));
    let babbling = stand_in(|mut stream| {
        drain(&mut stream, 200);
        let _ = stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n");
        drain(&mut stream, usize::MAX);
    });
    let bytes = 32 << 20;
    let data = pattern(bytes);
    for (address, words) in [
        (closed, "cannot connect"),
        (silent, "nothing was heard"),
        (dying, "the connection"),
        (babbling, "no HTTP response"),
    ] {
        let mut near = Client::connect(a.address(), "n").naming_its_server();
        near.batch(&[near.alloc(1, bytes), near.copy_in(1, &data)], &[&data]).ok();
        let far = near.key(0).replace(&a.address().to_string(), &address.to_string());
        let begun = Instant::now();
        let to =
            format!("Transfer({}, buffer_num=1, dsession={far}, dbuffer_num=1)", near.session(0));
        let failure = near.batch(&[to], &[]).failure();
        let is_named = failure.contains(&format!("peer {address}"));
        assert!(is_named && failure.contains(words), "{failure}");
        assert!(begun.elapsed() < LIMIT, "{:?}", begun.elapsed());
        // The session works on.
        assert!(near.batch(&[near.copy_out(1)], &[]).ok() == data);
    }
    baseline.wait_until_back(a.pid());
}

#[test]
fn peer_that_dies_and_comes_back_is_connected_to_again() {
    let (a, b) = (Server::start(), Server::start());
    let address = b.address();
    let mut pair = Pair::of(&a, &b);
    pair.alloc(16, 16);
    pair.near.batch(&[transfer(&pair.near, &pair.far)], &[]).ok();
    b.signal(Signal::KILL);
    b.wait(LIMIT);
    let failure = pair.near.batch(&[transfer(&pair.near, &pair.far)], &[]).failure();
    assert!(failure.contains(&format!("peer {address}")), "{failure}");
    let b = Server::builder().listen(&address.to_string()).start();
    let mut far = Client::connect(b.address(), "pair").naming_its_server();
    far.batch(&[far.alloc(1, 16)], &[]).ok();
    pair.near.batch(&[transfer(&pair.near, &far)], &[]).ok();
}

#[test]
fn client_that_goes_away_in_the_middle_of_a_transfer_takes_it_along() {
    let a = Server::start();
    let mut first = Client::connect(a.address(), "first").naming_its_server();
    first.batch(&[first.alloc(1, 4)], &[]).ok();
    drop(first);
    wait_until("the server holds no more than before", || Holdings::of(a.pid()).children == 0);
    let baseline = Holdings::of(a.pid());
    let (began, begun) = std::sync::mpsc::channel();
    let silent = stand_in(move |mut stream| {
        drain(&mut stream, 1 << 16);
        began.send(()).unwrap();
        // Nothing more is read before the other end is gone.
        let mut ended = [rustix::event::PollFd::new(&stream, rustix::event::PollFlags::HUP)];
        rustix::event::poll(&mut ended, None).unwrap();
    });
    let mut near = Client::connect(a.address(), "n").naming_its_server();
    let bytes = 32 << 20;
    near.batch(&[near.alloc(1, bytes)], &[]).ok();
    let far = near.key(0).replace(&a.address().to_string(), &silent.to_string());
    let to = format!("Transfer({}, buffer_num=1, dsession={far}, dbuffer_num=1)", near.session(0));
    near.send(&[to], &[]);
    begun.recv_timeout(LIMIT).unwrap();
    drop(near);
    baseline.wait_until_back(a.pid());
}

/// A file of tokens that its owner alone may read.
fn token_file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

#[test]
fn peer_with_a_token_works_for_clients_of_other_names_and_does_nothing_else() {
    let tokens_of_b = token_file(&format!("bob {BOB}\na {EVE} peer\n"));
    let b = Server::builder().arg("--token-file").arg(tokens_of_b.path().to_str().unwrap()).start();
    let tokens_of_a = token_file(&format!("ann {ANN}\n"));
    let own = token_file(EVE);
    let peer = format!("--peer={},token={}", b.address(), own.path().to_str().unwrap());
    let tokens = tokens_of_a.path().to_str().unwrap();
    let a = Server::builder().arg("--token-file").arg(tokens).arg(&peer).start();
    let near = Client::connect(a.address(), "pair").with_token(ANN).naming_its_server();
    let far = Client::connect(b.address(), "pair").with_token(BOB).naming_its_server();
    let mut pair = Pair { near, far };
    pair.alloc(16, 16);
    let Pair { near, far } = &mut pair;
    let data = pattern(16);
    near.batch(&[near.copy_in(1, &data), transfer(near, far), event(near, far, 1)], &[&data]).ok();
    assert_eq!(far.batch(&[wait(far, 1), far.copy_out(1)], &[]).ok(), data);
    // The token reads nothing, and opens nothing.
    let mut eve = Client::connect(b.address(), "pair").with_token(EVE).naming_its_server();
    for command in [eve.copy_out(1), format!("SessionFree({})", eve.session(0)), eve.alloc(2, 4)] {
        let failure = eve.batch(&[command], &[]).failure();
        assert!(failure.contains("not what one server asks of another"), "{failure}");
    }
    let other = event(&eve, &eve, 1).replace("pair", "other");
    let failure = eve.batch(&[other], &[]).failure();
    assert!(failure.contains("unknown session"), "{failure}");
    // A client cannot do what the peer can.
    let mut ann = Client::connect(a.address(), "other").with_token(ANN).naming_its_server();
    ann.batch(&[ann.alloc(1, 16)], &[]).ok();
    let mut thief = Client::connect(b.address(), "pair").with_token(BOB).naming_its_server();
    thief.batch(&[thief.copy_out(1)], &[]).ok();
}

#[test]
fn peer_that_wants_a_token_is_named_with_what_it_says() {
    let tokens = token_file(&format!("bob {BOB}\n"));
    let b = Server::builder().arg("--token-file").arg(tokens.path().to_str().unwrap()).start();
    let a = Server::start();
    let near = Client::connect(a.address(), "pair").naming_its_server();
    let far = Client::connect(b.address(), "pair").with_token(BOB).naming_its_server();
    let mut pair = Pair { near, far };
    pair.alloc(16, 16);
    let failure = pair.near.batch(&[event(&pair.near, &pair.far, 1)], &[]).failure();
    let named = format!("peer {}: it answered 401: this server wants a token", b.address());
    assert!(failure.contains(&named), "{failure}");
}

#[test]
fn blobs_of_a_peer_are_not_checked_by_a_server_that_checks_names() {
    let (a, b) = (Server::start(), Server::builder().arg("--verify-sha256").start());
    let mut pair = Pair::of(&a, &b);
    pair.alloc(16, 16);
    pair.near.batch(&[transfer(&pair.near, &pair.far)], &[]).ok();
}
