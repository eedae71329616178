//! What upstream said is passed on without secrets (K48): the entry of the fuzz target `said` and of `tests/said.rs`.

use kiro_messages::proto::said::{GONE, KnownSecrets, Said, without_tokens};
use kiro_messages::secret::Secret;

/// Characters that are passed on (TS25).
const MAX_CHARS: usize = 1_000;
/// As many bytes in a row of a known secret are never passed on.
const WINDOW: usize = 12;

/// What nobody may read, known or not, in a form in which upstream writes it.
const TOLD: [&str; 10] = [
    "aoaAAAAAGxyzzzzzz-token-1",
    "aorAAAAAGx7Zrefresh",
    "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.e30.x",
    "sk-ant-api03-abcdef",
    "Ab3Ab3Ab3Ab3Ab3Ab3Ab3Ab3Ab3Ab3Ab3Ab3",
    "arn:aws:codewhisperer:us-east-1:111122223333:profile/EEEE1",
    "111122223333",
    "someone.else@mail.example.org",
    "d-9067012345.0aa11bb2-3c4d-5e6f-7a8b-9c0d1e2f3a4b",
    "00000000-0000-4000-8000-000000000000",
];
/// A secret of the call: nothing about it looks like one.
const KNOWN: &str = "ordinary looking words that are a token";
/// What stands between: a blank, a bracket, a quote or the end of a sentence on either side.
const BETWEEN: [&str; 10] = [" ", " is wrong, ", "\"", "{\"a\":\"", "<b>", "\n", " (", ") ", "; ", " é "];

/// Any bytes: as a text, and as the recipe of one.
pub fn run(data: &[u8]) {
    let known = KnownSecrets::new([Secret::new(KNOWN)]);
    any_text(&String::from_utf8_lossy(data), &known);
    let (text, told) = recipe(data);
    let said = any_text(&text, &known);
    for secret in told {
        assert!(!said.contains(secret), "{secret} in {said}");
    }
    any_bytes(data, &known);
}

/// A bound, and no part of the known secret.
fn any_text(text: &str, known: &KnownSecrets) -> String {
    let said = Said::new(text, known).as_str().to_owned();
    assert!(said.chars().count() <= MAX_CHARS);
    holds_nothing_known(said.as_bytes());
    // A text in which nothing was hidden is passed on as it came.
    if !said.contains(GONE) {
        assert!(text.starts_with(&said));
    }
    said
}

/// Tokens go, every other byte stays.
fn any_bytes(data: &[u8], known: &KnownSecrets) {
    let middle = data.len() / 2;
    let bytes = [&data[..middle], b" ", KNOWN.as_bytes(), b" ", &data[middle..]].concat();
    let left = without_tokens(bytes.clone(), known);
    holds_nothing_known(&left);
    let mut rest = &bytes[..];
    let kept = String::from_utf8_lossy(GONE.as_bytes()).into_owned();
    for piece in split(&left, kept.as_bytes()) {
        let at = (0..=rest.len().saturating_sub(piece.len())).find(|at| rest[*at..].starts_with(piece));
        let at = at.unwrap_or_else(|| panic!("{:?} isn't what came", String::from_utf8_lossy(piece)));
        rest = &rest[at + piece.len()..];
    }
}

fn split<'a>(bytes: &'a [u8], by: &[u8]) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    let mut from = 0;
    let mut at = 0;
    while at + by.len() <= bytes.len() {
        if bytes[at..].starts_with(by) {
            pieces.push(&bytes[from..at]);
            at += by.len();
            from = at;
        } else {
            at += 1;
        }
    }
    pieces.push(&bytes[from..]);
    pieces
}

fn holds_nothing_known(bytes: &[u8]) {
    for part in KNOWN.as_bytes().windows(WINDOW) {
        assert!(!bytes.windows(WINDOW).any(|window| window == part), "{}", String::from_utf8_lossy(bytes));
    }
}

/// Secrets with something between them, as the bytes say, and which.
fn recipe(data: &[u8]) -> (String, Vec<&'static str>) {
    let mut text = String::new();
    let mut told = Vec::new();
    for pair in data.chunks_exact(2).take(40) {
        text.push_str(BETWEEN[usize::from(pair[0]) % BETWEEN.len()]);
        let secret = TOLD.get(usize::from(pair[1]) % (TOLD.len() + 1)).copied().unwrap_or(KNOWN);
        text.push_str(secret);
        told.push(secret);
    }
    text.push(' ');
    (text, told)
}
