//! The secret of derived ids beside the file store (R103): a file of mode 0600 that the first process makes.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;

use super::{FileStore, StoreError, disk};
use crate::secret::Secret;

impl FileStore {
    pub(in crate::store) async fn id_secret(&self, fresh: &str) -> Result<Secret, StoreError> {
        let fresh = fresh.to_owned();
        self.run(move |inner| beside(&inner.path, fresh)).await
    }
}

/// The secret beside the file at `path`; without one, `fresh` becomes it. Blocks.
pub(super) fn beside(store: &Path, fresh: String) -> Result<Secret, StoreError> {
    let path = disk::beside(&disk::target(store)?, "id-secret");
    let failed = |error: io::Error| disk::failed(&path, &error);
    let read = || fs::read_to_string(&path).map(|secret| Secret::new(secret.trim()));
    match read() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        read => return read.map_err(failed),
    }
    // The file appears whole or not at all: a second process finds what the first one wrote.
    let draft = disk::beside(&path, &uuid::Uuid::new_v4().simple().to_string());
    let written = disk::private(OpenOptions::new().write(true).create_new(true)).open(&draft).and_then(|mut file| {
        file.write_all(fresh.as_bytes())?;
        file.sync_all()?;
        disk::hand_over(&file, store);
        fs::hard_link(&draft, &path)
    });
    let _gone = fs::remove_file(&draft);
    match written {
        Ok(()) => Ok(Secret::new(fresh)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => read().map_err(failed),
        Err(error) => Err(failed(error)),
    }
}
