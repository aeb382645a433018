//! The engine on null devices: what commands mean, what failures leave behind.

mod adoption;
mod graphs;
mod landings;
mod peers;
mod quotas;
mod rdma;
mod transfers;

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Batch, Blob, Blobs, Directory, Engine, Home, Output, Owner, Progress, Reply, WaitFor};
use crate::blob::Digest;
use crate::config::{EngineLimits, WireLimits};
use crate::device::DeviceError;
use crate::device::null::{NullControl, NullPlatform};
use crate::device::shared::Budget;

const ADD1: Digest = Digest([1; 32]);
const FAIL: Digest = Digest([2; 32]);
const DATA: Digest = Digest([3; 32]);

/// An engine with the clock of a test.
struct Bench {
    engine: Engine,
    control: NullControl,
    budget: Arc<Budget>,
    now: Instant,
}

impl Bench {
    fn new() -> Bench {
        Bench::with(Arc::new(Directory::default()), Home(0))
    }

    fn with(directory: Arc<Directory>, home: Home) -> Bench {
        let budget = Arc::new(Budget::new(1 << 20));
        let platform = NullPlatform::new(4, Arc::clone(&budget));
        let control = platform.control();
        let engine = Engine::new(Box::new(platform), EngineLimits::default(), directory, home);
        Bench { engine, control, budget, now: Instant::now() }
    }

    /// Runs a batch on two devices that are held and do one thing at a time, whenever it waits.
    /// What it answers, and how often it has waited.
    fn run_with_little_room(&mut self, text: &str) -> (Output, usize) {
        let (mut batch, mut waits) = (parse(text), 0);
        loop {
            match self.engine.advance(&mut batch, self.now) {
                Progress::Wait(wait) => {
                    while !self.engine.is_over(&wait, self.now) {
                        let moved = (0..2).any(|device| self.control.complete_next(device));
                        assert!(moved, "a device waits for what is not queued");
                    }
                    waits += 1;
                }
                Progress::Done(Reply::Ok(output)) => return (output, waits),
                progress => panic!("{progress:?}"),
            }
        }
    }

    /// Runs a batch that has to finish without the test's help.
    fn reply(&mut self, text: &str) -> Reply {
        let mut batch = parse(text);
        loop {
            match self.engine.advance(&mut batch, self.now) {
                Progress::Done(reply) => return reply,
                Progress::Pause => {}
                Progress::Wait(wait) => {
                    assert!(self.engine.is_over(&wait, self.now), "waits for ever: {wait:?}");
                }
                Progress::Forward(home) => panic!("belongs to {home:?}"),
                Progress::Join | Progress::Peer(_) => panic!("needs another server"),
            }
        }
    }

    fn ok(&mut self, text: &str) -> Vec<u8> {
        match self.reply(text) {
            Reply::Ok(output) => self.collect(output),
            Reply::Failed(text) => panic!("{text}"),
        }
    }

    /// All bytes of an output, whose pieces have to come without the test's help.
    fn collect(&mut self, output: Output) -> Vec<u8> {
        let mut output = output;
        let mut bytes = output.as_bytes().to_vec();
        while let Some(rest) = output.take_rest() {
            let reading = self.engine.read_on(rest).unwrap();
            assert!(self.engine.is_over(&reading.wait(), self.now), "waits for ever");
            output = self.engine.finish_reading(reading).unwrap();
            bytes.extend_from_slice(output.as_bytes());
        }
        bytes
    }

    fn failure(&mut self, text: &str) -> String {
        match self.reply(text) {
            Reply::Ok(output) => panic!("worked, with {output:?}"),
            Reply::Failed(text) => text,
        }
    }

    /// Checks that a batch fails with these words.
    fn fails_with(&mut self, text: &str, expected: &str) {
        let failure = self.failure(text);
        assert!(failure.contains(expected), "{failure}");
    }
}

/// A batch of commands in shorthand: `a`, `b`, `c` are sessions of devices 0, 1, 2.
fn parse(text: &str) -> Batch<'static> {
    parse_for(text, Owner::Connection(1))
}

fn parse_for(text: &str, owner: Owner) -> Batch<'static> {
    let mut text = format!("[{text}]");
    for (name, digest) in [("$add1", ADD1), ("$fail", FAIL), ("$data", DATA)] {
        text = text.replace(name, &format!("'{digest}'"));
    }
    for (index, name) in ["$a", "$b", "$c"].into_iter().enumerate() {
        let key = format!("SessionKey(host='h', idx={index}, nonce='n')");
        text = text.replace(name, &key);
    }
    text = text.replace("$spec", "BufferSpec()");
    let mut blobs = Blobs::default();
    blobs.insert(ADD1, Blob::Private(Rc::from(&b"add1"[..])));
    blobs.insert(FAIL, Blob::Private(Rc::from(&b"fail"[..])));
    blobs.insert(DATA, Blob::Private(Rc::from(&[1, 2, 3, 4][..])));
    let text = Box::leak(text.into_boxed_str());
    Batch::parse(text.as_bytes(), blobs, owner, &WireLimits::default()).unwrap()
}

/// Buffer 1 of `a` with the bytes 1, 2, 3, 4, and the program `p`.
const READY: &str = "BufferAlloc(1, 4, $spec, session=$a), CopyIn(1, $data, session=$a), \
                     ProgramAlloc('p', $add1, session=$a)";
const EXEC: &str = "ProgramExec('p', $add1, (1,), (), None, None, False, session=$a)";
const OUT: &str = "CopyOut(1, session=$a)";

#[test]
fn kernel_between_copies_changes_memory() {
    let mut bench = Bench::new();
    assert_eq!(bench.ok(&format!("{READY}, {EXEC}, {OUT}")), [2, 3, 4, 5]);
}

#[test]
fn output_that_is_overwritten_later_in_its_batch_is_what_it_was() {
    let mut bench = Bench::new();
    assert_eq!(
        bench.ok(&format!("{READY}, {OUT}, {EXEC}, BufferFree(1, session=$a)")),
        [1, 2, 3, 4]
    );
}

#[test]
fn last_output_of_a_batch_is_the_reply() {
    let mut bench = Bench::new();
    let wait = EXEC.replace("False", "True");
    let text = bench.ok(&format!("{READY}, {OUT}, {wait}"));
    assert!(String::from_utf8(text).unwrap().parse::<f64>().is_ok());
    assert_eq!(bench.ok(&format!("{wait}, {OUT}")), [3, 4, 5, 6]);
}

#[test]
fn view_outside_of_its_base_is_refused() {
    let mut bench = Bench::new();
    bench.ok(READY);
    for (size, offset) in [(1, 4), (5, 0), (4, 1), (u64::MAX, 1), (1, u64::MAX), (2, u64::MAX)] {
        bench.fails_with(
            &format!("BufferOffset(2, {size}, {offset}, 1, session=$a)"),
            "lie outside of buffer 1, which has 4",
        );
    }
    bench.ok("BufferOffset(3, 3, 1, 1, session=$a), BufferOffset(4, 2, 1, 3, session=$a)");
    bench.fails_with("BufferOffset(5, 3, 1, 3, session=$a)", "lie outside of buffer 3");
    assert_eq!(bench.ok("CopyOut(4, session=$a)"), [3, 4]);
}

#[test]
fn memory_of_a_base_lives_while_a_view_does() {
    let mut bench = Bench::new();
    bench.ok(READY);
    bench.ok("BufferOffset(2, 2, 2, 1, session=$a), BufferFree(1, session=$a)");
    assert_eq!(bench.ok("CopyOut(2, session=$a)"), [3, 4]);
    assert!(bench.budget.used() > 0);
    bench.ok("BufferFree(2, session=$a), SessionFree(session=$a)");
    assert_eq!(bench.budget.used(), 0);
}

#[test]
fn bad_allocations_are_refused_and_leave_nothing() {
    let mut bench = Bench::new();
    bench.fails_with("BufferAlloc(1, 0, $spec, session=$a)", "at least one byte");
    bench.fails_with("BufferAlloc(1, 9223372036854775808, $spec, session=$a)", "out of memory");
    bench.fails_with("BufferAlloc(1, 4, BufferSpec(external_ptr=4096), session=$a)", "is refused");
    bench.fails_with("BufferAlloc(1, 4, BufferSpec(external_ptr=0), session=$a)", "is refused");
    let image = "BufferAlloc(1, 64, BufferSpec(image=dtypes.imagef((1, 4, 4))), session=$a)";
    bench.fails_with(image, "image buffers are not supported by NULL devices");
    bench.ok(READY);
    bench.fails_with("BufferAlloc(1, 4, $spec, session=$a)", "buffer 1 is already allocated");
    bench.fails_with("BufferOffset(1, 1, 0, 1, session=$a)", "buffer 1 is already allocated");
    assert_eq!(bench.ok(OUT), [1, 2, 3, 4]);
}

#[test]
fn unknown_names_are_refused_with_the_name() {
    let mut bench = Bench::new();
    bench.fails_with("BufferFree(7, session=$a)", "unknown buffer 7");
    bench.fails_with("CopyOut(7, session=$a)", "unknown buffer 7");
    bench.fails_with("GraphFree(3, session=$a)", "unknown graph 3");
    bench.fails_with("GraphExec(3, (), {}, False, session=$a)", "unknown graph 3");
    bench.fails_with("ProgramFree('p', $add1, session=$a)", "unknown program (p, 0101");
    bench.fails_with(EXEC, "unknown program (p, 0101");
    bench.fails_with(
        "GetProperties(session=SessionKey(host='h', idx=4, nonce='n'))",
        "device index 4 is out of range: this server has 4 NULL devices, 0 to 3",
    );
    bench.fails_with("Transfer(1, $b, 1, session=$a)", "unknown session of device 1");
}

#[test]
fn double_free_is_refused() {
    let mut bench = Bench::new();
    bench.ok(READY);
    bench.ok("BufferFree(1, session=$a)");
    bench.fails_with("BufferFree(1, session=$a)", "unknown buffer 1");
}

#[test]
fn failure_in_a_batch_names_command_and_count_and_lets_the_rest_run() {
    let mut bench = Bench::new();
    let failure = bench.failure(&format!(
        "{READY}, BufferFree(9, session=$a), {EXEC}, BufferFree(8, session=$a), \
         CopyOut(7, session=$a)"
    ));
    assert_eq!(
        failure,
        "RemoteException(exc=RuntimeError('command 3 (BufferFree): unknown buffer 9: it was never \
         allocated, or it was freed (and 2 later commands failed)'), trace='')"
    );
    assert_eq!(bench.ok(OUT), [2, 3, 4, 5]);
}

#[test]
fn names_that_were_not_made_give_the_first_cause_until_freed() {
    let mut bench = Bench::new();
    let first = bench.failure(
        "BufferAlloc(1, 1099511627776, $spec, session=$a), BufferOffset(2, 1, 0, 1, session=$a), \
         ProgramAlloc('bad', $fail, session=$a)",
    );
    assert!(first.contains("command 0 (BufferAlloc): out of memory"), "{first}");
    bench.fails_with("CopyOut(2, session=$a)", "the buffer was not made: out of memory");
    bench.fails_with(
        "ProgramExec('bad', $fail, (), (), None, None, False, session=$a)",
        "the program was not made: cannot load program",
    );
    bench.ok("BufferFree(2, session=$a), BufferFree(1, session=$a)");
    bench.ok("ProgramFree('bad', $fail, session=$a)");
    bench.fails_with("CopyOut(2, session=$a)", "unknown buffer 2");
}

#[test]
fn blob_must_be_there_and_have_the_buffers_length() {
    let mut bench = Bench::new();
    bench.ok("BufferAlloc(1, 5, $spec, session=$a)");
    bench.fails_with("CopyIn(1, $data, session=$a)", "the blob has 4 bytes, buffer 1 has 5");
    let nowhere = format!("'{}'", Digest([9; 32]));
    bench.fails_with(&format!("CopyIn(1, {nowhere}, session=$a)"), "no blob 0909");
    bench.fails_with(&format!("ProgramAlloc('p', {nowhere}, session=$a)"), "no blob 0909");
}

#[test]
fn program_allocated_twice_lives_until_freed_twice() {
    let mut bench = Bench::new();
    bench.ok(&format!("{READY}, ProgramAlloc('p', $add1, session=$a)"));
    bench.ok("ProgramFree('p', $add1, session=$a)");
    assert_eq!(bench.ok(&format!("{EXEC}, {OUT}")), [2, 3, 4, 5]);
    bench.ok("ProgramFree('p', $add1, session=$a)");
    bench.fails_with(EXEC, "unknown program");
}

#[test]
fn program_allocated_by_two_connections_at_once_lives_until_freed_twice() {
    let mut bench = Bench::new();
    bench.ok("BufferAlloc(1, 4, $spec, session=$a), CopyIn(1, $data, session=$a)");
    bench.control.hold();
    let text = "ProgramAlloc('p', $add1, session=$a)";
    let mut batches = [1, 2].map(|owner| parse_for(text, Owner::Connection(owner)));
    // Both are past their compilations.
    for batch in &mut batches {
        let now = bench.now;
        assert!(matches!(bench.engine.advance(batch, now), Progress::Wait(_)));
        assert!(matches!(bench.engine.advance(batch, now), Progress::Wait(_)));
    }
    bench.control.release();
    bench.engine.tick(bench.now);
    for batch in &mut batches {
        let progress = bench.engine.advance(batch, bench.now);
        assert!(matches!(progress, Progress::Done(Reply::Ok(_))), "{progress:?}");
    }
    bench.ok("ProgramFree('p', $add1, session=$a)");
    assert_eq!(bench.ok(&format!("{EXEC}, {OUT}")), [2, 3, 4, 5]);
}

#[test]
fn launch_with_bad_numbers_is_refused() {
    let mut bench = Bench::new();
    bench.ok(READY);
    let exec = |values: &str, size: &str| {
        format!("ProgramExec('p', $add1, (1,), {values}, {size}, {size}, False, session=$a)")
    };
    bench.fails_with(&exec("(2147483648,)", "None"), "does not fit the 32-bit integer");
    for size in ["(0, 1, 1)", "(1, -1, 1)", "(1, 1, 4294967296)"] {
        bench.fails_with(&exec("()", size), "is not a launch size");
    }
    bench.ok(&exec("(-2147483648, 2147483647)", "(1, 2147483647, 1)"));
}

#[test]
fn transfer_follows_the_sources_work_and_holds_it_back() {
    let mut bench = Bench::new();
    bench.ok(&format!("{READY}, BufferAlloc(1, 4, $spec, session=$b)"));
    bench.control.hold();
    let exec = EXEC;
    let mut batch = parse(&format!("{exec}, Transfer(1, $b, 1, session=$a), {exec}"));
    assert!(matches!(bench.engine.advance(&mut batch, bench.now), Progress::Done(Reply::Ok(_))));
    // The destination's queue has nothing that may run before the source's kernel.
    assert!(!bench.control.complete_next(1));
    bench.control.release();
    assert_eq!(bench.ok("CopyOut(1, session=$b)"), [2, 3, 4, 5]);
    assert_eq!(bench.ok(OUT), [3, 4, 5, 6]);
}

/// A batch that has to wait for a device.
fn waits(bench: &mut Bench, batch: &mut Batch<'static>) -> WaitFor {
    match bench.engine.advance(batch, bench.now) {
        Progress::Wait(wait @ WaitFor::Device { .. }) => wait,
        other => panic!("does not wait: {other:?}"),
    }
}

#[test]
fn session_that_is_freed_ends_when_what_others_wait_for_is_done() {
    let mut bench = Bench::new();
    bench.ok(&format!("{READY}, BufferAlloc(1, 4, $spec, session=$b)"));
    bench.control.hold();
    let transfer = "Transfer(1, $b, 1, session=$a)";
    let mut batch = parse(&format!("{EXEC}, {transfer}, {EXEC}, SessionFree(session=$a)"));
    let wait = waits(&mut bench, &mut batch);
    while !bench.engine.is_over(&wait, bench.now) {
        assert!(bench.control.complete_next(0) | bench.control.complete_next(1));
    }
    assert!(matches!(bench.engine.advance(&mut batch, bench.now), Progress::Done(Reply::Ok(_))));
    assert_eq!(bench.engine.session_count(), 1);
    bench.control.release();
    assert_eq!(bench.ok("CopyOut(1, session=$b)"), [2, 3, 4, 5]);
}

#[test]
fn session_that_nobody_waits_for_ends_at_once() {
    let mut bench = Bench::new();
    bench.ok(&format!("{READY}, BufferAlloc(1, 4, $spec, session=$b)"));
    bench.ok("Transfer(1, $b, 1, session=$a)");
    bench.control.hold();
    bench.ok(&format!("{EXEC}, SessionFree(session=$a)"));
    assert_eq!(bench.engine.session_count(), 1);
}

#[test]
fn client_that_dies_does_not_wait_for_the_end_of_its_sessions() {
    let mut bench = Bench::new();
    bench.ok(&format!("{READY}, BufferAlloc(1, 4, $spec, session=$b)"));
    bench.control.hold();
    let free = "SessionFree(session=$a)";
    let mut batch = parse(&format!("{EXEC}, Transfer(1, $b, 1, session=$a), {free}"));
    let wait = waits(&mut bench, &mut batch);
    drop(batch);
    bench.engine.release(Owner::Connection(1));
    assert!(bench.engine.is_over(&wait, bench.now));
    assert_eq!((bench.engine.session_count(), bench.budget.used()), (0, 0));
}

#[test]
fn session_whose_device_is_lost_is_freed_at_once() {
    let mut bench = Bench::new();
    bench.ok(&format!("{READY}, BufferAlloc(1, 4, $spec, session=$b)"));
    bench.control.hold();
    let free = "SessionFree(session=$a)";
    let mut batch = parse(&format!("{EXEC}, Transfer(1, $b, 1, session=$a), {free}"));
    let wait = waits(&mut bench, &mut batch);
    bench.control.lose(0, DeviceError::Fault { what: "it was the test".to_owned() });
    assert!(bench.engine.is_over(&wait, bench.now));
    assert!(matches!(bench.engine.advance(&mut batch, bench.now), Progress::Done(Reply::Ok(_))));
    assert_eq!(bench.engine.session_count(), 1);
}

#[test]
fn transfer_within_a_buffer_moves_as_if_through_another() {
    let mut bench = Bench::new();
    bench.ok(&format!(
        "{READY}, BufferOffset(2, 3, 0, 1, session=$a), BufferOffset(3, 3, 1, 1, session=$a)"
    ));
    bench.ok("Transfer(2, $a, 3, session=$a), Transfer(1, $a, 1, session=$a)");
    assert_eq!(bench.ok(OUT), [1, 1, 2, 3]);
}

#[test]
fn memory_that_the_server_does_not_see_is_read_in_pieces() {
    let mut bench = Bench::new();
    bench.control.hide_memory(3);
    bench.ok(&format!("{READY}, BufferOffset(2, 3, 1, 1, session=$a)"));
    assert_eq!(bench.ok(OUT), [1, 2, 3, 4]);
    assert_eq!(bench.ok("CopyOut(2, session=$a)"), [2, 3, 4]);
    // What later commands of the batch do is not seen, although the pieces are read after them.
    assert_eq!(bench.ok(&format!("{OUT}, {EXEC}")), [1, 2, 3, 4]);
    assert_eq!(bench.ok(OUT), [2, 3, 4, 5]);
}

#[test]
fn reading_on_after_the_device_was_lost_is_an_error() {
    let mut bench = Bench::new();
    bench.control.hide_memory(3);
    bench.ok(READY);
    let Reply::Ok(mut output) = bench.reply(OUT) else { panic!("failed") };
    assert_eq!((output.as_bytes(), output.bytes()), (&[1, 2, 3][..], 4));
    bench.control.hold();
    let reading = bench.engine.read_on(output.take_rest().unwrap()).unwrap();
    assert!(!bench.engine.is_over(&reading.wait(), bench.now));
    bench.control.lose(0, DeviceError::Lost { why: "unplugged".to_owned() });
    assert!(bench.engine.is_over(&reading.wait(), bench.now));
    let cause = bench.engine.finish_reading(reading).unwrap_err();
    assert!(cause.to_string().contains("unplugged"), "{cause}");
}

#[test]
fn transfer_of_unequal_buffers_is_refused() {
    let mut bench = Bench::new();
    bench.ok(&format!("{READY}, BufferAlloc(1, 5, $spec, session=$b)"));
    bench.fails_with(
        "Transfer(1, $b, 1, session=$a)",
        "source buffer 1 has 4 bytes, destination buffer 1 has 5",
    );
}

#[test]
fn event_of_another_session_comes_after_its_work() {
    let mut bench = Bench::new();
    bench.ok(&format!("{READY}, BufferAlloc(1, 4, $spec, session=$b)"));
    bench.control.hold();
    let mut batch = parse(&format!(
        "{EXEC}, Event($b, 5, session=$a), Wait(5, session=$b), CopyIn(1, $data, session=$b)"
    ));
    assert!(matches!(bench.engine.advance(&mut batch, bench.now), Progress::Done(Reply::Ok(_))));
    assert!(!bench.control.complete_next(1), "the wait comes first");
    bench.control.release();
    assert_eq!(bench.ok("CopyOut(1, session=$b)"), [1, 2, 3, 4]);
}

#[test]
fn wait_for_an_event_that_a_lost_session_should_set_says_why_at_once() {
    for waits_first in [false, true] {
        let mut bench = Bench::new();
        bench.ok(&format!("{READY}, BufferAlloc(1, 4, $spec, session=$b)"));
        bench.control.lose(0, DeviceError::Fault { what: "it was the test".to_owned() });
        bench.engine.tick(bench.now);
        let (event, wait) = ("Event($b, 5, session=$a)", "Wait(5, session=$b)");
        if waits_first {
            let mut batch = parse(wait);
            let progress = bench.engine.advance(&mut batch, bench.now);
            let Progress::Wait(over) = progress else { panic!("does not wait") };
            bench.fails_with(event, "it was the test");
            assert!(bench.engine.is_over(&over, bench.now));
            let Progress::Done(Reply::Failed(text)) = bench.engine.advance(&mut batch, bench.now)
            else {
                panic!("does not fail");
            };
            assert!(text.contains("the event was not made: kernel fault: it was the test"));
        } else {
            bench.fails_with(&format!("{event}, {wait}"), "(and 1 later command failed)");
        }
        // It has been heard of, and the number is free.
        bench.ok("Event($b, 5, session=$b), Wait(5, session=$b)");
    }
}

#[test]
fn wait_for_an_event_that_nobody_sets_ends_with_an_error() {
    let mut bench = Bench::new();
    let mut batch = parse("Wait(5, session=$a)");
    let Progress::Wait(wait) = bench.engine.advance(&mut batch, bench.now) else {
        panic!("did not wait");
    };
    assert!(matches!(wait, WaitFor::Event { .. }));
    assert!(!bench.engine.is_over(&wait, bench.now));
    bench.now += EngineLimits::default().wait_time_max + Duration::from_secs(1);
    assert!(bench.engine.is_over(&wait, bench.now));
    let Progress::Done(Reply::Failed(text)) = bench.engine.advance(&mut batch, bench.now) else {
        panic!("did not fail");
    };
    assert!(text.contains("nobody set event 5 within 290s"), "{text}");
}

#[test]
fn work_that_is_done_is_not_waited_for() {
    let mut bench = Bench::new();
    bench.ok(READY);
    let mut batch = parse(&[OUT; 3].join(", "));
    assert!(matches!(bench.engine.advance(&mut batch, bench.now), Progress::Done(Reply::Ok(_))));
    // A batch may not hold the core in this way for as long as it likes.
    let waits = vec![EXEC.replace("False", "True"); 1000].join(", ");
    let mut batch = parse(&waits);
    assert!(matches!(bench.engine.advance(&mut batch, bench.now), Progress::Wait(_)));
}

#[test]
fn memory_of_a_batch_is_used_by_the_next_and_ends_with_its_sessions() {
    let mut bench = Bench::new();
    let limits = WireLimits::default();
    let key = "SessionKey(host='h', idx=0, nonce='n')";
    // The session ends in the middle of a batch that names it before and after.
    let text = format!(
        "[BufferAlloc(session={key}, buffer_num=1, size=4, options=BufferSpec()), \
         SessionFree(session={key}), CopyOut(session={key}, buffer_num=1)]"
    );
    for _ in 0..3 {
        let (blobs, owner) = (Blobs::default(), Owner::Connection(1));
        let mut batch = bench.engine.parse(text.as_bytes(), blobs, owner, &limits).unwrap();
        let Progress::Done(Reply::Failed(failure)) = bench.engine.advance(&mut batch, bench.now)
        else {
            panic!("the buffer ended with its session");
        };
        assert!(failure.contains("command 2 (CopyOut): unknown buffer 1"), "{failure}");
        bench.ok("SessionFree(session=$a)");
    }
}

#[test]
fn event_is_a_flag_that_may_be_set_before_or_after_the_wait() {
    let mut bench = Bench::new();
    bench.ok("Event($a, 1, session=$a), Event($a, 1, session=$a), Wait(1, session=$a)");
    let mut waits = parse("Wait(1, session=$a)");
    let Progress::Wait(wait) = bench.engine.advance(&mut waits, bench.now) else {
        panic!("a flag is no count");
    };
    let events_set = bench.engine.events_set();
    bench.ok("Event($a, 1, session=$a)");
    assert!(bench.engine.events_set() > events_set);
    assert!(bench.engine.is_over(&wait, bench.now));
    assert!(matches!(bench.engine.advance(&mut waits, bench.now), Progress::Done(Reply::Ok(_))));
}

/// Kernels on `a`, with an input, a copy to `b` and back, and a kernel after that.
const GRAPH: &str = "GraphAlloc(1, (\
    GraphComputeItem($a, 'p', $add1, (1,), (), {}, (), (0,), None, None), \
    Transfer(1, $b, 1, session=$a), \
    GraphComputeItem($a, 'p', $add1, (1,), (), {}, (), (0,), None, None), \
    Transfer(1, $a, 2, session=$b)), (($a, 1),), {}, session=$a)";
const RUN: &str = "GraphExec(1, (($a, 1),), {}, False, session=$a)";

fn with_graph() -> Bench {
    let mut bench = Bench::new();
    bench.ok(&format!(
        "{READY}, BufferAlloc(2, 4, $spec, session=$a), BufferAlloc(1, 4, $spec, session=$b), \
         ProgramAlloc('p', $add1, session=$b)"
    ));
    bench.ok(GRAPH);
    bench
}

#[test]
fn graph_over_two_devices_runs_in_the_recorded_order() {
    let mut bench = with_graph();
    assert_eq!(bench.ok(OUT), [1, 2, 3, 4], "recording runs nothing");
    bench.ok(RUN);
    assert_eq!(bench.ok(OUT), [3, 4, 5, 6]);
    assert_eq!(bench.ok("CopyOut(1, session=$b)"), [2, 3, 4, 5]);
    assert_eq!(bench.ok("CopyOut(2, session=$a)"), [2, 3, 4, 5]);
    let text = bench.ok(&RUN.replace("False", "True"));
    assert!(String::from_utf8(text).unwrap().parse::<f64>().is_ok());
}

#[test]
fn graph_copy_between_devices_waits_for_the_sources_steps() {
    let mut bench = with_graph();
    bench.control.hold();
    let mut batch = parse(RUN);
    assert!(matches!(bench.engine.advance(&mut batch, bench.now), Progress::Done(Reply::Ok(_))));
    assert!(!bench.control.complete_next(1), "the source's kernel comes first");
    bench.control.release();
    assert_eq!(bench.ok("CopyOut(1, session=$b)"), [2, 3, 4, 5]);
}

#[test]
fn graph_runs_after_its_buffers_and_programs_are_freed() {
    let mut bench = with_graph();
    bench.ok("BufferFree(2, session=$a), BufferFree(1, session=$b), ProgramFree('p', $add1, \
         session=$a)");
    bench.ok(RUN);
    assert_eq!(bench.ok(OUT), [3, 4, 5, 6]);
    bench.ok("GraphFree(1, session=$a)");
    bench.fails_with(RUN, "unknown graph 1");
}

#[test]
fn graph_input_is_replaced_by_position() {
    let mut bench = with_graph();
    bench.ok("BufferAlloc(3, 4, $spec, session=$a), BufferAlloc(4, 3, $spec, session=$a)");
    bench.ok(&RUN.replace("$a, 1", "$a, 3"));
    assert_eq!(bench.ok("CopyOut(3, session=$a)"), [2, 2, 2, 2]);
    assert_eq!(bench.ok(OUT), [1, 2, 3, 4]);
    bench.fails_with(
        &RUN.replace("$a, 1", "$a, 4"),
        "graph input 0 has 3 bytes, but the graph copies 4",
    );
    bench.fails_with("GraphExec(1, (), {}, False, session=$a)", "recorded with 1 inputs, but 0");
    // A kernel's input may have another size; only a copy has a length of its own.
    bench.ok(
        "GraphAlloc(2, (GraphComputeItem($a, 'p', $add1, (1,), (), {}, (), (0,), None, None),), \
         (($a, 1),), {}, session=$a), CopyIn(3, $data, session=$a)",
    );
    bench.ok("GraphExec(2, (($a, 4),), {}, False, session=$a)");
    assert_eq!(bench.ok("CopyOut(4, session=$a)"), [1, 1, 1]);
    bench.ok("GraphExec(1, (($a, 1), ($a, 4)), {}, False, session=$a)");
}

#[test]
fn graph_variables_are_bound_by_name_and_fixed_ones_win() {
    let mut bench = Bench::new();
    bench.ok(READY);
    let i = "UOp(Ops.DEFINE_VAR, dtypes.int, arg=('i', 1, 10), src=())";
    let graph = |fixed: &str, size: &str| {
        format!(
            "GraphAlloc(1, (GraphComputeItem($a, 'p', $add1, (1,), ({i},), {fixed}, (), (0,), \
             ({size}, 1, 1), None),), (), {{}}, session=$a)"
        )
    };
    let run = |values: &str| format!("GraphExec(1, (), {values}, False, session=$a)");
    bench.ok(&graph("{}", i));
    bench.fails_with(&run("{}"), "no value");
    bench.ok(&run(&format!("{{{i}: 3}}")));
    bench.ok(&run("{'i': 3, 'unknown': 4}"));
    bench.fails_with(&run("{'i': 0}"), "is not a launch size");
    bench.ok("GraphFree(1, session=$a)");
    bench.ok(&graph(&format!("{{{i}: 2}}"), i));
    bench.ok(&run("{'i': 0}"));
}

#[test]
fn lost_device_costs_its_session_only_and_says_why() {
    let mut bench = Bench::new();
    bench.ok(&format!("{READY}, BufferAlloc(1, 4, $spec, session=$b)"));
    bench.control.lose(0, DeviceError::Fault { what: "it was the test".to_owned() });
    bench.engine.tick(bench.now);
    bench.fails_with(OUT, "it was the test");
    bench.fails_with("BufferAlloc(5, 4, $spec, session=$a)", "it was the test");
    bench.ok("CopyIn(1, $data, session=$b)");
    bench.ok("BufferFree(1, session=$a), ProgramFree('p', $add1, session=$a)");
    bench.ok("SessionFree(session=$a)");
    assert_eq!(bench.ok(&format!("{READY}, {OUT}")), [1, 2, 3, 4]);
}

#[test]
fn sessions_end_with_the_connection_that_opened_them() {
    let mut bench = Bench::new();
    bench.ok(&format!("{READY}, BufferAlloc(1, 4, $spec, session=$b)"));
    assert_eq!(bench.engine.session_count(), 2);
    bench.engine.release(Owner::Connection(2));
    assert_eq!(bench.engine.session_count(), 2);
    bench.engine.release(Owner::Connection(1));
    assert_eq!(bench.engine.session_count(), 0);
    assert_eq!(bench.budget.used(), 0);
}

#[test]
fn session_of_another_shard_is_forwarded_there() {
    let directory = Arc::new(Directory::default());
    let mut here = Bench::with(Arc::clone(&directory), Home(0));
    let mut there = Bench::with(directory, Home(1));
    there.ok(READY);
    let mut batch = parse(OUT);
    let progress = here.engine.advance(&mut batch, here.now);
    assert!(matches!(progress, Progress::Forward(Home(1))), "{progress:?}");
    let (text, _) = batch.forward();
    let mut forwarded =
        Batch::parse(text.as_bytes(), Blobs::default(), Owner::Shard, &WireLimits::default())
            .unwrap();
    let Progress::Done(reply) = there.engine.advance(&mut forwarded, there.now) else {
        panic!("the null device is done at once");
    };
    let outcome = forwarded.outcome(reply);
    batch.forwarded(outcome.map(|output| output.as_bytes().to_vec()));
    let Progress::Done(Reply::Ok(Output::Owned(bytes))) = here.engine.advance(&mut batch, here.now)
    else {
        panic!("the outcome is the reply");
    };
    assert_eq!(bytes, [1, 2, 3, 4]);
    here.fails_with("Transfer(1, $a, 1, session=$b)", "live on different cores");
    // A forwarded command opens no session.
    let mut late = parse_for("CopyOut(1, session=$c)", Owner::Shard);
    let Progress::Done(Reply::Failed(text)) = there.engine.advance(&mut late, there.now) else {
        panic!("there is no such session");
    };
    assert!(text.contains("the session has ended"), "{text}");
}

#[test]
fn session_of_another_shard_is_reached_by_a_connection_that_can_open_no_more() {
    let directory = Arc::new(Directory::default());
    let mut here = Bench::with(Arc::clone(&directory), Home(0));
    let mut there = Bench::with(directory, Home(1));
    there.ok("GetProperties(session=$c)");
    here.engine.limits.sessions_per_connection_max = 1;
    here.ok("GetProperties(session=$a)");
    here.fails_with("GetProperties(session=$b)", "too many sessions");
    let mut batch = parse("GetProperties(session=$c)");
    let progress = here.engine.advance(&mut batch, here.now);
    assert!(matches!(progress, Progress::Forward(Home(1))), "{progress:?}");
}
