//! `kiro-server`: command line → [`Config`](kiro_messages::config::Config); serve, accounts, keys, client, doctor, health, simulate.
#![cfg_attr(not(test), deny(clippy::too_many_lines))]

mod accounts;
mod cli;
mod client;
mod desk;
mod doctor;
mod health;
mod keys;
mod log;
mod output;
mod reload;
mod serve;
mod stops;
mod survey;
mod traces;

use std::process::ExitCode;

use clap::ArgMatches;
use kiro_messages::config::{Config, ConfigError, Face, RawConfig, Setting, Source};
use kiro_messages::{memory, program};
use log::Log;
use output::{CommandFailure, EXIT_CONFIG};
use reload::Reload;
use traces::Traces;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Gives back what the allocator keeps for this thread.
#[expect(unsafe_code, reason = "mimalloc's crate has the function only among a hundred others")]
fn give_back() {
    unsafe extern "C" {
        fn mi_collect(force: bool);
    }
    // SAFETY: it may be called at any time, and is linked with the allocator.
    unsafe {
        mi_collect(true);
    }
}

/// How long the dump of a failed request (`KIRO_DEBUG_DUMP_DIR`) may still take at the end.
const LAST_FILES: std::time::Duration = std::time::Duration::from_secs(1);

fn main() -> ExitCode {
    let code = run().unwrap_or_else(|error| {
        output::complain(error);
        ExitCode::from(EXIT_CONFIG)
    });
    log::finish();
    code
}

fn run() -> Result<ExitCode, ConfigError> {
    // As lib/cli.js names it.
    if std::env::args_os().next().is_some_and(|name| name == program::PACKAGE) {
        program::started_as(program::PACKAGE);
    }
    let (args, hints) = cli::in_our_spelling(std::env::args_os());
    hints.iter().for_each(output::complain);
    let matches = cli::command().get_matches_from(args);
    let (raw, mut config) = read(&matches)?;
    if matches.get_flag("print-config") {
        let mut text = String::new();
        for (setting, value, source) in raw.shown() {
            text += &format!("{} = {value:?}  # {source}\n", setting.env);
        }
        for doubt in raw.doubts() {
            text += &format!("# {doubt}\n");
        }
        return Ok(end(output::show(&text).map(|()| ExitCode::SUCCESS)));
    }
    let no_runtime = |error| ConfigError::new(format!("the runtime could not be started: {error}"));
    if let Some((name @ ("accounts" | "keys" | "client" | "doctor" | "health"), options)) = matches.subcommand() {
        // A command prints its own output; the library's log is shown only on request.
        let is_said = |(setting, _, source): &(&Setting, String, Source)| {
            setting.env == "KIRO_LOG_LEVEL" && *source != Source::Default
        };
        if !raw.shown().iter().any(is_said) {
            config.log_level = "error".to_owned();
        }
        Log::init(&config, None);
        // One thread: see `desk`.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(no_runtime)?;
        let done = match name {
            "accounts" => runtime.block_on(accounts::run(config, options)),
            "keys" => runtime.block_on(keys::run(config, options)),
            "client" => runtime.block_on(client::run(&config, options)),
            "health" => runtime.block_on(health::run(&config, options)),
            _ => runtime.block_on(doctor::run(config, &raw, options)),
        };
        runtime.shutdown_timeout(LAST_FILES);
        return Ok(end(done));
    }
    let (traces, sender) = Traces::start().map_err(ConfigError::new)?.unzip();
    let log = Log::init(&config, sender);
    memory::allocator(give_back);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.thread_keep_alive(memory::THREADS_END);
    let runtime = runtime.enable_all().build().map_err(no_runtime)?;
    if let Some(("simulate", options)) = matches.subcommand() {
        return Ok(runtime.block_on(serve::simulate(options)));
    }
    for doubt in raw.doubts() {
        tracing::warn!("{doubt}");
    }
    let reload = Reload::new(log, raw, &config, move || read(&matches));
    let finish = move || {
        if let Some(traces) = traces {
            traces.finish();
        }
    };
    let code = runtime.block_on(serve::serve(config, reload, finish));
    // Everything worth waiting for is done. A hanging file or name server must not keep the process.
    runtime.shutdown_timeout(LAST_FILES);
    Ok(code)
}

/// Says why a command could not be done.
fn end(done: Result<ExitCode, CommandFailure>) -> ExitCode {
    done.unwrap_or_else(|failure| {
        output::complain(&failure);
        ExitCode::from(failure.exit_code())
    })
}

/// The settings from flags, environment and config file: as given, and resolved.
fn read(matches: &ArgMatches) -> Result<(RawConfig, Config), ConfigError> {
    let mut raw = RawConfig::from_os_env(std::env::vars_os())?;
    if let Some(file) = matches.get_one::<String>("config") {
        let text = std::fs::read_to_string(file).map_err(|e| ConfigError::new(format!("--config {file}: {e}")))?;
        raw.read_toml(&text, file)?;
    }
    cli::take_flags(matches, &mut raw)?;
    let config = raw.resolve(Face::Server)?;
    Ok((raw, config))
}
