//! Who we say we are (K101): constants, no logic.
//!
//! When Kiro refuses this program's client version again, a maintainer changes this file and nothing else; settings,
//! documentation, simulator and tests read it. `docs/kiro.md` says where the values come from.

use super::route::Shape;

/// Default of `KIRO_CLIENT_VERSION`: the version of Kiro's IDE that the user agents name.
pub const VERSION: &str = "1.1.70";
/// Default of `KIRO_CLIENT_AGENT_VERSION`: the version of the IDE's agent, in the user agents of shape `runtime`.
pub const AGENT_VERSION: &str = "0.66.7";
/// The Node.js version that the IDE runs on.
pub const NODE: &str = "24.18.0";
/// Since 2026-11-09 Kiro refuses clients below this version.
pub const VERSION_FLOOR: &str = "0.11.133";
/// When a person last compared these values with a capture of the IDE.
pub const CHECKED: &str = "2026-11-28";

/// The SDK that the IDE's chat calls of shape `q` name.
pub const STREAMING_SDK: &str = "1.0.34";
/// The SDK of every other call of Kiro's services.
pub const SERVICE_SDK: &str = "1.0.0";
/// The SDK of the OIDC host (K100).
pub const OIDC_SDK: &str = "3.980.0";
/// The User-Agent of Kiro's own device authorization (K96).
pub const DEVICE_AGENT: &str = "Kiro-CLI";

/// What `KIRO_UPSTREAM_API=auto` means: the first shape is preferred (K118).
pub const SHAPES: [Shape; 2] = [Shape::Q, Shape::Runtime];
