//! Tests: every call of a table, on the driver that the loader finds, else on the fake one.
//!
//! The kernels are such as both take: PTX for CUDA, and for HIP a binary of the fake's, or the file
//! that `OUTBOARD_TEST_HIP_BINARY` names.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ffi::{CStr, c_void};
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr;
use std::sync::mpsc::{self, Sender};
use std::time::Duration;

use super::driver::{
    Code, Context, DevicePointer, Driver, EventUse, Function, Kernel, Kind, Node, Ordinal, Pool,
    Stream,
};
use super::loading::{Absent, Loaded};
use super::{cuda, hip};

/// Of so many 32-bit numbers.
const COUNT: u32 = 256;
const BYTES: u64 = COUNT as u64 * 4;

const PAGE: Layout = match Layout::from_size_align(4096, 4096) {
    Ok(layout) => layout,
    Err(_) => panic!("a page is a power of two"),
};

const PTX: &str = "
.version 7.0
.target sm_70
.address_size 64
.visible .entry add_test(.param .u64 to, .param .u64 one, .param .u64 other)
{
  .reg .b32 %r<7>;
  .reg .b64 %d<9>;
  mov.u32 %r1, %ctaid.x;
  mov.u32 %r2, %ntid.x;
  mov.u32 %r3, %tid.x;
  mad.lo.s32 %r4, %r1, %r2, %r3;
  mul.wide.u32 %d1, %r4, 4;
  ld.param.u64 %d2, [to];
  ld.param.u64 %d3, [one];
  ld.param.u64 %d4, [other];
  cvta.to.global.u64 %d2, %d2;
  cvta.to.global.u64 %d3, %d3;
  cvta.to.global.u64 %d4, %d4;
  add.s64 %d5, %d2, %d1;
  add.s64 %d6, %d3, %d1;
  add.s64 %d7, %d4, %d1;
  ld.global.u32 %r5, [%d6];
  ld.global.u32 %r6, [%d7];
  add.s32 %r5, %r5, %r6;
  st.global.u32 [%d5], %r5;
  ret;
}
.visible .entry fill_test(.param .u64 to, .param .u32 value)
{
  .reg .b32 %r<6>;
  .reg .b64 %d<4>;
  mov.u32 %r1, %ctaid.x;
  mov.u32 %r2, %ntid.x;
  mov.u32 %r3, %tid.x;
  mad.lo.s32 %r4, %r1, %r2, %r3;
  mul.wide.u32 %d1, %r4, 4;
  ld.param.u64 %d2, [to];
  ld.param.u32 %r5, [value];
  cvta.to.global.u64 %d2, %d2;
  add.s64 %d3, %d2, %d1;
  st.global.u32 [%d3], %r5;
  ret;
}
\0";

/// Makes a call of a driver's that is unsafe.
macro_rules! call {
    ($driver:ident.$name:ident($($argument:expr),* $(,)?)) => {
        // SAFETY: the test hands in what the driver made and has not destroyed, and keeps memory
        // until the stream is past.
        unsafe { $driver.$name($($argument),*) }
            .unwrap_or_else(|code| panic!("{}: {}", stringify!($name), $driver.describe(code)))
    };
}

/// The driver that was found. On a machine without one, the test `name` is run once more in a
/// process whose loader finds the fake library of this name.
fn driver(
    found: Result<&'static Loaded, &'static Absent>,
    name: &str,
    fake: (&str, &str),
) -> Option<&'static dyn Driver> {
    let absent = match found {
        Ok(loaded) => return Some(loaded.driver),
        Err(absent) => absent,
    };
    assert!(std::env::var_os("FAKE_GPU_REPORT").is_none(), "the fake is no driver: {absent}");
    let folder = built(fake);
    let report = tempfile::NamedTempFile::new().expect("a temporary file");
    let name = format!("{}::{name}", module_path!().split_once("::").expect("a module").1);
    let output = Command::new(std::env::current_exe().expect("a test has a file"))
        .args(["--exact", &name, "--nocapture"])
        .env("LD_LIBRARY_PATH", folder)
        .env("FAKE_GPU_DEVICES", "2")
        .env("FAKE_HIP_VERSION", "70253211")
        .env("FAKE_GPU_REPORT", report.path())
        .output()
        .expect("a test can be started");
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    let report = fs::read_to_string(report.path()).expect("the report is text");
    assert!(report.is_empty(), "{report}");
    None
}

/// Compiles a fake library, and returns the folder that it is in.
fn built((source, library): (&str, &str)) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = root.join("target/fakes-of-tables").join(source);
    fs::create_dir_all(&folder).expect("the target folder is writable");
    let fresh = folder.join(format!("{library}.{}", std::process::id()));
    let status = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
        .args(["--edition", "2024", "--crate-type", "cdylib", "-C", "panic=abort", "-o"])
        .arg(&fresh)
        .arg(root.join("tests/fakes").join(source).with_extension("rs"))
        .status();
    assert!(status.expect("there is rustc").success(), "{source}.rs does not compile");
    fs::rename(fresh, folder.join(library)).expect("both are in one folder");
    folder
}

fn hip_binary(driver: &dyn Driver) -> Vec<u8> {
    if let Some(file) = std::env::var_os("OUTBOARD_TEST_HIP_BINARY") {
        return fs::read(file).expect("the file that the variable names");
    }
    let arch = driver.device_info(Ordinal(0)).expect("there is a device").arch;
    let kernels = "kernel add_test 0 0 ppp\nkernel fill_test 0 0 pi\nend\n\0";
    format!("\x7fELF fake device code\narch {arch}\n{kernels}").into_bytes()
}

#[test]
fn every_call_of_cuda_does_what_the_table_says() {
    let name = "every_call_of_cuda_does_what_the_table_says";
    if let Some(driver) = driver(cuda::load(), name, ("cuda", "libcuda.so.1")) {
        every_call(driver, PTX.as_bytes());
    }
}

#[test]
fn every_call_of_hip_does_what_the_table_says() {
    let name = "every_call_of_hip_does_what_the_table_says";
    if let Some(driver) = driver(hip::load(), name, ("hip", "libamdhip64.so.6")) {
        every_call(driver, &hip_binary(driver));
    }
}

/// What a session has, in short.
struct Session {
    driver: &'static dyn Driver,
    context: Context,
    stream: Stream,
    pool: Pool,
    /// A pinned page, which is room for [`COUNT`] numbers.
    staging: *mut u32,
}

impl Session {
    fn new(driver: &'static dyn Driver, device: Ordinal) -> Session {
        let context = driver.context_create(device).expect("a context");
        let stream = driver.stream_create().expect("a stream");
        let pool = driver.pool_create(device, 1 << 20).expect("a pool");
        // SAFETY: the layout has a size.
        let page = unsafe { alloc_zeroed(PAGE) };
        call!(driver.host_register(page, PAGE.size(), false));
        let staging = page.cast();
        Session { driver, context, stream, pool, staging }
    }

    fn alloc(&self, bytes: u64) -> DevicePointer {
        let driver = self.driver;
        call!(driver.pool_alloc(self.pool, bytes, self.stream))
    }

    fn write(&self, to: DevicePointer, numbers: &[u32]) {
        let driver = self.driver;
        assert_eq!(numbers.len(), COUNT as usize);
        // SAFETY: the pinned memory has room for so many, and no work is under way in it.
        unsafe { self.staging.copy_from_nonoverlapping(numbers.as_ptr(), numbers.len()) };
        call!(driver.copy_in(to, self.staging.cast(), BYTES, self.stream));
        call!(driver.stream_synchronize(self.stream));
    }

    fn read(&self, from: DevicePointer) -> Vec<u32> {
        let driver = self.driver;
        call!(driver.copy_out(self.staging.cast(), from, BYTES, self.stream));
        call!(driver.stream_synchronize(self.stream));
        // SAFETY: the pinned memory has so many, and no work is under way in it.
        unsafe { std::slice::from_raw_parts(self.staging, COUNT as usize) }.to_vec()
    }

    fn free(&self, pointers: &[DevicePointer]) {
        let driver = self.driver;
        for &pointer in pointers {
            call!(driver.pool_free(pointer, self.stream));
        }
    }

    fn end(self) {
        let driver = self.driver;
        call!(driver.context_set_current(self.context));
        call!(driver.stream_synchronize(self.stream));
        call!(driver.host_unregister(self.staging.cast()));
        // SAFETY: it was made so, and no work is under way in it.
        unsafe { dealloc(self.staging.cast(), PAGE) };
        call!(driver.pool_destroy(self.pool));
        call!(driver.stream_destroy(self.stream));
        call!(driver.context_destroy(self.context));
    }
}

fn every_call(driver: &'static dyn Driver, image: &[u8]) {
    descriptions(driver);
    let session = Session::new(driver, Ordinal(0));
    memory(&session);
    shared_memory(&session);
    card_memory(&session);
    events_and_host_functions(&session);
    refused_images(driver);
    let module = driver.module_load(image).expect("the image is for this device");
    let function = |name: &CStr| call!(driver.module_function(module, name));
    let (add, fill) = (function(c"add_test"), function(c"fill_test"));
    // SAFETY: the module is loaded.
    let none = unsafe { driver.module_function(module, c"none") };
    assert_eq!(none.map_err(|code| driver.kind(code)), Err(Kind::BadProgram));
    let info = call!(driver.function_info(add));
    assert!(info.block_threads >= 64 && info.static_shared_bytes == 0, "{info:?}");
    launches(&session, add, fill);
    graphs(&session, add, fill);
    peers(&session);
    call!(driver.module_unload(module));
    session.end();
}

fn descriptions(driver: &dyn Driver) {
    let info = driver.device_info(Ordinal(0)).expect("there is a device");
    eprintln!("{}: {info:?}", driver.name());
    assert!(info.arch.starts_with("sm_") || info.arch.starts_with("gfx"), "{}", info.arch);
    assert!(info.pci.len() >= 12 && info.pci.ends_with(".0"), "{}", info.pci);
    assert!(info.limits.block_threads >= 64 && info.limits.grid[0] > 1000);
    let count = driver.device_count().expect("a count");
    assert!(driver.device_info(Ordinal(count)).is_err(), "there is no such device");
    let unknown = driver.describe(Code(123_456));
    assert!(unknown.contains("123456") || unknown.contains("nrecognized"), "{unknown}");
}

fn memory(session: &Session) {
    let driver = session.driver;
    let (free, total) = driver.memory_info().expect("figures");
    assert!(free <= total && total > 0);
    let (one, other) = (session.alloc(BYTES), session.alloc(BYTES));
    let numbers: Vec<u32> = (0..COUNT).collect();
    session.write(one, &numbers);
    call!(driver.memory_zero(other, BYTES, session.stream));
    call!(driver.copy(other, DevicePointer(one.0 + 512), 512, session.stream));
    let copied = session.read(other);
    assert_eq!(copied[..128], numbers[128..]);
    assert!(copied[128..].iter().all(|&number| number == 0));
    let plain = driver.memory_alloc(BYTES).expect("memory");
    call!(driver.memory_free(plain));
    session.free(&[one, other]);
    // SAFETY: pool and stream are alive.
    let too_much = unsafe { driver.pool_alloc(session.pool, 1 << 50, session.stream) };
    assert_eq!(too_much.map_err(|code| driver.kind(code)), Err(Kind::OutOfMemory));
}

/// Memory that is mapped twice, the second time by its descriptor.
fn shared_memory(session: &Session) {
    const BYTES: u64 = 2 << 20;
    let (driver, device) = (session.driver, Ordinal(0));
    if !driver.device_info(device).expect("a device").has_shareable_memory {
        return;
    }
    let made = driver.handle_create(device, BYTES, false).expect("memory");
    let descriptor = call!(driver.handle_export(made));
    let imported = driver.handle_import(descriptor.as_fd()).expect("the descriptor's memory");
    drop(descriptor);
    let places = [made, imported].map(|handle| {
        let at = driver.addresses_reserve(BYTES).expect("addresses");
        call!(driver.handle_map(at, BYTES, handle));
        call!(driver.mapping_allow(at, BYTES, device));
        call!(driver.handle_release(handle));
        at
    });
    let numbers: Vec<u32> = (0..COUNT).rev().collect();
    session.write(places[0], &numbers);
    assert_eq!(session.read(places[1]), numbers);
    for at in places {
        call!(driver.handle_unmap(at, BYTES));
        call!(driver.addresses_free(at, BYTES));
    }
    let none = tempfile::tempfile().expect("a temporary file");
    let refused = driver.handle_import(none.as_fd()).map_err(|code| driver.kind(code));
    assert!(refused.is_err(), "a file is no memory of a device");
}

/// Memory of which network cards can be told, where that is so.
fn card_memory(session: &Session) {
    const BYTES: u64 = 2 << 20;
    let (driver, device) = (session.driver, Ordinal(0));
    if driver.device_info(device).expect("a device").card_access.is_none() {
        return;
    }
    let handle = driver.handle_create(device, BYTES, true).expect("memory");
    let at = driver.addresses_reserve(BYTES).expect("addresses");
    call!(driver.handle_map(at, BYTES, handle));
    call!(driver.mapping_allow(at, BYTES, device));
    call!(driver.handle_release(handle));
    session.write(DevicePointer(at.0 + 4096), &(0..COUNT).collect::<Vec<_>>());
    let descriptor = call!(driver.range_export(DevicePointer(at.0 + 4096), 8192));
    driver.writes_flush().expect("what nobody has written is there");
    call!(driver.handle_unmap(at, BYTES));
    call!(driver.addresses_free(at, BYTES));
    let flags = rustix::io::fcntl_getfd(&descriptor).expect("it outlives the mapping");
    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC), "no child is to have it");
}

/// Says that the stream was here.
unsafe extern "C" fn tell(sender: *mut c_void) {
    // SAFETY: the test hands in a sender, which outlives the stream's work.
    let sender = unsafe { &*sender.cast::<Sender<()>>() };
    let _ = sender.send(());
}

fn events_and_host_functions(session: &Session) {
    let driver = session.driver;
    let event = |use_| driver.event_create(use_).expect("an event");
    let (from, to, order) = (event(EventUse::Time), event(EventUse::Time), event(EventUse::Order));
    let second = driver.stream_create().expect("a stream");
    call!(driver.event_record(from, session.stream));
    let (mut sender, told) = mpsc::channel::<()>();
    call!(driver.launch_host(session.stream, tell, ptr::from_mut(&mut sender).cast()));
    call!(driver.event_record(to, session.stream));
    call!(driver.event_record(order, session.stream));
    call!(driver.stream_wait(second, order));
    told.recv_timeout(Duration::from_secs(10)).expect("the stream calls the function");
    call!(driver.stream_synchronize(second));
    call!(driver.stream_query(session.stream));
    call!(driver.event_query(to));
    assert!(call!(driver.elapsed(from, to)) < Duration::from_secs(10));
    for event in [from, to, order] {
        call!(driver.event_destroy(event));
    }
    call!(driver.stream_destroy(second));
}

fn refused_images(driver: &dyn Driver) {
    for image in [b"\x7fELF no program at all, and none of any length\0".as_slice(), b"no\0"] {
        let (code, words) = driver.module_load(image).expect_err("that is no program");
        assert_eq!(driver.kind(code), Kind::BadProgram, "{} {words}", driver.describe(code));
    }
}

fn add_arguments(to: DevicePointer, one: DevicePointer, other: DevicePointer) -> Vec<u8> {
    [to, one, other].iter().flat_map(|pointer| pointer.0.to_le_bytes()).collect()
}

fn fill_arguments(to: DevicePointer, value: u32) -> Vec<u8> {
    to.0.to_le_bytes().into_iter().chain(value.to_le_bytes()).collect()
}

fn kernel(function: Function, arguments: &[u8]) -> Kernel<'_> {
    let (grid, block) = ([COUNT / 64, 1, 1], [64, 1, 1]);
    Kernel { function, grid, block, dynamic_shared_bytes: 0, arguments }
}

fn launches(session: &Session, add: Function, fill: Function) {
    let (driver, stream) = (session.driver, session.stream);
    let (to, one, other) = (session.alloc(BYTES), session.alloc(BYTES), session.alloc(BYTES));
    call!(driver.launch(&kernel(fill, &fill_arguments(one, 30)), stream));
    call!(driver.launch(&kernel(fill, &fill_arguments(other, 12)), stream));
    call!(driver.launch(&kernel(add, &add_arguments(to, one, other)), stream));
    assert_eq!(session.read(to), vec![42; COUNT as usize]);
    session.free(&[to, one, other]);
}

fn graphs(session: &Session, add: Function, fill: Function) {
    let (driver, stream) = (session.driver, session.stream);
    let [to, one, other, copy, second] = [(); 5].map(|()| session.alloc(BYTES));
    call!(driver.launch(&kernel(fill, &fill_arguments(second, 1000)), stream));
    let graph = driver.graph_create().expect("a graph");
    let add_kernel = |after: &[Node], function, arguments: &[u8]| {
        call!(driver.graph_add_kernel(graph, after, &kernel(function, arguments)))
    };
    let first = add_kernel(&[], fill, &fill_arguments(one, 5));
    let other_fill = add_kernel(&[], fill, &fill_arguments(other, 6));
    let sum = add_kernel(&[first, other_fill], add, &add_arguments(to, one, other));
    let out = call!(driver.graph_add_copy(graph, &[sum], copy, to, BYTES));
    let exec = call!(driver.graph_instantiate(graph));
    call!(driver.graph_launch(exec, stream));
    assert_eq!(session.read(copy), vec![11; COUNT as usize]);
    call!(driver.graph_set_kernel(exec, first, &kernel(fill, &fill_arguments(one, 7))));
    call!(driver.graph_launch(exec, stream));
    assert_eq!(session.read(copy), vec![13; COUNT as usize]);
    call!(driver.graph_set_copy(exec, out, copy, second, BYTES));
    call!(driver.graph_launch(exec, stream));
    assert_eq!(session.read(copy), vec![1000; COUNT as usize]);
    call!(driver.graph_exec_destroy(exec));
    call!(driver.graph_destroy(graph));
    session.free(&[to, one, other, copy, second]);
}

fn peers(session: &Session) {
    let driver = session.driver;
    if driver.device_count().expect("a count") < 2 {
        eprintln!("SKIPPED: one device, no peers");
        return;
    }
    let peer = Session::new(driver, Ordinal(1));
    let there = peer.alloc(BYTES);
    let numbers = vec![9; COUNT as usize];
    peer.write(there, &numbers);
    call!(driver.context_set_current(session.context));
    let reach = driver.can_access_peer(Ordinal(0), Ordinal(1)).expect("an answer");
    if reach {
        call!(driver.peer_enable(peer.context));
        // SAFETY: the context is alive.
        let again = unsafe { driver.peer_enable(peer.context) };
        assert_eq!(again.map_err(|code| driver.kind(code)), Err(Kind::PeerEnabled));
        call!(driver.pool_allow(peer.pool, Ordinal(0)));
    }
    let here = session.alloc(BYTES);
    let (to, from) = ((session.context, here), (peer.context, there));
    call!(driver.copy_peer(to, from, BYTES, session.stream));
    assert_eq!(session.read(here), numbers);
    session.free(&[here]);
    call!(driver.stream_synchronize(session.stream));
    call!(driver.context_set_current(peer.context));
    peer.free(&[there]);
    peer.end();
    call!(driver.context_set_current(session.context));
}
