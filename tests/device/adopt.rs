//! Memory in which bytes arrived, as a buffer's memory.

use std::sync::Arc;
use std::time::Instant;

use outboard::device::shared::{Heap, Range};
use outboard::device::{Device, Source};

use crate::rig::{ADD, Rig, ints, launch, load, memory_bytes, object, read, region, until, whole};

/// A filled range in a segment of its own.
fn staged(staging: &Heap, bytes: &[u8]) -> Range {
    let mut range = staging.reserve(bytes.len() as u64).unwrap();
    range.charge(bytes.len() as u64).unwrap();
    range.slice_mut().copy_from_slice(bytes);
    range
}

#[test]
fn adopted_memory_is_where_kernels_read_and_write() {
    let Some(add) = object(ADD) else { return };
    let rig = Rig::new();
    let mut device = rig.open();
    let program = load(&mut device, &add);
    let staging = Heap::new(Arc::clone(&rig.config.budget));
    let old = device.alloc(64 << 20).unwrap();
    let blob = staged(&staging, &1_i32.to_ne_bytes().repeat(16 << 20));
    let (address, before) = (blob.slice().as_ptr(), memory_bytes());
    let new = device.adopt(&old, &blob).expect("nothing is in the way");
    drop((old, blob));
    assert_eq!(device.read(whole(&new)).unwrap().1.slice().as_ptr(), address);
    launch(&mut device, &program, &[&new, &new], &[5]);
    let sums = ints(&read(&mut device, &new));
    assert_eq!((sums[0], sums[63], sums[64]), (7, 7, 1));
    assert!(memory_bytes() < before + (8 << 20), "no page is there twice");
    drop((device, program, new, staging));
    rig.finish();
}

#[test]
fn replaced_memory_is_used_again_only_when_the_queue_is_past_it() {
    let Some(forever) = object("void f(volatile int* p) { while (!*p) {} }") else { return };
    let rig = Rig::new();
    let (mut first, mut second) = (rig.open(), rig.open());
    let staging = Heap::new(Arc::clone(&rig.config.budget));
    let bytes = 1 << 20;
    let fresh = second.alloc(1 << 20).unwrap();
    let one = second.adopt(&fresh, &staged(&staging, &vec![1; bytes])).unwrap();
    let (other, go) = (second.alloc(1 << 20).unwrap(), region(&mut first, &[0; 4]));
    // The second device's queue stands still until the first device is gone.
    let program = load(&mut first, &forever);
    launch(&mut first, &program, &[&go], &[]);
    let point = first.signal().unwrap();
    second.wait(&point).unwrap();
    second.copy(whole(&other), whole(&one)).unwrap();
    let two = second.adopt(&one, &staged(&staging, &vec![2; bytes])).unwrap();
    drop((one, fresh));
    second.poll(Instant::now());
    assert_eq!(staging.kept_bytes(), 0, "a queued copy still reads it");
    drop(first);
    assert_eq!(read(&mut second, &other), vec![1; bytes]);
    assert_eq!(read(&mut second, &two), vec![2; bytes]);
    until("the old memory is free", || {
        second.poll(Instant::now());
        staging.kept_bytes() == 1 << 20
    });
    drop((second, other, two, go, program, point, staging));
    rig.finish();
}

#[test]
fn memory_that_a_worker_could_only_read_is_written_after_its_adoption() {
    let Some(add) = object(ADD) else { return };
    let rig = Rig::new();
    let mut device = rig.open();
    let program = load(&mut device, &add);
    let staging = Heap::new(Arc::clone(&rig.config.budget));
    let blob = staged(&staging, &3_i32.to_ne_bytes().repeat(1 << 18));
    let (copy, old) = (device.alloc(1 << 20).unwrap(), device.alloc(1 << 20).unwrap());
    let fence = device.copy_in(whole(&copy), Source::Staged(&blob)).unwrap();
    crate::rig::wait(&mut device, fence);
    let new = device.adopt(&old, &blob).unwrap();
    launch(&mut device, &program, &[&new, &new], &[1]);
    assert_eq!(ints(&read(&mut device, &new))[0], 7);
    assert_eq!(ints(&read(&mut device, &copy))[0], 3);
    drop((device, program, copy, old, new, blob, staging));
    rig.finish();
}

#[test]
fn memory_that_is_not_staged_whole_is_not_adopted() {
    let rig = Rig::new();
    let (mut device, mut other) = (rig.open(), rig.open());
    let staging = Heap::new(Arc::clone(&rig.config.budget));
    let region = device.alloc(1 << 20).unwrap();
    let foreign = other.alloc(1 << 20).unwrap();
    let short = staging.alloc(1 << 16).unwrap();
    let half = staging.reserve(1 << 20).unwrap();
    let whole_blob = staged(&staging, &[1; 1 << 20]);
    assert!(device.adopt(&region, &short).is_none(), "it shares a segment");
    assert!(device.adopt(&region, &half).is_none(), "it is not there yet");
    assert!(device.adopt(&foreign, &whole_blob).is_none(), "the region is another device's");
    let adopted = device.adopt(&region, &whole_blob).unwrap();
    assert!(device.adopt(&region, &whole_blob).is_none(), "it was adopted before");
    drop((device, other, region, foreign, adopted, short, half, whole_blob, staging));
    rig.finish();
}
