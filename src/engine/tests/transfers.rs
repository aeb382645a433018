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
    let mut batch = parse(&format!("{EXEC}, Transfer(1, $b, 1, session=$a), {EXEC}"));
    let mut waits = 0;
    loop {
        match bench.engine.advance(&mut batch, bench.now) {
            Progress::Wait(wait) => {
                while !bench.engine.is_over(&wait, bench.now) {
                    let moved = (0..2).any(|device| bench.control.complete_next(device));
                    assert!(moved, "a device waits for what is not queued");
                }
                waits += 1;
            }
            Progress::Done(Reply::Ok(_)) => break,
            progress => panic!("{progress:?}"),
        }
    }
    assert!(waits > 2, "{waits}");
    bench.control.release();
    // After the kernel before it, and before the one behind it.
    assert_eq!(bench.ok("CopyOut(1, session=$b)"), [2, 3, 4, 5]);
    assert_eq!(bench.ok(OUT), [3, 4, 5, 6]);
}
