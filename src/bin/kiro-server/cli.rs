//! The command line, made from the table of settings.

use clap::{Arg, ArgAction, ArgMatches, Command};
use kiro_messages::config::{ConfigError, Form, RawConfig, SETTINGS, Setting};

/// `kiro-server` with a flag for each setting that has one.
pub fn command() -> Command {
    let mut command = Command::new("kiro-server")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Anthropic's Messages API in front of Kiro, with a pool of accounts")
        .after_help(after_help())
        .args_conflicts_with_subcommands(false)
        .subcommand(Command::new("serve").about("Serve (the default)"))
        .subcommand(Command::new("simulate").about("Run the simulated upstream alone").arg(
            Arg::new("listen").long("listen").value_name("ADDR").default_value("127.0.0.1:8090").help("Listen address"),
        ))
        .arg(
            Arg::new("config")
                .long("config")
                .value_name("FILE")
                .help("TOML file; keys are the flags' names")
                .global(true),
        )
        .arg(
            Arg::new("print-config")
                .long("print-config")
                .action(ArgAction::SetTrue)
                .help("Show the resolved configuration with where each value came from, and exit"),
        );
    for setting in SETTINGS {
        let Some(flag) = setting.flag else { continue };
        let arg = Arg::new(flag).long(flag).help(help(setting)).global(true);
        command = command.arg(match setting.form {
            Form::Switch => arg.num_args(0..=1).require_equals(true).default_missing_value("true").value_name("BOOL"),
            _ => arg.value_name("VALUE"),
        });
    }
    command
}

/// Hands the flags that were given to the configuration.
pub fn take_flags(matches: &ArgMatches, raw: &mut RawConfig) -> Result<(), ConfigError> {
    for setting in SETTINGS {
        let Some(flag) = setting.flag else { continue };
        let value = matches
            .subcommand()
            .and_then(|(_, options)| options.try_get_one::<String>(flag).ok().flatten())
            .or_else(|| matches.get_one::<String>(flag));
        if let Some(value) = value {
            raw.set_flag(flag, value)?;
        }
    }
    Ok(())
}

fn help(setting: &Setting) -> String {
    format!("{} [env: {}]{}", setting.meaning, setting.env, default(setting))
}

fn default(setting: &Setting) -> String {
    if setting.default.is_empty() { String::new() } else { format!(" [default: {}]", setting.default) }
}

fn after_help() -> String {
    let mut text = String::from("Settings without a flag (environment, or the config file):\n");
    for setting in SETTINGS.iter().filter(|s| s.flag.is_none()) {
        text.push_str(&format!("  {:<30} {}{}\n", setting.env, setting.meaning, default(setting)));
    }
    text.push_str("\nThe predecessor's GO_KIRO_* names are accepted too. Durations: 500ms, 5s, 2m.");
    text
}
