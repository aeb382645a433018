//! The thread of each device that does what takes long: it opens the context and ends it, loads
//! programs, and carries large uploads to the device.
//!
//! Owns: [`Clerk`] (the thread's other end), [`Job`] and [`Report`], [`Bell`]. Absent: the order of
//! work. While an upload is under way the device takes no other work.
//!
//! The thread ends when nobody can send it jobs any more: the device itself and all pinned memory
//! that is still being read. Then the context goes, with nothing left in it.
//!
//! An upload goes through pinned memory in pieces, each with a stream of its own, so that one is
//! filled while the others are on their way.

use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType};
use std::any::Any;
use std::ffi::{CString, c_void};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use super::arena::Arena;
use super::closing::{self, Remains};
use super::device::Stop;
use super::driver::{DeviceInfo, DevicePointer, Driver, EventUse, Kind, LaunchLimits, Ordinal};
use super::handles::{Context, Done, Event, Function, Module, Pinned, Pool, Stream, Trouble};
use super::registered::{Ended, Registration};
use super::store::Store;
use crate::config::GpuLimits;
use crate::cores;
use crate::device::budget::Budget;
use crate::device::shared::{SharedFile, to_u64, to_usize};

/// What the thread does for the device.
pub(super) enum Job {
    /// The device is lost or dropped: gives back all that is left, and ends its context.
    Close(Box<Remains>),
    /// Gives something back.
    Drop(Box<dyn Any + Send>),
    Load {
        number: u64,
        image: Vec<u8>,
        name: CString,
    },
    Upload(Upload),
}

/// Bytes on their way to the device.
pub(super) struct Upload {
    pub(super) number: u64,
    pub(super) to: DevicePointer,
    pub(super) file: Arc<SharedFile>,
    pub(super) offset: u64,
    pub(super) bytes: u64,
    /// Until here the destination is in use.
    pub(super) after: Event,
    /// Whether the memory is to be registered first, from where it is copied then.
    pub(super) registers: bool,
}

/// What the thread has to say.
pub(super) enum Report {
    Loaded { number: u64, outcome: Result<Loaded, Refused> },
    Opened(Result<Box<Opened>, Stop>),
    Uploaded { number: u64, outcome: Done<()>, registration: Option<Ended> },
}

/// A program on the device.
pub(super) struct Loaded {
    pub(super) module: Module,
    pub(super) function: Function,
}

/// Why a program could not be loaded.
pub(super) struct Refused {
    pub(super) trouble: Trouble,
    /// What the driver's compiler says, if anything.
    pub(super) words: String,
}

/// What a device needs to begin.
pub(super) struct Opened {
    pub(super) context: Arc<Context>,
    /// In the order of [`super::queue::Lane`].
    pub(super) streams: [Stream; 3],
    pub(super) bell: Stream,
    pub(super) store: Store,
    /// For short uploads.
    pub(super) inbox: Pinned,
    /// For downloads.
    pub(super) outbox: Vec<Pinned>,
    pub(super) limits: LaunchLimits,
    pub(super) budget: Arc<Budget>,
}

/// What all devices of one ordinal share.
pub(super) struct Shared {
    pub(super) driver: &'static dyn Driver,
    pub(super) ordinal: Ordinal,
    pub(super) info: DeviceInfo,
    /// The device's memory, as far as it was free when first asked.
    pub(super) budget: OnceLock<Arc<Budget>>,
    /// Whether network cards are to reach its memory.
    pub(super) exports: bool,
}

/// The device's end of the thread.
pub(super) struct Clerk {
    jobs: Sender<Job>,
    /// Until the device is lost.
    reports: Option<Receiver<Report>>,
}

impl Clerk {
    /// Starts the thread, which begins to open a context.
    pub(super) fn start(shared: &Arc<Shared>, bell: &Arc<Bell>) -> io::Result<Clerk> {
        let (jobs, inbox) = mpsc::channel();
        let (outbox, reports) = mpsc::channel();
        let (shared, bell) = (Arc::clone(shared), Arc::clone(bell));
        let name = format!("outboard-{}", shared.driver.name().to_lowercase());
        let counted = Counted::new();
        std::thread::Builder::new().name(name).spawn(move || {
            cores::spread();
            run(&shared, &bell, &inbox, &outbox);
            drop(counted);
        })?;
        Ok(Clerk { jobs, reports: Some(reports) })
    }

    pub(super) fn send(&self, job: Job) {
        // The thread ends after all senders only.
        drop(self.jobs.send(job));
    }

    /// For what may outlive the device.
    pub(super) fn jobs(&self) -> Sender<Job> {
        self.jobs.clone()
    }

    pub(super) fn report(&self) -> Option<Report> {
        self.reports.as_ref()?.try_recv().ok()
    }

    /// Waits for a report. Blocks.
    pub(super) fn wait(&self) -> Option<Report> {
        self.reports.as_ref()?.recv().ok()
    }

    /// Hears no more reports: what is in them goes back where it came from.
    pub(super) fn deafen(&mut self) {
        if let Some(reports) = self.reports.take() {
            self.send(Job::Drop(Box::new(reports)));
        }
    }
}

/// How many such threads there are, and who waits for them.
static THREADS: (Mutex<usize>, Condvar) = (Mutex::new(0), Condvar::new());

struct Counted;

impl Counted {
    fn new() -> Counted {
        *THREADS.0.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        Counted
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        *THREADS.0.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        THREADS.1.notify_all();
    }
}

/// Waits until all devices that were dropped have given back what they had, for a time. To be
/// called before the process ends, so that drivers are left in order. Blocks.
pub fn settle(limit: Duration) {
    let threads = THREADS.0.lock().unwrap_or_else(PoisonError::into_inner);
    drop(THREADS.1.wait_timeout_while(threads, limit, |threads| *threads > 0));
}

/// The far end of a device's doorbell.
pub(super) struct Bell {
    socket: OwnedFd,
    has_ended: AtomicBool,
}

impl Bell {
    /// A bell, and the end that its owner listens at. Neither blocks.
    pub(super) fn create() -> io::Result<(Arc<Bell>, OwnedFd)> {
        let (family, kind) = (AddressFamily::UNIX, SocketType::STREAM);
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) = rustix::net::socketpair(family, kind, flags, None)?;
        Ok((Arc::new(Bell { socket: theirs, has_ended: AtomicBool::new(false) }), ours))
    }

    pub(super) fn ring(&self) {
        // Full: it has been rung often enough. Closed: nobody listens.
        let _ = rustix::net::send(self.fd(), &[1], rustix::net::SendFlags::NOSIGNAL);
    }

    /// The device is lost: whoever listens sees the end.
    pub(super) fn end(&self) {
        self.has_ended.store(true, Ordering::Release);
        // It may have ended already.
        let _ = rustix::net::shutdown(self.fd(), Shutdown::Both);
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether the device is lost or dropped.
    fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Acquire)
    }

    /// Rings the bell once the stream is here.
    pub(super) fn ring_behind(self: &Arc<Bell>, stream: &Stream) -> Done<()> {
        let argument = Arc::as_ptr(self).cast_mut().cast::<c_void>();
        // SAFETY: the thread of the device that owns this stream keeps the bell until the stream's
        // context has ended, and writing to a socket is no call of the driver's.
        unsafe { stream.call_back(ring, argument) }
    }
}

/// Called by the driver.
unsafe extern "C" fn ring(bell: *mut c_void) {
    // SAFETY: see `ring_behind`: a bell that lives until the context has ended.
    let bell = unsafe { &*bell.cast::<Bell>() };
    bell.ring();
}

fn run(shared: &Shared, bell: &Arc<Bell>, jobs: &Receiver<Job>, reports: &Sender<Report>) {
    let mut uploader = None;
    let report = |report| {
        // A device that is gone does not listen.
        drop(reports.send(report));
        bell.ring();
    };
    let created = Context::create(shared.driver, shared.ordinal).map_err(Stop::from);
    let opened = created.and_then(|context| Ok((open(shared, &context)?, context)));
    let context = match opened {
        Ok(((opened, slots), context)) => {
            uploader = Some(slots);
            report(Report::Opened(Ok(Box::new(opened))));
            Some(context)
        }
        Err(stop) => {
            report(Report::Opened(Err(stop)));
            None
        }
    };
    for job in jobs {
        match (job, &context) {
            (Job::Close(remains), Some(context)) => {
                closing::close(context, *remains, uploader.take());
            }
            (Job::Load { number, image, name }, Some(context)) => {
                report(Report::Loaded { number, outcome: load(context, &image, &name) });
            }
            (Job::Upload(upload), Some(context)) => {
                let registration = register(context, &upload);
                let outcome = match &mut uploader {
                    Some(uploader) => uploader.carry(&upload, registration.is_some(), bell),
                    None => Ok(()),
                };
                report(Report::Uploaded { number: upload.number, outcome, registration });
            }
            (Job::Drop(dead), _) => drop(dead),
            // Without a context nothing was asked for.
            (_, None) => {}
        }
    }
}

fn open(shared: &Shared, context: &Arc<Context>) -> Result<(Opened, Uploader), Stop> {
    let stream = || Stream::create(context);
    let pinned = |bytes| Pinned::create(context, bytes);
    let info = &shared.info;
    let (free, _) = context.memory_info()?;
    let budget = shared.budget.get_or_init(|| Arc::new(Budget::new(free)));
    let store = match (shared.exports, info.has_pools) {
        (true, _) => Store::Arena(Arena::new(context)),
        (false, true) => match Pool::create(context, GpuLimits::POOL_KEEP_BYTES) {
            Err(trouble) if shared.driver.kind(trouble.code) == Kind::Unsupported => Store::Plain,
            pool => Store::Pool(pool?),
        },
        (false, false) => Store::Plain,
    };
    let outbox = (0..GpuLimits::OUT_PIECES_KEPT).map(|_| pinned(GpuLimits::OUT_PIECE_BYTES));
    let opened = Opened {
        context: Arc::clone(context),
        streams: [stream()?, stream()?, stream()?],
        bell: stream()?,
        store,
        inbox: pinned(GpuLimits::IN_RING_BYTES)?,
        outbox: outbox.collect::<Result<_, _>>()?,
        limits: info.limits,
        budget: Arc::clone(budget),
    };
    Ok((opened, Uploader::create(context)?))
}

fn load(context: &Arc<Context>, image: &[u8], name: &CString) -> Result<Loaded, Refused> {
    let refused = |trouble| Refused { trouble, words: String::new() };
    let module =
        Module::load(context, image).map_err(|(trouble, words)| Refused { trouble, words })?;
    let function = module.function(name).map_err(refused)?;
    Ok(Loaded { module, function })
}

/// Registers the memory of an upload, where that is wanted and can be done.
fn register(context: &Arc<Context>, upload: &Upload) -> Option<Ended> {
    if !upload.registers {
        return None;
    }
    match Registration::create(context, &upload.file) {
        Ok(registration) => registration,
        Err(trouble) => {
            let why = context.driver().describe(trouble.code);
            tracing::debug!(why, "staging memory is not registered: it is copied");
            None
        }
    }
}

/// Pinned memory through which uploads go, a stream for each piece.
pub(super) struct Uploader {
    slots: Vec<(Stream, Pinned)>,
}

impl Uploader {
    fn create(context: &Arc<Context>) -> Result<Uploader, Stop> {
        let slot = || {
            let memory = Pinned::create(context, GpuLimits::UPLOAD_PIECE_BYTES)?;
            Ok((Stream::create(context)?, memory))
        };
        let slots = (0..GpuLimits::UPLOAD_PIECES).map(|_| slot());
        Ok(Uploader { slots: slots.collect::<Result<_, Stop>>()? })
    }

    /// Copies all of it to the device. Blocks until it is there, or the device is lost: what it
    /// waits for may never end.
    fn carry(&self, upload: &Upload, is_registered: bool, bell: &Bell) -> Done<()> {
        for (stream, _) in &self.slots {
            stream.wait(&upload.after)?;
        }
        let carried = match is_registered {
            true => self.enqueue_whole(upload),
            false => self.enqueue(upload, bell),
        };
        // Whatever happened, no copy goes on behind this while the device is open.
        let settled: Vec<Done<()>> =
            self.slots.iter().map(|(stream, _)| settle_stream(stream, bell)).collect();
        carried?;
        settled.into_iter().collect()
    }

    /// All of it, from where it is.
    fn enqueue_whole(&self, upload: &Upload) -> Done<()> {
        let Some((stream, _)) = self.slots.first() else { return Ok(()) };
        let from = upload.file.mapping().at(upload.offset, upload.bytes);
        let from = from.expect("the device has checked that it lies inside");
        // SAFETY: mapped as long as the file, which `upload` keeps until the stream is past.
        unsafe { stream.copy_in(upload.to, from, upload.bytes) }
    }

    fn enqueue(&self, upload: &Upload, bell: &Bell) -> Done<()> {
        let piece = to_u64(GpuLimits::UPLOAD_PIECE_BYTES);
        let mut slots = self.slots.iter().cycle();
        for (index, at) in (0..upload.bytes).step_by(GpuLimits::UPLOAD_PIECE_BYTES).enumerate() {
            let Some((stream, memory)) = slots.next() else { break };
            if index >= self.slots.len() {
                settle_stream(stream, bell)?;
            }
            if bell.has_ended() {
                break;
            }
            let bytes = piece.min(upload.bytes - at);
            let from = upload.file.mapping().at(upload.offset + at, bytes);
            let from = from.expect("the device has checked that it lies inside");
            let to = memory.part(0, to_usize(bytes));
            // SAFETY: mapped as long as the file, which `upload` keeps; the pinned memory is this
            // thread's, and no copy of it is under way.
            unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to.as_ptr(), to_usize(bytes)) };
            let place = DevicePointer(upload.to.0 + at);
            // SAFETY: the pinned memory stays, and is written again only once the stream is past.
            unsafe { stream.copy_in(place, to, bytes)? };
        }
        Ok(())
    }

    /// The streams, for the one that closes them.
    pub(super) fn streams(&self) -> impl Iterator<Item = &Stream> {
        self.slots.iter().map(|(stream, _)| stream)
    }
}

/// Waits for a stream as long as the device is open. There is a piece of an upload in it at most.
fn settle_stream(stream: &Stream, bell: &Bell) -> Done<()> {
    while !stream.is_done()? && !bell.has_ended() {
        // Nobody unparks this thread: it is a pause.
        std::thread::park_timeout(GpuLimits::UPLOAD_PAUSE);
    }
    Ok(())
}

/// An event to order streams by.
pub(super) fn order_event(context: &Arc<Context>) -> Done<Event> {
    Event::create(context, EventUse::Order)
}

/// Something pinned that may outlive its device: it goes back to the device, or to its thread.
pub(super) struct Lent {
    memory: Option<Pinned>,
    home: Home,
    jobs: Sender<Job>,
}

/// Where pinned memory waits to be lent again, while its device is open.
pub(super) type Home = Arc<Mutex<Option<Vec<Pinned>>>>;

impl Lent {
    pub(super) fn new(memory: Pinned, home: &Home, clerk: &Clerk) -> Lent {
        Lent { memory: Some(memory), home: Arc::clone(home), jobs: clerk.jobs() }
    }

    pub(super) fn memory(&self) -> &Pinned {
        self.memory.as_ref().expect("taken only by drop")
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let Some(memory) = self.memory.take() else { return };
        let mut home = self.home.lock().unwrap_or_else(PoisonError::into_inner);
        let usual = memory.bytes() == GpuLimits::OUT_PIECE_BYTES;
        match home.as_mut() {
            Some(kept) if usual && kept.len() < GpuLimits::OUT_PIECES_KEPT => kept.push(memory),
            _ => drop(self.jobs.send(Job::Drop(Box::new(memory)))),
        }
    }
}
