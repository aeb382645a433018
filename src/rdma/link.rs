//! Transfers to one peer, over one or several queue pairs.
//!
//! Owns: posting what the schedule says, taking completions, and what happens when a request fails:
//! the pairs are destroyed, after which the device reads nothing any more, and all transfers end
//! with the cause. The caller makes a new link then.
//!
//! Absent: waiting. [`Link::turn`] does what can be done now; the caller comes back when
//! [`Link::descriptor`] is readable.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::pair::{Completion, Completions};
use super::promise::{FINDER, Promise};
use super::schedule::{Finished, Message, Schedule, TransferId, Write};
use super::{Address, Domain, QueuePair, RdmaError, WorkStatus};
use crate::config::RdmaConfig;

/// What the caller of [`Link::turn`] does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Nothing is under way.
    Idle,
    /// Come back when the descriptor is readable.
    Wait,
}

/// Queue pairs to one peer, and what is under way in them. `K` is kept until its transfer is over.
#[derive(Debug)]
pub struct Link<K> {
    /// Empty once a request has failed.
    pairs: Vec<QueuePair>,
    schedule: Schedule<K>,
    failed: Option<WorkStatus>,
    armed: bool,
    completions: Arc<Completions>,
    /// Memory that is used again and again.
    taken: Vec<Completion>,
    batch: Vec<Message>,
}

impl<K> Link<K> {
    /// `pairs` queue pairs, to be connected.
    ///
    /// # Errors
    ///
    /// Where the device has no more.
    ///
    /// # Panics
    ///
    /// If there are to be none.
    pub fn new(domain: &Arc<Domain>, pairs: usize) -> Result<Link<K>, RdmaError> {
        assert!(pairs > 0, "a link has at least one queue pair");
        let pairs = pairs.min(RdmaConfig::QUEUE_PAIRS_MAX);
        let depth = RdmaConfig::QUEUE_DEPTH;
        // Each request may tell of its failure. Drivers make queues longer than they were asked to.
        let count = u32::try_from(pairs).expect("few") * depth * 2;
        let completions = Completions::new(domain, count, true)?;
        let pairs = (0..pairs).map(|_| QueuePair::new(domain, &completions, depth));
        let pairs = pairs.collect::<Result<Vec<_>, _>>()?;
        let most = usize::try_from(depth).expect("few");
        let depths: Vec<usize> = pairs.iter().map(|pair| pair.depth().min(most)).collect();
        let message_bytes =
            domain.device().chosen().message_bytes_max.clamp(1, RdmaConfig::MESSAGE_BYTES_MAX);
        Ok(Link {
            pairs,
            schedule: Schedule::new(&depths, message_bytes),
            failed: None,
            armed: false,
            completions,
            taken: Vec::new(),
            batch: Vec::new(),
        })
    }

    /// What the peer is told of each queue pair.
    pub fn addresses(&self) -> impl Iterator<Item = Address> {
        self.pairs.iter().map(QueuePair::address)
    }

    /// Connects one of the queue pairs with the peer's.
    ///
    /// # Errors
    ///
    /// Where the peer cannot be reached that way.
    ///
    /// # Panics
    ///
    /// If there is no such pair.
    pub fn connect(&mut self, pair: usize, peer: Address) -> Result<(), RdmaError> {
        self.pairs[pair].connect(peer)
    }

    /// Connects all queue pairs, each with the peer's at its place, on a thread: a peer that is not
    /// there is looked for for a second.
    #[must_use]
    pub fn connect_all(mut self, peers: Vec<Address>) -> Promise<Link<K>>
    where
        K: Send + 'static,
    {
        FINDER.promise(move || {
            for (pair, peer) in self.pairs.iter_mut().zip(peers) {
                pair.connect(peer)?;
            }
            Ok(self)
        })
    }

    /// Begins a transfer. To be followed by [`Self::turn`].
    pub fn submit(&mut self, writes: Vec<Write>, kept: K) -> TransferId {
        let id = self.schedule.submit(writes, kept);
        if let Some(status) = self.failed {
            self.schedule.fail(status);
        }
        id
    }

    /// Takes completions, posts what there is room for, and has itself told of the next completion.
    /// [`Self::next_finished`] has what is over.
    ///
    /// # Errors
    ///
    /// Where the driver refuses a call. All transfers have ended then, as if the device had failed.
    pub fn turn(&mut self) -> Result<Turn, RdmaError> {
        let turn = self.try_turn();
        if turn.is_err() {
            self.fail(WorkStatus::FLUSHED);
        }
        turn
    }

    fn try_turn(&mut self) -> Result<Turn, RdmaError> {
        loop {
            if self.completions.take_events() {
                self.armed = false;
            }
            self.take_completions()?;
            self.post()?;
            if self.schedule.is_idle() {
                return Ok(Turn::Idle);
            }
            if self.armed {
                return Ok(Turn::Wait);
            }
            self.completions.arm()?;
            self.armed = true;
            // What came before it was armed is not told.
            if !self.take_completions()? {
                return Ok(Turn::Wait);
            }
        }
    }

    /// The next transfer that is over.
    pub fn next_finished(&mut self) -> Option<Finished<K>> {
        self.schedule.next_finished()
    }

    /// Readable when [`Self::turn`] has something to do.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.completions.descriptor().expect("it was made with a channel")
    }

    /// Why it is of no use any more.
    #[must_use]
    pub fn failed(&self) -> Option<WorkStatus> {
        self.failed
    }

    /// Ends all transfers as if the peer had gone: for a caller whose patience is at an end.
    pub fn abandon(&mut self) {
        self.fail(WorkStatus::FLUSHED);
    }

    fn take_completions(&mut self) -> Result<bool, RdmaError> {
        let mut any = false;
        while self.completions.take(&mut self.taken)? {
            any = true;
            let mut taken = std::mem::take(&mut self.taken);
            for completion in taken.drain(..) {
                self.complete(completion);
            }
            self.taken = taken;
        }
        Ok(any)
    }

    fn complete(&mut self, completion: Completion) {
        let number = completion.queue_pair;
        let Some(queue) = self.pairs.iter().position(|pair| pair.number() == number) else {
            return;
        };
        match completion.outcome {
            Ok(()) => {
                self.schedule.complete(queue, completion.work);
            }
            Err(status) => self.fail(status),
        }
    }

    fn post(&mut self) -> Result<(), RdmaError> {
        if self.failed.is_some() {
            return Ok(());
        }
        while let Some(queue) = self.schedule.next_batch(&mut self.batch) {
            self.pairs[queue].post(&self.batch)?;
        }
        Ok(())
    }

    /// Nothing reads the transfers' memory once the pairs are gone, so it may be let go of.
    fn fail(&mut self, status: WorkStatus) {
        self.pairs.clear();
        self.failed.get_or_insert(status);
        self.schedule.fail(status);
    }
}
