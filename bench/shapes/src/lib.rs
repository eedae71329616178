//! Ways to bring bytes into JavaScript. Each shape carries the same chunks at the same pace; bench/shapes/run.mjs reads them
//! and measures what the main thread spends.
//!
//! The doorbell is the addon's own: this crate compiles src/addon/{bell,feed,no_outlet}.rs, and run.mjs reads with lib/bell.js.

#[path = "../../../src/addon/bell.rs"]
#[allow(dead_code, reason = "the experiment uses a part of it")]
mod bell;
#[path = "../../../src/addon/feed.rs"]
#[allow(dead_code, reason = "the experiment uses a part of it")]
mod feed;
#[path = "../../../src/addon/no_outlet.rs"]
#[allow(dead_code, reason = "the experiment uses a part of it")]
mod outlet;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use napi::bindgen_prelude::*;
use napi::threadsafe_function::{ThreadsafeFunction, ThreadsafeFunctionCallMode};
use napi_derive::napi;
use tokio::sync::{Mutex, mpsc};
use tokio::time::{MissedTickBehavior, interval};

/// What one stream sends.
#[napi(object)]
#[derive(Clone)]
pub struct Plan {
    pub chunks: u32,
    pub bytes: u32,
    pub gap_ms: u32,
}

impl Plan {
    /// Calls `send` for every chunk, at its time, until it says no.
    async fn play<F: Future<Output = bool>>(self, mut send: impl FnMut(Bytes) -> F) {
        let chunk = Bytes::from(vec![b'x'; self.bytes as usize]);
        let mut clock = interval(Duration::from_millis(self.gap_ms.max(1).into()));
        clock.set_missed_tick_behavior(MissedTickBehavior::Burst);
        for _ in 0..self.chunks {
            clock.tick().await;
            if !send(chunk.clone()).await {
                return;
            }
        }
    }
}

/// A call into JavaScript for each chunk. `take` gets a Buffer, at the end an empty one.
#[napi]
pub fn call_per_chunk(plan: Plan, take: Function<Buffer, ()>) -> Result<()> {
    let take: ThreadsafeFunction<Buffer, (), Buffer, Status, false> = take.build_threadsafe_function().build()?;
    let take = Arc::new(take);
    spawn(async move {
        let sender = take.clone();
        plan.play(|chunk| {
            let status = sender.call(Vec::from(chunk).into(), ThreadsafeFunctionCallMode::NonBlocking);
            async move { status == Status::Ok }
        })
        .await;
        take.call(Vec::new().into(), ThreadsafeFunctionCallMode::NonBlocking);
    });
    Ok(())
}

/// A promise for each chunk: JavaScript asks for the next one.
#[napi]
pub struct Reader(Arc<Mutex<mpsc::Receiver<Bytes>>>);

#[napi]
impl Reader {
    #[napi(constructor)]
    pub fn new(plan: Plan) -> Self {
        Self(Arc::new(Mutex::new(channel(plan))))
    }

    #[napi]
    pub async fn next(&self) -> Result<Option<Buffer>> {
        Ok(self.0.lock().await.recv().await.map(|chunk| Vec::from(chunk).into()))
    }
}

/// A web ReadableStream made by napi.
#[napi]
pub fn web_stream(env: &Env, plan: Plan) -> Result<ReadableStream<'_, BufferSlice<'_>>> {
    let chunks = tokio_stream::wrappers::ReceiverStream::new(channel(plan));
    ReadableStream::create_with_stream_bytes(env, futures_util::StreamExt::map(chunks, |chunk| Ok(Vec::from(chunk))))
}

fn channel(plan: Plan) -> mpsc::Receiver<Bytes> {
    let (sender, receiver) = mpsc::channel(16);
    spawn(plan.play(move |chunk| {
        let sender = sender.clone();
        async move { sender.send(chunk).await.is_ok() }
    }));
    receiver
}

/// The addon's doorbell, as src/addon/mod.rs has it.
#[napi]
pub struct Bell {
    bell: bell::Bell,
    batch: Vec<u8>,
}

#[napi]
impl Bell {
    #[napi(constructor)]
    pub fn new(ring: Function<(), ()>) -> Result<Self> {
        let ring = ring.build_threadsafe_function::<()>().weak::<true>().build()?;
        let bell = bell::Bell::new(move || {
            let _status = ring.call((), ThreadsafeFunctionCallMode::NonBlocking);
        });
        Ok(Self { bell, batch: Vec::new() })
    }

    #[napi]
    pub fn drain<'env>(&mut self, env: &'env Env, again: bool) -> Result<Option<BufferSlice<'env>>> {
        self.bell.drain(&mut self.batch, again);
        if self.batch.is_empty() { Ok(None) } else { BufferSlice::copy_from(env, &self.batch).map(Some) }
    }

    #[napi]
    pub fn cancel(&self, call: u32) {
        self.bell.cancel(call);
    }

    #[napi]
    pub fn taken(&self, call: u32, bytes: u32) {
        self.bell.taken(call, bytes as usize);
    }

    /// A stream of chunks as call number `call`.
    #[napi]
    pub fn stream(&self, call: u32, plan: Plan) {
        let slot = self.bell.open(call);
        spawn(async move {
            slot.post(bell::MessageKind::Head, Bytes::from_static(br#"{"requestId":"x","headers":{}}"#));
            let sender = slot.clone();
            plan.play(|chunk| {
                sender.post(bell::MessageKind::Data, chunk);
                let sender = sender.clone();
                async move {
                    sender.room().await;
                    true
                }
            })
            .await;
            slot.post(bell::MessageKind::End, Bytes::from_static(br#"{"outcome":"complete"}"#));
        });
    }
}
