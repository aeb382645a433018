//! What other servers are asked for, and when; and what a batch of another server may do.

use super::{Bench, EXEC, READY, parse};
use crate::engine::{Cause, Errand, Owner, Progress, Reply, Route, Sender, WaitFor, Work};
use crate::identity::Identity;

/// A session of another server.
const FAR: &str = "SessionKey(host='far:1', idx=3, nonce='n')";

fn peer_error() -> Cause {
    Cause::Peer { host: "far:1".to_owned(), why: "gone".to_owned() }
}

#[test]
fn event_of_another_host_comes_after_all_devices_of_its_client() {
    let mut bench = Bench::new();
    bench.ok(&format!("{READY}, BufferAlloc(1, 4, $spec, session=$b)"));
    bench.control.hold();
    // The kernel is of one session, the event of another.
    let text = format!("{EXEC}, Event({FAR}, 7, session=$b), BufferAlloc(2, 4, $spec, session=$b)");
    let mut batch = parse(&text);
    let Progress::Peer(errand) = bench.engine.advance(&mut batch, bench.now) else { panic!() };
    let Errand { index: 1, host, route, work: Work::Event { text, after }, .. } = errand else {
        panic!()
    };
    assert_eq!((&host[..], &route[..]), ("far:1", "3 far:1 n"));
    let session = "session=SessionKey(host='far:1', idx=3, nonce='n')";
    assert_eq!(text, format!("[Event({session}, event_{session}, event=7)]"));
    // The batch goes on meanwhile, up to its end.
    assert!(matches!(bench.engine.advance(&mut batch, bench.now), Progress::Join));
    let is_over = |bench: &mut Bench| {
        let over = |(session, fence): &_| WaitFor::Device { session: *session, fence: *fence };
        after.iter().all(|after| bench.engine.is_over(&over(after), bench.now))
    };
    assert!(!is_over(&mut bench));
    bench.control.release();
    assert!(is_over(&mut bench));
    assert!(bench.engine.has_reached(&after).is_ok());
    batch.came_back(1, Ok(()));
    let progress = bench.engine.advance(&mut batch, bench.now);
    assert!(matches!(progress, Progress::Done(Reply::Ok(_))), "{progress:?}");
    bench.ok("CopyOut(2, session=$b)");
}

#[test]
fn copy_to_another_host_holds_what_comes_behind_it() {
    let mut bench = Bench::new();
    bench.ok(READY);
    let mut batch = parse(&format!("Transfer(1, {FAR}, 5, session=$a), {EXEC}"));
    let Progress::Peer(errand) = bench.engine.advance(&mut batch, bench.now) else { panic!() };
    let Work::Copies(mut parcels) = errand.work else { panic!() };
    let parcel = parcels.remove(0);
    assert_eq!((parcels.len(), parcel.bytes), (0, 4));
    let session = "session=SessionKey(host='far:1', idx=3, nonce='n')";
    let copy = format!("CopyIn({session}, buffer_num=5, datahash='{}')", parcel.name);
    assert_eq!(parcel.command, copy);
    // The kernel would change what is being read.
    assert!(matches!(bench.engine.advance(&mut batch, bench.now), Progress::Join));
    assert_eq!(batch.outcomes(), (1, 0));
    assert_eq!(bench.collect(parcel.output), [1, 2, 3, 4]);
    batch.came_back(0, Ok(()));
    let progress = bench.engine.advance(&mut batch, bench.now);
    assert!(matches!(progress, Progress::Done(Reply::Ok(_))), "{progress:?}");
    assert_eq!(bench.ok("CopyOut(1, session=$a)"), [2, 3, 4, 5]);
}

#[test]
fn failure_of_a_peer_is_that_of_its_command() {
    let mut bench = Bench::new();
    bench.ok(READY);
    let text = format!(
        "Event({FAR}, 1, session=$a), BufferFree(9, session=$a), Event({FAR}, 2, session=$a)"
    );
    let mut batch = parse(&text);
    for index in [0, 2] {
        let Progress::Peer(errand) = bench.engine.advance(&mut batch, bench.now) else { panic!() };
        assert_eq!(errand.index, index);
    }
    assert!(matches!(bench.engine.advance(&mut batch, bench.now), Progress::Join));
    // The first command counts, whichever comes back first.
    batch.came_back(2, Err(peer_error()));
    batch.came_back(0, Err(peer_error()));
    let Progress::Done(Reply::Failed(text)) = bench.engine.advance(&mut batch, bench.now) else {
        panic!("it worked");
    };
    let expected = "command 0 (Event): peer far:1: gone (and 2 later commands failed)";
    assert!(text.contains(expected), "{text}");
}

#[test]
fn batch_of_another_server_copies_and_sets_events_and_nothing_else() {
    let mut bench = Bench::new();
    bench.ok(READY);
    let mut run = |text: &str| {
        let mut batch = parse(text).of_sender(Sender::Peer, None);
        let progress = bench.engine.advance(&mut batch, bench.now);
        let Progress::Done(reply) = progress else { panic!("{progress:?}") };
        match reply {
            Reply::Ok(_) => String::new(),
            Reply::Failed(text) => text,
        }
    };
    assert_eq!(run("CopyIn(1, $data, session=$a), Event($a, 1, session=$a)"), "");
    for command in
        ["CopyOut(1, session=$a)", "SessionFree(session=$a)", EXEC, "Event($b, 1, session=$a)"]
    {
        assert!(run(command).contains("not what one server asks of another"), "{command}");
    }
    assert!(run(&format!("Event({FAR}, 1, session=$a)")).contains("not what one server"));
    assert!(run("Event($c, 1, session=$c)").contains("unknown session of device 2"));
    assert_eq!(bench.engine.session_count(), 1);
}

#[test]
fn request_for_one_client_names_no_session_of_another() {
    let mut bench = Bench::new();
    bench.ok(READY);
    let key = b"0 h n";
    let (sender, identity) = (Sender::Peer, Identity::default());
    let here = Some(Route::Here(Owner::Connection(1)));
    assert_eq!(bench.engine.route(sender, identity, key), here);
    assert_eq!(bench.engine.route(Sender::PeerOfAll, identity, key), here);
    assert_eq!(bench.engine.route(Sender::Client, identity, key), None);
    for nobodys in [&b"1 h n"[..], b"0 h m", b"0 h", b"", b"x h n", b"\xff h n", b"1"] {
        assert_eq!(bench.engine.route(sender, identity, nobodys), None);
    }
    let mut run = |client| {
        let mut batch = parse("CopyIn(1, $data, session=$a)").of_sender(sender, Some(client));
        let progress = bench.engine.advance(&mut batch, bench.now);
        let Progress::Done(reply) = progress else { panic!("{progress:?}") };
        matches!(reply, Reply::Ok(_))
    };
    assert!(run(Owner::Connection(1)));
    assert!(!run(Owner::Connection(2)));
}
