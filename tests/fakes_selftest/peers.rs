//! Several devices: who reaches whose memory, and what the driver does where nobody does.

use std::ffi::{c_int, c_uint};

use super::driver::{Cuda, Handle, call, ok, packed};
use super::scenario;

fn can_access(cuda: &Cuda, device: c_int, peer: c_int) -> c_int {
    let mut can = -1;
    let place = &raw mut can;
    let code = call!(cuda.library,
        cuDeviceCanAccessPeer(place => *mut c_int, device => c_int, peer => c_int));
    assert_eq!(code, 0);
    can
}

fn enable(cuda: &Cuda, peer: &Cuda) -> c_int {
    let peer = peer.context;
    call!(cuda.library, cuCtxEnablePeerAccess(peer => Handle, 0 => c_uint))
}

fn allow(cuda: &Cuda, pool: Handle, device: c_int) -> c_int {
    let map = [1, device, 3];
    call!(cuda.library, cuMemPoolSetAccess(
        pool => Handle, map.as_ptr() => *const c_int, 1 => usize))
}

/// Fills memory of the first device and copies it to the second, whose stream waits for an event.
fn copy_between(zero: &Cuda, one: &Cuda) {
    let up = one.pinned(4);
    let target = one.alloc(16);
    let target_stream = one.stream();
    zero.make_current();
    let (source, stream, done) = (zero.alloc(16), zero.stream(), zero.event());
    let (module, iota) = zero.kernel("iota_", "p");
    ok(zero.launch(iota, (1, 4), &packed(&[source], &[]), stream));
    ok(call!(zero.library, cuEventRecord(done => Handle, stream => Handle)));
    one.make_current();
    ok(call!(one.library,
        cuStreamWaitEvent(target_stream => Handle, done => Handle, 0 => c_uint)));
    ok(call!(one.library, cuMemcpyPeerAsync(
        target => u64, one.context => Handle, source => u64, zero.context => Handle,
        16 => usize, target_stream => Handle)));
    ok(one.copy_out(up, target, target_stream));
    ok(one.synchronize(target_stream));
    assert_eq!(up, [0, 1, 2, 3]);
    ok(one.free(target));
    ok(one.unpin(up));
    one.drop_stream(target_stream);
    zero.make_current();
    ok(zero.free(source));
    zero.unload(module);
    ok(call!(zero.library, cuEventDestroy_v2(done => Handle)));
    zero.drop_stream(stream);
}

#[test]
fn peers_are_those_that_the_environment_names() {
    let variables = [("FAKE_GPU_DEVICES", "3"), ("FAKE_GPU_PEERS", "0-1")];
    let Some(watch) = scenario(&["cuda"], &variables, || {
        let [zero, one, two] = [0, 1, 2].map(Cuda::on);
        for (a, b, expected) in [(0, 1, 1), (1, 0, 1), (0, 2, 0), (1, 1, 0)] {
            assert_eq!(can_access(&zero, a, b), expected);
        }
        zero.make_current();
        assert_eq!(enable(&zero, &one), 0);
        assert_eq!(enable(&zero, &one), 704);
        assert_eq!(enable(&zero, &two), 217);
        let pool = zero.pool(0);
        assert_eq!(allow(&zero, pool, 1), 0);
        assert_eq!(allow(&zero, pool, 2), 101);
        zero.drop_pool(pool);
        for context in [zero, one, two] {
            context.end();
        }
    }) else {
        return;
    };
    watch.assert_clean();
}

#[test]
fn copy_between_devices_without_access_goes_through_the_driver() {
    let variables = [("FAKE_GPU_DEVICES", "2"), ("FAKE_GPU_PEERS", "none")];
    let Some(watch) = scenario(&["cuda"], &variables, || {
        let [zero, one] = [0, 1].map(Cuda::on);
        copy_between(&zero, &one);
        zero.end();
        one.end();
    }) else {
        return;
    };
    watch.assert_clean();
}

#[test]
fn kernel_reaches_a_pool_of_another_device_that_allows_it() {
    let Some(watch) = scenario(&["cuda"], &[("FAKE_GPU_DEVICES", "2")], || {
        let zero = Cuda::on(0);
        let (pool, stream) = (zero.pool(0), zero.stream());
        assert_eq!(allow(&zero, pool, 1), 0);
        let at = zero.pool_alloc(pool, 16, stream);
        ok(zero.synchronize(stream));
        let one = Cuda::on(1);
        let (own, (module, fill)) = (one.stream(), one.kernel("fill_", "pi"));
        ok(one.launch(fill, (1, 4), &packed(&[at], &[1]), own));
        ok(one.synchronize(own));
        one.unload(module);
        one.drop_stream(own);
        one.end();
        zero.make_current();
        ok(zero.pool_free(at, stream));
        ok(zero.synchronize(stream));
        zero.drop_pool(pool);
        zero.drop_stream(stream);
        zero.end();
    }) else {
        return;
    };
    watch.assert_clean();
}

#[test]
fn copy_with_the_wrong_context_is_reported() {
    let Some(watch) = scenario(&["cuda"], &[("FAKE_GPU_DEVICES", "2")], || {
        let [zero, one] = [0, 1].map(Cuda::on);
        let (to, stream) = (one.alloc(16), one.stream());
        zero.make_current();
        let from = zero.alloc(16);
        one.make_current();
        let code = call!(one.library, cuMemcpyPeerAsync(
            to => u64, zero.context => Handle, from => u64, zero.context => Handle,
            16 => usize, stream => Handle));
        assert_eq!(code, 1);
    }) else {
        return;
    };
    assert!(watch.report().contains("is not memory of device 0"), "{}", watch.report());
}
