//! What tests of devices share: waiting as a shard does, memory as a test wants it.

#![expect(clippy::unwrap_used, reason = "a test ends where its device cannot go on")]

use std::time::{Duration, Instant};

use outboard::device::{Device, DeviceError, Fence, Region, Source, Span, Status};

/// Of one wait; well above what any takes on a busy machine.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// Waits as a shard does: arm, poll once more, listen to the doorbell.
pub(crate) fn wait_status(device: &mut dyn Device, fence: Fence) -> Status {
    let start = Instant::now();
    loop {
        device.arm(fence);
        let status = device.poll(Instant::now());
        if status.completed >= fence || status.lost.is_some() {
            return status;
        }
        assert!(start.elapsed() < WAIT_MAX, "no end: {status:?}");
        listen(device, Duration::from_millis(20));
    }
}

/// Sleeps until the doorbell rings or the time is over, and empties it. True where it has ended.
pub(crate) fn listen(device: &dyn Device, most: Duration) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let bell = device.doorbell().unwrap();
    let most = Timespec::try_from(most).unwrap();
    poll(&mut [PollFd::new(&bell, PollFlags::IN)], Some(&most)).unwrap();
    let mut bytes = [0; 64];
    loop {
        match rustix::io::read(bell, &mut bytes) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(rustix::io::Errno::AGAIN) => return false,
            Err(error) => panic!("{error}"),
        }
    }
}

pub(crate) fn wait(device: &mut dyn Device, fence: Fence) {
    let status = wait_status(device, fence);
    assert!(status.completed >= fence, "{:?}", status.lost);
}

/// Why the device was lost; it is waited for.
pub(crate) fn lost(device: &mut dyn Device) -> DeviceError {
    let last = device.last();
    wait_status(device, Fence(last.0 + 1)).lost.unwrap()
}

pub(crate) fn whole(region: &Region) -> Span<'_> {
    Span::new(region, 0, region.bytes()).unwrap()
}

pub(crate) fn region(device: &mut dyn Device, bytes: &[u8]) -> Region {
    let region = device.alloc(u64::try_from(bytes.len()).unwrap()).unwrap();
    device.copy_in(whole(&region), Source::Bytes(bytes)).unwrap();
    region
}

pub(crate) fn ints(bytes: &[u8]) -> Vec<i32> {
    bytes.as_chunks().0.iter().map(|word| i32::from_ne_bytes(*word)).collect()
}
