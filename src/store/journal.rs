//! Tokens that wait for the store, as files in `KIRO_STATE_DIR`: a restart during an outage loses no login.
//!
//! One file for each account, mode 0600, replaced as a whole, removed as soon as the store has the token. A file counts
//! only for the record that its token grew out of, so that processes with a common folder don't harm each other: a late
//! process finds another record and drops the file.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::file::disk;
use super::{StoreError, TokenKey, UnsavedToken};
use crate::proto::record::{self, Entry, Fingerprint, Token, hex};

/// The longest file that is read: a token record and 1,024 fingerprints of 65 bytes are less.
const LONGEST: usize = 1 << 20;

/// The folder. Calls block: not on a thread that serves.
#[derive(Debug)]
pub(crate) struct Journal {
    folder: PathBuf,
    /// The store's name: several stores may share the folder.
    store: String,
    /// The folder can't be written, and the log has said so.
    is_broken: AtomicBool,
}

/// What a person should know of `KIRO_STATE_DIR`.
#[derive(Debug)]
pub struct JournalSurvey {
    /// Whether a token could be kept there.
    pub trial: Result<(), StoreError>,
    /// The accounts of this store whose tokens wait there.
    pub accounts: Vec<String>,
    /// Tokens of other stores.
    pub others: usize,
    /// Files that can't be read, with what is wrong.
    pub unreadable: Vec<String>,
}

impl Journal {
    /// Touches nothing yet; the folder is made with the first file.
    pub(crate) fn new(folder: &Path, store: &str) -> Self {
        Self { folder: folder.to_owned(), store: store.to_owned(), is_broken: AtomicBool::new(false) }
    }

    /// Tries whether a token could be kept. The log says once that it can't.
    pub(super) fn try_out(&self) -> bool {
        self.note(self.trial())
    }

    /// A small file is written, synced and removed, and so is the folder when it was made for that.
    fn trial(&self) -> Result<(), StoreError> {
        let made = !self.folder.exists();
        let trial = self.folder.join(format!("trial-{:016x}", fastrand::u64(..)));
        let put = || {
            disk::make_folder(&trial)?;
            disk::replace(&trial, b"{}")?;
            std::fs::remove_file(&trial).map_err(|error| disk::failed(&trial, &error))
        };
        let tried = put();
        if made {
            // Others may have put something into it meanwhile.
            std::fs::remove_dir(&self.folder).unwrap_or_default();
        }
        tried
    }

    /// What a person should know of the folder.
    pub(super) fn survey(&self) -> JournalSurvey {
        let mut survey = JournalSurvey { trial: self.trial(), accounts: Vec::new(), others: 0, unreadable: Vec::new() };
        for path in self.files() {
            match self.parse(&path) {
                Ok(Some((account, _))) => survey.accounts.push(account),
                Ok(None) => survey.others += 1,
                Err(what) => survey.unreadable.push(format!("{}: {what}", path.display())),
            }
        }
        survey.accounts.sort();
        survey
    }

    fn files(&self) -> impl Iterator<Item = PathBuf> {
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
        entries.filter(|entry| entry.file_name().to_string_lossy().ends_with(SUFFIX)).map(|entry| entry.path())
    }

    /// Whether this very token lies there, for the next process.
    fn holds(&self, account: &str, unsaved: &UnsavedToken) -> bool {
        let kept = self.parse(&self.path(account)).ok().flatten();
        kept.is_some_and(|(_, kept)| kept.refresh_token() == unsaved.refresh_token())
    }

    /// Whether this very token lies there at last: what came too late for its turn is kept now.
    pub(super) fn keeps(&self, account: &str, unsaved: &UnsavedToken) -> bool {
        self.holds(account, unsaved) || {
            self.keep(account, unsaved);
            self.holds(account, unsaved)
        }
    }

    fn note(&self, done: Result<(), StoreError>) -> bool {
        match done {
            Ok(()) => self.is_broken.store(false, Ordering::Relaxed),
            Err(error) if self.is_broken.swap(true, Ordering::Relaxed) => tracing::debug!(%error, "KIRO_STATE_DIR"),
            Err(error) => tracing::error!(
                folder = %self.folder.display(),
                %error,
                "KIRO_STATE_DIR can't be written, so tokens that wait for the store can't be kept there, and a restart would \
                 lose them: make it a folder that this user may write, or name another one"
            ),
        }
        !self.is_broken()
    }

    /// Whether the last token, or the trial of the start, could not be kept.
    pub(super) fn is_broken(&self) -> bool {
        self.is_broken.load(Ordering::Relaxed)
    }

    /// The tokens that an earlier process left, by account id. An unreadable file is named in the log and stays.
    pub(super) fn left_over(&self) -> HashMap<String, UnsavedToken> {
        let left = self.files().filter_map(|path| match self.parse(&path) {
            Ok(left) => left,
            Err(what) => {
                tracing::warn!(file = %path.display(), what, "a kept token can't be read");
                None
            }
        });
        left.collect()
    }

    /// Keeps a token in place of the account's older one. A token that another process has kept meanwhile, and that has
    /// grown out of this one, stays.
    pub(super) fn keep(&self, account: &str, unsaved: &UnsavedToken) {
        let Some(text) = text(&self.store, account, unsaved) else { return };
        let path = self.path(account);
        let put = || {
            let kept = self.parse(&path).ok().flatten();
            let ours = unsaved.refresh_token().map(Fingerprint::of);
            if kept.is_some_and(|(_, kept)| ours.is_some_and(|ours| kept.replaces.contains(&ours))) {
                return Ok(());
            }
            disk::replace(&path, text.as_bytes())
        };
        self.note(disk::make_folder(&path).and_then(|()| self.locked(put)));
    }

    /// Removes the file, be it of this token or of an earlier one that it has grown out of: the store has the token, or
    /// somebody else's newer one. A token that another process has kept meanwhile stays.
    pub(super) fn forget(&self, account: &str, unsaved: &UnsavedToken) {
        let path = self.path(account);
        if !path.exists() {
            return;
        }
        let gone = self.locked(|| {
            let kept = self.parse(&path).ok().flatten();
            if kept.is_some_and(|(_, kept)| unsaved.supersedes(&kept)) {
                std::fs::remove_file(&path).map_err(|error| disk::failed(&path, &error))?;
            }
            Ok(())
        });
        if let Err(error) = gone {
            tracing::warn!(%error, "a saved token can't be removed from KIRO_STATE_DIR");
        }
    }

    fn locked<T>(&self, work: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
        let _lock = disk::lock(&self.folder.join("tokens"))?;
        work()
    }

    fn path(&self, account: &str) -> PathBuf {
        let name = Sha256::digest(format!("{}\0{account}", self.store).as_bytes());
        self.folder.join(format!("{}{SUFFIX}", hex(&name[..8])))
    }

    /// None: another store's.
    fn parse(&self, path: &Path) -> Result<Option<(String, UnsavedToken)>, &'static str> {
        let text = disk::read_at_most(path, LONGEST as u64).map_err(|_| "not readable")?.ok_or("gone")?;
        read(&self.store, &text)
    }
}

/// The text of a file; none for a profile without a token.
pub(crate) fn text(store: &str, account: &str, unsaved: &UnsavedToken) -> Option<String> {
    let token = record::patch(b"{}", &unsaved.entries).ok().flatten()?;
    let token: Value = serde_json::from_slice(&token).ok()?;
    let replaces: Vec<String> = unsaved.replaces.iter().map(Fingerprint::whole).collect();
    let text = json!({
        "store": store, "account": account, "key": unsaved.key.id(), "replaces": replaces, "token": token,
    });
    Some(text.to_string())
}

/// Parses the text of [`text`]: the account and its token. None: another store's.
pub(crate) fn read(store: &str, text: &[u8]) -> Result<Option<(String, UnsavedToken)>, &'static str> {
    let members: Map<String, Value> = serde_json::from_slice(text).map_err(|_| "no JSON object")?;
    let word = |name: &str| members.get(name).and_then(Value::as_str).ok_or("a member is missing");
    if word("store")? != store {
        return Ok(None);
    }
    let replaces = members.get("replaces").and_then(Value::as_array).ok_or("a member is missing")?;
    let replaces = replaces.iter().map(|digits| Fingerprint::parse(digits.as_str()?)).collect::<Option<_>>();
    let token = members.get("token").map(Value::to_string).unwrap_or_default();
    let token = Token::parse(token.as_bytes()).map_err(|_| "its token can't be read")?;
    let unsaved = UnsavedToken {
        key: TokenKey::of(word("key")?),
        base: bytes::Bytes::new(),
        replaces: replaces.ok_or("a fingerprint can't be read")?,
        entries: token.granted().chain(regions(&token)).collect(),
    };
    if !unsaved.brings_a_token() {
        return Err("its token can't be read");
    }
    Ok(Some((word("account")?.to_owned(), unsaved)))
}

const SUFFIX: &str = ".token.json";

fn regions(token: &Token) -> impl Iterator<Item = Entry> {
    [token.region.clone().map(Entry::Region), token.idc_region.clone().map(Entry::IdcRegion)].into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    fn unsaved(replaces: &[&str], refresh: &str) -> UnsavedToken {
        UnsavedToken {
            key: TokenKey::of("k1"),
            base: bytes::Bytes::from_static(b"{}"),
            replaces: replaces.iter().map(|token| Fingerprint::of(&Secret::new(*token))).collect(),
            entries: vec![
                Entry::AccessToken(Secret::new("access")),
                Entry::RefreshToken(Secret::new(refresh)),
                Entry::ExpiresAt("2026-11-23T10:00:00.123Z".parse().unwrap()),
                Entry::IdcRegion("eu-west-1".to_owned()),
            ],
        }
    }

    #[test]
    fn a_kept_token_is_read_back_without_its_base() {
        let one = unsaved(&["r0", "r1"], "r2");
        let kept = text("a store", "a1", &one).unwrap();
        let (account, found) = read("a store", kept.as_bytes()).unwrap().unwrap();
        assert_eq!((account.as_str(), found.key.id()), ("a1", "k1"));
        assert_eq!((found.replaces, found.entries), (one.replaces, one.entries));
        assert!(read("another", kept.as_bytes()).unwrap().is_none());
        assert!(read("a store", b"[]").is_err() && read("a store", b"{\"store\":\"a store\"}").is_err());
    }

    #[test]
    fn a_folder_is_tried_and_left_as_it_was_r51() {
        let around = tempfile::tempdir().unwrap();
        let names = || std::fs::read_dir(around.path()).unwrap().count();
        let good = Journal::new(&around.path().join("state"), "s");
        assert!(good.try_out() && !good.is_broken() && names() == 0);
        std::fs::write(around.path().join("file"), "").unwrap();
        let bad = Journal::new(&around.path().join("file"), "s");
        assert!(!bad.try_out() && bad.is_broken());
        let token = unsaved(&["r0"], "r1");
        bad.keep("a1", &token);
        assert!(!bad.holds("a1", &token), "nobody may say that it waits there");
        good.keep("a1", &token);
        assert!(good.holds("a1", &token) && !good.holds("a1", &unsaved(&["r0"], "r2")));
    }

    /// Two processes on one store that takes no writes: the later one reads the folder again and again.
    #[test]
    fn of_two_processes_none_puts_an_older_token_over_a_newer_one_r51() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (Journal::new(folder.path(), "s"), Journal::new(folder.path(), "s"));
        let (older, newer) = (unsaved(&["r0"], "r1"), unsaved(&["r0", "r1"], "r2"));
        one.keep("a1", &older);
        other.keep("a1", &older);
        one.keep("a1", &newer);
        other.keep("a1", &older);
        let kept = || one.left_over().remove("a1").and_then(|kept| kept.refresh_token().cloned());
        assert_eq!(kept(), Some(Secret::new("r2")));
        other.forget("a1", &older);
        assert_eq!(kept(), Some(Secret::new("r2")), "not its own");
        one.forget("a1", &newer);
        assert_eq!(kept(), None);
    }

    /// The store takes writes again before the newest token was due for its file.
    #[test]
    fn a_file_goes_with_the_token_that_grew_out_of_its_own_r51() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::new(folder.path(), "s");
        journal.keep("a1", &unsaved(&["r0"], "r1"));
        journal.forget("a1", &unsaved(&["r0"], "another"));
        assert_eq!(journal.left_over().len(), 1);
        journal.forget("a1", &unsaved(&["r0", "r1", "r2"], "r3"));
        assert!(journal.left_over().is_empty());
    }
}
