//! `kiro-server`: command line → [`Config`]; serve, simulate.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the binary's own output")]

mod cli;
mod log;
mod serve;

use std::process::ExitCode;

use kiro_messages::config::{ConfigError, Face, RawConfig};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Configuration mistakes end with this code (operations.md).
const EXIT_CONFIG: u8 = 2;

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("kiro-server: {error}");
            ExitCode::from(EXIT_CONFIG)
        }
    }
}

fn run() -> Result<ExitCode, ConfigError> {
    let matches = cli::command().get_matches();
    let mut raw = RawConfig::from_env(std::env::vars());
    if let Some(file) = matches.get_one::<String>("config") {
        let text = std::fs::read_to_string(file).map_err(|e| ConfigError::new(format!("--config {file}: {e}")))?;
        raw.read_toml(&text, file)?;
    }
    cli::take_flags(&matches, &mut raw)?;
    let config = raw.resolve(Face::Server)?;
    if matches.get_flag("print-config") {
        for (setting, value, source) in raw.shown() {
            println!("{} = {value:?}  # {source}", setting.env);
        }
        return Ok(ExitCode::SUCCESS);
    }
    log::init(&config);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| ConfigError::new(format!("the runtime could not be started: {e}")))?;
    Ok(match matches.subcommand() {
        Some(("simulate", options)) => runtime.block_on(serve::simulate(options)),
        _ => runtime.block_on(serve::serve(config)),
    })
}
