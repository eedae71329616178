//! `KIRO_DEBUG_DUMP_DIR`: the bytes of a failed request on the wire, as files for a person with an editor.
//!
//! One folder a failure, named by time and a running number and never by anything a client said: `request.json`,
//! `kiro-request.json`, `frames.bin`, `stream.sse`, `summary.json`. The newest [`KEPT`] stay, [`KEPT_BYTES`] in all:
//! the oldest are removed before a new one is written. They hold prompts, so folders are 0700 and files 0600; access
//! tokens, refresh tokens and keys are removed.
//!
//! Without the setting nothing is recorded: each place checks one `Option`. With it all recordings together hold at
//! most [`BUDGET`] bytes, and a recording whose bytes don't fit says what it left out.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use jiff::Timestamp;
use serde::Serialize;

use super::budget::{ByteBudget, ByteShare};
use crate::error::{Code, Error};
use crate::proto::kiro::fault::Fault;
use crate::proto::kiro::request::Parts;
use crate::proto::said::{KnownSecrets, without_tokens};
use crate::secret::Secret;

/// Folders that stay.
const KEPT: usize = 100;
/// Bytes that all folders take together. One with the largest request takes a quarter of it.
const KEPT_BYTES: u64 = 256 * 1024 * 1024;
/// Bytes that all recordings hold together.
const BUDGET: usize = 64 * 1024 * 1024;
/// Bytes of a stream that are kept from its beginning, and as many from its end.
const HALF_TAPE: usize = 256 * 1024;
/// Failures that wait to be written; further ones are dropped.
const WRITING: usize = 8;
/// How many faults of one request are written.
const FAULTS: usize = 32;

/// The folder, and what is being recorded for it.
pub(super) struct Dumps {
    folder: PathBuf,
    /// Secrets that are known from the start.
    keys: Vec<Secret>,
    held: ByteBudget,
    writing: Arc<AtomicUsize>,
    /// Dumps are written one after the other, because room is made for one at a time.
    desk: Arc<Mutex<()>>,
    number: AtomicU64,
}

/// The bytes of one request, kept until its end is known.
pub(super) struct Recording {
    /// For the two requests.
    held: ByteShare,
    request: Option<Bytes>,
    kiro_request: Option<Parts>,
    frames: Tape,
    faults: Vec<RecordedFault>,
    secrets: Vec<Secret>,
}

/// A failed attempt.
#[derive(Debug, Serialize)]
struct RecordedFault {
    account: String,
    kind: &'static str,
    status: Option<u16>,
    reason: Option<String>,
    message: String,
}

/// The beginning and the end of a stream of bytes.
pub(super) struct Tape {
    held: ByteShare,
    head: Vec<u8>,
    tail: VecDeque<u8>,
    left_out: u64,
}

impl Dumps {
    /// Makes the folder when it isn't there.
    ///
    /// # Errors
    /// It can't be made or written to.
    pub(super) fn new(folder: &Path, keys: Vec<Secret>) -> Result<Self, Error> {
        let refuse =
            |error: io::Error| Error::new(Code::Config, format!("KIRO_DEBUG_DUMP_DIR: {}: {error}", folder.display()));
        if !folder.is_dir() {
            make_folder(folder, true).map_err(refuse)?;
        }
        // A folder that can't be written to fails the start, not the first dump.
        let probe = folder.join(".probe");
        make_file(&probe, b"").and_then(|()| std::fs::remove_file(&probe)).map_err(refuse)?;
        tracing::warn!(folder = %folder.display(), "failed requests are written to files, prompts included (KIRO_DEBUG_DUMP_DIR)");
        Ok(Self {
            folder: folder.to_owned(),
            keys,
            held: ByteBudget::new(BUDGET),
            writing: Arc::default(),
            desk: Arc::default(),
            number: AtomicU64::new(0),
        })
    }

    /// Begins with the client's request. The bytes are shared, not copied.
    pub(super) fn record(&self, request: &Bytes) -> Box<Recording> {
        let mut held = self.held.share();
        let request = held.take(request.len()).then(|| request.clone());
        let (frames, secrets) = (self.tape(), self.keys.clone());
        Box::new(Recording { held, request, kiro_request: None, frames, faults: Vec::new(), secrets })
    }

    /// A tape for the downstream bytes.
    pub(super) fn tape(&self) -> Tape {
        Tape { held: self.held.share(), head: Vec::new(), tail: VecDeque::new(), left_out: 0 }
    }

    /// Writes a failed request on a blocking thread. `summary` is its log line.
    pub(super) fn write(&self, recording: Box<Recording>, sse: Tape, mut summary: serde_json::Value, now: Timestamp) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let begun = self.writing.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < WRITING).then_some(n + 1));
        if begun.is_err() {
            tracing::warn!("a failed request is not written to files: others are being written");
            return;
        }
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        // Sorts by time; the process id keeps servers apart that share the folder.
        let stamp = now.strftime("%Y%m%dT%H%M%S%.3f").to_string().replace('.', "");
        let name = format!("{stamp}Z-{}-{number:06}", std::process::id());
        let (folder, writing, desk) = (self.folder.clone(), self.writing.clone(), self.desk.clone());
        runtime.spawn_blocking(move || {
            let _alone = desk.lock().unwrap_or_else(PoisonError::into_inner);
            recording.complete(&sse, &mut summary);
            let saved = trim(&folder, KEPT - 1, KEPT_BYTES.saturating_sub(recording.size(&sse)))
                .and_then(|()| recording.save(&folder, &name, sse, &summary));
            if let Err(error) = saved {
                tracing::error!(%error, folder = %folder.display(), "a failed request could not be written to files");
            }
            writing.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

impl Recording {
    /// An attempt goes out. Only the last one's bytes are kept.
    pub(super) fn sent(&mut self, body: &Parts, token: &Secret) {
        if self.kiro_request.is_none() && !self.held.take(body.size()) {
            return;
        }
        self.kiro_request = Some(body.clone());
        if !self.secrets.contains(token) {
            self.secrets.push(token.clone());
        }
        self.frames.clear();
    }

    /// A chunk came from upstream.
    pub(super) fn heard(&mut self, chunk: &[u8]) {
        self.frames.add(chunk);
    }

    /// An attempt failed.
    pub(super) fn failed(&mut self, account: &str, fault: &Fault) {
        if self.faults.len() < FAULTS {
            self.faults.push(RecordedFault {
                account: account.to_owned(),
                kind: fault.word(),
                status: fault.status,
                reason: fault.reason.as_deref().map(str::to_owned),
                message: fault.message.to_string(),
            });
        }
    }

    fn complete(&self, sse: &Tape, summary: &mut serde_json::Value) {
        let mut left_out = Vec::new();
        for (part, missing) in [
            ("request.json", self.request.is_none()),
            ("frames.bin, the middle", self.frames.left_out > 0),
            ("stream.sse, the middle", sse.left_out > 0),
        ] {
            if missing {
                left_out.push(part);
            }
        }
        summary["failed_attempts"] = serde_json::to_value(&self.faults).unwrap_or_default();
        summary["left_out"] = left_out.into();
    }

    /// About its size on the disk.
    fn size(&self, sse: &Tape) -> u64 {
        let requests = self.request.iter().map(Bytes::len).chain(self.kiro_request.iter().map(Parts::size));
        let tapes = [&self.frames, sse].map(|tape| tape.head.len() + tape.tail.len());
        requests.chain(tapes).map(|bytes| bytes as u64).sum()
    }

    fn save(&self, folder: &Path, name: &str, sse: Tape, summary: &serde_json::Value) -> io::Result<()> {
        // The rename shows the folder only when it is whole.
        let making = folder.join(format!(".{name}"));
        make_folder(&making, false)?;
        let saved = self.fill(&making, sse, summary).and_then(|()| std::fs::rename(&making, folder.join(name)));
        if saved.is_err() {
            // On a full disk each failure would leave half a folder in place of an older, whole one.
            std::fs::remove_dir_all(&making).unwrap_or_default();
        }
        saved
    }

    fn fill(&self, making: &Path, sse: Tape, summary: &serde_json::Value) -> io::Result<()> {
        if let Some(request) = &self.request {
            make_file(&making.join("request.json"), &self.redact(request.to_vec()))?;
        }
        if let Some(parts) = &self.kiro_request {
            make_file(&making.join("kiro-request.json"), &self.redact(parts.concat()))?;
        }
        let frames = self.frames.bytes();
        if !frames.is_empty() {
            make_file(&making.join("frames.bin"), &self.redact(frames))?;
        }
        let sse = sse.bytes();
        if !sse.is_empty() {
            make_file(&making.join("stream.sse"), &self.redact(sse))?;
        }
        let summary = serde_json::to_vec_pretty(summary).map_err(io::Error::other)?;
        make_file(&making.join("summary.json"), &self.redact(summary))
    }

    fn redact(&self, bytes: Vec<u8>) -> Vec<u8> {
        without_tokens(bytes, &KnownSecrets::new(self.secrets.iter().cloned()))
    }
}

impl Tape {
    fn clear(&mut self) {
        self.head.clear();
        self.tail.clear();
        self.left_out = 0;
        self.held.give_back();
    }

    /// Bytes pass by.
    pub(super) fn add(&mut self, mut bytes: &[u8]) {
        let room = (HALF_TAPE - self.head.len()).min(bytes.len());
        if room > 0 {
            if !self.held.take(room) {
                self.left_out += bytes.len() as u64;
                return;
            }
            let (first, rest) = bytes.split_at(room);
            self.head.extend_from_slice(first);
            bytes = rest;
        }
        if bytes.is_empty() {
            return;
        }
        if bytes.len() > HALF_TAPE {
            let skipped = bytes.len() - HALF_TAPE;
            self.left_out += skipped as u64;
            bytes = bytes.get(skipped..).unwrap_or_default();
        }
        let grows = (self.tail.len() + bytes.len()).min(HALF_TAPE) - self.tail.len();
        if !self.held.take(grows) {
            self.left_out += bytes.len() as u64;
            return;
        }
        let over = (self.tail.len() + bytes.len()).saturating_sub(HALF_TAPE);
        self.left_out += over as u64;
        self.tail.drain(..over);
        self.tail.extend(bytes);
    }

    fn bytes(&self) -> Vec<u8> {
        let (first, second) = self.tail.as_slices();
        [&self.head, first, second].concat()
    }
}

/// Removes the oldest of our folders until at most `most` are left, with at most `most_bytes`. Other files stay.
/// Half-made folders of dead processes are ours too.
fn trim(folder: &Path, most: usize, most_bytes: u64) -> io::Result<()> {
    let mut ours = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name();
        if let Some(stamp) = stamp(&name) {
            let bytes = size(&folder.join(&name))?;
            ours.push((stamp, name, bytes));
        }
    }
    ours.sort();
    let mut left = ours.len();
    let mut bytes: u64 = ours.iter().map(|(_, _, bytes)| bytes).sum();
    for (_, name, size) in ours {
        if left <= most && bytes <= most_bytes {
            break;
        }
        removed(std::fs::remove_dir_all(folder.join(name)))?;
        left -= 1;
        bytes -= size;
    }
    Ok(())
}

/// The time stamp in the name of one of our folders.
fn stamp(name: &OsString) -> Option<String> {
    let name = name.to_str()?;
    let stamp = name.strip_prefix('.').unwrap_or(name);
    let bytes = stamp.as_bytes();
    let is_ours = bytes.len() > 20 && bytes.get(8) == Some(&b'T') && bytes.get(18..20) == Some(b"Z-");
    is_ours.then(|| stamp.to_owned())
}

/// Bytes of the files in a folder of ours.
fn size(folder: &Path) -> io::Result<u64> {
    let Some(entries) = removed(std::fs::read_dir(folder))? else { return Ok(0) };
    let mut bytes = 0;
    for entry in entries {
        bytes += removed(entry?.metadata())?.map_or(0, |file| file.len());
    }
    Ok(bytes)
}

/// Ignores that another server, which shares the folder, has removed it first.
fn removed<T>(done: io::Result<T>) -> io::Result<Option<T>> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        done => done.map(Some),
    }
}

fn make_folder(path: &Path, with_parents: bool) -> io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(with_parents);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

fn make_file(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)?.write_all(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tape(all: &ByteBudget) -> Tape {
        Tape { held: all.share(), head: Vec::new(), tail: VecDeque::new(), left_out: 0 }
    }

    #[test]
    fn a_tape_keeps_both_ends() {
        let all = ByteBudget::new(BUDGET);
        let (mut pieces, mut whole) = (tape(&all), tape(&all));
        let bytes: Vec<u8> = (0..3 * HALF_TAPE).map(|n| (n % 251) as u8).collect();
        for piece in bytes.chunks(1000) {
            pieces.add(piece);
        }
        let kept = pieces.bytes();
        assert_eq!((kept.len(), pieces.left_out as usize), (2 * HALF_TAPE, HALF_TAPE));
        assert!(kept[..HALF_TAPE] == bytes[..HALF_TAPE] && kept[HALF_TAPE..] == bytes[2 * HALF_TAPE..]);
        whole.add(&bytes);
        assert!(whole.bytes() == kept);
        assert_eq!(all.taken(), 4 * HALF_TAPE);
        pieces.clear();
        drop(whole);
        assert_eq!(all.taken(), 0, "the budget comes back");
    }

    #[test]
    fn a_failed_dump_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let dumps = Dumps::new(folder.path(), Vec::new()).unwrap();
        // The name is taken: it fails as on a full disk.
        std::fs::create_dir_all(folder.path().join("name/taken")).unwrap();
        let recording = dumps.record(&Bytes::from_static(b"{}"));
        assert!(recording.save(folder.path(), "name", dumps.tape(), &serde_json::Value::Null).is_err());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    /// The bytes on disk are bounded; the oldest folders go first, half-made ones of killed processes among them.
    #[test]
    fn the_oldest_dumps_go_until_number_and_bytes_fit() {
        let folder = tempfile::tempdir().unwrap();
        let make = |name: &str, bytes: usize| {
            make_folder(&folder.path().join(name), true).unwrap();
            make_file(&folder.path().join(name).join("request.json"), &vec![0; bytes]).unwrap();
        };
        let left = || {
            let entries = std::fs::read_dir(folder.path()).unwrap();
            let mut left: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            left.sort();
            left
        };
        let [half, a, b, c] = [
            ".20261128T200000000Z-1-000000",
            "20261128T200000001Z-1-000001",
            "20261128T200000002Z-1-000002",
            "20261128T200000003Z-1-000003",
        ];
        make(half, 1000);
        make(a, 400);
        make(b, 300);
        make(c, 200);
        make("mine", 5000);
        trim(folder.path(), 4, 1900).unwrap();
        assert_eq!(left(), [half, a, b, c, "mine"]);
        trim(folder.path(), 4, 1899).unwrap();
        assert_eq!(left(), [a, b, c, "mine"]);
        trim(folder.path(), 2, 1899).unwrap();
        assert_eq!(left(), [b, c, "mine"]);
        trim(folder.path(), 2, 499).unwrap();
        assert_eq!(left(), [c, "mine"]);
    }

    #[test]
    fn room_is_made_for_the_next_dump() {
        let folder = tempfile::tempdir().unwrap();
        let dumps = Dumps::new(folder.path(), Vec::new()).unwrap();
        let mut recording = dumps.record(&Bytes::from_static(b"1234"));
        recording.sent(&vec![Bytes::from_static(b"56"), Bytes::from_static(b"7")].into(), &Secret::new("t0ken"));
        recording.heard(b"89");
        let mut sse = dumps.tape();
        sse.add(b"0");
        assert_eq!(recording.size(&sse), 10);
    }

    #[test]
    fn nothing_is_kept_over_the_budget() {
        let mut tape = tape(&ByteBudget::new(10));
        tape.add(&[1; 8]);
        tape.add(&[2; 8]);
        assert_eq!((tape.bytes(), tape.left_out), (vec![1; 8], 8));
    }
}
