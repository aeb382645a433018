//! How devices end, and what is left of them.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use outboard::device::isolated::{Isolated, WorkerConfig};
use outboard::device::{Device, DeviceError};

use crate::rig::*;

#[test]
fn device_that_waits_goes_on_when_the_other_ends() {
    let Some(forever) = object("void f(volatile int* p) { while (!*p) {} }") else { return };
    for killed in [false, true] {
        let rig = Rig::new();
        let mut first = rig.open();
        let program = load(&mut first, &forever);
        let pid = children()[0];
        let mut second = rig.open();
        let p = region(&mut first, &[0; 4]);
        launch(&mut first, &program, &[&p], &[]);
        let point = first.signal().unwrap();
        let before = second.signal().map(|_| second.last()).unwrap();
        let fence = second.wait(&point).unwrap();
        wait(&mut second, before);
        assert!(second.poll(Instant::now()).completed < fence);
        if killed {
            kill(pid);
            wait(&mut second, fence);
            assert!(matches!(lost(&mut first), DeviceError::Lost { .. }));
            // The end stays: later waits end at once.
            let later = second.wait(&point).unwrap();
            wait(&mut second, later);
            drop(first);
        } else {
            drop(first);
            wait(&mut second, fence);
        }
        drop((second, program, p, point));
        rig.finish();
    }
}

/// Runs a kernel that does not come back, and says how the device ended.
fn end_by(source: &str, limit: Duration) -> Option<String> {
    let object = object(source)?;
    let rig = Rig::with_limit(limit);
    let mut device = rig.open();
    let program = load(&mut device, &object);
    let p = region(&mut device, &[0; 64]);
    let fence = launch(&mut device, &program, &[&p], &[]);
    let status = wait_status(&mut device, fence);
    assert!(status.completed < fence);
    let error = status.lost.unwrap();
    assert!(device.alloc(1).is_err() && device.signal().is_err() && device.backlog().is_none());
    drop((device, program, p));
    rig.finish();
    Some(error.to_string())
}

fn check_end(source: &str, expected: &str) {
    if let Some(message) = end_by(source, DEADLINE) {
        assert!(message.starts_with(expected), "{message}");
    }
}

#[test]
fn endless_kernel_is_ended_by_the_watchdog() {
    let source = "void f(volatile int* p) { while (!*p) {} }";
    if let Some(message) = end_by(source, Duration::from_millis(200)) {
        assert!(message.starts_with("kernel ran past the limit of 200ms"), "{message}");
    }
}

#[test]
fn write_to_nowhere_is_a_memory_fault() {
    let expected = "kernel fault: memory access outside its buffers; everything on this device";
    check_end("void f(int* p) { *(volatile int*)0 = 1; }", expected);
}

#[test]
fn stack_overflow_is_a_memory_fault() {
    let source = "static __attribute__((noinline)) int g(volatile int* p, int n) { \
                  volatile int a[4096]; a[n] = *p; return *p == 1 ? 0 : g(p, a[0]) + a[n]; } \
                  void f(int* p) { *p = g(p, 1); }";
    check_end(source, "kernel fault: memory access outside its buffers");
}

/// A kernel that makes a system call with five arguments (the sixth is zero) and stores the result.
fn system_call(arguments: [i64; 6]) -> String {
    let [n, a, b, c, d, e] = arguments;
    format!(
        "void f(long* p) {{ register long d __asm__(\"r10\") = {d}; \
         register long e __asm__(\"r8\") = {e}; register long f __asm__(\"r9\") = 0; long r; \
         __asm__ volatile(\"syscall\" : \"=a\"(r) : \"a\"({n}L), \"D\"({a}L), \"S\"({b}L), \
         \"d\"({c}L), \"r\"(d), \"r\"(e), \"r\"(f) : \"rcx\", \"r11\", \"memory\"); *p = r; }}"
    )
}

const MMAP: i64 = 9;

#[test]
fn system_call_is_a_fault() {
    // open, getpid, socket, sendmsg, clone, execve, ptrace, memfd_create
    for n in [2, 39, 41, 46, 56, 59, 101, 319] {
        check_end(&system_call([n, 0, 0, 0, 0, 0]), "kernel fault: forbidden system call");
    }
    // Memory that no limit would count: shared and anonymous.
    let shared = system_call([MMAP, 0, 4096, 3, 0x21, -1]);
    check_end(&shared, "kernel fault: forbidden system call");
}

#[test]
fn memory_past_the_workers_limit_is_refused() {
    let Some(map) = object(&system_call([MMAP, 0, 1 << 30, 3, 0x22, -1])) else { return };
    let rig = Rig::new();
    let mut device = rig.open();
    let program = load(&mut device, &map);
    let result = region(&mut device, &[0; 8]);
    launch(&mut device, &program, &[&result], &[]);
    assert_eq!(read(&mut device, &result), (-12_i64).to_ne_bytes(), "out of memory");
    drop((device, program, result));
    rig.finish();
}

/// Set where the process may end itself.
const IS_SERVER: &str = "OUTBOARD_TEST_SERVER";

/// Not a test: what [`workers_end_with_their_server`] runs in another process.
#[test]
#[ignore = "ends its process; run by another test"]
fn server_that_is_killed() {
    if std::env::var_os(IS_SERVER).is_none() {
        return;
    }
    let rig = Rig::new();
    let mut device = rig.open();
    let fence = device.signal().map(|_| device.last()).unwrap();
    wait(&mut device, fence);
    println!("worker {}", children()[0]);
    kill(i32::try_from(std::process::id()).unwrap());
}

#[test]
fn workers_end_with_their_server() {
    let _alone = alone();
    let server = Command::new(std::env::current_exe().unwrap())
        .env(IS_SERVER, "1")
        .args(["--exact", "faults::server_that_is_killed", "--ignored", "--nocapture"])
        .output()
        .unwrap();
    let output = String::from_utf8(server.stdout).unwrap();
    let worker = output.split_once("worker ").unwrap().1.split_whitespace().next().unwrap();
    until("the worker is gone", || {
        let stat = fs::read_to_string(format!("/proc/{worker}/stat")).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    });
}

#[test]
fn division_by_zero_is_an_arithmetic_fault() {
    check_end("void f(volatile int* p) { *p = 1000 / *p; }", "kernel fault: arithmetic fault");
}

#[test]
fn trap_is_an_illegal_instruction() {
    check_end("void f(void) { __builtin_trap(); }", "kernel fault: illegal instruction");
}

#[test]
fn worker_killed_from_outside_is_lost_with_its_reason_at_the_end_of_the_doorbell() {
    let rig = Rig::new();
    let mut device = rig.open();
    let fence = device.signal().map(|_| device.last()).unwrap();
    wait(&mut device, fence);
    assert_eq!(children().len(), 1);
    kill(children()[0]);
    while !listen(&device, DEADLINE) {}
    let lost = device.poll(Instant::now()).lost.expect("known when the doorbell ends");
    assert!(lost.to_string().starts_with("device lost: the worker was killed"), "{lost}");
    drop(device);
    rig.finish();
}

#[test]
fn device_dropped_in_the_middle_of_work_leaves_nothing() {
    let Some(forever) = object("void f(volatile int* p) { while (!*p) {} }") else { return };
    let rig = Rig::new();
    let mut device = rig.open();
    let program = device.load("forever", &forever).unwrap();
    let p = region(&mut device, &vec![0; 33 << 20]);
    for _ in 0..1000 {
        launch(&mut device, &program, &[&p], &[]);
    }
    drop(device);
    drop((program, p));
    // And one whose worker has had no time to start.
    drop(rig.open());
    rig.finish();
}

#[test]
fn worker_that_cannot_start_is_lost_with_its_reason() {
    let rig = Rig::new();
    let exe = PathBuf::from("/nonexistent/outboard");
    let mut device = Isolated::open(&WorkerConfig { exe, ..rig.config.clone() }).unwrap();
    let lost = lost(&mut device).to_string();
    assert!(lost.starts_with("device lost: cannot start worker: No such file"), "{lost}");
    drop(device);
    rig.finish();
}
