//! What the path of a command allocates: nothing for each launch, and what the others have to.
//!
//! The allocator of this test binary counts for the thread that asks. A batch of each kind runs
//! until the tables have grown, then two of different lengths are counted: what their difference
//! has more is what each command costs.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outboard::blob::Digest;
use outboard::config::{EngineLimits, WireLimits};
use outboard::device::isolated::{Isolated, WorkerConfig};
use outboard::device::null::NullPlatform;
use outboard::device::shared::Budget;
use outboard::device::{Device, Launch, Span};
use outboard::engine::{Blob, Blobs, Directory, Engine, Home, Output, Owner, Progress, Reply};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

fn count() {
    ALLOCATIONS.with(|allocations| allocations.set(allocations.get() + 1));
}

// SAFETY: all calls go to the system's allocator as they are; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: by the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: by the caller's promise.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count();
        // SAFETY: by the caller's promise.
        unsafe { System.realloc(memory, layout, bytes) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How often this thread allocated during `run`.
fn allocations(run: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.get();
    run();
    ALLOCATIONS.get() - before
}

const KEY: &str =
    "SessionKey(host='127.0.0.1:6667', idx=0, nonce='0123456789abcdef0123456789abcdef')";
const OTHER: &str =
    "SessionKey(host='127.0.0.1:6667', idx=1, nonce='0123456789abcdef0123456789abcdef')";
const SPEC: &str = "options=BufferSpec(image=None, uncached=False, cpu_access=False, host=False, \
                    nolru=False, external_ptr=None)";
const SOURCE: Digest = Digest([0x5a; 32]);

/// An engine with eight buffers and a program in each of two sessions.
fn engine() -> Engine {
    let platform = NullPlatform::new(2, Arc::new(Budget::new(1 << 30)));
    let directory = Arc::new(Directory::default());
    let mut engine = Engine::new(Box::new(platform), EngineLimits::default(), directory, Home(0));
    let mut text = String::from("[");
    for session in [KEY, OTHER] {
        for number in 0..8 {
            text +=
                &format!("BufferAlloc(session={session}, buffer_num={number}, size=16, {SPEC}), ");
        }
        text += &format!("ProgramAlloc(session={session}, name='kernel', datahash='{SOURCE}'), ");
    }
    text += "]";
    let mut blobs = Blobs::default();
    blobs.insert(SOURCE, Blob::Private(Rc::from(&b"nothing"[..])));
    run(&mut engine, &text, blobs);
    engine
}

fn run(engine: &mut Engine, text: &str, blobs: Blobs) {
    let limits = WireLimits::default();
    let now = Instant::now();
    let mut batch = engine
        .parse(text.as_bytes(), blobs, Owner::Connection(1), &limits)
        .expect("commands of this file can be read");
    loop {
        match engine.advance(&mut batch, now) {
            Progress::Done(Reply::Ok(Output::Empty | Output::Bytes { .. })) => return,
            Progress::Pause => {}
            Progress::Wait(wait) => assert!(engine.is_over(&wait, now)),
            progress => panic!("{progress:?}"),
        }
    }
}

/// What each command of a batch allocates, in thousandths: `command` writes the one of a number.
#[track_caller]
fn check(expected: usize, command: impl Fn(usize) -> String) {
    let mut engine = engine();
    let text = |commands: usize| {
        let commands: Vec<String> = (0..commands).map(&command).collect();
        format!("[{}]", commands.join(", "))
    };
    let (short, long) = (text(1_000), text(2_000));
    for _ in 0..3 {
        run(&mut engine, &long, Blobs::default());
    }
    let short = allocations(|| run(&mut engine, &short, Blobs::default()));
    let long = allocations(|| run(&mut engine, &long, Blobs::default()));
    assert!(short < 10 + expected, "{short} allocations in a batch of 1000");
    assert_eq!(long.saturating_sub(short), expected, "more in a batch of 2000");
}

#[test]
fn launches_allocate_nothing() {
    for values in ["()", "(1, -2, 3, 4, 5, 6)"] {
        for size in ["None", "(8, 1, 1)"] {
            check(0, |n| {
                let session = [KEY, OTHER][n / 3 % 2];
                format!(
                    "ProgramExec(session={session}, name='kernel', datahash='{SOURCE}', \
                     bufs=({}, 1, 2, 3, 4, 5, 6), vals={values}, global_size={size}, \
                     local_size={size}, wait=False)",
                    n % 8
                )
            });
        }
    }
}

#[test]
fn outputs_that_nobody_reads_and_events_allocate_nothing() {
    check(0, |n| format!("CopyOut(session={KEY}, buffer_num={})", n % 8));
    check(0, |n| match n % 2 {
        0 => format!("Event(session={KEY}, event_session={KEY}, event={})", n / 2 % 3),
        _ => format!("Wait(session={KEY}, event={})", n / 2 % 3),
    });
}

#[test]
fn buffer_takes_two_allocations_and_its_end_none() {
    check(1000, |n| match n % 2 {
        0 => format!("BufferAlloc(session={KEY}, buffer_num={}, size=100, {SPEC})", n + 100),
        _ => format!("BufferFree(session={KEY}, buffer_num={})", n + 99),
    });
}

/// The count would see it if each command had a record of its own.
#[test]
fn commands_in_another_spelling_are_counted() {
    check(1000, |n| {
        format!(
            "ProgramExec('kernel', '{SOURCE}', ({},), (), None, None, False, session={KEY})",
            n % 8
        )
    });
}

#[test]
fn launches_reach_the_workers_queue_without_an_allocation() {
    let exe = PathBuf::from(env!("CARGO_BIN_EXE_outboard"));
    let budget = Arc::new(Budget::new(1 << 30));
    let config = WorkerConfig::of_kernels(exe, Duration::from_secs(60), budget);
    let mut device = Isolated::open(&config).unwrap();
    // What cannot be loaded does nothing when it is launched.
    let program = device.load("none", b"no object").unwrap();
    let regions: Vec<_> = (0..6).map(|_| device.alloc(4096).unwrap()).collect();
    let buffers: Vec<_> =
        regions.iter().map(|region| Span::new(region, 0, 4096).unwrap()).collect();
    let (values, global, local) = (&[1, 2, 3][..], Some([1; 3]), None);
    let mut launch = |count: usize| {
        for _ in 0..count {
            while device.backlog().is_some() {
                device.poll(Instant::now());
                std::thread::yield_now();
            }
            let (program, buffers) = (&program, &buffers[..]);
            let launch = Launch { program, buffers, values, global, local, timed: false };
            device.launch(&launch).unwrap();
        }
    };
    launch(50_000);
    assert_eq!(allocations(|| launch(50_000)), 0);
}
