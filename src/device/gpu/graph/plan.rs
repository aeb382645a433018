//! Which step of a graph depends on which.
//!
//! Owns: [`Plan`] and [`Sharing`], on numbers alone: no driver, no device. A step depends on the
//! last writers of what it reads, and on the readers and the last writers of what it writes.
//!
//! Of each allocation so much is remembered as later steps may depend on. Where that gets long, a
//! step waits for all of it: each step looks at a bounded list, however the steps were chosen.

use std::collections::BTreeMap;

/// A part of an allocation, which is named by its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Operand {
    pub(super) base: u64,
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

impl Operand {
    fn overlaps(&self, other: &Operand) -> bool {
        self.base == other.base
            && self.offset < other.offset + other.bytes
            && other.offset < self.offset + self.bytes
    }

    fn covers(&self, other: &Operand) -> bool {
        self.offset <= other.offset && other.offset + other.bytes <= self.offset + self.bytes
    }
}

/// Entries of one allocation beyond which a step waits for all of them.
const ENTRIES_MAX: usize = 64;

/// Where inputs lie that share an allocation with another input or with the graph's own buffers.
/// Two runs of the same sharing have the same dependencies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Sharing(Vec<(usize, Operand)>);

impl Sharing {
    /// `inputs` are positions and where they lie; `is_fixed` says whether the graph has a buffer of
    /// its own in an allocation.
    pub(super) fn of(inputs: &[(usize, Operand)], is_fixed: impl Fn(u64) -> bool) -> Sharing {
        let mut bases: Vec<u64> = inputs.iter().map(|(_, operand)| operand.base).collect();
        bases.sort_unstable();
        let is_shared = |base: u64| {
            let first = bases.partition_point(|other| *other < base);
            bases.get(first + 1) == Some(&base) || is_fixed(base)
        };
        Sharing(inputs.iter().copied().filter(|(_, operand)| is_shared(operand.base)).collect())
    }
}

/// What was done to a part of an allocation, and by which step.
struct Entry {
    operand: Operand,
    step: usize,
}

/// What of an allocation later steps may depend on.
#[derive(Default)]
struct Past {
    reads: Vec<Entry>,
    writes: Vec<Entry>,
}

/// Dependencies of a graph's steps.
pub(super) struct Plan {
    /// By step: those that it depends on, each once.
    pub(super) after: Vec<Vec<usize>>,
    pub(super) sharing: Sharing,
    /// Whether the two sides of a copy overlap, which no node of a driver's can do.
    pub(super) overlaps_itself: bool,
    pasts: BTreeMap<u64, Past>,
}

impl Plan {
    pub(super) fn new(sharing: Sharing) -> Plan {
        Plan { after: Vec::new(), sharing, overlaps_itself: false, pasts: BTreeMap::new() }
    }

    /// The next step: its operands, and whether it writes them.
    pub(super) fn add(&mut self, operands: &[(Operand, bool)], is_copy: bool) {
        let step = self.after.len();
        let mut after = Vec::new();
        for (operand, writes) in operands {
            let past = self.pasts.entry(operand.base).or_default();
            past.collect(operand, *writes, &mut after);
        }
        for (operand, writes) in operands {
            let past = self.pasts.entry(operand.base).or_default();
            past.note(*operand, *writes, step, &mut after);
        }
        if let [(to, _), (from, _)] = operands {
            self.overlaps_itself |= is_copy && to.overlaps(from);
        }
        after.retain(|earlier| *earlier != step);
        after.sort_unstable();
        after.dedup();
        self.after.push(after);
    }
}

impl Past {
    /// The steps that a use depends on.
    fn collect(&self, operand: &Operand, writes: bool, after: &mut Vec<usize>) {
        let reads = writes.then_some(&self.reads).into_iter().flatten();
        let conflicts = self.writes.iter().chain(reads).filter(|e| e.operand.overlaps(operand));
        after.extend(conflicts.map(|entry| entry.step));
    }

    fn note(&mut self, operand: Operand, writes: bool, step: usize, after: &mut Vec<usize>) {
        if writes {
            // Whoever depends on these depends on this step, which depends on them. Its own entries
            // stay: it may name the same memory twice.
            let is_over = |entry: &Entry| operand.covers(&entry.operand) && entry.step != step;
            self.reads.retain(|entry| !is_over(entry));
            self.writes.retain(|entry| !is_over(entry));
            self.writes.push(Entry { operand, step });
        } else {
            self.reads.push(Entry { operand, step });
        }
        if self.reads.len() + self.writes.len() > ENTRIES_MAX {
            after.extend(self.reads.drain(..).chain(self.writes.drain(..)).map(|entry| entry.step));
            let all = Operand { base: operand.base, offset: 0, bytes: u64::MAX };
            self.writes.push(Entry { operand: all, step });
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn operand(base: u64, offset: u64, bytes: u64) -> Operand {
        Operand { base, offset, bytes }
    }

    fn plan(steps: &[&[(Operand, bool)]]) -> Vec<Vec<usize>> {
        let mut plan = Plan::new(Sharing::default());
        steps.iter().for_each(|step| plan.add(step, false));
        plan.after
    }

    #[test]
    fn step_depends_on_writers_of_what_it_reads_and_users_of_what_it_writes() {
        let (a, b, c) = (operand(0, 0, 8), operand(1000, 0, 8), operand(2000, 0, 8));
        let after = plan(&[
            &[(a, true), (c, false)],
            &[(b, true), (c, false)],
            &[(c, true), (a, false), (b, false)],
            &[(a, true)],
            &[(c, true)],
        ]);
        assert_eq!(after, [vec![], vec![], vec![0, 1], vec![0, 2], vec![2]]);
    }

    #[test]
    fn parts_of_one_allocation_depend_only_where_they_overlap() {
        let part = |offset, bytes| operand(0, offset, bytes);
        let after = plan(&[
            &[(part(0, 8), true)],
            &[(part(8, 8), true)],
            &[(part(4, 8), false)],
            &[(part(12, 4), true)],
        ]);
        assert_eq!(after, [vec![], vec![], vec![0, 1], vec![1]]);
    }

    #[test]
    fn copy_onto_itself_is_told() {
        let mut plan = Plan::new(Sharing::default());
        plan.add(&[(operand(0, 0, 8), true), (operand(0, 8, 8), false)], true);
        assert!(!plan.overlaps_itself);
        plan.add(&[(operand(0, 0, 8), true), (operand(0, 4, 8), false)], true);
        assert!(plan.overlaps_itself);
    }

    #[test]
    fn sharing_is_of_inputs_that_meet_others_only() {
        let alone = [(0, operand(0, 0, 8)), (1, operand(1000, 0, 8))];
        let moved = [(0, operand(3000, 0, 8)), (1, operand(4000, 0, 8))];
        assert_eq!(Sharing::of(&alone, |_| false), Sharing::of(&moved, |_| false));
        assert_ne!(Sharing::of(&alone, |base| base == 0), Sharing::of(&alone, |_| false));
        let twice = [(0, operand(0, 0, 8)), (1, operand(0, 0, 8))];
        assert_ne!(Sharing::of(&twice, |_| false), Sharing::of(&alone, |_| false));
    }

    proptest! {
        /// Whatever conflicts is ordered, be it by way of others.
        #[test]
        fn steps_that_conflict_are_ordered(
            steps in prop::collection::vec(
                prop::collection::vec((0..3_u64, 0..6_u64, 1..6_u64, any::<bool>()), 1..4),
                1..120,
            ),
        ) {
            let steps: Vec<Vec<(Operand, bool)>> = steps
                .iter()
                .map(|step| {
                    step.iter().map(|&(b, o, n, w)| (operand(b * 1000, o, n), w)).collect()
                })
                .collect();
            let borrowed: Vec<&[(Operand, bool)]> = steps.iter().map(Vec::as_slice).collect();
            let after = plan(&borrowed);
            let mut before: Vec<Vec<bool>> = Vec::new();
            for (step, direct) in after.iter().enumerate() {
                let mut all = vec![false; step];
                for &earlier in direct {
                    prop_assert!(earlier < step);
                    all[earlier] = true;
                    for (at, is_before) in before[earlier].iter().enumerate() {
                        all[at] |= is_before;
                    }
                }
                for (earlier, is_before) in all.iter().enumerate() {
                    let conflict = steps[step].iter().any(|(a, writes)| {
                        steps[earlier].iter().any(|(b, wrote)| (*writes || *wrote) && a.overlaps(b))
                    });
                    prop_assert!(!conflict || *is_before, "{earlier} and {step}");
                }
                before.push(all);
            }
        }
    }
}
