//! A CPU profile: samples by `pprof`, written as profile.proto.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use pprof::{ProfilerGuardBuilder, Report};
use prost::Message;

use super::flame;
use super::profile::{Function, Label, Line, Location, Profile, Sample, ValueType};

/// Samples per second and CPU. Not a round number, so that it doesn't fall into step with periodic work.
const FREQUENCY: i32 = 99;
/// Libraries in which no sample is taken: unwinding there can wait for a lock that the interrupted thread holds.
const NOT_INSIDE: [&str; 4] = ["libc", "libgcc", "pthread", "vdso"];

/// Takes samples for `length`; the process runs on meanwhile.
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

/// Each stack from the outermost function inwards, the thread's name first, with its number of samples.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// By hand from profile.proto: field number and wire type, then the value.
    #[test]
    fn the_wire_form_is_that_of_profile_proto() {
        let profile = Profile {
            sample_type: vec![ValueType { ty: 1, unit: 2 }],
            sample: vec![Sample {
                location_id: vec![7, 8],
                value: vec![3, 300],
                label: vec![Label { key: 4, str: 5 }],
            }],
            location: vec![Location { id: 7, line: vec![Line { function_id: 9, line: 10 }] }],
            function: vec![Function { id: 9, name: 1, system_name: 2, filename: 3, start_line: 4 }],
            string_table: vec![String::new(), "a".to_owned()],
            time_nanos: 11,
            duration_nanos: 12,
            period_type: Some(ValueType { ty: 1, unit: 2 }),
            period: 13,
        };
        let expected: [&[u8]; 9] = [
            b"\x0a\x04\x08\x01\x10\x02",
            b"\x12\x0f\x0a\x02\x07\x08\x12\x03\x03\xac\x02\x1a\x04\x08\x04\x10\x05",
            b"\x22\x08\x08\x07\x22\x04\x08\x09\x10\x0a",
            b"\x2a\x0a\x08\x09\x10\x01\x18\x02\x20\x03\x28\x04",
            b"\x32\x00\x32\x01a",
            b"\x48\x0b",
            b"\x50\x0c",
            b"\x5a\x04\x08\x01\x10\x02",
            b"\x60\x0d",
        ];
        assert_eq!(profile.encode_to_vec(), expected.concat());
    }
}
