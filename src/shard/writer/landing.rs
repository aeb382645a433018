//! Copies by RDMA to buffers that the peer's network card does not reach.
//!
//! Owns: how such a copy goes: the peer makes memory of its own for it, this server's card writes
//! there, and then the peer is told to copy from there, by the command that it would get with the
//! bytes over HTTP. Absent: the write (`writer`), and where the sources are.
//!
//! The memory belongs to the HTTP connection on which it was asked for, and is used up by the
//! command that names it. So all of a copy is said on one connection, which ends where something
//! went wrong in the middle. It is one that goes to where the session is, not the one that the link
//! belongs to: that is served by one shard, and the session may be another's.

use std::rc::Rc;

use tracing::debug;

use super::{Place, Shard, Writer, targets};
use crate::config::RdmaConfig;
use crate::engine::{Parcel, Source, asking};
use crate::shard::peer::{Lane, To, Trouble};

impl Shard {
    /// Writes parcels to memory of the peer's own, as many at a time as it is to have memory for,
    /// and has it copy them. Says how many: where the peer has no memory, what is left is to go
    /// another way. The inner error leaves the writer as it should be.
    pub(super) async fn write_landed(
        self: &Rc<Self>,
        writer: &mut Writer,
        to: To<'_>,
        parcels: &[Parcel],
        sources: &[Option<Source>],
    ) -> Result<Result<usize, Trouble>, Trouble> {
        // The peer's memory is for the time of the write alone.
        self.settle(sources).await?;
        let (seat, mut link) = match self.link_to(to.peer(), Lane::Copies).await {
            Ok(found) => found,
            Err(trouble) => return Ok(Err(trouble)),
        };
        let mut landed = 0;
        while landed < parcels.len() {
            let turn = landed..landed + turn(&parcels[landed..]);
            let (parcels, sources) = (&parcels[turn.clone()], &sources[turn.clone()]);
            let text = format!("[{}]", asking::landings(parcels));
            let answer = match self.ask_on(&mut link, to, &text).await {
                Ok(Ok(answer)) => answer,
                // This connection may be at its end.
                Ok(Err(Trouble::Refused { status, text }))
                | Err(Trouble::Refused { status, text }) => {
                    debug!(host = to.host(), status, text, "no memory for RDMA there");
                    return Ok(Ok(landed));
                }
                Ok(Err(trouble)) | Err(trouble) => return Ok(Err(trouble)),
            };
            let targets = match targets(&answer, parcels) {
                Ok(targets) => targets,
                Err(trouble) => return Ok(Err(trouble)),
            };
            self.write(writer, parcels, sources, &targets).await?;
            let commands: Vec<&str> = parcels.iter().map(|parcel| &*parcel.command).collect();
            let text = format!("[{}]", commands.join(", "));
            match self.ask_on(&mut link, to, &text).await {
                Ok(Ok(_)) => {}
                Ok(Err(trouble)) | Err(trouble) => return Ok(Err(trouble)),
            }
            writer.places.remember(parcels, std::iter::repeat(Place::Elsewhere));
            landed = turn.end;
        }
        self.keep(seat, link);
        Ok(Ok(landed))
    }
}

/// How many parcels land at once: one at least.
fn turn(parcels: &[Parcel]) -> usize {
    let ends = parcels.iter().scan(0_u64, |end, parcel| {
        *end = end.saturating_add(parcel.bytes);
        Some(*end)
    });
    let fits = ends.take_while(|end| *end <= RdmaConfig::LANDED_BYTES_PER_TURN).count();
    fits.clamp(1, RdmaConfig::LANDINGS_PER_CONNECTION_MAX)
}
