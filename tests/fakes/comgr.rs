//! A fake `libamd_comgr.so.2`: a compiler whose binaries the fake HIP runtime loads.
//!
//! What it understands of a source is in `core/source.rs`. The three actions have to come one after
//! the other, as with the real one. `FAKE_COMGR_VERSION=3000` numbers things as version 3 does.

#![allow(dead_code, reason = "each face uses its own part of the machine")]
#![allow(non_snake_case, reason = "the names are the library's")]

#[path = "core/mod.rs"]
mod fake;

use std::ffi::{c_char, c_int};
use std::sync::{Mutex, MutexGuard, PoisonError};

use fake::Role::{Early, Release};
use fake::calls::{list, text, wrong};
use fake::face::{calls, give};
use fake::source::{Job, Style};
use fake::table::{Kind, Table};
use fake::{Code, Gpu, Outcome};

pub(crate) const FACE: fake::Face = fake::Face {
    library: "libamd_comgr.so.2",
    variables: "COMGR",
    is_driver: false,
    arch: "gfx90a",
    version: 2_004,
    addresses: 0,
    has_contexts: false,
    extra_end: 3,
    total_threads_32_bits: false,
};

const ERROR: Code = 1;
const INVALID_ARGUMENT: Code = 2;

const SOURCE: c_int = 1;
const LOG: c_int = 5;
const BITCODE: c_int = 6;
const RELOCATABLE: c_int = 7;
const EXECUTABLE: c_int = 8;

#[derive(Clone, Debug, Default)]
struct Data {
    kind: c_int,
    name: String,
    bytes: Vec<u8>,
    /// How often it is held: by the caller and by sets.
    holds: usize,
}

#[derive(Clone, Debug, Default)]
struct Info {
    language: c_int,
    isa: String,
    options: Vec<String>,
    logs: bool,
}

struct Objects {
    data: Table<Data>,
    sets: Table<Vec<u64>>,
    infos: Table<Info>,
}

static OBJECTS: Mutex<Objects> = Mutex::new(Objects {
    data: Table::new(Kind::Data),
    sets: Table::new(Kind::Compiler),
    infos: Table::new(Kind::Info),
});

fn objects() -> MutexGuard<'static, Objects> {
    OBJECTS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Which number means what, by the version.
struct Numbers {
    hip: c_int,
    compile: c_int,
    generate: c_int,
    link: c_int,
}

fn numbers(gpu: &Gpu) -> Numbers {
    if gpu.config_version() >= 3000 {
        Numbers { hip: 3, compile: 12, generate: 4, link: 7 }
    } else {
        Numbers { hip: 4, compile: 15, generate: 6, link: 9 }
    }
}

impl Objects {
    fn release(&mut self, handle: u64) -> Outcome<()> {
        let data = self.data.get_mut(handle).map_err(|_| INVALID_ARGUMENT)?;
        data.holds -= 1;
        if data.holds == 0 {
            let _ = self.data.take(handle);
        }
        Ok(())
    }

    fn of_kind(&self, set: u64, kind: c_int) -> Outcome<Vec<u64>> {
        let set = self.sets.get(set).map_err(|_| INVALID_ARGUMENT)?;
        let is_wanted = |handle: &&u64| self.data.find(**handle).is_some_and(|x| x.kind == kind);
        Ok(set.iter().filter(is_wanted).copied().collect())
    }

    fn put(&mut self, set: u64, kind: c_int, name: &str, bytes: Vec<u8>) -> Outcome<()> {
        let data = self.data.add(Data { kind, name: name.to_owned(), bytes, holds: 1 });
        self.sets.get_mut(set).map_err(|_| INVALID_ARGUMENT)?.push(data);
        Ok(())
    }

    fn act(
        &mut self,
        action: c_int,
        info: u64,
        (from, to): (u64, u64),
        n: &Numbers,
    ) -> Outcome<()> {
        let info = self.infos.get(info).map_err(|_| INVALID_ARGUMENT)?.clone();
        let (wanted, made) = match action {
            action if action == n.compile => (SOURCE, BITCODE),
            action if action == n.generate => (BITCODE, RELOCATABLE),
            action if action == n.link => (RELOCATABLE, EXECUTABLE),
            _ => return wrong(&format!("action {action} is not known to the fake")),
        };
        let inputs = self.of_kind(from, wanted)?;
        let &[input] = inputs.as_slice() else {
            return wrong(&format!("{} inputs of kind {wanted}", inputs.len()));
        };
        let data = self.data.get(input).map_err(|_| INVALID_ARGUMENT)?.clone();
        let bytes = match (wanted, info.isa.strip_prefix("amdgcn-amd-amdhsa--")) {
            (_, None) => return Err(INVALID_ARGUMENT),
            (SOURCE, _) if info.language != n.hip => {
                return wrong(&format!("language {} is not HIP", info.language));
            }
            (SOURCE, Some(arch)) => match compiled(&data, arch, &info.options) {
                Ok(bytes) => bytes,
                Err(log) => {
                    if info.logs {
                        self.put(to, LOG, "comgr.log", log.into_bytes())?;
                    }
                    return Err(ERROR);
                }
            },
            // Each step takes off what the step before has put in front.
            (_, Some(_)) => data.bytes[STEP.len()..].to_vec(),
        };
        self.put(to, made, &data.name, bytes)
    }
}

/// In front of an intermediate result, once for each step that is still to come.
const STEP: &[u8] = b"step";

fn compiled(data: &Data, arch: &str, options: &[String]) -> Result<Vec<u8>, String> {
    let source = String::from_utf8_lossy(&data.bytes);
    let (name, style) = (data.name.as_str(), Style::Clang);
    let job = Job { source: &source, name, arch, headers: &[], options, style };
    Ok([STEP, STEP, &job.compile()?.to_bytes()].concat())
}

fn count(gpu: &mut Gpu, kind: &'static str, more: bool) {
    let held = gpu.compiler.entry(kind).or_default();
    *held = if more { *held + 1 } else { held.saturating_sub(1) };
}

calls! {
    Early fn amd_comgr_status_string(_gpu, status: c_int, to: *mut *const c_char) {
        let text = match status {
            0 => c"SUCCESS",
            ERROR => c"ERROR",
            INVALID_ARGUMENT => c"INVALID_ARGUMENT",
            3 => c"OUT_OF_RESOURCES",
            _ => return Err(INVALID_ARGUMENT),
        };
        give!(to, text.as_ptr())
    }
    Early fn amd_comgr_create_data(gpu, kind: c_int, to: *mut u64) {
        let made = objects().data.add(Data { kind, holds: 1, ..Data::default() });
        count(gpu, "data", true);
        give!(to, made)
    }
    Early fn amd_comgr_set_data(_gpu, data: u64, size: usize, bytes: *const u8) {
        // SAFETY: the caller gives as many bytes as it says.
        let bytes = unsafe { list(bytes, size) }?;
        objects().data.get_mut(data).map_err(|_| INVALID_ARGUMENT)?.bytes = bytes;
        Ok(())
    }
    Early fn amd_comgr_set_data_name(_gpu, data: u64, name: *const c_char) {
        // SAFETY: the caller gives a C string.
        let name = unsafe { text(name) }?;
        objects().data.get_mut(data).map_err(|_| INVALID_ARGUMENT)?.name = name;
        Ok(())
    }
    Early fn amd_comgr_get_data(_gpu, data: u64, size: *mut usize, to: *mut c_char) {
        let objects = objects();
        let bytes = &objects.data.get(data).map_err(|_| INVALID_ARGUMENT)?.bytes;
        if !to.is_null() {
            // SAFETY: the caller gives the size of its room, which it has asked for before.
            let room = unsafe { list(size, 1) }?[0];
            if room < bytes.len() {
                return wrong(&format!("room for {room} of {} bytes", bytes.len()));
            }
            // SAFETY: there is room.
            unsafe { to.cast::<u8>().copy_from(bytes.as_ptr(), bytes.len()) };
        }
        give!(size, bytes.len())
    }
    Release fn amd_comgr_release_data(gpu, data: u64) {
        objects().release(data)?;
        count(gpu, "data", false);
        Ok(())
    }
    Early fn amd_comgr_create_data_set(gpu, to: *mut u64) {
        let made = objects().sets.add(Vec::new());
        count(gpu, "data_sets", true);
        give!(to, made)
    }
    Release fn amd_comgr_destroy_data_set(gpu, set: u64) {
        let mut objects = objects();
        for data in objects.sets.take(set).map_err(|_| INVALID_ARGUMENT)? {
            objects.release(data)?;
        }
        count(gpu, "data_sets", false);
        Ok(())
    }
    Early fn amd_comgr_data_set_add(_gpu, set: u64, data: u64) {
        let mut objects = objects();
        let added = objects.data.get_mut(data).map_err(|_| INVALID_ARGUMENT)?;
        if added.name.is_empty() {
            return wrong("data without a name is put into a set");
        }
        added.holds += 1;
        objects.sets.get_mut(set).map_err(|_| INVALID_ARGUMENT)?.push(data);
        Ok(())
    }
    Early fn amd_comgr_action_data_count(_gpu, set: u64, kind: c_int, to: *mut usize) {
        give!(to, objects().of_kind(set, kind)?.len())
    }
    Early fn amd_comgr_action_data_get_data(
        gpu, set: u64, kind: c_int, index: usize, to: *mut u64,
    ) {
        let mut objects = objects();
        let all = objects.of_kind(set, kind)?;
        let &data = all.get(index).ok_or(INVALID_ARGUMENT)?;
        objects.data.get_mut(data).map_err(|_| INVALID_ARGUMENT)?.holds += 1;
        count(gpu, "data", true);
        give!(to, data)
    }
    Early fn amd_comgr_create_action_info(gpu, to: *mut u64) {
        let made = objects().infos.add(Info::default());
        count(gpu, "action_infos", true);
        give!(to, made)
    }
    Release fn amd_comgr_destroy_action_info(gpu, info: u64) {
        objects().infos.take(info).map_err(|_| INVALID_ARGUMENT)?;
        count(gpu, "action_infos", false);
        Ok(())
    }
    Early fn amd_comgr_action_info_set_language(_gpu, info: u64, language: c_int) {
        objects().infos.get_mut(info).map_err(|_| INVALID_ARGUMENT)?.language = language;
        Ok(())
    }
    Early fn amd_comgr_action_info_set_isa_name(_gpu, info: u64, isa: *const c_char) {
        // SAFETY: the caller gives a C string.
        let isa = unsafe { text(isa) }?;
        if !isa.starts_with("amdgcn-amd-amdhsa--gfx") {
            return Err(INVALID_ARGUMENT);
        }
        objects().infos.get_mut(info).map_err(|_| INVALID_ARGUMENT)?.isa = isa;
        Ok(())
    }
    Early fn amd_comgr_action_info_set_option_list(
        _gpu, info: u64, options: *const *const c_char, count: usize,
    ) {
        // SAFETY: the caller gives as many options as it says.
        let options = unsafe { list(options, count) }?;
        // SAFETY: and each is a C string.
        let options = options.into_iter().map(|option| unsafe { text(option) });
        let options = options.collect::<Outcome<Vec<_>>>()?;
        objects().infos.get_mut(info).map_err(|_| INVALID_ARGUMENT)?.options = options;
        Ok(())
    }
    Early fn amd_comgr_action_info_set_logging(_gpu, info: u64, on: bool) {
        objects().infos.get_mut(info).map_err(|_| INVALID_ARGUMENT)?.logs = on;
        Ok(())
    }
    Early fn amd_comgr_do_action(gpu, action: c_int, info: u64, from: u64, to: u64) {
        let numbers = numbers(gpu);
        objects().act(action, info, (from, to), &numbers)
    }
}

/// # Safety
///
/// Both places are valid for a number each.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn amd_comgr_get_version(major: *mut usize, minor: *mut usize) {
    let version = usize::try_from(Gpu::lock().config_version()).unwrap_or(0);
    // SAFETY: as the caller guarantees.
    let _ = unsafe { fake::calls::put(major, version / 1000) };
    // SAFETY: as above.
    let _ = unsafe { fake::calls::put(minor, version % 1000) };
}
