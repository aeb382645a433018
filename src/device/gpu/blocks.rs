//! Which parts of a device's memory are in use, where this server divides it up itself.
//!
//! Owns: [`Blocks`], a value that knows numbers only: pieces of memory as they come from the
//! driver, and blocks of them. Absent: the memory (`arena`).
//!
//! The smallest free block that is long enough is taken, of several the first. Neighbours that are
//! free become one, inside of their piece.

use std::collections::{BTreeMap, BTreeSet};

/// Blocks of several pieces of memory.
#[derive(Default)]
pub(super) struct Blocks {
    /// Lengths of the pieces, by their addresses.
    pieces: BTreeMap<u64, u64>,
    /// Lengths of free blocks, by their addresses.
    free: BTreeMap<u64, u64>,
    /// The same by length.
    by_length: BTreeSet<(u64, u64)>,
    used: BTreeMap<u64, u64>,
}

impl Blocks {
    /// A new piece, which is free.
    pub(super) fn add(&mut self, at: u64, bytes: u64) {
        self.pieces.insert(at, bytes);
        self.set_free(at, bytes);
    }

    /// A block of so many bytes, if there is one.
    pub(super) fn take(&mut self, bytes: u64) -> Option<u64> {
        let (length, at) = *self.by_length.range((bytes, 0)..).next()?;
        self.set_taken(at, length);
        if length > bytes {
            self.set_free(at + bytes, length - bytes);
        }
        self.used.insert(at, bytes);
        Some(at)
    }

    /// Gives a block back. The address of its piece where nothing of that is in use any more.
    pub(super) fn give(&mut self, at: u64) -> Option<u64> {
        let bytes = self.used.remove(&at)?;
        let (&piece, &piece_bytes) = self.pieces.range(..=at).next_back()?;
        let (mut from, mut to) = (at, at + bytes);
        if let Some((&before, &length)) = self.free.range(piece..at).next_back()
            && before + length == at
        {
            self.set_taken(before, length);
            from = before;
        }
        if to < piece + piece_bytes
            && let Some(&length) = self.free.get(&to)
        {
            self.set_taken(to, length);
            to += length;
        }
        self.set_free(from, to - from);
        (to - from == piece_bytes).then_some(piece)
    }

    /// Forgets a piece, if nothing of it is in use.
    pub(super) fn remove(&mut self, piece: u64) -> bool {
        let Some(&bytes) = self.pieces.get(&piece) else { return false };
        let is_free = self.free.get(&piece) == Some(&bytes);
        if is_free {
            self.set_taken(piece, bytes);
            self.pieces.remove(&piece);
        }
        is_free
    }

    /// The length of a piece of which nothing is in use.
    pub(super) fn idle_bytes(&self, piece: u64) -> Option<u64> {
        let bytes = *self.pieces.get(&piece)?;
        (self.free.get(&piece) == Some(&bytes)).then_some(bytes)
    }

    fn set_free(&mut self, at: u64, bytes: u64) {
        self.free.insert(at, bytes);
        self.by_length.insert((bytes, at));
    }

    fn set_taken(&mut self, at: u64, bytes: u64) {
        self.free.remove(&at);
        self.by_length.remove(&(bytes, at));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: u64 = 1 << 20;

    fn blocks() -> Blocks {
        let mut blocks = Blocks::default();
        // The second lies right behind the first.
        blocks.add(PIECE, PIECE);
        blocks.add(2 * PIECE, PIECE);
        blocks
    }

    #[test]
    fn blocks_that_were_given_back_become_one_again_inside_their_piece() {
        let mut blocks = blocks();
        let taken: Vec<u64> = (0..4).map(|_| blocks.take(PIECE / 4).unwrap()).collect();
        assert_eq!(taken, [0, 1, 2, 3].map(|index| PIECE + index * PIECE / 4));
        assert_eq!(blocks.take(PIECE), Some(2 * PIECE));
        assert_eq!(blocks.take(1), None);
        assert_eq!(blocks.give(taken[1]), None);
        assert_eq!(blocks.give(taken[3]), None);
        assert_eq!(blocks.give(taken[2]), None);
        assert_eq!(blocks.give(2 * PIECE), Some(2 * PIECE));
        assert_eq!(blocks.give(taken[0]), Some(PIECE));
        assert_eq!(blocks.take(PIECE + 1), None, "two pieces are never one block");
        assert_eq!((blocks.take(PIECE), blocks.take(PIECE)), (Some(PIECE), Some(2 * PIECE)));
    }

    #[test]
    fn smallest_block_that_is_long_enough_is_taken() {
        let mut blocks = blocks();
        let first = blocks.take(1000).unwrap();
        blocks.take(PIECE - 2000).unwrap();
        blocks.give(first);
        assert_eq!(blocks.take(1000), Some(first));
        blocks.give(first);
        assert_eq!(blocks.take(1001), Some(2 * PIECE));
    }

    #[test]
    fn piece_in_use_is_not_forgotten_and_one_that_was_is_not_used() {
        let mut blocks = blocks();
        let block = blocks.take(PIECE).unwrap();
        assert!(!blocks.remove(block));
        assert_eq!((blocks.idle_bytes(block), blocks.idle_bytes(2 * PIECE)), (None, Some(PIECE)));
        assert!(blocks.remove(2 * PIECE));
        assert_eq!(blocks.take(1), None);
        assert_eq!(blocks.give(block), Some(block));
        assert_eq!(blocks.give(block), None, "nothing is given back twice");
    }
}
