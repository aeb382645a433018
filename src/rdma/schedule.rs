//! Which message goes to which queue pair when, and which transfer a completion is the end of.
//!
//! A transfer is a list of [`Write`]s; each is cut into messages. Messages go to the send queues of
//! several pairs in batches, and only the last of a batch is signalled: a pair carries out its
//! requests in order, so one completion tells of all before it. No batch ends without a signal, so
//! nothing is ever in flight that no completion will tell of.
//!
//! Absent: queue pairs, time. What a request's failure means for the others is simple: it ends the
//! pair, and this ends all transfers of the schedule.
#![forbid(unsafe_code)]

use std::collections::VecDeque;

use super::WorkStatus;

/// Bytes to write to a peer's memory. Keys are those of the registrations of both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write {
    pub local: u64,
    pub local_key: u32,
    pub remote: u64,
    pub remote_key: u32,
    pub bytes: u64,
}

/// One request of a send queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) local: u64,
    pub(super) local_key: u32,
    pub(super) remote: u64,
    pub(super) remote_key: u32,
    pub(super) bytes: u32,
    /// What the completion will say.
    pub(super) work: u64,
    pub(super) signalled: bool,
}

/// Names a transfer of one schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TransferId(u64);

/// A transfer that is over, with what was kept for it.
#[derive(Debug)]
pub struct Finished<K> {
    pub id: TransferId,
    pub kept: K,
    pub outcome: Result<(), WorkStatus>,
}

/// What is under way to one peer. `K` is kept until the transfer is over: the memory that is read.
#[derive(Debug)]
pub(super) struct Schedule<K> {
    queues: Vec<SendQueue>,
    message_bytes_max: u32,
    begun: u64,
    transfers: VecDeque<Transfer<K>>,
    finished: VecDeque<Finished<K>>,
}

#[derive(Debug)]
struct Transfer<K> {
    id: TransferId,
    kept: K,
    writes: Vec<Write>,
    /// The write that is being cut, and how far.
    at: (usize, u64),
    in_flight: usize,
}

/// The requests of one pair that are not complete.
#[derive(Debug)]
struct SendQueue {
    depth: usize,
    /// What the oldest of them will say; later ones count up from it, and around.
    oldest: u64,
    owners: VecDeque<TransferId>,
}

impl SendQueue {
    fn room(&self) -> usize {
        self.depth - self.owners.len()
    }
}

impl<K> Schedule<K> {
    /// A schedule over send queues of these depths.
    ///
    /// # Panics
    ///
    /// If there is no queue, one has no depth, or a message may have no bytes.
    pub(super) fn new(depths: &[usize], message_bytes_max: u32) -> Schedule<K> {
        assert!(!depths.is_empty() && depths.iter().all(|depth| *depth > 0), "nothing could go");
        assert!(message_bytes_max > 0, "messages without bytes");
        let queue = |depth| SendQueue { depth, oldest: 0, owners: VecDeque::new() };
        let queues = depths.iter().copied().map(queue).collect();
        let (transfers, finished) = (VecDeque::new(), VecDeque::new());
        Schedule { queues, message_bytes_max, begun: 0, transfers, finished }
    }

    /// Begins a transfer, behind those that have begun.
    pub(super) fn submit(&mut self, writes: Vec<Write>, kept: K) -> TransferId {
        self.begun += 1;
        let id = TransferId(self.begun);
        self.transfers.push_back(Transfer { id, kept, writes, at: (0, 0), in_flight: 0 });
        self.settle();
        id
    }

    /// Whether no completion is to be expected.
    pub(super) fn is_idle(&self) -> bool {
        self.transfers.is_empty()
    }

    /// Puts the next batch into `batch`, to be posted to the queue that is returned. `None` where
    /// nothing waits or no queue has room.
    pub(super) fn next_batch(&mut self, batch: &mut Vec<Message>) -> Option<usize> {
        batch.clear();
        let (index, _) = self.queues.iter().enumerate().max_by_key(|(_, queue)| queue.room())?;
        let bytes_max = self.message_bytes_max;
        let waiting: usize = self.transfers.iter().map(|t| t.messages_left(bytes_max)).sum();
        // A quarter of a queue at most, so that the next batch goes out while this one is in
        // flight; a fair part of what there is, so that all queues have work.
        let part = waiting.div_ceil(self.queues.len());
        let queue = &mut self.queues[index];
        let count = part.min(queue.room()).min(queue.depth.div_ceil(4));
        for transfer in &mut self.transfers {
            while batch.len() < count
                && let Some(message) = transfer.cut(bytes_max)
            {
                let work = queue.oldest.wrapping_add(queue.owners.len() as u64);
                queue.owners.push_back(transfer.id);
                batch.push(Message { work, ..message });
            }
        }
        batch.last_mut()?.signalled = true;
        Some(index)
    }

    /// A completion without failure: that request and those before it in its queue are done. False
    /// for a request that is not under way.
    pub(super) fn complete(&mut self, queue: usize, work: u64) -> bool {
        let Some(queue) = self.queues.get_mut(queue) else { return false };
        let Ok(before) = usize::try_from(work.wrapping_sub(queue.oldest)) else { return false };
        if before >= queue.owners.len() {
            return false;
        }
        for owner in queue.owners.drain(..=before) {
            queue.oldest = queue.oldest.wrapping_add(1);
            let owner = self.transfers.iter_mut().find(|transfer| transfer.id == owner);
            owner.expect("a transfer outlives its messages").in_flight -= 1;
        }
        self.settle();
        true
    }

    /// Ends all transfers with that outcome. To be called once no queue reads memory any more.
    pub(super) fn fail(&mut self, status: WorkStatus) {
        for queue in &mut self.queues {
            queue.oldest = queue.oldest.wrapping_add(queue.owners.len() as u64);
            queue.owners.clear();
        }
        for Transfer { id, kept, .. } in self.transfers.drain(..) {
            self.finished.push_back(Finished { id, kept, outcome: Err(status) });
        }
    }

    /// The next transfer that is over.
    pub(super) fn next_finished(&mut self) -> Option<Finished<K>> {
        self.finished.pop_front()
    }

    /// Moves what is over to where it is fetched.
    fn settle(&mut self) {
        while let Some(at) = self.transfers.iter().position(Transfer::is_over) {
            let transfer = self.transfers.remove(at).expect("just found");
            let Transfer { id, kept, .. } = transfer;
            self.finished.push_back(Finished { id, kept, outcome: Ok(()) });
        }
    }
}

impl<K> Transfer<K> {
    fn is_over(&self) -> bool {
        self.in_flight == 0 && self.rest().all(|(_, bytes)| bytes == 0)
    }

    /// The writes that are not all cut, with how many bytes are left of each.
    fn rest(&self) -> impl Iterator<Item = (&Write, u64)> {
        let (first, done) = self.at;
        let rest = self.writes.iter().enumerate().skip(first);
        rest.map(move |(at, write)| (write, write.bytes - if at == first { done } else { 0 }))
    }

    fn messages_left(&self, bytes_max: u32) -> usize {
        let left = self.rest().map(|(_, bytes)| bytes.div_ceil(u64::from(bytes_max)));
        usize::try_from(left.sum::<u64>()).unwrap_or(usize::MAX)
    }

    fn cut(&mut self, bytes_max: u32) -> Option<Message> {
        loop {
            let (at, done) = self.at;
            let write = self.writes.get(at)?;
            let left = write.bytes - done;
            if left == 0 {
                self.at = (at + 1, 0);
                continue;
            }
            let bytes = u32::try_from(left).unwrap_or(u32::MAX).min(bytes_max);
            self.at = (at, done + u64::from(bytes));
            self.in_flight += 1;
            return Some(Message {
                local: write.local + done,
                local_key: write.local_key,
                remote: write.remote + done,
                remote_key: write.remote_key,
                bytes,
                work: 0,
                signalled: false,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn write(local: u64, bytes: u64) -> Write {
        Write { local, local_key: 1, remote: local + 1_000_000, remote_key: 2, bytes }
    }

    /// Posts all that there is room for.
    fn post(schedule: &mut Schedule<u64>) -> Vec<(usize, Vec<Message>)> {
        let (mut posted, mut batch) = (Vec::new(), Vec::new());
        while let Some(queue) = schedule.next_batch(&mut batch) {
            posted.push((queue, batch.clone()));
        }
        posted
    }

    #[test]
    fn write_is_cut_into_messages_of_the_largest_size() {
        let mut schedule = Schedule::new(&[16], 100);
        let id = schedule.submit(vec![write(5, 250)], 7);
        let (queue, batch) = post(&mut schedule).remove(0);
        let cuts: Vec<_> = batch.iter().map(|m| (m.local, m.remote, m.bytes)).collect();
        assert_eq!(cuts, [(5, 1_000_005, 100), (105, 1_000_105, 100), (205, 1_000_205, 50)]);
        assert!(batch.iter().map(|m| m.signalled).eq([false, false, true]));
        assert!(schedule.next_finished().is_none());
        assert!(schedule.complete(queue, batch[2].work));
        let finished = schedule.next_finished().expect("all is complete");
        assert!(finished.id == id && finished.kept == 7 && finished.outcome.is_ok());
        assert!(schedule.is_idle());
    }

    #[test]
    fn transfer_of_nothing_is_over_at_once() {
        let mut schedule = Schedule::new(&[4], 100);
        schedule.submit(vec![write(0, 0)], 1);
        schedule.submit(Vec::new(), 2);
        assert!(schedule.next_batch(&mut Vec::new()).is_none());
        let kept: Vec<_> =
            std::iter::from_fn(|| schedule.next_finished()).map(|f| f.kept).collect();
        assert_eq!(kept, [1, 2]);
    }

    #[test]
    fn queues_share_one_large_write() {
        let mut schedule = Schedule::new(&[64, 64, 64, 64], 1 << 20);
        schedule.submit(vec![write(0, 16 << 20)], 0);
        let mut shares = [0; 4];
        for (queue, batch) in post(&mut schedule) {
            shares[queue] += batch.len();
        }
        assert!(shares.iter().all(|share| (1..=8).contains(share)), "{shares:?}");
        assert_eq!(shares.iter().sum::<usize>(), 16);
    }

    #[test]
    fn numbers_of_requests_wrap_around() {
        let mut schedule = Schedule::new(&[2], 1);
        schedule.queues[0].oldest = u64::MAX;
        schedule.submit(vec![write(0, 4)], 0);
        let mut works = Vec::new();
        while !schedule.is_idle() {
            for (queue, batch) in post(&mut schedule) {
                works.extend(batch.iter().map(|message| message.work));
                assert!(schedule.complete(queue, works[works.len() - 1]));
            }
        }
        assert_eq!(works, [u64::MAX, 0, 1, 2]);
        assert!(schedule.next_finished().is_some());
    }

    #[test]
    fn completion_of_what_is_not_under_way_changes_nothing() {
        let mut schedule = Schedule::new(&[8], 100);
        schedule.submit(vec![write(0, 300)], 0);
        let posted: usize = post(&mut schedule).iter().map(|(_, batch)| batch.len()).sum();
        let beyond = posted as u64;
        for (queue, work) in [(0, beyond), (0, u64::MAX), (1, 0)] {
            assert!(!schedule.complete(queue, work));
        }
        assert!(!schedule.is_idle());
    }

    #[test]
    fn failure_ends_every_transfer_and_gives_back_what_was_kept() {
        let mut schedule = Schedule::new(&[4], 10);
        for kept in 0..3 {
            schedule.submit(vec![write(0, 100)], kept);
        }
        post(&mut schedule);
        schedule.fail(WorkStatus(12));
        let finished: Vec<_> = std::iter::from_fn(|| schedule.next_finished()).collect();
        assert!(finished.iter().map(|f| f.kept).eq(0..3));
        assert!(finished.iter().all(|f| f.outcome == Err(WorkStatus(12))));
        assert!(schedule.is_idle());
    }

    proptest! {
        /// Whatever the depths and lengths: every byte goes once, no queue holds more than its
        /// depth, every batch ends with a signal, and all transfers end.
        #[test]
        fn every_byte_is_written_once_and_all_ends(
            depths in prop::collection::vec(1..9_usize, 1..4),
            lengths in prop::collection::vec(prop::collection::vec(0..2_000_u64, 0..4), 1..6),
            bytes_max in 1..300_u32,
            picks in prop::collection::vec(any::<prop::sample::Index>(), 1..20),
        ) {
            let mut schedule = Schedule::new(&depths, bytes_max);
            let mut base = 0;
            let mut whole = 0;
            for (kept, lengths) in (0..).zip(&lengths) {
                let writes = lengths.iter().map(|bytes| {
                    base += bytes;
                    whole += bytes;
                    write(base - bytes, *bytes)
                });
                schedule.submit(writes.collect(), kept);
            }
            let mut written = std::collections::BTreeMap::new();
            let mut flight: Vec<VecDeque<(u64, usize)>> = vec![VecDeque::new(); depths.len()];
            let mut picks = picks.iter().cycle();
            while !schedule.is_idle() {
                for (queue, batch) in post(&mut schedule) {
                    let (last, others) = batch.split_last().unwrap();
                    prop_assert!(last.signalled && others.iter().all(|m| !m.signalled));
                    for m in &batch {
                        prop_assert!(written.insert(m.local, u64::from(m.bytes)).is_none());
                    }
                    flight[queue].push_back((batch.last().unwrap().work, batch.len()));
                    let held: usize = flight[queue].iter().map(|(_, count)| count).sum();
                    prop_assert!(held <= depths[queue]);
                }
                let busy: Vec<usize> =
                    (0..depths.len()).filter(|queue| !flight[*queue].is_empty()).collect();
                prop_assert!(!busy.is_empty(), "work waits and nothing is in flight");
                let queue = busy[picks.next().unwrap().index(busy.len())];
                let (work, _) = flight[queue].pop_front().unwrap();
                prop_assert!(schedule.complete(queue, work));
            }
            let mut end = 0;
            for (at, bytes) in written {
                prop_assert_eq!(at, end);
                end = at + bytes;
            }
            prop_assert_eq!(end, whole);
            let finished = std::iter::from_fn(|| schedule.next_finished()).count();
            prop_assert_eq!(finished, lengths.len());
        }
    }
}
