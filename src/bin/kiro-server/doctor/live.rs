//! `doctor --live` (K138–K141): checks this program's assumptions about Kiro against the real one, with one account.
//!
//! It sends requests of its own, one at a time, and stops at the first fault of the account, as opposed to the request.
//! Health, counters and records stay as they are; only a renewed token is saved, or the login would be lost. Neither
//! output nor report holds a token, an ARN, an account's id, a prompt or an answer.

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::ArgMatches;
use http::Uri;
use jiff::Timestamp;
use kiro_messages::config::{Config, UpstreamKind};
use kiro_messages::policy::learned::Variant;
use kiro_messages::pool::Wanted;
use kiro_messages::proto::address::is_loopback;
use kiro_messages::proto::kiro::catalogue::{Catalogue, Listed};
use kiro_messages::proto::kiro::client_identity::VERSION_FLOOR;
use kiro_messages::proto::kiro::fault::{Fault, FaultKind};
use kiro_messages::proto::kiro::route::{Operation, Shape};
use kiro_messages::proto::kiro::search;
use kiro_messages::proto::record::Method;
use kiro_messages::proto::translate::model::{Model, Models};
use serde_json::{Value, json};

use super::super::desk::{Desk, DeskAccount, find};
use super::super::output::{CommandFailure, plain, short, show, show_json};
use super::super::survey::is_declared_as_ours;
use super::faults::{is_of_the_host, is_of_the_profile, masked, said};
use super::probe::{Ask, Chat, MOST_REQUESTS, ProbeAccount, ProbeResult, Stopped, picture};

/// The contract behind the column *expected*.
const CONTRACT: &str = "2026-11";
/// The pause between two requests.
const PAUSE: Duration = Duration::from_secs(1);
/// A token that ends sooner is renewed first: the checks take a minute or two.
const MARGIN_SECONDS: i64 = 300;
/// Models of the older style, the cheapest first; every plan has one of them.
const PLAIN_MODELS: [&str; 3] = ["claude-haiku-4.5", "claude-sonnet-4.5", "claude-sonnet-4"];
/// A model that may be asked to think both ways.
const BOTH_MODEL: &str = "claude-sonnet-4.6";
/// A version below [`VERSION_FLOOR`].
const OLD_VERSION: &str = "0.11.132";
/// Models that think by `additionalModelRequestFields`, the cheaper ones first.
const FIELDS_MODELS: [&str; 5] =
    ["claude-sonnet-5.5", "claude-sonnet-5", "claude-opus-5.5", "claude-opus-5", "claude-opus-4.8"];
/// Bytes of a body that passed, and of one that didn't [report].
const LARGEST_BODY: usize = 1_085_435;
const TOO_LARGE_BODY: usize = 1_086_459;
/// Characters of base64 of a picture that clients send: Anthropic's own limit is 5 MB.
const LARGEST_PICTURE: usize = 1_000_000;

/// Each check with what it is about, in the order in which they run.
pub const CHECKS: [(&str, &str); 19] = [
    ("version", "the client version, per call and host"),
    ("gate", "whether an older client is refused"),
    ("shapes", "both wire shapes"),
    ("runtime-members", "members of a body of shape runtime"),
    ("profile", "the profile's variants"),
    ("usage", "usage with and without the profile's ARN"),
    ("catalogue", "models, windows and schemas against the table"),
    ("reasoning", "thoughts and signatures, by each style of thinking"),
    ("effort", "effort and display in additionalModelRequestFields"),
    ("max-tokens", "max_tokens in additionalModelRequestFields"),
    ("tool-schemas", "all keywords in a tool's schema"),
    ("result-image", "an image beside a tool result"),
    ("document", "a document"),
    ("cache-point", "a cache point"),
    ("credits", "credits of equal turns"),
    ("replay", "replay of a signed thought"),
    ("search", "web search"),
    ("end-order", "the events at the end of an answer"),
    ("percentage", "the percentage against counts"),
];
/// Only where it is named: it sends large requests.
const LIMITS: (&str, &str) = ("limits", "the largest body and the largest picture");

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LiveVerdict {
    /// As expected.
    Same,
    /// Different, and the gateway copes by itself.
    Differs,
    /// An assumption is wrong.
    Wrong,
    /// Nothing was learnt.
    NotRun,
}

impl LiveVerdict {
    fn mark(self) -> &'static str {
        match self {
            Self::Same => "✓",
            Self::Differs => "≠",
            Self::Wrong => "✗",
            Self::NotRun => "·",
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Same => "ok",
            Self::Differs => "differs",
            Self::Wrong => "wrong",
            Self::NotRun => "not run",
        }
    }
}

#[derive(Debug)]
struct LiveLine {
    check: &'static str,
    verdict: LiveVerdict,
    expected: &'static str,
    seen: String,
    means: String,
}

/// What a check found: a verdict, what was seen, and what it means.
type Finding = (LiveVerdict, String, String);

pub async fn run(config: Config, options: &ArgMatches) -> Result<ExitCode, CommandFailure> {
    let wanted = wanted(options)?;
    let desk = Desk::open(config).await?;
    desk.pool.only_look();
    let done = examine(&desk, &wanted, options).await;
    desk.close().await?;
    done
}

/// The names of `--only`, or every check but the limits.
fn wanted(options: &ArgMatches) -> Result<Vec<&'static str>, CommandFailure> {
    let all = CHECKS.iter().chain([&LIMITS]).map(|(name, _)| *name);
    let Some(only) = options.get_one::<String>("only") else {
        return Ok(CHECKS.iter().map(|(name, _)| *name).collect());
    };
    let mut names = Vec::new();
    for name in only.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        let known = all.clone().find(|known| *known == name);
        names.push(known.ok_or_else(|| {
            let all: Vec<&str> = all.clone().collect();
            CommandFailure::usage(format!(
                "--only: no check is named '{}'; there are {}",
                plain(name, 40),
                all.join(", ")
            ))
        })?);
    }
    Ok(all.filter(|name| names.contains(name)).collect())
}

async fn examine(desk: &Desk, wanted: &[&'static str], options: &ArgMatches) -> Result<ExitCode, CommandFailure> {
    let accounts = desk.accounts().await?;
    let entry = match options.get_one::<String>("account") {
        Some(id) => find(&accounts, id)?,
        None => accounts
            .iter()
            .find(|entry| entry.info.state.is_served())
            .or_else(|| accounts.iter().find(|entry| entry.info.problem.is_none()))
            .or_else(|| accounts.first())
            .ok_or_else(|| CommandFailure::new(format!("there is no account; {}", desk.config.store.cure())))?,
    };
    let second = match options.get_one::<String>("second") {
        Some(id) => Some(find(&accounts, id)?),
        None => None,
    };
    if second.is_some_and(|second| second.info.id == entry.info.id) {
        return Err(CommandFailure::usage("--second: that is the first account; name another one"));
    }
    ask_first(desk, entry, second, wanted, options.get_flag("yes"))?;
    let probe = prepare(desk, entry).await?;
    let second = match second {
        Some(entry) => Some(prepare(desk, entry).await?),
        None => None,
    };
    let mut live = LiveRun::new(probe, second);
    let mut lines = Vec::new();
    for name in wanted {
        lines.push(live.check(name).await);
    }
    let told = LiveReport { desk, live: &live, lines: &lines };
    if let Some(file) = options.get_one::<String>("report") {
        write_report(Path::new(file), &told.json())?;
    }
    match options.get_flag("json") {
        true => show_json(&told.json())?,
        false => show(&told.text())?,
    }
    Ok(if told.is_fine() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// K138: says what it will do, and asks.
fn ask_first(
    desk: &Desk,
    entry: &DeskAccount,
    second: Option<&DeskAccount>,
    wanted: &[&str],
    yes: bool,
) -> Result<(), CommandFailure> {
    let whom = match desk.config.upstream {
        UpstreamKind::Simulator => "the simulator",
        UpstreamKind::Kiro => "Kiro",
    };
    let also = second.map(|second| format!(" (a few as account {})", short(&second.info.id))).unwrap_or_default();
    // K139: of the largest body and picture.
    let size = if wanted.contains(&LIMITS.0) {
        "requests, up to 8 of them as large as they can be,"
    } else {
        "small requests"
    };
    let what = format!(
        "This sends at most {MOST_REQUESTS} {size} to {whom} as account {}{also}, one after the other, for: {}.\n\
         They cost credits as any question of that size does. The pool's marks and counters stay as they are.\n",
        short(&entry.info.id),
        wanted.join(", ")
    );
    let mut out = std::io::stderr().lock();
    let _nobody_listens = out.write_all(what.as_bytes());
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        return Err(CommandFailure::usage("nothing was sent: nobody is there to ask; --yes goes without asking"));
    }
    let _nobody_listens = out.write_all(b"Go on? [y/N] ").and_then(|()| out.flush());
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" if read.is_ok() => Ok(()),
        _ => Err(CommandFailure::new("nothing was sent")),
    }
}

async fn prepare(desk: &Desk, entry: &DeskAccount) -> Result<ProbeAccount, CommandFailure> {
    let id = &*entry.info.id;
    let token = desk.credentials.credential(id).unwrap_or_default();
    let refreshable = entry.info.method != Method::ApiKey && token.refresh_token.is_some();
    let soon = Timestamp::now().as_second() + MARGIN_SECONDS;
    let live = token.access_token.is_some() && token.expires_at.is_none_or(|end| end.as_second() > soon);
    if refreshable && !live {
        let refreshed = desk.credentials.refresh(id).await;
        refreshed
            .map_err(|_| CommandFailure::new("its token can't be renewed; `kiro-server accounts check` says why"))?;
    }
    // A place on this account, whatever its state; it records nothing.
    let lease = desk.pool.select(&Wanted { only: Some(&entry.info.id), ..Wanted::default() });
    let mut lease =
        lease.map_err(|_| CommandFailure::new("the account can't be used; `kiro-server doctor` says what to do"))?;
    // As a request would (K77); what is found isn't written.
    if lease.account().wants_profiles() {
        desk.credentials.look_up_profiles(&mut lease).await;
    }
    let bearer = desk.credentials.access_token(&lease).await;
    let bearer = bearer.map_err(|fault| CommandFailure::new(format!("no access token: {}", fault.kind.as_str())))?;
    let view = (**lease.account()).clone();
    let on_this_machine = view.generate_url().parse::<Uri>().is_ok_and(|url| url.host().is_some_and(is_loopback));
    // Kiro's own hosts are spared; a simulator on this machine needn't be.
    let pause = if on_this_machine { Duration::ZERO } else { PAUSE };
    ProbeAccount::new(&desk.upstream, view, &bearer, pause).map_err(|fault| CommandFailure::new(fault.message.as_str()))
}

fn write_report(file: &Path, report: &Value) -> Result<(), CommandFailure> {
    std::fs::write(file, format!("{report:#}\n"))
        .map_err(|error| CommandFailure::new(format!("{}: {error}", file.display())))
}

struct LiveReport<'a> {
    desk: &'a Desk,
    live: &'a LiveRun,
    lines: &'a [LiveLine],
}

impl LiveReport<'_> {
    fn is_fine(&self) -> bool {
        self.live.probe.stopped.is_none() && self.lines.iter().all(|line| line.verdict != LiveVerdict::Wrong)
    }

    fn text(&self) -> String {
        let mut text = String::new();
        let widest = self.lines.iter().map(|line| line.check.len()).max().unwrap_or(0);
        for line in self.lines {
            text.push_str(&format!("{} {:widest$}  {}\n", line.verdict.mark(), line.check, line.seen));
            if !matches!(line.verdict, LiveVerdict::Same | LiveVerdict::NotRun) {
                text.push_str(&format!("  {:widest$}  expected: {}\n", "", line.expected));
                text.push_str(&format!("  {:widest$}  → {}\n", "", line.means));
            }
        }
        let count = |verdict| self.lines.iter().filter(|line| line.verdict == verdict).count();
        let (differs, wrong) = (count(LiveVerdict::Differs), count(LiveVerdict::Wrong));
        let made = match self.live.probe.sent {
            1 => "1 request was made. ".to_owned(),
            sent => format!("{sent} requests were made. "),
        };
        text.push_str(&format!("\n{made}"));
        if let Some(why) = &self.live.probe.stopped {
            text.push_str(&format!("It stopped before its end: {why}. "));
        }
        let some = |count: usize, one: &str, more: &str| match count {
            1 => format!("1 {one}"),
            count => format!("{count} {more}"),
        };
        text.push_str(&match (differs, wrong, count(LiveVerdict::NotRun)) {
            (0, 0, 0) => "Kiro is as this program takes it to be.\n".to_owned(),
            (0, 0, none) if none == self.lines.len() => "Nothing was learnt.\n".to_owned(),
            (0, 0, _) => "Nothing that was seen differs.\n".to_owned(),
            (_, 0, _) => format!(
                "{}, and the gateway gets along. Please report it: docs/kiro.md says how.\n",
                some(differs, "differs", "differ")
            ),
            _ => format!(
                "{}, {}. Please report it: docs/kiro.md says how.\n",
                some(differs, "differs", "differ"),
                some(wrong, "is wrong", "are wrong")
            ),
        });
        text
    }

    /// The report; nothing in it shows who asked or what was said (K140).
    fn json(&self) -> Value {
        let config = &self.desk.config;
        let view = self.live.probe.view();
        let hosts = if view.generate_url().contains(".amazonaws.com/") { "Kiro's own" } else { "other addresses" };
        let lines = self.lines.iter().map(|line| {
            json!({
                "check": line.check, "verdict": line.verdict.word(), "expected": line.expected, "seen": line.seen,
                "means": line.means,
            })
        });
        json!({
            "program": env!("CARGO_PKG_VERSION"),
            "contract": CONTRACT,
            "at": Timestamp::now().strftime("%Y-%m-%d").to_string(),
            "client_version": config.client_version,
            "upstream": if config.upstream == UpstreamKind::Simulator { "simulator" } else { hosts },
            "account": {
                "method": view.method().as_str(), "kind": view.kind().as_str(), "region": view.region(),
                "profile": view.profile_arn().is_some(),
            },
            "second_account": self.live.second.is_some(),
            "requests": self.live.probe.sent,
            "stopped": self.live.probe.stopped,
            "ok": self.is_fine(),
            "checks": lines.collect::<Vec<_>>(),
        })
    }
}

/// The form of a chat call: shape, whether in the small form (K116), and the ARN.
#[derive(Debug, Clone, PartialEq)]
struct ChatForm {
    shape: Shape,
    small: bool,
    arn: Option<String>,
}

/// The results so far, so that no check asks again.
struct LiveRun {
    probe: ProbeAccount,
    /// A second account, for facts that are bound to one account.
    second: Option<ProbeAccount>,
    /// The model of the older style that the account has.
    plain: &'static str,
    shapes: Vec<Shape>,
    variants: Vec<Variant>,
    /// Small chats that were asked.
    chats: Vec<(ChatForm, Result<Chat, Fault>)>,
    /// The catalogue by shape.
    catalogues: Vec<(Shape, Result<Catalogue, Fault>)>,
    usages: Vec<(Shape, bool, Result<(), Fault>)>,
    /// The thinking turn and its answer, once asked.
    thought: Option<(Ask, Result<Chat, Fault>)>,
}

impl LiveRun {
    fn new(probe: ProbeAccount, second: Option<ProbeAccount>) -> Self {
        let view = probe.view();
        let pinned = view.shapes("us-east-1").len() == 1;
        // Also the shape that the configuration leaves out, unless the account has one address of its own.
        let shapes = if pinned { view.shapes("us-east-1").to_vec() } else { Shape::ALL.to_vec() };
        let variants = view.variants().to_vec();
        Self {
            shapes,
            variants,
            second,
            plain: PLAIN_MODELS[0],
            chats: Vec::new(),
            catalogues: Vec::new(),
            usages: Vec::new(),
            thought: None,
            probe,
        }
    }

    async fn check(&mut self, name: &'static str) -> LiveLine {
        let (expected, found) = match name {
            "version" => ("every call takes it", self.version().await),
            "gate" => ("a client older than the floor is refused", self.gate().await),
            "shapes" => ("each shape answers", self.both_shapes().await),
            "runtime-members" => ("all are taken", self.runtime_members().await),
            "profile" => ("the first variant is taken", self.profile().await),
            "usage" => ("answered with the ARN and without", self.usage().await),
            "catalogue" => ("what the table says", self.catalogue().await),
            "reasoning" => ("one signed thought by fields, a thought by prefix and by both", self.reasoning().await),
            "effort" => ("effort low and xhigh are taken, display too", self.effort().await),
            "max-tokens" => ("taken", self.max_tokens().await),
            "tool-schemas" => ("taken", self.tool_schemas().await),
            "result-image" => ("taken", self.result_image().await),
            "document" => ("taken", self.document().await),
            "cache-point" => ("taken on a message", self.cache_point().await),
            "credits" => (
                "the second of two equal turns costs less, and on another account nothing is cheaper",
                self.credits().await,
            ),
            "replay" => ("taken, in another conversation too; refused on another account", self.replay().await),
            "search" => ("one tool, web_search, with results", self.search().await),
            "end-order" => ("metadata, context, metering", self.end_order().await),
            "percentage" => ("what the table's window says, where there are counts", self.percentage().await),
            _ => ("1,085,435 bytes; a picture of 1,000,000 characters", self.limits().await),
        };
        let (verdict, seen, means) = found.unwrap_or_else(|_| {
            let why = self.probe.stopped.clone().unwrap_or_default();
            (LiveVerdict::NotRun, format!("not asked: {why}"), String::new())
        });
        LiveLine { check: name, verdict, expected, seen, means }
    }

    /// A small chat in this way; asked once.
    async fn small_chat(&mut self, way: &ChatForm) -> ProbeResult<Chat> {
        if let Some((_, known)) = self.chats.iter().find(|(asked, _)| asked == way) {
            return Ok(known.clone());
        }
        loop {
            let ask = Ask::new(self.plain, "Answer with the one word OK.");
            let answer = self.probe.chat(way.shape, way.small, way.arn.as_deref(), &ask).await?;
            let next = PLAIN_MODELS.iter().skip_while(|model| **model != self.plain).nth(1);
            if let (Err(Fault { kind: FaultKind::UnknownModel, .. }), Some(next)) = (&answer, next) {
                self.plain = next;
                continue;
            }
            self.chats.push((way.clone(), answer.clone()));
            return Ok(answer);
        }
    }

    /// One chat turn as the second account, in the shape of the first; none without one.
    async fn ask_second(&mut self, ask: &Ask) -> Result<Option<Result<Chat, Fault>>, Stopped> {
        let Some(way) = self.way().await? else { return Ok(None) };
        let Some(second) = &mut self.second else { return Ok(None) };
        let mut last = None;
        for variant in second.view().variants().to_vec() {
            self.probe.begin().await?;
            let answer = second.chat(way.shape, way.small, variant.arn(), ask).await.inspect_err(|_| {
                let why = second_stopped(second);
                self.probe.stopped = Some(why);
            })?;
            let again = answer.as_ref().is_err_and(is_of_the_profile);
            last = Some(answer);
            if !again {
                break;
            }
        }
        Ok(last)
    }

    /// A shape's answer to the first variant that it takes, in the small form where it wants that.
    async fn of_shape(&mut self, shape: Shape) -> Result<(ChatForm, Result<Chat, Fault>), Stopped> {
        let mut last = None;
        for variant in self.variants.clone() {
            let mut way = ChatForm { shape, small: false, arn: variant.arn().map(str::to_owned) };
            let mut answer = self.small_chat(&way).await?;
            let unformed = |fault: &Fault| fault.kind == FaultKind::BadRequest;
            if shape == Shape::Runtime && answer.as_ref().is_err_and(unformed) {
                way.small = true;
                answer = self.small_chat(&way).await?;
            }
            let about_profile = answer.as_ref().is_err_and(is_of_the_profile);
            last = Some((way, answer));
            if !about_profile {
                break;
            }
        }
        Ok(last.unwrap_or_else(|| {
            (ChatForm { shape, small: false, arn: None }, Err(Fault::protocol("there is no variant to send")))
        }))
    }

    /// The form in which the other checks ask: the first shape that answers.
    async fn way(&mut self) -> Result<Option<ChatForm>, Stopped> {
        for shape in self.shapes.clone() {
            let (way, answer) = self.of_shape(shape).await?;
            if answer.is_ok() {
                return Ok(Some(way));
            }
        }
        Ok(None)
    }

    /// One chat turn in that way; none when there is no way.
    async fn ask(&mut self, ask: &Ask) -> Result<Option<Result<Chat, Fault>>, Stopped> {
        let Some(way) = self.way().await? else { return Ok(None) };
        Ok(Some(self.probe.chat(way.shape, way.small, way.arn.as_deref(), ask).await?))
    }

    /// The ARN of the account's calls: of several the one for conversations.
    async fn arn(&mut self) -> Result<Option<String>, Stopped> {
        let named = self.variants.iter().filter(|variant| variant.arn().is_some()).count();
        let way = if named > 1 { self.way().await? } else { None };
        let first = || self.probe.view().profile_arn().map(str::to_owned);
        Ok(way.and_then(|way| way.arn).or_else(first))
    }

    async fn usage_of(&mut self, shape: Shape, with_arn: bool) -> ProbeResult<()> {
        if let Some((_, _, known)) = self.usages.iter().find(|(of, arn, _)| *of == shape && *arn == with_arn) {
            return Ok(known.clone());
        }
        let arn = self.arn().await?.filter(|_| with_arn);
        let answer = self.probe.usage(shape, arn.as_deref()).await?.map(drop);
        self.usages.push((shape, with_arn, answer.clone()));
        Ok(answer)
    }

    async fn catalogue_of(&mut self, shape: Shape) -> ProbeResult<Catalogue> {
        if let Some((_, known)) = self.catalogues.iter().find(|(of, _)| *of == shape) {
            return Ok(known.clone());
        }
        let arn = self.arn().await?;
        let mut answer = self.catalogue_with(shape, arn.as_deref()).await?;
        // The gateway asks in the other form, too (K80).
        if arn.is_some() && answer.as_ref().is_err_and(is_of_the_profile) {
            answer = self.catalogue_with(shape, None).await?;
        }
        self.catalogues.push((shape, answer.clone()));
        Ok(answer)
    }

    async fn catalogue_with(&mut self, shape: Shape, arn: Option<&str>) -> ProbeResult<Catalogue> {
        let mut catalogue = Catalogue::default();
        let mut next = None;
        let mut answer = Ok(());
        // More pages than any account has.
        for _ in 0..4 {
            match self.probe.models(shape, arn, next.as_deref()).await? {
                Ok(page) => match catalogue.add_page(&page) {
                    Ok(token) => next = token,
                    Err(_) => answer = Err(Fault::protocol("the list can't be read")),
                },
                Err(fault) => answer = Err(fault),
            }
            if next.is_none() || answer.is_err() {
                break;
            }
        }
        Ok(answer.map(|()| catalogue))
    }

    /// The catalogue of the first shape that gives one.
    async fn any_catalogue(&mut self) -> Result<Option<Catalogue>, Stopped> {
        for shape in self.shapes.clone() {
            if let Ok(catalogue) = self.catalogue_of(shape).await?
                && !catalogue.models().is_empty()
            {
                return Ok(Some(catalogue));
            }
        }
        Ok(None)
    }

    /// The account's catalogue lists the model without a schema.
    fn is_without_schema(&self, model: &str) -> bool {
        let listed = self.catalogues.iter().filter_map(|(_, answer)| answer.as_ref().ok()?.get(model));
        listed.map(|listed| listed.fields.is_none()).next().unwrap_or(false)
    }

    /// A model that thinks by fields and that the account has.
    async fn fields_model(&mut self) -> Result<Option<&'static str>, Stopped> {
        let catalogue = self.any_catalogue().await?;
        let has = |model: &&str| catalogue.as_ref().is_none_or(|catalogue| catalogue.get(model).is_some());
        Ok(FIELDS_MODELS.into_iter().find(|model| has(model)))
    }
}

/// The checks.
impl LiveRun {
    async fn version(&mut self) -> Result<Finding, Stopped> {
        let with_arn = self.probe.view().profile_arn().is_some();
        for shape in self.shapes.clone() {
            let _seen = self.of_shape(shape).await?;
            let _seen = self.usage_of(shape, with_arn).await?;
            let _seen = self.catalogue_of(shape).await?;
        }
        let named = |calls: &[(Operation, Shape)]| {
            let mut names: Vec<String> =
                calls.iter().map(|(call, shape)| format!("{} of {shape}", call.as_str())).collect();
            names.sort();
            names.dedup();
            names.join(", ")
        };
        let refused = self.probe.version_refused.clone();
        if refused.is_empty() && self.probe.answered.is_empty() {
            let why = self.chats.iter().find_map(|(_, answer)| answer.as_ref().err().map(said));
            return Ok(not_run(&why.unwrap_or_else(|| "no call was let in".to_owned())));
        }
        if refused.is_empty() {
            return Ok((LiveVerdict::Same, format!("taken by {}", named(&self.probe.answered)), String::new()));
        }
        let seen = format!("refused by {}", named(&refused));
        let cure = "set KIRO_CLIENT_VERSION to that of a newer Kiro IDE, or update this program";
        let answered = |shape: &Shape| self.probe.answered.contains(&(Operation::Chat, *shape));
        if self.shapes.iter().any(answered) {
            let lost = |call: &Operation| !self.probe.answered.iter().any(|(answered, _)| answered == call);
            let means = match refused.iter().find(|(call, _)| lost(call)) {
                Some((call, _)) => format!("conversations go on, {} isn't answered anywhere: {cure}", call.as_str()),
                None => format!("the gateway goes the other way by itself; {cure}"),
            };
            return Ok((LiveVerdict::Differs, seen, means));
        }
        Ok((LiveVerdict::Wrong, seen, format!("nothing is served: {cure}")))
    }

    /// Asks with an old version, by a call that costs nothing; if that is accepted, as a client without Kiro's name.
    async fn gate(&mut self) -> Result<Finding, Stopped> {
        let has_arn = self.probe.view().profile_arn().is_some();
        let mut asked = None;
        'asked: for shape in self.shapes.clone() {
            for with_arn in [has_arn, false] {
                if self.usage_of(shape, with_arn).await?.is_ok() {
                    asked = Some((shape, with_arn));
                    break 'asked;
                }
            }
        }
        let Some((shape, with_arn)) = asked else { return Ok(not_run("usage isn't answered to our own version")) };
        let arn = self.arn().await?.filter(|_| with_arn);
        let old = |agent: &str| match agent.split_once("KiroIDE-") {
            Some((sdk, ide)) => {
                let behind = ide.find('-').map_or("", |at| &ide[at..]);
                format!("{sdk}KiroIDE-{OLD_VERSION}{behind}")
            }
            None => agent.to_owned(),
        };
        match self.probe.usage_as(shape, arn.as_deref(), old).await? {
            Err(fault) if fault.kind == FaultKind::ClientVersion => {
                return Ok((LiveVerdict::Same, format!("{OLD_VERSION} is refused by usage of {shape}"), String::new()));
            }
            Err(fault) => return Ok(not_run(&said(&fault))),
            Ok(()) => {}
        }
        let nobody = |agent: &str| agent.split_once(" KiroIDE").map_or(agent, |(sdk, _)| sdk).to_owned();
        let other = match self.probe.usage_as(shape, arn.as_deref(), nobody).await? {
            Ok(()) => "a client without Kiro's name too".to_owned(),
            Err(fault) => format!("a client without Kiro's name isn't: {}", said(&fault)),
        };
        Ok(differs(
            &format!("{OLD_VERSION}, below {VERSION_FLOOR}, is taken by usage of {shape}; {other}"),
            "the gateway needs nothing of it; an older KIRO_CLIENT_VERSION would serve, too: report it",
        ))
    }

    async fn both_shapes(&mut self) -> Result<Finding, Stopped> {
        let mut seen = Vec::new();
        let mut fails = Vec::new();
        for shape in self.shapes.clone() {
            let (_, answer) = self.of_shape(shape).await?;
            // Version, profile and body have checks of their own.
            let reached = |fault: &Fault| {
                matches!(fault.kind, FaultKind::ClientVersion | FaultKind::ProfileArn | FaultKind::BadRequest)
            };
            match &answer {
                Err(fault) if !reached(fault) => {
                    seen.push(format!("{shape} {}", said(fault)));
                    fails.push(shape);
                }
                _ => seen.push(format!("{shape} answers")),
            }
        }
        if self.shapes.len() == 1 {
            seen.push("the other one isn't used: an address is set".to_owned());
        }
        let seen = seen.join(" · ");
        Ok(match fails.as_slice() {
            [] => (LiveVerdict::Same, seen, String::new()),
            [one] if self.shapes.len() > 1 => {
                let other = if *one == Shape::Q { Shape::Runtime } else { Shape::Q };
                let means = format!("the gateway uses {other} by itself; KIRO_UPSTREAM_API={other} saves the attempts");
                (LiveVerdict::Differs, seen, means)
            }
            _ if self.chats.iter().any(|(_, answer)| answer.as_ref().is_err_and(is_of_the_profile)) => (
                LiveVerdict::Wrong,
                seen,
                "nothing is served to this account: `kiro-server accounts check --refresh`, else log in again"
                    .to_owned(),
            ),
            _ => (
                LiveVerdict::Wrong,
                seen,
                "nothing is served: see KIRO_UPSTREAM_URL, KIRO_RUNTIME_URL, then report".to_owned(),
            ),
        })
    }

    async fn runtime_members(&mut self) -> Result<Finding, Stopped> {
        if !self.shapes.contains(&Shape::Runtime) {
            return Ok(not_run("shape runtime isn't used"));
        }
        let (way, answer) = self.of_shape(Shape::Runtime).await?;
        if let Err(fault) = answer {
            return Ok(not_run(&format!("the shape doesn't answer: {}", said(&fault))));
        }
        if way.small {
            let seen =
                "refused with agentContinuationId, agentTaskType, agentMode and rootConversationId, taken without";
            return Ok(differs(seen, "the gateway leaves them out by itself for a day at a time (K116)"));
        }
        let Some(model) = self.fields_model().await? else {
            return Ok((LiveVerdict::Same, "the four members of a conversation are taken".to_owned(), String::new()));
        };
        let ask =
            Ask::new(model, "Answer with the one word OK.").fields(json!({ "output_config": { "effort": "low" } }));
        match self.probe.chat(way.shape, way.small, way.arn.as_deref(), &ask).await? {
            Err(fault) if fault.kind == FaultKind::BadRequest => {
                let seen = format!("additionalModelRequestFields: {}", said(&fault));
                Ok(differs(&seen, "the gateway leaves it out there by itself; effort and thinking need shape q"))
            }
            // Fields have checks of their own.
            Ok(_) => Ok((LiveVerdict::Same, "all are taken".to_owned(), String::new())),
            Err(fault) => Ok((LiveVerdict::Same, format!("all are taken, but {}", said(&fault)), String::new())),
        }
    }

    async fn profile(&mut self) -> Result<Finding, Stopped> {
        let mut seen = Vec::new();
        let (mut first, mut any, mut lacking) = (false, false, Vec::new());
        for shape in self.shapes.clone() {
            let (ChatForm { small, .. }, answer) = self.of_shape(shape).await?;
            // The shape itself has a check of its own.
            if answer.as_ref().is_err_and(|fault| !is_of_the_profile(fault)) {
                seen.push(format!("{shape} doesn't answer"));
                continue;
            }
            let mut taken = false;
            for (place, variant) in self.variants.clone().into_iter().enumerate() {
                let word = match &variant {
                    Variant::Own(_) => "own",
                    Variant::Listed(_) => "listed",
                    Variant::Service(_) => "Kiro's",
                    Variant::None => "none",
                };
                // A variant behind an accepted one isn't needed, unless it was asked before.
                let way = ChatForm { shape, small, arn: variant.arn().map(str::to_owned) };
                match self.small_chat(&way).await? {
                    Ok(_) => {
                        seen.push(format!("{shape}: {word} taken"));
                        taken = true;
                        first |= place == 0;
                    }
                    Err(fault) => seen.push(format!("{shape}: {word} {}", said(&fault))),
                }
            }
            any |= taken;
            if !taken {
                lacking.push(shape);
            }
        }
        let seen = seen.join(" · ");
        Ok(match (any, first, lacking.as_slice()) {
            (false, _, []) => not_run(&seen),
            (false, _, _) => {
                let has_service = self.variants.iter().any(|variant| matches!(variant, Variant::Service(_)));
                let means = match has_service {
                    true => {
                        "no variant is taken: KIRO_BUILDER_ID_PROFILE_ARN and KIRO_SOCIAL_PROFILE_ARN name others; report it"
                    }
                    false => {
                        "no variant is taken: `kiro-server accounts check` looks for the profile; else log in again"
                    }
                };
                (LiveVerdict::Wrong, seen, means.to_owned())
            }
            (true, true, []) => (LiveVerdict::Same, seen, String::new()),
            (true, true, [shape, ..]) => {
                differs(&seen, &format!("the gateway doesn't use {shape} for this account by itself"))
            }
            (true, false, _) => differs(&seen, "the gateway takes the one that passes by itself and remembers it"),
        })
    }

    async fn usage(&mut self) -> Result<Finding, Stopped> {
        let has_arn = self.probe.view().profile_arn().is_some();
        let mut seen = Vec::new();
        let mut refused = 0;
        let Some(shape) = self.shapes.first().copied() else { return Ok(not_run("no shape is used")) };
        for with_arn in [true, false] {
            if with_arn && !has_arn {
                continue;
            }
            let words = if with_arn { "with the ARN" } else { "without" };
            let mut answer = self.usage_of(shape, with_arn).await?;
            // The host itself has a check of its own, and so has the version.
            let elsewhere = |fault: &Fault| is_of_the_host(fault) || fault.kind == FaultKind::ClientVersion;
            if answer.as_ref().is_err_and(elsewhere) && self.shapes.len() > 1 {
                let other = self.shapes.iter().copied().find(|other| *other != shape).unwrap_or(shape);
                answer = self.usage_of(other, with_arn).await?;
            }
            match answer {
                Ok(()) => seen.push(format!("{words}: answered")),
                Err(fault) if is_of_the_host(&fault) || fault.kind == FaultKind::ClientVersion => {
                    return Ok(not_run(&said(&fault)));
                }
                Err(fault) => {
                    seen.push(format!("{words}: {}", said(&fault)));
                    refused += 1;
                }
            }
        }
        let seen = seen.join(" · ");
        Ok(match (refused, usize::from(has_arn) + 1) {
            (0, _) => (LiveVerdict::Same, seen, String::new()),
            (all, asked) if all == asked => (
                LiveVerdict::Wrong,
                seen,
                "quota can't be read, and probes of it tell nothing: `kiro-server accounts check`, then report"
                    .to_owned(),
            ),
            _ => differs(&seen, "the gateway asks the other way by itself"),
        })
    }

    async fn catalogue(&mut self) -> Result<Finding, Stopped> {
        let Some(catalogue) = self.any_catalogue().await? else {
            let why = self.catalogues.iter().find_map(|(_, answer)| answer.as_ref().err().map(said));
            let why = why.unwrap_or_else(|| "an empty list".to_owned());
            if self
                .catalogues
                .iter()
                .any(|(_, answer)| answer.as_ref().is_err_and(|f| f.kind == FaultKind::ClientVersion))
            {
                return Ok(not_run(&why));
            }
            return Ok(differs(&why, "the embedded table is used; KIRO_MODELS_FILE replaces it"));
        };
        let table: Vec<&Model> = Models::embedded().list_all().map(|model| &**model).collect();
        let row = |listed: &Listed| table.iter().find(|row| row.kiro_id.eq_ignore_ascii_case(&listed.kiro_id));
        let new: Vec<&str> =
            catalogue.models().iter().map(|listed| &*listed.kiro_id).filter(|id| *id != "auto").collect();
        let new: Vec<&str> =
            new.into_iter().filter(|id| !table.iter().any(|row| row.kiro_id.eq_ignore_ascii_case(id))).collect();
        let missing: Vec<&str> = table
            .iter()
            .filter(|row| row.listed && catalogue.get(&row.kiro_id).is_none())
            .map(|row| &*row.kiro_id)
            .collect();
        let mut other = Vec::new();
        for listed in catalogue.models() {
            let Some(row) = row(listed) else { continue };
            if listed.window.is_some_and(|window| window != row.window) {
                other.push(format!("{} window {}", row.kiro_id, listed.window.unwrap_or_default()));
            }
            let schema = listed.fields.as_ref();
            match (schema, row.efforts.is_empty()) {
                (None, false) => other.push(format!("{} without a schema", row.kiro_id)),
                (Some(schema), _) => {
                    let levels = schema.effort.as_ref().and_then(|effort| effort.levels.as_deref());
                    if levels.is_some_and(|levels| levels != row.efforts) {
                        other.push(format!("{} other efforts", row.kiro_id));
                    }
                    let types = schema.thinking.as_ref().and_then(|thinking| thinking.types.as_deref());
                    if types.is_some_and(|types| types != row.types) {
                        other.push(format!("{} other types of thinking", row.kiro_id));
                    }
                }
                (None, true) => {}
            }
        }
        let mut seen = vec![format!("{} models", catalogue.models().len())];
        for (word, ids) in [("new", &new), ("not in this plan", &missing)] {
            if !ids.is_empty() {
                seen.push(format!("{word}: {}", few(ids)));
            }
        }
        if !other.is_empty() {
            seen.push(few(&other.iter().map(String::as_str).collect::<Vec<_>>()));
        }
        let seen = masked(&seen.join(" · "));
        Ok(match new.is_empty() && missing.is_empty() && other.is_empty() {
            true => (LiveVerdict::Same, seen, String::new()),
            false => differs(&seen, "the account's own list goes before the table by itself; report what is new in it"),
        })
    }

    /// The turn that thinks, on a model of style `fields`; each member that is refused is left out.
    async fn think(&mut self) -> Result<Option<(Ask, Result<Chat, Fault>)>, Stopped> {
        if self.thought.is_some() {
            return Ok(self.thought.clone());
        }
        let Some(model) = self.fields_model().await? else { return Ok(None) };
        let fields = [
            json!({ "thinking": { "type": "adaptive", "display": "summarized" }, "output_config": { "effort": "low" } }),
            json!({ "thinking": { "type": "adaptive" }, "output_config": { "effort": "low" } }),
            json!({ "thinking": { "type": "adaptive" } }),
        ];
        let mut last = None;
        for fields in fields {
            let ask = Ask::new(model, "Which is larger, 9.9 or 9.11? Think, then answer with the number alone.")
                .fields(fields);
            let Some(answer) = self.ask(&ask).await? else { return Ok(None) };
            let again = answer.as_ref().is_err_and(|fault| fault.kind == FaultKind::ModelFields);
            last = Some((ask, answer));
            if !again {
                break;
            }
        }
        self.thought = last;
        Ok(self.thought.clone())
    }

    async fn reasoning(&mut self) -> Result<Finding, Stopped> {
        let mut seen = Vec::new();
        let mut differs_in = Vec::new();
        match self.think().await? {
            Some((ask, Ok(chat))) => {
                let signed = chat.thoughts.iter().filter(|(_, signature)| !signature.is_empty()).count();
                let texts = chat.thoughts.iter().filter(|(text, _)| !text.is_empty()).count();
                seen.push(format!("{}: {texts} thoughts, {signed} signatures", ask.model));
                match (texts, signed) {
                    (1, 1) => {}
                    (0, 0) => differs_in.push("nothing of what such a model thinks reaches clients; answers do"),
                    _ => differs_in.push(
                        "a thought without text or without signature is passed on as it is; several stay several",
                    ),
                }
            }
            // Whether fields are taken has a check of its own.
            Some((ask, Err(fault))) => seen.push(format!("{}: {}", ask.model, said(&fault))),
            None => seen.push("no model that thinks by fields".to_owned()),
        }
        let Some(_) = self.way().await? else { return Ok(not_run("no shape answers")) };
        let question = "Which is larger, 9.9 or 9.11? Think, then answer with the number alone.";
        let enabled = "<thinking_mode>enabled</thinking_mode><max_thinking_length>4000</max_thinking_length>";
        let adaptive = "<thinking_mode>adaptive</thinking_mode><thinking_effort>low</thinking_effort>";
        let mut asks = vec![Ask::new(self.plain, question).under(enabled)];
        if self.any_catalogue().await?.is_none_or(|catalogue| catalogue.get(BOTH_MODEL).is_some()) {
            let fields = json!({ "thinking": { "type": "adaptive" }, "output_config": { "effort": "low" } });
            asks.push(Ask::new(BOTH_MODEL, question).under(adaptive).fields(fields));
        }
        for ask in asks {
            match self.ask(&ask).await? {
                Some(Ok(chat)) => {
                    let thought = chat.tags || !chat.thoughts.is_empty();
                    seen.push(format!("{}: {}", ask.model, if thought { "a thought" } else { "no thought" }));
                    if !thought {
                        differs_in.push("models that are told to think in the text answer without a thought");
                    }
                }
                Some(Err(fault)) => seen.push(format!("{}: {}", ask.model, said(&fault))),
                None => return Ok(not_run("no shape answers")),
            }
        }
        differs_in.dedup();
        let seen = seen.join(" · ");
        Ok(match differs_in.as_slice() {
            [] => (LiveVerdict::Same, seen, String::new()),
            means => differs(&seen, &means.join("; ")),
        })
    }

    async fn effort(&mut self) -> Result<Finding, Stopped> {
        let Some((ask, answer)) = self.think().await? else {
            return Ok(not_run("the account has no model that thinks by fields"));
        };
        if answer.as_ref().is_err_and(|fault| fault.kind == FaultKind::ModelFields)
            && self.is_without_schema(&ask.model)
        {
            return Ok(not_run("the catalogue has no schema for it, which the check of the catalogue says"));
        }
        let fields = ask.fields.unwrap_or_default();
        let mut seen = Vec::new();
        let mut fine = true;
        for (member, has) in [
            ("display", fields["thinking"]["display"].is_string()),
            ("effort low", fields["output_config"]["effort"].is_string()),
        ] {
            seen.push(format!("{member} {}", if has && answer.is_ok() { "taken" } else { "refused" }));
            fine &= has && answer.is_ok();
        }
        if let Err(fault) = &answer {
            seen.push(said(fault));
            if fault.kind != FaultKind::ModelFields {
                return Ok(not_run(&seen.join(" · ")));
            }
        } else if fields["output_config"]["effort"].is_string() {
            let ask = Ask::new(&ask.model, "Answer with the one word OK.")
                .fields(json!({ "output_config": { "effort": "xhigh" } }));
            match self.ask(&ask).await? {
                Some(Ok(_)) => seen.push("effort xhigh taken".to_owned()),
                Some(Err(fault)) => {
                    seen.push(format!("effort xhigh: {}", said(&fault)));
                    fine &= fault.kind != FaultKind::ModelFields;
                }
                None => {}
            }
        }
        let seen = seen.join(" · ");
        Ok(match fine {
            true => (LiveVerdict::Same, seen, String::new()),
            false => differs(
                &seen,
                "the gateway leaves out what is refused, or takes the next lower level, by itself (K129)",
            ),
        })
    }

    async fn max_tokens(&mut self) -> Result<Finding, Stopped> {
        let Some(model) = self.fields_model().await?.filter(|model| model.ends_with("-5.5")) else {
            return Ok(not_run("the account has no model that takes it"));
        };
        let of_fields = |(_, answer): &(Ask, Result<Chat, Fault>)| {
            answer.as_ref().is_err_and(|fault| fault.kind == FaultKind::ModelFields)
        };
        let whole = self.is_without_schema(model) || self.thought.as_ref().is_some_and(of_fields);
        let ask = Ask::new(model, "Answer with the one word OK.").fields(json!({ "max_tokens": 1024 }));
        Ok(match self.ask(&ask).await? {
            Some(Ok(_)) => (LiveVerdict::Same, format!("{model}: taken"), String::new()),
            Some(Err(fault)) if fault.kind == FaultKind::ModelFields && whole => {
                not_run("the model's fields are refused as a whole, which other checks say")
            }
            Some(Err(fault)) if fault.kind == FaultKind::ModelFields => differs(
                &format!("{model}: {}", said(&fault)),
                "it is left out by itself; KIRO_MAX_TOKENS=ignore saves the attempt",
            ),
            Some(Err(fault)) => not_run(&said(&fault)),
            None => not_run("no shape answers"),
        })
    }

    /// A turn with a member that may be refused: `verdict` and `means` say what a refusal means. `Wrong`: the gateway
    /// has no remedy.
    async fn taken(&mut self, ask: Ask, verdict: LiveVerdict, means: &str) -> Result<Finding, Stopped> {
        Ok(match self.ask(&ask).await? {
            Some(Ok(_)) => (LiveVerdict::Same, "taken".to_owned(), String::new()),
            // A refusal of the account or the model says nothing about the question.
            Some(Err(fault)) if is_of_the_profile(&fault) || fault.kind == FaultKind::UnknownModel => {
                not_run(&said(&fault))
            }
            Some(Err(fault)) if fault.status.is_some_and(|status| (400..500).contains(&status)) => {
                (verdict, said(&fault), means.to_owned())
            }
            Some(Err(fault)) => not_run(&said(&fault)),
            None => not_run("no shape answers"),
        })
    }

    async fn tool_schemas(&mut self) -> Result<Finding, Stopped> {
        let schema = json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "additionalProperties": false,
            "properties": {
                "path": { "type": "string", "minLength": 1, "pattern": "^/", "format": "uri-reference" },
                "count": { "type": "integer", "exclusiveMinimum": 0, "maximum": 9, "default": 1 },
                "either": { "anyOf": [{ "type": "string" }, { "type": "null" }] },
            },
            "required": ["path"],
        });
        let tools = json!({ "tools": [tool("look", schema)] });
        let ask = Ask::new(self.plain, "Answer with the one word OK.").with("userInputMessageContext", tools);
        let means = "the gateway leaves the keywords that not every upstream knows out by itself (TR64)";
        self.taken(ask, LiveVerdict::Differs, means).await
    }

    async fn result_image(&mut self) -> Result<Finding, Stopped> {
        let context = json!({
            "tools": [tool("look", json!({ "type": "object", "properties": {} }))],
            "toolResults": [{ "toolUseId": "tooluse_1", "content": [{ "text": "a picture" }], "status": "success" }],
        });
        let images = json!([{ "format": "png", "source": { "bytes": picture(400) } }]);
        let mut ask = Ask::new(self.plain, "Answer with the one word OK.")
            .with("userInputMessageContext", context)
            .with("images", images);
        let used = json!({ "toolUseId": "tooluse_1", "name": "look", "input": {} });
        ask.history = vec![
            ask.user("Look."),
            json!({ "assistantResponseMessage": { "content": "I look.", "toolUses": [used] } }),
        ];
        self.taken(ask, LiveVerdict::Wrong, "requests with pictures from tools are refused (400); please report").await
    }

    async fn document(&mut self) -> Result<Finding, Stopped> {
        let documents = json!([{ "name": "note", "format": "txt", "source": { "bytes": "QSBub3RlLg==" } }]);
        let ask = Ask::new(self.plain, "Answer with the one word OK.").with("documents", documents);
        let means = "requests with documents are refused (400): send their text instead; please report";
        self.taken(ask, LiveVerdict::Wrong, means).await
    }

    async fn cache_point(&mut self) -> Result<Finding, Stopped> {
        let ask = Ask::new(self.plain, "Answer with the one word OK.").with("cachePoint", json!({ "type": "default" }));
        self.taken(
            ask,
            LiveVerdict::Differs,
            "with KIRO_CACHE_POINTS the gateway goes without by itself (K131); off, the default, sends none",
        )
        .await
    }

    async fn credits(&mut self) -> Result<Finding, Stopped> {
        let Some(_) = self.way().await? else { return Ok(not_run("no shape answers")) };
        // Long enough that the beginning is worth a cache entry, where the gateway puts it (TR46); and never sent
        // before, or the first turn would find it there.
        let text = "The quick brown fox jumps over the lazy dog. ".repeat(150);
        let text = format!("{} {text}", uuid::Uuid::new_v4());
        let ask = Ask::new(self.plain, "Answer with the one word OK.").under(&text);
        let other = Ask { conversation: uuid::Uuid::new_v4().to_string(), ..ask.clone() };
        let mut credits = Vec::new();
        for ask in [&ask, &ask, &other] {
            match self.ask(ask).await? {
                Some(Ok(Chat { credits: Some(figure), .. })) => credits.push(figure),
                Some(Ok(_)) => return Ok(not_run("answers hold no credits")),
                Some(Err(fault)) => return Ok(not_run(&said(&fault))),
                None => return Ok(not_run("no shape answers")),
            }
        }
        let &[first, again, third] = credits.as_slice() else { return Ok(not_run("answers hold no credits")) };
        let mut seen = format!("{first:.4}, then {again:.4}; in another conversation {third:.4}");
        // Without affinity the turn would have gone to another account.
        let elsewhere = match self.ask_second(&ask).await? {
            Some(Ok(chat)) => chat.credits,
            Some(Err(fault)) => {
                seen.push_str(&format!("; on the second account: {}", said(&fault)));
                None
            }
            None => {
                seen.push_str("; without affinity: not asked, `--second ID` names an account for it");
                None
            }
        };
        if let Some(figure) = elsewhere {
            seen.push_str(&format!("; without affinity, on the second account, {figure:.4}"));
        }
        let is_cheaper = |figure: f64| figure < first * 0.95;
        Ok(match (is_cheaper(again), elsewhere.is_some_and(is_cheaper)) {
            (true, false) => (LiveVerdict::Same, seen, String::new()),
            (true, true) => {
                differs(&seen, "what one account has seen is cheaper on another one: KIRO_AFFINITY=off loses nothing")
            }
            (false, _) => differs(
                &seen,
                "keeping a conversation on its account doesn't pay here; KIRO_AFFINITY=off loses nothing",
            ),
        })
    }

    async fn replay(&mut self) -> Result<Finding, Stopped> {
        let Some((asked, Ok(chat))) = self.think().await? else { return Ok(not_run("there is no thought to replay")) };
        let Some((text, signature)) = chat.thoughts.iter().find(|(_, signature)| !signature.is_empty()).cloned() else {
            return Ok(not_run("there is no signed thought to replay"));
        };
        let thought = json!({ "reasoningText": { "text": text, "signature": signature } });
        let answer = json!({ "assistantResponseMessage": { "content": "9.9", "reasoningContent": thought } });
        let mut seen = Vec::new();
        let mut refused = Vec::new();
        for (words, conversation) in
            [("in its conversation", asked.conversation.clone()), ("in another", uuid::Uuid::new_v4().to_string())]
        {
            let ask = Ask {
                conversation,
                content: "And of 1.5 and 1.25? The number alone.".to_owned(),
                history: vec![asked.user(&asked.content), answer.clone()],
                ..asked.clone()
            };
            match self.ask(&ask).await? {
                Some(Ok(_)) => seen.push(format!("{words}: taken")),
                Some(Err(fault)) => {
                    seen.push(format!("{words}: {}", said(&fault)));
                    refused.push(words);
                }
                None => return Ok(not_run("no shape answers")),
            }
        }
        let ask = Ask {
            content: "And of 1.5 and 1.25? The number alone.".to_owned(),
            history: vec![asked.user(&asked.content), answer.clone()],
            ..asked.clone()
        };
        let mut free = false;
        seen.push(match self.ask_second(&ask).await? {
            Some(Ok(_)) => {
                free = true;
                "on another account: taken".to_owned()
            }
            Some(Err(fault)) => format!("on another account: {}", said(&fault)),
            None => "on another account: not asked, `--second ID` names one".to_owned(),
        });
        let seen = seen.join(" · ");
        Ok(match (refused.is_empty(), free) {
            (true, false) => (LiveVerdict::Same, seen, String::new()),
            (true, true) => {
                differs(&seen, "the gateway sends a thought to its maker alone all the same (TR44): report it")
            }
            (false, _) => {
                differs(&seen, "the gateway asks again without thoughts by itself, and then remembers it (K130)")
            }
        })
    }

    async fn search(&mut self) -> Result<Finding, Stopped> {
        let Some(way) = self.way().await? else { return Ok(not_run("no shape answers")) };
        let arn = way.arn.as_deref();
        let wrong = "the account can't search the web; conversations without it go on";
        let tools = match self.probe.mcp(way.shape, arn, "tools/list", "{}").await? {
            Ok(answer) => answer["result"]["tools"].clone(),
            Err(fault) => return Ok(differs(&said(&fault), wrong)),
        };
        let names: Vec<&str> =
            tools.as_array().into_iter().flatten().filter_map(|tool| tool["name"].as_str()).collect();
        let declared = tools.as_array().into_iter().flatten().find(|tool| tool["name"] == "web_search");
        let same = declared.is_some_and(is_declared_as_ours);
        let params = search::params("rust programming language");
        let found = match self.probe.mcp(way.shape, arn, "tools/call", &params).await? {
            Ok(answer) => answer,
            Err(fault) => return Ok(differs(&said(&fault), wrong)),
        };
        let text = found["result"]["content"][0]["text"].as_str().unwrap_or_default();
        let results = serde_json::from_str::<Value>(text).ok();
        let results = results.and_then(|text| text["results"].as_array().map(Vec::len)).unwrap_or(0);
        let seen = masked(&format!("tools: {} · {results} results", few(&names)));
        Ok(match (results > 0, same) {
            (true, true) => (LiveVerdict::Same, seen, String::new()),
            (true, false) => differs(&seen, "the declaration isn't ours word for word; searches work: report it"),
            (false, _) => differs(&seen, wrong),
        })
    }

    async fn end_order(&mut self) -> Result<Finding, Stopped> {
        let Some(way) = self.way().await? else { return Ok(not_run("no shape answers")) };
        let Ok(chat) = self.small_chat(&way).await? else { return Ok(not_run("no shape answers")) };
        let seen = if chat.ends.is_empty() { "none".to_owned() } else { chat.ends.join(", ") };
        Ok(match chat.ends.as_slice() {
            ["metadata", "context", "metering"] => (LiveVerdict::Same, seen, String::new()),
            [] => differs(&seen, "usage is our own estimate, and a cut at the end can't be told from the end"),
            _ => differs(&seen, "any order is understood; report it"),
        })
    }

    async fn percentage(&mut self) -> Result<Finding, Stopped> {
        let Some(way) = self.way().await? else { return Ok(not_run("no shape answers")) };
        let Ok(chat) = self.small_chat(&way).await? else { return Ok(not_run("no shape answers")) };
        let (Some(counts), Some(percentage)) = (chat.counts, chat.percentage.filter(|percentage| *percentage > 0.0))
        else {
            let seen = "answers don't hold both counts and a percentage: nothing to compare";
            return Ok((LiveVerdict::Same, seen.to_owned(), String::new()));
        };
        let counted = counts.uncached_input + counts.cache_read + counts.cache_write + counts.output;
        let window = counted as f64 * 100.0 / percentage;
        let table = Models::embedded().list_all().find(|row| row.kiro_id == self.plain);
        let table = table.map_or(200_000, |row| row.usage_window()) as f64;
        let seen = format!("{counted} tokens are {percentage} %: a window of {window:.0}, the table has {table:.0}");
        // A small answer's percentage has few digits.
        Ok(match (0.8..=1.25).contains(&(window / table)) {
            true => (LiveVerdict::Same, seen, String::new()),
            false => differs(&seen, "learnt by itself from 20 answers; `usage_window` in KIRO_MODELS_FILE sets it"),
        })
    }

    /// A request whose body, or whose picture, has about `size` bytes. It has few tokens, whose limit is another one.
    fn of_size(&self, what: &str, size: usize) -> Ask {
        let ask = Ask::new(self.plain, "Answer with the one word OK.");
        if what == "picture" {
            return ask.with("images", json!([{ "format": "png", "source": { "bytes": picture(size) } }]));
        }
        Ask { content: format!("{} {}", "=".repeat(size.saturating_sub(1_000)), ask.content), ..ask }
    }

    /// By halving, at most 8 requests.
    async fn limits(&mut self) -> Result<Finding, Stopped> {
        let mut seen = Vec::new();
        let mut fine = true;
        for (words, most) in [("body", LARGEST_BODY), ("picture", LARGEST_PICTURE)] {
            let (mut size, mut passed) = (most, None);
            for _ in 0..4 {
                match self.ask(&self.of_size(words, size)).await? {
                    Some(Ok(_)) => {
                        passed = Some(size);
                        break;
                    }
                    Some(Err(fault)) if is_of_the_profile(&fault) || is_of_the_host(&fault) => {
                        return Ok(not_run(&said(&fault)));
                    }
                    Some(Err(_)) => size /= 2,
                    None => return Ok(not_run("no shape answers")),
                }
            }
            fine &= passed == Some(most);
            seen.push(match passed {
                Some(size) => format!("{words} of {size} passes"),
                None => format!("{words} of {} is refused", size * 2),
            });
            if passed == Some(LARGEST_BODY) {
                // A report says that this size is refused. It only helps to explain a refusal.
                let passes = matches!(self.ask(&self.of_size(words, TOO_LARGE_BODY)).await?, Some(Ok(_)));
                seen.push(format!("{words} of {TOO_LARGE_BODY} {}", if passes { "passes too" } else { "is refused" }));
            }
        }
        let seen = seen.join(" · ");
        Ok(match fine {
            true => (LiveVerdict::Same, seen, String::new()),
            false => differs(
                &seen,
                "larger pictures go out smaller by themselves (TR67), a larger body is a prompt that is too long (TS41)",
            ),
        })
    }
}

fn tool(name: &str, schema: Value) -> Value {
    json!({ "toolSpecification": { "name": name, "description": "Looks.", "inputSchema": { "json": schema } } })
}

fn differs(seen: &str, means: &str) -> Finding {
    (LiveVerdict::Differs, seen.to_owned(), means.to_owned())
}

fn not_run(why: &str) -> Finding {
    (LiveVerdict::NotRun, why.to_owned(), String::new())
}

fn second_stopped(second: &ProbeAccount) -> String {
    format!("as the second account: {}", second.stopped.as_deref().unwrap_or("no answer"))
}

/// The first few, and how many more there are.
fn few(names: &[&str]) -> String {
    const FEW: usize = 6;
    let shown: Vec<String> = names.iter().take(FEW).map(|name| plain(name, 60)).collect();
    match names.len().saturating_sub(FEW) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}
