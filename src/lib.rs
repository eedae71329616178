//! Anthropic's Messages API in front of Kiro: a pool of accounts, a translation both ways, and nothing else between a
//! client and the model.
//!
//! A request of the Messages API comes in as bytes. The gateway chooses an account, translates the request, sends it to
//! Kiro and translates the answer while it arrives. When an account fails before the first content, another one answers.
//!
//! ```text
//!  bytes ─parse─▶ messages::Request ─translate─▶ kiro request ─▶ bytes ──┐
//!                                                                        │ upstream (HTTP)
//!  bytes ◀─sse── messages events ◀─translate─ kiro::Event ◀─ Frame ◀─chunk┘
//!        └──────────── proto::pipeline::Pipeline: pure, push / finish / abort ───┘
//!
//!  server, addon      HTTP routes, Node.js            what clients see
//!  gateway            one request from start to end
//!  pool, credentials, store, upstream, metrics        accounts, tokens, records, connections
//!  config, error                                      settings, codes
//!  policy             which account, how long it rests, what is tried again: pure
//!  proto              the two wire formats and the way from one to the other: pure
//! ```
//!
//! A module uses its own layer and the ones below it. `docs/contract/` in the repository has the rules that comments cite
//! (`R55`, `TS42`).
//!
//! # Where to begin
//! - [`RawConfig`] collects settings from environment, file, flags or options. It resolves to a [`config::Config`].
//! - [`Gateway`] serves requests with that configuration. It owns everything that runs in the background.
//! - [`Call`] has what a caller adds to a request: its id, a pinned account, an operator's system text.
//! - [`MessageStream`] is one answer as SSE bytes.
//! - [`Error`] has a code, an HTTP status and a sentence for the client, without secrets.
//!
#![cfg_attr(feature = "gateway", doc = "```no_run")]
#![cfg_attr(not(feature = "gateway"), doc = "```ignore")]
//! use futures_util::StreamExt as _;
//! use kiro_messages::config::Face;
//! use kiro_messages::{Call, Error, Gateway, RawConfig};
//!
//! # async fn example() -> Result<(), Error> {
//! let settings = RawConfig::from_env(std::env::vars());
//! let gateway = Gateway::start(settings.resolve(Face::Server)?).await?;
//!
//! let request = r#"{
//!     "model": "claude-sonnet-4-5",
//!     "max_tokens": 1024,
//!     "stream": true,
//!     "messages": [{"role": "user", "content": "Hello"}]
//! }"#;
//! let mut answer = gateway.stream(request.into(), Call::default()).await?;
//! while let Some(events) = answer.next().await {
//!     print!("{}", String::from_utf8_lossy(&events)); // event: message_start …
//! }
//!
//! gateway.close(std::time::Duration::from_secs(30)).await; // tokens and counters are saved
//! # Ok(())
//! # }
//! ```
//!
//! # Features
//! - none: the pure core, [`proto`] and [`policy`]: no clock, no IO, no runtime.
//! - `gateway`: everything that does IO, from `config` to `server`.
//! - `addon` (default): the Node.js native addon.
//! - `server`: the `kiro-server` binary.
//! - `simulator`: the simulated upstream, for a first try and for tests.
//! - `profile`: CPU profiles (`KIRO_PROFILE_ADDR`), on Unix.
//! - `otel`: OpenTelemetry traces from `kiro-server`.
//!
//! # Cancel safety
//! Drop a call's future, or the [`MessageStream`] that it gave, at any time. The upstream request ends in the same moment,
//! its places are free, and the account's health stays as it is. A token refresh that has begun goes on without the
//! caller, because its answer replaces the old token. A [`Gateway`] that is dropped goes when its streams have ended,
//! without what still waits to be written: call [`Gateway::close`] first.
#![cfg_attr(not(test), deny(clippy::too_many_lines))]
#![cfg_attr(
    not(feature = "gateway"),
    allow(rustdoc::broken_intra_doc_links, reason = "the page names what is not there without the feature")
)]

pub mod policy;
pub mod program;
pub mod proto;
pub mod secret;
mod simd;

#[cfg(feature = "gateway")]
pub mod accounts;
#[cfg(feature = "addon")]
mod addon;
#[cfg(feature = "gateway")]
pub mod config;
#[cfg(feature = "gateway")]
pub mod credentials;
#[cfg(feature = "gateway")]
pub mod error;
#[cfg(feature = "gateway")]
pub mod files;
#[cfg(feature = "gateway")]
pub mod gateway;
#[cfg(feature = "gateway")]
pub mod memory;
#[cfg(feature = "gateway")]
pub mod metrics;
#[cfg(feature = "gateway")]
pub mod pool;
#[cfg(feature = "gateway")]
pub mod server;
#[cfg(feature = "simulator")]
pub mod simulator;
#[cfg(feature = "gateway")]
pub mod store;
#[cfg(feature = "gateway")]
pub mod upstream;

#[cfg(feature = "gateway")]
pub use config::RawConfig;
#[cfg(feature = "gateway")]
pub use error::Error;
#[cfg(feature = "gateway")]
pub use gateway::{Call, Gateway, MessageStream};
