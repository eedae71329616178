//! What commands print: tables and bars for people, JSON for machines.

use std::fmt;
use std::io::Write as _;

use jiff::Timestamp;
use kiro_messages::error::Error;
use kiro_messages::pool::AccountInfo;
use kiro_messages::program::{command, said};
use kiro_messages::proto::kiro::profile::AccountKind;
use kiro_messages::store::StoreError;
use serde_json::Value;

/// The exit code of a mistake in the configuration.
pub const EXIT_CONFIG: u8 = 2;

/// A command that could not be done.
#[derive(Debug)]
pub struct CommandFailure {
    message: String,
    exit_code: u8,
}

impl CommandFailure {
    /// It could not be done: exit code 1.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), exit_code: 1 }
    }

    /// The command was used wrongly: exit code 2.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { message: message.into(), exit_code: EXIT_CONFIG }
    }

    pub fn exit_code(&self) -> u8 {
        self.exit_code
    }
}

impl fmt::Display for CommandFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<StoreError> for CommandFailure {
    fn from(error: StoreError) -> Self {
        Self::new(error.to_string())
    }
}

impl From<Error> for CommandFailure {
    fn from(error: Error) -> Self {
        Self::usage(error.message())
    }
}

/// Prints a text that ends in a line feed.
pub fn show(text: &str) -> Result<(), CommandFailure> {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(said(text).as_bytes()).and_then(|()| out.flush());
    written.map_err(|error| CommandFailure::new(format!("standard output: {error}")))
}

/// Writes a problem to standard error, in one line. If that can't be written, only the exit code shows it.
pub fn complain(message: impl fmt::Display) {
    // A file's name could hold control characters for the terminal. Line breaks stay.
    let message = message.to_string();
    let lines: Vec<_> = said(&message).lines().map(without_controls).collect();
    let _nobody_listens = super::log::say(&format!("{}: {}\n", command(), lines.join("\n")));
}

/// Prints JSON, indented.
pub fn show_json(value: &Value) -> Result<(), CommandFailure> {
    show(&format!("{value:#}\n"))
}

/// Lines of cells as aligned columns, two spaces apart. The first line is the head. In a line with fewer cells than the
/// head, the last cell (a sentence, say) runs over the columns to its right and widens none.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let bound = |row: &Vec<String>| if row.len() < columns { row.len().saturating_sub(1) } else { columns };
    let widest =
        |column: usize| rows.iter().filter(|row| column < bound(row)).map(|row| width(&row[column])).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(widest).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, wanted) in row.iter().zip(&widths) {
            line.push_str(cell);
            line.push_str(&" ".repeat(wanted.saturating_sub(width(cell)) + 2));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Twenty cells, filled up to `share` (0 to 1); something used shows at least one.
pub fn bar(share: f64) -> String {
    const CELLS: usize = 20;
    let share = if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 };
    let filled = ((share * CELLS as f64).round() as usize).max(usize::from(share > 0.0));
    format!("{}{}", "█".repeat(filled), "░".repeat(CELLS - filled))
}

/// A text from the store as it may appear on a terminal: one line, no control characters, at most `max` characters.
pub fn plain(text: &str, max: usize) -> String {
    let line = without_controls(text);
    let line = line.trim();
    if line.chars().count() <= max {
        return line.to_owned();
    }
    line.chars().take(max.saturating_sub(1)).chain(['…']).collect()
}

fn without_controls(text: &str) -> String {
    text.chars().map(|c| if c.is_control() || is_invisible(c) { ' ' } else { c }).collect()
}

pub use kiro_messages::pool::short;

/// `in 52 min`, `3 h ago`, `now`.
pub fn relative(time: Timestamp, now: Timestamp) -> String {
    let seconds = time.as_second() - now.as_second();
    let span = duration(seconds.unsigned_abs());
    match seconds {
        0 => "now".to_owned(),
        1.. => format!("in {span}"),
        _ => format!("{span} ago"),
    }
}

/// `40 s`, `52 min`, `3 h`, `12 days`, to the nearest one: what ends in 90 days still does so a second later.
fn duration(seconds: u64) -> String {
    let nearest = |unit: u64| (seconds + unit / 2) / unit;
    match seconds {
        0..=99 => format!("{seconds} s"),
        100..=5_999 => format!("{} min", nearest(60)),
        6_000..=172_799 => format!("{} h", nearest(3600)),
        _ => format!("{} days", nearest(86_400)),
    }
}

/// Up to two decimals, none where it is whole.
pub fn number(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Columns that a text takes on a terminal.
fn width(text: &str) -> usize {
    text.chars().map(|c| if is_wide(c) { 2 } else { 1 }).sum()
}

fn is_wide(c: char) -> bool {
    matches!(u32::from(c),
        0x1100..=0x115F | 0x2E80..=0xA4CF | 0xAC00..=0xD7A3 | 0xF900..=0xFAFF | 0xFE30..=0xFE6F | 0xFF00..=0xFF60
        | 0xFFE0..=0xFFE6 | 0x1F300..=0x1FAFF | 0x20000..=0x3FFFD)
}

/// A character that changes the direction of text or has no width: with it a name could pretend to be another.
fn is_invisible(c: char) -> bool {
    matches!(u32::from(c), 0x200B..=0x200F | 0x2028..=0x202E | 0x2066..=0x2069 | 0xFEFF)
}

/// A name as tables show it; `-` for none.
pub fn name(name: Option<&str>) -> String {
    name.map(|name| plain(name, 24)).filter(|name| !name.is_empty()).unwrap_or_else(|| "-".to_owned())
}

/// `idc (enterprise)`, `idc (builder-id)`, or the method alone when that says everything (R75).
pub fn method(info: &AccountInfo) -> String {
    match info.kind {
        AccountKind::BuilderId | AccountKind::Enterprise => {
            format!("{} ({})", info.method.as_str(), info.kind.as_str())
        }
        AccountKind::ApiKey | AccountKind::External | AccountKind::Social | AccountKind::Unsure => {
            info.method.as_str().to_owned()
        }
    }
}

/// The cause at the bottom: outer ones repeat the address.
pub fn innermost(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    plain(&cause.to_string(), 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_wide_characters_too() {
        let rows =
            [["ID", "NAME", "X"], ["1", "工作", "y"], ["22", "w", ""]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(table(&rows), "ID  NAME  X\n1   工作  y\n22  w\n");
    }

    #[test]
    fn a_sentence_at_the_end_of_a_shorter_line_widens_no_column() {
        let rows = vec![vec!["ID", "PLAN", "USED"], vec!["1", "a long sentence"], vec!["2", "Pro", "5"]];
        let rows: Vec<_> = rows.into_iter().map(|row| row.into_iter().map(str::to_owned).collect()).collect();
        assert_eq!(table(&rows), "ID  PLAN  USED\n1   a long sentence\n2   Pro   5\n");
    }

    #[test]
    fn bars_are_bounded() {
        assert_eq!(bar(0.0), "░".repeat(20));
        assert_eq!(bar(0.001).chars().filter(|c| *c == '█').count(), 1);
        assert_eq!(bar(0.5).chars().filter(|c| *c == '█').count(), 10);
        for full in [1.0, 7.5] {
            assert_eq!(bar(full), "█".repeat(20));
        }
        assert_eq!(bar(f64::NAN), "░".repeat(20));
    }

    #[test]
    fn a_name_can_not_steer_the_terminal() {
        assert_eq!(plain("a\u{1b}[31m\nb\u{202e}", 40), "a [31m b");
        assert_eq!(plain("abcdef", 4), "abc…");
    }

    #[test]
    fn times_are_shown_in_words() {
        let now: Timestamp = "2026-11-23T10:00:00Z".parse().unwrap();
        let at = |seconds: i64| Timestamp::from_second(now.as_second() + seconds).unwrap();
        for (seconds, text) in
            [(40, "in 40 s"), (3120, "in 52 min"), (-7200, "2 h ago"), (90 * 86_400 - 1, "in 90 days"), (0, "now")]
        {
            assert_eq!(relative(at(seconds), now), text);
        }
    }

    #[test]
    fn numbers_are_shown_as_short_as_possible() {
        assert_eq!([number(1000.0), number(140.75), number(0.5), number(0.0)], ["1000", "140.75", "0.5", "0"]);
    }
}
