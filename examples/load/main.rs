//! Puts load on a streaming endpoint and checks every stream. Prints one line of JSON.
//!
//! ```text
//! kiro-server simulate --listen 127.0.0.1:8090 &
//! KIRO_STORE=file:accounts.json KIRO_UPSTREAM_URL=http://127.0.0.1:8090/generateAssistantResponse kiro-server &
//! cargo run --release --example load --no-default-features --features server -- trickle --to 127.0.0.1:8081
//! ```
//! The other end must be the simulator, or lead to it: the prompts are in its language (docs/simulator.md).
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool")]

mod client;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use client::{Client, Face, Outcome, Plan};
use serde_json::json;

#[derive(Parser)]
#[command(about = "Load on a streaming endpoint, and a judgement of every stream of it")]
struct Args {
    /// What is measured; the other options change its parts
    mode: Mode,
    /// Where to: HOST:PORT
    #[arg(long, value_name = "ADDR")]
    to: String,
    /// Read raw upstream frames instead of the Messages API
    #[arg(long)]
    raw: bool,
    /// Streams open at the same time
    #[arg(long)]
    streams: Option<usize>,
    /// Streams one after the other on each connection
    #[arg(long)]
    rounds: Option<usize>,
    /// Text events a stream
    #[arg(long)]
    events: Option<u64>,
    /// Text events a write of upstream's
    #[arg(long)]
    burst: Option<u64>,
    /// Milliseconds between two writes of upstream's
    #[arg(long)]
    gap_ms: Option<u64>,
    /// Milliseconds before upstream's first event
    #[arg(long)]
    first_ms: Option<u64>,
    /// Bytes of filler in the prompt, or of the whole conversation
    #[arg(long)]
    prompt_bytes: Option<usize>,
    /// The client key (with --raw the access token)
    #[arg(long)]
    key: Option<String>,
    /// Seconds after which a stream has failed
    #[arg(long, default_value_t = 120)]
    timeout: u64,
    /// Spread the starts of the streams over so many milliseconds
    #[arg(long)]
    ramp_ms: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// 50 streams at once of 200 events, 20 a write, 20 after each other
    Burst,
    /// 500 streams at once of 100 events, one every 20 ms
    Trickle,
    /// 5,000 streams at once of 20 events, one a second
    Open,
    /// One stream at a time of one event, 200 after each other
    Single,
    /// 100 requests of 1 MB at once, a coding agent's with 40 tools; answers of 100 events, 20 a write
    Conversation,
}

struct Shape {
    streams: usize,
    rounds: usize,
    events: u64,
    burst: Option<u64>,
    gap_ms: u64,
    first_ms: u64,
    ramp_ms: u64,
    prompt: usize,
}

impl Mode {
    fn shape(self) -> Shape {
        let shape =
            Shape { streams: 1, rounds: 1, events: 1, burst: None, gap_ms: 0, first_ms: 0, ramp_ms: 0, prompt: 0 };
        match self {
            Self::Burst => Shape { streams: 50, rounds: 20, events: 200, burst: Some(20), ..shape },
            Self::Trickle => Shape { streams: 500, events: 100, gap_ms: 20, first_ms: 50, ..shape },
            Self::Open => Shape { streams: 5000, events: 20, gap_ms: 1000, ramp_ms: 5000, ..shape },
            Self::Single => Shape { rounds: 200, ..shape },
            Self::Conversation => Shape {
                streams: 100,
                events: 100,
                burst: Some(20),
                first_ms: 2000,
                gap_ms: 20,
                prompt: 1 << 20,
                ..shape
            },
        }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    // One thread: the machine's other cores are for what is measured.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("load: {error}");
            return ExitCode::FAILURE;
        }
    };
    let failed = tokio::task::LocalSet::new().block_on(&runtime, run(args));
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[expect(clippy::disallowed_methods, reason = "measuring is what this is for")]
/// Runs the load, prints what came of it and gives the number of failed streams.
async fn run(args: Args) -> usize {
    let mut shape = args.mode.shape();
    let plan = Plan {
        authority: args.to,
        face: if args.raw { Face::Kiro } else { Face::Messages },
        events: args.events.unwrap_or(shape.events),
        burst: args.burst.or(shape.burst),
        first: Duration::from_millis(args.first_ms.unwrap_or(shape.first_ms)),
        gap: Duration::from_millis(args.gap_ms.unwrap_or(shape.gap_ms)),
        prompt: args.prompt_bytes.unwrap_or(shape.prompt),
        conversation: args.mode == Mode::Conversation,
        key: args.key,
        timeout: Duration::from_secs(args.timeout),
    };
    shape.streams = args.streams.unwrap_or(shape.streams);
    shape.rounds = args.rounds.unwrap_or(shape.rounds);
    let ramp = Duration::from_millis(args.ramp_ms.unwrap_or(shape.ramp_ms));

    let began = Instant::now();
    let open = Rc::new(Cell::new(0));
    let tasks: Vec<_> = (0..shape.streams)
        .map(|n| {
            let mut client = Client::new(plan.clone());
            let (open, streams) = (open.clone(), shape.streams);
            tokio::task::spawn_local(async move {
                tokio::time::sleep(ramp.mul_f64(n as f64 / streams as f64)).await;
                let mut outcomes = Vec::with_capacity(shape.rounds);
                for round in 0..shape.rounds {
                    let opened = || {
                        if round == 0 {
                            open.set(open.get() + 1);
                            if open.get() == streams {
                                // For somebody who wants to look at the other end now.
                                eprintln!("all open after {} ms", began.elapsed().as_millis());
                            }
                        }
                    };
                    outcomes.push(client.stream(opened).await);
                }
                outcomes
            })
        })
        .collect();
    let mut outcomes = Vec::new();
    for task in tasks {
        match task.await {
            Ok(ended) => outcomes.extend(ended),
            Err(error) => {
                let failure = Some(error.to_string());
                outcomes.push(Outcome { failure, ..Outcome::default() });
            }
        }
    }
    report(&outcomes, &plan, began.elapsed())
}

fn report(outcomes: &[Outcome], plan: &Plan, took: Duration) -> usize {
    let mut failures = BTreeMap::<&str, usize>::new();
    for failure in outcomes.iter().filter_map(|outcome| outcome.failure.as_deref()) {
        *failures.entry(failure).or_default() += 1;
    }
    let failed: usize = failures.values().sum();
    let first = outcomes.iter().filter_map(|outcome| Some(outcome.first_event?.as_secs_f64() * 1e3)).collect();
    let pace = plan.gap.as_secs_f64() * 1e3;
    let late = outcomes.iter().flat_map(|outcome| &outcome.gaps).map(|gap| (gap.as_secs_f64() * 1e3 - pace).max(0.0));
    let deltas: u64 = outcomes.iter().map(|outcome| outcome.deltas).sum();
    let line = json!({
        "streams": outcomes.len(),
        "failed": failed,
        "deltas": deltas,
        "expected": plan.events * outcomes.len() as u64,
        "seconds": round(took.as_secs_f64()),
        "streams_per_second": round(outcomes.len() as f64 / took.as_secs_f64()),
        "deltas_per_second": (deltas as f64 / took.as_secs_f64()).round(),
        "first_event_ms": spread(first),
        // How much more than upstream's pace lies between two writes.
        "late_ms": spread(late.collect()),
        "failures": failures,
    });
    println!("{line}");
    failed
}

fn spread(mut numbers: Vec<f64>) -> serde_json::Value {
    numbers.sort_by(f64::total_cmp);
    let at = |share: f64| numbers.get(((numbers.len() as f64 * share).ceil() as usize).max(1) - 1).map(|ms| round(*ms));
    json!({ "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "max": at(1.0) })
}

/// Three digits after the point.
fn round(number: f64) -> f64 {
    (number * 1e3).round() / 1e3
}
