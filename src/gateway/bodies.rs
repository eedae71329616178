//! The bodies of requests: one buffer each, of the right size, and a bound for all of them together (M90).
//!
//! A share of `KIRO_MAX_REQUEST_MEMORY` is taken before a byte is read and lies inside the owner of the body's bytes: it
//! goes back when the last slice of them is dropped. It counts twice the body until the request is translated, because
//! small texts are copied on their way upstream; from then on what the body and its copies take.
//!
//! Who waits in front of a body holds nothing. A body without `content-length` must hold what it has read while it waits
//! for more, so two of them could wait for each other: one waits at a time, ahead of all others.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use memmap2::{MmapMut, MmapOptions};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::error::{Code, Error};
use crate::memory;

/// Bytes of one permit.
const UNIT: usize = 1024;
/// What a body that isn't translated yet counts, in bodies.
const UNTRANSLATED: usize = 2;
/// A body at least this long lies in pages of its own: the system has them back when it is dropped, whichever thread
/// drops it. An allocator keeps such memory for the thread that asked for it.
const MAPPED: usize = 128 * 1024;
/// Pages for so many bytes are asked for at once.
const AT_ONCE: usize = 128 * 1024;
/// The first buffer of a body without `content-length`; each further one is twice as long.
const FIRST_STEP: usize = 64 * 1024;
/// The `retry-after` of a request that found no room.
const ROOM_AFTER: Duration = Duration::from_secs(5);

/// The bound of all bodies together. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct RequestMemory {
    /// In permits.
    most: usize,
    /// How long a request may wait for its share; zero: for ever.
    wait: Duration,
    room: Arc<Room>,
}

#[derive(Debug)]
struct Room {
    /// Only a body that grows waits in its queue.
    free: Arc<Semaphore>,
    /// One place, for the first of the bodies that aren't read yet; the others wait for it.
    turn: Semaphore,
    /// One place, for a body that waits while it grows.
    growing: Semaphore,
    /// Tells the first that something came back.
    freed: Notify,
    waits: AtomicU64,
    refused: AtomicU64,
}

/// A part of the bound.
#[derive(Debug)]
struct Part {
    permit: OwnedSemaphorePermit,
    room: Arc<Room>,
}

/// The figures of a [`RequestMemory`].
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RequestMemoryFigures {
    /// Bytes that are taken.
    pub(crate) held: usize,
    /// Bodies that had to wait for their share.
    pub(crate) waits: u64,
    /// Bodies that didn't get one.
    pub(crate) refused: u64,
}

/// A body's part of the bound, and what it was taken for.
#[derive(Debug)]
struct Share(Mutex<Part>);

/// The whole body of a request.
#[derive(Debug, Clone)]
pub struct Body {
    bytes: Bytes,
    share: Option<Arc<Share>>,
}

/// Bytes that are counted nowhere.
impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self { bytes, share: None }
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Bytes::from(text).into()
    }
}

impl From<&'static str> for Body {
    fn from(text: &'static str) -> Self {
        Bytes::from(text).into()
    }
}

impl Body {
    /// Its bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The request is translated: `copied` bytes of it have been.
    pub(super) fn translated(&self, copied: usize) {
        if let Some(share) = &self.share {
            share.shrink(self.bytes.len() + copied);
        }
    }
}

impl RequestMemory {
    /// `most`: bytes of all bodies together.
    pub(super) fn new(most: usize, wait: Duration) -> Self {
        let most = units(most).min(u32::MAX as usize);
        let room = Room {
            free: Arc::new(Semaphore::new(most)),
            turn: Semaphore::new(1),
            growing: Semaphore::new(1),
            freed: Notify::new(),
            waits: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        };
        Self { most, wait, room: Arc::new(room) }
    }

    pub(super) fn figures(&self) -> RequestMemoryFigures {
        let Room { free, waits, refused, .. } = &*self.room;
        RequestMemoryFigures {
            held: (self.most - free.available_permits()) * UNIT,
            waits: waits.load(Ordering::Relaxed),
            refused: refused.load(Ordering::Relaxed),
        }
    }

    /// A buffer for a body that is about to be read. Who asks first gets room first.
    ///
    /// # Errors
    /// There was no room for so long as a body may pause (`KIRO_BODY_TIMEOUT`).
    pub(crate) async fn buffer(&self, announced: Option<usize>) -> Result<BodyBuffer, Error> {
        let size = announced.unwrap_or(FIRST_STEP);
        let part = self.take(self.cost(size)).await?;
        Ok(BodyBuffer { memory: self.clone(), part, buffer: Buffer::new(size)?, length: 0 })
    }

    /// A body that is there already. It is copied; it can't wait.
    ///
    /// # Errors
    /// There is no room.
    #[cfg(any(feature = "addon", test))]
    pub(crate) fn copied(&self, bytes: &[u8]) -> Result<Body, Error> {
        let part = self.room.at_once(self.cost(bytes.len())).ok_or_else(|| self.refuse())?;
        let mut buffer = BodyBuffer { memory: self.clone(), part, buffer: Buffer::new(bytes.len())?, length: 0 };
        buffer.append(bytes);
        Ok(buffer.finish())
    }

    /// Permits for a body of this length. One that is larger than all there is may run alone.
    fn cost(&self, bytes: usize) -> u32 {
        units(bytes.saturating_mul(UNTRANSLATED)).min(self.most) as u32
    }

    /// A part for a body of which nothing is read.
    async fn take(&self, permits: u32) -> Result<Part, Error> {
        if let Some(part) = self.room.at_once(permits) {
            return Ok(part);
        }
        self.waits(self.room.in_turn(permits)).await
    }

    /// More for a body that has a part.
    async fn more(&self, permits: u32) -> Result<OwnedSemaphorePermit, Error> {
        let free = self.room.free.clone();
        if let Ok(permit) = free.clone().try_acquire_many_owned(permits) {
            return Ok(permit);
        }
        let Ok(_place) = self.room.growing.try_acquire() else { return Err(self.refuse()) };
        self.waits(async move { free.acquire_many_owned(permits).await.ok() }).await
    }

    async fn waits<T>(&self, turn: impl Future<Output = Option<T>>) -> Result<T, Error> {
        self.room.waits.fetch_add(1, Ordering::Relaxed);
        let taken = match self.wait.is_zero() {
            true => turn.await,
            false => tokio::time::timeout(self.wait, turn).await.ok().flatten(),
        };
        taken.ok_or_else(|| self.refuse())
    }

    fn refuse(&self) -> Error {
        self.room.refused.fetch_add(1, Ordering::Relaxed);
        no_room()
    }
}

fn no_room() -> Error {
    let message = "The requests that are under way take all the memory there is for them (KIRO_MAX_REQUEST_MEMORY): \
                   try again.";
    Error::new(Code::Overloaded, message).with_retry_after(Some(ROOM_AFTER))
}

fn units(bytes: usize) -> usize {
    bytes.div_ceil(UNIT)
}

impl Room {
    /// Fails also while others wait.
    fn at_once(self: &Arc<Self>, permits: u32) -> Option<Part> {
        if self.turn.available_permits() == 0 { None } else { self.part(permits) }
    }

    fn part(self: &Arc<Self>, permits: u32) -> Option<Part> {
        let permit = self.free.clone().try_acquire_many_owned(permits).ok()?;
        Some(Part { permit, room: self.clone() })
    }

    /// Who asks first gets room first. None: never, since no semaphore here is closed.
    async fn in_turn(self: &Arc<Self>, permits: u32) -> Option<Part> {
        let _turn = self.turn.acquire().await.ok()?;
        loop {
            if let Some(part) = self.part(permits) {
                return Some(part);
            }
            self.freed.notified().await;
        }
    }
}

impl Part {
    /// Gives back what is over so many permits.
    fn shrink(&mut self, permits: usize) {
        let over = self.permit.num_permits().saturating_sub(permits);
        drop(self.permit.split(over));
        self.room.freed.notify_one();
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.shrink(0);
    }
}

impl Share {
    /// Gives back what is over so many bytes.
    fn shrink(&self, bytes: usize) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).shrink(units(bytes));
    }
}

/// A body that is being read.
pub(crate) struct BodyBuffer {
    memory: RequestMemory,
    part: Part,
    buffer: Buffer,
    length: usize,
}

impl BodyBuffer {
    /// Takes the next bytes. A buffer that is full grows, and takes more of the bound first.
    ///
    /// # Errors
    /// As [`RequestMemory::buffer`], or another body already waits to grow.
    pub(crate) async fn push(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let needed = self.length + bytes.len();
        if needed > self.buffer.size() {
            let size = needed.max(2 * self.buffer.size());
            let more = (self.memory.cost(size) as usize).saturating_sub(self.part.permit.num_permits());
            self.part.permit.merge(self.memory.more(more as u32).await?);
            let old = std::mem::replace(&mut self.buffer, Buffer::new(size)?);
            self.buffer.space()[..self.length].copy_from_slice(&old.as_ref()[..self.length]);
        }
        self.append(bytes);
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) {
        self.buffer.expect(self.length + bytes.len());
        self.buffer.space()[self.length..self.length + bytes.len()].copy_from_slice(bytes);
        self.length += bytes.len();
    }

    /// The bytes so far.
    pub(crate) fn length(&self) -> usize {
        self.length
    }

    /// The body is whole.
    pub(crate) fn finish(self) -> Body {
        let Self { memory, part, buffer, length } = self;
        let share = Arc::new(Share(Mutex::new(part)));
        share.shrink(memory.cost(length) as usize * UNIT);
        let bytes = Bytes::from_owner(Held { buffer, length, _share: share.clone() });
        Body { bytes, share: Some(share) }
    }
}

enum Buffer {
    Small(Vec<u8>),
    /// With how far its pages are there.
    Mapped(MmapMut, usize),
}

impl Buffer {
    fn new(size: usize) -> Result<Self, Error> {
        if size < MAPPED {
            return Ok(Self::Small(vec![0; size]));
        }
        // Pages that nobody has written to take no memory yet.
        MmapOptions::new().len(size).map_anon().map(|pages| Self::Mapped(pages, 0)).map_err(|error| {
            tracing::error!(%error, size, "no memory for a request's body");
            no_room()
        })
    }

    fn size(&self) -> usize {
        self.as_ref().len()
    }

    /// Bytes are about to be written up to there. The system gives the pages for many reads at once, which takes it less
    /// time than to be called for each. Where it can't, it is.
    fn expect(&mut self, end: usize) {
        #[cfg(not(target_os = "linux"))]
        let _ = end;
        #[cfg(target_os = "linux")]
        if let Self::Mapped(pages, there) = self
            && end > *there
        {
            let from = std::mem::replace(there, pages.len().min(end + AT_ONCE));
            _ = pages.advise_range(memmap2::Advice::PopulateWrite, from, *there - from);
        }
    }

    fn space(&mut self) -> &mut [u8] {
        match self {
            Self::Small(bytes) => bytes,
            Self::Mapped(pages, _) => pages,
        }
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Small(bytes) => bytes,
            Self::Mapped(pages, _) => pages,
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        memory::freed(self.length);
    }
}

/// The owner of a body's bytes.
struct Held {
    buffer: Buffer,
    length: usize,
    _share: Arc<Share>,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.buffer.as_ref()[..self.length]
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Waker};

    use super::*;

    const KIB: usize = 1024;

    fn is_pending(waiting: &mut (impl Future + Unpin)) -> bool {
        Pin::new(waiting).poll(&mut Context::from_waker(Waker::noop())).is_pending()
    }

    fn memory(most: usize, wait: u64) -> RequestMemory {
        RequestMemory::new(most, Duration::from_millis(wait))
    }

    async fn read(memory: &RequestMemory, announced: Option<usize>, pieces: &[&[u8]]) -> Result<Body, Error> {
        let mut buffer = memory.buffer(announced).await?;
        for piece in pieces {
            buffer.push(piece).await?;
        }
        Ok(buffer.finish())
    }

    #[tokio::test]
    async fn a_share_goes_back_with_the_last_slice_of_the_bytes_m90() {
        let memory = memory(1000 * KIB, 1);
        for size in [100 * KIB, 300 * KIB] {
            let body = read(&memory, Some(size), &[&vec![b'x'; size]]).await.unwrap();
            assert_eq!((body.bytes().len(), memory.figures().held), (size, 2 * size));
            body.translated(10 * KIB);
            assert_eq!(memory.figures().held, size + 10 * KIB);
            // Nothing grows again.
            body.translated(500 * KIB);
            let slice = body.bytes().slice(5..7);
            drop(body);
            assert_eq!(memory.figures().held, size + 10 * KIB);
            drop(slice);
            assert_eq!(memory.figures().held, 0);
        }
    }

    #[tokio::test]
    async fn a_body_without_length_takes_its_share_in_steps_m90() {
        let memory = memory(1000 * KIB, 1);
        let mut buffer = memory.buffer(None).await.unwrap();
        let mut wanted = Vec::new();
        for (number, held) in [(0, 128), (1, 256), (2, 512), (3, 512), (4, 512)] {
            let piece = vec![b'a' + number; 50 * KIB];
            wanted.extend_from_slice(&piece);
            buffer.push(&piece).await.unwrap();
            assert_eq!(memory.figures().held, held * KIB, "{number}");
        }
        let body = buffer.finish();
        assert!(body.bytes() == &wanted);
        assert_eq!(memory.figures().held, 500 * KIB);
        // What finds no room for its next step gives back what it had.
        assert_eq!(read(&memory, None, &[&vec![0; 300 * KIB]]).await.unwrap_err().status(), 529);
        assert_eq!(memory.figures().held, 500 * KIB);
    }

    #[tokio::test]
    async fn who_asks_first_gets_room_first_and_who_waits_too_long_is_refused_m90() {
        let memory = memory(100 * KIB, 100);
        let first = memory.buffer(Some(40 * KIB)).await.unwrap();
        let (mut large, mut small, mut gone) = (
            Box::pin(memory.buffer(Some(50 * KIB))),
            Box::pin(memory.buffer(Some(1))),
            Box::pin(memory.buffer(Some(1))),
        );
        assert!(is_pending(&mut large));
        assert!(is_pending(&mut gone), "it fits, but others were first");
        assert!(is_pending(&mut small));
        // A client that goes away leaves the queue at once.
        drop(gone);
        drop(first);
        let large = large.await.unwrap();
        assert!(is_pending(&mut small));
        let refused = small.await.err().unwrap();
        assert_eq!((refused.status(), refused.retry_after()), (529, Some(ROOM_AFTER)));
        let RequestMemoryFigures { held, waits, refused } = memory.figures();
        assert_eq!((held, waits, refused), (100 * KIB, 3, 1));
        assert!(memory.copied(b"x").is_err());
        drop(large);
        assert_eq!(memory.copied(b"x").unwrap().bytes(), "x");
        // More than there is: alone.
        let alone = memory.buffer(Some(500 * KIB)).await.unwrap();
        assert!(memory.copied(b"x").is_err());
        drop(alone);
    }

    #[tokio::test]
    async fn bodies_that_grow_do_not_wait_for_each_other_m90() {
        let memory = memory(300 * KIB, 0);
        let (mut first, mut second) = (memory.buffer(None).await.unwrap(), memory.buffer(None).await.unwrap());
        let piece = vec![b'x'; 100 * KIB];
        let mut grows = Box::pin(first.push(&piece));
        assert!(is_pending(&mut grows), "the other may end");
        // It holds nothing, so it waits behind who does.
        let mut arrives = Box::pin(memory.buffer(Some(KIB)));
        assert!(is_pending(&mut arrives));
        assert_eq!(second.push(&piece).await.unwrap_err().status(), 529);
        drop(second);
        grows.await.unwrap();
        arrives.await.unwrap();
        drop(first);
        assert_eq!(memory.figures().held, 0);
    }

    #[tokio::test]
    async fn a_body_that_grows_goes_ahead_of_those_that_have_not_begun_m90() {
        let memory = memory(300 * KIB, 0);
        let mut grows = memory.buffer(None).await.unwrap();
        let mut arrives = Box::pin(memory.buffer(Some(100 * KIB)));
        assert!(is_pending(&mut arrives), "200 KiB of 172");
        grows.push(&vec![b'x'; 140 * KIB]).await.unwrap();
        drop(grows);
        assert_eq!(arrives.await.unwrap().length(), 0);
        // Nothing is lost when one that waits to grow leaves.
        let (mut grows, mut arrives) = (memory.buffer(None).await.unwrap(), Box::pin(memory.buffer(Some(100 * KIB))));
        let other = memory.buffer(Some(40 * KIB)).await;
        assert!(is_pending(&mut arrives) || other.is_ok());
        drop((grows.push(b"x").await, grows, other));
        assert_eq!(arrives.await.unwrap().length(), 0);
        assert_eq!(memory.figures().held, 0);
    }
}
