//! `kiro-server accounts …`: the pool, from the command line.

mod add;
mod change;
mod check;
mod database;
mod list;
mod login;
mod profiles;
mod restore;

use std::process::ExitCode;

use clap::ArgMatches;
use kiro_messages::config::Config;

use super::output::CommandFailure;

/// Runs the named subcommand.
pub async fn run(config: Config, options: &ArgMatches) -> Result<ExitCode, CommandFailure> {
    match options.subcommand() {
        Some(("add", options)) => add::run(config, options).await,
        Some(("login", options)) => login::run(config, options).await,
        Some(("profiles", options)) => profiles::run(config, options).await,
        Some(("list", options)) => list::run(config, options).await,
        Some(("check", options)) => check::run(config, options).await,
        Some(("disable", options)) => change::disable(config, options).await,
        Some(("enable", options)) => change::enable(config, options).await,
        Some(("remove", options)) => change::remove(config, options).await,
        Some(("restore", options)) => restore::run(config, options).await,
        _ => Err(CommandFailure::usage("accounts: name what to do; see --help")),
    }
}
