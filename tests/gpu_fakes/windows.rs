//! Copies between devices of two worker processes through memory that the two share.

use std::sync::Arc;

use outboard::device::gpu::Vendor;
use outboard::device::shared::Budget;
use outboard::device::{Device, Platform, Program, Quota, Region, Source, Span};

use crate::apart::{Server, apart_on_fakes, clean};
use crate::relay::copies_of_a_server;
use crate::rig::*;
use crate::support::fakes::{self, Watch};

/// Two devices, of a runtime that shares memory.
const TWO: [(&str, &str); 2] = [("FAKE_GPU_DEVICES", "2"), ("FAKE_HIP_VERSION", "70253211")];
/// Of a copy: three pieces, the last of which is not whole.
const COUNT: usize = 9_000_001;
const PIECES: usize = 3;

/// Two sessions, and a kernel of the first that adds to the first elements.
struct Pair {
    server: Server,
    /// That of the second, whose workers may be started with another environment.
    other: Server,
    first: Box<dyn Device>,
    second: Box<dyn Device>,
    increment: Program,
}

impl Pair {
    fn new(vendor: Vendor) -> Pair {
        Pair::of(vendor, [0, 1], [&[], &[]])
    }

    /// Of these devices, with these environments.
    fn of(vendor: Vendor, devices: [u64; 2], more: [&[(&str, &str)]; 2]) -> Pair {
        let [mut server, mut other] = more.map(|more| Server::with(vendor, DEADLINE, more));
        let mut first = server.platform.open(devices[0]).unwrap();
        let second = other.platform.open(devices[1]).unwrap();
        let increment = load(&mut *first, vendor, "increment_i32", "pi");
        Pair { server, other, first, second, increment }
    }

    /// A copy from the first to the second behind what the first has done, which is then done more.
    fn copy(&mut self, to: &Region, from: &Region) {
        let Pair { first, second, .. } = self;
        let written = first.signal().unwrap();
        second.wait(&written).unwrap();
        let mut at = 0;
        while at < from.bytes() {
            until_room(&mut **second);
            let bytes = second.copy_bytes_max(from).min(from.bytes() - at);
            let [to, from] = [to, from].map(|region| Span::new(region, at, bytes).unwrap());
            second.copy(to, from).unwrap();
            at += bytes;
        }
        let copied = second.signal().unwrap();
        first.wait(&copied).unwrap();
    }

    /// Both have done all that was queued.
    fn settle(&mut self) {
        // The one orders work of the other, which queues it when it is looked at.
        wait_for_both(&mut *self.first, &mut *self.second);
    }

    /// Memory of the first with these bytes.
    fn source(&mut self, bytes: &[u8]) -> Region {
        let mut staged = self.server.staging.alloc(bytes.len() as u64).unwrap();
        staged.slice_mut().copy_from_slice(bytes);
        let region = self.first.alloc(bytes.len() as u64).unwrap();
        self.first.copy_in(whole(&region), Source::Staged(&staged)).unwrap();
        wait_for_all(&mut *self.first);
        region
    }

    /// A copy of `count` elements, each of `value`, arrives while the source goes on.
    fn check(&mut self, value: i32, count: usize) {
        let from = self.source(&filled(value, value, count));
        let to = self.second.alloc(4 * count as u64).unwrap();
        launch(&mut *self.first, &self.increment, &[&from], &[1]);
        self.copy(&to, &from);
        launch(&mut *self.first, &self.increment, &[&from], &[10]);
        self.settle();
        let (from, to) = (read(&mut *self.first, &from), read(&mut *self.second, &to));
        assert!(from == filled(value + 11, value, count), "the source of {count}");
        assert!(to == filled(value + 1, value, count), "the copy of {count}");
    }

    fn check_all(&mut self, values: &[i32], count: usize) {
        values.iter().for_each(|value| self.check(*value, count));
    }

    /// Everything that the devices had is back.
    fn finish(self) {
        let Pair { server, other, first, second, increment } = self;
        drop((first, second, increment));
        server.finish();
        other.finish();
    }
}

/// Elements of which those that kernels change are the `first`, and the others the `rest`.
fn filled(first: i32, rest: i32, count: usize) -> Vec<u8> {
    let mut all = rest.to_ne_bytes().repeat(count);
    all[..4 * THREADS].copy_from_slice(&first.to_ne_bytes().repeat(THREADS));
    all
}

fn until_room(device: &mut dyn Device) {
    while let Some(fence) = device.backlog() {
        wait(device, fence);
    }
}

/// Looks at both in turns.
fn wait_for_both(first: &mut dyn Device, second: &mut dyn Device) {
    let now = std::time::Instant::now;
    crate::apart::until("both are done", || {
        let [one, other] = [first.poll(now()), second.poll(now())];
        assert!(one.lost.is_none() && other.lost.is_none(), "{:?} {:?}", one.lost, other.lost);
        one.completed >= first.last() && other.completed >= second.last()
    });
}

/// How often memory was shared and taken, and copied on a device.
fn calls(ran: &Ran) -> [usize; 3] {
    [
        ran.calls("cuMemCreate", "hipMemCreate"),
        ran.calls("cuMemImportFromShareableHandle", "hipMemImportFromShareableHandle"),
        ran.calls("cuMemcpyDtoDAsync_v2", "hipMemcpyDtoDAsync"),
    ]
}

/// As [`clean`], where so many windows were opened, and so many copies were made on devices.
fn counted(
    name: &str,
    environment: &[(&str, &str)],
    body: impl FnOnce(Vendor),
    expected: [usize; 3],
) {
    apart_on_fakes(name, environment, body, |ran| {
        ran.watch.assert_clean();
        assert_eq!(calls(ran), expected, "{:?}", ran.vendor);
    });
}

/// Each piece is copied out and in.
const WHOLE_COPY: usize = 2 * PIECES;

#[test]
fn copies_pass_through_one_window_once_it_is_open() {
    let name = "windows::copies_pass_through_one_window_once_it_is_open";
    let body = |vendor| {
        let mut pair = Pair::new(vendor);
        for (value, count) in [(5, COUNT), (7, COUNT), (-9, COUNT), (3, THREADS), (4, COUNT)] {
            pair.check(value, count);
        }
        pair.finish();
    };
    // The first goes the other way.
    counted(name, &TWO, body, [1, 1, 3 * WHOLE_COPY + 2]);
}

#[test]
fn sessions_of_one_device_have_a_window_too() {
    let name = "windows::sessions_of_one_device_have_a_window_too";
    let body = |vendor| {
        let mut pair = Pair::of(vendor, [1, 1], [&[], &[]]);
        pair.check_all(&[6, 8], COUNT);
        pair.finish();
    };
    counted(name, &TWO, body, [1, 1, WHOLE_COPY]);
}

#[test]
fn short_copies_alone_open_no_window() {
    let name = "windows::short_copies_alone_open_no_window";
    let body = |vendor| {
        let mut pair = Pair::new(vendor);
        pair.check_all(&[6, 8], THREADS);
        pair.finish();
    };
    counted(name, &TWO, body, [0; 3]);
}

/// Copies twice, for which no window is asked.
fn without_windows(name: &str, environment: &[(&str, &str)]) {
    let body = |vendor| {
        let mut pair = Pair::new(vendor);
        pair.check_all(&[6, 8], COUNT);
        pair.finish();
    };
    counted(name, environment, body, [0; 3]);
}

#[test]
fn devices_out_of_reach_copy_without_windows() {
    let name = "windows::devices_out_of_reach_copy_without_windows";
    without_windows(name, &[TWO[0], TWO[1], ("FAKE_GPU_PEERS", "none")]);
}

#[test]
fn devices_that_share_no_memory_copy_without_windows() {
    let name = "windows::devices_that_share_no_memory_copy_without_windows";
    without_windows(name, &[TWO[0], TWO[1], ("FAKE_GPU_SHARES", "0")]);
}

#[test]
fn runtimes_that_take_descriptors_otherwise_are_not_asked() {
    let name = "windows::runtimes_that_take_descriptors_otherwise_are_not_asked";
    let old = [TWO[0], ("FAKE_HIP_VERSION", "70153211"), ("FAKE_CUDA_SHARES", "0")];
    without_windows(name, &old);
}

/// The calls that make a window, and those that end it.
const MAKING: [(&str, &str); 6] = [
    ("cuMemCreate", "hipMemCreate"),
    ("cuMemExportToShareableHandle", "hipMemExportToShareableHandle"),
    ("cuMemImportFromShareableHandle", "hipMemImportFromShareableHandle"),
    ("cuMemAddressReserve", "hipMemAddressReserve"),
    ("cuMemMap", "hipMemMap"),
    ("cuMemSetAccess", "hipMemSetAccess"),
];

/// Copies between devices of which one end's driver refuses a call of those, one after the other.
fn refused(name: &str, end: usize, code: &str) {
    let body = |vendor| {
        for (cuda, hip) in MAKING {
            let fail = format!("{cuda}:{code}:every,{hip}:{code}:every");
            let mut more: [&[(&str, &str)]; 2] = [&[], &[]];
            let failing = [("FAKE_GPU_FAIL", fail.as_str())];
            more[end] = &failing;
            let mut pair = Pair::of(vendor, [0, 1], more);
            // It is asked for once.
            pair.check_all(&[6, 8, 9], 300_000);
            pair.finish();
        }
    };
    apart_on_fakes(name, &TWO, body, |ran| {
        ran.watch.assert_clean();
        let asked = ran.calls("cuMemAddressReserve", "hipMemAddressReserve");
        assert!(asked <= 2 * MAKING.len(), "{asked} times");
    });
}

#[test]
fn source_that_cannot_share_is_copied_from_all_the_same() {
    refused("windows::source_that_cannot_share_is_copied_from_all_the_same", 0, "801");
}

#[test]
fn destination_that_cannot_take_a_window_copies_all_the_same() {
    let name = "windows::destination_that_cannot_take_a_window_copies_all_the_same";
    // Whatever the driver answers: no work of the session is in it.
    refused(name, 1, "999");
}

#[test]
fn window_waits_for_memory() {
    let name = "windows::window_waits_for_memory";
    let body = |vendor| {
        let mut pair = Pair::new(vendor);
        // A copy's source fits into what is left, and no window.
        let most = pair.first.alloc((1 << 30) - (40 << 20)).unwrap();
        pair.check_all(&[6, 8], 300_000);
        drop(most);
        pair.check_all(&[6, 8], 300_000);
        pair.finish();
    };
    counted(name, &TWO, body, [1, 1, 2]);
}

#[test]
fn sessions_of_two_identities_share_no_memory() {
    let name = "windows::sessions_of_two_identities_share_no_memory";
    let body = |vendor| {
        let quota = || Quota::new(u64::MAX, Arc::new(Budget::of_identity(u64::MAX)));
        let (one, other) = (quota(), quota());
        for (quotas, shares) in [([&one, &other], false), ([&one, &one], true)] {
            let mut pair = Pair::new(vendor);
            pair.first = pair.server.platform.open_within(0, quotas[0]).unwrap();
            pair.second = pair.other.platform.open_within(1, quotas[1]).unwrap();
            pair.increment = load(&mut *pair.first, vendor, "increment_i32", "pi");
            let from = region(&mut *pair.first, &[1]);
            assert_eq!(pair.second.copy_bytes_max(&from) < u64::MAX, shares);
            drop(from);
            pair.check_all(&[6, 8], 300_000);
            pair.finish();
        }
    };
    counted(name, &TWO, body, [1, 1, 2]);
}

#[test]
fn source_that_is_freed_behind_the_copy_is_copied_first() {
    let name = "windows::source_that_is_freed_behind_the_copy_is_copied_first";
    let body = |vendor| {
        let mut pair = Pair::new(vendor);
        let to = pair.second.alloc(4 * COUNT as u64).unwrap();
        for value in 1..=6 {
            let from = pair.source(&filled(value, value, COUNT));
            pair.copy(&to, &from);
            drop(from);
            // It may have the same place.
            drop(pair.source(&filled(-1, -1, COUNT)));
            pair.settle();
            assert!(read(&mut *pair.second, &to) == filled(value, value, COUNT), "{value}");
        }
        drop(to);
        pair.finish();
    };
    counted(name, &TWO, body, [1, 1, 5 * WHOLE_COPY]);
}

#[test]
fn several_destinations_have_windows_of_their_own() {
    let name = "windows::several_destinations_have_windows_of_their_own";
    let body = |vendor| {
        let mut pair = Pair::new(vendor);
        pair.check_all(&[6, 8], COUNT);
        let third = pair.other.platform.open(1).unwrap();
        let second = std::mem::replace(&mut pair.second, third);
        pair.check_all(&[9, 7], COUNT);
        pair.second = second;
        pair.check(5, COUNT);
        pair.finish();
    };
    counted(name, &TWO, body, [2, 2, 3 * WHOLE_COPY]);
}

#[test]
fn end_of_one_session_gives_the_others_part_of_the_window_back() {
    let name = "windows::end_of_one_session_gives_the_others_part_of_the_window_back";
    let body = |vendor| {
        let mut pair = Pair::new(vendor);
        pair.check_all(&[6, 8], 300_000);
        // The source is left, and lets go of its end.
        pair.second = pair.other.platform.open(1).unwrap();
        pair.check_all(&[6, 8], 300_000);
        // The destination is left.
        pair.first = pair.server.platform.open(0).unwrap();
        pair.increment = load(&mut *pair.first, vendor, "increment_i32", "pi");
        pair.check_all(&[6, 8], 300_000);
        pair.finish();
    };
    apart_on_fakes(name, &TWO, body, |ran| {
        ran.watch.assert_clean();
        assert_eq!(calls(ran), [3, 3, 3 * 2]);
        for (cuda, hip) in [
            ("cuMemUnmap", "hipMemUnmap"),
            ("cuMemAddressFree", "hipMemAddressFree"),
            ("cuMemRelease", "hipMemRelease"),
        ] {
            assert_eq!(ran.calls(cuda, hip), 2, "{cuda}");
        }
    });
}

#[test]
fn window_is_zeroed_before_another_worker_has_it() {
    let name = "windows::window_is_zeroed_before_another_worker_has_it";
    let environment = [TWO[0], TWO[1], ("FAKE_GPU_LAG_US", "20000")];
    let body = |vendor| {
        let mut pair = Pair::new(vendor);
        let from = pair.source(&filled(4, 4, 300_000));
        let to = pair.second.alloc(from.bytes()).unwrap();
        pair.settle();
        pair.copy(&to, &from);
        pair.settle();
        drop((from, to));
        pair.finish();
    };
    apart_on_fakes(name, &environment, body, |ran| {
        ran.watch.assert_clean();
        let [taking, zeroing] = match ran.vendor {
            Vendor::Nvidia => ["cuMemImportFromShareableHandle ", "cuMemsetD8Async "],
            Vendor::Amd => ["hipMemImportFromShareableHandle ", "hipMemsetAsync "],
        };
        let trace = ran.watch.trace();
        let before: Vec<&str> =
            trace.lines().take_while(|line| !line.starts_with(taking)).collect();
        assert!(before.len() < trace.lines().count(), "nobody took a window");
        let count = |start: &str| before.iter().filter(|line| line.starts_with(start)).count();
        assert_eq!(count(zeroing), count(&format!("# ran {zeroing}")), "{:?}", ran.vendor);
    });
}

/// Kills the worker of a session by its place among the open ones, from the last.
fn kill(from_the_end: usize) {
    let children = crate::apart::child_processes();
    let pid = children[children.len() - 1 - from_the_end];
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

/// A window is open, and a copy through it is under way when one end's worker dies. `check` has
/// both ends then, and memory of both.
fn killed(name: &str, end: usize, check: fn(&mut Pair, [&Region; 2])) {
    let body = move |vendor| {
        let mut pair = Pair::new(vendor);
        pair.check(6, COUNT);
        pair.check(8, COUNT);
        let spin = load(&mut *pair.first, vendor, "spin_us_", "pi");
        let from = pair.source(&filled(4, 4, COUNT));
        let to = pair.second.alloc(4 * COUNT as u64).unwrap();
        launch(&mut *pair.first, &spin, &[&from], &[50_000]);
        for _ in 0..3 {
            pair.copy(&to, &from);
        }
        // The source's part is queued when it is looked at.
        pair.first.poll(std::time::Instant::now());
        kill(1 - end);
        check(&mut pair, [&from, &to]);
        drop((from, to, spin));
        pair.finish();
    };
    clean(name, &TWO, body);
}

#[test]
fn destination_goes_on_when_its_source_is_killed_in_a_copy() {
    let name = "windows::destination_goes_on_when_its_source_is_killed_in_a_copy";
    killed(name, 0, |pair, [_, to]| {
        let why = lost(&mut *pair.first).to_string();
        assert!(why.contains("killed"), "{why}");
        wait_for_all(&mut *pair.second);
        let own = region(&mut *pair.second, b"mine");
        pair.second.copy(Span::new(to, 0, 4).unwrap(), whole(&own)).unwrap();
        assert_eq!(read_span(&mut *pair.second, to, 0, 4), b"mine");
    });
}

#[test]
fn source_goes_on_when_its_destination_is_killed_in_a_copy() {
    let name = "windows::source_goes_on_when_its_destination_is_killed_in_a_copy";
    killed(name, 1, |pair, [from, _]| {
        let why = lost(&mut *pair.second).to_string();
        assert!(why.contains("killed"), "{why}");
        wait_for_all(&mut *pair.first);
        let rest = read_span(&mut *pair.first, from, 4 * THREADS as u64, 8);
        assert_eq!(rest, [4, 0, 0, 0, 4, 0, 0, 0]);
    });
}

#[test]
fn window_of_a_lost_destination_is_not_counted_once_its_source_has_let_go() {
    let name = "windows::window_of_a_lost_destination_is_not_counted_once_its_source_has_let_go";
    killed(name, 1, |pair, _| {
        lost(&mut *pair.second);
        // The session is not freed. All memory but the window's is asked for.
        crate::apart::until("the window's memory is back", || {
            pair.first.poll(std::time::Instant::now());
            let taken = pair.first.alloc((1 << 30) - (40 << 20) - 4 * COUNT as u64);
            taken.map(drop).is_ok()
        });
    });
}

#[test]
fn server_copies_between_workers_through_a_window_alone_and_in_graphs() {
    for device in ["cuda", "hip"] {
        let watch = Watch::of_confined(&[device]);
        // Workers get little of the server's environment: their library carries it.
        let mut settings = "DEVICES=2".to_owned();
        if device == "hip" {
            settings += ";VERSION=70253211";
        }
        for (name, value) in watch.environment() {
            if let Some(name) = name.strip_prefix("FAKE_GPU_") {
                settings += &format!(";{name}={value}");
            }
        }
        let folder = tempfile::tempdir().unwrap();
        fakes::with_settings(device, &settings, folder.path());
        let folder = folder.path().to_str().unwrap();
        copies_of_a_server(device, "session", &[("LD_LIBRARY_PATH", folder)], &watch);
        let calls = |names: [&str; 2]| names.map(|name| watch.calls(name)).iter().sum::<usize>();
        assert_eq!(calls(["cuMemImportFromShareableHandle", "hipMemImportFromShareableHandle"]), 1);
        // Two runs of the graph, two pieces each, out and in.
        assert_eq!(calls(["cuMemcpyDtoDAsync_v2", "hipMemcpyDtoDAsync"]), 8, "{device}");
    }
}
