//! Files that people and other programs write: bounded reads, and stamps that show a change.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Identifies one state of a file: its time, its length, because times may be milliseconds coarse while a writer works,
/// and which file it is, because a file that was put in its place may have kept both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    bytes: u64,
    modified: Option<SystemTime>,
    /// Device, inode number and change time, which no program can set.
    #[cfg(unix)]
    file: (u64, u64, i64, i64),
}

impl Stamp {
    /// The stamp of the file now.
    pub fn of(metadata: &Metadata) -> Self {
        #[cfg(unix)]
        use std::os::unix::fs::MetadataExt as _;
        Self {
            bytes: metadata.len(),
            modified: metadata.modified().ok(),
            #[cfg(unix)]
            file: (metadata.dev(), metadata.ino(), metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// A file that is read again when it has changed.
#[derive(Debug)]
pub struct Watched {
    path: PathBuf,
    seen: Option<Stamp>,
}

impl Watched {
    /// Takes the stamp; the caller reads the file afterwards, so that a change in between is noticed.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), seen: stamp(path) }
    }

    /// Which file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it has changed, come or gone since the last look.
    pub fn has_changed(&mut self) -> bool {
        let now = stamp(&self.path);
        std::mem::replace(&mut self.seen, now) != now
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    fs::metadata(path).ok().map(|metadata| Stamp::of(&metadata))
}

/// A new file for its owner alone, written through.
///
/// # Errors
/// It is there already, or can't be written whole; then none is left.
pub fn create_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    if written.is_err() {
        fs::remove_file(path)?;
    }
    written
}

/// How much longer than the file now its next form may be.
const GROWTH: u64 = 4096;
/// Most that is tried to be written.
const MOST_TRIED: u64 = 16 << 20;

/// Whether there is room for the next form of the file at `path`: a file is written at `trial` and removed. An empty one
/// would say nothing, for a full disk takes it.
///
/// # Errors
/// The trial's.
pub fn try_room(path: &Path, trial: &Path) -> io::Result<()> {
    let bytes = fs::metadata(path).map_or(0, |found| found.len()).saturating_add(GROWTH).min(MOST_TRIED);
    create_private(trial, &vec![0; usize::try_from(bytes).unwrap_or_default()])?;
    fs::remove_file(trial)
}

/// A file's bytes, at most `most`.
///
/// # Errors
/// It can't be read, or isn't a regular file: opening a pipe would block, and a device never ends.
pub fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("is not a file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}
