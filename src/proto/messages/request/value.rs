//! Values, where they stand, and the sentence that says what is wrong with one (M18, M19).

use std::borrow::Cow;
use std::cell::RefCell;
use std::fmt;

use super::ignored::Ignored;
use crate::proto::json::tree::{Text, Value, ValueKind};
use crate::proto::messages::error::{ApiError, Cause, ErrorType};

/// Why a request is refused (M19): a path into the client's JSON and a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestError {
    /// `error.type` of the answer; its usual status is the answer's status.
    pub kind: ErrorType,
    /// Dots and zero-based indices: `messages.0.content.1.source.media_type`; `body` for the whole.
    pub path: String,
    /// What is wrong at that place, without a full stop.
    pub sentence: String,
    /// The cause, where a client's program needs more than the type.
    pub cause: Option<Cause>,
}

impl RequestError {
    /// The error as the client sees it: `{path}: {sentence}`.
    pub fn api_error(&self) -> ApiError {
        ApiError { cause: self.cause, ..ApiError::new(self.kind, self.to_string()) }
    }
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.sentence)
    }
}

impl std::error::Error for RequestError {}

pub(super) type Result<T> = std::result::Result<T, RequestError>;

/// The members of an object by name; null counts as absent.
pub(super) fn fields<'j, 'a, const N: usize>(object: Value<'j, 'a>, names: [&str; N]) -> [Option<Value<'j, 'a>>; N] {
    let mut found = [None; N];
    for (key, value) in object.members() {
        for (slot, name) in found.iter_mut().zip(names) {
            if key.is(name) {
                *slot = Some(value).filter(|value| value.kind() != ValueKind::Null);
            }
        }
    }
    found
}

pub(super) fn required<T>(field: Option<T>, at: Path<'_>) -> Result<T> {
    field.ok_or_else(|| at.error("field required"))
}

pub(super) fn object<'j, 'a>(value: Value<'j, 'a>, at: Path<'_>) -> Result<Value<'j, 'a>> {
    if value.kind() == ValueKind::Object { Ok(value) } else { Err(at.error("must be an object")) }
}

pub(super) fn array<'j, 'a>(value: Value<'j, 'a>, at: Path<'_>) -> Result<Value<'j, 'a>> {
    if value.kind() == ValueKind::Array { Ok(value) } else { Err(at.error("must be an array")) }
}

pub(super) fn string<'a>(value: Value<'_, 'a>, at: Path<'_>) -> Result<Text<'a>> {
    value.text().ok_or_else(|| at.error("must be a string"))
}

pub(super) fn not_empty_string<'a>(value: Value<'_, 'a>, at: Path<'_>) -> Result<Cow<'a, str>> {
    let text = string(value, at)?.into_decoded();
    if text.is_empty() { Err(at.error("must not be empty")) } else { Ok(text) }
}

pub(super) fn boolean(value: Value<'_, '_>, at: Path<'_>) -> Result<bool> {
    value.bool().ok_or_else(|| at.error("must be a boolean"))
}

/// An integer, written as digits alone, that is at least `least`; one that doesn't fit counts as the largest.
pub(super) fn integer_from(least: u64, value: Value<'_, '_>, at: Path<'_>) -> Result<u64> {
    let digits = value.raw();
    let (negative, magnitude) = match digits.strip_prefix('-') {
        Some(magnitude) => (true, magnitude),
        None => (false, digits),
    };
    if value.kind() != ValueKind::Number || !magnitude.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(at.error("must be an integer"));
    }
    let integer = if negative { 0 } else { magnitude.parse().unwrap_or(u64::MAX) };
    let too_small = integer < least || negative && magnitude != "0";
    if too_small { Err(at.error(format!("must be at least {least}"))) } else { Ok(integer) }
}

pub(super) fn one_of<const N: usize>(names: [&str; N]) -> String {
    format!("must be one of {}", names.map(|name| format!("'{name}'")).join(", "))
}

/// A place in the client's JSON, spelled out only when something is wrong there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Path<'p> {
    parent: Option<&'p Path<'p>>,
    step: Step,
    /// Takes the paths of features without effect (M80); none where there are none.
    ignored: Option<&'p RefCell<Ignored>>,
    /// It leads into a message before the last one of the user's.
    is_history: bool,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Field(&'static str),
    Index(usize),
}

impl<'p> Path<'p> {
    pub(super) const fn top(name: &'static str) -> Path<'static> {
        Path { parent: None, step: Step::Field(name), ignored: None, is_history: false }
    }

    /// The same, from which on features without effect are noted.
    pub(super) const fn noting(self, ignored: &'p RefCell<Ignored>) -> Self {
        Self { ignored: Some(ignored), ..self }
    }

    /// The same, in a message before the last one of the user's or not.
    pub(super) const fn in_history(self, is_history: bool) -> Self {
        Self { is_history, ..self }
    }

    pub(super) const fn is_history(&self) -> bool {
        self.is_history
    }

    pub(super) const fn field(&self, name: &'static str) -> Path<'_> {
        Path { parent: Some(self), step: Step::Field(name), ..*self }
    }

    pub(super) const fn index(&self, index: usize) -> Path<'_> {
        Path { parent: Some(self), step: Step::Index(index), ..*self }
    }

    /// What stands here has no effect (M80).
    pub(super) fn ignored(&self) {
        if let Some(ignored) = self.ignored {
            ignored.borrow_mut().add(&self.to_string());
        }
    }

    /// The same with the client's word for it.
    pub(super) fn ignored_as(&self, word: &str) {
        if let Some(ignored) = self.ignored {
            ignored.borrow_mut().add_named(&self.to_string(), word);
        }
    }

    pub(super) fn error(&self, sentence: impl Into<String>) -> RequestError {
        RequestError { kind: ErrorType::InvalidRequest, path: self.to_string(), sentence: sentence.into(), cause: None }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            write!(f, "{parent}.")?;
        }
        match self.step {
            Step::Field(name) => f.write_str(name),
            Step::Index(index) => write!(f, "{index}"),
        }
    }
}

/// A client's value in quotes, if it is a short name (M19).
pub(crate) fn quotable(value: &str) -> Option<String> {
    let is_short = value.chars().nth(64).is_none();
    // Invisible characters, and those that change the direction of others, could make the sentence say something else.
    let is_printable = |char: char| !char.is_control() && !char.escape_debug().eq(char.escape_unicode());
    (is_short && value.chars().all(is_printable)).then(|| format!("'{value}'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_short_printable_names_only_m19() {
        assert_eq!(quotable("x"), Some("'x'".into()));
        assert_eq!(quotable(&"é".repeat(64)).map(|text| text.chars().count()), Some(66));
        assert_eq!(quotable(&"é".repeat(65)), None);
        assert_eq!(quotable("it's \"漢字\" \\ 😀"), Some("'it's \"漢字\" \\ 😀'".into()));
        for hidden in ["a\nb", "\0", "a\u{202e}b", "a\u{2028}b", "\u{feff}a", "a\u{200b}b", "\u{e000}", "\u{85}"] {
            assert_eq!(quotable(hidden), None, "{hidden:?}");
        }
    }
}
