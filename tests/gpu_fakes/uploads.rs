//! Long uploads out of staging memory: copied at first, and taken from where they are once their
//! segment has come back.

use outboard::device::shared::{Heap, Range};
use outboard::device::{Device, Region, Source};

use crate::rig::*;

const BYTES: usize = 9_000_001;

/// Calls by which a device opens: its own pinned memory.
const OPENING: usize = 7;

/// Bytes in staging memory that a client's next long blob gets again.
fn warm(staging: &Heap, bytes: &[u8]) -> Range {
    let length = bytes.len() as u64;
    let mut range = staging.reserve(length).unwrap();
    range.charge(length).unwrap();
    range.slice_mut().copy_from_slice(bytes);
    range
}

fn upload(device: &mut dyn Device, staging: &Heap, to: &Region, bytes: &[u8]) {
    let range = warm(staging, bytes);
    if let Some(fence) = device.backlog() {
        wait(device, fence);
    }
    let fence = device.copy_in(whole(to), Source::Staged(&range)).unwrap();
    wait(device, fence);
}

/// No two pages alike, nor two numbers' pages.
fn numbered(number: u8) -> Vec<u8> {
    let mut bytes = vec![number; BYTES];
    let pages = bytes.chunks_mut(4096).zip((0..=250).cycle());
    pages.for_each(|(page, index)| page[0] = index);
    bytes
}

/// Uploads the same length again and again, as a client does that feeds a loop.
pub(crate) fn loop_of_uploads(device: &mut dyn Device, staging: &Heap) {
    let to = device.alloc(BYTES as u64).unwrap();
    for number in 0..5 {
        upload(device, staging, &to, &numbered(number));
        assert!(read(device, &to) == numbered(number), "upload {number}");
    }
}

#[test]
fn segment_that_comes_back_is_registered_once_and_copied_from_where_it_is() {
    let name = "uploads::segment_that_comes_back_is_registered_once_and_copied_from_where_it_is";
    let body = |vendor| {
        let mut rig = Rig::new(vendor);
        let mut device = rig.open();
        loop_of_uploads(&mut *device, &rig.staging);
    };
    on_fakes(name, &[], body, |ran| {
        ran.watch.assert_clean();
        assert_eq!(ran.calls("cuMemHostRegister_v2", "hipHostRegister"), OPENING + 1);
        assert_eq!(ran.calls("cuMemHostUnregister", "hipHostUnregister"), OPENING + 1);
        // Three pieces the first time, and one copy each of the four times after.
        assert_eq!(ran.calls("cuMemcpyHtoDAsync_v2", "hipMemcpyHtoDAsync"), 3 + 4);
    });
}

#[test]
fn segment_that_cannot_be_registered_is_copied_as_before() {
    let name = "uploads::segment_that_cannot_be_registered_is_copied_as_before";
    let fail = "cuMemHostRegister_v2:2:nth=8,hipHostRegister:2:nth=8";
    let body = |vendor| {
        let mut rig = Rig::new(vendor);
        let mut device = rig.open();
        loop_of_uploads(&mut *device, &rig.staging);
    };
    on_fakes(name, &[("FAKE_GPU_FAIL", fail)], body, |ran| {
        ran.watch.assert_clean();
        assert_eq!(ran.calls("cuMemHostRegister_v2", "hipHostRegister"), OPENING + 1);
        assert_eq!(ran.calls("cuMemcpyHtoDAsync_v2", "hipMemcpyHtoDAsync"), 3 * 5);
    });
}

#[test]
fn segment_that_two_sessions_use_is_registered_by_one() {
    let name = "uploads::segment_that_two_sessions_use_is_registered_by_one";
    let body = |vendor| {
        let mut rig = Rig::new(vendor);
        let (mut first, mut second) = (rig.open(), rig.open());
        loop_of_uploads(&mut *first, &rig.staging);
        loop_of_uploads(&mut *second, &rig.staging);
        // What the first has registered ends with it.
        drop(first);
        loop_of_uploads(&mut *second, &rig.staging);
    };
    on_fakes(name, &[], body, |ran| {
        ran.watch.assert_clean();
        assert_eq!(ran.calls("cuMemHostRegister_v2", "hipHostRegister"), 2 * OPENING + 1);
    });
}

#[test]
fn registration_ends_before_its_memory_does_and_with_its_device() {
    let name = "uploads::registration_ends_before_its_memory_does_and_with_its_device";
    clean_on_fakes(name, &[], |vendor| {
        for is_device_first in [true, false] {
            let mut rig = Rig::new(vendor);
            let mut device = rig.open();
            loop_of_uploads(&mut *device, &rig.staging);
            // One that nobody waits for.
            let to = device.alloc(BYTES as u64).unwrap();
            let range = warm(&rig.staging, &numbered(9));
            device.copy_in(whole(&to), Source::Staged(&range)).unwrap();
            if is_device_first {
                drop(device);
                settle();
                drop((range, rig));
            } else {
                drop((range, rig));
                assert!(read(&mut *device, &to) == numbered(9));
                let other = Rig::new(vendor);
                loop_of_uploads(&mut *device, &other.staging);
            }
        }
    });
}

#[test]
fn fault_during_a_direct_upload_leaves_nothing() {
    let name = "uploads::fault_during_a_direct_upload_leaves_nothing";
    clean_on_fakes(name, &[], |vendor| {
        let mut rig = Rig::new(vendor);
        let mut device = rig.open();
        loop_of_uploads(&mut *device, &rig.staging);
        let illegal = load(&mut *device, vendor, "illegal_address", "p");
        let to = device.alloc(BYTES as u64).unwrap();
        let other = device.alloc(4 * THREADS as u64).unwrap();
        let range = warm(&rig.staging, &numbered(9));
        device.copy_in(whole(&to), Source::Staged(&range)).unwrap();
        launch(&mut *device, &illegal, &[&other], &[]);
        lost(&mut *device);
        drop((range, rig));
    });
}
