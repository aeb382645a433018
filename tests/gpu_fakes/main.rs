//! GPUs without one: the whole of `device::gpu` on fake drivers that check how they are used.
//!
//! Each test runs in a process of its own whose loader finds the fakes, once for each vendor: the
//! test starts this binary again with its own name ([`rig::on_fakes`]). At the end the fakes must
//! have nothing to report: no broken rule, no race, nothing left behind.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

mod apart;
mod arena;
mod basics;
mod faults;
mod graphs;
mod landings;
mod model;
mod peers;
mod rdma;
mod relay;
mod rig;
mod server;
mod several;
#[path = "../support/mod.rs"]
mod support;
mod uploads;
mod windows;
