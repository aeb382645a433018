//! GPUs in processes of their own, one for each session.
//!
//! Owns: what such a process is started with, and the device that it opens. Absent: the way from
//! the server to it (`remote`, `driven`), the device itself (`device`).
//!
//! A worker process sees the same devices in the same order as the server, so it gets of the
//! server's environment what says where the driver is and which devices it shows, and nothing else.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::clerk::Shared;
use super::device::GpuDevice;
use super::driver::Ordinal;
use super::export;
use super::loading::Vendor;
use crate::config::GpuLimits;
use crate::device::link::WorkerConfig;
use crate::device::remote::RemoteConfig;
use crate::device::shared::Budget;
use crate::device::{Device, DeviceError, Quota, worker};

/// What all worker processes have in common.
#[derive(Clone, Debug)]
pub struct WorkersConfig {
    /// This program, by `/proc/self/exe`.
    pub exe: PathBuf,
    /// The shared memory of all sessions.
    pub budget: Arc<Budget>,
    /// More of the environment than drivers need.
    pub environment: Vec<(OsString, OsString)>,
}

/// Variables by which users tell a driver's library where it is, and which devices it is to show.
const DRIVERS_VARIABLES: &[&str] = &[
    "CUDA_DEVICE_ORDER",
    "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE",
    "CUDA_MPS_PIPE_DIRECTORY",
    "CUDA_VISIBLE_DEVICES",
    "GPU_DEVICE_ORDINAL",
    "HIP_VISIBLE_DEVICES",
    "HSA_OVERRIDE_GFX_VERSION",
    "LD_LIBRARY_PATH",
    "ROCR_VISIBLE_DEVICES",
];

/// What a worker's last argument says where network cards are to reach its memory.
const EXPORTS: &str = "--exports";

impl Vendor {
    /// What a worker's argument says.
    fn argument(self) -> &'static str {
        match self {
            Vendor::Amd => "hip",
            Vendor::Nvidia => "cuda",
        }
    }
}

/// Whether memory that one device's worker shares is reached by another's copies.
pub(super) fn reaches(to: &Shared, from: &Shared) -> bool {
    let both_share = to.info.has_shareable_memory && from.info.has_shareable_memory;
    let reach = || to.driver.can_access_peer(to.ordinal, from.ordinal).unwrap_or(false);
    both_share && (to.ordinal == from.ordinal || reach())
}

/// What the sessions of one device have in common.
pub(super) fn of_device(
    config: &WorkersConfig,
    vendor: Vendor,
    shared: &Shared,
    kernel_time_max: Duration,
    reaches: Arc<[bool]>,
) -> RemoteConfig {
    let WorkersConfig { exe, budget, environment } = config.clone();
    let ordinal = shared.ordinal.0.to_string();
    let words = ["worker", vendor.argument(), &ordinal].into_iter();
    let words = words.chain(shared.exports.then_some(EXPORTS));
    let arguments = words.map(OsString::from).collect();
    let inherited = DRIVERS_VARIABLES.iter().filter_map(|name| {
        let value = std::env::var_os(name)?;
        Some((OsString::from(name), value))
    });
    let environment = inherited.chain(environment).collect();
    let memory_bytes = shared.info.memory_bytes;
    RemoteConfig {
        worker: WorkerConfig { exe, arguments, environment, kernel_time_max, budget },
        memory: Arc::new(Budget::new(memory_bytes)),
        context_bytes: GpuLimits::CONTEXT_BYTES.min(memory_bytes / GpuLimits::CONTEXTS_MIN),
        ordinal: usize::try_from(shared.ordinal.0).unwrap_or(usize::MAX),
        reaches,
        exports: shared.exports,
        is_flushed: export::is_flushed(&shared.info),
    }
}

/// The whole life of a worker process that drives one of a vendor's devices, whose memory network
/// cards can reach if it `exports` that.
pub fn drive(vendor: Vendor, ordinal: i32, exports: bool) -> ! {
    worker::drive(move || open(vendor, ordinal, exports))
}

fn open(vendor: Vendor, ordinal: i32, exports: bool) -> Result<Box<dyn Device>, DeviceError> {
    let lost = |why: String| DeviceError::Lost { why };
    let driver = super::loaded(vendor).map_err(|absent| lost(absent.to_string()))?.driver;
    let ordinal = Ordinal(ordinal);
    let info = driver.device_info(ordinal).map_err(|code| lost(driver.describe(code)))?;
    // The server keeps the accounts, for all sessions.
    let budget = OnceLock::from(Arc::new(Budget::new(u64::MAX)));
    let shared = Arc::new(Shared { driver, ordinal, info, budget, exports });
    // The server also keeps the time.
    let device = GpuDevice::open(&shared, Duration::MAX, &Quota::NONE);
    let device = device.map_err(|error| lost(error.to_string()))?;
    Ok(Box::new(device))
}
