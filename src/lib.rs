//! Outboard puts a machine's accelerators on the network.
//!
//! Read the modules in this order; each knows only those before it:
//!
//! 1. [`config`]: every limit, its default and its reason.
//! 2. [`blob`]: names of byte strings; [`cores`]: the processor cores.
//! 3. [`identity`]: who sends a request, and who may.
//! 4. [`wire`]: bytes to commands and back. No IO, no clock, no `unsafe`.
//! 5. [`http`]: one HTTP/1.1 connection as a value. No IO, no clock.
//! 6. [`compile`]: source text to binaries, in sandboxed children.
//! 7. [`device`]: what the engine asks of an accelerator, and the accelerators.
//! 8. [`rdma`]: writes from one server's memory to another's by network cards.
//! 9. [`engine`]: what a command means; owns all session state.
//! 10. [`shard`]: sockets, timers and tasks; the only place that knows glommio.
//! 11. [`check`]: what this machine offers and lacks.

pub mod blob;
pub mod check;
pub mod compile;
pub mod config;
pub mod cores;
pub mod device;
pub mod engine;
pub mod http;
pub mod identity;
pub mod rdma;
pub mod shard;
pub mod wire;
