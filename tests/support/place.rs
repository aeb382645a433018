//! Where a test finds what it uses.
//!
//! A test binary that was taken to another machine, with no repository and no build beside it, is
//! told by the environment: `OUTBOARD_TEST_PROGRAM`, `OUTBOARD_TEST_SOURCES` (a copy of the
//! repository, as far as the test reads it) and `OUTBOARD_TEST_SCRATCH`.

use std::path::PathBuf;

fn told(variable: &str, otherwise: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(|| otherwise.into(), PathBuf::from)
}

/// The program under test.
pub(crate) fn program() -> PathBuf {
    told("OUTBOARD_TEST_PROGRAM", env!("CARGO_BIN_EXE_outboard"))
}

/// The repository.
pub(crate) fn sources() -> PathBuf {
    told("OUTBOARD_TEST_SOURCES", env!("CARGO_MANIFEST_DIR"))
}

/// A folder for what is made meanwhile.
pub(crate) fn scratch() -> PathBuf {
    told("OUTBOARD_TEST_SCRATCH", env!("CARGO_TARGET_TMPDIR"))
}
