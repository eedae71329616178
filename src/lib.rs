//! Anthropic's Messages API in front of Kiro.
//!
//! ```text
//!  bytes ─parse─▶ messages::Request ─translate─▶ kiro request ─▶ bytes ──┐
//!                                                                        │ upstream (HTTP)
//!  bytes ◀─sse── messages events ◀─translate─ kiro::Event ◀─ Frame ◀─chunk┘
//!        └──────────── proto::pipeline::Pipeline: pure, push / finish / abort ───┘
//! ```
//!
//! # Features
//! - none: the pure core, [`proto`] and [`policy`]: no runtime, no IO.
//! - `gateway`: everything that does IO, from [`config`] to [`server`].
//! - `addon` (default): the Node.js native addon.
//! - `server`: the `kiro-server` binary.
//! - `simulator`: the simulated upstream.

pub mod policy;
pub mod proto;
pub mod secret;

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
