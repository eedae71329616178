//! Log lines on standard error.

use std::io::IsTerminal;

use kiro_messages::config::{Config, LogFormat};
use tracing_subscriber::EnvFilter;

/// Starts logging as the configuration says. Libraries are heard from `warn` on.
pub fn init(config: &Config) {
    let level = config.log_level.as_str();
    let others = if matches!(level, "error" | "off") { level } else { "warn" };
    let filter = EnvFilter::new(format!("{others},kiro_messages={level},kiro_server={level}"));
    let terminal = std::io::stderr().is_terminal();
    let format = config.log_format.unwrap_or(if terminal { LogFormat::Pretty } else { LogFormat::Json });
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).with_span_list(false).init(),
        LogFormat::Pretty => lines.with_ansi(terminal).compact().init(),
    }
}
