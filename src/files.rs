//! Files that people and other programs write: read as far as is sensible, and told apart when they have changed.

use std::fs::{self, File, Metadata};
use std::io::{self, Read as _};
use std::path::Path;
use std::time::SystemTime;

/// What tells one state of a file from another. The length, because times may be as coarse as a few milliseconds while
/// a writer is at work; which file it is, because one that was put in its place may have kept both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    bytes: u64,
    modified: Option<SystemTime>,
    /// Device, number, and the time of the last change to anything of it, which nobody can set.
    #[cfg(unix)]
    file: (u64, u64, i64, i64),
}

impl Stamp {
    /// Of the file as it is.
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

/// A file's bytes, at most `most`.
///
/// # Errors
/// It can't be read, or is no file: opening a pipe would block, and a device never ends.
pub fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("is not a file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}
