//! What many dead clients, killed sessions and hours of work leave behind in a real server:
//! nothing.
//!
//! Sizes that take seconds run always. The full ones, in release, one after the other:
//!
//!     cargo test --release --test endurance -- --ignored --nocapture --test-threads=1
//!
//! The soak takes `OUTBOARD_SOAK_MINUTES`, 20 where nothing is said. Everything is drawn from
//! seeds, which a failing test names; `OUTBOARD_ENDURANCE_SEED` begins with another one.
//!
//! Reading order: `rig` (the server, what it holds, how clients go), `aborts`, `kills`, then the
//! soak: `link` (a connection), `soaker` (a client and what it expects), `soak` (all of them, and
//! the slope).

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

mod aborts;
mod kills;
mod link;
#[path = "../pair/pick.rs"]
#[expect(dead_code, unreachable_pub, reason = "the simulator's, which has other uses for it")]
mod pick;
mod rig;
mod soak;
mod soaker;
#[path = "../support/mod.rs"]
mod support;
