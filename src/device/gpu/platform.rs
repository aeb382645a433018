//! The GPUs of one vendor as a platform.
//!
//! Owns: [`GpuPlatform`]: what clients are told about its devices, and how they are opened and
//! sources compiled for them. Absent: the devices (`device`), the compilers (`compile`).

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::apart::{self, WorkersConfig};
use super::clerk::Shared;
use super::device::GpuDevice;
use super::driver::Ordinal;
use super::export;
use super::loading::{Absent, Vendor};
use super::renderer::{self, CudaSource};
use crate::compile::{self, Kind, Target};
use crate::device::remote::{Remote, RemoteConfig};
use crate::device::{Device, DeviceError, Platform, Quota, Renderer};

/// What a platform of GPUs is made of. Made once, for all shards.
#[derive(Clone)]
pub struct GpuConfig {
    /// See [`crate::config::DeviceLimits::kernel_time_max`].
    kernel_time_max: Duration,
    compile: Arc<compile::Service>,
    devices: Vec<Found>,
    vendor: Vendor,
    name: &'static str,
    /// Of each device, where sessions have processes of their own.
    workers: Option<Vec<RemoteConfig>>,
}

/// A device of the vendor's.
#[derive(Clone)]
struct Found {
    shared: Arc<Shared>,
    target: Target,
    renderer: Renderer,
    /// The memory node next to it.
    node: Option<usize>,
}

/// The memory node that a device's bus is next to. The kernel writes -1 where there is one node
/// only.
fn node_of(pci: &str) -> Option<usize> {
    let path = format!("/sys/bus/pci/devices/{pci}/numa_node");
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

impl GpuConfig {
    /// Looks for the devices of a vendor.
    ///
    /// # Errors
    ///
    /// Says why they cannot be used.
    pub fn find(
        vendor: Vendor,
        kernel_time_max: Duration,
        source: CudaSource,
        compile: Arc<compile::Service>,
    ) -> Result<GpuConfig, String> {
        let with_remedy = |absent: &Absent| format!("{absent}: {}", absent.remedy());
        let loaded = super::loaded(vendor).map_err(with_remedy)?;
        let driver = loaded.driver;
        // Asked for where it decides something: it takes a process of the compiler's.
        let has_nvrtc = vendor == Vendor::Nvidia
            && source == CudaSource::Any
            && compile.library(Kind::Nvrtc).is_ok();
        let device = |ordinal| {
            let ordinal = Ordinal(ordinal);
            let info = driver.device_info(ordinal).map_err(|code| driver.describe(code))?;
            let arch: Arc<str> = info.arch.as_str().into();
            let renderer = match vendor {
                Vendor::Amd => renderer::hip(&arch),
                Vendor::Nvidia => renderer::cuda(&arch, source, has_nvrtc),
            };
            let target = match vendor {
                Vendor::Amd => Target::Hip { arch },
                Vendor::Nvidia => Target::Cuda { arch },
            };
            let (budget, exports) = (OnceLock::new(), false);
            let shared = Shared { driver, ordinal, info, budget, exports };
            let node = node_of(&shared.info.pci);
            Ok(Found { shared: Arc::new(shared), target, renderer, node })
        };
        let devices = (0..loaded.devices).map(device).collect::<Result<_, String>>()?;
        let (name, workers) = (driver.name(), None);
        Ok(GpuConfig { kernel_time_max, compile, devices, vendor, name, workers })
    }

    /// From now on network cards can be told of the memory of devices. To be said before anything
    /// is opened or [`Self::apart`].
    #[must_use]
    pub fn exporting(mut self) -> GpuConfig {
        for device in &mut self.devices {
            device.shared = export::exporting(&device.shared);
        }
        self
    }

    /// From now on each session has a process of its own.
    #[must_use]
    pub fn apart(mut self, config: &WorkersConfig) -> GpuConfig {
        let workers = self.devices.iter().map(|Found { shared, .. }| {
            let others = self.devices.iter();
            let reaches = others.map(|other| apart::reaches(shared, &other.shared)).collect();
            apart::of_device(config, self.vendor, shared, self.kernel_time_max, reaches)
        });
        self.workers = Some(workers.collect());
        self
    }

    /// The name that clients see.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Whose devices they are.
    #[must_use]
    pub fn vendor(&self) -> Vendor {
        self.vendor
    }

    /// The devices' names and kinds, for the log.
    pub fn names(&self) -> impl Iterator<Item = String> {
        let infos = self.devices.iter().map(|device| &device.shared.info);
        infos.map(|info| format!("{} ({}, {})", info.name, info.arch, info.pci))
    }
}

/// The GPUs of one vendor.
pub struct GpuPlatform(GpuConfig);

impl GpuPlatform {
    #[must_use]
    pub fn new(config: GpuConfig) -> GpuPlatform {
        GpuPlatform(config)
    }

    fn device(&self, index: u64) -> Option<&Found> {
        self.0.devices.get(usize::try_from(index).ok()?)
    }

    /// What the engine asks only for devices that it has heard of.
    fn known(&self, index: u64) -> &Found {
        self.device(index).expect("an index is below the count")
    }
}

impl Platform for GpuPlatform {
    fn name(&self) -> &'static str {
        self.0.name
    }

    fn device_count(&self) -> u64 {
        self.0.devices.len() as u64
    }

    fn renderer(&self, index: u64) -> Renderer {
        self.known(index).renderer.clone()
    }

    fn numa_node(&self, index: u64) -> Option<usize> {
        self.device(index)?.node
    }

    fn open_within(&mut self, index: u64, quota: &Quota) -> Result<Box<dyn Device>, DeviceError> {
        let failed = |why: String| DeviceError::Failed { what: "device", why };
        let device = self.device(index).ok_or_else(|| failed("there is no such one".to_owned()))?;
        let at = usize::try_from(index).unwrap_or(usize::MAX);
        if let Some(worker) = self.0.workers.as_ref().and_then(|workers| workers.get(at)) {
            return Ok(Box::new(Remote::open(&worker.within(quota))?));
        }
        let opened = GpuDevice::open(&device.shared, self.0.kernel_time_max, quota);
        Ok(Box::new(opened.map_err(|error| failed(error.to_string()))?))
    }

    fn compile(&mut self, asker: compile::Asker, index: u64, source: Arc<[u8]>) -> compile::Ticket {
        self.0.compile.compile_for(asker, &self.known(index).target, source)
    }
}
