//! Graphs over several devices: what waits for what, in as few submissions as that takes.

use proptest::prelude::*;

use super::{Bench, GRAPH, OUT, READY, RUN, parse, with_graph};
use crate::device::Fence;
use crate::engine::session::Session;
use crate::engine::{Progress, Reply};

/// The devices, in shorthand.
const NAMES: [&str; 3] = ["$a", "$b", "$c"];
const BUFFERS: usize = 2;

#[derive(Clone, Copy, Debug)]
enum Item {
    Add1 { device: usize, buffer: usize },
    Copy { from: (usize, usize), to: (usize, usize) },
}

fn place() -> impl Strategy<Value = (usize, usize)> {
    (0..NAMES.len(), 0..BUFFERS)
}

fn item() -> impl Strategy<Value = Item> {
    prop_oneof![
        place().prop_map(|(device, buffer)| Item::Add1 { device, buffer }),
        (place(), place()).prop_map(|(from, to)| Item::Copy { from, to }),
    ]
}

impl Item {
    fn text(self) -> String {
        match self {
            Item::Add1 { device, buffer } => {
                let name = NAMES[device];
                format!(
                    "GraphComputeItem({name}, 'p', $add1, ({buffer},), (), {{}}, (), (0,), None, \
                     None)"
                )
            }
            Item::Copy { from: (source, from), to: (destination, to) } => {
                let (source, destination) = (NAMES[source], NAMES[destination]);
                format!("Transfer({from}, {destination}, {to}, session={source})")
            }
        }
    }

    fn run(self, memory: &mut [[u8; BUFFERS]; NAMES.len()]) {
        match self {
            Item::Add1 { device, buffer } => {
                memory[device][buffer] = memory[device][buffer].wrapping_add(1);
            }
            Item::Copy { from, to } => memory[to.0][to.1] = memory[from.0][from.1],
        }
    }
}

/// Buffers of one byte, all different, and the program `p`, for each device.
fn with_buffers() -> (Bench, [[u8; BUFFERS]; NAMES.len()]) {
    let (mut bench, mut memory) = (Bench::new(), [[0; BUFFERS]; NAMES.len()]);
    for (device, (name, buffers)) in NAMES.into_iter().zip(&mut memory).enumerate() {
        bench.ok(&format!("ProgramAlloc('p', $add1, session={name})"));
        for (buffer, byte) in buffers.iter_mut().enumerate() {
            bench.ok(&format!("BufferAlloc({buffer}, 1, $spec, session={name})"));
            let add1 =
                format!("ProgramExec('p', $add1, ({buffer},), (), None, None, False, session=");
            for _ in 0..10 * (BUFFERS * device + buffer) {
                bench.ok(&format!("{add1}{name})"));
                *byte += 1;
            }
        }
    }
    (bench, memory)
}

fn graph(items: &[Item]) -> String {
    let items: Vec<String> = items.iter().map(|item| item.text() + ",").collect();
    format!("GraphAlloc(1, ({}), (), {{}}, session=$a)", items.join(" "))
}

fn memory(bench: &mut Bench) -> [[u8; BUFFERS]; NAMES.len()] {
    NAMES.map(|name| {
        std::array::from_fn(|buffer| bench.ok(&format!("CopyOut({buffer}, session={name})"))[0])
    })
}

/// How many calls each device has got.
fn calls(bench: &mut Bench) -> [u64; NAMES.len()] {
    let last = |session: &mut Session| match session.open_device() {
        Ok(device) => device.last(),
        Err(_) => Fence::default(),
    };
    let mut sessions: Vec<_> = bench.engine.sessions.iter_mut().collect();
    std::array::from_fn(|device| sessions.get_mut(device).map_or(0, |session| last(session).0))
}

/// How many calls one run is to each device.
fn check_calls(items: &[Item], expected: [u64; NAMES.len()]) {
    let (mut bench, _) = with_buffers();
    bench.ok(&graph(items));
    let before = calls(&mut bench);
    bench.ok("GraphExec(1, (), {}, False, session=$a)");
    let after = calls(&mut bench);
    let made: Vec<u64> = after.iter().zip(before).map(|(after, before)| after - before).collect();
    assert_eq!(made, expected, "{items:?}");
}

const ADD_A: Item = Item::Add1 { device: 0, buffer: 0 };
const ADD_B: Item = Item::Add1 { device: 1, buffer: 0 };
const A_TO_B: Item = Item::Copy { from: (0, 0), to: (1, 0) };
const B_TO_A: Item = Item::Copy { from: (1, 1), to: (0, 1) };

#[test]
fn section_ends_only_where_devices_meet() {
    check_calls(&[ADD_A; 100], [1, 0, 0]);
    check_calls(&[ADD_A, ADD_B, ADD_A, ADD_B], [1, 1, 0]);
    check_calls(&[ADD_A, Item::Copy { from: (0, 0), to: (0, 1) }, ADD_A], [1, 0, 0]);
    // The section, its signal, the wait for the copies; the wait, the copies, their signal.
    check_calls(&[ADD_A, A_TO_B, A_TO_B, A_TO_B], [3, 3, 0]);
    // What comes after the copies is not waited for, and is a section of its own.
    check_calls(&[ADD_A, A_TO_B, ADD_B, ADD_B], [3, 4, 0]);
    // What has been waited for is not waited for again.
    check_calls(&[ADD_A, A_TO_B, ADD_A, B_TO_A], [5, 4, 0]);
}

#[test]
fn copy_out_of_a_graphs_reach_is_made_between_its_sections() {
    let mut bench = Bench::new();
    bench.control.keep_apart();
    bench.ok(&format!(
        "{READY}, BufferAlloc(2, 4, $spec, session=$a), BufferAlloc(3, 5, $spec, session=$a), \
         BufferAlloc(1, 4, $spec, session=$b), {GRAPH}"
    ));
    bench.ok(&RUN.replace("$a, 1", "$a, 3"));
    assert_eq!(bench.ok("CopyOut(3, session=$a)"), [2; 5]);
    assert_eq!(bench.ok("CopyOut(1, session=$b)"), [1; 4]);
    assert_eq!(bench.ok("CopyOut(2, session=$a)"), [1; 4]);
    let text = bench.ok(&RUN.replace("False", "True"));
    assert_eq!(text, b"2e-06");
    assert_eq!(bench.ok(OUT), [3, 4, 5, 6]);
}

#[test]
fn run_that_finds_no_room_goes_on_later_in_order() {
    let mut bench = with_graph();
    bench.control.hold();
    bench.control.limit_queue(1);
    let (text, waits) = bench.run_with_little_room(&RUN.replace("False", "True"));
    assert!(waits > 4, "{waits}");
    // Three sections, one after the other, each of a microsecond.
    assert_eq!(text.as_bytes(), b"3e-06");
    bench.control.release();
    assert_eq!(bench.ok(OUT), [3, 4, 5, 6]);
}

#[test]
fn recording_that_finds_no_room_goes_on_later() {
    let mut bench = with_graph();
    bench.ok("GraphFree(1, session=$a)");
    bench.control.hold();
    bench.control.limit_queue(1);
    let (mut batch, mut other) = (parse(GRAPH), parse(GRAPH));
    let Progress::Wait(wait) = bench.engine.advance(&mut batch, bench.now) else {
        panic!("there is room for one section");
    };
    assert!(!bench.engine.is_over(&wait, bench.now));
    bench.control.release();
    // Somebody else takes the number meanwhile.
    let done = bench.engine.advance(&mut other, bench.now);
    assert!(matches!(done, Progress::Done(Reply::Ok(_))), "{done:?}");
    let done = bench.engine.advance(&mut batch, bench.now);
    let Progress::Done(Reply::Failed(why)) = done else { panic!("{done:?}") };
    assert!(why.contains("graph 1"), "{why}");
    bench.ok(RUN);
    assert_eq!(bench.ok(OUT), [3, 4, 5, 6]);
}

#[test]
fn long_graph_lets_others_run_in_between() {
    let (mut bench, mut expected) = with_buffers();
    let items = [ADD_A, A_TO_B, ADD_B, B_TO_A].repeat(500);
    bench.ok(&graph(&items));
    items.iter().for_each(|item| item.run(&mut expected));
    let run = "GraphExec(1, (), {}, False, session=$a)";
    let mut batch = parse(run);
    let mut pauses = 0;
    loop {
        match bench.engine.advance(&mut batch, bench.now) {
            Progress::Pause => pauses += 1,
            Progress::Done(Reply::Ok(_)) => break,
            progress => panic!("{progress:?}"),
        }
    }
    assert!(pauses > 5, "{pauses}");
    assert_eq!(memory(&mut bench), expected);
    // Each item is a section of a microsecond, and waits for the one before.
    let text = String::from_utf8(bench.ok(&run.replace("False", "True"))).unwrap();
    assert_eq!(text, "0.002");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn devices_at_any_speed_do_what_one_device_would(
        items in prop::collection::vec(item(), 1..20),
        speeds in prop::collection::vec(0..NAMES.len(), 1..50),
        apart in any::<bool>(),
        input in place(),
    ) {
        let (mut bench, mut expected) = with_buffers();
        if apart {
            bench.control.keep_apart();
        }
        let input = format!("({}, {})", NAMES[input.0], input.1);
        bench.ok(&graph(&items).replace("(), {}, session", &format!("({input},), {{}}, session")));
        bench.control.hold();
        // The second run may begin on one device while the first still runs on another.
        for _ in 0..2 {
            bench.ok(&format!("GraphExec(1, ({input},), {{}}, False, session=$a)"));
            items.iter().for_each(|item| item.run(&mut expected));
        }
        for device in speeds.into_iter().cycle().take(500) {
            let _ = bench.control.complete_next(device);
        }
        bench.control.release();
        prop_assert_eq!(memory(&mut bench), expected);
    }
}
