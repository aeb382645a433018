//! Copies by RDMA of what is in no memory that the network card reaches.
//!
//! Owns: [`Stage`], a link's own memory, which the card knows, and how bytes go through it: one
//! half is filled while the card reads the other. Absent: the destinations, which are the peer's
//! buffers or memory of its own (`landing`).

use std::sync::Arc;

use tracing::debug;

use super::{Shard, Trouble, Writer};
use crate::config::RdmaConfig;
use crate::device::SharedBytes;
use crate::device::shared::{Heap, Range};
use crate::engine::{Cause, Parcel, WaitFor};
use crate::identity::Identity;
use crate::rdma::{DeviceFabric, Fabric, Promise, RdmaError, Target, Write};
use crate::shard::completion::Cancel;
use crate::shard::output::Unreadable;

/// Memory of the server's own on the way to a peer. The half that was filled last comes last.
pub(super) struct Stage([Half; 2]);

struct Half {
    memory: Range,
    promise: Promise,
    /// Where it is, and its key, for this side's requests.
    local: (u64, u32),
}

impl Shard {
    /// Whether a link has such memory, which it gets if it can be had.
    pub(super) async fn has_stage(
        &self,
        writer: &mut Writer,
        fabric: &DeviceFabric,
        identity: Identity,
    ) -> bool {
        if writer.stage.is_none() {
            match self.make_stage(fabric, identity).await {
                Ok(stage) => writer.stage = Some(stage),
                Err(trouble) => debug!(%trouble, "no memory for RDMA"),
            }
        }
        writer.stage.is_some()
    }

    async fn make_stage(
        &self,
        fabric: &DeviceFabric,
        identity: Identity,
    ) -> Result<Stage, Trouble> {
        let heap = Heap::new(Arc::clone(&self.config.staging));
        let half = || {
            let reach = fabric.reach(identity)?;
            let memory = heap.alloc(RdmaConfig::STAGE_BYTES as u64).map_err(Cause::from)?;
            let promise = reach.register(SharedBytes::of(&memory));
            Ok::<_, Cause>((memory, promise))
        };
        let halves = [half(), half()];
        let mut made = Vec::with_capacity(halves.len());
        for half in halves {
            let (memory, promise) = half.map_err(Trouble::Here)?;
            // Nobody cancels it but by dropping the task.
            let _ = self.wait(&Cancel::default(), &WaitFor::Rdma(promise.awaited())).await;
            let local = promise.local().ok_or(RdmaError::LATE)??;
            made.push(Half { memory, promise, local });
        }
        let made = made.try_into().unwrap_or_else(|_| unreachable!("as many as were begun"));
        Ok(Stage(made))
    }

    /// Writes one buffer, piece by piece as its device gives it. Nothing else is under way.
    pub(super) async fn write_staged(
        &self,
        writer: &mut Writer,
        stage: &mut Stage,
        parcel: &Parcel,
        target: &Target,
    ) -> Result<(), Trouble> {
        let (mut output, mut at) = (parcel.again(), 0);
        loop {
            // The next piece is read while this one is written.
            let rest = output.take_rest();
            let reading = rest.map(|rest| self.engine.borrow_mut().read_on(rest)).transpose();
            let reading = reading.map_err(Trouble::Here)?;
            for bytes in output.as_bytes().chunks(RdmaConfig::STAGE_BYTES) {
                at = self.write_piece(writer, stage, bytes, (target, at)).await?;
            }
            let Some(reading) = reading else { break };
            output = match self.read(&Cancel::default(), reading).await {
                Ok(output) => output,
                Err(Unreadable::Failed(cause)) => return Err(Trouble::Here(cause)),
                Err(Unreadable::Gone) => return Err(Trouble::Closed),
            };
        }
        self.drive(writer).await
    }

    /// Begins to write a piece at so many bytes of the destination, once the one before is written.
    /// Where the next one goes.
    async fn write_piece(
        &self,
        writer: &mut Writer,
        Stage(halves): &mut Stage,
        piece: &[u8],
        (target, at): (&Target, u64),
    ) -> Result<u64, Trouble> {
        let bytes = piece.len() as u64;
        let end = at.checked_add(bytes).filter(|end| *end <= target.bytes);
        let end = end.ok_or_else(super::odd)?;
        halves.rotate_left(1);
        let [_, half] = halves;
        // The card is past it: it reads the other at most.
        half.memory.slice_mut()[..piece.len()].copy_from_slice(piece);
        self.drive(writer).await?;
        let (local, local_key) = half.local;
        let (remote, remote_key) = (target.iova + at, target.key);
        let write = Write { local, local_key, remote, remote_key, bytes };
        writer.link.submit(vec![write], half.promise.clone());
        writer.link.turn()?;
        // Others have their turn.
        self.reactor.turn().await;
        Ok(end)
    }
}
