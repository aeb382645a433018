//! GPUs, through their vendors' drivers.
//!
//! One implementation for all: CUDA and HIP differ in the table of driver calls, and in what is
//! compiled for them.
//!
//! Each session has a context of its own. What was weighed: a context has a share of the device's
//! memory of its own (some hundred megabytes with CUDA), and takes some tenths of a second to make;
//! for that its memory, code and streams end with it whatever state they are in, a kernel that does
//! not end can be ended without the others, and no kernel of one session can name memory of
//! another's by mistake. Open is whether a context survives a fault in another one of the same
//! process: CUDA's manual says of most faults that the process has to end. Where sessions must
//! survive each other's faults each has a process (`apart`). HIP has one context for all
//! sessions of a device, and with it none of these walls.
//!
//! Nothing here blocks the caller: work is queued in streams, and what takes long (to make a
//! context, to load a program, to carry gigabytes out of the server's memory) is done by a thread
//! that each device has.
//!
//! Reading order: `driver` (the table of calls), `loading` (finding the libraries), `cuda` and
//! `hip` (the tables), `renderer` (what clients are told); `handles` (owned, safe), `clerk` (the
//! thread) and `closing` (its last work); `queue` (streams, order, completion), `memory`,
//! `blocks`, `arena`, `store` (where memory comes from), `staging`, `registered`, `launch`,
//! `watch`, `signal`; `device`, `transfer`, `relay`, `window`, `export`, `graph`; `apart` (in
//! processes of their own); [`GpuPlatform`].

mod apart;
mod arena;
mod blocks;
mod clerk;
mod closing;
mod cuda;
mod device;
mod driver;
mod export;
mod graph;
mod handles;
mod hip;
mod launch;
mod loading;
mod memory;
mod platform;
mod queue;
mod reading;
mod registered;
mod relay;
mod renderer;
mod signal;
mod staging;
mod store;
#[cfg(test)]
mod tables;
mod transfer;
mod watch;
mod window;

pub use apart::{WorkersConfig, drive};
pub use clerk::settle;
pub use device::GpuDevice;
pub use loading::{Absent, Vendor};
pub(super) use memory::{Allocation, Entry};
pub use platform::{GpuConfig, GpuPlatform};
pub use renderer::CudaSource;
pub(super) use signal::Signal;

use super::export::CardMemory;

/// What is there of a vendor's, in words: the driver, then a line for each device.
///
/// # Errors
///
/// Says why its devices cannot be used.
pub fn describe(vendor: Vendor) -> Result<Vec<String>, &'static Absent> {
    loaded(vendor).map(loading::describe)
}

/// Some memory of each of a vendor's devices, for a try whether a network card can be told of it,
/// or why none ever can.
///
/// # Errors
///
/// Says why the devices cannot be used.
pub fn samples(vendor: Vendor) -> Result<Vec<Result<CardMemory, String>>, &'static Absent> {
    let loaded = loaded(vendor)?;
    Ok((0..loaded.devices).map(|ordinal| export::sample(loaded.driver, ordinal)).collect())
}

fn loaded(vendor: Vendor) -> Result<&'static loading::Loaded, &'static Absent> {
    match vendor {
        Vendor::Amd => hip::load(),
        Vendor::Nvidia => cuda::load(),
    }
}
