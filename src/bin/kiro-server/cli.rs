//! The command line, made from the table of settings.

use std::ffi::OsString;

use clap::{Arg, ArgAction, ArgMatches, Command};
use kiro_messages::config::{ConfigError, Form, Group, RawConfig, SETTINGS, Setting};
use kiro_messages::program;

/// Columns of the list of settings.
const WIDTH: usize = 80;

/// `kiro-server` with a flag for each setting that has one.
#[expect(clippy::too_many_lines, reason = "the tree of commands, in the order of --help")]
pub fn command() -> Command {
    let mut command = Command::new("kiro-server")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Anthropic's Messages API in front of Kiro, with a pool of accounts")
        .after_help(short_help())
        .after_long_help(long_help())
        .args_conflicts_with_subcommands(false)
        .subcommand(Command::new("serve").about("Serve (the default)"))
        .subcommand(accounts())
        .subcommand(keys())
        .subcommand(client())
        .subcommand(
            Command::new("doctor")
                .about("Check configuration, store, accounts and upstream: one line each, with the cure")
                .after_help(
                    "It changes nothing and renews no token. It asks Kiro whether it answers and, as one account of each \
                     region, for usage, models and tools; that costs nothing.\n\
                     With --live it makes at most 40 small requests as one account, and compares the answers with what this \
                     program expects of Kiro: ✓ as expected, ≠ differs and the gateway gets along, ✗ wrong.\n\
                     Exit code: 0 all is fine, 1 something is wrong, 2 the configuration can't be read.",
                )
                .arg(
                    Arg::new("live")
                        .long("live")
                        .action(ArgAction::SetTrue)
                        .help("Ask Kiro itself: small requests that cost credits of one account"),
                )
                .arg(
                    Arg::new("account")
                        .long("account")
                        .value_name("ID")
                        .requires("live")
                        .help("The account, by its id or the first characters of it [default: the first in service]"),
                )
                .arg(
                    Arg::new("second")
                        .long("second")
                        .value_name("ID")
                        .requires("live")
                        .help("Another account, for checks that compare two: credits, thoughts [default: none]"),
                )
                .arg(
                    Arg::new("only")
                        .long("only")
                        .value_name("NAME,…")
                        .requires("live")
                        .help("Only these checks; `limits`, the largest body and picture, runs only by name"),
                )
                .arg(
                    Arg::new("yes")
                        .long("yes")
                        .action(ArgAction::SetTrue)
                        .requires("live")
                        .help("Don't ask before the first request"),
                )
                .arg(
                    Arg::new("report")
                        .long("report")
                        .value_name("FILE")
                        .requires("live")
                        .help("Write the result to a file too, as JSON without anything secret, for an issue"),
                )
                .arg(
                    Arg::new("webhook")
                        .long("webhook")
                        .action(ArgAction::SetTrue)
                        .conflicts_with("live")
                        .help("Send a test notice to KIRO_WEBHOOK_URL, and nothing else"),
                )
                .arg(json()),
        )
        .subcommand(
            Command::new("health")
                .about(
                    "Ask a running server whether it can serve: for HEALTHCHECK and the like, where there is no curl",
                )
                .arg(Arg::new("url").long("url").value_name("URL").help(
                    "Where it listens [default: what --host and --port say, on loopback when it listens everywhere]",
                ))
                .arg(json())
                .after_help("Exit code: 0 it can serve, 1 it can't or doesn't answer within 4 s, 2 usage."),
        )
        .subcommand(
            Command::new("simulate")
                .about("Run the simulated upstream alone")
                .arg(
                    Arg::new("listen")
                        .long("listen")
                        .value_name("ADDR")
                        .default_value("127.0.0.1:8090")
                        .help("Listen address"),
                )
                .arg(
                    Arg::new("world")
                        .long("world")
                        .value_name("NAME")
                        .action(ArgAction::Append)
                        .default_value("2026-11")
                        .help("2026-11 (today's Kiro), 2025-12, or a preset in which it differs; more than one add up"),
                ),
        )
        .arg(
            Arg::new("config")
                .long("config")
                .value_name("FILE")
                .help(format!("TOML file with settings ({} --help has them all; their flags work for every command)", program::command()))
                .global(true),
        )
        .arg(
            Arg::new("print-config")
                .long("print-config")
                .action(ArgAction::SetTrue)
                .help("Show every setting, its value and where that came from, and exit"),
        );
    for setting in SETTINGS {
        let Some(flag) = setting.flag else { continue };
        // Shown by `settings`, together with those that have no flag.
        let arg = Arg::new(flag).long(flag).hide(true).global(true);
        command = command.arg(match setting.bare {
            Some(bare) => {
                // A switch takes its value with `=` only, so that a command may follow it.
                arg.num_args(0..=1).default_missing_value(bare).require_equals(setting.form == Form::Switch)
            }
            None => arg,
        });
    }
    command
}

/// Gives the configuration the flags of the command line.
pub fn take_flags(matches: &ArgMatches, raw: &mut RawConfig) -> Result<(), ConfigError> {
    for setting in SETTINGS {
        let Some(flag) = setting.flag else { continue };
        if let Some(value) = deepest(matches, flag) {
            raw.set_flag(flag, value)?;
        }
    }
    Ok(())
}

/// A global flag's value; the innermost subcommand's counts.
fn deepest<'a>(matches: &'a ArgMatches, flag: &str) -> Option<&'a String> {
    let inner = matches.subcommand().and_then(|(_, options)| deepest(options, flag));
    inner.or_else(|| matches.try_get_one::<String>(flag).ok().flatten())
}

fn accounts() -> Command {
    Command::new("accounts")
        .about("The pool of accounts: add, list, check, disable, enable, restore, remove")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .after_help(
            "Works on the store that the settings name (--store, --redis-url). A running server sees a change within \
             KIRO_ACCOUNT_CACHE_TTL.\n\
             Exit code: 0 done, 1 it could not be done or a check failed, 2 usage or configuration.",
        )
        .subcommand(add())
        .subcommand(login())
        .subcommand(
            Command::new("list")
                .about("Show the accounts: id, name, method, health, expiry, uses")
                .arg(json())
                .after_help("Only each server knows its requests in flight: see its /metrics."),
        )
        .subcommand(
            Command::new("check")
                .about("Ask upstream what accounts have used, how they are served, and their models; renew tokens that have expired")
                .arg(id().required(false))
                .arg(
                    Arg::new("refresh")
                        .long("refresh")
                        .action(ArgAction::SetTrue)
                        .help("Renew the access token although it is still good"),
                )
                .arg(json())
                .after_help(
                    "Without ID: every account. With it: also its models, and what its answers taught. It looks a missing profile \
                     up and keeps it. Health doesn't change, except that it ejects a suspended account and one whose refresh \
                     token is rejected.",
                ),
        )
        .subcommand(
            Command::new("profiles")
                .about("List the profiles of an organisation's user, and choose one")
                .arg(id())
                .arg(Arg::new("set").long("set").value_name("ARN").help("Write this one into the account's record"))
                .arg(json()),
        )
        .subcommand(
            Command::new("disable")
                .about("Take an account out of service until it is enabled")
                .arg(id())
                .arg(json()),
        )
        .subcommand(
            Command::new("enable")
                .about("Put an account back into service: enable it and lift its marks")
                .arg(id())
                .arg(json()),
        )
        .subcommand(
            Command::new("restore")
                .about("Bring back an account that another program wrote out of the pool, while its tokens are there")
                .arg(id())
                .arg(json()),
        )
        .subcommand(
            Command::new("remove")
                .about("Remove an account and its tokens from the store for good")
                .arg(id())
                .arg(json())
                .after_help(
                    "With Redis it looks again after 2 s: a Node.js service that has the account in memory may write it back. \
                     Then the exit code is 1.",
                ),
        )
}

fn client() -> Command {
    let value = |name: &'static str, shown: &'static str| Arg::new(name).long(name).value_name(shown);
    let flag = |name: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue);
    Command::new("client")
        .about("Print the settings of Claude Code and other programs for this server, and check address, key and models")
        .arg(Arg::new("name").value_name("CLIENT").help("Which program, such as claude-code [default: a list of them]"))
        .arg(value("url", "URL").help(
            "The server [default: what --host and --port say, on loopback when it listens everywhere]",
        ))
        .arg(value("key", "KEY").help("The client's key; it is printed [default: KIRO_API_KEY, which isn't]"))
        .arg(flag("show-key").help("Print the key of KIRO_API_KEY or the config file too"))
        .arg(flag("no-check").help("Ask the server nothing"))
        .arg(json())
        .after_help(
            "The settings alone go to standard output, what the checks say to standard error. No file is changed; nothing \
             costs credits.\n\
             Exit code: 0 all is fine, 1 a check failed or the program can't use this server, 2 usage or configuration.",
        )
}

fn keys() -> Command {
    let name = || Arg::new("name").value_name("NAME").required(true).help("The key's name");
    let limit = |id: &'static str, help: &'static str| {
        Arg::new(id).long(id).value_name("N").value_parser(clap::value_parser!(u32).range(1..=1_000_000)).help(help)
    };
    let file = Arg::new("file")
        .long("file")
        .value_name("PATH")
        .value_parser(clap::value_parser!(std::path::PathBuf))
        .global(true)
        .help("The keys' file [default: KIRO_API_KEYS_FILE, else the hash in Redis]");
    Command::new("keys")
        .about("Named client keys: add, list, disable, enable, remove")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .after_help(
            "A running server sees a change within 5 s. To rotate a key, add a second one, move its users over, remove the \
             first.\n\
             Exit code: 0 done, 1 it could not be done, 2 usage or configuration.",
        )
        .arg(file)
        .subcommand(
            Command::new("add")
                .about("Make a key and show it, once: only its hash is kept")
                .arg(name().help("1–64 characters: A–Z a–z 0–9 . _ @ -"))
                .arg(
                    Arg::new("expires")
                        .long("expires")
                        .value_name("TIME")
                        .help("Its end, such as 2027-01-31T00:00:00Z, or in how many days, such as 90d [default: none]"),
                )
                .arg(limit("max-inflight", "Requests that may run at once in one server [default: no limit]"))
                .arg(limit("rpm", "Requests a minute in one server [default: no limit]"))
                .arg(json()),
        )
        .subcommand(Command::new("list").about("Show the keys: name, state, end, limits").arg(json()))
        .subcommand(Command::new("disable").about("Refuse a key until it is enabled").arg(name()).arg(json()))
        .subcommand(Command::new("enable").about("Accept a disabled key again").arg(name()).arg(json()))
        .subcommand(Command::new("remove").about("Remove a key for good").arg(name()).arg(json()))
}

fn add() -> Command {
    Command::new("add")
                .about("Take sessions of other programs into the store: Kiro's IDE, kiro-cli, the Node.js service, lists, API keys")
                .arg(
                    Arg::new("from")
                        .long("from")
                        .value_name("PATH")
                        .value_parser(clap::value_parser!(std::path::PathBuf))
                        .help(
                            "A token file, kiro-cli's database, a pool file, a list of credentials or of API keys, or a folder \
                             [default: ~/.aws/sso/cache/kiro-auth-token.json, else kiro-cli's database]",
                        ),
                )
                .arg(
                    Arg::new("dry-run")
                        .long("dry-run")
                        .action(ArgAction::SetTrue)
                        .help("Show what would happen; write nothing"),
                )
                .arg(
                    Arg::new("base")
                        .long("base")
                        .value_name("DIR")
                        .value_parser(clap::value_parser!(std::path::PathBuf))
                        .help("Where a pool file's relative paths begin [default: the folder above its configs]"),
                )
                .arg(
                    Arg::new("only")
                        .long("only")
                        .value_name("N")
                        .value_parser(clap::value_parser!(usize))
                        .help("Only the source's Nth account"),
                )
                .arg(
                    Arg::new("key")
                        .long("key")
                        .value_name("NAME")
                        .help("Only the account of this name, id or database key in the source"),
                )
                .arg(Arg::new("name").long("name").value_name("NAME").help("A name for lists"))
                .arg(
                    Arg::new("offline")
                        .long("offline")
                        .action(ArgAction::SetTrue)
                        .help("Don't ask upstream for a missing profile, and don't look again whether the account stays"),
                )
                .arg(json())
                .after_help(
                    "What PATH is, its content says. Nothing of it changes. It adds no account whose refresh token or API key the \
                     store already has. With Redis it looks again after 2 s and 10 s: a Node.js service that has the pool in \
                     memory may write it back without the account. Exit code 1: none was added, or one failed. From then on Kiro and the store \
                     hold the same refresh token, and the first to renew it logs the other out: log Kiro in again \
                     afterwards, or keep it closed.",
                )
}

fn login() -> Command {
    let value = |name: &'static str, shown: &'static str| Arg::new(name).long(name).value_name(shown);
    let flag = |name: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue);
    Command::new("login")
        .about("Sign in with a browser: AWS Builder ID, Google, GitHub, IAM Identity Center, an organisation's own provider")
        .arg(
            Arg::new("method")
                .value_name("WHO")
                .value_parser(["builder-id", "google", "github", "idc", "external"])
                .help("Who signs in [default: a choice on a terminal]; external: Microsoft Entra ID, Okta and others"),
        )
        .arg(value("start-url", "URL").help("Where the organisation signs in, for idc"))
        .arg(value("region", "REGION").help("The region of the Identity Center [default: it is looked for]"))
        .arg(
            flag("browser")
                .conflicts_with("paste")
                .help("Open Kiro's page in this machine's browser; the way to sign in is chosen there"),
        )
        .arg(
            flag("paste")
                .help("Kiro's page is opened on another machine, and the address at which it ends is pasted here"),
        )
        .arg(value("name", "NAME").conflicts_with("replace").help("A name for lists"))
        .arg(value("replace", "ID").help("Sign in to this account anew: it keeps its id and name, its mark is lifted"))
        .arg(flag("force").requires("replace").help("With --replace: another user may take the account over"))
        .arg(
            value("timeout", "TIME")
                .value_parser(duration)
                .help("How long to wait for the person [default: as long as the code holds, 10m mostly]"),
        )
        .arg(flag("qr").help("Draw the address for a phone's camera"))
        .arg(flag("no-check").help("Don't ask Kiro for the account's profile and plan afterwards"))
        .arg(flag("json").help("One JSON object a line (docs/cli.md)"))
        .after_help(
            "Without --browser nothing is opened by itself, and this machine needs no browser: the address can be opened \
             anywhere. `external` needs a browser on this machine, or --paste. For a second account use a private window: \
             the page takes the account that the browser is signed in to. The account is in the store as soon as the person \
             is done.\n\
             Exit code: 0 signed in, 1 failed or refused, 2 usage or configuration, 130 stopped with Ctrl-C: nothing is kept.",
        )
}

fn duration(text: &str) -> Result<std::time::Duration, String> {
    kiro_messages::config::parse_duration(text).ok_or_else(|| "a duration such as 90s or 10m".to_owned())
}

/// The Go predecessor's flags, with a single dash, and ours.
const PREDECESSORS: [(&str, &str); 7] = [
    ("-host", "--host"),
    ("-port", "--port"),
    ("-redis-url", "--redis-url"),
    ("-redis-prefix", "--redis-key-prefix"),
    ("-api-key", "--api-key"),
    ("-log-level", "--log-level"),
    (PPROF, "--profile"),
];

/// Its one switch.
const PPROF: &str = "-pprof";

/// The arguments with the predecessor's flags in our spelling, and a hint for each of them.
pub fn in_our_spelling(args: impl Iterator<Item = OsString>) -> (Vec<OsString>, Vec<String>) {
    let mut hints = Vec::new();
    let ours = |arg: OsString| {
        let Some(text) = arg.to_str() else { return Some(arg) };
        let (name, value) = text.split_at(text.find('=').unwrap_or(text.len()));
        let Some((_, flag)) = PREDECESSORS.iter().find(|(old, _)| *old == name) else { return Some(arg) };
        hints.push(format!("{name} is the predecessor's spelling of {flag}"));
        // As Go's flag package reads a switch. Ours takes an address, or nothing.
        match value.strip_prefix('=').filter(|_| name == PPROF) {
            Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Some(flag.into()),
            Some("0" | "f" | "F" | "false" | "FALSE" | "False") => None,
            _ => Some(format!("{flag}{value}").into()),
        }
    };
    (args.filter_map(ours).collect(), hints)
}

fn id() -> Arg {
    Arg::new("id")
        .value_name("ID")
        .required(true)
        .help("The account's id, or its first characters: at least 4, and unique")
}

fn json() -> Arg {
    Arg::new("json").long("json").action(ArgAction::SetTrue).help("JSON for machines instead of a table (docs/cli.md)")
}

/// `-h`: the settings that most people need.
fn short_help() -> String {
    format!("{}\n--help has all settings.", settings(&[Group::First]))
}

fn long_help() -> String {
    let mut text = String::new();
    wrap(
        &mut text,
        0,
        0,
        "A flag beats the environment, which beats the config file. Durations: 500ms, 5s, 2m. Sizes: 64KiB, 32MiB. The \
         predecessor's GO_KIRO_* names are accepted too.",
    );
    text + "\n" + &settings(&Group::ALL)
}

fn settings(groups: &[Group]) -> String {
    let mut text = String::new();
    for group in groups {
        text += &format!("{}{}:\n", if text.is_empty() { "" } else { "\n" }, group.title());
        if *group == Group::Hatches {
            wrap(
                &mut text,
                2,
                2,
                "Each overrides a fact about Kiro, for the day on which it is no longer true (docs/kiro.md).",
            );
        }
        for setting in group.settings() {
            entry(&mut text, setting);
        }
    }
    text
}

fn entry(text: &mut String, setting: &Setting) {
    let mut head = setting.flag.map_or_else(String::new, |flag| format!("--{flag}, ")) + setting.env;
    if let Form::Word(words) = setting.form {
        head += &format!(": {}", words.join(" | "));
    }
    if !setting.default.is_empty() {
        head += &format!(" [default: {}]", setting.default);
    }
    wrap(text, 2, 8, &head);
    wrap(text, 6, 6, setting.meaning);
    if let Some(fact) = setting.overrides {
        wrap(text, 6, 6, &format!("Overrides: {fact}."));
    }
}

/// Appends a paragraph; lines after the first are indented by `rest`. Lines are short enough for any terminal, because
/// clap doesn't indent the lines that it breaks.
fn wrap(text: &mut String, first: usize, rest: usize, paragraph: &str) {
    let mut line = " ".repeat(first);
    for (at, word) in paragraph.split(' ').enumerate() {
        if at > 0 && line.chars().count() + 1 + word.chars().count() > WIDTH {
            text.push_str(&std::mem::replace(&mut line, " ".repeat(rest)));
            text.push('\n');
        } else if at > 0 {
            line.push(' ');
        }
        line.push_str(word);
    }
    text.push_str(&line);
    text.push('\n');
}
