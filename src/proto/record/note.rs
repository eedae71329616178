//! `lastErrorMessage`: one line that people read and programs parse (R27).

use std::fmt;

use jiff::Timestamp;

use super::read::{self, rfc3339};

/// A parsed `lastErrorMessage`. It displays as it is written: one line of at most 200 characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// `cool-down until <time>: <cause>`
    CoolDown {
        /// When the account may be tried again.
        until: Timestamp,
        /// Why it rests.
        cause: String,
    },
    /// `quota exhausted until <time>: <cause>`
    Quota {
        /// When the quota resets.
        until: Timestamp,
        /// Which quota.
        cause: String,
    },
    /// `ejected: <cause>`
    Ejected {
        /// Why only a person can bring it back.
        cause: String,
    },
    /// Anything else: the cause of a counted failure, or what another program wrote.
    Plain(String),
}

const COOL_DOWN: &str = "cool-down until ";
const QUOTA: &str = "quota exhausted until ";
const EJECTED: &str = "ejected: ";
const REJECTED: &str = "refresh token rejected (";
const MAX_CHARS: usize = 200;

impl Note {
    /// Reads a message; one whose prefix doesn't parse is [`Note::Plain`].
    pub fn parse(message: &str) -> Self {
        let until = |rest: &str| -> Option<(Timestamp, String)> {
            let (time, cause) = rest.split_once(": ").unwrap_or((rest.trim_end_matches(':'), ""));
            Some((read::timestamp(time)?, cause.to_owned()))
        };
        if let Some((until, cause)) = message.strip_prefix(COOL_DOWN).and_then(until) {
            return Self::CoolDown { until, cause };
        }
        if let Some((until, cause)) = message.strip_prefix(QUOTA).and_then(until) {
            return Self::Quota { until, cause };
        }
        match message.strip_prefix(EJECTED) {
            Some(cause) => Self::Ejected { cause: cause.to_owned() },
            None => Self::Plain(message.to_owned()),
        }
    }

    /// The short fingerprint of the refresh token that an ejection names (R41), to see whether it was replaced (R47).
    pub fn rejected_fingerprint(&self) -> Option<&str> {
        let Self::Ejected { cause } = self else { return None };
        let after = cause.split_once(REJECTED).or_else(|| cause.split_once("client registration expired ("))?.1;
        let (digits, _) = after.split_once(')')?;
        (digits.len() == 8 && digits.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(digits)
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut head, cause) = match self {
            Self::CoolDown { until, cause } => (format!("{COOL_DOWN}{}: ", rfc3339(*until)), cause),
            Self::Quota { until, cause } => (format!("{QUOTA}{}: ", rfc3339(*until)), cause),
            Self::Ejected { cause } => (EJECTED.to_owned(), cause),
            Self::Plain(cause) => (String::new(), cause),
        };
        let line = |c: char| if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') { ' ' } else { c };
        let cause: String = cause.chars().map(line).collect();
        // A plain cause must not be read back as a mark.
        if head.is_empty() && [COOL_DOWN, QUOTA, EJECTED].iter().any(|prefix| cause.starts_with(prefix)) {
            head.push_str("failure: ");
        }
        let room = MAX_CHARS - head.chars().count();
        f.write_str(&head)?;
        f.write_str(&cause.chars().take(room).collect::<String>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn marks_are_written_and_read_back() {
        let until = time("2026-11-23T10:01:00Z");
        for (note, text) in [
            (
                Note::CoolDown { until, cause: "429 rate limited".into() },
                "cool-down until 2026-11-23T10:01:00.000Z: 429 rate limited",
            ),
            (
                Note::Quota { until, cause: "MONTHLY_REQUEST_COUNT".into() },
                "quota exhausted until 2026-11-23T10:01:00.000Z: MONTHLY_REQUEST_COUNT",
            ),
            (Note::Ejected { cause: "suspended".into() }, "ejected: suspended"),
            (Note::Plain("503: busy".into()), "503: busy"),
        ] {
            assert_eq!(note.to_string(), text);
            assert_eq!(Note::parse(text), note);
        }
    }

    #[test]
    fn a_broken_mark_is_plain_text() {
        for text in ["cool-down until tomorrow: x", "cool-down until ", "quota exhausted until : x", "ejected"] {
            assert_eq!(Note::parse(text), Note::Plain(text.into()));
        }
        let sly = Note::Plain("ejected:\nby upstream's own words".into()).to_string();
        assert_eq!(sly, "failure: ejected: by upstream's own words");
        assert_eq!(Note::parse(&sly), Note::Plain(sly.clone()));
        let Note::CoolDown { cause, .. } = Note::parse("cool-down until 2026-11-23T10:01:00Z") else {
            panic!("no mark")
        };
        assert_eq!(cause, "");
    }

    #[test]
    fn a_message_is_one_line_of_200_characters() {
        let long = Note::Ejected { cause: "é\n".repeat(300) }.to_string();
        assert_eq!(long.chars().count(), 200);
        assert!(!long.contains('\n'));
    }

    #[test]
    fn the_rejected_token_is_named_by_its_fingerprint() {
        let note = Note::parse("ejected: refresh token rejected (bd473e5d) in us-east-1; log in again");
        assert_eq!(note.rejected_fingerprint(), Some("bd473e5d"));
        let note = Note::parse("ejected: client registration expired (bd473e5d); log in again");
        assert_eq!(note.rejected_fingerprint(), Some("bd473e5d"));
        for text in
            ["ejected: suspended", "refresh token rejected (bd473e5d)", "ejected: refresh token rejected (bd47)"]
        {
            assert_eq!(Note::parse(text).rejected_fingerprint(), None, "{text}");
        }
    }
}
