//! Memory that network cards can be told of: a device that has it works as any other does.

use std::time::Instant;

use outboard::device::gpu::Vendor;

use crate::faults::{fail_at, try_everything};
use crate::model::play;
use crate::rig::*;
use crate::several::{graph_that_copies, there_and_back};
use crate::support::device::region as region_of;

/// As [`clean_on_fakes`], and nothing came from a pool.
fn clean(name: &str, more: &[(&str, &str)], body: impl FnOnce(Vendor)) {
    let environment = [&EXPORTS[..], more].concat();
    on_fakes(name, &environment, body, |ran| {
        ran.watch.assert_clean();
        assert_eq!(ran.calls("cuMemPoolCreate", "hipMemPoolCreate"), 0);
        assert!(ran.calls("cuMemCreate", "hipMemCreate") > 0);
    });
}

#[test]
fn random_work_does_what_the_model_says() {
    for seed in ["5", "6"] {
        let name = "arena::random_work_does_what_the_model_says";
        clean(name, &[("FAKE_GPU_SEED", seed), ("TEST_SEED", seed)], |vendor| {
            play(vendor, std::env::var("TEST_SEED").unwrap().parse().unwrap());
        });
        if is_child() {
            return;
        }
    }
}

#[test]
fn other_devices_copy_from_it_whether_they_reach_it_or_not() {
    for peers in ["all", "none"] {
        let name = "arena::other_devices_copy_from_it_whether_they_reach_it_or_not";
        clean(name, &[("FAKE_GPU_DEVICES", "2"), ("FAKE_GPU_PEERS", peers)], |vendor| {
            there_and_back(vendor);
            // The engine asks for none that copies from where it does not reach.
            if std::env::var("FAKE_GPU_PEERS").unwrap() == "all" {
                graph_that_copies(vendor);
            }
        });
        if is_child() {
            return;
        }
    }
}

#[test]
fn short_buffers_share_a_piece_and_a_freed_one_is_used_again() {
    let name = "arena::short_buffers_share_a_piece_and_a_freed_one_is_used_again";
    let body = |vendor| {
        let mut rig = Rig::new(vendor);
        let mut device = rig.open();
        let device = &mut *device;
        let mut kept: Vec<_> = (0..200).map(|_| device.alloc(1000).unwrap()).collect();
        for turn in 0..10 {
            drop(kept.remove(turn));
            kept.insert(turn, region_of(device, &[7; 1000]));
            drop(region_of(device, &pattern(20 << 20)));
            let fresh = device.alloc(20 << 20).unwrap();
            assert!(read(device, &fresh) == vec![0; 20 << 20], "turn {turn}");
        }
        assert!(kept[..10].iter().all(|region| read(device, region) == [7; 1000]));
    };
    on_fakes(name, &EXPORTS, body, |ran| {
        ran.watch.assert_clean();
        assert_eq!(ran.calls("cuMemCreate", "hipMemCreate"), 1);
    });
}

#[test]
fn memory_that_is_free_makes_room_for_buffers_of_another_length() {
    let name = "arena::memory_that_is_free_makes_room_for_buffers_of_another_length";
    clean(name, &[], |vendor| {
        let mut rig = Rig::new(vendor);
        let mut device = rig.open();
        let hold = device.alloc(1000).unwrap();
        for megabytes in [600, 900, 700, 950] {
            let region = device.alloc(megabytes << 20).unwrap();
            drop(region);
        }
        // What is left is less than a piece.
        let rest = device.alloc((1 << 30) - (40 << 20)).unwrap();
        let short: Vec<_> = (0..3).map(|_| device.alloc(1 << 20).unwrap()).collect();
        assert!(device.alloc(100 << 20).unwrap_err().is_shortage());
        drop((hold, rest, short));
    });
}

#[test]
fn more_than_is_kept_goes_back_to_the_driver() {
    let name = "arena::more_than_is_kept_goes_back_to_the_driver";
    let body = |vendor| {
        let mut rig = Rig::new(vendor);
        let mut device = rig.open();
        for _ in 0..3 {
            drop(device.alloc(200 << 20).unwrap());
            device.poll(Instant::now());
            wait_for_all(&mut *device);
            device.poll(Instant::now());
        }
        let region = device.alloc(40 << 20).unwrap();
        drop(region);
        wait_for_all(&mut *device);
        assert!(device.alloc(40 << 20).is_ok());
    };
    on_fakes(name, &EXPORTS, body, |ran| {
        ran.watch.assert_clean();
        assert_eq!(ran.calls("cuMemCreate", "hipMemCreate"), 4, "what is kept is used again");
    });
}

#[test]
fn buffers_memory_has_a_descriptor_and_that_of_pools_has_none() {
    let name = "arena::buffers_memory_has_a_descriptor_and_that_of_pools_has_none";
    for environment in [&EXPORTS[..], &EXPORTS[1..]] {
        clean_on_fakes(name, environment, |vendor| {
            let mut rig = Rig::new(vendor);
            let mut device = rig.open();
            let regions: Vec<_> = (0..3).map(|_| device.alloc(1000).unwrap()).collect();
            for region in &regions {
                let export = device.export(whole(region)).unwrap();
                assert_eq!(export.is_some(), exports());
                let Some(memory) = export.and_then(outboard::device::export::Export::take) else {
                    continue;
                };
                assert!(memory.offset() < 4096 && memory.bytes() == 1000, "{memory:?}");
            }
        });
        if is_child() {
            return;
        }
    }
}

/// The calls that make such memory, and those that give it back.
const CALLS: [(&str, &str); 8] = [
    ("cuMemCreate", "hipMemCreate"),
    ("cuMemRelease", "hipMemRelease"),
    ("cuMemAddressReserve", "hipMemAddressReserve"),
    ("cuMemAddressFree", "hipMemAddressFree"),
    ("cuMemMap", "hipMemMap"),
    ("cuMemUnmap", "hipMemUnmap"),
    ("cuMemSetAccess", "hipMemSetAccess"),
    ("cuStreamSynchronize", "hipStreamSynchronize"),
];

#[test]
fn failure_of_any_call_leaves_a_session_that_works_or_says_why_it_is_lost() {
    let name = "arena::failure_of_any_call_leaves_a_session_that_works_or_says_why_it_is_lost";
    if is_child() {
        return on_fakes(name, &[], try_everything, |_| {});
    }
    for (cuda, hip) in CALLS {
        fail_at(name, "cuda", cuda, &EXPORTS);
        fail_at(name, "hip", hip, &EXPORTS);
    }
}
