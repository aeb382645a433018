//! Copies between devices that do not reach each other, which go through pinned memory.

use std::time::{Duration, Instant};

use outboard::device::gpu::Vendor;
use outboard::device::{Device, DeviceError, Region, Source, Span};

use crate::rig::*;
use crate::support::client::Client;
use crate::support::fakes::Watch;

/// Two devices that do not reach each other.
const APART: [(&str, &str); 2] = [("FAKE_GPU_DEVICES", "2"), ("FAKE_GPU_PEERS", "none")];

/// Several parts, of which the last piece is short, as no other length here is.
const LONG: usize = (17 << 20) + 1000;

/// As the engine transfers: in parts, each once there is room.
fn transfer(
    (to_device, to): (&mut dyn Device, &Region),
    (from_device, from): (&mut dyn Device, &Region),
) -> Result<(), DeviceError> {
    let written = from_device.signal()?;
    to_device.wait(&written)?;
    let copied = copy_in_parts(to_device, to, from);
    let read = to_device.signal()?;
    from_device.wait(&read)?;
    copied
}

fn copy_in_parts(device: &mut dyn Device, to: &Region, from: &Region) -> Result<(), DeviceError> {
    let mut at = 0;
    while at < from.bytes() {
        while let Some(fence) = device.backlog() {
            wait_status(device, fence);
        }
        let bytes = device.copy_bytes_max(from).min(from.bytes() - at);
        let part = |region| Span::new(region, at, bytes).unwrap();
        device.copy(part(to), part(from))?;
        at += bytes;
    }
    Ok(())
}

fn assert_without_the_driver(ran: &Ran) {
    ran.watch.assert_clean();
    assert_eq!(ran.calls("cuMemcpyPeerAsync", "hipMemcpyPeerAsync"), 0);
}

#[test]
fn long_copy_arrives_whole_and_in_order_in_parts() {
    let name = "relay::long_copy_arrives_whole_and_in_order_in_parts";
    let body = |vendor| {
        let mut rig = Rig::new(vendor);
        let (mut first, mut second) = (rig.open_at(0), rig.open_at(1));
        let (first, second) = (&mut *first, &mut *second);
        let iota = load(first, vendor, "iota_", "p");
        let increment = load(second, vendor, "increment_i32", "p");
        let bytes = pattern(LONG);
        let from = region(first, &bytes);
        let to = region(second, &vec![9; LONG]);
        assert!(second.copy_bytes_max(&from) < from.bytes());
        assert!(!second.reaches(&from) && second.reaches(&to));
        assert_eq!(second.copy_bytes_max(&to), u64::MAX);
        for _ in 0..2 {
            // Both ends are in use before and behind.
            launch(second, &increment, &[&to], &[]);
            launch(first, &iota, &[&from], &[]);
            transfer((&mut *second, &to), (&mut *first, &from)).unwrap();
            launch(first, &iota, &[&from], &[]);
            launch(second, &increment, &[&to], &[]);
        }
        let read = read(second, &to);
        let expected: Vec<i32> = (1..).take(THREADS).collect();
        assert_eq!(ints(&read)[..THREADS], expected);
        assert!(read[4 * THREADS..] == bytes[4 * THREADS..]);
    };
    on_fakes(name, &APART, body, |ran| {
        assert_without_the_driver(ran);
        // Two pieces each way and an event for each: what is in use does not grow with the length.
        let memory = ran.calls("cuMemHostRegister_v2", "hipHostRegister");
        assert!(memory < 32, "{memory} pieces of pinned memory");
    });
}

#[test]
fn copy_behind_a_long_kernel_has_to_wait_for_room() {
    let name = "relay::copy_behind_a_long_kernel_has_to_wait_for_room";
    let body = |vendor| {
        let mut rig = Rig::new(vendor);
        let (mut first, mut second) = (rig.open_at(0), rig.open_at(1));
        let (first, second) = (&mut *first, &mut *second);
        let hang = load(first, vendor, "spin_us_", "pi");
        let from = region(first, &pattern(LONG));
        let to = second.alloc(from.bytes()).unwrap();
        launch(first, &hang, &[&from], &[2_000_000]);
        let written = first.signal().unwrap();
        second.wait(&written).unwrap();
        let bytes = second.copy_bytes_max(&from);
        let mut parts = 0;
        while second.backlog().is_none() && parts < 10 {
            second.copy(part(&to, bytes), part(&from, bytes)).unwrap();
            parts += 1;
        }
        assert_eq!(parts, 2);
        let read = second.signal().unwrap();
        first.wait(&read).unwrap();
        wait_for_all(second);
        assert_eq!(second.backlog(), None);
    };
    on_fakes(name, &APART, body, assert_without_the_driver);
}

fn part(region: &Region, bytes: u64) -> Span<'_> {
    Span::new(region, 0, bytes).unwrap()
}

#[test]
fn freed_source_is_read_to_the_end() {
    let name = "relay::freed_source_is_read_to_the_end";
    let body = |vendor| {
        let mut rig = Rig::new(vendor);
        let (mut first, mut second) = (rig.open_at(0), rig.open_at(1));
        let (first, second) = (&mut *first, &mut *second);
        for _ in 0..2 {
            let from = region(first, &pattern(5 << 20));
            let to = second.alloc(from.bytes()).unwrap();
            let written = first.signal().unwrap();
            second.wait(&written).unwrap();
            second.copy(whole(&to), whole(&from)).unwrap();
            // Though nobody has told the source to wait.
            drop(from);
            let other = region(first, &[1; 5 << 20]);
            assert!(read(second, &to) == pattern(5 << 20));
            drop(other);
        }
    };
    on_fakes(name, &APART, body, assert_without_the_driver);
    let without_pools = [APART[0], APART[1], ("FAKE_GPU_POOLS", "0")];
    on_fakes(name, &without_pools, body, assert_without_the_driver);
}

#[test]
fn either_end_may_be_gone_in_the_middle() {
    let name = "relay::either_end_may_be_gone_in_the_middle";
    let body = |vendor| {
        let mut rig = Rig::new(vendor);
        for ends_source in [true, false] {
            let (mut first, mut second) = (rig.open_at(0), rig.open_at(1));
            let from = region(&mut *first, &pattern(LONG));
            let to = second.alloc(from.bytes()).unwrap();
            let written = first.signal().unwrap();
            second.wait(&written).unwrap();
            let bytes = second.copy_bytes_max(&from);
            second.copy(part(&to, bytes), part(&from, bytes)).unwrap();
            if ends_source {
                drop(first);
                let error = second.copy(part(&to, bytes), part(&from, bytes)).unwrap_err();
                assert!(error.to_string().contains("lost"), "{error}");
                second.copy_in(part(&to, 8), Source::Bytes(&[1; 8])).unwrap();
                assert_eq!(read_span(&mut *second, &to, 0, 8), [1; 8]);
            } else {
                drop(second);
                assert!(read(&mut *first, &from) == pattern(LONG));
                // Its way out is of use to the next.
                let mut third = rig.open_at(1);
                let to = third.alloc(from.bytes()).unwrap();
                transfer((&mut *third, &to), (&mut *first, &from)).unwrap();
                assert!(read(&mut *third, &to) == pattern(LONG));
            }
        }
    };
    on_fakes(name, &APART, body, assert_without_the_driver);
}

#[test]
fn fault_of_the_source_is_not_the_destinations() {
    let name = "relay::fault_of_the_source_is_not_the_destinations";
    let body = |vendor| {
        let mut rig = Rig::new(vendor);
        let (mut first, mut second) = (rig.open_at(0), rig.open_at(1));
        let fault = load(&mut *first, vendor, "illegal_address", "p");
        let from = region(&mut *first, &pattern(5 << 20));
        let to = region(&mut *second, &pattern(5 << 20));
        launch(&mut *first, &fault, &[&from], &[]);
        let lost = lost(&mut *first);
        assert!(matches!(lost, DeviceError::Fault { .. }), "{lost}");
        let error = second.copy(whole(&to), whole(&from)).unwrap_err();
        assert!(matches!(error, DeviceError::Failed { .. }), "{error}");
        assert!(read(&mut *second, &to) == pattern(5 << 20));
        assert!(second.poll(Instant::now()).lost.is_none());
    };
    let environment = [APART[0], APART[1], ("FAKE_GPU_FAULT", "context")];
    on_fakes(name, &environment, body, assert_without_the_driver);
}

#[test]
fn destination_that_hangs_is_ended_and_its_source_goes_on() {
    let name = "relay::destination_that_hangs_is_ended_and_its_source_goes_on";
    let body = |vendor| {
        if vendor == Vendor::Amd {
            // Nothing ends its kernel but the process.
            return;
        }
        let mut rig = Rig::with_limit(vendor, Duration::from_secs(2));
        let (mut first, mut second) = (rig.open_at(0), rig.open_at(1));
        let hang = load(&mut *second, vendor, "hang", "p");
        let sources = [(); 2].map(|()| region(&mut *first, &pattern(5 << 20)));
        let to = second.alloc(5 << 20).unwrap();
        launch(&mut *second, &hang, &[&to], &[]);
        let written = first.signal().unwrap();
        second.wait(&written).unwrap();
        for from in &sources {
            assert_eq!(second.backlog(), None);
            second.copy(whole(&to), whole(from)).unwrap();
        }
        let copied = second.signal().unwrap();
        first.wait(&copied).unwrap();
        let [kept, freed] = sources;
        drop(freed);
        let why = lost(&mut *second);
        assert!(matches!(why, DeviceError::Timeout { .. }), "{why}");
        // For longer than it has for work of its own.
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(3) {
            let lost = first.poll(Instant::now()).lost;
            assert!(lost.is_none(), "{lost:?}");
        }
        assert!(read(&mut *first, &kept) == pattern(5 << 20));
        drop((second, to, hang, copied));
        settle_but(1);
        let mut third = rig.open_at(1);
        let all = third.alloc((1 << 30) - (1 << 20)).unwrap();
        let to = Span::new(&all, 0, kept.bytes()).unwrap();
        let written = first.signal().unwrap();
        third.wait(&written).unwrap();
        third.copy(to, whole(&kept)).unwrap();
        assert!(read_span(&mut *third, &all, 0, kept.bytes()) == pattern(5 << 20));
    };
    on_fakes(name, &APART, body, |ran| ran.watch.assert_clean_but(&["leak"]));
}

#[test]
fn destination_is_not_ended_before_a_source_that_is_gone_and_may_write_to_it() {
    let name = "relay::destination_is_not_ended_before_a_source_that_is_gone_and_may_write_to_it";
    let [shorter, longer] = [600, 1000].map(Duration::from_millis);
    let body = |vendor| {
        if vendor == Vendor::Amd {
            return;
        }
        let mut theirs = Rig::with_limit(vendor, longer);
        let mut ours = Rig::with_limit(vendor, shorter);
        let (mut first, mut second) = (theirs.open_at(0), ours.open_at(1));
        let from = region(&mut *first, &pattern(5 << 20));
        let to = second.alloc(7 << 20).unwrap();
        let hangs =
            [&mut first, &mut second].map(|device| load(&mut **device, vendor, "hang", "p"));
        launch(&mut *first, &hangs[0], &[&from], &[]);
        launch(&mut *second, &hangs[1], &[&to], &[]);
        let written = first.signal().unwrap();
        second.wait(&written).unwrap();
        second.copy(part(&to, from.bytes()), whole(&from)).unwrap();
        // Its context ends after the longer time, and the destination's is late after the shorter.
        drop(first);
        let why = lost(&mut *second);
        assert!(matches!(why, DeviceError::Timeout { .. }), "{why}");
    };
    on_fakes(name, &APART, body, |ran| {
        ran.watch.assert_clean_but(&["leak"]);
        if ran.vendor == Vendor::Amd {
            return;
        }
        let ledger = ran.watch.ledger();
        let ended = |bytes: u64| {
            let bytes = format!("device_bytes={bytes} ");
            let ends = |line: &str| line.contains("destroyed:") && line.contains(&bytes);
            ledger.lines().position(ends)
        };
        let source = ended(5 << 20).unwrap_or_else(|| panic!("the source has not ended: {ledger}"));
        assert!(ended(7 << 20).is_none_or(|destination| destination > source), "{ledger}");
    });
}

/// Both ways, with both ends in use; `Err` where a call failed.
fn both_ways(
    first: &mut dyn Device,
    second: &mut dyn Device,
    vendor: Vendor,
) -> Result<(), DeviceError> {
    let bytes = pattern(5 << 20);
    let a = try_region(first, &bytes)?;
    let b = second.alloc(a.bytes())?;
    transfer((&mut *second, &b), (&mut *first, &a))?;
    first.copy_in(part(&a, 8), Source::Bytes(&[7; 8]))?;
    transfer((&mut *first, &a), (&mut *second, &b))?;
    drop(b);
    is_alive(first)?;
    is_alive(second)?;
    assert!(read(first, &a) == bytes, "{vendor:?}");
    Ok(())
}

fn is_alive(device: &mut dyn Device) -> Result<(), DeviceError> {
    let last = device.last();
    wait_status(device, last).lost.map_or(Ok(()), Err)
}

fn try_region(device: &mut dyn Device, bytes: &[u8]) -> Result<Region, DeviceError> {
    let region = device.alloc(bytes.len() as u64)?;
    for (at, piece) in (0..).step_by(1 << 16).zip(bytes.chunks(1 << 16)) {
        let to = Span::new(&region, at, piece.len() as u64).unwrap();
        while let Some(fence) = device.backlog() {
            wait_status(device, fence);
        }
        device.copy_in(to, Source::Bytes(piece))?;
    }
    Ok(region)
}

/// Two devices that reach each other, and two without pools.
const TOGETHER: [(&str, &str); 2] = [("FAKE_GPU_DEVICES", "2"), ("FAKE_GPU_PEERS", "all")];
const POOLLESS: [(&str, &str); 3] = [APART[0], APART[1], ("FAKE_GPU_POOLS", "0")];

/// Calls that such copies make, by their names with CUDA and HIP, and which of them to fail.
type Calls = [(&'static str, &'static str, &'static [usize])];

const CALLS_APART: &Calls = &[
    ("cuMemcpyDtoHAsync_v2", "hipMemcpyDtoHAsync", &[1, 2, 4]),
    ("cuMemcpyHtoDAsync_v2", "hipMemcpyHtoDAsync", &[81, 82, 84]),
    ("cuEventRecord", "hipEventRecord", &[3, 4, 5, 6, 7, 8, 9]),
    ("cuStreamWaitEvent", "hipStreamWaitEvent", &[1, 2, 3, 4, 5, 6]),
    ("cuStreamCreate", "hipStreamCreateWithFlags", &[15, 16]),
    ("cuDeviceCanAccessPeer", "hipDeviceCanAccessPeer", &[1, 2]),
    ("cuEventCreate", "hipEventCreateWithFlags", &[3, 4, 5, 6, 7]),
];
const CALLS_TOGETHER: &Calls = &[
    ("cuMemcpyPeerAsync", "hipMemcpyPeerAsync", &[1, 2]),
    ("cuCtxEnablePeerAccess", "hipDeviceEnablePeerAccess", &[1, 2]),
    ("cuMemPoolSetAccess", "hipMemPoolSetAccess", &[1, 2]),
    ("cuDeviceCanAccessPeer", "hipDeviceCanAccessPeer", &[1, 2]),
];
const CALLS_POOLLESS: &Calls =
    &[("cuMemAlloc_v2", "hipMalloc", &[1, 2]), ("cuMemFree_v2", "hipFree", &[1, 2])];

#[test]
fn failure_in_the_middle_leaves_devices_that_work_or_say_why_they_are_lost() {
    let name = "relay::failure_in_the_middle_leaves_devices_that_work_or_say_why_they_are_lost";
    if is_child() {
        return on_fakes(name, &[], fail_both_ways, |_| {});
    }
    let mut cases = Vec::new();
    let sets: [(&[_], _); 3] =
        [(&APART, CALLS_APART), (&TOGETHER, CALLS_TOGETHER), (&POOLLESS, CALLS_POOLLESS)];
    for (environment, calls) in sets {
        for (cuda, hip, places) in calls {
            // A code that refuses, and one with which nobody knows what is left.
            let refusals = places.iter().map(|place| (1, place));
            for (code, place) in refusals.chain(places.first().map(|place| (999, place))) {
                cases.push(("cuda", environment, format!("{cuda}:{code}:nth={place}")));
                cases.push(("hip", environment, format!("{hip}:{code}:nth={place}")));
            }
        }
    }
    std::thread::scope(|scope| {
        for part in cases.chunks(cases.len().div_ceil(4)) {
            scope.spawn(move || {
                for (library, environment, fail) in part {
                    let watch = Watch::new(&[library]);
                    let mut environment = environment.to_vec();
                    environment.push(("FAKE_GPU_FAIL", fail));
                    run(name, library, &environment, &watch);
                    let report = watch.report();
                    assert!(report.is_empty(), "{library} {fail}:\n{report}");
                }
            });
        }
    });
}

fn fail_both_ways(vendor: Vendor) {
    let mut rig = Rig::new(vendor);
    let (mut first, mut second) = (rig.open_at(0), rig.open_at(1));
    let fail = std::env::var("FAKE_GPU_FAIL").unwrap();
    let Err(error) = both_ways(&mut *first, &mut *second, vendor) else {
        return eprintln!("{fail}: nothing was to be seen of it");
    };
    eprintln!("{fail}: {error}");
    for (index, device) in [(0, &mut first), (1, &mut second)] {
        let last = device.last();
        if let Some(lost) = wait_status(&mut **device, last).lost {
            eprintln!("{index} lost: {lost}");
            *device = rig.open_at(index);
        }
    }
    // A way out that has failed stays closed, until there is another.
    if both_ways(&mut *first, &mut *second, vendor).is_err() {
        (first, second) = (rig.open_at(0), rig.open_at(1));
        both_ways(&mut *first, &mut *second, vendor).unwrap();
    }
}

fn session(client: &Client, command: &str, index: u64) -> String {
    command.replace(&client.session(0), &client.session(index))
}

/// A server copies between two devices, alone and in graphs.
pub(crate) fn copies_of_a_server(
    device: &str,
    isolation: &str,
    environment: &[(&str, &str)],
    watch: &Watch,
) {
    let server = crate::server::server(device, isolation, watch);
    let server = environment.iter().fold(server, |server, (name, value)| server.env(name, value));
    let server = server.start();
    let mut client = Client::connect(server.address(), "apart");
    let (bytes, blob, zeros) = (LONG as u64, pattern(LONG), vec![0; LONG]);
    let begin = [client.alloc(1, bytes), client.copy_in(1, &blob)];
    client.batch(&begin, &[&blob]).ok();
    let (here, there) = (client.session(0), client.key(1));
    let copy = format!("Transfer({here}, buffer_num=1, dsession={there}, dbuffer_num=2)");
    let out = session(&client, &client.copy_out(2), 1);
    // What comes behind, in either session, comes after it.
    let commands = [
        session(&client, &client.alloc(2, bytes), 1),
        copy.clone(),
        client.copy_in(1, &zeros),
        out.clone(),
    ];
    assert!(client.batch(&commands, &[&zeros]).ok() == blob, "{device}");
    let graph =
        format!("GraphAlloc({here}, graph_num=1, jit_cache=({copy},), bufs=(), var_vals={{}})");
    let run = format!("GraphExec({here}, graph_num=1, bufs=(), var_vals={{}}, wait=False)");
    let commands = [graph, run.clone(), client.copy_in(1, &blob), out.clone()];
    assert!(client.batch(&commands, &[&blob]).ok() == zeros, "{device}");
    let commands = [run, client.copy_in(1, &zeros), out];
    assert!(client.batch(&commands, &[&zeros]).ok() == blob, "{device}");
    drop(client);
    assert_eq!(server.stop().code(), Some(0));
    watch.assert_clean();
    let by_driver = ["cuMemcpyPeerAsync", "hipMemcpyPeerAsync"].map(|call| watch.calls(call));
    assert_eq!(by_driver, [0, 0]);
}

#[test]
fn server_copies_between_devices_apart_alone_and_in_graphs() {
    for device in ["cuda", "hip"] {
        copies_of_a_server(device, "process", &APART, &Watch::new(&[device]));
    }
}
