//! Copies between two sessions, in as many parts as their devices take.

use super::{Bench, EXEC, OUT, READY, parse};
use crate::engine::{Progress, Reply};

#[test]
fn transfer_in_parts_goes_on_as_there_is_room() {
    let mut bench = Bench::new();
    bench.control.keep_apart();
    bench.ok(&format!("{READY}, BufferAlloc(1, 4, $spec, session=$b)"));
    bench.control.hold();
    bench.control.limit_queue(1);
    let (_, waits) =
        bench.run_with_little_room(&format!("{EXEC}, Transfer(1, $b, 1, session=$a), {EXEC}"));
    assert!(waits > 2, "{waits}");
    bench.control.release();
    // After the kernel before it, and before the one behind it.
    assert_eq!(bench.ok("CopyOut(1, session=$b)"), [2, 3, 4, 5]);
    assert_eq!(bench.ok(OUT), [3, 4, 5, 6]);
}

#[test]
fn transfer_waits_for_room_at_a_source_that_somebody_else_fills_meanwhile() {
    let mut bench = Bench::new();
    bench.control.keep_apart();
    bench.ok(&format!("{READY}, BufferAlloc(1, 4, $spec, session=$b)"));
    bench.control.hold();
    bench.control.limit_queue(1);
    let mut batch = parse("Transfer(1, $b, 1, session=$a)");
    let Progress::Wait(_) = bench.engine.advance(&mut batch, bench.now) else {
        panic!("the destination has no room for more than its wait");
    };
    assert!(bench.control.complete_next(0) && bench.control.complete_next(1));
    // Another connection's.
    let mut other = parse(EXEC);
    let Progress::Done(Reply::Ok(_)) = bench.engine.advance(&mut other, bench.now) else {
        panic!("there is room for it");
    };
    let Progress::Wait(wait) = bench.engine.advance(&mut batch, bench.now) else {
        panic!("the source is full");
    };
    while bench.control.complete_next(1) {}
    assert!(!bench.engine.is_over(&wait, bench.now), "what it waits for is the source's");
    assert!(bench.control.complete_next(0) && bench.engine.is_over(&wait, bench.now));
    bench.control.release();
    while !matches!(bench.engine.advance(&mut batch, bench.now), Progress::Done(Reply::Ok(_))) {}
    assert_eq!(bench.ok("CopyOut(1, session=$b)"), [2, 3, 4, 5]);
}
