//! `accounts login`: a person signs in with a browser, and the account is in the store (K93–K98, R87–R89, R106).

use std::future::Future;
use std::io::{BufRead as _, IsTerminal as _, Read as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use clap::ArgMatches;
use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use kiro_messages::accounts::import::{checked_name, of_vanished, vanished};
use kiro_messages::accounts::keep::{KeepError, Kept, Login, keep, takes_writes};
use kiro_messages::accounts::portal::{Browser, Led, Listener, Shown, WayBack, sign_in as sign_in_at_portal};
use kiro_messages::accounts::sign_in::{Begun, SignInClient, SignedIn};
use kiro_messages::config::Config;
use kiro_messages::proto::kiro::profile::AccountKind;
use kiro_messages::proto::kiro::sign_in::{DeviceCode, SignIn, SignInError};
use kiro_messages::proto::record::rfc3339;
use qrcode::QrCode;
use qrcode::render::unicode::Dense1x2;
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::super::desk::{Desk, find, refuse_fixed_store};
use super::super::log::say;
use super::super::output::{CommandFailure, number, plain, short, show};
use super::super::stops::{STOPPED, Stops};

/// Longest pasted line that is read at once: addresses of a portal are some thousand characters.
const LONGEST_LINE: u64 = 64 * 1024;
/// How often it says that it still waits where there is no terminal.
const SAY_EVERY: Duration = Duration::from_secs(60);
/// How long the portal is waited for (K97).
const PORTAL_WITHIN: Duration = Duration::from_secs(600);
/// A picture wider than that doesn't fit most terminals.
const WIDEST: usize = 78;

/// How a person signs in.
enum Method {
    /// With a code, on any machine.
    Device(SignIn),
    /// At Kiro's portal.
    Portal(PortalWay),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum PortalWay {
    /// In this machine's browser, which we open.
    Opened,
    /// The same; the person opens it.
    Shown,
    /// On another machine.
    Pasted,
}

/// Who reads what is said of a sign-in.
enum Audience {
    People {
        qr: bool,
    },
    /// One JSON object a line.
    Programs,
}

pub async fn run(config: Config, options: &ArgMatches) -> Result<ExitCode, CommandFailure> {
    let mut method = method(options)?;
    let text = |name: &str| options.get_one::<String>(name).map(String::as_str);
    let name = text("name").map(checked_name).transpose();
    let name = name.map_err(|error| CommandFailure::usage(format!("--name: {error}")))?;
    let within = options.get_one::<Duration>("timeout").copied();
    refuse_fixed_store(&config, "signed in")?;
    let audience =
        if options.get_flag("json") { Audience::Programs } else { Audience::People { qr: options.get_flag("qr") } };
    // Before anybody signs in: a store that can't be used would lose the login.
    let opened = async {
        let desk = Desk::open(config).await?;
        takes_writes(&desk.store, Timestamp::now()).await?;
        Ok::<_, CommandFailure>(desk)
    };
    let desk = match opened.await {
        Ok(desk) => desk,
        Err(error) if matches!(audience, Audience::Programs) => {
            return audience.failed(&SignInError::new("store", error.to_string()));
        }
        Err(error) => return Err(error),
    };
    let replace = match text("replace") {
        Some(id) => Some(find(&desk.accounts().await?, id)?.raw.id.clone()),
        None => None,
    };
    let mut warnings = Vec::new();
    if replace.is_none() {
        warnings.extend(mind_second_social(&desk, &mut method, &audience).await?);
    }
    let mut stops = Stops::catch().map_err(|error| CommandFailure::new(format!("signals: {error}")))?;
    let done = stops.unless(sign_in(&desk, method, &audience, within)).await;
    let ended = match done {
        None => Ok(ExitCode::from(STOPPED)),
        Some(Err(error)) => audience.failed(&error),
        Some(Ok(SignedIn { record })) => {
            let (force, no_check) = (options.get_flag("force"), options.get_flag("no-check"));
            let login = Login { record, name, replace: replace.as_deref(), force, no_check, warnings };
            match keep(desk.intake(), login, Timestamp::now()).await {
                Ok(kept) => audience.done(&desk, kept, &mut stops).await,
                Err(KeepError::Store(error)) => audience.failed(&SignInError::new("store", error.to_string())),
                Err(KeepError::Refused(error)) => audience.failed(&SignInError::new("refused", error)),
            }
        }
    };
    // Also where nobody reads what is said: what was learned is written.
    desk.close().await?;
    ended
}

/// How to sign in: by the command line, else by choice.
fn method(options: &ArgMatches) -> Result<Method, CommandFailure> {
    let usage = CommandFailure::usage;
    let way = match (options.get_flag("browser"), options.get_flag("paste")) {
        (true, _) => Some(PortalWay::Opened),
        (_, true) => Some(PortalWay::Pasted),
        _ => None,
    };
    let region = options.get_one::<String>("region").cloned();
    let start_url = options.get_one::<String>("start-url").cloned();
    if let Some(way) = way {
        return match start_url.or(region) {
            None => Ok(Method::Portal(way)),
            Some(_) => {
                Err(usage("--start-url and --region are asked for by Kiro's page: leave them out here".to_owned()))
            }
        };
    }
    let word = match options.get_one::<String>("method") {
        Some(word) => word.clone(),
        None if start_url.is_some() => "idc".to_owned(),
        None => choice()?,
    };
    if word == "external" && start_url.is_none() && region.is_none() {
        return Ok(Method::Portal(PortalWay::Shown));
    }
    SignIn::named(&word, start_url, region)
        .map(Method::Device)
        .map_err(|(field, problem)| usage(format!("--{field}: {problem}")))
}

fn choice() -> Result<String, CommandFailure> {
    const METHODS: [(&str, &str); 5] = [
        ("builder-id", "AWS Builder ID"),
        ("google", "Google"),
        ("github", "GitHub"),
        ("idc", "IAM Identity Center of an organisation (with --start-url)"),
        ("external", "an organisation's own provider: Microsoft Entra ID, Okta and others"),
    ];
    if !std::io::stdin().is_terminal() {
        return Err(CommandFailure::usage(
            "name who signs in: builder-id, google, github, idc with --start-url, or external",
        ));
    }
    let mut text = String::from("Who signs in?\n");
    for (number, (_, title)) in METHODS.iter().enumerate() {
        text.push_str(&format!("  {}  {title}\n", number + 1));
    }
    let answer = ask(&format!("{text}1 to {}: ", METHODS.len()))?;
    let chosen = answer.parse::<usize>().ok().and_then(|number| number.checked_sub(1));
    let method = chosen.and_then(|index| METHODS.get(index)).map(|(word, _)| (*word).to_owned());
    method.ok_or_else(|| CommandFailure::usage("nothing was chosen"))
}

/// A line of the terminal.
fn ask(question: &str) -> Result<String, CommandFailure> {
    let failed = |error: std::io::Error| CommandFailure::new(format!("the terminal: {error}"));
    let mut out = std::io::stdout().lock();
    out.write_all(question.as_bytes()).and_then(|()| out.flush()).map_err(failed)?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).map_err(failed)?;
    Ok(answer.trim().to_owned())
}

/// A device code for a second Google or GitHub user may sign the first one out [report]: the portal is offered, or a
/// warning given.
async fn mind_second_social(
    desk: &Desk,
    method: &mut Method,
    audience: &Audience,
) -> Result<Option<String>, CommandFailure> {
    let is_social = matches!(method, Method::Device(SignIn::Google | SignIn::Github));
    if !is_social || !desk.accounts().await?.iter().any(|entry| entry.info.kind == AccountKind::Social) {
        return Ok(None);
    }
    let warning = "a Google or GitHub account is there already: a second one by device code may sign the first one out. \
                   --browser goes another way";
    if let Audience::Programs = audience {
        return Ok(Some(warning.to_owned()));
    }
    if !std::io::stdin().is_terminal() {
        // While it can still be heeded.
        show(&format!("warning: {warning}\n\n"))?;
        return Ok(None);
    }
    let question = "A Google or GitHub account is there already, and a second one by device code may sign it out.\n\
                    Sign in with this machine's browser instead? [Y/n] ";
    if !matches!(ask(question)?.to_ascii_lowercase().as_str(), "n" | "no") {
        *method = Method::Portal(PortalWay::Opened);
    }
    Ok(None)
}

async fn sign_in(
    desk: &Desk,
    method: Method,
    audience: &Audience,
    within: Option<Duration>,
) -> Result<SignedIn, SignInError> {
    let client = SignInClient::new(&desk.upstream, &desk.config)?;
    let way = match method {
        Method::Device(who) => return with_code(client.begin(who).await?, audience, within).await,
        Method::Portal(way) => way,
    };
    let lifetime = within.map_or(PORTAL_WITHIN, |within| within.min(PORTAL_WITHIN));
    let unseen = Notify::new();
    let mut show = |shown: Shown<'_>| {
        // Nobody opens a page that nobody sees.
        if audience.shown(&shown, way, lifetime).is_err() && way != PortalWay::Opened {
            unseen.notify_one();
        }
    };
    let back = match way {
        PortalWay::Pasted => WayBack::Pasted(lines()),
        PortalWay::Opened | PortalWay::Shown => WayBack::Listening(Listener::bind().await?, None),
    };
    let browser = Browser { show: &mut show, way: back, until: Instant::now() + lifetime };
    let led = sign_in_at_portal(client, &desk.config, browser);
    let led = tokio::select! {
        led = audience.waits(lifetime, way != PortalWay::Pasted, led) => led?,
        () = unseen.notified() => return Err(SignInError::new("output", "standard output takes no page's address")),
    };
    match led {
        Led::Done(signed_in) => Ok(signed_in),
        Led::Device(begun) => with_code(begun, audience, within).await,
    }
}

async fn with_code(begun: Begun, audience: &Audience, within: Option<Duration>) -> Result<SignedIn, SignInError> {
    let lifetime = within.map_or(begun.code.lifetime, |within| within.min(begun.code.lifetime));
    audience.code(begun.title(), &begun.code, lifetime)?;
    audience.waits(lifetime, true, begun.finish(lifetime)).await
}

/// Lines that are pasted. Their thread ends with the process: nothing can end a read of the terminal.
fn lines() -> mpsc::Receiver<String> {
    let (send, lines) = mpsc::channel(1);
    std::thread::spawn(move || {
        let mut input = std::io::stdin().lock();
        loop {
            let mut line = Vec::new();
            match input.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            let line = String::from_utf8_lossy(&line).into_owned();
            if !line.trim().is_empty() && send.blocking_send(line).is_err() {
                return;
            }
        }
    });
    lines
}

impl Audience {
    /// The address and the code, each on a line of its own.
    fn code(&self, title: &str, code: &DeviceCode, lifetime: Duration) -> Result<(), SignInError> {
        let shown = match self {
            Self::Programs => line(&json!({
                "event": "code", "verification_uri": code.uri, "verification_uri_complete": code.uri_complete,
                "user_code": code.user_code, "expires_at": end_of(lifetime),
            })),
            Self::People { qr } => {
                let picture = if *qr { picture(&code.uri_complete) } else { String::new() };
                show(&format!(
                    "Sign in to {title}\n\n  Open   {}\n  Code   {}\n\n{picture}",
                    code.uri_complete, code.user_code
                ))
            }
        };
        // Nobody can sign in with a code that nobody sees.
        shown.map_err(|error| SignInError::new("output", error.to_string()))
    }

    /// A page of the portal, or what is wrong with a pasted address.
    fn shown(&self, shown: &Shown<'_>, way: PortalWay, lifetime: Duration) -> Result<(), CommandFailure> {
        let page = match shown {
            Shown::NotThat(problem) => {
                say(&format!("{problem}; paste it again\n")).unwrap_or_default();
                return Ok(());
            }
            Shown::Page(page) => *page,
        };
        if way == PortalWay::Opened {
            open(page.to_owned());
        }
        match (self, way) {
            (Self::Programs, _) => line(&json!({ "event": "page", "url": page, "expires_at": end_of(lifetime) })),
            (Self::People { .. }, PortalWay::Pasted) => show(&format!(
                "Open this on any machine and sign in:\n\n  {page}\n\nThe browser ends at an address that can't be reached, \
                 http://localhost:3128/…\nPaste that whole address here: "
            )),
            (Self::People { .. }, PortalWay::Opened | PortalWay::Shown) => show(&format!(
                "Sign in with this machine's browser (on another machine: --paste)\n\n  Open   {page}\n\n"
            )),
        }
    }

    /// Waits for work that ends by itself after `lifetime`, and says how long that still is.
    async fn waits<T>(
        &self,
        lifetime: Duration,
        spins: bool,
        work: impl Future<Output = Result<T, SignInError>>,
    ) -> Result<T, SignInError> {
        let end = Instant::now() + lifetime;
        let mut work = std::pin::pin!(work);
        let is_for_people = matches!(self, Self::People { .. });
        let spinner = (is_for_people && spins && std::io::stderr().is_terminal()).then(ProgressBar::new_spinner);
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
                done = &mut work => {
                    if let Some(spinner) = &spinner {
                        spinner.finish_and_clear();
                    }
                    return done;
                }
                () = tokio::time::sleep(every) => {
                    if spinner.is_none() && is_for_people {
                        say(&format!("waiting, {left} left\n")).unwrap_or_default();
                    }
                }
            }
        }
    }

    /// The account is in the store: says so at once, and looks again whether it stays there (R106).
    async fn done(&self, desk: &Desk, kept: Kept, stops: &mut Stops) -> Result<ExitCode, CommandFailure> {
        let Kept { info, usage, replaced, mut warnings } = kept;
        let id = info.id.to_string();
        let is_new = !replaced;
        if let Self::People { .. } = self {
            let plan = usage.as_ref().map(|usage| {
                let plan = usage.plan.as_deref().map_or_else(String::new, |plan| format!(", {}", plain(plan, 40)));
                let limit = usage.limit.map_or_else(String::new, |limit| format!(" of {}", number(limit)));
                format!("{plan}, {}{limit} credits", number(usage.used))
            });
            let done = if replaced { "signed in anew" } else { "signed in" };
            show(&format!("✓ {done}: account {} ({}){}\n", short(&id), info.kind.as_str(), plan.unwrap_or_default()))?;
        }
        let said = warnings.len();
        if let Self::People { .. } = self {
            for warning in &warnings {
                show(&format!("warning: {warning}\n"))?;
            }
        }
        let looked = match is_new {
            true => {
                stops.unless(vanished(desk.intake(), std::slice::from_ref(&id))).await.unwrap_or_else(|| Ok(Vec::new()))
            }
            false => Ok(Vec::new()),
        };
        let gone = looked.unwrap_or_else(|error| {
            warnings.push(format!("whether it stays there could not be seen: {error}"));
            Vec::new()
        });
        warnings.extend(gone.iter().map(|id| of_vanished(id)));
        match self {
            Self::Programs => line(&json!({
                "event": "done", "id": id, "method": info.method.as_str(), "kind": info.kind.as_str(),
                "profile": info.profile, "plan": usage.and_then(|usage| usage.plan), "warnings": warnings,
            }))?,
            Self::People { .. } => {
                for warning in &warnings[said..] {
                    show(&format!("warning: {warning}\n"))?;
                }
            }
        }
        Ok(if gone.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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

fn end_of(lifetime: Duration) -> String {
    rfc3339(Timestamp::now().checked_add(lifetime).unwrap_or(Timestamp::MAX))
}

fn line(value: &Value) -> Result<(), CommandFailure> {
    show(&format!("{value}\n"))
}

/// Opens this machine's browser. Some wait until it ends, so on a thread of its own.
fn open(page: String) {
    std::thread::spawn(move || {
        if webbrowser::open(&page).is_err() {
            say("no browser could be opened: open the address yourself\n").unwrap_or_default();
        }
    });
}

/// The address as a picture that a phone reads; nothing when it is too wide.
fn picture(address: &str) -> String {
    let Ok(code) = QrCode::new(address) else { return String::new() };
    let picture = code.render::<Dense1x2>().dark_color(Dense1x2::Light).light_color(Dense1x2::Dark).build();
    let fits = picture.lines().all(|line| line.chars().count() <= WIDEST);
    if fits { format!("{picture}\n\n") } else { String::new() }
}
