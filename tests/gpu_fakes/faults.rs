//! What a fault, a hang and a failing driver cost: the session that they happen to, and nothing of
//! it stays behind.

use std::time::{Duration, Instant};

use outboard::device::gpu::Vendor;
use outboard::device::{
    Device, DeviceError, GraphBuffer, GraphRun, GraphStep, Launch, Source, Status,
};

use crate::rig::*;
use crate::support::fakes::Watch;

/// Kernels, and a word that is said of what they do. HIP has one code for some of them.
const FAULTS: [(&str, &str); 6] = [
    ("illegal_address", "illegal"),
    ("misaligned", ""),
    ("assert_fails", "assert"),
    ("illegal_instruction", ""),
    ("launch_timeout", "time"),
    ("ecc_error", "ECC"),
];

#[test]
fn fault_costs_its_session_and_says_what_it_was() {
    // The fault to try, by its place in the list: with HIP the first ends the process's use of the
    // device.
    let body = |vendor| {
        let mut rig = Rig::new(vendor);
        let chosen = std::env::var("TEST_FAULT").unwrap().parse::<usize>().unwrap();
        for (kernel, what) in &FAULTS[chosen..=chosen] {
            let (mut device, mut other) = (rig.open(), rig.open());
            let kept = region(&mut *other, &pattern(1000));
            let device = &mut *device;
            let fault = load(device, vendor, kernel, "p");
            let touched = region(device, &pattern(5 << 20));
            launch(device, &fault, &[&touched], &[]);
            let error = lost(device);
            let is_lost = *kernel == "ecc_error";
            assert!(matches!(error, DeviceError::Lost { .. }) == is_lost, "{kernel}: {error}");
            assert!(matches!(error, DeviceError::Fault { .. }) != is_lost, "{kernel}: {error}");
            let words = error.to_string().to_lowercase();
            assert!(words.contains(&what.to_lowercase()), "{kernel}: {words}");
            assert!(words.contains("cuda_error") || words.contains("hip"), "{words}");
            while !listen(device, DEADLINE) {}
            for error in [
                device.alloc(1).unwrap_err(),
                device.copy_in(whole(&touched), Source::Bytes(&[0; 8])).unwrap_err(),
                device.read(whole(&touched)).unwrap_err(),
                device.signal().unwrap_err(),
            ] {
                assert_eq!(error.to_string().to_lowercase(), words);
            }
            assert_eq!(device.backlog(), None);
            // Contexts of one device are one with HIP.
            if vendor == Vendor::Nvidia {
                assert!(read(&mut *other, &kept) == pattern(1000), "the other session goes on");
            }
        }
    };
    let name = "faults::fault_costs_its_session_and_says_what_it_was";
    for chosen in 0..FAULTS.len() {
        let chosen = chosen.to_string();
        let environment = [("FAKE_GPU_FAULT", "context"), ("TEST_FAULT", &chosen)];
        clean_on_fakes(name, &environment, body);
        if is_child() {
            return;
        }
    }
}

/// Codes of either driver, and whether the session is lost with them; 714 to 716 are CUDA's only.
const LOSING: [(i32, bool); 16] = [
    (1, false),
    (201, false),
    (214, true),
    (400, false),
    (700, true),
    (701, false),
    (702, true),
    (709, true),
    (710, true),
    (714, true),
    (715, true),
    (716, true),
    (719, true),
    (728, true),
    (801, false),
    (999, true),
];

#[test]
fn every_code_of_a_launch_costs_the_session_or_the_launch_and_is_told_by_its_number() {
    let name =
        "faults::every_code_of_a_launch_costs_the_session_or_the_launch_and_is_told_by_its_number";
    let body = |vendor| {
        let mut rig = Rig::new(vendor);
        for (code, loses) in LOSING {
            let mut device = rig.open();
            let device = &mut *device;
            let program = load(device, vendor, "increment_i32", "p");
            let kept = region(device, &bytes_of(&[1; THREADS]));
            let (buffers, values) = ([whole(&kept)], &[][..]);
            let (program, global, local, timed) = (&program, GRID, BLOCK, false);
            let launch = Launch { program, buffers: &buffers, values, global, local, timed };
            let error = device.launch(&launch).unwrap_err();
            // HIP has one code for what CUDA has several for.
            let told = if vendor == Vendor::Amd && [715, 716].contains(&code) { 719 } else { code };
            assert!(error.to_string().contains(&told.to_string()), "{code}: {error}");
            let is_of_kernel = [700, 702, 710, 719].contains(&told)
                || (vendor == Vendor::Nvidia && (714..=716).contains(&told));
            assert_eq!(matches!(error, DeviceError::Fault { .. }), is_of_kernel, "{error}");
            let lost = device.poll(Instant::now()).lost;
            assert_eq!(lost.map(|lost| lost.to_string()), loses.then(|| error.to_string()));
            if !loses {
                device.launch(&launch).unwrap_err();
            }
        }
    };
    // A launch that is refused alone is tried again, and gets the same answer.
    let codes = LOSING
        .iter()
        .flat_map(|(code, loses)| std::iter::repeat_n(code, if *loses { 1 } else { 2 }));
    let fail = |(at, code): (usize, &i32)| {
        let nth = at + 1;
        format!("cuLaunchKernel:{code}:nth={nth},hipModuleLaunchKernel:{code}:nth={nth}")
    };
    let fail = codes.enumerate().map(fail).collect::<Vec<_>>().join(",");
    clean_on_fakes(name, &[("FAKE_GPU_FAIL", &fail)], body);
}

#[test]
fn kernel_that_does_not_end_is_ended_after_its_time() {
    let body = |vendor| {
        let mut rig = Rig::with_limit(vendor, Duration::from_millis(300));
        let (mut device, mut other) = (rig.open(), rig.open());
        let hang = load(&mut *device, vendor, "hang", "p");
        let region = region(&mut *device, &[0; 256]);
        launch(&mut *device, &hang, &[&region], &[]);
        let begin = Instant::now();
        let status = loop {
            let status = device.poll(Instant::now());
            if status.lost.is_some() {
                break status;
            }
            assert!(begin.elapsed() < DEADLINE);
            listen(&*device, Duration::from_millis(50));
        };
        assert!(begin.elapsed() >= Duration::from_millis(300));
        let Status { lost: Some(DeviceError::Timeout { limit }), .. } = status else {
            panic!("{status:?}")
        };
        assert_eq!(limit, Duration::from_millis(300));
        let start = Instant::now();
        drop((device, region, hang));
        assert!(start.elapsed() < Duration::from_millis(200), "a drop waits for nothing");
        let region = crate::rig::region(&mut *other, &pattern(100));
        assert!(read(&mut *other, &region) == pattern(100));
    };
    let name = "faults::kernel_that_does_not_end_is_ended_after_its_time";
    on_fakes(name, &[], body, assert_hang_ended);
}

/// What the work uses goes with the context. With HIP it keeps its memory: nothing ends it but the
/// process.
fn assert_hang_ended(ran: &Ran) {
    ran.watch.assert_clean_but(&["leak"]);
    let ended = ran.watch.calls("cuCtxDestroy_v2");
    assert!(ran.vendor == Vendor::Amd || ended > 0);
}

#[test]
fn device_dropped_with_a_kernel_that_does_not_end_is_ended_after_its_time() {
    let body = |vendor| {
        let mut rig = Rig::with_limit(vendor, Duration::from_millis(300));
        let mut device = rig.open();
        let hang = load(&mut *device, vendor, "hang", "p");
        let region = region(&mut *device, &[0; 256]);
        launch(&mut *device, &hang, &[&region], &[]);
        let start = Instant::now();
        drop((device, region, hang));
        assert!(start.elapsed() < Duration::from_millis(200), "a drop waits for nothing");
    };
    let name = "faults::device_dropped_with_a_kernel_that_does_not_end_is_ended_after_its_time";
    on_fakes(name, &[], body, assert_hang_ended);
}

#[test]
fn upload_behind_a_kernel_that_does_not_end_is_given_up_with_it() {
    let body = |vendor| {
        let mut rig = Rig::with_limit(vendor, Duration::from_millis(300));
        let mut device = rig.open();
        let hang = load(&mut *device, vendor, "hang", "p");
        let region = device.alloc(20 << 20).unwrap();
        launch(&mut *device, &hang, &[&region], &[]);
        let staged = rig.staged(&pattern(20 << 20));
        device.copy_in(whole(&region), Source::Staged(&staged)).unwrap();
        let begin = Instant::now();
        while device.poll(Instant::now()).lost.is_none() {
            assert!(begin.elapsed() < DEADLINE);
            listen(&*device, Duration::from_millis(50));
        }
        // As the engine does where a device is lost.
        drop(staged);
        drop((device, region, hang));
    };
    let name = "faults::upload_behind_a_kernel_that_does_not_end_is_given_up_with_it";
    on_fakes(name, &[], body, assert_hang_ended);
}

#[test]
fn work_that_waits_for_another_device_is_not_late() {
    let body = |vendor| {
        let mut rig = Rig::with_limit(vendor, Duration::from_secs(1));
        let (mut first, mut second) = (rig.open(), rig.open());
        let spin = load(&mut *first, vendor, "spin_us_", "pi");
        let region = region(&mut *first, &[0; 256]);
        for _ in 0..6 {
            launch(&mut *first, &spin, &[&region], &[300_000]);
        }
        let point = first.signal().unwrap();
        let fence = second.wait(&point).unwrap();
        let begin = Instant::now();
        while first.poll(Instant::now()).completed < first.last() {
            assert!(begin.elapsed() < DEADLINE);
            let status = second.poll(Instant::now());
            assert!(status.lost.is_none(), "{status:?}");
            listen(&*second, Duration::from_millis(20));
        }
        assert!(begin.elapsed() > Duration::from_secs(1));
        wait(&mut *second, fence);
    };
    clean_on_fakes("faults::work_that_waits_for_another_device_is_not_late", &[], body);
}

/// Something of everything.
fn everything(device: &mut dyn Device, vendor: Vendor, rig: &Rig) -> Result<(), DeviceError> {
    // Waits for work; what it waits for may be lost.
    fn done(device: &mut dyn Device) -> Result<(), DeviceError> {
        let last = device.last();
        wait_status(device, last).lost.map_or(Ok(()), Err)
    }
    let program = device.load("increment_i32", &image_with(vendor, "increment_i32", "0 0", "p"))?;
    done(device)?;
    device.loaded(&program)?;
    let (a, b) = (device.alloc(1 << 20)?, device.alloc(1 << 20)?);
    device.copy_in(whole(&a), Source::Bytes(&pattern(1 << 20)))?;
    let staged = rig.staged(&pattern(1 << 20));
    device.copy_in(whole(&b), Source::Staged(&staged))?;
    done(device)?;
    let (program, buffers, values, global, local) = (&program, &[whole(&a)], &[], GRID, BLOCK);
    let fence = device.launch(&Launch { program, buffers, values, global, local, timed: true })?;
    device.copy(whole(&b), whole(&a))?;
    done(device)?;
    device.elapsed(fence)?;
    let inputs = [GraphBuffer::Input(0)];
    let (to, from) = (GraphBuffer::Fixed(whole(&b)), GraphBuffer::Input(0));
    let steps = [step(program, &inputs, &[]), GraphStep::Copy { to, from, bytes: 1 << 20 }];
    let graph = device.build_graph(&steps)?;
    let other = device.alloc(1 << 20)?;
    for input in [&a, &other] {
        let run = GraphRun { inputs: &[whole(input)], ints: &[], timed: false };
        device.run_graph(&graph, &run)?;
        done(device)?;
    }
    let point = device.signal()?;
    device.wait(&point)?;
    let (_, piece) = device.read(whole(&b))?;
    done(device)?;
    drop((a, piece, graph));
    device.poll(Instant::now());
    done(device)
}

/// Every call by its names: CUDA's, HIP's. None where one of them has none.
const CALLS: [(&str, &str); 42] = [
    ("cuCtxCreate_v2", "hipSetDevice"),
    ("cuCtxSetCurrent", "hipSetDevice"),
    ("cuCtxDestroy_v2", ""),
    ("cuCtxPopCurrent_v2", ""),
    ("cuMemGetInfo_v2", "hipMemGetInfo"),
    ("cuStreamCreate", "hipStreamCreateWithFlags"),
    ("cuStreamDestroy_v2", "hipStreamDestroy"),
    ("cuStreamQuery", "hipStreamQuery"),
    ("cuStreamSynchronize", "hipStreamSynchronize"),
    ("cuStreamWaitEvent", "hipStreamWaitEvent"),
    ("cuEventCreate", "hipEventCreateWithFlags"),
    ("cuEventDestroy_v2", "hipEventDestroy"),
    ("cuEventRecord", "hipEventRecord"),
    ("cuEventQuery", "hipEventQuery"),
    ("cuEventElapsedTime", "hipEventElapsedTime"),
    ("cuMemPoolCreate", "hipMemPoolCreate"),
    ("cuMemPoolDestroy", "hipMemPoolDestroy"),
    ("cuMemPoolSetAttribute", "hipMemPoolSetAttribute"),
    ("cuMemAllocFromPoolAsync", "hipMallocFromPoolAsync"),
    ("cuMemFreeAsync", "hipFreeAsync"),
    ("cuMemsetD8Async", "hipMemsetAsync"),
    ("cuMemHostRegister_v2", "hipHostRegister"),
    ("cuMemHostUnregister", "hipHostUnregister"),
    ("cuMemcpyHtoDAsync_v2", "hipMemcpyHtoDAsync"),
    ("cuMemcpyDtoHAsync_v2", "hipMemcpyDtoHAsync"),
    ("cuMemcpyDtoDAsync_v2", "hipMemcpyDtoDAsync"),
    ("cuModuleLoadDataEx", "hipModuleLoadData"),
    ("cuModuleUnload", "hipModuleUnload"),
    ("cuModuleGetFunction", "hipModuleGetFunction"),
    ("cuFuncGetAttribute", "hipFuncGetAttribute"),
    ("cuLaunchKernel", "hipModuleLaunchKernel"),
    ("cuLaunchHostFunc", "hipLaunchHostFunc"),
    ("cuGraphCreate", "hipGraphCreate"),
    ("cuGraphDestroy", "hipGraphDestroy"),
    ("cuGraphAddKernelNode_v2", "hipGraphAddKernelNode"),
    ("cuGraphAddMemcpyNode", "hipGraphAddMemcpyNode1D"),
    ("cuGraphInstantiateWithFlags", "hipGraphInstantiateWithFlags"),
    ("cuGraphExecDestroy", "hipGraphExecDestroy"),
    ("cuGraphExecKernelNodeSetParams_v2", "hipGraphExecKernelNodeSetParams"),
    ("cuGraphExecMemcpyNodeSetParams", "hipGraphExecMemcpyNodeSetParams1D"),
    ("cuGraphLaunch", "hipGraphLaunch"),
    ("cuCtxGetCurrent", ""),
];

/// Codes that are no fault (out of memory, unknown) and one that is.
const CODES: [&str; 3] = ["2", "999", "700:sticky"];

#[test]
fn failure_of_any_call_leaves_a_session_that_works_or_says_why_it_is_lost() {
    let name = "faults::failure_of_any_call_leaves_a_session_that_works_or_says_why_it_is_lost";
    if is_child() {
        return on_fakes(name, &[], try_everything, |_| {});
    }
    let cuda = CALLS.iter().map(|(cuda, _)| ("cuda", *cuda));
    let calls = cuda.chain(CALLS.iter().map(|(_, hip)| ("hip", *hip)));
    let calls: Vec<_> = calls.filter(|(_, call)| !call.is_empty()).collect();
    // A good part of each run is waiting for the fakes' pauses.
    std::thread::scope(|scope| {
        for part in calls.chunks(calls.len().div_ceil(4)) {
            scope.spawn(move || {
                part.iter().for_each(|(library, call)| fail_at(name, library, call, &[]))
            });
        }
    });
}

/// Runs a test with failures of a call of each kind.
pub(crate) fn fail_at(name: &str, library: &str, call: &str, more: &[(&str, &str)]) {
    for code in CODES {
        // Without a context there is none to lose, and not every call can lack memory.
        let makes = ["Alloc", "Create", "Malloc", "Register", "Load", "Instantiate", "Set"];
        let is_of_contexts = call.contains("Ctx") || call == "hipSetDevice";
        if (code == "2" && !makes.iter().any(|word| call.contains(word)))
            || (code.contains("sticky") && is_of_contexts)
        {
            continue;
        }
        let fail = format!("{call}:{code}");
        let watch = Watch::new(&[library]);
        let environment = [&[("FAKE_GPU_FAIL", fail.as_str())], more].concat();
        run(name, library, &environment, &watch);
        let report = watch.report();
        assert!(report.is_empty(), "{library} {fail}:\n{report}");
    }
}

pub(crate) fn try_everything(vendor: Vendor) {
    let mut rig = Rig::new(vendor);
    let mut device = rig.open();
    let device = &mut *device;
    let fail = std::env::var("FAKE_GPU_FAIL").unwrap();
    match everything(device, vendor, &rig) {
        Ok(()) => eprintln!("{fail}: nothing was to be seen of it"),
        Err(error) => {
            let last = device.last();
            let status = wait_status(device, last);
            match status.lost {
                Some(lost) => eprintln!("{fail}: {error}; lost: {lost}"),
                None => {
                    eprintln!("{fail}: {error}");
                    everything(device, vendor, &rig).unwrap();
                }
            }
        }
    }
    // A fault may be the device's end with HIP, whose contexts are one.
    if vendor == Vendor::Nvidia || !fail.contains("sticky") {
        let mut other = rig.open();
        everything(&mut *other, vendor, &rig).unwrap();
    }
}
