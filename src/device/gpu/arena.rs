//! Device memory that network cards can be told of, divided up by this server.
//!
//! Owns: [`Arena`], the memory of one session's device. Absent: which parts are in use (`blocks`),
//! and how a network card is told (`export`).
//!
//! A driver gives descriptors that network cards understand (`dmabuf`) for memory that is mapped by
//! a handle, and for that of plain allocations, and not for that of stream-ordered pools. Of the
//! two a plain allocation, and above all its end, waits for all work of the device. To make and map
//! a handle waits for nothing, but takes hundreds of microseconds and comes in multiples of 2 MiB.
//! So handles are made for many buffers at once, and kept when they are free.
//!
//! What is freed is used again at once: the caller has the computing stream wait for the work that
//! used it, and everything new begins in that stream. A whole piece goes back to the driver only
//! once that work is done.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::blocks::Blocks;
use super::driver::{DevicePointer, Ordinal};
use super::handles::{Context, Done};
use super::window::Window;
use crate::config::GpuLimits;

/// Memory of one session's device.
pub(super) struct Arena {
    context: Arc<Context>,
    blocks: Blocks,
    pieces: BTreeMap<u64, Piece>,
    /// Devices whose copies reach it.
    allowed: Vec<Ordinal>,
}

struct Piece {
    memory: Window,
    /// The last work that may use it, since nothing of it is in use.
    idle_after: u64,
}

impl Arena {
    pub(super) fn new(context: &Arc<Context>) -> Arena {
        let (blocks, pieces, allowed) = (Blocks::default(), BTreeMap::new(), Vec::new());
        Arena { context: Arc::clone(context), blocks, pieces, allowed }
    }

    /// Memory that what comes later in the computing stream may use.
    pub(super) fn alloc(&mut self, bytes: u64) -> Done<DevicePointer> {
        if let Some(at) = self.blocks.take(bytes) {
            return Ok(DevicePointer(at));
        }
        let whole = bytes.next_multiple_of(GpuLimits::HANDLE_GRAIN_BYTES);
        let memory = match whole < GpuLimits::ARENA_PIECE_BYTES {
            // Where there is no room for more than this buffer, for that.
            true => self.piece(GpuLimits::ARENA_PIECE_BYTES).or_else(|_| self.piece(whole)),
            false => self.piece(whole),
        }?;
        let at = memory.at();
        self.blocks.add(at.0, memory.bytes());
        self.pieces.insert(at.0, Piece { memory, idle_after: 0 });
        let taken = self.blocks.take(bytes).expect("a new piece has room for what it was made for");
        Ok(DevicePointer(taken))
    }

    fn piece(&self, bytes: u64) -> Done<Window> {
        let memory = Window::create_for_cards(&self.context, bytes)?;
        self.allowed.iter().try_for_each(|device| memory.allow(*device))?;
        Ok(memory)
    }

    /// Gives memory back. The computing stream is past what uses it, or waits for that; `last` is
    /// the last work that was queued.
    pub(super) fn free(&mut self, at: DevicePointer, last: u64) {
        if let Some(piece) = self.blocks.give(at.0)
            && let Some(piece) = self.pieces.get_mut(&piece)
        {
            piece.idle_after = last;
        }
    }

    /// Lets another device's copies reach this memory.
    pub(super) fn allow(&mut self, device: Ordinal) -> Done<()> {
        if !self.allowed.contains(&device) {
            self.pieces.values().try_for_each(|piece| piece.memory.allow(device))?;
            self.allowed.push(device);
        }
        Ok(())
    }

    /// What is free, behind work that is `completed`, and more than is kept.
    pub(super) fn trim(&mut self, completed: u64) -> Vec<Window> {
        let (mut kept, mut over) = (0, Vec::new());
        for (&at, piece) in &self.pieces {
            let Some(bytes) = self.blocks.idle_bytes(at) else { continue };
            match kept + bytes <= GpuLimits::POOL_KEEP_BYTES || piece.idle_after > completed {
                true => kept += bytes,
                false => over.push(at),
            }
        }
        over.into_iter().filter_map(|at| self.remove(at)).collect()
    }

    /// All that is free. Whoever drops it has waited for all work.
    pub(super) fn take_idle(&mut self) -> Vec<Window> {
        let all: Vec<u64> = self.pieces.keys().copied().collect();
        all.into_iter().filter_map(|at| self.remove(at)).collect()
    }

    fn remove(&mut self, at: u64) -> Option<Window> {
        if !self.blocks.remove(at) {
            return None;
        }
        self.pieces.remove(&at).map(|piece| piece.memory)
    }
}
