//! The queue of packets from the server to one worker, in memory that both see.
//!
//! Owns: the layout of that memory, [`Producer`] (the server's end), [`Ring::next`] and its
//! neighbours (the worker's end), sleeping and waking on both sides. Absent: what packets mean
//! (`packet`).
//!
//! Positions count bytes since the start and never wrap; a position's place in the memory is its
//! remainder. The data is mapped twice in a row, so that each packet is one piece wherever it
//! starts.
//!
//! The worker runs foreign code that can write anything here. So the server keeps its own copy of
//! what it knows (its position, the number of packets), reads each of the worker's words once per
//! look, and takes a value that cannot be for the end of the worker. What the worker reads it
//! trusts, as it must.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::time::{Duration, Instant};

use rustix::mm::{MapFlags, ProtFlags};
use rustix::thread::futex::{self, Wait, WaitFlags, WaitPtr, WaitvFlags};
use rustix::time::{ClockId, Timespec};

use super::DeviceError;
use super::backoff::Backoff;
use super::pace::Pace;
use super::packet;
use super::shared::{create_sealed, to_u64, to_usize};
use crate::config::DeviceLimits;

const HEADER_BYTES: usize = 4096;
const DATA_BYTES: usize = DeviceLimits::RING_BYTES;
const WORD_BYTES: usize = size_of::<u64>();

/// Room for what a worker has to say.
const TEXT_BYTES: usize = 512;

/// The time of work that its device refused. The text says why.
pub(super) const REFUSED: Duration = Duration::from_nanos(u64::MAX);

/// `wake_at` while nobody waits.
const DISARMED: u64 = u64::MAX;

/// A word with a cache line to itself, since the two sides write different ones.
#[repr(C, align(64))]
#[derive(Default)]
struct Line<T>(T);

/// The shared words. All zero at first.
#[repr(C)]
struct Header {
    /// Where the server will write next.
    tail: Line<AtomicU64>,
    /// The packet after which the worker rings the doorbell.
    wake_at: Line<AtomicU64>,
    /// Where the worker will read next.
    head: Line<AtomicU64>,
    /// Packets done. Each packet has the next number, from 1.
    completed: AtomicU64,
    /// Units of work begun: kernels, pieces of copies.
    progress: AtomicU64,
    /// Whether the worker waits for another device's timeline.
    waiting: AtomicU32,
    /// Whether the worker sleeps until there are packets.
    sleeping: Line<AtomicU32>,
    /// Nanoseconds of timed work.
    timers: Line<[AtomicU64; DeviceLimits::TIMERS]>,
    /// Whether the device that the worker drives is open.
    ready: Line<AtomicU32>,
    /// Why the worker ends, as a kind of error, and the length of the text.
    ending: Line<(AtomicU32, AtomicU32)>,
    /// What the worker has to say, in words of eight bytes.
    text: [AtomicU64; TEXT_BYTES / WORD_BYTES],
}

const _: () = assert!(size_of::<Header>() <= HEADER_BYTES);
const _: () = assert!(DATA_BYTES.is_power_of_two() && DATA_BYTES.is_multiple_of(HEADER_BYTES));

/// The mapped memory of a queue: the header's page, then the data, then the data once more.
pub(super) struct Ring {
    base: NonNull<u8>,
    pace: Pace,
}

impl Ring {
    const MAPPED_BYTES: usize = HEADER_BYTES + 2 * DATA_BYTES;

    /// An empty queue, and the descriptor with which a worker opens it.
    pub(super) fn create() -> io::Result<(Ring, OwnedFd)> {
        let fd = create_sealed("outboard-ring", HEADER_BYTES + DATA_BYTES)?;
        let ring = Ring::open(&fd)?;
        ring.header().wake_at.0.store(DISARMED, Ordering::Relaxed);
        Ok((ring, fd))
    }

    /// Maps a queue that [`Ring::create`] made.
    pub(super) fn open(fd: &OwnedFd) -> io::Result<Ring> {
        let bytes = Self::MAPPED_BYTES;
        let (none, flags) = (ProtFlags::empty(), MapFlags::PRIVATE | MapFlags::NORESERVE);
        // SAFETY: the kernel chooses a free address range.
        let base = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), bytes, none, flags) }?;
        let base = NonNull::new(base.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let ring = Ring { base, pace: Pace::default() };
        ring.place(fd, 0, HEADER_BYTES + DATA_BYTES, 0)?;
        ring.place(fd, HEADER_BYTES + DATA_BYTES, DATA_BYTES, to_u64(HEADER_BYTES))?;
        Ok(ring)
    }

    fn place(&self, fd: &OwnedFd, at: usize, bytes: usize, offset: u64) -> io::Result<()> {
        assert!(at + bytes <= Self::MAPPED_BYTES);
        // SAFETY: inside the reserved range, checked above.
        let at = unsafe { self.base.add(at) };
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::FIXED;
        // SAFETY: replaces only pages of our own reservation, to which nothing points yet.
        unsafe { rustix::mm::mmap(at.as_ptr().cast(), bytes, access, flags, fd, offset) }?;
        Ok(())
    }

    fn header(&self) -> &Header {
        // SAFETY: the first page is mapped as long as `self`, and holds only atomics, for which
        // every bit pattern is a value and changes from elsewhere are allowed.
        unsafe { self.base.cast::<Header>().as_ref() }
    }

    /// The address of `words` words at a position.
    fn data(&self, position: u64, words: usize) -> NonNull<u64> {
        let place = to_usize(position) % DATA_BYTES;
        assert!(place.is_multiple_of(WORD_BYTES) && words <= DATA_BYTES / WORD_BYTES);
        // SAFETY: the place lies in the first mapping of the data, and at most the length of the
        // data after it is mapped too.
        unsafe { self.base.add(HEADER_BYTES + place) }.cast()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the whole reservation, made by `open`; borrows of it ended with `self`.
        let unmapped = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), Self::MAPPED_BYTES) };
        debug_assert!(unmapped.is_ok(), "a mapping can be unmapped");
    }
}

/// The worker has written something that it never writes by itself.
#[derive(Debug, thiserror::Error)]
#[error("the worker's queue holds impossible values")]
pub(super) struct Nonsense;

/// The server's end.
pub(super) struct Producer {
    ring: Ring,
    tail: u64,
    /// The last packet for which the worker had to be woken.
    woken_for: u64,
    /// What is known of the worker, from the last look.
    head: u64,
    completed: u64,
    progress: u64,
    submitted: u64,
    /// Units of work in all packets: what `progress` can reach.
    units: u64,
    /// Some packets' numbers and ends, by which to tell what to wait for when the queue is full.
    marks: VecDeque<(u64, u64)>,
}

impl Producer {
    const MARK_BYTES: u64 = DeviceLimits::RING_BYTES as u64 / 16;

    pub(super) fn new(ring: Ring) -> Producer {
        let marks = VecDeque::new();
        Producer {
            ring,
            tail: 0,
            woken_for: 0,
            head: 0,
            completed: 0,
            progress: 0,
            submitted: 0,
            units: 0,
            marks,
        }
    }

    /// Bytes free, as of the last look.
    pub(super) fn free_bytes(&self) -> usize {
        DATA_BYTES - to_usize(self.tail - self.head)
    }

    /// Whether `bytes` are free, after a look if need be.
    pub(super) fn ensure(&mut self, bytes: usize) -> bool {
        self.free_bytes() >= bytes || self.look().is_ok() && self.free_bytes() >= bytes
    }

    pub(super) fn submitted(&self) -> u64 {
        self.submitted
    }

    pub(super) fn completed(&self) -> u64 {
        self.completed
    }

    pub(super) fn progress(&self) -> u64 {
        self.progress
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.ring.header().waiting.load(Ordering::Relaxed) != 0
    }

    /// Reads how far the worker has come.
    pub(super) fn look(&mut self) -> Result<(), Nonsense> {
        let header = self.ring.header();
        let completed = header.completed.load(Ordering::Acquire);
        let head = header.head.0.load(Ordering::Acquire);
        let progress = header.progress.load(Ordering::Relaxed);
        let possible = (self.completed..=self.submitted).contains(&completed)
            && (self.head..=self.tail).contains(&head)
            && (self.progress..=self.units).contains(&progress);
        if !possible {
            return Err(Nonsense);
        }
        (self.completed, self.head, self.progress) = (completed, head, progress);
        // A packet's room comes back before the packet is done. Otherwise whoever waits for room
        // would wait for what is done already, again and again.
        let mut given_back = 0;
        while let Some((_, end)) = self.marks.front().filter(|(packet, _)| *packet <= completed) {
            given_back = *end;
            self.marks.pop_front();
        }
        if completed == self.submitted {
            given_back = self.tail;
        }
        if head < given_back { Err(Nonsense) } else { Ok(()) }
    }

    /// Appends a packet, in parts, that is `units` units of work, if there is room. The worker sees
    /// it after [`Self::publish`].
    pub(super) fn push_parts(&mut self, parts: &[&[u64]], units: u64) -> Option<u64> {
        let bytes = parts.iter().map(|part| size_of_val(*part)).sum();
        if !self.ensure(bytes) {
            return None;
        }
        for part in parts {
            let to = self.ring.data(self.tail, part.len());
            // SAFETY: `to` has room for as many words; the worker does not read here before the
            // tail has passed.
            unsafe { std::ptr::copy_nonoverlapping(part.as_ptr(), to.as_ptr(), part.len()) };
            self.tail += to_u64(size_of_val(*part));
        }
        self.submitted += 1;
        self.units += units;
        if self.tail - self.marks.back().map_or(self.head, |mark| mark.1) >= Self::MARK_BYTES {
            self.marks.push_back((self.submitted, self.tail));
        }
        Some(self.submitted)
    }

    /// A packet in one part.
    #[cfg(test)]
    fn push(&mut self, words: &[u64], units: u64) -> Option<u64> {
        self.push_parts(&[words], units)
    }

    /// Lets the worker see what was pushed, and wakes it if it sleeps.
    pub(super) fn publish(&mut self) {
        let header = self.ring.header();
        header.tail.0.store(self.tail, Ordering::Release);
        self.wake();
    }

    /// Wakes the worker if it sleeps. It looks at all that was stored before.
    pub(super) fn wake(&mut self) {
        // Against `Ring::sleep`: either the flag is seen here, or what was stored there.
        fence(Ordering::SeqCst);
        let sleeping = &self.ring.header().sleeping.0;
        if sleeping.load(Ordering::Relaxed) != 0 && sleeping.swap(0, Ordering::Relaxed) != 0 {
            // Waking cannot fail on a mapped word, and there is nobody to tell.
            let _ = futex::wake(sleeping, futex::Flags::empty(), 1);
            self.woken_for = self.submitted;
        }
    }

    /// Whether the worker, as of the last look, has not done what it was woken for.
    pub(super) fn is_waking(&self) -> bool {
        self.completed < self.woken_for
    }

    /// The packet after which at least `bytes` are free, unless they are free already.
    pub(super) fn room(&self, bytes: usize) -> Option<u64> {
        if self.free_bytes() >= bytes {
            return None;
        }
        let head = self.tail - to_u64(DATA_BYTES - bytes);
        let mark = self.marks.iter().find(|(_, end)| *end >= head);
        Some(mark.map_or(self.submitted, |mark| mark.0))
    }

    /// Has the worker ring once `packet` is done.
    pub(super) fn arm(&self, packet: u64) {
        self.ring.header().wake_at.0.store(packet, Ordering::Relaxed);
        // Against `Ring::finish`: either the worker sees this, or the caller's next look sees the
        // packet done.
        fence(Ordering::SeqCst);
    }

    /// Whether the device that the worker drives is open.
    pub(super) fn is_ready(&self) -> bool {
        self.ring.header().ready.0.load(Ordering::Relaxed) != 0
    }

    /// Why the worker has ended, if it has said so. It is taken for true, which it is where the
    /// worker runs no code of clients.
    pub(super) fn last_words(&self) -> Option<DeviceError> {
        match self.ring.header().ending.0.0.load(Ordering::Acquire) {
            0 => None,
            ENDED_BY_FAULT => Some(DeviceError::Fault { what: self.text() }),
            _ => Some(DeviceError::Lost { why: self.text() }),
        }
    }

    /// What the worker said last.
    pub(super) fn text(&self) -> String {
        let header = self.ring.header();
        let bytes = usize::try_from(header.ending.0.1.load(Ordering::Relaxed)).unwrap_or(0);
        let words = header.text.iter().map(|word| word.load(Ordering::Relaxed));
        let text: Vec<u8> = words.flat_map(u64::to_ne_bytes).take(bytes).collect();
        String::from_utf8_lossy(&text).into_owned()
    }

    pub(super) fn timer(&self, timer: u32) -> Duration {
        let timers = &self.ring.header().timers.0;
        let timer = usize::try_from(timer).ok().and_then(|timer| timers.get(timer));
        timer.map_or(Duration::ZERO, |ns| Duration::from_nanos(ns.load(Ordering::Relaxed)))
    }
}

/// Kinds of error in [`Header::ending`].
const ENDED_BY_FAULT: u32 = 1;
const ENDED_OTHERWISE: u32 = 2;

/// How far a worker has come in its queue.
#[derive(Default)]
pub(super) struct Place {
    head: u64,
    completed: u64,
}

/// How long a worker looks for packets before it sleeps: longer where a client seems to send one
/// request after the other, and wakes it each time just after it went to sleep.
#[derive(Debug)]
pub(super) struct Patience {
    short: Duration,
    long: Duration,
    /// One of the two.
    limit: Duration,
    /// Of long looks; each sleep is an occasion.
    backoff: Backoff,
}

impl Patience {
    /// Where there is but one core, nothing comes while somebody looks.
    pub(super) fn new(is_parallel: bool) -> Patience {
        let (short, long) = (DeviceLimits::WORKER_SPIN, DeviceLimits::WORKER_SPIN_LONG);
        let (short, long) = if is_parallel { (short, long) } else { (Duration::ZERO, short) };
        Patience { short, long, limit: short, backoff: Backoff::default() }
    }

    /// How long to look.
    pub(super) fn limit(&self) -> Duration {
        self.limit
    }

    /// After a look that was not in vain.
    pub(super) fn found(&mut self, looked: Duration) {
        if looked >= self.short {
            self.backoff.succeeded();
        }
    }

    /// After a sleep: `idle` is the time from the last packet to the next.
    pub(super) fn slept(&mut self, idle: Duration) {
        if self.limit > self.short {
            self.limit = self.short;
            self.backoff.failed();
        } else if self.backoff.is_due() && idle < 4 * self.long {
            // It would have been far less without wake-ups: the worker's, and the server's, which
            // does not linger for a worker that sleeps.
            self.limit = self.long;
        }
    }
}

impl Ring {
    /// The next packet's words, if there is one. The worker's own memory could say anything, so
    /// the length is checked against what the server has published.
    pub(super) fn next(&self, place: &Place) -> Option<&[u64]> {
        let tail = self.header().tail.0.load(Ordering::Acquire);
        let published = to_usize(tail - place.head) / WORD_BYTES;
        if published == 0 {
            return None;
        }
        // SAFETY: at least one word has been published at this position.
        let first = unsafe { self.data(place.head, 1).read() };
        let len = packet::head(first).1.clamp(1, published);
        let words = self.data(place.head, len);
        // SAFETY: published, so initialised, and the server leaves these words alone until `finish`
        // has passed them, which needs `place` mutably.
        Some(unsafe { std::slice::from_raw_parts(words.as_ptr(), len) })
    }

    /// Marks the packet at `place` as done. True where the server asked for the doorbell.
    #[must_use]
    pub(super) fn finish(&self, place: &mut Place, words: usize) -> bool {
        self.take(place, words);
        self.complete(place)
    }

    /// Gives the room of the packet at `place` back. It is done when [`Self::complete`] has been
    /// called as often.
    pub(super) fn take(&self, place: &mut Place, words: usize) {
        place.head += to_u64(words * WORD_BYTES);
        self.header().head.0.store(place.head, Ordering::Release);
    }

    /// Marks the first packet that is not done as done. True where the server asked for the
    /// doorbell.
    #[must_use]
    pub(super) fn complete(&self, place: &mut Place) -> bool {
        let header = self.header();
        place.completed += 1;
        header.completed.store(place.completed, Ordering::Release);
        fence(Ordering::SeqCst);
        let wake_at = header.wake_at.0.load(Ordering::Relaxed);
        let (order, failed) = (Ordering::Relaxed, Ordering::Relaxed);
        wake_at <= place.completed
            && header.wake_at.0.compare_exchange(wake_at, DISARMED, order, failed).is_ok()
    }

    /// Returns when there may be packets past `place`: looks for a while, then sleeps.
    pub(super) fn sleep(&self, place: &Place, patience: &mut Patience) {
        let header = self.header();
        let is_empty = || header.tail.0.load(Ordering::Acquire) == place.head;
        let start = Instant::now();
        let mut looked = Duration::ZERO;
        loop {
            for _ in 0..64 {
                if !is_empty() {
                    return patience.found(looked);
                }
                std::hint::spin_loop();
            }
            looked = start.elapsed();
            if looked >= patience.limit {
                break;
            }
            if looked >= patience.short {
                rustix::thread::sched_yield();
            }
        }
        let sleeping = &header.sleeping.0;
        while is_empty() {
            sleeping.store(1, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            if is_empty() {
                // An error is a wake-up in the meantime or an interruption.
                let _ = futex::wait(sleeping, futex::Flags::empty(), 1, None);
            }
        }
        sleeping.store(0, Ordering::Relaxed);
        patience.slept(start.elapsed());
        self.pace.rested();
    }

    /// Sleeps until [`Producer::wake`] or [`Self::rouse`], unless there is a packet past `place` or
    /// `is_due` says that there is something else to do. Also wakes up where `other` is not the
    /// value that goes with it any more, and after `most`.
    pub(super) fn doze(
        &self,
        place: Option<&Place>,
        other: Option<(&AtomicU32, u32)>,
        most: Option<Duration>,
        is_due: impl FnOnce() -> bool,
    ) {
        let header = self.header();
        let sleeping = &header.sleeping.0;
        sleeping.store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let is_there = |place: &Place| header.tail.0.load(Ordering::Acquire) != place.head;
        if !place.is_some_and(is_there) && !is_due() {
            let one = |word: &AtomicU32, value: u32| {
                let mut wait = Wait::new();
                wait.uaddr = WaitPtr::new(word.as_ptr().cast());
                wait.val = u64::from(value);
                wait.flags = WaitFlags::SIZE_U32;
                wait
            };
            let mut waits = vec![one(sleeping, 1)];
            waits.extend(other.map(|(word, value)| one(word, value)));
            // An error is a wake-up in the meantime, an interruption, or the end of the time.
            let clock = ClockId::Monotonic;
            let until = most.and_then(|most| {
                let most = Timespec::try_from(most).ok()?;
                rustix::time::clock_gettime(clock).checked_add(most)
            });
            let _ = futex::waitv(&waits, WaitvFlags::empty(), until.as_ref(), clock);
        }
        sleeping.store(0, Ordering::Relaxed);
    }

    /// Ends [`Self::doze`], from another thread of the worker.
    pub(super) fn rouse(&self) {
        let sleeping = &self.header().sleeping.0;
        sleeping.store(0, Ordering::Relaxed);
        // Waking cannot fail on a mapped word, and there is nobody to tell.
        let _ = futex::wake(sleeping, futex::Flags::empty(), 1);
    }

    /// The packet after which the server has asked for the doorbell.
    pub(super) fn wanted(&self) -> Option<u64> {
        let packet = self.header().wake_at.0.load(Ordering::Relaxed);
        (packet != DISARMED).then_some(packet)
    }

    /// Says that the device is open.
    pub(super) fn set_ready(&self) {
        self.header().ready.0.store(1, Ordering::Relaxed);
    }

    /// Says why the worker ends.
    pub(super) fn say(&self, error: &DeviceError) {
        let kind = match error {
            DeviceError::Fault { what } => {
                self.say_text(what);
                ENDED_BY_FAULT
            }
            DeviceError::Lost { why } => {
                self.say_text(why);
                ENDED_OTHERWISE
            }
            other => {
                self.say_text(&other.to_string());
                ENDED_OTHERWISE
            }
        };
        self.header().ending.0.0.store(kind, Ordering::Release);
    }

    /// Says why timed work was refused.
    pub(super) fn refuse(&self, timer: u32, why: &str) {
        self.say_text(why);
        self.set_timer(timer, REFUSED);
    }

    fn say_text(&self, text: &str) {
        let end = text.floor_char_boundary(TEXT_BYTES);
        let mut words = Vec::new();
        packet::push_bytes(&mut words, &text.as_bytes()[..end]);
        let header = self.header();
        for (to, word) in header.text.iter().zip(words) {
            to.store(word, Ordering::Relaxed);
        }
        header.ending.0.1.store(u32::try_from(end).unwrap_or(0), Ordering::Relaxed);
    }

    /// Counts one more unit of work as begun, and lets others have the core now and then.
    pub(super) fn begin(&self) {
        self.pace.step();
        let progress = &self.header().progress;
        progress.store(progress.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    pub(super) fn set_waiting(&self, waiting: bool) {
        self.header().waiting.store(u32::from(waiting), Ordering::Relaxed);
    }

    pub(super) fn set_timer(&self, timer: u32, ran: Duration) {
        let nanoseconds = u64::try_from(ran.as_nanos()).unwrap_or(u64::MAX);
        let timers = &self.header().timers.0;
        if let Some(timer) = usize::try_from(timer).ok().and_then(|timer| timers.get(timer)) {
            timer.store(nanoseconds, Ordering::Relaxed);
        }
    }
}

/// What a worker may write that is not what this file makes of it.
#[cfg(fuzzing)]
impl Ring {
    /// Changes a word of the header.
    pub(super) fn spoil(&self, word: usize, change: impl FnOnce(u64) -> Option<u64>) -> Option<()> {
        assert!(word < HEADER_BYTES / WORD_BYTES);
        // SAFETY: inside the header's page, which is mapped as long as `self`.
        let at = unsafe { self.base.cast::<u64>().add(word) };
        // SAFETY: aligned, and nobody but atomics uses these bytes.
        let word = unsafe { AtomicU64::from_ptr(at.as_ptr()) };
        word.store(change(word.load(Ordering::Relaxed))?, Ordering::Relaxed);
        Some(())
    }

    /// Says that all packets so far are done, as far as the words say how far that is.
    pub(super) fn catch_up(&self, packets: u64) {
        let header = self.header();
        header.head.0.store(header.tail.0.load(Ordering::Relaxed), Ordering::Relaxed);
        header.completed.store(packets, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Producer, Ring, Place) {
        let (ring, fd) = Ring::create().unwrap();
        (Producer::new(ring), Ring::open(&fd).unwrap(), Place::default())
    }

    /// A packet of `words` words that says `n`.
    fn packet(words: usize, n: u64) -> Vec<u64> {
        let mut packet = vec![n; words];
        packet[0] = to_u64(words) << 32 | 1;
        packet
    }

    #[test]
    fn packets_at_every_offset_arrive_whole_and_in_order() {
        let (mut producer, ring, mut place) = pair();
        let words = DATA_BYTES / WORD_BYTES;
        // Odd lengths meet the end of the data at each of their words.
        for (n, len) in (0..words * 9 / 1000).zip([997, 1001, 1003].into_iter().cycle()) {
            let sent = packet(len, to_u64(n));
            producer.push(&sent, 0).unwrap();
            producer.publish();
            assert_eq!(ring.next(&place), Some(sent.as_slice()));
            assert!(!ring.finish(&mut place, len));
        }
        assert!(place.head > to_u64(8 * DATA_BYTES));
        assert!(ring.next(&place).is_none());
        producer.look().unwrap();
        assert_eq!(producer.completed(), producer.submitted());
    }

    #[test]
    fn packet_that_crosses_the_end_at_any_word_arrives_whole() {
        let words = DATA_BYTES / WORD_BYTES;
        for before in words - 16..=words {
            let (mut producer, ring, mut place) = pair();
            producer.push(&packet(before, 1), 0).unwrap();
            producer.publish();
            assert!(!ring.finish(&mut place, before));
            producer.look().unwrap();
            producer.push(&packet(16, 2), 0).unwrap();
            producer.publish();
            assert_eq!(ring.next(&place), Some(packet(16, 2).as_slice()));
        }
    }

    #[test]
    fn full_ring_refuses_and_names_a_packet_to_wait_for() {
        let (mut producer, ring, mut place) = pair();
        let sent = packet(128, 0);
        while producer.push(&sent, 0).is_some() {}
        producer.publish();
        assert_eq!(producer.submitted(), 1024);
        let half = producer.room(DATA_BYTES / 2).unwrap();
        assert!((512..=576).contains(&half), "{half}");
        for _ in 0..half {
            assert!(!ring.finish(&mut place, 128));
        }
        producer.look().unwrap();
        assert_eq!(producer.room(DATA_BYTES / 2), None);
        assert!(producer.push(&sent, 0).is_some());
    }

    #[test]
    fn armed_packet_rings_once() {
        let (mut producer, ring, mut place) = pair();
        (0..3).for_each(|n| assert!(producer.push(&packet(1, n), 0).is_some()));
        producer.publish();
        producer.arm(2);
        assert!(!ring.finish(&mut place, 1));
        assert!(ring.finish(&mut place, 1));
        assert!(!ring.finish(&mut place, 1));
    }

    #[test]
    fn worker_looks_longer_only_where_packets_come_soon() {
        let (short, long) = (DeviceLimits::WORKER_SPIN, DeviceLimits::WORKER_SPIN_LONG);
        let mut patience = Patience::new(true);
        patience.slept(Duration::from_secs(1));
        assert_eq!(patience.limit, short);
        patience.slept(long);
        assert_eq!(patience.limit, long);
        patience.found(long);
        assert_eq!(patience.limit, long);
        // Each failure makes it try again later.
        let mut sleeps = [0; 3];
        for count in &mut sleeps {
            patience.slept(long);
            assert_eq!(patience.limit, short);
            while patience.limit == short {
                *count += 1;
                patience.found(Duration::ZERO);
                patience.slept(long);
            }
        }
        assert!(sleeps[0] < sleeps[1] && sleeps[1] < sleeps[2], "{sleeps:?}");
    }

    #[test]
    fn impossible_values_are_noticed() {
        let break_it: [fn(&Header); 5] = [
            |header| header.completed.store(2, Ordering::Relaxed),
            |header| header.completed.store(0, Ordering::Relaxed),
            |header| header.head.0.store(16, Ordering::Relaxed),
            |header| header.head.0.store(0, Ordering::Relaxed),
            |header| header.progress.store(2, Ordering::Relaxed),
        ];
        for (n, break_it) in break_it.into_iter().enumerate() {
            let (mut producer, ring, mut place) = pair();
            producer.push(&packet(1, 0), 1).unwrap();
            ring.begin();
            assert!(!ring.finish(&mut place, 1));
            producer.look().unwrap();
            break_it(ring.header());
            assert!(producer.look().is_err(), "value {n}");
        }
    }

    #[test]
    fn packet_that_is_done_before_its_room_comes_back_is_noticed() {
        for done in [700, 1024] {
            let (mut producer, ring, _) = pair();
            while producer.push(&packet(128, 0), 0).is_some() {}
            assert_eq!(producer.submitted(), 1024);
            ring.header().completed.store(done, Ordering::Relaxed);
            assert!(producer.look().is_err(), "{done} packets");
        }
    }

    #[test]
    fn sleeping_worker_wakes_for_each_packet() {
        let (ring, fd) = Ring::create().unwrap();
        let mut producer = Producer::new(ring);
        let worker = std::thread::spawn(move || {
            let ring = Ring::open(&fd).unwrap();
            let (mut place, mut patience) = (Place::default(), Patience::new(false));
            while place.completed < 10_000 {
                while ring.next(&place).is_some() {
                    assert!(!ring.finish(&mut place, 1));
                }
                if place.completed < 10_000 {
                    ring.sleep(&place, &mut patience);
                }
            }
        });
        for n in 0..10_000 {
            while producer.push(&packet(1, 0), 0).is_none() {}
            producer.publish();
            if n % 100 == 0 {
                while producer.completed() < producer.submitted() {
                    producer.look().unwrap();
                }
            }
        }
        worker.join().unwrap();
    }
}
