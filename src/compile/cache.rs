//! Objects that were compiled before: in memory for this server's life, on disk beyond it.
//!
//! Nothing here can fail a compile. An entry that is short, altered or misplaced is a miss and is
//! removed; a full or read-only disk means no entry. Servers may share a directory: entries appear
//! by renaming, whole, and are read whole.
//!
//! An entry: magic, key, length of the object (u64, little-endian), the object, its BLAKE3 hash.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use crate::config::CacheDir;

/// Names an object: a hash of its source and of all else that made it.
pub(super) type Key = [u8; 32];

/// Format and version of an entry.
const MAGIC: [u8; 16] = *b"outboard object1";
const HEAD_BYTES: usize = MAGIC.len() + 32 + 8;
const HASH_BYTES: usize = 32;

/// What a file takes on disk beyond its length: file systems count in blocks.
const BLOCK_BYTES: u64 = 4096;

/// How long a temporary file may be before it counts as left behind by a server that died.
const TEMPORARY_AGE_MAX: Duration = Duration::from_secs(3600);

/// Bytes that an object in memory costs besides its content.
const MEMORY_ENTRY_BYTES: usize = 256;

/// A directory of objects.
#[derive(Debug)]
pub(super) struct Disk {
    dir: PathBuf,
    bytes_max: u64,
    object_bytes_max: u64,
    /// Bytes in the directory as far as this server knows; `None` before the first look. Other
    /// servers add to it unseen, so it only says when to look again.
    bytes: Mutex<Option<u64>>,
}

impl Disk {
    /// Opens the directory; `None`, with a warning, where it cannot be used.
    pub(super) fn open(dir: &CacheDir, bytes_max: u64, object_bytes_max: u64) -> Option<Disk> {
        let dir = match dir {
            CacheDir::Off => return None,
            CacheDir::At(dir) => dir.clone(),
            CacheDir::User => user_dir()?,
        };
        match prepare(&dir) {
            Ok(()) => Some(Disk { dir, bytes_max, object_bytes_max, bytes: Mutex::new(None) }),
            Err(error) => {
                tracing::warn!(dir = %dir.display(), %error, "compiled kernels are not kept");
                None
            }
        }
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.dir.join(blake3::Hash::from_bytes(*key).to_hex().as_str())
    }

    /// The object, if a whole and unaltered entry for it is there.
    pub(super) fn get(&self, key: &Key) -> Option<Vec<u8>> {
        let path = self.path(key);
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&path)
            .ok()?;
        let entry_bytes_max = self.object_bytes_max.saturating_add(1 << 10);
        let mut entry = Vec::new();
        let read = (&mut file).take(entry_bytes_max).read_to_end(&mut entry);
        match read.ok().and_then(|_| object_in(&entry, key)) {
            Some(object) => {
                // The time of last use decides who is evicted. Where it cannot be set, the time of
                // writing does.
                let _ = file.set_modified(SystemTime::now());
                Some(object.to_vec())
            }
            None => {
                let _ = fs::remove_file(&path);
                None
            }
        }
    }

    /// Keeps an object, if the disk takes it.
    pub(super) fn put(&self, key: &Key, object: &[u8]) {
        match self.write(key, object) {
            Ok(bytes) => self.account(bytes),
            Err(error) => tracing::debug!(%error, "a compiled kernel is not kept"),
        }
    }

    fn write(&self, key: &Key, object: &[u8]) -> io::Result<u64> {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let temporary = self.dir.join(format!(".new-{}-{serial}", std::process::id()));
        // What an earlier process with our number left behind.
        let _ = fs::remove_file(&temporary);
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        let entry = [
            &MAGIC,
            key.as_slice(),
            &object.len().to_le_bytes(),
            object,
            blake3::hash(object).as_bytes(),
        ]
        .concat();
        let written = file.write_all(&entry).and_then(|()| fs::rename(&temporary, self.path(key)));
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written.map(|()| disk_bytes(file.metadata().map_or(0, |m| m.len())))
    }

    /// Counts a new entry, and makes room once there is too much.
    fn account(&self, added: u64) {
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let now = bytes.map(|bytes| bytes.saturating_add(added));
        if now.is_none_or(|now| now > self.bytes_max) {
            *bytes = self.evict().ok();
        } else {
            *bytes = now;
        }
    }

    /// Looks through the directory and, if it holds too much, removes what was not used for the
    /// longest time until a tenth is free. Returns what is left.
    fn evict(&self) -> io::Result<u64> {
        let mut total = 0;
        let mut entries = Vec::new();
        for file in fs::read_dir(&self.dir)?.flatten() {
            let Ok(metadata) = file.metadata() else { continue };
            let Ok(used) = metadata.modified() else { continue };
            if file.file_name().as_encoded_bytes().starts_with(b".new-") {
                if used.elapsed().is_ok_and(|age| age > TEMPORARY_AGE_MAX) {
                    let _ = fs::remove_file(file.path());
                }
                continue;
            }
            if metadata.is_file() {
                total += disk_bytes(metadata.len());
                entries.push((used, disk_bytes(metadata.len()), file.path()));
            }
        }
        if total > self.bytes_max {
            entries.sort_unstable();
            for (_, bytes, path) in entries {
                if total <= self.bytes_max / 10 * 9 {
                    break;
                }
                // If another server removed it first, the room is there all the same.
                let _ = fs::remove_file(path);
                total -= bytes;
            }
        }
        Ok(total)
    }
}

fn disk_bytes(bytes: u64) -> u64 {
    bytes.next_multiple_of(BLOCK_BYTES)
}

/// The object in an entry, if the entry is whole and belongs to the key.
fn object_in<'e>(entry: &'e [u8], key: &Key) -> Option<&'e [u8]> {
    let (head, rest) = entry.split_at_checked(HEAD_BYTES)?;
    let (magic, head) = head.split_at_checked(MAGIC.len())?;
    let (found, length) = head.split_at_checked(key.len())?;
    let length = u64::from_le_bytes(length.try_into().ok()?);
    let (object, hash) = rest.split_at_checked(rest.len().checked_sub(HASH_BYTES)?)?;
    let whole = magic == MAGIC
        && found == key
        && u64::try_from(object.len()) == Ok(length)
        && blake3::hash(object).as_bytes() == hash;
    whole.then_some(object)
}

fn user_dir() -> Option<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let base = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(base.join("outboard"))
}

/// Makes the directory, or makes sure that nobody else can write to it: what lies in it is run.
fn prepare(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let metadata = fs::metadata(dir)?;
    let owner = rustix::process::geteuid().as_raw();
    if metadata.uid() != owner || metadata.mode() & 0o022 != 0 {
        return Err(io::Error::other("others can write to the cache directory"));
    }
    File::open(dir).map(drop)
}

/// Objects in memory, up to a number of bytes; what was not used for the longest time goes first.
#[derive(Debug)]
pub(super) struct Memory {
    objects: HashMap<Key, (Arc<[u8]>, u64)>,
    /// Keys by the time of last use.
    uses: BTreeMap<u64, Key>,
    clock: u64,
    bytes: usize,
    bytes_max: usize,
}

impl Memory {
    pub(super) fn new(bytes_max: usize) -> Memory {
        Memory { objects: HashMap::new(), uses: BTreeMap::new(), clock: 0, bytes: 0, bytes_max }
    }

    pub(super) fn get(&mut self, key: &Key) -> Option<Arc<[u8]>> {
        let (object, used) = self.objects.get_mut(key)?;
        self.uses.remove(used);
        self.clock += 1;
        *used = self.clock;
        self.uses.insert(self.clock, *key);
        Some(Arc::clone(object))
    }

    pub(super) fn put(&mut self, key: Key, object: Arc<[u8]>) {
        let bytes = object.len() + MEMORY_ENTRY_BYTES;
        if bytes > self.bytes_max || self.objects.contains_key(&key) {
            return;
        }
        while self.bytes + bytes > self.bytes_max {
            let Some((_, oldest)) = self.uses.pop_first() else { break };
            if let Some((object, _)) = self.objects.remove(&oldest) {
                self.bytes -= object.len() + MEMORY_ENTRY_BYTES;
            }
        }
        self.clock += 1;
        self.bytes += bytes;
        self.uses.insert(self.clock, key);
        self.objects.insert(key, (object, self.clock));
    }
}
