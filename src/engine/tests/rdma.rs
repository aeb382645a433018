//! Peers that connect by RDMA and ask where buffers are, on a fabric that reaches nothing.

use super::*;
use crate::config::RdmaConfig;
use crate::engine::{Errand, Source, Sourcing, Work, asking};
use crate::identity::Access;
use crate::rdma::{Address, NullFabric, QueuePairNumber, Target};

fn bench() -> (Bench, NullFabric) {
    let (mut bench, fabric) = (Bench::new(), NullFabric::default());
    bench.engine = bench.engine.with_fabric(Box::new(fabric.clone()));
    (bench, fabric)
}

fn connect(host: &str, queue_pair: u64) -> String {
    format!("IBConnect('{host}', b'0123456789abcdef', {queue_pair}, session=$a)")
}

fn iovas(buffers: &[u64]) -> String {
    let names: Vec<_> = buffers.iter().map(|buffer| format!("($a, {buffer})")).collect();
    format!("BufferIOVAS([{}], session=$a)", names.join(", "))
}

const BUFFER_AND_VIEW: &str =
    "BufferAlloc(1, 100, $spec, session=$a), BufferOffset(2, 30, 60, 1, session=$a)";

fn targets(bytes: &[u8]) -> Vec<Target> {
    let (each, rest) = bytes.as_chunks::<{ Target::BYTES }>();
    assert!(rest.is_empty());
    each.iter().map(|bytes| Target::from_bytes(bytes).unwrap()).collect()
}

#[test]
fn properties_have_the_address_where_there_is_rdma() {
    let (mut bench, _) = bench();
    let text = bench.ok("GetProperties(session=$a)");
    let text = String::from_utf8(text).unwrap();
    assert!(text.ends_with("ib_gid=b'nowhere in a net')"), "{text}");
    let without = Bench::new().ok("GetProperties(session=$a)");
    assert!(String::from_utf8(without).unwrap().ends_with("ib_gid=None)"));
}

#[test]
fn peer_gets_an_address_and_keeps_it_until_its_connection_ends() {
    let (mut bench, fabric) = bench();
    let answer = bench.ok(&connect("a:1", 5));
    let address = Address::from_bytes(answer.as_slice().try_into().unwrap()).unwrap();
    assert_eq!(address.gid, *b"nowhere in a net");
    bench.ok(&connect("b:1", 6));
    assert_eq!(fabric.accepted(), 2);
    let again = bench.ok(&connect("a:1", 7));
    assert_ne!(again, answer, "a peer that connects again gets a new queue pair");
    assert_eq!(fabric.accepted(), 2, "and loses the earlier one");
    bench.ok("SessionFree(session=$a)");
    assert_eq!(fabric.accepted(), 2, "others' sessions are reached through it too");
    bench.engine.release(Owner::Connection(1));
    assert_eq!(fabric.accepted(), 0);
}

#[test]
fn peer_of_a_session_of_another_shard_is_let_in_where_its_connection_is() {
    let directory = Arc::new(Directory::default());
    let mut there = Bench::with(Arc::clone(&directory), Home(1));
    there.ok("GetProperties(session=$a)");
    let (mut here, fabric) = (Bench::with(directory, Home(0)), NullFabric::default());
    here.engine = here.engine.with_fabric(Box::new(fabric.clone()));
    here.ok(&connect("a:1", 5));
    assert_eq!(fabric.accepted(), 1);
    there.ok("SessionFree(session=$a)");
    assert_eq!(fabric.accepted(), 1, "others' sessions are reached through it too");
    here.engine.release(Owner::Connection(1));
    assert_eq!(fabric.accepted(), 0);
}

#[test]
fn queue_pair_number_that_cannot_be_is_refused() {
    let (mut bench, fabric) = bench();
    let failure = bench.failure(&connect("a:1", 1 << 24));
    assert!(failure.contains("16777216 does not fit the 24 bits"), "{failure}");
    assert_eq!(fabric.accepted(), 0);
}

#[test]
fn peers_of_one_identity_are_bounded() {
    let (mut bench, fabric) = bench();
    let limit = EngineLimits::default().rdma_peers_per_identity_max;
    for peer in 0..limit {
        bench.ok(&connect(&format!("host{peer}"), 5));
    }
    let failure = bench.failure(&connect("one more", 5));
    assert!(failure.contains("too many connections by RDMA"), "{failure}");
    bench.ok(&connect("host0", 5));
    assert_eq!(fabric.accepted() as usize, limit);
}

#[test]
fn buffers_are_told_by_their_own_bytes_and_once() {
    let (mut bench, fabric) = bench();
    bench.ok(BUFFER_AND_VIEW);
    let first = bench.ok(&iovas(&[1, 2]));
    let told = targets(&first);
    assert_eq!(told.iter().map(|target| target.bytes).collect::<Vec<_>>(), [100, 30]);
    assert_ne!(told[0].key, told[1].key, "a view has a key of its own");
    assert_eq!(bench.ok(&iovas(&[1, 2])), first);
    assert_eq!(fabric.registered(), 2);
}

#[test]
fn keys_to_a_buffer_of_another_identity_are_not_given_out() {
    let (mut bench, fabric) = bench();
    bench.ok(BUFFER_AND_VIEW);
    let thief = Access::default().of_address([127, 0, 0, 1].into()).unwrap();
    // The key of a session names one of the thief's own.
    let beside_own = "BufferAlloc(1, 4, $spec, session=$b), BufferIOVAS([($a, 1)], session=$b)";
    let asked =
        [(iovas(&[1]), "unknown buffer 1"), (beside_own.to_owned(), "unknown session of device 0")];
    for (text, words) in asked {
        let mut batch = parse_for(&text, Owner::Connection(2)).of_identity(thief);
        let Progress::Done(Reply::Failed(failure)) = bench.engine.advance(&mut batch, bench.now)
        else {
            panic!("keys were given out");
        };
        assert!(failure.contains(words), "{failure}");
        bench.engine.release(Owner::Connection(2));
    }
    assert_eq!(fabric.registered(), 0);
    assert_eq!(targets(&bench.ok(&iovas(&[1]))).len(), 1);
}

#[test]
fn keys_end_with_their_buffer_and_with_the_session() {
    let (mut bench, fabric) = bench();
    let alloc = |number| format!("BufferAlloc({number}, 100, $spec, session=$a)");
    bench.ok(&alloc(1));
    bench.ok(&alloc(2));
    let first = bench.ok(&iovas(&[1, 2]));
    bench.ok("BufferFree(1, session=$a)");
    assert_eq!(fabric.registered(), 1);
    bench.ok(&alloc(1));
    assert_ne!(bench.ok(&iovas(&[1, 2])), first, "the number is used again, the key is not");
    bench.ok("SessionFree(session=$a)");
    assert_eq!(fabric.registered(), 0);
    assert_eq!(bench.budget.used(), 0);
}

#[test]
fn view_keeps_its_key_when_its_base_is_freed() {
    let (mut bench, fabric) = bench();
    bench.ok(BUFFER_AND_VIEW);
    let view = bench.ok(&iovas(&[2]));
    bench.ok("BufferFree(1, session=$a)");
    assert_eq!(bench.ok(&iovas(&[2])), view);
    assert_eq!(fabric.registered(), 1);
}

#[test]
fn unknown_buffer_and_memory_that_cannot_be_pinned_are_errors() {
    let (mut bench, fabric) = bench();
    bench.ok("BufferAlloc(1, 100, $spec, session=$a)");
    let failure = bench.failure(&iovas(&[1, 9]));
    assert!(failure.contains("unknown buffer 9"), "{failure}");
    fabric.refuse();
    bench.ok("BufferFree(1, session=$a), BufferAlloc(1, 100, $spec, session=$a)");
    let failure = bench.failure(&iovas(&[1]));
    assert!(failure.contains("100 bytes of memory could not be pinned"), "{failure}");
    assert_eq!(fabric.registered(), 0);
}

#[test]
fn registrations_are_begun_at_once_and_waited_for() {
    let (mut bench, fabric) = bench();
    bench.ok(BUFFER_AND_VIEW);
    fabric.hold();
    let mut batch = parse(&iovas(&[1, 2]));
    let Progress::Wait(wait) = bench.engine.advance(&mut batch, bench.now) else {
        panic!("there is nothing to say yet");
    };
    assert!(!bench.engine.is_over(&wait, bench.now));
    fabric.release();
    assert!(bench.engine.is_over(&wait, bench.now));
    let Progress::Done(Reply::Ok(output)) = bench.engine.advance(&mut batch, bench.now) else {
        panic!("both are registered");
    };
    assert_eq!(targets(output.as_bytes()).len(), 2);
    assert_eq!(fabric.registered(), 2);
}

#[test]
fn peer_that_is_looked_for_is_waited_for_and_goes_with_its_connection() {
    let (mut bench, fabric) = bench();
    bench.ok("BufferAlloc(1, 100, $spec, session=$a)");
    let earlier = bench.ok(&connect("a:1", 5));
    fabric.hold();
    let mut batch = parse(&connect("a:1", 6));
    let Progress::Wait(wait) = bench.engine.advance(&mut batch, bench.now) else {
        panic!("it is not there yet");
    };
    assert!(!bench.engine.is_over(&wait, bench.now));
    let mut abandoned = parse(&connect("b:1", 7));
    assert!(matches!(bench.engine.advance(&mut abandoned, bench.now), Progress::Wait(_)));
    fabric.release();
    assert!(bench.engine.is_over(&wait, bench.now));
    assert_eq!(fabric.accepted(), 3, "the earlier one is there until the other is");
    let Progress::Done(Reply::Ok(output)) = bench.engine.advance(&mut batch, bench.now) else {
        panic!("it has come");
    };
    assert_ne!(output.as_bytes(), earlier);
    assert_eq!(fabric.accepted(), 2);
    drop(wait);
    bench.engine.release(Owner::Connection(1));
    assert_eq!(fabric.accepted(), 0);
}

#[test]
fn driver_that_never_answers_is_given_up_with_the_peers_name() {
    let (mut bench, fabric) = bench();
    bench.ok("BufferAlloc(1, 100, $spec, session=$a)");
    fabric.hold();
    let texts = [connect("a:1", 6), iovas(&[1])];
    let mut batches = texts.each_ref().map(|text| parse(text));
    let waits = batches.each_mut().map(|batch| match bench.engine.advance(batch, bench.now) {
        Progress::Wait(wait) => wait,
        progress => panic!("there is nothing to say yet: {progress:?}"),
    });
    bench.now += RdmaConfig::PROMISE_TIME_MAX / 2;
    assert!(waits.iter().all(|wait| !bench.engine.is_over(wait, bench.now)));
    bench.now += RdmaConfig::PROMISE_TIME_MAX;
    assert!(waits.iter().all(|wait| bench.engine.is_over(wait, bench.now)));
    for (batch, name) in batches.iter_mut().zip(["peer a:1: ", "BufferIOVAS"]) {
        let Progress::Done(Reply::Failed(text)) = bench.engine.advance(batch, bench.now) else {
            panic!("it is late");
        };
        assert!(text.contains(name) && text.contains("nothing came of it within 60s"), "{text}");
    }
    drop(waits);
    fabric.release();
    assert_eq!(fabric.accepted(), 0, "a peer that was given up is not let in later");
    assert_eq!(targets(&bench.ok(&iovas(&[1]))).len(), 1, "memory that was pinned late is there");
}

#[test]
fn peer_that_cannot_be_reached_leaves_the_earlier_connection() {
    let (mut bench, fabric) = bench();
    bench.ok(&connect("a:1", 5));
    fabric.refuse();
    let failure = bench.failure(&connect("a:1", 6));
    assert!(failure.contains("this fabric was told to"), "{failure}");
    assert_eq!(fabric.accepted(), 1);
}

#[test]
fn buffer_that_is_freed_while_it_is_being_registered_leaves_nothing() {
    let (mut bench, fabric) = bench();
    bench.ok("BufferAlloc(1, 100, $spec, session=$a)");
    fabric.hold();
    let mut batch = parse(&iovas(&[1]));
    let Progress::Wait(wait) = bench.engine.advance(&mut batch, bench.now) else {
        panic!("there is nothing to say yet");
    };
    bench.ok("BufferFree(1, session=$a)");
    assert!(bench.engine.is_over(&wait, bench.now), "there is nothing to wait for any more");
    fabric.release();
    assert!(bench.engine.is_over(&wait, bench.now));
    let Progress::Done(Reply::Failed(text)) = bench.engine.advance(&mut batch, bench.now) else {
        panic!("there is no buffer");
    };
    assert!(text.contains("unknown buffer 1"), "{text}");
    drop(batch);
    assert_eq!(fabric.registered(), 0);
}

#[test]
fn copy_to_a_peer_is_registered_once_and_asks_for_its_place() {
    let (mut bench, fabric) = bench();
    bench.ok("BufferAlloc(1, 100, $spec, session=$a)");
    let copy = "Transfer(1, SessionKey(host='other', idx=2, nonce='m'), 7, session=$a)";
    let mut batch = parse(copy);
    let Progress::Peer(errand) = bench.engine.advance(&mut batch, bench.now) else {
        panic!("it is for another host");
    };
    let Work::Copies(mut parcels) = errand.work else { panic!("it is a copy") };
    for _ in 0..2 {
        let sourcing = bench.engine.source(&mut parcels[0], bench.now).unwrap();
        let Sourcing::Ready(source) = sourcing else { panic!("there is RDMA") };
        assert!(source.promise.local().is_some());
        assert_eq!(fabric.registered(), 1);
    }
    let other = "SessionKey(host='other', idx=2, nonce='m')";
    let places = format!("BufferIOVAS(session={other}, buffer_nums=[({other}, 7)])");
    assert_eq!(asking::places(&parcels), places);
    assert_eq!(asking::properties(&parcels[0]), format!("GetProperties(session={other})"));
    let queue_pair = QueuePairNumber::new(9).unwrap();
    let address = Address { gid: *b"0123456789abcdef", queue_pair };
    assert_eq!(
        asking::connect(&parcels[0], "h#0.0", address),
        format!("IBConnect(session={other}, host='h#0.0', gid=b'0123456789abcdef', qp_num=9)")
    );
    let sourcing = Bench::new().engine.source(&mut parcels[0], bench.now).unwrap();
    assert!(matches!(sourcing, Sourcing::Never), "there is no RDMA");
}

/// A copy of one buffer of `$a` onto another.
const OWN_COPY: &str = "Transfer(1, $a, 2, session=$a)";
const TWO_BUFFERS: &str =
    "BufferAlloc(1, 100, $spec, session=$a), BufferAlloc(2, 100, $spec, session=$a)";

#[test]
fn memory_is_registered_for_peers_once_work_queued_before_is_done() {
    let (mut bench, fabric) = bench();
    bench.ok(TWO_BUFFERS);
    bench.control.hold();
    bench.ok(OWN_COPY);
    let mut batch = parse(&iovas(&[1, 2]));
    let Progress::Wait(wait) = bench.engine.advance(&mut batch, bench.now) else {
        panic!("work is queued");
    };
    // What is queued later does not count.
    bench.ok(OWN_COPY);
    assert!(!bench.engine.is_over(&wait, bench.now));
    assert_eq!(fabric.registered(), 0);
    assert!(bench.control.complete_next(0));
    assert!(bench.engine.is_over(&wait, bench.now));
    let Progress::Done(Reply::Ok(output)) = bench.engine.advance(&mut batch, bench.now) else {
        panic!("both are registered");
    };
    assert_eq!((targets(output.as_bytes()).len(), fabric.registered()), (2, 2));
}

fn parcels_of(bench: &mut Bench, text: &str) -> Vec<crate::engine::Parcel> {
    let mut batch = parse(text);
    match bench.engine.advance(&mut batch, bench.now) {
        Progress::Peer(Errand { work: Work::Copies(parcels), .. }) => parcels,
        progress => panic!("it is a copy for another host: {progress:?}"),
    }
}

#[test]
fn source_is_registered_as_the_copy_found_it_whatever_has_its_number_now() {
    let (mut bench, fabric) = bench();
    bench.ok(TWO_BUFFERS);
    let copy = "Transfer(1, SessionKey(host='other', idx=2, nonce='m'), 7, session=$a)";
    bench.control.hold();
    bench.ok(OWN_COPY);
    let mut parcels = parcels_of(&mut bench, copy);
    let sourcing = bench.engine.source(&mut parcels[0], bench.now).unwrap();
    let Sourcing::Later(wait) = sourcing else { panic!("work is queued") };
    assert_eq!(fabric.registered(), 0);
    bench.ok("BufferFree(1, session=$a), BufferAlloc(1, 50, $spec, session=$a)");
    assert!(bench.control.complete_next(0));
    assert!(bench.engine.is_over(&wait, bench.now));
    let named = targets(&bench.ok(&iovas(&[1])));
    let sourcing = bench.engine.source(&mut parcels[0], bench.now).unwrap();
    let Sourcing::Ready(Source { promise, .. }) = sourcing else { panic!("it is past its work") };
    let target = promise.target().expect("this fabric does it at once").unwrap();
    assert_eq!((target.bytes, named[0].bytes), (100, 50));
    drop((promise, parcels));
    assert_eq!(fabric.registered(), 1, "what has no number goes with the copy");
}
