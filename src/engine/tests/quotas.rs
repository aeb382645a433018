//! How much one session and one identity may have.

use std::sync::Arc;

use super::{Bench, OUT, parse};
use crate::engine::{Batch, Directory, Home, Progress, Reply};
use crate::identity::{Access, Identity, Rules};

const MEMORY: u64 = 4096;

fn alloc(number: u64, bytes: u64, session: &str) -> String {
    format!("BufferAlloc({number}, {bytes}, $spec, session={session})")
}

fn bob() -> Identity {
    Access::default().of_address([127, 0, 0, 1].into()).unwrap()
}

fn somebody_else() -> Identity {
    let trusted = vec!["10.0.0.0/8".parse().unwrap()];
    let access = Access::load(&Rules { trusted, ..Rules::default() }).unwrap();
    access.of_address([10, 0, 0, 1].into()).unwrap()
}

/// What a batch of an identity comes to.
fn run_as(bench: &mut Bench, identity: Identity, text: &str) -> Reply {
    let mut batch: Batch<'_> = parse(text).of_identity(identity);
    loop {
        match bench.engine.advance(&mut batch, bench.now) {
            Progress::Done(reply) => return reply,
            Progress::Wait(wait) => assert!(bench.engine.is_over(&wait, bench.now), "{wait:?}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn session_past_its_memory_is_told_what_to_free_and_goes_on() {
    let mut bench = Bench::new();
    bench.engine.limits.memory_per_session_bytes_max = MEMORY;
    bench.ok(&format!("{}, CopyIn(1, $data, session=$a)", alloc(1, 4, "$a")));
    bench.ok(&alloc(2, MEMORY - 128, "$a"));
    let failure = bench.failure(&alloc(3, 1, "$a"));
    for part in ["command 0 (BufferAlloc)", "128 bytes asked", "4096 used of the 4096 that one"] {
        assert!(failure.contains(part), "{failure}");
    }
    assert!(failure.contains("free buffers") && failure.contains("--session-memory"), "{failure}");
    // Another session has as much, and this one goes on with what it has.
    bench.ok(&alloc(1, MEMORY, "$b"));
    assert_eq!(bench.ok(OUT), [1, 2, 3, 4]);
    // A copy that is made for the sake of a reply is memory too.
    let overwritten = format!("CopyOut(2, session=$a), {}", alloc(4, 1, "$a"));
    bench.fails_with(&overwritten, "--session-memory");
    bench.ok("BufferFree(2, session=$a)");
    bench.ok(&alloc(3, MEMORY - 128, "$a"));
}

#[test]
fn identity_past_its_memory_is_told_on_every_shard() {
    let directory = Arc::new(Directory::default());
    let mut here = Bench::with(Arc::clone(&directory), Home(0));
    let mut there = Bench::with(directory, Home(1));
    for bench in [&mut here, &mut there] {
        bench.engine.limits.memory_per_identity_bytes_max = MEMORY;
    }
    here.ok(&format!("{}, {}", alloc(1, MEMORY / 2, "$a"), alloc(1, MEMORY / 4, "$b")));
    there.ok(&alloc(1, MEMORY / 4, "$c"));
    for (bench, session) in [(&mut here, "$a"), (&mut there, "$c")] {
        let failure = bench.failure(&alloc(2, 1, session));
        assert!(failure.contains("4096 used of the 4096 that one identity may have"), "{failure}");
        assert!(failure.contains("SessionFree"), "{failure}");
        assert!(failure.contains("--identity-memory"), "{failure}");
    }
    // Somebody else's memory is their own.
    let theirs = run_as(&mut there, bob(), &alloc(1, MEMORY, "$c"));
    assert!(matches!(theirs, Reply::Ok(_)), "{theirs:?}");
    here.ok("SessionFree(session=$a)");
    there.ok(&alloc(2, MEMORY / 2, "$c"));
    here.fails_with(&alloc(2, 1, "$b"), "one identity may have");
}

#[test]
fn accounts_of_an_identity_last_as_long_as_its_memory() {
    let mut bench = Bench::new();
    bench.engine.limits.memory_per_identity_bytes_max = MEMORY;
    bench.ok(&alloc(1, MEMORY, "$a"));
    let accounts = |bench: &Bench| Arc::downgrade(&bench.engine.tenant(Identity::default()));
    let before = accounts(&bench);
    // Somebody new has those of others looked at.
    drop(bench.engine.tenant(bob()));
    assert!(before.upgrade().is_some(), "a buffer counts there");
    bench.fails_with(&alloc(2, 1, "$a"), "one identity may have");
    bench.ok("SessionFree(session=$a)");
    drop(bench.engine.tenant(somebody_else()));
    assert!(before.upgrade().is_none(), "nothing counts there any more");
    bench.ok(&alloc(1, MEMORY, "$a"));
}

#[test]
fn compilation_beyond_those_of_an_identity_is_refused_until_one_ends() {
    let mut bench = Bench::new();
    bench.engine.limits.compilations_per_identity_max = 2;
    let compile = "ProgramAlloc('p', $add1, session=$a), ProgramAlloc('q', $data, session=$a), \
                   ProgramAlloc('r', $add1, session=$a)";
    // One after the other they always find room.
    bench.ok(compile);
    let tenant = bench.engine.tenant(Identity::default());
    let turns = [tenant.compilation(2).unwrap(), tenant.compilation(2).unwrap()];
    assert!(tenant.compilation(2).is_none());
    bench.fails_with("ProgramAlloc('s', $add1, session=$a)", "one identity has at most 2 at once");
    assert!(matches!(run_as(&mut bench, bob(), compile), Reply::Ok(_)), "others have their own");
    drop(turns);
    bench.ok("ProgramAlloc('s', $add1, session=$a)");
    bench.ok("SessionFree(session=$a)");
    assert!(tenant.compilation(1).is_some(), "a turn was not given back");
}

#[test]
fn things_beyond_the_limits_of_a_session_are_refused_until_one_is_freed() {
    let mut bench = Bench::new();
    let limits = &mut bench.engine.limits;
    limits.buffers_per_session_max = 2;
    limits.programs_per_session_max = 1;
    limits.graphs_per_session_max = 1;
    limits.events_per_session_max = 1;
    limits.graph_nodes_max = 2;
    limits.source_bytes_max = 4;
    bench.ok("BufferAlloc(1, 4, $spec, session=$a), BufferOffset(2, 1, 0, 1, session=$a)");
    bench.ok("ProgramAlloc('p', $add1, session=$a), Event($a, 1, session=$a)");
    let item = "GraphComputeItem($a, 'p', $add1, (1,), (), {}, (), (0,), None, None), ";
    let graph = |number: u32, items: usize| {
        format!("GraphAlloc({number}, ({}), (), {{}}, session=$a)", item.repeat(items))
    };
    bench.ok(&graph(1, 2));
    let over = [
        ("BufferAlloc(3, 4, $spec, session=$a)", "too many buffers: the limit is 2"),
        ("BufferOffset(3, 1, 0, 1, session=$a)", "too many buffers: the limit is 2"),
        ("ProgramAlloc('q', $add1, session=$a)", "too many programs: the limit is 1"),
        ("Event($a, 2, session=$a)", "too many events: the limit is 1"),
        (&graph(2, 1), "too many graphs: the limit is 1"),
    ];
    for (command, words) in over {
        bench.fails_with(command, words);
    }
    bench.ok("BufferFree(2, session=$a), ProgramFree('p', $add1, session=$a)");
    bench.ok("Wait(1, session=$a), GraphFree(1, session=$a)");
    bench.ok("BufferAlloc(2, 4, $spec, session=$a), ProgramAlloc('p', $add1, session=$a)");
    bench.ok("Event($a, 2, session=$a)");
    bench.fails_with(&graph(1, 3), "has 3 kernels, copies or inputs: the limit is 2");
    bench.ok(&graph(1, 2));
    bench.ok("ProgramFree('p', $add1, session=$a)");
    bench.engine.limits.source_bytes_max = 3;
    bench.fails_with("ProgramAlloc('p', $add1, session=$a)", "longer than this server compiles");
}
