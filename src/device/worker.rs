//! A worker process: one session's accelerator.
//!
//! Owns: how a worker begins, whatever it does: it takes a queue from its socket and locks itself
//! down. And the worker that runs kernels, the other side of `isolated`: it does what the packets
//! say, one after the other, until it is killed.
//!
//! Packets come from the server, which is trusted; addresses are checked all the same, so that a
//! mistake there ends the worker instead of writing anywhere. Kernels are not trusted and run in
//! the same process: what they break is their own session's.
//!
//! Absent: sandboxing (`sandbox`), recorded graphs (`replay`), loading and calling (`cpu`), driving
//! a device (`driven`).

use std::io::IoSliceMut;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use rustix::io::Errno;
use rustix::mm::Advice;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags};
use rustix::process::Pid;

use super::cpu::Kernel;
use super::driven::{self, Driven, End};
use super::packet::{Address, Packet};
use super::replay::{Graph, Run};
use super::ring::{Patience, Place, Ring};
use super::sandbox;
use super::shared::{Mapping, to_u64, to_usize};
use super::timeline::{PAGE_BYTES, Words};
use super::{Device, DeviceError};
use crate::config::DeviceLimits;
use crate::cores;

/// Why a worker ends by itself. The number is its exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    Handshake = 10,
    Import = 11,
    Packet = 12,
    Sandbox = 13,
    /// The reason is in the ring.
    Said = 14,
    Thread = 15,
}

impl Failure {
    /// What an exit code says.
    pub(super) fn from_code(code: i32) -> Option<&'static str> {
        let all = [
            Failure::Handshake,
            Failure::Import,
            Failure::Packet,
            Failure::Sandbox,
            Failure::Said,
            Failure::Thread,
        ];
        all.into_iter().find(|failure| *failure as i32 == code).map(|failure| match failure {
            Failure::Handshake => "it was not started by a server",
            Failure::Import => "it could not map memory",
            Failure::Packet => "it was asked for something impossible",
            Failure::Sandbox => "it could not lock itself down (landlock, seccomp or limits)",
            Failure::Said => "it has said why, and what it said is lost",
            Failure::Thread => "it could not start a thread",
        })
    }
}

/// The whole life of a worker process that runs kernels, which the server has started with a socket
/// as its standard input.
pub fn main() -> ! {
    let failure = match Worker::start() {
        Ok(worker) => worker.run(),
        Err(failure) => failure,
    };
    std::process::exit(failure as i32)
}

/// The whole life of a worker process that drives a device. `open` is called after the process has
/// locked itself down.
pub fn drive(open: impl FnOnce() -> Result<Box<dyn Device>, DeviceError>) -> ! {
    let failure = driven_life(open);
    // What a driver does at an orderly exit may wait for ever after a fault, and the system gives
    // everything back without it.
    //
    // SAFETY: ends the process, and nothing after it runs.
    unsafe { libc::_exit(failure as i32) }
}

fn driven_life(open: impl FnOnce() -> Result<Box<dyn Device>, DeviceError>) -> Failure {
    if let Err(failure) = close_inherited() {
        return failure;
    }
    let socket = rustix::stdio::stdin();
    let Handshake { parent, ring: ring_fd, clock } = match Handshake::receive(socket) {
        Ok(handshake) => handshake,
        Err(failure) => return failure,
    };
    let Ok(ring) = Ring::open(&ring_fd) else { return Failure::Import };
    if sandbox::enter_driver(parent).is_err() {
        return Failure::Sandbox;
    }
    let run = || -> Result<(), End> {
        // Nothing is given back in order; see `drive`.
        let mut device = ManuallyDrop::new(open()?);
        if let Some(doorbell) = device.doorbell() {
            let doorbell = doorbell.try_clone_to_owned().map_err(|_| Failure::Thread)?;
            driven::listen(doorbell, ring_fd).map_err(|_| Failure::Thread)?;
        }
        Driven::new(socket, &ring, clock, &mut **device).run(&AtomicBool::new(false))
    };
    match run() {
        Err(End::Failed(failure)) => failure,
        Err(End::Lost(error)) => {
            ring.say(&error);
            Failure::Said
        }
        Ok(()) => unreachable!("nobody ends it"),
    }
}

/// What the server hands to each worker.
struct Handshake {
    parent: Pid,
    ring: OwnedFd,
    clock: Clock,
}

impl Handshake {
    fn receive(socket: BorrowedFd<'_>) -> Result<Handshake, Failure> {
        let mut parent = [0; 4];
        let fds = receive(socket, &mut parent, RecvFlags::empty()).ok();
        let [Some(ring), Some(timeline)] = fds.ok_or(Failure::Handshake)? else {
            return Err(Failure::Handshake);
        };
        let parent = Pid::from_raw(i32::from_ne_bytes(parent)).ok_or(Failure::Handshake)?;
        let page = Mapping::open(&timeline, to_usize(PAGE_BYTES), true);
        Ok(Handshake { parent, ring, clock: Clock::of(page.map_err(|_| Failure::Import)?) })
    }
}

struct Worker {
    socket: BorrowedFd<'static>,
    ring: Ring,
    patience: Patience,
    clock: Clock,
    memory: Memory,
    programs: Vec<Option<Rc<Kernel>>>,
    graphs: Vec<Option<Graph>>,
    /// Arguments of the launch that runs.
    args: Vec<u64>,
}

impl Worker {
    fn start() -> Result<Worker, Failure> {
        let socket = rustix::stdio::stdin();
        let Handshake { parent, ring, clock } = Handshake::receive(socket)?;
        let queue = Ring::open(&ring).map_err(|_| Failure::Import)?;
        drop(ring);
        let patience = Patience::new(cores::are_several());
        close_inherited()?;
        sandbox::enter(parent).map_err(|_| Failure::Sandbox)?;
        let memory = Memory { segments: Vec::new() };
        let (programs, graphs, args) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Worker { socket, ring: queue, patience, clock, memory, programs, graphs, args })
    }

    fn run(mut self) -> Failure {
        let mut place = Place::default();
        loop {
            while let Some(words) = self.ring.next(&place) {
                let len = words.len();
                // SAFETY: the words stay where they are and as they are until `finish`, whatever
                // is done to `self` meanwhile: the ring stays mapped as long as this function runs.
                let words = unsafe { std::slice::from_raw_parts(words.as_ptr(), len) };
                if let Err(failure) = self.execute(words) {
                    return failure;
                }
                if self.ring.finish(&mut place, len) {
                    ring_doorbell(self.socket);
                }
            }
            self.ring.sleep(&place, &mut self.patience);
        }
    }

    fn execute(&mut self, words: &[u64]) -> Result<(), Failure> {
        match Packet::decode(words).ok_or(Failure::Packet)? {
            Packet::Indirect { at, words } => {
                let packet = self.memory.words(at, words)?;
                // SAFETY: the server keeps the packet where it is until it is done.
                let words = unsafe { std::slice::from_raw_parts(packet.as_ptr(), packet.len()) };
                match Packet::decode(words).ok_or(Failure::Packet)? {
                    Packet::Alloc { .. } | Packet::Indirect { .. } => Err(Failure::Packet),
                    packet => self.perform(packet),
                }
            }
            packet => self.perform(packet),
        }
    }

    fn perform(&mut self, packet: Packet<'_>) -> Result<(), Failure> {
        match packet {
            Packet::Copy { to, from, bytes } => {
                self.memory.copy_between(to, from, bytes, &self.ring)
            }
            Packet::Discard { at, bytes } => self.memory.discard(at, bytes),
            Packet::Forget { segment } => self.memory.forget(segment),
            Packet::GraphBuild { graph, steps } => {
                let built = Graph::build(steps, &self.memory, &self.programs)?;
                put(&mut self.graphs, graph, Some(built));
                Ok(())
            }
            Packet::GraphDrop { graph } => take(&mut self.graphs, graph).map(drop),
            Packet::GraphRun { graph, timer, inputs, ints } => {
                self.run_graph(graph, timer, &Run { inputs, ints })
            }
            Packet::Import { segment, bytes, writable } => self.import(segment, bytes, writable),
            Packet::Alloc { .. }
            | Packet::Export { .. }
            | Packet::Flush
            | Packet::Indirect { .. }
            | Packet::OpenShared { .. }
            | Packet::Share { .. } => Err(Failure::Packet),
            Packet::Launch { program, timer, buffers, values, .. } => {
                self.launch(program, timer, buffers, values)
            }
            Packet::Load { program, status, bytes: (_, bytes), object, .. } => {
                self.load(program, status, bytes, object)
            }
            Packet::Signal => {
                self.clock.signal();
                Ok(())
            }
            Packet::Unload { program } => take(&mut self.programs, program).map(drop),
            Packet::Wait { timeline, value } => {
                self.memory.wait(u64::from(timeline), value, &self.ring)
            }
            Packet::Write { to, bytes, data } => self.memory.write(to, bytes, data),
        }
    }

    fn launch(
        &mut self,
        program: u32,
        timer: Option<u32>,
        buffers: &[u64],
        values: &[u64],
    ) -> Result<(), Failure> {
        let kernel = self.programs.get(to_usize(u64::from(program))).ok_or(Failure::Packet)?;
        // A program that could not be loaded: its failure is reported elsewhere.
        let Some(kernel) = kernel else { return Ok(()) };
        self.args.clear();
        for buffer in buffers {
            self.args.push(self.memory.address(Address::from_word(*buffer), 0)?);
        }
        self.args.extend_from_slice(values);
        self.ring.begin();
        let start = timer.map(|_| Instant::now());
        // SAFETY: foreign code, for which the process is locked down. It was compiled for this
        // calling convention, and the engine has checked its arguments.
        let called = unsafe { kernel.call(&self.args) };
        called.map_err(|_| Failure::Packet)?;
        self.stop_timer(timer, start);
        Ok(())
    }

    fn run_graph(&mut self, graph: u32, timer: Option<u32>, run: &Run<'_>) -> Result<(), Failure> {
        let graph = self.graphs.get_mut(to_usize(u64::from(graph))).and_then(Option::as_mut);
        let graph = graph.ok_or(Failure::Packet)?;
        let start = timer.map(|_| Instant::now());
        graph.run(run, &self.memory, &self.ring)?;
        self.stop_timer(timer, start);
        Ok(())
    }

    fn stop_timer(&self, timer: Option<u32>, start: Option<Instant>) {
        if let (Some(timer), Some(start)) = (timer, start) {
            self.ring.set_timer(timer, start.elapsed());
        }
    }

    fn load(
        &mut self,
        program: u32,
        status: Address,
        bytes: u64,
        object: &[u64],
    ) -> Result<(), Failure> {
        if bytes > to_u64(size_of_val(object)) {
            return Err(Failure::Packet);
        }
        // SAFETY: words are bytes, as many as were checked above.
        let object = unsafe { std::slice::from_raw_parts(object.as_ptr().cast(), to_usize(bytes)) };
        match Kernel::load(object) {
            Ok(kernel) => {
                put(&mut self.programs, program, Some(Rc::new(kernel)));
                self.memory.report(status, None)
            }
            Err(error) => {
                put(&mut self.programs, program, None);
                self.memory.report(status, Some(&error.to_string()))
            }
        }
    }

    fn import(&mut self, segment: u32, bytes: u64, writable: bool) -> Result<(), Failure> {
        let fd = receive_segment(self.socket)?;
        let mapping = Mapping::open(&fd, to_usize(bytes), writable);
        put(&mut self.memory.segments, segment, Some(mapping.map_err(|_| Failure::Import)?));
        Ok(())
    }
}

/// Tells the server that a packet is done, or that it is to look.
pub(super) fn ring_doorbell(socket: BorrowedFd<'_>) {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    // Where the socket is full of earlier rings, the server has one to hear.
    let _ = rustix::net::send(socket, b"\0", flags);
}

/// The descriptor of the next segment.
pub(super) fn receive_segment(socket: BorrowedFd<'_>) -> Result<OwnedFd, Failure> {
    let fds = match receive(socket, &mut [0], RecvFlags::DONTWAIT) {
        Err(Errno::AGAIN) => {
            // The server has more to send than the socket took, and sends on when it looks.
            ring_doorbell(socket);
            receive(socket, &mut [0], RecvFlags::empty())
        }
        received => received,
    };
    match fds.map_err(|_| Failure::Import)? {
        [Some(fd), None] => Ok(fd),
        _ => Err(Failure::Import),
    }
}

/// What has come through a channel, if anything has. Whoever sent it may have sent anything.
pub(super) fn receive_shared(channel: BorrowedFd<'_>) -> Option<OwnedFd> {
    match receive(channel, &mut [0], RecvFlags::DONTWAIT) {
        Ok([descriptor, None]) => descriptor,
        _ => None,
    }
}

/// What a worker has sent through a channel for a network card, and where the bytes begin in it.
/// Nothing that it says is believed here.
pub(super) fn receive_exported(channel: BorrowedFd<'_>) -> Option<(OwnedFd, u64)> {
    let mut offset = [0; 8];
    match receive(channel, &mut offset, RecvFlags::DONTWAIT) {
        Ok([Some(descriptor), None]) => Some((descriptor, u64::from_ne_bytes(offset))),
        _ => None,
    }
}

/// The outcome of a load, as words: one (1 done, 2 failed) whose high half is the length of the
/// message that follows.
pub(super) fn outcome(why: Option<&str>) -> Vec<u64> {
    let most = to_usize(DeviceLimits::LOAD_STATUS_BYTES) - 8;
    let why_bytes = why.unwrap_or_default().as_bytes();
    let why_bytes = &why_bytes[..why_bytes.len().min(most)];
    let state = if why.is_some() { 2 } else { 1 };
    let mut words = vec![to_u64(why_bytes.len()) << 32 | state];
    super::packet::push_bytes(&mut words, why_bytes);
    words
}

pub(super) fn put<T>(table: &mut Vec<Option<T>>, index: u32, value: Option<T>) {
    let index = to_usize(u64::from(index));
    if index >= table.len() {
        table.resize_with(index + 1, || None);
    }
    table[index] = value;
}

pub(super) fn take<T>(table: &mut [Option<T>], index: u32) -> Result<Option<T>, Failure> {
    table.get_mut(to_usize(u64::from(index))).map(Option::take).ok_or(Failure::Packet)
}

/// Receives one message with at most two descriptors.
fn receive(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
    flags: RecvFlags,
) -> Result<[Option<OwnedFd>; 2], Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let expected = bytes.len();
    let parts = &mut [IoSliceMut::new(bytes)];
    let flags = flags | RecvFlags::CMSG_CLOEXEC;
    let received = rustix::net::recvmsg(socket, parts, &mut control, flags)?;
    if received.bytes != expected {
        return Err(Errno::PROTO);
    }
    let rights = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let mut fds = rights.flatten();
    Ok([fds.next(), fds.next()])
}

/// The server opens all descriptors close-on-exec; this is for those that it inherited itself, and
/// for those of drivers. Called where only the standard ones are in use.
fn close_inherited() -> Result<(), Failure> {
    // SAFETY: what the server has sent is mapped and its descriptors closed, or not received yet;
    // the allocator and the runtime keep none.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
    if closed == 0 { Ok(()) } else { Err(Failure::Sandbox) }
}

/// This device's timeline.
pub(super) struct Clock {
    page: Mapping,
    signals: u64,
}

impl Clock {
    pub(super) fn of(page: Mapping) -> Clock {
        Clock { page, signals: 0 }
    }

    pub(super) fn signal(&mut self) {
        self.signals += 1;
        Words::of(&self.page).set(self.signals);
    }
}

/// What is mapped, by the server's numbers.
pub(super) struct Memory {
    segments: Vec<Option<Mapping>>,
}

impl Memory {
    fn segment(&self, segment: u32) -> Result<&Mapping, Failure> {
        let segment = self.segments.get(to_usize(u64::from(segment)));
        segment.and_then(Option::as_ref).ok_or(Failure::Packet)
    }

    /// Where `bytes` bytes at an address are in this process.
    pub(super) fn address(&self, at: Address, bytes: u64) -> Result<u64, Failure> {
        let mapping = self.segment(at.segment())?;
        let address = mapping.at(at.offset(), bytes).ok_or(Failure::Packet)?;
        Ok(to_u64(address.expose_provenance().get()))
    }

    /// Copies between two resolved addresses, in pieces that count as progress. Where the two
    /// overlap, the source is read before it is overwritten.
    ///
    /// # Safety
    ///
    /// Both were resolved by [`Self::address`] for as many bytes, in segments still mapped, `to` in
    /// a writable one.
    pub(super) unsafe fn copy(&self, to: u64, from: u64, bytes: u64, ring: &Ring) {
        const PIECE: u64 = DeviceLimits::COPY_PIECE_BYTES;
        let pieces = bytes.div_ceil(PIECE);
        for piece in 0..pieces {
            // Upwards the last piece goes first, so that none overwrites what is still to be read.
            let start = PIECE * if to > from { pieces - 1 - piece } else { piece };
            let length = PIECE.min(bytes - start);
            ring.begin();
            let to = std::ptr::with_exposed_provenance_mut::<u8>(to_usize(to + start));
            let from = std::ptr::with_exposed_provenance::<u8>(to_usize(from + start));
            // SAFETY: by this function's contract; overlap is allowed.
            unsafe { std::ptr::copy(from, to, to_usize(length)) };
        }
    }

    fn copy_between(
        &self,
        to: Address,
        from: Address,
        bytes: u64,
        ring: &Ring,
    ) -> Result<(), Failure> {
        let (to, from) = (self.address(to, bytes)?, self.address(from, bytes)?);
        // SAFETY: just resolved; the server has writable only this session's own segments, and
        // names no other as a target.
        unsafe { self.copy(to, from, bytes, ring) };
        Ok(())
    }

    fn write(&self, to: Address, bytes: u64, data: &[u64]) -> Result<(), Failure> {
        if bytes > to_u64(size_of_val(data)) {
            return Err(Failure::Packet);
        }
        let to = std::ptr::with_exposed_provenance_mut::<u8>(to_usize(self.address(to, bytes)?));
        // SAFETY: both sides have so many bytes, checked above, and the ring is not a segment.
        unsafe { std::ptr::copy(data.as_ptr().cast(), to, to_usize(bytes)) };
        Ok(())
    }

    /// The words of a packet that lies in scratch memory.
    fn words(&self, at: Address, words: u64) -> Result<&[u64], Failure> {
        let bytes = words.checked_mul(8).ok_or(Failure::Packet)?;
        let address = std::ptr::with_exposed_provenance(to_usize(self.address(at, bytes)?));
        // SAFETY: mapped for as many bytes, aligned as all ranges are, and written by the server
        // before it queued the packet.
        Ok(unsafe { std::slice::from_raw_parts(address, to_usize(words)) })
    }

    fn report(&self, status: Address, why: Option<&str>) -> Result<(), Failure> {
        let words = outcome(why);
        self.write(status, to_u64(words.len() * 8), &words)
    }

    /// Gives whole pages back to the system. They read as zero from then on.
    fn discard(&self, at: Address, bytes: u64) -> Result<(), Failure> {
        let page = to_u64(rustix::param::page_size());
        let start = at.offset().next_multiple_of(page);
        let end = (at.offset() + bytes) / page * page;
        if start < end {
            let whole = Address::new(at.segment(), start);
            let address = to_usize(self.address(whole, end - start)?);
            let address = std::ptr::with_exposed_provenance_mut(address);
            // SAFETY: shared memory of this session that the server has freed: nothing points
            // there any more.
            //
            // Where it fails the pages are kept, which is no harm.
            let _ =
                unsafe { rustix::mm::madvise(address, to_usize(end - start), Advice::LinuxRemove) };
        }
        Ok(())
    }

    fn forget(&mut self, segment: u32) -> Result<(), Failure> {
        take(&mut self.segments, segment).map(drop)
    }

    /// Sleeps until another device's timeline has reached a value.
    fn wait(&self, timeline: u64, value: u64, ring: &Ring) -> Result<(), Failure> {
        let timeline = u32::try_from(timeline).map_err(|_| Failure::Packet)?;
        let page = self.segment(timeline)?;
        page.at(0, PAGE_BYTES).ok_or(Failure::Packet)?;
        ring.set_waiting(true);
        Words::of(page).wait(value);
        ring.set_waiting(false);
        Ok(())
    }
}
