//! A worker's end by itself: it does what a test's packets say, without a process.

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::*;
use crate::device::Platform;
use crate::device::null::NullPlatform;
use crate::device::ring::Producer;
use crate::device::segment::{Mapping, create_sealed};

fn socket_pair() -> (OwnedFd, OwnedFd) {
    let (family, kind) = (AddressFamily::UNIX, SocketType::STREAM);
    rustix::net::socketpair(family, kind, SocketFlags::CLOEXEC, None).unwrap()
}

/// Has a worker do what these packets say, the first of which takes the end of a channel.
fn perform(packets: &[Packet<'_>]) -> Result<(), End> {
    let (ring, fd) = Ring::create().unwrap();
    let mut producer = Producer::new(ring);
    let ((ours, theirs), (near, _far)) = (socket_pair(), socket_pair());
    imports::send(&ours, b"\0", &[near.as_fd()]).unwrap();
    let mut push = |packet: &Packet<'_>| {
        let mut words = Vec::new();
        packet.encode(&mut words);
        let number = producer.push_parts(&[&words], 0).unwrap();
        producer.publish();
        number
    };
    let last = packets.iter().map(&mut push).last().unwrap();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let ring = Ring::open(&fd).unwrap();
            let page = create_sealed("outboard-test", to_usize(PAGE_BYTES)).unwrap();
            let page = Mapping::open(&page, to_usize(PAGE_BYTES), true).unwrap();
            let mut device = NullPlatform::new(1, Arc::new(Budget::new(1 << 30))).open(0).unwrap();
            Driven::new(theirs.as_fd(), &ring, Clock::of(page), &mut *device).run(&is_over)
        });
        while producer.completed() < last && !worker.is_finished() {
            producer.look().unwrap();
            std::thread::yield_now();
        }
        is_over.store(true, Ordering::Relaxed);
        // It may sleep until there is another one.
        let mut words = Vec::new();
        Packet::Signal.encode(&mut words);
        producer.push_parts(&[&words], 0).unwrap();
        producer.publish();
        worker.join().unwrap()
    })
}

#[test]
fn copy_to_memory_that_could_not_be_shared_goes_nowhere() {
    let bytes = 1 << 20;
    let [to, from] = [0, 1].map(|segment| Address::new(segment, 0));
    // As where the other end says that it has got this device's memory, which has none to share.
    let outcome = perform(&[
        Packet::Share { segment: 0, bytes },
        Packet::Alloc { segment: 1, bytes },
        Packet::Copy { to, from, bytes },
        Packet::Signal,
    ]);
    assert!(outcome.is_ok(), "{outcome:?}");
}
