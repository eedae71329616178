//! The two shapes of Kiro's endpoint, and the calls of each (K111).

/// Default of `KIRO_UPSTREAM_URL`.
pub const DEFAULT_UPSTREAM_URL: &str = "https://q.{region}.amazonaws.com/generateAssistantResponse";
/// Default of `KIRO_RUNTIME_URL`.
pub const DEFAULT_RUNTIME_URL: &str = "https://runtime.{region}.kiro.dev/";
/// Default of `KIRO_MANAGEMENT_URL`.
pub const DEFAULT_MANAGEMENT_URL: &str = "https://management.{region}.kiro.dev";

/// One of the two wire shapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Shape {
    /// `q.{region}.amazonaws.com`: paths and JSON.
    Q,
    /// `runtime.{region}.kiro.dev` and `management.{region}.kiro.dev`: the root path and a target.
    Runtime,
}

impl Shape {
    /// Both, in no order of preference.
    pub const ALL: [Self; 2] = [Self::Q, Self::Runtime];

    /// The word in settings, logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Q => "q",
            Self::Runtime => "runtime",
        }
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A call of Kiro's services that carries an access token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operation {
    /// `GenerateAssistantResponse`.
    Chat,
    /// `InvokeMCP`.
    Mcp,
    /// `getUsageLimits`.
    Usage,
    /// `ListAvailableModels`.
    Models,
    /// `ListAvailableProfiles`.
    Profiles,
}

impl Operation {
    /// The word in logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Mcp => "mcp",
            Self::Usage => "usage",
            Self::Models => "models",
            Self::Profiles => "profiles",
        }
    }
}
