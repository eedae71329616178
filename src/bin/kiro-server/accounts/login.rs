//! `accounts login`: a person signs in with a browser anywhere, and the account is in the store (K93–K96, R88, R89).

use std::future::Future;
use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use clap::ArgMatches;
use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use kiro_messages::config::Config;
use kiro_messages::credentials::LookUp;
use kiro_messages::credentials::sign_in::{Begun, SignInClient};
use kiro_messages::pool::Wanted;
use kiro_messages::proto::kiro::sign_in::{DeviceCode, SignIn, SignInError};
use kiro_messages::proto::record::{is_region, rfc3339};
use kiro_messages::store::{Added, NewAccount};
use qrcode::QrCode;
use qrcode::render::unicode::Dense1x2;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::super::desk::{Desk, refuse_token_file};
use super::super::output::{CommandFailure, number, plain, short, show};
use super::super::usage::Usage;
use super::add::checked_name;

/// What Ctrl-C ends a command with.
const STOPPED: u8 = 130;
/// Without a terminal, how often it says that it still waits.
const SAY_EVERY: Duration = Duration::from_secs(60);
/// How long the calls behind a sign-in may take (R89).
const AFTER: Duration = Duration::from_secs(30);
/// A picture wider than that doesn't fit most terminals.
const WIDEST: usize = 78;

/// What is told of a sign-in, as it goes.
enum Told {
    People {
        qr: bool,
    },
    /// One JSON object a line.
    Programs,
}

pub async fn run(config: Config, options: &ArgMatches) -> Result<ExitCode, CommandFailure> {
    let json = options.get_flag("json");
    let who = who(options)?;
    let name = options.get_one::<String>("name").map(|name| checked_name(name)).transpose()?;
    let within = options.get_one::<Duration>("timeout").copied();
    refuse_token_file(&config, "signed in")?;
    let told = if json { Told::Programs } else { Told::People { qr: options.get_flag("qr") } };
    // Before anybody signs in: a store that can't be used would lose the login.
    let desk = Desk::open(config).await?;
    let done = unless_stopped(sign_in(&desk, who, &told, within)).await;
    let exit_code = match done {
        None => ExitCode::from(STOPPED),
        Some(Err(error)) => told.failed(&error)?,
        Some(Ok(token)) => keep(&desk, token, name, options.get_flag("no-check"), &told).await?,
    };
    desk.close().await?;
    Ok(exit_code)
}

/// Who signs in: by the command line, else by choice.
fn who(options: &ArgMatches) -> Result<SignIn, CommandFailure> {
    let usage = CommandFailure::usage;
    let region = options.get_one::<String>("region").cloned();
    if let Some(region) = region.as_ref().filter(|region| !is_region(region)) {
        return Err(usage(format!("--region: '{}' is no region's name, such as eu-west-1", plain(region, 40))));
    }
    let start_url = options.get_one::<String>("start-url").cloned();
    if start_url.as_ref().is_some_and(|url| !url.starts_with("https://") || url.len() > 2_048) {
        return Err(usage(
            "--start-url: an https:// address, such as https://d-1234567890.awsapps.com/start".to_owned(),
        ));
    }
    let word = match options.get_one::<String>("method") {
        Some(word) => word.clone(),
        None if start_url.is_some() => "idc".to_owned(),
        None => choice()?,
    };
    match (word.as_str(), start_url) {
        ("builder-id", None) => Ok(SignIn::BuilderId),
        ("google", None) => Ok(SignIn::Google),
        ("github", None) => Ok(SignIn::Github),
        ("idc", Some(start_url)) => Ok(SignIn::IdentityCenter { start_url, region }),
        ("idc", None) => {
            Err(usage("idc needs --start-url, the address at which your organisation signs in".to_owned()))
        }
        (other, _) => Err(usage(format!("--start-url belongs to idc, not to {other}"))),
    }
}

fn choice() -> Result<String, CommandFailure> {
    const METHODS: [(&str, &str); 4] = [
        ("builder-id", "AWS Builder ID"),
        ("google", "Google"),
        ("github", "GitHub"),
        ("idc", "IAM Identity Center of an organisation (with --start-url)"),
    ];
    if !std::io::stdin().is_terminal() {
        return Err(CommandFailure::usage("name who signs in: builder-id, google, github, or idc with --start-url"));
    }
    let mut text = String::from("Who signs in?\n");
    for (number, (_, title)) in METHODS.iter().enumerate() {
        text.push_str(&format!("  {}  {title}\n", number + 1));
    }
    show(&text)?;
    let mut out = std::io::stdout().lock();
    let _nobody_listens = out.write_all(b"1 to 4: ").and_then(|()| out.flush());
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    let chosen = read.ok().and_then(|_| answer.trim().parse::<usize>().ok()).and_then(|number| number.checked_sub(1));
    let method = chosen.and_then(|index| METHODS.get(index)).map(|(word, _)| (*word).to_owned());
    method.ok_or_else(|| CommandFailure::usage("nothing was chosen"))
}

/// None: Ctrl-C. The code is left to expire, and nothing was kept.
async fn unless_stopped<T>(work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        done = work => Some(done),
        _ = tokio::signal::ctrl_c() => None,
    }
}

/// The token record of the person who has signed in.
async fn sign_in(
    desk: &Desk,
    who: SignIn,
    told: &Told,
    within: Option<Duration>,
) -> Result<(Vec<u8>, Vec<String>), SignInError> {
    let title = who.title();
    let begun = SignInClient::new(&desk.upstream, &desk.config)?.begin(who).await?;
    let lifetime = within.map_or(begun.code.lifetime, |within| within.min(begun.code.lifetime));
    told.code(title, &begun.code, lifetime);
    let done = told.waits(lifetime, begun).await?;
    let warnings =
        done.without_refresh_token.then(|| "no refresh token came: the account ends with its access token".into());
    Ok((done.record, warnings.into_iter().collect()))
}

/// The account is in the store before anything else is asked: a token is never lost (R89).
async fn keep(
    desk: &Desk,
    (token, mut warnings): (Vec<u8>, Vec<String>),
    name: Option<String>,
    no_check: bool,
    told: &Told,
) -> Result<ExitCode, CommandFailure> {
    let id = uuid::Uuid::new_v4().to_string();
    let new = NewAccount { id: id.clone(), custom_name: name, added_at: Timestamp::now(), token, members: Vec::new() };
    let id = match desk.store.add_account(&new).await? {
        Added::Duplicate { id } => {
            warnings.push("it was there already: nothing was added".to_owned());
            id
        }
        _ => id,
    };
    let mut usage = None;
    if !no_check {
        usage = tokio::time::timeout(AFTER, look(desk, &id, &mut warnings)).await.unwrap_or_default();
    }
    desk.pool.reload().await?;
    let accounts = desk.pool.accounts();
    let Some(info) = accounts.iter().find(|info| *info.id == *id) else {
        return Err(CommandFailure::new("the account was removed meanwhile"));
    };
    match told {
        Told::Programs => line(&json!({
            "event": "done", "id": id, "method": info.method.as_str(), "kind": info.kind.as_str(), "profile": info.profile,
            "plan": usage.as_ref().and_then(|usage| usage.plan.clone()), "warnings": warnings,
        }))?,
        Told::People { .. } => {
            let plan = usage.map(|usage| {
                let plan = usage.plan.as_deref().map_or_else(String::new, |plan| format!(", {}", plain(plan, 40)));
                let limit = usage.limit.map_or_else(String::new, |limit| format!(" of {}", number(limit)));
                format!("{plan}, {}{limit} credits", number(usage.used))
            });
            let plan = plan.unwrap_or_default();
            show(&format!("✓ signed in: account {} ({}){plan}\n", short(&id), info.kind.as_str()))?;
            for warning in &warnings {
                show(&format!("warning: {warning}\n"))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Profile and plan of the new account; what isn't found is a warning.
async fn look(desk: &Desk, id: &str, warnings: &mut Vec<String>) -> Option<Usage> {
    desk.pool.reload().await.ok()?;
    let mut lease = desk.pool.select(&Wanted { only: Some(id), ..Wanted::default() }).ok()?;
    if lease.account().wants_profiles() {
        match desk.credentials.look_up_profiles(&mut lease).await {
            LookUp::Nothing => {
                let cure = "the organisation's administrator must add this user to one";
                warnings.push(format!("no profile was found: {cure}"));
            }
            LookUp::Unanswered => {
                warnings.push("its profile could not be looked up; `kiro-server accounts check` does it".to_owned());
            }
            LookUp::Found | LookUp::BuilderId | LookUp::NotAsked => {}
        }
    }
    match desk.credentials.usage_limits(&lease).await {
        Ok(answer) => Usage::parse(&answer),
        Err(fault) => {
            warnings.push(format!("its usage could not be asked for: {}", fault.kind.as_str()));
            None
        }
    }
}

impl Told {
    /// The address and the code, each on a line of its own.
    fn code(&self, title: &str, code: &DeviceCode, lifetime: Duration) {
        let shown = match self {
            Self::Programs => line(&json!({
                "event": "code", "verification_uri": code.uri, "verification_uri_complete": code.uri_complete,
                "user_code": code.user_code,
                "expires_at": rfc3339(Timestamp::now().checked_add(lifetime).unwrap_or(Timestamp::MAX)),
            })),
            Self::People { qr } => {
                let picture = if *qr { picture(&code.uri_complete) } else { String::new() };
                show(&format!(
                    "Sign in to {title}\n\n  Open   {}\n  Code   {}\n\n{picture}",
                    code.uri_complete, code.user_code
                ))
            }
        };
        // Who can't be shown the code can't sign in: the wait ends by its time.
        drop(shown);
    }

    async fn waits(
        &self,
        lifetime: Duration,
        begun: Begun,
    ) -> Result<kiro_messages::credentials::sign_in::SignedIn, SignInError> {
        let end = Instant::now() + lifetime;
        let finish = tokio::time::timeout_at(end, begun.finish(Timestamp::now));
        let mut finish = std::pin::pin!(finish);
        let spinner = match self {
            Self::People { .. } if std::io::stderr().is_terminal() => Some(ProgressBar::new_spinner()),
            _ => None,
        };
        if let Some(spinner) = &spinner {
            let style = ProgressStyle::with_template("{spinner} waiting, {msg} left – Ctrl-C stops it");
            spinner.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            spinner.enable_steady_tick(Duration::from_millis(120));
        }
        let every = if spinner.is_some() { Duration::from_secs(1) } else { SAY_EVERY };
        loop {
            let left = end.saturating_duration_since(Instant::now()).as_secs();
            let left = format!("{}:{:02}", left / 60, left % 60);
            if let Some(spinner) = &spinner {
                spinner.set_message(left.clone());
            }
            tokio::select! {
                done = &mut finish => {
                    if let Some(spinner) = &spinner {
                        spinner.finish_and_clear();
                    }
                    let late = || SignInError::new("expired_token", "nobody signed in within the time; run the command again");
                    return done.unwrap_or_else(|_| Err(late()));
                }
                () = tokio::time::sleep(every) => {
                    if spinner.is_none() && matches!(self, Self::People { .. }) {
                        super::super::log::say(&format!("waiting, {left} left\n")).unwrap_or_default();
                    }
                }
            }
        }
    }

    fn failed(&self, error: &SignInError) -> Result<ExitCode, CommandFailure> {
        match self {
            Self::Programs => {
                line(&json!({ "event": "failed", "error": error.word, "message": error.message }))?;
                Ok(ExitCode::FAILURE)
            }
            Self::People { .. } => Err(CommandFailure::new(error.message.clone())),
        }
    }
}

fn line(value: &Value) -> Result<(), CommandFailure> {
    show(&format!("{value}\n"))
}

/// The address as a picture that a phone reads; nothing when it is too wide.
fn picture(address: &str) -> String {
    let Ok(code) = QrCode::new(address) else { return String::new() };
    let picture = code.render::<Dense1x2>().dark_color(Dense1x2::Light).light_color(Dense1x2::Dark).build();
    let fits = picture.lines().all(|line| line.chars().count() <= WIDEST);
    if fits { format!("{picture}\n\n") } else { String::new() }
}
