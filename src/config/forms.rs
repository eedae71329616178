//! The forms of values, and their parsers.

use std::time::Duration;

use crate::proto::address;
use crate::proto::kiro::{client_identity, external, profile};
use crate::proto::record::{DEFAULT_REGION, is_region};

/// The form a setting's value must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Any text.
    Text,
    /// Any text, never shown.
    Secret,
    /// A whole number from the first to the second.
    Integer(u64, u64),
    /// `500ms`, `5s`, `2m`, `1h`, or several of these in a row (`1m30s`).
    Duration,
    /// A duration of at least so many ms.
    DurationFrom(u64),
    /// A number of bytes, or with a unit: `64KiB`, `32MiB`, `10MB`.
    Bytes,
    /// One of these words.
    Word(&'static [&'static str]),
    /// `redis`, `file:PATH` or `aiclient:PATH`.
    Store,
    /// `https://…`, or `http://…` to a loopback address; it may hold `{region}`.
    UpstreamUrl,
    /// A comma list of AWS regions.
    Regions,
    /// A comma list of hosts of identity providers (K84); it may be empty.
    ProviderHosts,
    /// The ARN of a profile; empty means none.
    ProfileArn,
    /// An absolute URL with one of these schemes.
    Url(&'static [&'static str]),
    /// Three numbers with dots between them, such as `1.1.70` (K102).
    Version,
    /// `true` or `false`.
    Switch,
    /// An address and a port, such as `127.0.0.1:8082`.
    Address,
}

impl Form {
    /// Whether a text has this form. Numbers, times, sizes, switches and addresses are parsed instead.
    pub(super) fn fits(self, text: &str) -> bool {
        match self {
            Form::Word(words) => words.contains(&text),
            Form::UpstreamUrl => address::endpoint(text, DEFAULT_REGION).is_some(),
            Form::Regions => text.split(',').all(|region| is_region(region.trim())),
            Form::ProviderHosts => external::Hosts::parse(text).is_some(),
            Form::ProfileArn => {
                text.is_empty() || text.split(':').nth(2) == Some("codewhisperer") && profile::region_of(text).is_some()
            }
            Form::Url(schemes) => {
                text.split_once("://").is_some_and(|(scheme, rest)| schemes.contains(&scheme) && !rest.is_empty())
            }
            Form::Version => parse_version(text).is_some(),
            Form::Text
            | Form::Secret
            | Form::Integer(..)
            | Form::Duration
            | Form::DurationFrom(_)
            | Form::Bytes
            | Form::Store => true,
            Form::Switch | Form::Address => true,
        }
    }

    /// Whether it is a time, which is a number of milliseconds in JavaScript.
    pub fn is_duration(self) -> bool {
        matches!(self, Self::Duration | Self::DurationFrom(_))
    }

    /// The allowed form as an error says it.
    pub fn allowed(self) -> String {
        match self {
            Form::Text | Form::Secret => "a text".into(),
            Form::Integer(low, high) => format!("a whole number from {low} to {high}"),
            Form::Duration => "a duration such as 500ms, 5s or 2m".into(),
            Form::DurationFrom(least) => format!("a duration such as 500ms, 5s or 2m, and at least {least}ms"),
            Form::Bytes => "a size in bytes, or such as 64KiB, 32MiB".into(),
            Form::Word(words) => format!("one of {}", words.join(", ")),
            Form::Store => "redis, file:PATH or aiclient:PATH".into(),
            Form::UpstreamUrl => address::ALLOWED.into(),
            Form::Regions => "a comma list of regions such as us-east-1,eu-central-1".into(),
            Form::ProviderHosts => {
                "a comma list of host names such as sso.example.org, or suffixes such as .auth.example.org; `only:` in \
                 front replaces the built-in ones"
                    .into()
            }
            Form::ProfileArn => "a profile's ARN (arn:…:codewhisperer:…), or empty".into(),
            Form::Url(schemes) => {
                format!(
                    "a URL that begins with {}",
                    schemes.iter().map(|s| format!("{s}://")).collect::<Vec<_>>().join(", ")
                )
            }
            Form::Version => "a version such as 1.1.70".into(),
            Form::Switch => "true or false".into(),
            Form::Address => "an address such as 127.0.0.1:8082".into(),
        }
    }
}

/// The numbers of a version (K102): at most four, four and five digits. Their order is the versions' order.
pub fn parse_version(text: &str) -> Option<[u32; 3]> {
    let mut parts = text.split('.');
    let mut number = |most: usize| {
        let part = parts.next()?;
        let fits = (1..=most).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit());
        fits.then(|| part.parse::<u32>().ok()).flatten()
    };
    let version = [number(4)?, number(4)?, number(5)?];
    parts.next().is_none().then_some(version)
}

/// Whether Kiro refuses clients of this version (K102, [`client_identity::VERSION_FLOOR`]).
pub fn is_below_floor(version: &str) -> bool {
    parse_version(version) < parse_version(client_identity::VERSION_FLOOR)
}

/// The text without everything before its last `@`: a password may be written unescaped and hold an `@` itself.
pub(super) fn without_password(text: &str) -> String {
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme, rest)) if !scheme.contains('@') => (format!("{scheme}://"), rest),
        _ => (String::new(), text),
    };
    match rest.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}(redacted)@{host}"),
        None => text.to_owned(),
    }
}

/// `500ms`, `5s`, `2m`, `1h`, also in a row; a bare `0` is zero.
pub fn parse_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    if text.is_empty() {
        return None;
    }
    let mut rest = text;
    let mut total = 0.0f64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        total += number
            * match &rest[..end] {
                "ms" => 0.001,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return None,
            };
        rest = &rest[end..];
    }
    Duration::try_from_secs_f64(total).ok().filter(|d| *d <= Duration::from_secs(30 * 24 * 3600))
}

pub(super) fn parse_bytes(text: &str) -> Option<usize> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: usize = text[..digits].parse().ok()?;
    let factor = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1024,
        "kb" => 1000,
        "m" | "mib" => 1024 * 1024,
        "mb" => 1_000_000,
        "gib" => 1024 * 1024 * 1024,
        _ => return None,
    };
    number.checked_mul(factor).filter(|n| (1..=1 << 40).contains(n))
}
