//! Upstream's own words, made fit to be passed on.
//!
//! Upstream's texts may hold what it was sent: the access token, the profile's ARN, ids and addresses of people.
//! [`Said`] is the only form in which they are kept, and it removes the secrets when it is made. So no log line, answer to
//! a client, mark, metric label or error of the addon can forget to. The model's own answer doesn't pass here.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

use crate::secret::Secret;

/// Replaces each secret.
pub const GONE: &str = "[redacted]";

/// Characters that are kept of a text (TS25).
const MAX_CHARS: usize = 1_000;
/// Bytes of a text that are read; the rest is dropped.
const MAX_READ: usize = 64 * 1024;
/// A run of this many characters of a known secret is removed, wherever the secret was cut.
const WINDOW: usize = 12;
/// Shorter known secrets aren't searched for: ordinary words would match them.
const SHORTEST: usize = 4;
/// Least length of a value behind a name: a shorter one may be a word.
const VALUE: usize = 8;
/// Characters of an account's id that may be shown.
const TOLD_OF_ID: usize = 8;
/// Least length of an unknown token.
const LONG: usize = 32;

/// The secrets of a call: its token, its machine id, the whole id of its account. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct KnownSecrets(Arc<[Secret]>);

impl KnownSecrets {
    /// The secrets of a call with this token and this machine id, for the account of this id.
    pub fn of_call(token: &Secret, machine_id: &str, account: &Arc<str>) -> Self {
        let account = (account.len() > TOLD_OF_ID).then(|| account.clone().into());
        Self::new([token.clone(), Secret::new(machine_id)].into_iter().chain(account))
    }

    /// These secrets; those under 4 bytes are left out.
    pub fn new(secrets: impl IntoIterator<Item = Secret>) -> Self {
        Self(secrets.into_iter().filter(|secret| secret.expose().len() >= SHORTEST).collect())
    }
}

/// Upstream's text without tokens, ARNs, account numbers, ids and e-mail addresses, at most 1,000 characters long.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said(String);

impl Said {
    /// Removes known secrets and everything that looks like one, then cuts to 1,000 characters.
    pub fn new<'t>(text: impl Into<Cow<'t, str>>, known: &KnownSecrets) -> Self {
        let mut text = text.into();
        if text.len() > MAX_READ {
            let end = text.floor_char_boundary(MAX_READ);
            text = Cow::Owned(text[..end].to_owned());
        }
        let hidden = secrets_in(text.as_bytes(), known, true);
        let mut said = if hidden.is_empty() {
            text.into_owned()
        } else {
            String::from_utf8_lossy(&without(text.as_bytes(), hidden)).into_owned()
        };
        if said.len() > MAX_CHARS
            && let Some((at, _)) = said.char_indices().nth(MAX_CHARS)
        {
            said.truncate(at);
        }
        Self(said)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Said {
    fn from(text: &str) -> Self {
        Self::new(text, &KnownSecrets::default())
    }
}

impl From<String> for Said {
    fn from(text: String) -> Self {
        Self::new(text, &KnownSecrets::default())
    }
}

impl Deref for Said {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl PartialEq<str> for Said {
    fn eq(&self, other: &str) -> bool {
        self.0 == other
    }
}

impl PartialEq<&str> for Said {
    fn eq(&self, other: &&str) -> bool {
        self.0 == *other
    }
}

/// Any bytes without known secrets and without anything that looks like a token: for dumps of requests, where addresses
/// and numbers belong to the prompt.
pub fn without_tokens(bytes: Vec<u8>, known: &KnownSecrets) -> Vec<u8> {
    let hidden = secrets_in(&bytes, known, false);
    if hidden.is_empty() { bytes } else { without(&bytes, hidden) }
}

/// The places that must not pass; `people`: names of people and accounts too.
fn secrets_in(bytes: &[u8], known: &KnownSecrets, people: bool) -> Vec<Range<usize>> {
    let mut hidden = Vec::new();
    find_known(bytes, known, &mut hidden);
    find_named(bytes, &mut hidden);
    let mut from = 0;
    while let Some(begin) = bytes[from..].iter().position(|byte| is_of_a_word(*byte)) {
        let begin = from + begin;
        let end = bytes[begin..].iter().position(|byte| !is_of_a_word(*byte)).map_or(bytes.len(), |end| begin + end);
        look_at(&bytes[begin..end], begin, people, &mut hidden);
        from = end;
    }
    hidden
}

fn without(bytes: &[u8], mut hidden: Vec<Range<usize>>) -> Vec<u8> {
    hidden.sort_by_key(|range| range.start);
    let mut out = Vec::with_capacity(bytes.len());
    let mut from = 0;
    for range in hidden {
        // Ranges that touch are one.
        if range.start > from || (range.start == 0 && from == 0) {
            out.extend_from_slice(&bytes[from..range.start]);
            out.extend_from_slice(GONE.as_bytes());
        }
        from = from.max(range.end);
    }
    out.extend_from_slice(&bytes[from..]);
    out
}

fn find_known(bytes: &[u8], known: &KnownSecrets, hidden: &mut Vec<Range<usize>>) {
    let mut windows = HashSet::new();
    for secret in known.0.iter() {
        let secret = secret.expose().as_bytes();
        match secret.len() {
            0..SHORTEST => {}
            SHORTEST..WINDOW => {
                hidden.extend(memchr::memmem::find_iter(bytes, secret).map(|at| at..at + secret.len()));
            }
            _ => windows.extend(secret.windows(WINDOW)),
        }
    }
    if windows.is_empty() {
        return;
    }
    let mut open: Option<Range<usize>> = None;
    for (at, window) in bytes.windows(WINDOW).enumerate() {
        if !windows.contains(window) {
            continue;
        }
        match &mut open {
            Some(range) if at <= range.end => range.end = at + WINDOW,
            _ => hidden.extend(open.replace(at..at + WINDOW)),
        }
    }
    hidden.extend(open);
}

/// Values behind a name that says what they are: `Bearer …`, `"accessToken":"…"`, `refresh_token=…`.
fn find_named(bytes: &[u8], hidden: &mut Vec<Range<usize>>) {
    const NAMES: [&[u8]; 7] =
        [b"accesstoken", b"refreshtoken", b"idtoken", b"clientsecret", b"apikey", b"password", b"bearer"];
    // Names are written in many ways: compared without `_` and `-`, in lower case, from each word's end backwards.
    let named = |end: usize, name: &[u8]| {
        let mut at = end;
        for letter in name.iter().rev() {
            loop {
                let Some(before) = at.checked_sub(1) else { return false };
                at = before;
                match bytes[at] {
                    b'_' | b'-' => {}
                    byte if byte.to_ascii_lowercase() == *letter => break,
                    _ => return false,
                }
            }
        }
        true
    };
    for last in memchr::memchr3_iter(b'n', b't', b'y', bytes)
        .chain(memchr::memchr3_iter(b'N', b'T', b'Y', bytes))
        .chain(memchr::memchr2_iter(b'd', b'D', bytes))
        .chain(memchr::memchr2_iter(b'r', b'R', bytes))
    {
        let end = last + 1;
        let Some(name) =
            NAMES.iter().find(|name| name.last() == Some(&bytes[last].to_ascii_lowercase()) && named(end, name))
        else {
            continue;
        };
        let gap = bytes[end..].iter().take(8).take_while(|byte| b" \t\r\n\"'\\:=".contains(byte)).count();
        let says = bytes[end..end + gap].iter().any(|byte| matches!(byte, b':' | b'='));
        if gap == 0 || !(says || *name == b"bearer") {
            continue;
        }
        let from = end + gap;
        let length = bytes[from..].iter().take_while(|byte| is_of_a_token(**byte)).count();
        let value = &bytes[from..from + length];
        if length >= VALUE && (says || length > 20 || value.iter().any(u8::is_ascii_digit)) {
            hidden.push(from..from + length);
        }
    }
}

/// Examines a run of characters without a blank or a bracket, which begins at `at`.
fn look_at(word: &[u8], at: usize, people: bool, hidden: &mut Vec<Range<usize>>) {
    let mut hide = |range: Range<usize>| hidden.push(at + range.start..at + range.end);
    let end = word.len() - word.iter().rev().take_while(|byte| matches!(byte, b'.' | b':' | b'=' | b'@')).count();
    const BEGINNINGS: [&[u8]; 7] = [b"aoaAAAAA", b"aorAAAAA", b"ksk_", b"sk-ant-", b"eyJ", b"AKIA", b"ASIA"];
    for beginning in BEGINNINGS {
        for found in memchr::memmem::find_iter(word, beginning) {
            let token = word[found..].iter().take_while(|byte| is_of_a_token(**byte)).count();
            let least = beginning.len() + if beginning.len() < 5 && !beginning.ends_with(b"_") { 16 } else { 8 };
            if token >= least {
                hide(found..found + token);
            }
        }
    }
    if !people {
        return;
    }
    if let Some(found) = word.windows(4).position(|four| four.eq_ignore_ascii_case(b"arn:")) {
        hide(found..end.max(found + 4));
    }
    for sign in memchr::memchr_iter(b'@', word) {
        let before = word[..sign].iter().rev().take_while(|byte| is_of_an_address(**byte)).count();
        let behind = word[sign + 1..].iter().take_while(|byte| is_of_an_address(**byte)).count();
        // The host of `user:password@host` may have no dot.
        let password = memchr::memmem::find(&word[..sign], b"://").map(|scheme| scheme + 3);
        match password {
            Some(from) if from < sign => hide(from..sign),
            _ if before > 0 && word[sign + 1..sign + 1 + behind].contains(&b'.') => {
                hide(sign - before..sign + 1 + behind)
            }
            _ => {}
        }
    }
    for (from, part) in parts(word, |byte| byte.is_ascii_digit()) {
        // Numbers of AWS accounts.
        if part.len() == 12 {
            hide(from..from + 12);
        }
    }
    for (from, part) in parts(word, |byte| byte.is_ascii_hexdigit() || byte == b'-') {
        let uuid = |at: usize| part.get(at..at + 36).is_some_and(is_uuid);
        let mut place = 0;
        while place + 36 <= part.len() {
            if uuid(place) {
                hide(from + place..from + place + 36);
                place += 36;
            } else {
                place += 1;
            }
        }
        // A directory of IAM Identity Center, in front of a user's id.
        if part.len() >= 12 && part.starts_with(b"d-") && part[2..12].iter().all(u8::is_ascii_hexdigit) {
            hide(from..from + 12);
        }
    }
    for (from, part) in parts(word, |byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'+' | b'=')) {
        let has = |of: fn(&u8) -> bool| part.iter().any(of);
        let mixed = has(u8::is_ascii_lowercase) && has(u8::is_ascii_uppercase) && has(u8::is_ascii_digit);
        if part.len() >= LONG && mixed {
            hide(from..from + part.len());
        }
    }
}

/// The runs of such bytes, each with its place.
fn parts(word: &[u8], of: impl Fn(u8) -> bool + Copy) -> impl Iterator<Item = (usize, &[u8])> {
    let mut from = 0;
    std::iter::from_fn(move || {
        let begin = from + word.get(from..)?.iter().position(|byte| of(*byte))?;
        let length = word[begin..].iter().take_while(|byte| of(**byte)).count();
        from = begin + length;
        Some((begin, &word[begin..begin + length]))
    })
}

fn is_uuid(text: &[u8]) -> bool {
    text.iter().enumerate().all(|(at, byte)| match at {
        8 | 13 | 18 | 23 => *byte == b'-',
        _ => byte.is_ascii_hexdigit(),
    })
}

fn is_of_a_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.~+/=:%".contains(&byte)
}

fn is_of_an_address(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte >= 0x80 || b"-_.+%".contains(&byte)
}

fn is_of_a_word(byte: u8) -> bool {
    is_of_a_token(byte) || byte == b'@' || byte >= 0x80
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> String {
        Said::from(text).to_string()
    }

    #[test]
    fn anything_that_looks_like_a_secret_or_a_person_is_removed() {
        for (text, wanted) in [
            ("", ""),
            ("Improperly formed request.", "Improperly formed request."),
            ("REQUEST_BODY_INVALID", "REQUEST_BODY_INVALID"),
            (
                "messages.12.content.3: tooluse_Ab12Ab12Ab12Ab12Ab12Ab unknown",
                "messages.12.content.3: tooluse_Ab12Ab12Ab12Ab12Ab12Ab unknown",
            ),
            ("maximum value of 128000, 1795428000000 ms", "maximum value of 128000, 1795428000000 ms"),
            ("model claude-opus-5-20260101 needs 0.11.133", "model claude-opus-5-20260101 needs 0.11.133"),
            ("the bearer token is invalid", "the bearer token is invalid"),
            ("the bearer: none", "the bearer: none"),
            ("the bearer presented nothing", "the bearer presented nothing"),
            ("authorization: Bearer abc.def-ghi_123;", "authorization: Bearer [redacted];"),
            ("BEARER%20 x bearer\tabcdefgh1", "BEARER%20 x bearer\t[redacted]"),
            (r#"{"accessToken":"secret-1234","x":1}"#, r#"{"accessToken":"[redacted]","x":1}"#),
            (r#"{\"refresh_token\": \"secret-1234\"}"#, r#"{\"refresh_token\": \"[redacted]\"}"#),
            ("CLIENT-SECRET = abcdefgh, ok", "CLIENT-SECRET = [redacted], ok"),
            ("the key sk-ant-api03-abcdef, aoaAAAAAGxyzzzzz.1", "the key [redacted], [redacted]"),
            ("token=aoaAAAAAGxyzzzzzz%3AMGU%2B is bad", "token=[redacted] is bad"),
            ("<eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.e30.x>", "<[redacted]>"),
            ("for arn:aws:codewhisperer:us-east-1:111122223333:profile/EEEE1.", "for [redacted]."),
            ("User d-9067012345.0aa11bb2-3c4d-5e6f-7a8b-9c0d1e2f3a4b is", "User [redacted].[redacted] is"),
            ("account 111122223333 (someone.else+x@mail.example.org)", "account [redacted] ([redacted])"),
            ("ünïcode@exämple.org", "[redacted]"),
            ("proxy http://me:pass@proxy:3128/ said no", "proxy http://[redacted]@proxy:3128/ said no"),
            ("opaque Ab3Ab3Ab3Ab3Ab3Ab3Ab3Ab3Ab3Ab3Ab3Ab3 here", "opaque [redacted] here"),
            ("a@b and @x", "a@b and @x"),
        ] {
            assert_eq!(said(text), wanted);
        }
    }

    #[test]
    fn known_secrets_are_removed_wherever_they_were_cut() {
        let known =
            KnownSecrets::new([Secret::new("ordinary words are a token"), Secret::new("t0ken-yy"), Secret::new("abc")]);
        let said = |text: &str| Said::new(text, &known).to_string();
        assert_eq!(said("xordinary words are a tokenx"), "x[redacted]x");
        assert_eq!(said("words are a tok and t0ken-yy."), "[redacted] and [redacted].");
        assert_eq!(said("abc words"), "abc words");
    }

    #[test]
    fn a_text_is_cut_when_its_secrets_are_gone_ts25() {
        let token = "aoaAAAAAG".to_owned() + &"x".repeat(2_000);
        let text = format!("{} {token} {}", "é".repeat(900), "é".repeat(900));
        let said = Said::from(text.as_str());
        assert_eq!(said.chars().count(), MAX_CHARS);
        assert!(said.contains("é [redacted] é"));
        assert!(Said::from("é".repeat(MAX_READ)).chars().all(|c| c == 'é'));
    }

    #[test]
    fn from_bytes_only_tokens_are_removed() {
        let known = KnownSecrets::new([Secret::new("t0ken-yyyy")]);
        let bytes = b"\xff\x00t0ken-yyyy\xfe a@b.org arn:x Bearer abcdefgh1".to_vec();
        assert_eq!(without_tokens(bytes, &known), b"\xff\x00[redacted]\xfe a@b.org arn:x Bearer [redacted]");
    }
}
