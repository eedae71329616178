//! The Node.js face: it only converts.
//!
//! The API of JavaScript programs is written in JavaScript (lib/), on top of the two classes here:
//! [`gateway::KiroGateway`] begins calls, [`Bell`] brings their results. A call is a number that JavaScript chose; its
//! messages come in batches (see [`bell`]), so that neither a promise nor a callback crosses the border per event.
//!
//! The `///` of exported items become the documentation in `index.d.ts`. They describe a method as JavaScript programs
//! see it; ordinary comments say how lib/ calls it.

mod bell;
mod call;
mod feed;
mod gateway;
mod intake;
mod listen;
mod live;
mod message;
mod notifier;
#[cfg(unix)]
mod outlet;
#[cfg(not(unix))]
#[path = "no_outlet.rs"]
mod outlet;
mod settings;

use bytes::Bytes;
use napi::bindgen_prelude::{BufferSlice, Function};
use napi::threadsafe_function::ThreadsafeFunctionCallMode;
use napi::{Env, Result};
use napi_derive::napi;

use crate::program;

/// The doorbell of one JavaScript thread. Made once by lib/bell.js.
/// @internal
#[napi]
pub struct Bell {
    bell: bell::Bell,
    /// Reused from batch to batch.
    batch: Vec<u8>,
}

#[napi]
impl Bell {
    /// `ring` is called on this thread when there is something to drain.
    #[napi(constructor, skip_typescript)]
    pub fn new(env: &Env, ring: Function<(), ()>) -> Result<Self> {
        program::started_as(program::PACKAGE);
        // Weak: lib/bell.js decides whether the process must live (N51).
        let ring = ring.build_threadsafe_function::<()>().weak::<true>().build()?;
        let bell = bell::Bell::new(move || {
            // It fails only when the thread is going away.
            let _status = ring.call((), ThreadsafeFunctionCallMode::NonBlocking);
        });
        env.add_env_cleanup_hook(bell.clone(), |bell| bell.silence())?;
        Ok(Self { bell, batch: Vec::new() })
    }

    /// The next batch, null when nothing waits. `again`: the caller comes again by itself while it gets something.
    #[napi(catch_unwind, skip_typescript)]
    pub fn drain<'env>(&mut self, env: &'env Env, again: bool) -> Result<Option<BufferSlice<'env>>> {
        self.bell.drain(&mut self.batch, again);
        if self.batch.is_empty() {
            return Ok(None);
        }
        // A copy, not a view of our memory: some runtimes allow only that, and a view would need a finalizer.
        BufferSlice::copy_from(env, &self.batch).map(Some)
    }

    /// Ends a call (N33). Its last message still comes.
    #[napi(catch_unwind, skip_typescript)]
    pub fn cancel(&self, call: u32) {
        self.bell.cancel(call);
    }

    /// This many bytes of a call's answer were handed on (N31).
    #[napi(catch_unwind, skip_typescript)]
    pub fn taken(&self, call: u32, bytes: u32) {
        self.bell.taken(call, bytes as usize);
    }

    /// Where the bytes of a streamed answer go, asked for by its head: to the socket `descriptor`, in HTTP chunks when
    /// `chunked`. Negative, or not usable: they come here.
    #[napi(catch_unwind, skip_typescript)]
    pub fn lead(&self, call: u32, descriptor: i32, chunked: bool) {
        self.bell.lead(call, outlet::Outlet::new(descriptor, chunked).ok());
    }

    /// Bytes that the system has yet to send on a socket's descriptor; -1 when it doesn't say.
    #[napi(catch_unwind, skip_typescript)]
    pub fn unsent(&self, descriptor: i32) -> i64 {
        outlet::unsent(descriptor).map_or(-1, i64::from)
    }

    /// `there`, `ended` (its half) or `gone`: the client on a socket's descriptor that isn't read.
    #[napi(catch_unwind, skip_typescript)]
    pub fn presence(&self, descriptor: i32) -> &'static str {
        outlet::presence(descriptor)
    }

    /// The next bytes of a call's request. False: no more until it asks for them (`MORE` in lib/bell.js).
    #[napi(catch_unwind, skip_typescript)]
    pub fn feed(&self, call: u32, bytes: BufferSlice) -> bool {
        self.bell.feed(call, Bytes::copy_from_slice(&bytes))
    }

    /// The call's request is complete.
    #[napi(catch_unwind, skip_typescript)]
    pub fn fed(&self, call: u32) {
        self.bell.fed(call);
    }
}
