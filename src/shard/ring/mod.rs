//! A ring of the kernel's (io_uring) that does all of a shard's input and output.
//!
//! Owns: the ring, the table of operations in flight, and with each of them the memory and the
//! descriptor that the kernel may touch until it says that it is done. So a future that waits for
//! an operation may be dropped at any time: the operation is cancelled, and what it refers to lives
//! on until its completion has come. Nearly all `unsafe` code of the shards is here.
//!
//! Absent: when to enter the kernel and when to wait in it (`driver`), sockets (`io`).
//!
//! Reading order: [`Ring`], its ways to begin an operation, [`Op`], then `table`, `chunks`.

mod chunks;
mod table;

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use io_uring::types::{CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, opcode, squeue};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use crate::config::RingLimits;
use crate::device::shared::Landing;
use crate::engine::Output;
pub(super) use chunks::Chunk;
use chunks::{Chunks, GROUP};
use table::{Half, Raw, Table};

/// Do not try first, wait for the socket at once: it is known to be empty.
const POLL_FIRST: u16 = 1;

/// What is received at once from a socket that is watched.
const WATCHED_BYTES: usize = 16 << 10;

/// A shard's ring.
pub(super) struct Ring {
    state: RefCell<State>,
    chunks: Rc<Chunks>,
}

struct State {
    uring: IoUring,
    table: Table,
    watched: Option<Watched>,
    /// Whether nothing may begin any more.
    is_closed: bool,
    chunks: Rc<Chunks>,
}

/// A receive that the kernel has not been told of.
struct Watched {
    index: u32,
    socket: Rc<OwnedFd>,
}

/// What an operation in flight keeps for the kernel.
#[expect(dead_code, reason = "most of it is held for the kernel alone")]
#[derive(Default)]
pub(super) enum Keep {
    #[default]
    Nothing,
    Address(Box<socket2::SockAddr>),
    /// What was received, of a socket that was watched.
    Came(Vec<u8>),
    /// Written by the kernel, behind its end.
    Filling(Vec<u8>),
    Landing(Landing),
    Output(Rc<Output>),
    Sending(Vec<u8>),
}

/// What an operation came to.
pub(super) struct Completion {
    /// Bytes received or sent.
    pub(super) result: io::Result<usize>,
    /// What came, of an operation that let the kernel choose the buffer.
    pub(super) chunk: Option<Chunk>,
    /// Memory that came with the operation. A vector that was received into has grown.
    pub(super) keep: Keep,
    /// Whether the socket holds more than was received.
    pub(super) has_more: bool,
}

/// Whether to wait in the kernel.
#[derive(Clone, Copy)]
pub(super) enum Wait {
    No,
    /// For a completion, for this long if it is said.
    For(Option<Duration>),
}

impl Ring {
    /// A ring for the calling thread, which alone may use it.
    pub(super) fn new(limits: RingLimits) -> io::Result<Rc<Ring>> {
        let uring = set_up(limits)?;
        let features = uring.params();
        if !features.is_feature_skip_cqe_on_success() || !features.is_feature_ext_arg() {
            return Err(too_old());
        }
        let chunks = Chunks::register(&uring, limits.chunks, limits.chunk_bytes)?;
        let state = State {
            uring,
            table: Table::default(),
            watched: None,
            is_closed: false,
            chunks: Rc::clone(&chunks),
        };
        Ok(Rc::new(Ring { state: RefCell::new(state), chunks }))
    }

    /// Sends `first`, if there is any, then receives into a buffer of the ring's. `is_drained`
    /// says that nothing is there yet.
    pub(super) fn receive_chunk(
        self: &Rc<Self>,
        socket: &Rc<OwnedFd>,
        first: Vec<u8>,
        is_drained: bool,
    ) -> Op {
        let entry = receive_entry(socket, is_drained);
        // SAFETY: the kernel writes to buffers of `self.chunks`, which it was given.
        unsafe { self.begin(socket, entry, first, Keep::Nothing) }
    }

    /// As [`Self::receive_chunk`] of a drained socket, for a shard that does not sleep: `first` is
    /// sent at once, and what comes is looked for by [`Self::look_at_watched`], which is sooner
    /// than to have the kernel tell. One socket is watched at a time, the last that asked.
    pub(super) fn receive_watched(self: &Rc<Self>, socket: &Rc<OwnedFd>, mut first: Vec<u8>) -> Op {
        if !first.is_empty() {
            // What did not go, or why, is the ring's to find out.
            let sent = rustix::net::send(socket, &first, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
            first.drain(..sent.unwrap_or(0));
            if !first.is_empty() {
                return self.receive_chunk(socket, first, true);
            }
        }
        let state = &mut *self.state.borrow_mut();
        state.hand_over_watched();
        let index = state.table.insert(Rc::clone(socket), first, Keep::Nothing);
        state.watched = Some(Watched { index, socket: Rc::clone(socket) });
        Op { ring: Rc::clone(self), index }
    }

    /// Receives what there is for the socket that is watched. Whether there was anything.
    pub(super) fn look_at_watched(&self) -> bool {
        self.state.borrow_mut().look_at_watched()
    }

    /// Receives into a vector, behind what it holds: up to `bytes_max` bytes, for which it has
    /// room.
    pub(super) fn receive_into(
        self: &Rc<Self>,
        socket: &Rc<OwnedFd>,
        mut to: Vec<u8>,
        bytes_max: usize,
    ) -> Op {
        let room = to.spare_capacity_mut();
        let length = length(room.len().min(bytes_max));
        let address = room.as_mut_ptr().cast();
        let entry = opcode::Recv::new(fd_of(socket), address, length).build();
        // SAFETY: the vector's spare room stays where it is, and is nobody else's, as long as the
        // table keeps it.
        unsafe { self.begin(socket, entry, Vec::new(), Keep::Filling(to)) }
    }

    /// Receives into shared memory.
    pub(super) fn receive_landing(self: &Rc<Self>, socket: &Rc<OwnedFd>, to: Landing) -> Op {
        let length = length(to.bytes());
        let entry = opcode::Recv::new(fd_of(socket), to.address(), length).build();
        // SAFETY: a landing's memory is mapped and may be written as long as it lives.
        unsafe { self.begin(socket, entry, Vec::new(), Keep::Landing(to)) }
    }

    /// Sends all of `bytes`.
    pub(super) fn send(self: &Rc<Self>, socket: &Rc<OwnedFd>, bytes: Vec<u8>) -> Op {
        let entry = opcode::Send::new(fd_of(socket), bytes.as_ptr(), length(bytes.len()))
            .flags(libc::MSG_WAITALL)
            .build();
        // SAFETY: the vector stays unchanged as long as the table keeps it.
        unsafe { self.begin(socket, entry, Vec::new(), Keep::Sending(bytes)) }
    }

    /// Sends all of `first`, if there is any, and then all of `part` of an output. `zero_copy`
    /// lets the network take the output's bytes from where they are.
    pub(super) fn send_output(
        self: &Rc<Self>,
        socket: &Rc<OwnedFd>,
        first: Vec<u8>,
        output: &Rc<Output>,
        part: std::ops::Range<usize>,
        zero_copy: bool,
    ) -> Op {
        let bytes = &output.as_bytes()[part];
        let (address, length) = (bytes.as_ptr(), length(bytes.len()));
        let fd = fd_of(socket);
        let entry = if zero_copy {
            opcode::SendZc::new(fd, address, length).flags(libc::MSG_WAITALL).build()
        } else {
            opcode::Send::new(fd, address, length).flags(libc::MSG_WAITALL).build()
        };
        // SAFETY: an output's bytes stay where they are as long as it lives. Workers may change
        // them; then the peer gets some of both.
        unsafe { self.begin(socket, entry, first, Keep::Output(Rc::clone(output))) }
    }

    /// Connects a socket.
    pub(super) fn connect(self: &Rc<Self>, socket: &Rc<OwnedFd>, to: std::net::SocketAddr) -> Op {
        let to = Box::new(socket2::SockAddr::from(to));
        let entry = opcode::Connect::new(fd_of(socket), to.as_ptr().cast(), to.len()).build();
        // SAFETY: the address is in a box of its own, which the table keeps.
        unsafe { self.begin(socket, entry, Vec::new(), Keep::Address(to)) }
    }

    /// Waits until there is something to read.
    pub(super) fn readable(self: &Rc<Self>, descriptor: &Rc<OwnedFd>) -> Op {
        let events = u32::from(rustix::event::PollFlags::IN.bits());
        let entry = opcode::PollAdd::new(fd_of(descriptor), events).build();
        // SAFETY: the operation touches no memory.
        unsafe { self.begin(descriptor, entry, Vec::new(), Keep::Nothing) }
    }

    /// Accepts connections until it is dropped or fails.
    pub(super) fn accept(self: &Rc<Self>, listener: &Rc<OwnedFd>) -> Accept {
        let entry = opcode::AcceptMulti::new(fd_of(listener)).flags(libc::SOCK_CLOEXEC).build();
        // SAFETY: the operation touches no memory.
        let op = unsafe { self.begin(listener, entry, Vec::new(), Keep::Nothing) };
        self.state.borrow_mut().table.yields_descriptors(op.index);
        Accept(op)
    }

    /// Begins an operation, behind a send of `first` if that is not empty: one entry into the
    /// kernel for both, and one completion. If the send fails, that is the completion, and the
    /// operation does not take place.
    ///
    /// # Safety
    ///
    /// What `entry` points to is kept by `keep`, stays where it is, and may be used as the
    /// operation uses it.
    unsafe fn begin(
        self: &Rc<Self>,
        socket: &Rc<OwnedFd>,
        entry: squeue::Entry,
        first: Vec<u8>,
        keep: Keep,
    ) -> Op {
        let state = &mut *self.state.borrow_mut();
        let (send, index);
        if first.is_empty() {
            index = state.table.insert(Rc::clone(socket), first, keep);
            send = None;
        } else {
            // The head of a reply waits for the body that comes right behind it.
            let more = if matches!(keep, Keep::Output(_)) { libc::MSG_MORE } else { 0 };
            let before = opcode::Send::new(fd_of(socket), first.as_ptr(), length(first.len()))
                .flags(libc::MSG_WAITALL | more)
                .build()
                .flags(squeue::Flags::IO_LINK | squeue::Flags::SKIP_SUCCESS);
            index = state.table.insert(Rc::clone(socket), first, keep);
            send = Some(before.user_data(table::name(index, Half::First)));
        }
        let entry = entry.user_data(table::name(index, Half::Main));
        match send {
            // SAFETY: the table keeps `first` and `keep` until the completion.
            Some(send) => unsafe { state.push(&[send, entry]) },
            // SAFETY: as above.
            None => unsafe { state.push(&[entry]) },
        }
        Op { ring: Rc::clone(self), index }
    }

    /// Hands what was begun to the kernel, lets it complete what it can, and waits if asked to.
    /// May come back early.
    pub(super) fn enter(&self, wait: Wait) {
        let state = &mut *self.state.borrow_mut();
        state.hand_over_watched();
        state.enter(wait);
    }

    /// As [`Self::enter`], if there is a reason to, and without the socket that is watched.
    pub(super) fn hand_over(&self) {
        let state = &mut *self.state.borrow_mut();
        let queue = state.uring.submission();
        if !queue.is_empty() || queue.taskrun() {
            drop(queue);
            state.enter(Wait::No);
        }
    }

    /// Takes completions in; the wakers of the tasks that wait for them are added to `woken`.
    pub(super) fn collect(&self, woken: &mut Vec<Waker>) {
        let state = &mut *self.state.borrow_mut();
        state.collect();
        woken.append(&mut state.table.woken);
    }

    /// Whether completions are here.
    pub(super) fn has_completions(&self) -> bool {
        !self.state.borrow_mut().uring.completion().is_empty()
    }

    /// Cancels everything and waits, for a bounded time, until the kernel touches nothing any more.
    /// What is woken is returned, so that it can be dropped.
    pub(super) fn close(&self) -> Vec<Waker> {
        let state = &mut *self.state.borrow_mut();
        state.is_closed = true;
        state.hand_over_watched();
        let everything = opcode::AsyncCancel2::new(CancelBuilder::any()).build();
        // SAFETY: the operation touches no memory.
        unsafe { state.push(&[everything.user_data(table::IGNORED)]) };
        for _ in 0..CLOSE_TRIES {
            if state.table.in_kernel() == 0 {
                break;
            }
            state.enter(Wait::For(Some(CLOSE_WAIT)));
            state.collect();
        }
        state.table.take_wakers()
    }
}

/// How often, and how long each time, a closing ring waits for what it has cancelled.
const CLOSE_TRIES: u32 = 100;
const CLOSE_WAIT: Duration = Duration::from_millis(10);

/// Makes the ring. Completions wait until the thread asks for them, where the kernel knows how to
/// do that (6.1); else they wait until it enters the kernel for any reason.
fn set_up(limits: RingLimits) -> io::Result<IoUring> {
    let builder = || {
        let mut builder = IoUring::builder();
        builder
            .setup_clamp()
            .setup_cqsize(limits.completions)
            .setup_single_issuer()
            .setup_submit_all()
            .setup_taskrun_flag();
        builder
    };
    let is_unknown = |error: &io::Error| error.raw_os_error() == Some(libc::EINVAL);
    let made = match builder().setup_defer_taskrun().build(limits.submissions) {
        Err(error) if is_unknown(&error) => {
            builder().setup_coop_taskrun().build(limits.submissions)
        }
        made => made,
    };
    made.map_err(|error| if is_unknown(&error) { too_old() } else { error })
}

fn too_old() -> io::Error {
    io::Error::other("this kernel's io_uring is too old: Linux 6.0 or later is needed")
}

impl State {
    /// Queues entries that belong together.
    ///
    /// # Safety
    ///
    /// What they point to is in the table, or they point to nothing.
    unsafe fn push(&mut self, entries: &[squeue::Entry]) {
        loop {
            let mut queue = self.uring.submission();
            if queue.capacity() - queue.len() >= entries.len() {
                // SAFETY: the caller's promise.
                let pushed = unsafe { queue.push_multiple(entries) };
                return pushed.expect("there is room");
            }
            drop(queue);
            self.enter(Wait::No);
            self.collect();
        }
    }

    fn enter(&mut self, wait: Wait) {
        let begun = length(self.uring.submission().len());
        let flags = EnterFlags::GETEVENTS | EnterFlags::EXT_ARG;
        let (want, time) = match wait {
            Wait::No => (0, None),
            Wait::For(time) => (1, time.map(Timespec::from)),
        };
        let arguments = match &time {
            Some(time) => SubmitArgs::new().timespec(time),
            None => SubmitArgs::new(),
        };
        let submitter = self.uring.submitter();
        // SAFETY: the arguments live to the end of the call; what the entries point to is kept.
        let entered = unsafe { submitter.enter(begun, want, flags.bits(), Some(&arguments)) };
        let Err(error) = entered else { return };
        // A signal, the end of the time, memory or room for completions that is short for now:
        // whoever waits for more comes again.
        let passing = [libc::EINTR, libc::ETIME, libc::EAGAIN, libc::EBUSY];
        let is_passing = error.raw_os_error().is_some_and(|code| passing.contains(&code));
        assert!(is_passing, "io_uring_enter failed: {error}");
    }

    /// Begins the watched receive as any other.
    fn hand_over_watched(&mut self) {
        if let Some(Watched { index, socket }) = self.watched.take() {
            let entry = receive_entry(&socket, true).user_data(table::name(index, Half::Main));
            // SAFETY: the kernel writes to buffers of `self.chunks`, which it was given.
            unsafe { self.push(&[entry]) };
        }
    }

    fn look_at_watched(&mut self) -> bool {
        let Some(Watched { socket, index }) = &self.watched else { return false };
        let mut bytes = Vec::with_capacity(WATCHED_BYTES);
        let room = rustix::buffer::spare_capacity(&mut bytes);
        let received = match rustix::net::recv(socket, room, RecvFlags::DONTWAIT) {
            Err(Errno::AGAIN | Errno::INTR) => return false,
            received => received,
        };
        let result = match received {
            Ok(_) => i32::try_from(bytes.len()).expect("a short vector"),
            Err(error) => -error.raw_os_error(),
        };
        let name = table::name(*index, Half::Main);
        self.table.keep(*index, Keep::Came(bytes));
        self.watched = None;
        self.table.complete(name, Raw { result, flags: 0 }, &self.chunks);
        true
    }

    fn collect(&mut self) {
        for entry in self.uring.completion() {
            let raw = Raw { result: entry.result(), flags: entry.flags() };
            self.table.complete(entry.user_data(), raw, &self.chunks);
        }
    }

    /// The future of an operation is gone.
    fn abandon(&mut self, index: u32) {
        if self.watched.as_ref().is_some_and(|watched| watched.index == index) {
            self.hand_over_watched();
        }
        if self.table.abandon(index, &self.chunks) && !self.is_closed {
            // The second part first: it is not found while it waits for the first one.
            let cancel = |half| {
                opcode::AsyncCancel::new(table::name(index, half))
                    .build()
                    .user_data(table::IGNORED)
                    .flags(squeue::Flags::SKIP_SUCCESS)
            };
            // SAFETY: the operations touch no memory.
            unsafe { self.push(&[cancel(Half::Main), cancel(Half::First)]) };
        }
    }
}

impl Drop for State {
    fn drop(&mut self) {
        if self.table.in_kernel() > 0 {
            // Memory that the kernel may still write to is never used for anything else.
            std::mem::forget(std::mem::take(&mut self.table));
            std::mem::forget(Rc::clone(&self.chunks));
        }
    }
}

/// An operation in flight.
#[must_use = "an operation is cancelled when dropped"]
pub(super) struct Op {
    ring: Rc<Ring>,
    index: u32,
}

/// In place of the index of an operation whose outcome was taken.
const TAKEN: u32 = u32::MAX;

impl Future for Op {
    type Output = Completion;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Completion> {
        let mut state = self.ring.state.borrow_mut();
        let Some((raw, mut keep)) = state.table.outcome(self.index, cx.waker()) else {
            return Poll::Pending;
        };
        drop(state);
        self.index = TAKEN;
        let result = match raw.result {
            code @ ..0 => Err(io::Error::from_raw_os_error(-code)),
            bytes => Ok(usize::try_from(bytes).expect("not negative")),
        };
        let received = *result.as_ref().unwrap_or(&0);
        if let Keep::Filling(vector) = &mut keep {
            let length = vector.len() + received;
            assert!(length <= vector.capacity(), "the kernel keeps to the length");
            // SAFETY: the kernel has written that many bytes behind the vector's end.
            unsafe { vector.set_len(length) };
        }
        let chunk = raw.chunk().map(|id| self.ring.chunks.taken(id, received));
        Poll::Ready(Completion { result, chunk, keep, has_more: raw.has_more() })
    }
}

impl Drop for Op {
    fn drop(&mut self) {
        if self.index != TAKEN {
            self.ring.state.borrow_mut().abandon(self.index);
        }
    }
}

/// Connections as they come.
pub(super) struct Accept(Op);

impl Accept {
    /// The next connection. After an error nothing more comes.
    pub(super) async fn next(&self) -> io::Result<OwnedFd> {
        std::future::poll_fn(|cx| {
            let mut state = self.0.ring.state.borrow_mut();
            state.table.next_descriptor(self.0.index, cx.waker())
        })
        .await
    }
}

/// Receives into a buffer that the kernel chooses.
fn receive_entry(socket: &Rc<OwnedFd>, is_drained: bool) -> squeue::Entry {
    opcode::Recv::new(fd_of(socket), std::ptr::null_mut(), 0)
        .buf_group(GROUP)
        .ioprio(if is_drained { POLL_FIRST } else { 0 })
        .build()
        .flags(squeue::Flags::BUFFER_SELECT)
}

fn fd_of(descriptor: &Rc<OwnedFd>) -> Fd {
    Fd(descriptor.as_raw_fd())
}

/// From how many bytes on a socket counts as readable.
pub(super) fn set_receive_low_water(socket: &OwnedFd, bytes: usize) -> io::Result<()> {
    let bytes = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    let length = libc::socklen_t::try_from(size_of_val(&bytes)).expect("four bytes");
    let (level, name) = (libc::SOL_SOCKET, libc::SO_RCVLOWAT);
    let value = (&raw const bytes).cast();
    // SAFETY: the value lives to the end of the call and has the length that is said.
    match unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value, length) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The length of one operation; more than 1 GiB is done in parts.
fn length(bytes: usize) -> u32 {
    u32::try_from(bytes.min(1 << 30)).expect("at most 1 GiB")
}
