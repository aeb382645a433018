//! A fake `libibverbs.so.1`: reliable connections between processes of one machine, so that two
//! servers write each other's memory where there is no network card.
//!
//! It has what outboard calls and no more; [`machine`] says what it does. Structures are those of
//! `infiniband/verbs.h`, as far as the caller looks at them or the library at what it is given. A
//! broken rule (an object that is freed while others need it, a queue that overflows, memory that
//! is given back while it is registered) ends the process with a message. `FAKE_IBVERBS_LOSE=3` has
//! the process's third completion never come; `FAKE_IBVERBS_DMABUF=4096` is a card that takes no
//! more bytes of another device's memory at a time, and with 0 none at all.

#![allow(non_snake_case, reason = "the names are the library's")]

#[path = "ibverbs/dmabuf.rs"]
mod dmabuf;
#[path = "ibverbs/machine.rs"]
mod machine;
#[path = "core/map.rs"]
mod map;
#[path = "ibverbs/pages.rs"]
mod pages;

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::io::{self, Read as _};
use std::mem::{ManuallyDrop, size_of};
use std::os::fd::{AsRawFd as _, FromRawFd as _, IntoRawFd as _, RawFd};
use std::ptr::{null, null_mut};

use dmabuf::Mapped;
use machine::{Queue, Region, Request, Stage, machine};

const EINVAL: c_int = 22;
const ENOMEM: c_int = 12;
const ENODATA: c_int = 61;
const ENOTSUP: c_int = 95;
const ETIMEDOUT: c_int = 110;

const MTU_4096: u32 = 5;
const PORT_ACTIVE: u32 = 4;
const ROCE_V2: u32 = 2;
const MESSAGE_BYTES_MAX: u32 = 1 << 30;
const SIGNALLED: c_uint = 2;
const RDMA_WRITE: c_uint = 0;
const DEPTH_MAX: u32 = 1 << 14;

// In the table of calls that a driver makes itself.
const POLL_CQ: usize = 11;
const REQ_NOTIFY_CQ: usize = 12;
const POST_SEND: usize = 25;

#[cfg(target_arch = "x86_64")]
type Mutex = [u64; 5];
#[cfg(not(target_arch = "x86_64"))]
type Mutex = [u64; 6];

#[repr(C)]
pub struct Context {
    device: *const c_void,
    calls: [*const c_void; 32],
    cmd_fd: c_int,
    async_fd: c_int,
    num_comp_vectors: c_int,
    mutex: Mutex,
    abi_compat: usize,
}

#[repr(C)]
struct Around {
    query_port: extern "C" fn(*mut Context, u8, *mut PortAttributes, usize) -> c_int,
    rest: [usize; 37],
    abi: u64,
    bytes: usize,
    context: Context,
}

#[repr(C)]
pub struct Domain {
    context: *mut Context,
    handle: u32,
}

#[repr(C)]
pub struct MemoryRegion {
    context: *mut Context,
    domain: *mut Domain,
    address: *mut c_void,
    length: usize,
    handle: u32,
    local_key: u32,
    remote_key: u32,
}

#[repr(C)]
pub struct Channel {
    context: *mut Context,
    fd: c_int,
    refcnt: c_int,
    /// What the queue gets; behind all that the caller knows of.
    write_end: Option<RawFd>,
    queue: *mut CompletionQueue,
}

#[repr(C)]
pub struct CompletionQueue {
    context: *mut Context,
    channel: *mut Channel,
    cq_context: *mut c_void,
    handle: u32,
    cqe: c_int,
    unacknowledged: u32,
}

#[repr(C)]
pub struct QueuePair {
    context: *mut Context,
    qp_context: *mut c_void,
    domain: *mut Domain,
    send: *mut CompletionQueue,
    receive: *mut CompletionQueue,
    srq: *mut c_void,
    handle: u32,
    number: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct GidEntry {
    gid: [u64; 2],
    index: u32,
    port: u32,
    kind: u32,
    interface: u32,
}

#[repr(C)]
pub struct DeviceAttributes {
    before: [u64; 12],
    limits: [u32; 32],
    pkeys: u16,
    delay: u8,
    ports: u8,
}

#[repr(C)]
pub struct PortAttributes {
    state: u32,
    mtu_max: u32,
    mtu: u32,
    gids: c_int,
    capabilities: u32,
    message_bytes_max: u32,
}

#[repr(C)]
pub struct PairInit {
    context: *mut c_void,
    send: *mut CompletionQueue,
    receive: *mut CompletionQueue,
    srq: *mut c_void,
    max_send: u32,
    others: [u32; 4],
    kind: u32,
}

#[repr(C)]
pub struct PairAttributes {
    state: u32,
    before: [u32; 6],
    peer: u32,
    rights: u32,
    cap: [u32; 5],
    gid: [u64; 2],
}

#[repr(C)]
pub struct ScatterEntry {
    address: u64,
    length: u32,
    key: u32,
}

#[repr(C)]
pub struct SendRequest {
    work: u64,
    next: *mut SendRequest,
    list: *mut ScatterEntry,
    count: c_int,
    opcode: c_uint,
    flags: c_uint,
    immediate: u32,
    remote: u64,
    remote_key: u32,
}

#[repr(C)]
pub struct WorkCompletion {
    work: u64,
    status: u32,
    opcode: u32,
    vendor: u32,
    bytes: u32,
    immediate: u32,
    pair: u32,
    source: u32,
    flags: u32,
    rest: [u16; 3],
}

unsafe extern "C" {
    safe fn __errno_location() -> *mut c_int;
}

fn failed<T>(error: c_int) -> *mut T {
    // SAFETY: the thread's own.
    unsafe { *__errno_location() = error };
    null_mut()
}

/// What a pointer of the caller's is to, if it is to anything.
fn at_if_any<'a, T>(pointer: *mut T) -> Option<&'a mut T> {
    // SAFETY: the caller passes what this library made, or what the call is to read or fill in; a
    // test's own server does, whose calls are checked against the real headers.
    unsafe { pointer.as_mut() }
}

fn at<'a, T>(pointer: *mut T) -> &'a mut T {
    at_if_any(pointer).expect("no null pointers")
}

fn made<T>(value: T) -> *mut T {
    Box::into_raw(Box::new(value))
}

fn freed<T>(pointer: *mut T) {
    // SAFETY: made by `made`, and freed once.
    drop(unsafe { Box::from_raw(pointer) });
}

static DEVICE: u8 = 0;

#[unsafe(no_mangle)]
pub extern "C" fn ibv_get_device_list(count: *mut c_int) -> *mut *const c_void {
    *at(count) = 1;
    made([(&raw const DEVICE).cast::<c_void>(), null()]).cast()
}

#[unsafe(no_mangle)]
pub extern "C" fn ibv_free_device_list(list: *mut *const c_void) {
    freed(list.cast::<[*const c_void; 2]>());
}

#[unsafe(no_mangle)]
pub extern "C" fn ibv_get_device_name(_device: *const c_void) -> *const c_char {
    c"fake0".as_ptr()
}

#[unsafe(no_mangle)]
pub extern "C" fn ibv_open_device(device: *const c_void) -> *mut Context {
    machine::listen();
    let mut calls = [null(); 32];
    calls[POLL_CQ] = poll_cq as *const c_void;
    calls[REQ_NOTIFY_CQ] = req_notify_cq as *const c_void;
    calls[POST_SEND] = post_send as *const c_void;
    let context = Context {
        device,
        calls,
        cmd_fd: -1,
        async_fd: -1,
        num_comp_vectors: 1,
        mutex: Mutex::default(),
        abi_compat: usize::MAX,
    };
    let bytes = size_of::<Around>();
    let around = made(Around { query_port, rest: [0; 37], abi: 0, bytes, context });
    &raw mut at(around).context
}

/// What lies around a context stays: a process opens few.
#[unsafe(no_mangle)]
pub extern "C" fn ibv_close_device(_context: *mut Context) -> c_int {
    0
}

#[unsafe(no_mangle)]
pub extern "C" fn ibv_query_device(_: *mut Context, attributes: *mut DeviceAttributes) -> c_int {
    at(attributes).ports = 1;
    0
}

extern "C" fn query_port(_: *mut Context, port: u8, found: *mut PortAttributes, _: usize) -> c_int {
    if port != 1 {
        return EINVAL;
    }
    *at(found) = PortAttributes {
        state: PORT_ACTIVE,
        mtu_max: MTU_4096,
        mtu: MTU_4096,
        gids: 1,
        capabilities: 0,
        message_bytes_max: MESSAGE_BYTES_MAX,
    };
    0
}

#[unsafe(no_mangle)]
pub extern "C" fn _ibv_query_gid_ex(
    _: *mut Context,
    port: u32,
    index: u32,
    entry: *mut GidEntry,
    _flags: u32,
    _bytes: usize,
) -> c_int {
    if (port, index) != (1, 0) {
        return ENODATA;
    }
    let gid = machine::own_gid();
    let (gid, _) = gid.as_chunks::<8>();
    let gid = [0, 1].map(|at| u64::from_ne_bytes(gid[at]));
    *at(entry) = GidEntry { gid, index, port, kind: ROCE_V2, interface: 0 };
    0
}

#[unsafe(no_mangle)]
pub extern "C" fn ibv_alloc_pd(context: *mut Context) -> *mut Domain {
    let mut machine = machine();
    let handle = machine.number();
    machine.domains.insert(handle, 0);
    made(Domain { context, handle })
}

#[unsafe(no_mangle)]
pub extern "C" fn ibv_dealloc_pd(domain: *mut Domain) -> c_int {
    let left = machine().domains.remove(&at(domain).handle);
    assert_eq!(left, Some(0), "a protection domain has registrations or queue pairs");
    freed(domain);
    0
}

#[unsafe(no_mangle)]
pub extern "C" fn ibv_reg_mr_iova2(
    domain: *mut Domain,
    address: *mut c_void,
    length: usize,
    iova: u64,
    _access: c_uint,
) -> *mut MemoryRegion {
    let Domain { context, handle } = *at(domain);
    let mut machine = machine();
    let key = machine.number();
    *machine.domains.get_mut(&handle).expect("the domain is there") += 1;
    let bytes = length as u64;
    let start = address.expose_provenance();
    // SAFETY: whoever registers memory has it mapped.
    unsafe { pages::touch(start, length) };
    let region = Region { domain: handle, address: start, iova, bytes, _mapped: None };
    machine.regions.insert(key, region);
    let (local_key, remote_key) = (key, key);
    made(MemoryRegion { context, domain, address, length, handle: key, local_key, remote_key })
}

#[unsafe(no_mangle)]
pub extern "C" fn ibv_reg_dmabuf_mr(
    domain: *mut Domain,
    offset: u64,
    length: usize,
    iova: u64,
    fd: c_int,
    _access: c_int,
) -> *mut MemoryRegion {
    let most = std::env::var("FAKE_IBVERBS_DMABUF").ok().and_then(|bytes| bytes.parse().ok());
    match most {
        Some(0) => return failed(ENOTSUP),
        Some(most) if length > most => return failed(ENOMEM),
        _ => {}
    }
    let Domain { context, handle } = *at(domain);
    let Some(mapped) = Mapped::of_descriptor(fd, offset, length) else { return failed(EINVAL) };
    let mut machine = machine();
    let key = machine.number();
    *machine.domains.get_mut(&handle).expect("the domain is there") += 1;
    let (address, bytes) = (mapped.address(), length as u64);
    // SAFETY: it is mapped as long as the value lives.
    unsafe { pages::touch(address, length) };
    let region = Region { domain: handle, address, iova, bytes, _mapped: Some(mapped) };
    machine.regions.insert(key, region);
    let (local_key, remote_key, address) = (key, key, null_mut());
    made(MemoryRegion { context, domain, address, length, handle: key, local_key, remote_key })
}

#[unsafe(no_mangle)]
pub extern "C" fn ibv_dereg_mr(region: *mut MemoryRegion) -> c_int {
    let mut machine = machine();
    let was = machine.regions.remove(&at(region).handle).expect("it is taken back once");
    was.check_all();
    *machine.domains.get_mut(&was.domain).expect("the domain is there") -= 1;
    freed(region);
    0
}

#[unsafe(no_mangle)]
pub extern "C" fn ibv_create_comp_channel(context: *mut Context) -> *mut Channel {
    let Ok((read, write)) = io::pipe() else { return failed(ENOMEM) };
    let (fd, write_end) = (read.into_raw_fd(), Some(write.into_raw_fd()));
    made(Channel { context, fd, refcnt: 0, write_end, queue: null_mut() })
}

#[unsafe(no_mangle)]
pub extern "C" fn ibv_destroy_comp_channel(channel: *mut Channel) -> c_int {
    let Channel { fd, refcnt, .. } = *at(channel);
    assert_eq!(refcnt, 0, "a channel is freed that a queue uses");
    // SAFETY: the descriptor is the channel's own, and is closed with it.
    drop(unsafe { io::PipeReader::from_raw_fd(fd) });
    freed(channel);
    0
}

#[unsafe(no_mangle)]
pub extern "C" fn ibv_create_cq(
    context: *mut Context,
    cqe: c_int,
    cq_context: *mut c_void,
    channel: *mut Channel,
    _vector: c_int,
) -> *mut CompletionQueue {
    let mut machine = machine();
    let handle = machine.number();
    let end = at_if_any(channel).and_then(|channel| channel.write_end.take());
    // SAFETY: nobody else has this end of the pipe.
    let events = end.map(|end| unsafe { io::PipeWriter::from_raw_fd(end) });
    let room = usize::try_from(cqe).unwrap_or(0);
    let queue = Queue { room, done: Default::default(), is_armed: false, events, pairs: 0 };
    machine.queues.insert(handle, queue);
    let unacknowledged = 0;
    let made = made(CompletionQueue { context, channel, cq_context, handle, cqe, unacknowledged });
    if let Some(channel) = at_if_any(channel) {
        channel.refcnt += 1;
        channel.queue = made;
    }
    made
}

#[unsafe(no_mangle)]
pub extern "C" fn ibv_destroy_cq(queue: *mut CompletionQueue) -> c_int {
    let CompletionQueue { handle, channel, unacknowledged, .. } = *at(queue);
    assert_eq!(unacknowledged, 0, "the real library would wait for ever for these events");
    let was = machine().queues.remove(&handle).expect("it is freed once");
    assert_eq!(was.pairs, 0, "a completion queue is freed that queue pairs use");
    if let Some(channel) = at_if_any(channel) {
        channel.refcnt -= 1;
    }
    freed(queue);
    0
}

extern "C" fn req_notify_cq(queue: *mut CompletionQueue, _solicited_only: c_int) -> c_int {
    let mut machine = machine();
    machine.queues.get_mut(&at(queue).handle).expect("the queue is there").is_armed = true;
    0
}

extern "C" fn poll_cq(queue: *mut CompletionQueue, most: c_int, to: *mut WorkCompletion) -> c_int {
    let mut machine = machine();
    let mut count = 0;
    while count < most
        && let Some(done) = machine.take(at(queue).handle)
    {
        let place = usize::try_from(count).expect("not negative");
        // SAFETY: there is room for `most`.
        let place = at(unsafe { to.add(place) });
        (place.work, place.status, place.pair) = (done.work, done.status, done.pair);
        count += 1;
    }
    count
}

#[unsafe(no_mangle)]
pub extern "C" fn ibv_get_cq_event(
    channel: *mut Channel,
    queue: *mut *mut CompletionQueue,
    context: *mut *mut c_void,
) -> c_int {
    let Channel { fd, queue: of, .. } = *at(channel);
    // SAFETY: the descriptor is open as long as the channel; it stays so.
    let mut events = ManuallyDrop::new(unsafe { io::PipeReader::from_raw_fd(fd) });
    debug_assert!(events.as_raw_fd() >= 0);
    // What went wrong is in `errno`: nothing is there, as a rule.
    if events.read_exact(&mut [0]).is_err() {
        return -1;
    }
    at(of).unacknowledged += 1;
    *at(queue) = of;
    *at(context) = at(of).cq_context;
    0
}

#[unsafe(no_mangle)]
pub extern "C" fn ibv_ack_cq_events(queue: *mut CompletionQueue, count: c_uint) {
    at(queue).unacknowledged -= count;
}

#[unsafe(no_mangle)]
pub extern "C" fn ibv_create_qp(domain: *mut Domain, init: *mut PairInit) -> *mut QueuePair {
    let Domain { context, handle } = *at(domain);
    let PairInit { send, receive, max_send, .. } = *at(init);
    assert!(max_send <= DEPTH_MAX, "no device has queues of {max_send}");
    let number = machine().make_pair(handle, at(send).handle, max_send);
    let Some(number) = number else { return failed(EINVAL) };
    let (qp_context, srq) = (null_mut(), null_mut());
    made(QueuePair { context, qp_context, domain, send, receive, srq, handle: number, number })
}

#[unsafe(no_mangle)]
pub extern "C" fn ibv_destroy_qp(pair: *mut QueuePair) -> c_int {
    let mut machine = machine();
    let was = machine.pairs.remove(&at(pair).number).expect("it is freed once");
    machine.queues.get_mut(&was.queue).expect("the queue is there").pairs -= 1;
    *machine.domains.get_mut(&was.domain).expect("the domain is there") -= 1;
    freed(pair);
    0
}

#[unsafe(no_mangle)]
pub extern "C" fn ibv_modify_qp(
    pair: *mut QueuePair,
    attributes: *mut PairAttributes,
    _mask: c_int,
) -> c_int {
    let (attributes, number) = (at(attributes), at(pair).number);
    let stage = match attributes.state {
        1 => Stage::Bound,
        2 => Stage::Receives,
        3 => Stage::Sends,
        _ => return EINVAL,
    };
    let mut gid = [0; 16];
    for (place, part) in gid.chunks_exact_mut(8).zip(attributes.gid) {
        place.copy_from_slice(&part.to_ne_bytes());
    }
    // A device looks for its peer in this step, which takes a while.
    let stream = (stage == Stage::Receives).then(|| machine::connect(&gid));
    let mut machine = machine();
    let found = machine.pairs.get_mut(&number).expect("the pair is there");
    let is_next = matches!(
        (found.stage, stage),
        (Stage::Made, Stage::Bound)
            | (Stage::Bound, Stage::Receives)
            | (Stage::Receives, Stage::Sends)
    );
    if !is_next {
        return EINVAL;
    }
    match stream {
        Some(Ok(stream)) => (found.stream, found.peer) = (Some(stream), (gid, attributes.peer)),
        Some(Err(_)) => return ETIMEDOUT,
        None => {}
    }
    found.stage = stage;
    0
}

extern "C" fn post_send(
    pair: *mut QueuePair,
    mut next: *mut SendRequest,
    refused: *mut *mut SendRequest,
) -> c_int {
    let mut machine = machine();
    while !next.is_null() {
        let asked = at(next);
        assert!((asked.opcode, asked.count) == (RDMA_WRITE, 1), "all that it can is to write");
        let source = at(asked.list);
        let request = Request {
            work: asked.work,
            local: source.address,
            local_key: source.key,
            remote: asked.remote,
            remote_key: asked.remote_key,
            bytes: source.length,
            is_signalled: asked.flags & SIGNALLED != 0,
            serial: 0,
        };
        if !machine.post(at(pair).number, request) {
            *at(refused) = next;
            return ENOMEM;
        }
        next = asked.next;
    }
    0
}
