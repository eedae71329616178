//! The file itself: read, replaced as a whole, locked among processes (R64, R65).

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::ErrorKind::{
    FileTooLarge, InvalidInput, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull, Unsupported,
};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use super::super::{StoreError, StoreErrorKind};
use crate::files::{self, Stamp};

/// How long a write waits for another process to finish its own.
const LOCK_WAIT: Duration = Duration::from_secs(5);
/// Temporary files older than this were left by a process that died.
const LEFT_OVER: Duration = Duration::from_secs(3600);
/// Most bytes of a file of ours.
pub(super) const MOST: usize = 256 << 20;
/// Symbolic links that are followed; more count as a loop.
const MAX_LINKS: usize = 40;

/// A file as it was found.
pub(super) struct FoundFile {
    pub(super) stamp: Stamp,
    /// Others than its owner can read it (R64).
    pub(super) is_open_to_others: bool,
}

/// Where `path` leads: symbolic links of the file itself are followed, so that its target is replaced (R64).
pub(in crate::store) fn target(path: &Path) -> Result<PathBuf, StoreError> {
    let mut target = path.to_owned();
    for _ in 0..MAX_LINKS {
        match fs::read_link(&target) {
            Ok(link) => target = folder(&target).join(link),
            // Not a link, or missing: this is the target.
            Err(_) => return Ok(target),
        }
    }
    Err(StoreError::away(format!("{}: too many symbolic links", path.display())))
}

/// The state of a file; `None` when it is not there.
pub(super) fn look(path: &Path) -> Result<Option<FoundFile>, StoreError> {
    match fs::metadata(path) {
        Ok(metadata) => {
            Ok(Some(FoundFile { stamp: Stamp::of(&metadata), is_open_to_others: is_open_to_others(&metadata) }))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(path, &error)),
    }
}

/// A folder in the file's place won't become one by itself: Docker makes one where a file to be mounted is missing.
pub(super) fn refuse_folder(path: &Path) -> Result<(), StoreError> {
    if !path.is_dir() {
        return Ok(());
    }
    let detail = format!(
        "{} is a folder: name a file in KIRO_STORE (Docker makes a folder where the file to be mounted is missing)",
        path.display()
    );
    Err(StoreError::new(StoreErrorKind::Config, detail))
}

/// The whole file; `None` when it is not there. A file longer than [`MOST`] is cut one byte behind it.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    read_at_most(path, MOST as u64 + 1)
}

/// The file's first bytes; `None` when it is not there.
pub(in crate::store) fn read_at_most(path: &Path, most: u64) -> Result<Option<Vec<u8>>, StoreError> {
    match files::read(path, most) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(path, &error)),
    }
}

/// Replaces the file as a whole: a reader sees the old or the new one, and a crash leaves one of them (R64).
///
/// After an error the new one may be in place all the same: when it was renamed and its folder could not be synced.
pub(in crate::store) fn replace(path: &Path, content: &[u8]) -> Result<(), StoreError> {
    replace_and(path, content, |_| Ok(()), sync_folder)
}

/// Replaces another program's file: it keeps its mode, and it is looked at once more in the last moment, since that
/// program knows no lock of ours. Where it isn't `expected` any more, nothing is written (R98).
pub(super) fn replace_unchanged(path: &Path, expected: Option<&[u8]>, content: &[u8]) -> Result<(), StoreError> {
    let mode = fs::metadata(path).map(|metadata| metadata.permissions());
    let check = |file: &File| {
        if let Ok(mode) = &mode {
            file.set_permissions(mode.clone())?;
        }
        let now = match files::read(path, MOST as u64 + 1) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            read => Some(read?),
        };
        if now.as_deref() == expected { Ok(()) } else { Err(io::Error::other("changed while it was written")) }
    };
    replace_and(path, content, check, sync_folder)
}

fn replace_and(
    path: &Path,
    content: &[u8],
    check: impl Fn(&File) -> io::Result<()>,
    sync: impl Fn(&Path) -> io::Result<()>,
) -> Result<(), StoreError> {
    let folder = folder(path);
    let temporary = temporary(path);
    let written = (|| {
        let mut file = private(OpenOptions::new().write(true).create_new(true)).open(&temporary)?;
        hand_over(&file, path);
        file.write_all(content)?;
        file.sync_all()?;
        check(&file)?;
        fs::rename(&temporary, path)
    })();
    if let Err(error) = written {
        // It may not exist; the first error is the one to report.
        let _gone = fs::remove_file(&temporary);
        return Err(failed(path, &error));
    }
    match sync(&folder) {
        Ok(()) => Ok(()),
        // The folder can be written but not read, or the file system syncs no folders. That won't change, and the file
        // is replaced.
        Err(error) if matches!(error.kind(), PermissionDenied | InvalidInput | Unsupported) => {
            tracing::debug!(folder = %folder.display(), error = %error.kind(), "the folder can't be synced");
            Ok(())
        }
        Err(error) => Err(StoreError { perhaps_done: true, ..failed(path, &error) }),
    }
}

/// Whether the file could be replaced by one a little longer: tried in its folder.
pub(super) fn can_replace(path: &Path) -> Result<(), StoreError> {
    files::try_room(path, &temporary(path)).map_err(|error| failed(path, &error))
}

fn temporary(path: &Path) -> PathBuf {
    folder(path).join(format!("{}{:016x}{TEMPORARY}", temporary_prefix(path), fastrand::u64(..)))
}

/// Makes the folder of a file that is to be created.
pub(in crate::store) fn make_folder(path: &Path) -> Result<(), StoreError> {
    let folder = folder(path);
    fs::create_dir_all(&folder).map_err(|error| failed(&folder, &error))
}

/// Removes temporary files of ours that a process left behind when it died (R64).
pub(super) fn sweep(path: &Path) {
    let Ok(entries) = fs::read_dir(folder(path)) else { return };
    let prefix = temporary_prefix(path);
    for entry in entries.flatten() {
        let name = entry.file_name();
        let is_ours = name.to_str().is_some_and(|name| name.starts_with(&prefix) && name.ends_with(TEMPORARY));
        let age = entry.metadata().and_then(|metadata| metadata.modified()).map(|modified| modified.elapsed());
        if is_ours && age.is_ok_and(|age| age.is_ok_and(|age| age > LEFT_OVER)) {
            tracing::debug!(file = %entry.path().display(), "a left-over temporary file is removed");
            let _gone = fs::remove_file(entry.path());
        }
    }
}

/// Holds `PATH.lock` until it is dropped. Waits for another process, at most 5 s.
pub(in crate::store) fn lock(path: &Path) -> Result<File, StoreError> {
    let name = beside(path, "lock");
    let file = open_lock(&name, path)?;
    let mut waited = Duration::ZERO;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if waited < LOCK_WAIT => {
                let pause = Duration::from_micros(fastrand::u64(500..=4_000));
                std::thread::sleep(pause);
                waited += pause;
            }
            Err(TryLockError::WouldBlock) => {
                return Err(StoreError::away(format!("{}: held by another process", name.display())));
            }
            Err(TryLockError::Error(error)) => return Err(failed(&name, &error)),
        }
    }
}

/// Takes the refresh lock of one account; `None` when somebody else has it (R65).
pub(super) fn try_lock_of(path: &Path, id: &str) -> Result<Option<File>, StoreError> {
    let digest = crate::proto::record::hex(&Sha256::digest(id.as_bytes())[..8]);
    try_lock(&beside(path, &format!("{digest}.lock")), path)
}

/// Takes the lock file `name` of the file at `path`; `None` when somebody else has it.
pub(in crate::store) fn try_lock(name: &Path, path: &Path) -> Result<Option<File>, StoreError> {
    let file = open_lock(name, path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(failed(name, &error)),
    }
}

/// An error with the file's name and the operating system's message, or ours.
pub(in crate::store) fn failed(path: &Path, error: &io::Error) -> StoreError {
    let complaint = error.get_ref().map_or_else(|| error.kind().to_string(), ToString::to_string);
    // Also a full disk: what can't be written can't keep a new token (R66).
    let read_only =
        matches!(error.kind(), PermissionDenied | ReadOnlyFilesystem | StorageFull | QuotaExceeded | FileTooLarge);
    StoreError { read_only, ..StoreError::away(format!("{}: {complaint}", path.display())) }
}

const TEMPORARY: &str = ".kiro-tmp";

fn temporary_prefix(path: &Path) -> String {
    format!(".{}.", path.file_name().unwrap_or_default().to_string_lossy())
}

pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

/// The lock file `name` of the file at `path`.
fn open_lock(name: &Path, path: &Path) -> Result<File, StoreError> {
    // Only a file made here changes its owner, never the target of a link.
    let opened = match private(OpenOptions::new().write(true).create_new(true)).open(name) {
        Ok(file) => {
            hand_over(&file, path);
            Ok(file)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            private(OpenOptions::new().write(true).create(true).truncate(false)).open(name)
        }
        Err(error) => Err(error),
    };
    opened.map_err(|error| failed(name, &error))
}

/// A file that root makes for the file at `path` gets that file's owner, or its folder's while it doesn't exist: a
/// command run by root must not lock the server out. Other users can't change owners, and needn't.
#[cfg(unix)]
pub(super) fn hand_over(made: &File, path: &Path) {
    use std::os::unix::fs::{MetadataExt as _, fchown};
    let Ok(model) = fs::metadata(path).or_else(|_| fs::metadata(folder(path))) else { return };
    let is_ours = made.metadata().is_ok_and(|made| (made.uid(), made.gid()) == (model.uid(), model.gid()));
    if !is_ours && let Err(error) = fchown(made, Some(model.uid()), Some(model.gid())) {
        tracing::debug!(file = %path.display(), error = %error.kind(), "the owner could not be kept");
    }
}

#[cfg(not(unix))]
pub(super) fn hand_over(_: &File, _: &Path) {}

fn folder(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    }
}

#[cfg(unix)]
pub(super) fn private(options: &mut OpenOptions) -> &mut OpenOptions {
    use std::os::unix::fs::OpenOptionsExt as _;
    options.mode(0o600)
}

#[cfg(not(unix))]
pub(super) fn private(options: &mut OpenOptions) -> &mut OpenOptions {
    options
}

#[cfg(unix)]
fn is_open_to_others(metadata: &fs::Metadata) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    metadata.permissions().mode() & 0o077 != 0
}

#[cfg(not(unix))]
fn is_open_to_others(_: &fs::Metadata) -> bool {
    false
}

#[cfg(unix)]
fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(not(unix))]
fn sync_folder(_: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A command that root runs beside a service of another user.
    #[cfg(unix)]
    #[test]
    fn files_that_root_makes_get_the_owner_of_the_store_r64() {
        use std::os::unix::fs::{MetadataExt as _, chown};
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pool.json");
        let owner = |path: &Path| fs::metadata(path).map(|found| (found.uid(), found.gid())).unwrap();
        if chown(folder.path(), Some(4711), Some(4712)).is_err() {
            return; // Only root can try.
        }
        replace(&path, b"{}").unwrap();
        assert_eq!(owner(&path), (4711, 4712), "the folder's");
        chown(&path, Some(4713), Some(4714)).unwrap();
        let locks = (lock(&path).unwrap(), try_lock_of(&path, "a").unwrap());
        replace(&path, b"{ }").unwrap();
        drop(locks);
        for entry in fs::read_dir(folder.path()).unwrap() {
            assert_eq!(owner(&entry.unwrap().path()), (4713, 4714));
        }
        // A link in the place of a lock doesn't change the owner of its target.
        let other = folder.path().join("other");
        fs::write(&other, "").unwrap();
        fs::remove_file(beside(&path, "lock")).unwrap();
        std::os::unix::fs::symlink(&other, beside(&path, "lock")).unwrap();
        let before = owner(&other);
        drop(lock(&path));
        assert_eq!(owner(&other), before);
    }

    #[test]
    fn an_unsynced_folder_is_distinguished_from_an_unreplaced_file_r64() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pool.json");
        for kind in [PermissionDenied, InvalidInput, Unsupported] {
            replace_and(&path, b"{}", |_| Ok(()), |_| Err(kind.into())).unwrap();
            assert_eq!(read(&path).unwrap().unwrap(), b"{}");
        }
        let unsynced = |_: &Path| Err(io::Error::other("input/output error"));
        let error = replace_and(&path, b"{ }", |_| Ok(()), unsynced).unwrap_err();
        assert!(error.is_away() && error.is_perhaps_done());
        assert_eq!(read(&path).unwrap().unwrap(), b"{ }");
        let missing = folder.path().join("missing").join("pool.json");
        assert!(!replace(&missing, b"{}").unwrap_err().is_perhaps_done());
    }
}
