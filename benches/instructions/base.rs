//! The counts that are expected, and what they are counts of.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::path::{Path, PathBuf};

use object::{Object as _, ObjectSection as _};
use serde_json::{Value, json};

use crate::Result;
use crate::count::{Count, output_folder};

/// Counts by case.
type Counts = BTreeMap<String, Count>;

/// The expected counts of this environment, and the file with those of all.
pub(crate) struct Base {
    environment: String,
    counts: Counts,
    /// What the repository has, by environment.
    expected: BTreeMap<String, Value>,
}

impl Base {
    /// The repository's counts, or those that an earlier run has left.
    pub(crate) fn load() -> Result<Base> {
        let environment = environment()?;
        let expected: BTreeMap<String, Value> =
            serde_json::from_str(&std::fs::read_to_string(expected_path())?)?;
        let seen: BTreeMap<String, Value> = match std::fs::read_to_string(seen_path()?) {
            Ok(text) => serde_json::from_str(&text)?,
            Err(_) => BTreeMap::new(),
        };
        let mut counts = seen.get(&environment).map_or_else(Counts::new, read);
        counts.extend(expected.get(&environment).map_or_else(Counts::new, read));
        Ok(Base { environment, counts, expected })
    }

    /// What the counts depend on.
    pub(crate) fn environment(&self) -> &str {
        &self.environment
    }

    pub(crate) fn get(&self, case: &str) -> Option<Count> {
        self.counts.get(case).copied()
    }

    pub(crate) fn set(&mut self, case: &str, count: Count) {
        self.counts.insert(case.to_owned(), count);
    }

    /// Forgets the counts of cases that there are no longer.
    pub(crate) fn retain(&mut self, is_there: impl Fn(&str) -> bool) {
        self.counts.retain(|case, _| is_there(case));
    }

    /// Makes the counts those that the repository expects. Returns where.
    pub(crate) fn save_expected(&mut self) -> Result<String> {
        let path = expected_path();
        self.expected.insert(self.environment.clone(), write(&self.counts));
        std::fs::write(&path, format!("{:#}\n", json!(self.expected)))?;
        Ok(path.display().to_string())
    }

    /// Keeps the counts for the next run of this build folder. Returns where.
    pub(crate) fn save_seen(&self) -> Result<String> {
        let path = seen_path()?;
        let seen = json!({ &self.environment: write(&self.counts) });
        std::fs::write(&path, format!("{seen:#}\n"))?;
        Ok(path.display().to_string())
    }
}

fn expected_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/instructions/base.json")
}

fn seen_path() -> Result<PathBuf> {
    Ok(output_folder()?.join("base.json"))
}

fn read(counts: &Value) -> Counts {
    let count = |value: &Value| {
        Some(Count {
            instructions: value["instructions"].as_u64()?,
            allocations: value["allocations"].as_u64()?,
        })
    };
    let all = counts.as_object().into_iter().flatten();
    all.filter_map(|(case, value)| Some((case.clone(), count(value)?))).collect()
}

fn write(counts: &Counts) -> Value {
    let count = |count: &Count| {
        let Count { instructions, allocations } = count;
        json!({ "instructions": instructions, "allocations": allocations })
    };
    counts.iter().map(|(case, value)| (case.clone(), count(value))).collect()
}

/// The compiler, the C library and the kind of processor.
fn environment() -> Result<String> {
    // SAFETY: the function takes nothing, and returns a string that lives as long as the library.
    let libc = unsafe { libc::gnu_get_libc_version() };
    // SAFETY: see above.
    let libc = unsafe { CStr::from_ptr(libc) };
    let architecture = std::env::consts::ARCH;
    Ok(format!("{}, glibc {}, {architecture}{}", compiler()?, libc.to_str()?, features()))
}

/// The compiler that has made this program, as it signed it.
fn compiler() -> Result<String> {
    let program = std::fs::read("/proc/self/exe")?;
    let program = object::File::parse(&*program)?;
    let comment = program.section_by_name(".comment").ok_or("a program without .comment")?;
    let comment = String::from_utf8_lossy(comment.data()?).into_owned();
    let signed = comment.split('\0').find(|line| line.starts_with("rustc version "));
    Ok(signed.ok_or("a program that rustc did not sign")?.replace("rustc version ", "rustc "))
}

/// What the C library and others look for before they copy and search memory.
#[cfg(target_arch = "x86_64")]
fn features() -> &'static str {
    if std::arch::is_x86_feature_detected!("avx2") { " with avx2" } else { " without avx2" }
}

#[cfg(not(target_arch = "x86_64"))]
fn features() -> &'static str {
    ""
}
