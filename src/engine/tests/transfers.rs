//! Copies between two sessions, in as many parts as their devices take.

use super::{Bench, EXEC, OUT, READY};

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
