//! Looking for a vendor's driver library, and saying precisely what came of it.
//!
//! Owns: opening a library by its name, [`Absent`] (why a vendor's devices cannot be used, and what
//! to do about it), [`Loaded`] (a driver that has devices).
//!
//! Absent: the calls; `cuda` and `hip` make them and say what they got. A library that was opened
//! is never closed: drivers start threads and keep state that do not survive it.
//!
//! Libraries are found by the loader's own search (`LD_LIBRARY_PATH`, the cache of `ldconfig`), so
//! that what runs here is what any other program on this machine would get.

use std::ffi::{CStr, c_void};
use std::mem::{ManuallyDrop, MaybeUninit};
use std::path::Path;
use std::time::Duration;

use libloading::Library;
use rustix::fs::Access;

use super::driver::{Driver, Ordinal};

/// A vendor's interface to its devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    Amd,
    Nvidia,
}

/// A driver with at least one device.
pub(super) struct Loaded {
    pub(super) driver: &'static dyn Driver,
    pub(super) devices: i32,
    /// The file that the loader took.
    pub(super) path: String,
    /// Such as `13.0`.
    pub(super) version: String,
}

/// Why a vendor's devices cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Absent {
    /// The library is there and does not work.
    #[error("{path}: {why}")]
    Broken { path: String, why: String, remedy: &'static str },
    /// The driver works and has nothing to drive.
    #[error("driver {version} ({path}) finds no device")]
    NoDevice { vendor: Vendor, path: String, version: String },
    /// There is no library.
    #[error("no driver: the loader finds none of {tried}")]
    NoLibrary { vendor: Vendor, tried: String },
    /// What stands in for the driver while programs are linked.
    #[error("{path} is a stub for linking, not a driver")]
    Stub { path: String },
    /// The driver lacks calls that are needed.
    #[error("driver {version} ({path}) is too old{}", lacks(*missing))]
    TooOld { vendor: Vendor, path: String, version: String, missing: Option<&'static str> },
}

fn lacks(missing: Option<&str>) -> String {
    missing.map_or(String::new(), |missing| format!(", it lacks {missing}"))
}

impl Vendor {
    /// What the user has to install.
    fn install(self) -> &'static str {
        match self {
            Vendor::Amd => "ROCm 6.0 or newer (5.4 at the least)",
            Vendor::Nvidia => "NVIDIA's driver 525.60.13 or newer, which is CUDA 12.0's",
        }
    }

    /// The file by which a process reaches the kernel's part of the driver.
    fn control(self) -> &'static str {
        match self {
            Vendor::Amd => "/dev/kfd",
            Vendor::Nvidia => "/dev/nvidiactl",
        }
    }

    /// Variables that hide devices from the driver's library.
    fn hiding(self) -> &'static [&'static str] {
        match self {
            Vendor::Amd => &["CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"],
            Vendor::Nvidia => &["CUDA_VISIBLE_DEVICES"],
        }
    }
}

impl Absent {
    /// What to do about it.
    #[must_use]
    pub fn remedy(&self) -> String {
        match self {
            Absent::Broken { remedy, .. } => (*remedy).to_owned(),
            Absent::NoDevice { vendor, .. } => no_device_remedy(*vendor, &Machine::look(*vendor)),
            Absent::NoLibrary { vendor, .. } => {
                format!("where there is a device, install {}", vendor.install())
            }
            Absent::Stub { .. } => {
                "take its folder out of LD_LIBRARY_PATH and of /etc/ld.so.conf.d, \
                                    so that the driver's own libcuda.so.1 is found"
                    .to_owned()
            }
            Absent::TooOld { vendor, .. } => format!("install {}", vendor.install()),
        }
    }
}

/// What of the machine decides whether a driver finds devices.
#[derive(Default)]
struct Machine {
    /// The first variable that is set and may hide devices.
    hiding: Option<&'static str>,
    has_control: bool,
    may_open_control: bool,
}

impl Machine {
    fn look(vendor: Vendor) -> Machine {
        let hiding = vendor.hiding().iter().copied();
        let control = vendor.control();
        Machine {
            hiding: hiding.into_iter().find(|name| std::env::var_os(name).is_some()),
            has_control: Path::new(control).exists(),
            may_open_control: rustix::fs::access(control, Access::READ_OK | Access::WRITE_OK)
                .is_ok(),
        }
    }
}

fn no_device_remedy(vendor: Vendor, machine: &Machine) -> String {
    let control = vendor.control();
    match (vendor, machine) {
        (_, Machine { hiding: Some(name), .. }) => {
            format!("{name} is set and may hide the devices: unset it")
        }
        (Vendor::Amd, Machine { has_control: false, .. }) => format!(
            "where there is a device, load the kernel module amdgpu; in a container, hand in \
             {control} and /dev/dri"
        ),
        (Vendor::Nvidia, Machine { has_control: false, .. }) => format!(
            "where there is a device, load the kernel module (nvidia-modprobe makes {control}); in \
             a container, start it with --gpus all"
        ),
        (Vendor::Amd, Machine { may_open_control: false, .. }) => {
            format!("{control} may not be opened: add this user to the group render")
        }
        (Vendor::Nvidia, Machine { may_open_control: false, .. }) => {
            format!("{control} may not be opened by this user: see its mode")
        }
        (Vendor::Amd, _) => "rocminfo and the kernel's log say more".to_owned(),
        (Vendor::Nvidia, _) => "nvidia-smi and the kernel's log say more".to_owned(),
    }
}

/// A library that stays open for as long as the process lives, and the name that it was found by.
pub(super) struct Opened {
    pub(super) library: ManuallyDrop<Library>,
    pub(super) name: &'static str,
}

/// Opens the first of the names that the loader finds.
pub(super) fn open(vendor: Vendor, names: &[&'static str]) -> Result<Opened, Absent> {
    let mut broken = None;
    for &name in names {
        // SAFETY: the library's constructors run. It is the vendor's, from where the system's owner
        // has the loader look, and made to be opened by any program at any time.
        match unsafe { Library::new(name) } {
            Ok(library) => return Ok(Opened { library: ManuallyDrop::new(library), name }),
            Err(error) => {
                let why = error_text(&error);
                if !says_not_found(name, &why) {
                    broken.get_or_insert((name, why));
                }
            }
        }
    }
    Err(match broken {
        Some((name, why)) => Absent::Broken {
            path: name.to_owned(),
            why,
            remedy: "install what the message names, or the driver's packages anew",
        },
        None => Absent::NoLibrary { vendor, tried: names.join(", ") },
    })
}

fn error_text(error: &libloading::Error) -> String {
    match error {
        libloading::Error::DlOpen { source } => source.to_string(),
        other => other.to_string(),
    }
}

/// Whether the loader's message is about this file being nowhere, and not about one that it needs
/// or about what is in it. The C library's own words: nothing else tells.
fn says_not_found(name: &str, message: &str) -> bool {
    let about = message.strip_prefix(name);
    about == Some(": cannot open shared object file: No such file or directory")
}

impl Opened {
    /// A call of the library's, or nothing if it has none of that name.
    ///
    /// # Safety
    ///
    /// `F` is the type of the function of that name.
    pub(super) unsafe fn call<F: Copy>(&self, name: &str) -> Option<F> {
        // SAFETY: the caller vouches for the type, and the library is never closed.
        unsafe { self.library.get::<F>(name) }.ok().map(|symbol| *symbol)
    }

    /// The file that the loader took, by a call in it; else the name that was asked for.
    pub(super) fn path(&self, call: &str) -> String {
        // SAFETY: the address is not called, and any function's is a pointer.
        let address = unsafe { self.call::<*const c_void>(call) };
        address.and_then(file_of).unwrap_or_else(|| self.name.to_owned())
    }
}

/// The file from which the code at an address was mapped.
fn file_of(address: *const c_void) -> Option<String> {
    let mut info = MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: `info` has room for what is written; the address is looked up, not followed.
    let found = unsafe { libc::dladdr(address, info.as_mut_ptr()) } != 0;
    // SAFETY: all of its fields may be zero.
    let info = unsafe { info.assume_init() };
    if !found || info.dli_fname.is_null() {
        return None;
    }
    // SAFETY: the loader's own text, which stays as long as the library does, for ever.
    let file = unsafe { CStr::from_ptr(info.dli_fname) };
    Some(file.to_string_lossy().into_owned())
}

/// A device's address as the kernel spells it in `/sys/bus/pci/devices`: four digits of domain, all
/// in lower case. Drivers write the domain with four or eight digits.
pub(super) fn pci_address(driver: &str) -> String {
    let lower = driver.to_ascii_lowercase();
    match lower.split_once(':') {
        Some((domain, rest)) if domain.len() > 4 => {
            let digits = domain.trim_start_matches('0');
            format!("{digits:0>4}:{rest}")
        }
        _ => lower,
    }
}

/// The text that a driver wrote into a buffer, up to the zero byte.
pub(super) fn text(buffer: &[u8]) -> String {
    let end = buffer.iter().position(|&byte| byte == 0).unwrap_or(buffer.len());
    String::from_utf8_lossy(&buffer[..end]).trim().to_owned()
}

/// A time that a driver gives in milliseconds. What is no time at all is none.
pub(super) fn duration(milliseconds: f32) -> Duration {
    Duration::try_from_secs_f64(f64::from(milliseconds) / 1e3).unwrap_or_default()
}

/// A driver and its devices in words: the driver, then a line for each device.
pub(super) fn describe(loaded: &Loaded) -> Vec<String> {
    let mut lines = vec![format!("driver {} ({})", loaded.version, loaded.path)];
    for ordinal in 0..loaded.devices {
        lines.push(match loaded.driver.device_info(Ordinal(ordinal)) {
            Ok(info) => {
                let gibibytes = info.memory_bytes >> 30;
                format!("{}: {}, {gibibytes} GiB, at {}", info.name, info.arch, info.pci)
            }
            Err(code) => format!("device {ordinal}: {}", loaded.driver.describe(code)),
        });
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn library_that_is_nowhere_is_told_from_one_that_does_not_open() {
        let missing = "libcuda.so.1: cannot open shared object file: No such file or directory";
        assert!(says_not_found("libcuda.so.1", missing));
        let needs = "libhsa-runtime64.so.1: cannot open shared object file: No such file or \
                     directory";
        assert!(!says_not_found("libamdhip64.so.6", needs));
        assert!(!says_not_found("libcuda.so.1", "libcuda.so.1: wrong ELF class: ELFCLASS32"));
        assert!(!says_not_found("libcuda.so", missing));
    }

    #[test]
    fn opening_what_is_nowhere_names_what_was_tried() {
        let names = ["liboutboard-none.so.2", "liboutboard-none.so.1"];
        let Err(absent) = open(Vendor::Nvidia, &names) else { panic!("there is no such library") };
        assert_eq!(
            absent.to_string(),
            "no driver: the loader finds none of liboutboard-none.so.2, liboutboard-none.so.1"
        );
        assert_eq!(
            absent.remedy(),
            "where there is a device, install NVIDIA's driver 525.60.13 or newer, which is CUDA \
             12.0's"
        );
    }

    #[test]
    fn opening_what_is_no_library_says_why() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("libtext.so");
        std::fs::write(&file, "no library").expect("a file");
        // Names live as long as the process, as those of the tables do.
        let name: &'static str = file.to_string_lossy().into_owned().leak();
        let absent = open(Vendor::Amd, &["liboutboard-none.so", name]).err();
        let Some(Absent::Broken { path, why, .. }) = absent else { panic!("{absent:?}") };
        assert_eq!(path, name);
        assert!(why.contains("file too short") || why.contains("invalid ELF header"), "{why}");
    }

    #[test]
    fn opened_library_knows_its_file_and_lacks_no_call_silently() {
        let opened = open(Vendor::Nvidia, &["liboutboard-none.so", "libc.so.6"]);
        let opened = opened.expect("every test runs with the C library");
        assert_eq!(opened.name, "libc.so.6");
        let path = opened.path("getpid");
        assert!(path.starts_with('/') && path.contains("libc"), "{path}");
        assert_eq!(opened.path("cuInit"), "libc.so.6");
        // SAFETY: the type of a function that is not there does not matter.
        assert!(unsafe { opened.call::<extern "C" fn()>("cuInit") }.is_none());
    }

    #[test]
    fn stub_and_old_driver_name_file_and_remedy() {
        let path = "/usr/local/cuda/lib64/stubs/libcuda.so.1".to_owned();
        let stub = Absent::Stub { path: path.clone() };
        assert_eq!(stub.to_string(), format!("{path} is a stub for linking, not a driver"));
        assert!(stub.remedy().contains("LD_LIBRARY_PATH"), "{}", stub.remedy());
        let (vendor, path, version) = (Vendor::Amd, "libx.so".to_owned(), "5.2".to_owned());
        let old = |missing| Absent::TooOld {
            vendor,
            path: path.clone(),
            version: version.clone(),
            missing,
        };
        assert_eq!(old(None).to_string(), "driver 5.2 (libx.so) is too old");
        let missing = Some("hipLaunchHostFunc");
        assert_eq!(
            old(missing).to_string(),
            "driver 5.2 (libx.so) is too old, it lacks hipLaunchHostFunc"
        );
        assert_eq!(old(missing).remedy(), "install ROCm 6.0 or newer (5.4 at the least)");
    }

    #[test]
    fn remedy_for_no_device_is_for_the_first_thing_that_is_wrong() {
        let remedy = |vendor, machine: &Machine| no_device_remedy(vendor, machine);
        let mut machine = Machine { hiding: Some("CUDA_VISIBLE_DEVICES"), ..Machine::default() };
        let hidden = "CUDA_VISIBLE_DEVICES is set and may hide the devices: unset it";
        assert_eq!(remedy(Vendor::Nvidia, &machine), hidden);
        machine.hiding = None;
        assert!(remedy(Vendor::Nvidia, &machine).contains("--gpus all"));
        assert!(remedy(Vendor::Amd, &machine).contains("amdgpu"));
        machine.has_control = true;
        assert!(remedy(Vendor::Amd, &machine).contains("group render"));
        assert!(remedy(Vendor::Nvidia, &machine).contains("/dev/nvidiactl may not be opened"));
        machine.may_open_control = true;
        assert!(remedy(Vendor::Amd, &machine).contains("rocminfo"));
        assert!(remedy(Vendor::Nvidia, &machine).contains("nvidia-smi"));
    }

    #[test]
    fn pci_addresses_are_spelled_as_the_kernel_does() {
        assert_eq!(pci_address("0000:3B:00.0"), "0000:3b:00.0");
        assert_eq!(pci_address("00000000:3B:00.0"), "0000:3b:00.0");
        assert_eq!(pci_address("00010000:01:00.0"), "10000:01:00.0");
        assert_eq!(pci_address("3b:00.0"), "3b:00.0");
    }

    #[test]
    fn times_that_are_none_become_zero() {
        assert_eq!(duration(1.5), Duration::from_micros(1500));
        for none in [-1.0, f32::NAN, f32::INFINITY] {
            assert_eq!(duration(none), Duration::ZERO);
        }
    }

    #[test]
    fn text_of_a_driver_ends_at_its_zero_byte() {
        assert_eq!(text(b"NVIDIA H100\0junk"), "NVIDIA H100");
        assert_eq!(text(b"full"), "full");
        assert_eq!(text(b"\0"), "");
    }
}
