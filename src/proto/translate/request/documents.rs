//! Which documents go out, and under which names (TR27).

use std::collections::HashSet;

use crate::proto::json::tree::Text;
use crate::proto::kiro::request::Document;
use crate::proto::messages::request::{DocumentFormat, MAX_DOCUMENTS};

/// A document that goes out as such.
#[derive(Clone, Copy)]
pub(super) struct Base64Document<'r> {
    pub title: Option<&'r Text<'r>>,
    pub format: DocumentFormat,
    pub data: &'r Text<'r>,
}

/// The documents of a conversation.
pub(super) struct Documents<'r> {
    /// In the order of the conversation.
    fates: std::vec::IntoIter<Fate>,
    sent: Vec<Document<'r>>,
}

/// Where a document goes.
pub(super) enum Fate {
    /// It belongs to the current message.
    Current,
    /// It stood in an earlier message and moves to the current one.
    Moved { name: String },
    /// It stood in an earlier message, and there is no room.
    Omitted,
}

impl<'r> Documents<'r> {
    /// Each with the place of its turn. Those of the current one all go out (M15 sees to it that they fit), then the
    /// newest of history while there is room.
    pub fn of(documents: Vec<(usize, Base64Document<'r>)>, current: usize) -> Self {
        let omitted = documents.len().saturating_sub(MAX_DOCUMENTS);
        let mut names = GivenNames::default();
        let mut sent = Vec::new();
        let fates: Vec<_> = (documents.into_iter().enumerate())
            .map(|(index, (place, document))| {
                if index < omitted {
                    return Fate::Omitted;
                }
                let name = names.unique(&document.title.map(|title| title.decode()).unwrap_or_default());
                let fate = if place == current { Fate::Current } else { Fate::Moved { name: name.clone() } };
                sent.push(Document { name, format: document.format.kiro_name(), data: document.data.by_ref() });
                fate
            })
            .collect();
        Self { fates: fates.into_iter(), sent }
    }

    /// The fate of the next document in the order of the conversation.
    pub fn next_fate(&mut self) -> Fate {
        self.fates.next().unwrap_or(Fate::Omitted)
    }

    /// The documents of the Kiro request, in the order of the conversation.
    pub fn into_sent(self) -> Vec<Document<'r>> {
        self.sent
    }
}

/// Names that were given.
#[derive(Default)]
struct GivenNames {
    given: HashSet<String>,
}

impl GivenNames {
    fn unique(&mut self, title: &str) -> String {
        let name = name(title);
        let mut unique = name.clone();
        let mut number = 2;
        while !self.given.insert(unique.clone()) {
            unique = format!("{name}-{number}");
            number += 1;
        }
        unique
    }
}

/// A title as a document name: without extension, in upstream's alphabet, `document` when nothing is left.
fn name(title: &str) -> String {
    let mut name = String::new();
    for char in without_extension(title).chars() {
        let char = match char {
            'A'..='Z' | 'a'..='z' | '0'..='9' | '(' | ')' | '[' | ']' | ' ' => char,
            _ => '-',
        };
        let repeats = matches!(char, '-' | ' ') && name.ends_with(char);
        if !repeats {
            name.push(char);
        }
    }
    let name = name.trim_matches(['-', ' ']);
    if name.is_empty() { "document".to_owned() } else { name.to_owned() }
}

/// A title without its file extension: a dot and up to five letters and digits, not digits alone (`v1.2` has none).
fn without_extension(title: &str) -> &str {
    match title.rsplit_once('.') {
        Some((stem, extension))
            if !stem.is_empty()
                && (1..=5).contains(&extension.len())
                && extension.bytes().all(|byte| byte.is_ascii_alphanumeric())
                && extension.bytes().any(|byte| byte.is_ascii_alphabetic()) =>
        {
            stem
        }
        _ => title,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn document_names_follow_upstreams_alphabet_tr27() {
        for (title, expected) in [
            ("Q3 (final).pdf", "Q3 (final)"),
            ("报告.pdf", "document"),
            ("", "document"),
            ("a__b  c--d.tar.gz", "a-b c-d-tar"),
            (" -x- ", "x"),
            ("release v1.2", "release v1-2"),
            ("report.signed", "report-signed"),
            (".pdf", "pdf"),
            ("[draft] notes", "[draft] notes"),
            ("a - b", "a - b"),
        ] {
            assert_eq!(name(title), expected, "{title}");
        }
    }

    #[test]
    fn repeated_names_are_numbered_tr27() {
        let mut names = GivenNames::default();
        let given: Vec<_> = ["r.pdf", "r-2.pdf", "r.csv", "r"].into_iter().map(|title| names.unique(title)).collect();
        assert_eq!(given, ["r", "r-2", "r-3", "r-4"]);
    }
}
