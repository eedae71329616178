//! A CPU profile: samples by `pprof`, written as profile.proto.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use pprof::{ProfilerGuardBuilder, Report};
use prost::Message;

use super::flame;

/// Samples a second and CPU. Not a round number, so that it doesn't beat in time with what it watches.
const FREQUENCY: i32 = 99;
/// Unwinding inside these can wait for a lock that the interrupted thread holds.
const NOT_INSIDE: [&str; 4] = ["libc", "libgcc", "pthread", "vdso"];

/// Samples for so long; the process goes on meanwhile.
pub(super) async fn take(length: Duration, svg: bool) -> Result<Vec<u8>, String> {
    let guard = ProfilerGuardBuilder::default()
        .frequency(FREQUENCY)
        .blocklist(&NOT_INSIDE)
        .build()
        .map_err(|error| error.to_string())?;
    tokio::time::sleep(length).await;
    // Looking up names takes a while.
    let made = tokio::task::spawn_blocking(move || {
        let report = guard.report().build().map_err(|error| error.to_string())?;
        drop(guard);
        Ok(if svg { flame::svg(&stacks(&report)).into_bytes() } else { proto(&report).encode_to_vec() })
    });
    made.await.map_err(|error| error.to_string())?
}

/// Each stack from the outermost function inwards, beginning with the thread's name, and how often it was met.
fn stacks(report: &Report) -> Vec<(Vec<String>, u64)> {
    let stack = |(frames, count): (&pprof::Frames, &isize)| {
        let names = frames.frames.iter().rev().flat_map(|frame| frame.iter().rev().map(pprof::Symbol::name));
        let whole = std::iter::once(frames.thread_name_or_id()).chain(names).collect();
        (whole, u64::try_from(*count).unwrap_or(0))
    };
    report.data.iter().map(stack).collect()
}

fn proto(report: &Report) -> Profile {
    let mut strings = Strings::default();
    let mut functions = HashMap::new();
    let mut profile = Profile::default();
    let period = 1_000_000_000 / i64::from(report.timing.frequency.max(1));
    let (samples, count) = (strings.add("samples"), strings.add("count"));
    let (cpu, nanoseconds) = (strings.add("cpu"), strings.add("nanoseconds"));
    let thread = strings.add("thread");
    profile.sample_type = vec![ValueType { ty: samples, unit: count }, ValueType { ty: cpu, unit: nanoseconds }];
    profile.period_type = Some(ValueType { ty: cpu, unit: nanoseconds });
    profile.period = period;
    profile.duration_nanos = i64::try_from(report.timing.duration.as_nanos()).unwrap_or(i64::MAX);
    let began = report.timing.start_time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    profile.time_nanos = i64::try_from(began.as_nanos()).unwrap_or(i64::MAX);
    for (frames, count) in &report.data {
        let mut locations = Vec::new();
        // One location a function: the innermost first.
        for symbol in frames.frames.iter().flatten() {
            let name = symbol.name();
            let next = functions.len() as u64 + 1;
            let id = *functions.entry(name.clone()).or_insert(next);
            if id == next {
                profile.function.push(Function {
                    id,
                    name: strings.add(&name),
                    system_name: strings.add(&symbol.sys_name()),
                    filename: strings.add(&symbol.filename()),
                    start_line: 0,
                });
                let line = Line { function_id: id, line: i64::from(symbol.lineno()) };
                profile.location.push(Location { id, line: vec![line] });
            }
            locations.push(id);
        }
        let count = i64::try_from(*count).unwrap_or(i64::MAX);
        let label = Label { key: thread, str: strings.add(&frames.thread_name_or_id()) };
        let value = vec![count, count.saturating_mul(period)];
        profile.sample.push(Sample { location_id: locations, value, label: vec![label] });
    }
    profile.string_table = strings.table;
    profile
}

/// The string table; its first entry is the empty string.
struct Strings {
    table: Vec<String>,
    places: HashMap<String, i64>,
}

impl Default for Strings {
    fn default() -> Self {
        Self { table: vec![String::new()], places: HashMap::from([(String::new(), 0)]) }
    }
}

impl Strings {
    fn add(&mut self, text: &str) -> i64 {
        if let Some(place) = self.places.get(text) {
            return *place;
        }
        let place = i64::try_from(self.table.len()).unwrap_or(0);
        self.table.push(text.to_owned());
        self.places.insert(text.to_owned(), place);
        place
    }
}

// The part of github.com/google/pprof/proto/profile.proto that a CPU profile needs. Numbers of strings are places in the
// string table.

#[derive(Clone, PartialEq, Message)]
struct Profile {
    #[prost(message, repeated, tag = "1")]
    sample_type: Vec<ValueType>,
    #[prost(message, repeated, tag = "2")]
    sample: Vec<Sample>,
    #[prost(message, repeated, tag = "4")]
    location: Vec<Location>,
    #[prost(message, repeated, tag = "5")]
    function: Vec<Function>,
    #[prost(string, repeated, tag = "6")]
    string_table: Vec<String>,
    #[prost(int64, tag = "9")]
    time_nanos: i64,
    #[prost(int64, tag = "10")]
    duration_nanos: i64,
    #[prost(message, optional, tag = "11")]
    period_type: Option<ValueType>,
    #[prost(int64, tag = "12")]
    period: i64,
}

#[derive(Clone, PartialEq, Message)]
struct ValueType {
    #[prost(int64, tag = "1")]
    ty: i64,
    #[prost(int64, tag = "2")]
    unit: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Sample {
    #[prost(uint64, repeated, tag = "1")]
    location_id: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    value: Vec<i64>,
    #[prost(message, repeated, tag = "3")]
    label: Vec<Label>,
}

#[derive(Clone, PartialEq, Message)]
struct Label {
    #[prost(int64, tag = "1")]
    key: i64,
    #[prost(int64, tag = "2")]
    str: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Location {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(message, repeated, tag = "4")]
    line: Vec<Line>,
}

#[derive(Clone, PartialEq, Message)]
struct Line {
    #[prost(uint64, tag = "1")]
    function_id: u64,
    #[prost(int64, tag = "2")]
    line: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Function {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(int64, tag = "2")]
    name: i64,
    #[prost(int64, tag = "3")]
    system_name: i64,
    #[prost(int64, tag = "4")]
    filename: i64,
    #[prost(int64, tag = "5")]
    start_line: i64,
}
