//! The operations that the kernel works on, and what each of them needs.
//!
//! An entry lives until the kernel is done with it and its future has taken the outcome or is gone.
//! Its name in the kernel is its index, so no index is used again before.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::rc::Rc;
use std::task::{Poll, Waker};

use io_uring::cqueue;

use super::Keep;
use super::chunks::Chunks;

/// The name of completions that nobody waits for.
pub(super) const IGNORED: u64 = u64::MAX;

/// Which of the two operations of an entry is meant.
#[derive(Clone, Copy)]
pub(super) enum Half {
    /// A send in front of the main one.
    First,
    Main,
}

/// What the kernel calls an operation.
pub(super) fn name(index: u32, half: Half) -> u64 {
    u64::from(index) << 1 | u64::from(matches!(half, Half::First))
}

/// A completion as the kernel wrote it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Raw {
    pub(super) result: i32,
    pub(super) flags: u32,
}

impl Raw {
    /// The buffer that was taken.
    pub(super) fn chunk(self) -> Option<u16> {
        cqueue::buffer_select(self.flags)
    }

    pub(super) fn has_more(self) -> bool {
        cqueue::sock_nonempty(self.flags)
    }

    /// The outcome of a send that says something only when it failed: a number of bytes is a part.
    fn failure(self) -> Raw {
        let result = if self.result < 0 { self.result } else { -libc::ECONNRESET };
        Raw { result, flags: 0 }
    }
}

#[derive(Default)]
pub(super) struct Table {
    entries: Vec<Entry>,
    free: Vec<u32>,
    in_kernel: usize,
    /// Tasks whose operations are done.
    pub(super) woken: Vec<Waker>,
}

#[expect(dead_code, reason = "some of it is held for the kernel alone")]
#[derive(Default)]
struct Entry {
    descriptor: Option<Rc<OwnedFd>>,
    /// What is sent before the main operation.
    first: Vec<u8>,
    keep: Keep,
    /// Descriptors that came and are not taken yet, of an operation that yields them.
    descriptors: Option<VecDeque<Raw>>,
    outcome: Option<Raw>,
    waker: Option<Waker>,
    /// Whether a future waits for the outcome.
    is_awaited: bool,
    /// Whether the kernel may still touch what is kept here.
    is_in_kernel: bool,
}

impl Table {
    /// Operations that the kernel is not done with.
    pub(super) fn in_kernel(&self) -> usize {
        self.in_kernel
    }

    pub(super) fn insert(&mut self, descriptor: Rc<OwnedFd>, first: Vec<u8>, keep: Keep) -> u32 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.entries.push(Entry::default());
            u32::try_from(self.entries.len() - 1).expect("fewer operations than that")
        });
        self.in_kernel += 1;
        self.entries[index as usize] = Entry {
            descriptor: Some(descriptor),
            first,
            keep,
            is_awaited: true,
            is_in_kernel: true,
            ..Entry::default()
        };
        index
    }

    /// Changes what is kept for an operation that the kernel does not know of.
    pub(super) fn keep(&mut self, index: u32, keep: Keep) {
        self.entries[index as usize].keep = keep;
    }

    /// The operation comes to a descriptor each time, many times.
    pub(super) fn yields_descriptors(&mut self, index: u32) {
        self.entries[index as usize].descriptors = Some(VecDeque::new());
    }

    fn release(&mut self, index: u32) -> Entry {
        self.free.push(index);
        std::mem::take(&mut self.entries[index as usize])
    }

    /// Takes note of a completion.
    pub(super) fn complete(&mut self, name: u64, raw: Raw, chunks: &Rc<Chunks>) {
        if name == IGNORED {
            return;
        }
        let index = u32::try_from(name >> 1).expect("the kernel gives names back");
        let is_first = name & 1 == 1;
        let raw = if is_first { raw.failure() } else { raw };
        let entry = &mut self.entries[index as usize];
        debug_assert!(entry.is_in_kernel, "one last completion for each operation");
        entry.is_in_kernel = cqueue::more(raw.flags);
        self.in_kernel -= usize::from(!entry.is_in_kernel);
        if entry.is_awaited {
            match &mut entry.descriptors {
                Some(queue) => queue.push_back(raw),
                // The second word on a send without a copy: the memory is free now.
                None if cqueue::notif(raw.flags) => return,
                None => entry.outcome = Some(raw),
            }
            self.woken.extend(entry.waker.take());
            return;
        }
        match entry.descriptors {
            Some(_) => close(raw),
            None => give_back(raw, chunks),
        }
        if !entry.is_in_kernel {
            drop(self.release(index));
        }
    }

    /// The outcome, once it is known; until then the task will be woken. Memory comes back unless
    /// the kernel still reads it.
    pub(super) fn outcome(&mut self, index: u32, waker: &Waker) -> Option<(Raw, Keep)> {
        let entry = &mut self.entries[index as usize];
        let Some(raw) = entry.outcome.take() else {
            register(&mut entry.waker, waker);
            return None;
        };
        entry.is_awaited = false;
        if entry.is_in_kernel {
            return Some((raw, Keep::Nothing));
        }
        Some((raw, self.release(index).keep))
    }

    /// The next descriptor, or why there are no more.
    pub(super) fn next_descriptor(
        &mut self,
        index: u32,
        waker: &Waker,
    ) -> Poll<io::Result<OwnedFd>> {
        let entry = &mut self.entries[index as usize];
        match entry.descriptors.as_mut().and_then(VecDeque::pop_front) {
            Some(raw) => Poll::Ready(descriptor(raw)),
            None if !entry.is_in_kernel => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
            None => {
                register(&mut entry.waker, waker);
                Poll::Pending
            }
        }
    }

    /// Nobody waits for the outcome any more. Returns whether to cancel the operation.
    pub(super) fn abandon(&mut self, index: u32, chunks: &Rc<Chunks>) -> bool {
        let entry = &mut self.entries[index as usize];
        entry.is_awaited = false;
        entry.waker = None;
        entry.descriptors.iter_mut().flat_map(|queue| queue.drain(..)).for_each(close);
        let outcome = entry.outcome.take();
        let is_done = outcome.is_some();
        if let Some(raw) = outcome {
            give_back(raw, chunks);
        }
        if entry.is_in_kernel {
            return !is_done;
        }
        drop(self.release(index));
        false
    }

    /// All wakers that wait here.
    pub(super) fn take_wakers(&mut self) -> Vec<Waker> {
        let mut wakers = std::mem::take(&mut self.woken);
        wakers.extend(self.entries.iter_mut().filter_map(|entry| entry.waker.take()));
        wakers
    }
}

fn register(place: &mut Option<Waker>, waker: &Waker) {
    match place {
        Some(known) => known.clone_from(waker),
        None => *place = Some(waker.clone()),
    }
}

/// Returns the buffer of an outcome that nobody takes.
fn give_back(raw: Raw, chunks: &Rc<Chunks>) {
    if let Some(id) = raw.chunk() {
        drop(chunks.taken(id, 0));
    }
}

fn descriptor(raw: Raw) -> io::Result<OwnedFd> {
    match raw.result {
        code @ ..0 => Err(io::Error::from_raw_os_error(-code)),
        // SAFETY: the kernel made the descriptor for this completion, and it is looked at once.
        fd => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
    }
}

/// Closes a descriptor that nobody takes.
fn close(raw: Raw) {
    drop(descriptor(raw));
}
