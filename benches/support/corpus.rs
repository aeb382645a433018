//! Batches that were recorded from tinygrad's own tests.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::rc::Rc;

use outboard::blob::Digest;
use outboard::engine::{Blob, Blobs};

/// Recordings with a little of everything that one server can answer.
pub(crate) const MIXED: &[&str] = &["jit", "misc", "multitensor", "symjit"];

/// A recorded batch.
pub(crate) struct Recorded {
    pub(crate) text: String,
    /// Names and lengths of its data; the bytes were not recorded.
    blobs: Vec<(Digest, usize)>,
}

impl Recorded {
    /// Its data, as zeros.
    pub(crate) fn blobs(&self) -> Blobs {
        let mut blobs = Blobs::default();
        for (digest, bytes) in &self.blobs {
            blobs.insert(*digest, Blob::Private(Rc::from(vec![0; *bytes])));
        }
        blobs
    }

    /// Names and lengths of its data.
    pub(crate) fn blob_lengths(&self) -> &[(Digest, usize)] {
        &self.blobs
    }

    /// How many commands it has, told from their first field.
    pub(crate) fn commands(&self) -> usize {
        let all = self.text.matches("(session=").count();
        all - self.text.matches("GraphComputeItem(session=").count()
    }
}

/// The batches of one recording.
pub(crate) fn load(name: &str) -> Vec<Recorded> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/corpus/{name}.jsonl.gz"));
    let file = File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let lines = BufReader::new(flate2::read::GzDecoder::new(file)).lines();
    lines.map(|line| recorded(&line.expect("a recording is text"))).collect()
}

fn recorded(line: &str) -> Recorded {
    let batch: serde_json::Value = serde_json::from_str(line).expect("a line is a JSON object");
    let text = batch["commands"].as_str().expect("commands are text").to_owned();
    let mut blobs = Vec::new();
    for blob in batch["blobs"].as_array().expect("blobs are a list") {
        let digest = blob[0].as_str().and_then(|name| Digest::from_hex(name.as_bytes()));
        let bytes = blob[1].as_u64().and_then(|bytes| usize::try_from(bytes).ok());
        blobs.push((digest.expect("a name is hexadecimal"), bytes.expect("a length is a number")));
    }
    // The last blob is the text itself.
    blobs.pop();
    Recorded { text, blobs }
}
