//! Who goes on first, where more tasks can than do before the next look at the sockets.
//!
//! Owns: the order, which is that of what each identity has been given so far: whoever had least
//! comes first, whatever the number of their connections. Within an identity the order is that of
//! asking. Absent: when there is a queue at all, and how long one look is from the next (`driver`).
//!
//! This is fair queueing by virtual time (A. Demers, S. Keshav, S. Shenker, "Analysis and
//! simulation of a fair queueing algorithm", 1989), with the cost known only after the service, as
//! a scheduler of threads has it. Whoever was away gets nothing for that: they begin where the one
//! is that was served last.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use crate::identity::Identity;

/// Those who wait, in the order in which they are served.
pub(super) struct Queue<T> {
    /// What each identity has been given, as time, from a beginning that is the same for all.
    given: HashMap<u128, Duration>,
    /// By what their identity has been given.
    waiting: BTreeMap<(Duration, u128), VecDeque<T>>,
    /// What the one had been given that was served last.
    least: Duration,
}

impl<T> Default for Queue<T> {
    fn default() -> Queue<T> {
        Queue { given: HashMap::new(), waiting: BTreeMap::new(), least: Duration::ZERO }
    }
}

impl<T> Queue<T> {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Puts somebody behind those of the same identity, which is given as its number.
    pub(super) fn push(&mut self, number: u128, item: T) {
        let given = self.given.entry(number).or_default();
        // Of those who wait nobody has less.
        *given = self.least.max(*given);
        self.waiting.entry((*given, number)).or_default().push_back(item);
    }

    /// Serves the next ones, `count_max` at most, all of one identity: the one that is to be
    /// charged with what they take.
    pub(super) fn pop(&mut self, count_max: usize, serve: impl FnMut(T)) -> Option<u128> {
        let mut first = self.waiting.first_entry()?;
        let (given, number) = *first.key();
        let items = first.get_mut();
        items.drain(..count_max.min(items.len())).for_each(serve);
        if items.is_empty() {
            first.remove();
        }
        self.least = given;
        Some(number)
    }

    /// Counts time that was used.
    pub(super) fn charge(&mut self, number: u128, time: Duration) {
        let Some(given) = self.given.get_mut(&number) else { return };
        let waiting = self.waiting.remove(&(*given, number));
        *given = given.saturating_add(time);
        if let Some(waiting) = waiting {
            self.waiting.insert((*given, number), waiting);
        }
    }

    /// Begins anew. Nobody waits.
    pub(super) fn forget(&mut self) {
        if !self.given.is_empty() {
            *self = Queue::default();
        }
    }
}

/// What a task is to the queue.
pub(super) struct Claim {
    /// Whether it waits for others at all.
    pub(super) is_fair: bool,
    /// Whose work it does.
    pub(super) identity: Cell<Identity>,
    pub(super) state: Cell<State>,
}

impl Claim {
    /// The claim of a task that does nobody's work yet. Where there is one identity only, nobody
    /// waits.
    pub(super) fn new(are_several: bool) -> Rc<Claim> {
        let (identity, state) = (Cell::default(), Cell::default());
        Rc::new(Claim { is_fair: are_several, identity, state })
    }
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum State {
    #[default]
    Idle,
    /// In the queue.
    Waiting,
    /// It may go on.
    Called,
}

#[cfg(test)]
mod tests {
    use super::*;

    const COST: Duration = Duration::from_micros(5);

    fn names(
        queue: &mut Queue<&'static str>,
        cost: impl Fn(&str) -> Duration,
    ) -> Vec<&'static str> {
        let mut names = Vec::new();
        while let Some(number) = queue.pop(1, |name| names.push(name)) {
            queue.charge(number, cost(names.last().unwrap()));
        }
        names
    }

    #[test]
    fn identities_take_turns_whatever_the_number_of_their_connections() {
        let mut queue = Queue::default();
        for name in ["a1", "a2", "a3", "a4"] {
            queue.push(1, name);
        }
        for name in ["b1", "b2"] {
            queue.push(2, name);
        }
        assert_eq!(names(&mut queue, |_| COST), ["a1", "b1", "a2", "b2", "a3", "a4"]);
    }

    #[test]
    fn several_of_one_identity_are_served_at_once_and_no_more_than_are_to_be() {
        let mut queue = Queue::default();
        for name in ["a1", "a2", "a3"] {
            queue.push(1, name);
        }
        queue.push(2, "b");
        let mut names = Vec::new();
        let mut pop = || queue.pop(2, |name| names.push(name));
        assert_eq!([pop(), pop(), pop(), pop()], [Some(1), Some(1), Some(2), None]);
        assert_eq!(names, ["a1", "a2", "a3", "b"]);
        assert!(queue.is_empty());
    }

    #[test]
    fn turns_are_of_the_same_time_not_of_the_same_number() {
        let mut queue = Queue::default();
        for name in ["long", "long", "long"] {
            queue.push(1, name);
        }
        for name in ["short"; 8] {
            queue.push(2, name);
        }
        let order = names(&mut queue, |name| if name == "long" { COST * 4 } else { COST });
        let expected = ["long", "short", "short", "short", "short", "long"];
        assert_eq!(order[..6], expected, "{order:?}");
    }

    #[test]
    fn who_was_away_comes_first_once_and_has_saved_nothing_up() {
        let mut queue = Queue::default();
        queue.push(1, "a");
        for _ in 0..1_000 {
            let number = queue.pop(1, drop).unwrap();
            queue.charge(number, COST);
            queue.push(number, "a");
        }
        for name in ["b1", "b2", "b3"] {
            queue.push(2, name);
        }
        let order = names(&mut queue, |_| COST);
        assert_eq!(order[..2], ["b1", "a"], "{order:?}");
    }

    #[test]
    fn who_has_just_been_served_stands_behind_who_has_not() {
        let mut queue = Queue::default();
        queue.push(1, "a1");
        queue.push(2, "b");
        let number = queue.pop(1, |name| assert_eq!(name, "a1")).unwrap();
        // It asks again before it is known what its first turn took.
        queue.push(1, "a2");
        queue.charge(number, COST);
        assert_eq!(names(&mut queue, |_| COST), ["b", "a2"]);
        queue.forget();
        assert!(queue.is_empty() && queue.given.is_empty());
    }
}
