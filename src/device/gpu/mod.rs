//! GPUs, through their vendors' drivers.
//!
//! Reading order: `driver` (the table of calls), `loading` (finding the libraries), `cuda` and
//! `hip` (the tables).

#![cfg_attr(
    not(test),
    expect(dead_code, reason = "the calls of the table are for the device to make")
)]

mod cuda;
mod driver;
mod hip;
mod loading;
#[cfg(test)]
mod tables;

pub use loading::{Absent, Vendor};

/// What is there of a vendor's, in words: the driver, then a line for each device.
///
/// # Errors
///
/// Says why its devices cannot be used.
pub fn describe(vendor: Vendor) -> Result<Vec<String>, &'static Absent> {
    let loaded = match vendor {
        Vendor::Amd => hip::load(),
        Vendor::Nvidia => cuda::load(),
    }?;
    Ok(loading::describe(loaded))
}
