//! Log lines on standard error.

use std::io::IsTerminal;

use kiro_messages::config::{Config, LogFormat};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

/// The log that runs; its level can be changed.
pub struct Log {
    set: Box<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>,
}

impl Log {
    /// Starts logging as the configuration says, and what sends spans. Libraries are heard from `warn` on.
    pub fn init(config: &Config, traces: Option<Box<dyn Layer<Registry> + Send + Sync>>) -> Self {
        let (filter, handle) = reload::Layer::new(filter(&config.log_level));
        let terminal = std::io::stderr().is_terminal();
        let format = config.log_format.unwrap_or(if terminal { LogFormat::Pretty } else { LogFormat::Json });
        let lines = fmt::layer().with_writer(std::io::stderr);
        let lines = match format {
            LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed(),
            LogFormat::Pretty => lines.with_ansi(terminal).compact().boxed(),
        };
        tracing_subscriber::registry().with(traces).with(lines.with_filter(filter)).init();
        Self { set: Box::new(move |filter| handle.reload(filter)) }
    }

    /// Logs at this level from now on.
    pub fn set_level(&self, level: &str) -> Result<(), String> {
        (self.set)(filter(level)).map_err(|error| error.to_string())
    }
}

fn filter(level: &str) -> EnvFilter {
    let others = if matches!(level, "error" | "off") { level } else { "warn" };
    EnvFilter::new(format!("{others},kiro_messages={level},kiro_server={level}"))
}
