//! Copies between devices of two worker processes through memory that the two share.

use outboard::device::gpu::Vendor;
use outboard::device::{Device, Platform, Program, Region, Source, Span};

use crate::apart::{Server, apart_on_fakes};
use crate::rig::*;

/// Two devices, of a runtime that shares memory.
const TWO: [(&str, &str); 2] = [("FAKE_GPU_DEVICES", "2"), ("FAKE_HIP_VERSION", "70253211")];
/// Of a copy: three pieces, the last of which is not whole.
const COUNT: usize = 9_000_001;
const PIECES: usize = 3;

/// Two sessions, and a kernel of the first that adds to the first elements.
struct Pair {
    server: Server,
    first: Box<dyn Device>,
    second: Box<dyn Device>,
    increment: Program,
}

impl Pair {
    fn new(vendor: Vendor) -> Pair {
        Pair::of(vendor, [0, 1], &[])
    }

    fn of(vendor: Vendor, devices: [u64; 2], more: &[(&str, &str)]) -> Pair {
        let mut server = Server::with(vendor, DEADLINE, more);
        let [mut first, second] = devices.map(|index| server.platform.open(index).unwrap());
        let increment = load(&mut *first, vendor, "increment_i32", "pi");
        Pair { server, first, second, increment }
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

    fn finish(self) {
        let Pair { server, first, second, increment } = self;
        drop((first, second, increment));
        server.finish();
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
    apart_on_fakes(name, &TWO, body, |ran| {
        ran.watch.assert_clean();
        // The first goes the other way. Each piece is copied out and in.
        assert_eq!(calls(ran), [1, 1, 2 * (3 * PIECES + 1)], "{:?}", ran.vendor);
    });
}
