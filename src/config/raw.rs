//! Settings as given: their texts and sources.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::forms::{parse_bytes, parse_duration, without_password};
use super::table::setting;
use super::{ConfigError, Form, SETTINGS, Setting};
use crate::secret::Secret;

/// Where a value came from; a later one wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The table's default.
    Default,
    /// The TOML file.
    File,
    /// The environment, by the predecessor's name.
    Alias,
    /// The environment.
    Environment,
    /// A JavaScript option.
    Option,
    /// The command line.
    Flag,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Source::Default => "default",
            Source::File => "config file",
            Source::Alias => "environment (old name)",
            Source::Environment => "environment",
            Source::Option => "option",
            Source::Flag => "flag",
        })
    }
}

/// The settings that were given, as text, each with its source. [`RawConfig::resolve`] parses them.
#[derive(Clone, Default)]
pub struct RawConfig {
    said: BTreeMap<&'static str, (Source, String, String)>,
    doubts: Vec<String>,
}

impl fmt::Debug for RawConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Only the names: values may be secrets.
        f.debug_list().entries(self.said.keys()).finish()
    }
}

impl RawConfig {
    /// Takes the process's own environment, in which names and values need not be text.
    ///
    /// # Errors
    /// The value of one of our settings isn't text. Other variables may hold anything.
    pub fn from_os_env(vars: impl IntoIterator<Item = (OsString, OsString)>) -> Result<Self, ConfigError> {
        let mut texts = Vec::new();
        for (name, value) in vars {
            let Ok(name) = name.into_string() else { continue };
            match value.into_string() {
                Ok(value) => texts.push((name, value)),
                Err(_) if is_setting(&name) => {
                    return Err(ConfigError::new(format!("{name}: the value is not UTF-8 text")));
                }
                Err(_) => {}
            }
        }
        Ok(Self::from_env(texts))
    }

    /// Takes the environment. Empty values count as unset. Unknown names belong to other programs, but a name that
    /// looks like a mistyped setting is among the [`doubts`](Self::doubts).
    pub fn from_env(vars: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut raw = Self::default();
        for (name, value) in vars {
            let is_value = |setting: &Setting| setting.form == Form::ProfileArn;
            if value.is_empty() && !SETTINGS.iter().any(|setting| setting.env == name && is_value(setting)) {
                continue;
            }
            if let Some(setting) = SETTINGS.iter().find(|s| s.env == name) {
                raw.say(setting, Source::Environment, &name, value);
            } else if let Some(setting) = SETTINGS.iter().find(|s| s.alias == Some(name.as_str())) {
                raw.say(setting, Source::Alias, &name, of_the_predecessor(setting, value));
            } else if name.starts_with("GO_KIRO_") {
                raw.predecessors(&name, &value);
            } else if name.starts_with("KIRO_") || name.starts_with("REDIS_") {
                raw.doubts.extend(meant(&name).map(|meant| format!("{name} is no setting: did you mean {meant}?")));
            }
        }
        raw.doubts.sort_unstable();
        raw
    }

    /// Takes a name of the predecessor's that is no alias. What has no place here gets a sentence: nothing else has names
    /// like these.
    fn predecessors(&mut self, name: &str, value: &str) {
        let doubt = match name {
            // The predecessor's setting is a switch, ours names a format.
            "GO_KIRO_LOG_JSON" => {
                let format = if matches!(value, "1" | "true") { "json" } else { "pretty" };
                return self.say(const { setting("KIRO_LOG_FORMAT") }, Source::Alias, name, format.into());
            }
            // There it counts connections to a host, and requests wait for one; here a request too many gets 529.
            "GO_KIRO_MAX_CONNS" => {
                let setting = const { setting("KIRO_MAX_CONNS") };
                if let Form::Integer(_, most) = setting.form {
                    self.say(setting, Source::Alias, name, most.to_string());
                }
                "limited connections to a host and is read as no limit: KIRO_MAX_CONNS limits requests at once"
                    .to_owned()
            }
            "GO_KIRO_DEBUG_DUMP" | "GO_KIRO_DEBUG_DIR" | "GO_KIRO_ERROR_DUMP" => {
                "isn't read: KIRO_DEBUG_DUMP_DIR is the folder for dumps of failed requests".to_owned()
            }
            _ => match meant(name) {
                Some(meant) => format!("is no setting: did you mean {meant}?"),
                None => "is no setting here; kiro-server --help has them all".to_owned(),
            },
        };
        self.doubts.push(format!("{name} {doubt}"));
    }

    /// A sentence for each name in the environment that looks like a setting but isn't one. It may be another
    /// program's, so it isn't an error, and its value isn't repeated.
    pub fn doubts(&self) -> &[String] {
        &self.doubts
    }

    /// Takes a flag by its name without dashes.
    ///
    /// # Errors
    /// The name is unknown.
    pub fn set_flag(&mut self, flag: &str, value: &str) -> Result<(), ConfigError> {
        let setting = SETTINGS
            .iter()
            .find(|s| s.flag == Some(flag))
            .ok_or_else(|| ConfigError::new(format!("--{flag}: unknown flag; see --help")))?;
        self.say(setting, Source::Flag, &format!("--{flag}"), value.to_owned());
        Ok(())
    }

    /// Takes a JavaScript option by its camelCase name. Durations are milliseconds, sizes bytes, both as digits.
    ///
    /// # Errors
    /// The name is unknown: the error lists the nearest one.
    pub fn set_option(&mut self, name: &str, value: &str) -> Result<(), ConfigError> {
        let Some(setting) = SETTINGS.iter().find(|s| s.js() == name) else {
            let names: Vec<String> = SETTINGS.iter().map(Setting::js).collect();
            let hint = nearest(name, names.iter().map(String::as_str));
            return Err(ConfigError::new(format!("{name}: unknown option{hint}")));
        };
        let text = if setting.form.is_duration() {
            let digits = value.parse::<f64>().ok().filter(|ms| ms.is_finite() && *ms >= 0.0);
            let Some(ms) = digits else {
                return Err(ConfigError::new(format!("{name}: {value:?} is not a number of milliseconds")));
            };
            format!("{}ms", ms.round())
        } else {
            value.to_owned()
        };
        self.say(setting, Source::Option, name, text);
        Ok(())
    }

    /// Takes a TOML document: keys are the flags' names (`port = 8081`, `health-cooldown = "60s"`).
    ///
    /// # Errors
    /// Not TOML, an unknown key, or a value that is neither text, number nor boolean.
    pub fn read_toml(&mut self, text: &str, file: &str) -> Result<(), ConfigError> {
        let table: toml::Table = text.parse().map_err(|error| toml_mistake(text, &error, file))?;
        for (key, value) in table {
            let Some(setting) = SETTINGS.iter().find(|s| s.file_key() == key) else {
                let keys: Vec<String> = SETTINGS.iter().map(Setting::file_key).collect();
                let hint = nearest(&key, keys.iter().map(String::as_str));
                return Err(ConfigError::new(format!("{file}: {key}: unknown key{hint}")));
            };
            let text = match value {
                toml::Value::String(text) => text,
                toml::Value::Integer(number) => number.to_string(),
                toml::Value::Boolean(flag) => flag.to_string(),
                other => {
                    return Err(ConfigError::new(format!(
                        "{file}: {key}: must be {}, not {}",
                        setting.form.allowed(),
                        other.type_str()
                    )));
                }
            };
            self.say(setting, Source::File, &format!("{file}: {key}"), text);
        }
        Ok(())
    }

    fn say(&mut self, setting: &'static Setting, source: Source, name: &str, value: String) {
        let weaker = self.said.get(setting.env).is_some_and(|(old, ..)| *old > source);
        if !weaker {
            self.said.insert(setting.env, (source, name.to_owned(), value));
        }
    }

    pub(super) fn is_said(&self, setting: &Setting) -> bool {
        self.said.get(setting.env).is_some_and(|(_, _, value)| !value.is_empty())
    }

    /// Each setting with its text and source, secrets redacted: `--print-config`.
    pub fn shown(&self) -> Vec<(&'static Setting, String, Source)> {
        SETTINGS
            .iter()
            .map(|setting| {
                let (source, text) = match self.said.get(setting.env) {
                    Some((source, _, text)) => (*source, text.clone()),
                    None => (Source::Default, setting.default.to_owned()),
                };
                let shown = match setting.form {
                    Form::Secret if !text.is_empty() && source != Source::Default => "(redacted)".to_owned(),
                    Form::Url(_) | Form::UpstreamUrl => without_password(&text),
                    _ => text,
                };
                (setting, shown, source)
            })
            .collect()
    }

    /// The names of settings whose values differ from those of `other`, secrets too.
    pub fn differing(&self, other: &Self) -> Vec<&'static str> {
        let said = |raw: &Self, setting: &Setting| {
            raw.said.get(setting.env).map_or_else(|| setting.default.to_owned(), |(_, _, text)| text.clone())
        };
        SETTINGS
            .iter()
            .filter(|setting| said(self, setting) != said(other, setting))
            .map(|setting| setting.env)
            .collect()
    }

    /// The text of a setting, in its form.
    ///
    /// # Errors
    /// The text doesn't have its form. The same holds for every method below.
    pub(super) fn text(&self, setting: &Setting) -> Result<String, ConfigError> {
        let text = self.trimmed(setting);
        if setting.form.fits(text) { Ok(text.to_owned()) } else { Err(self.refuse(setting, &setting.form.allowed())) }
    }

    /// The text, unless it is empty.
    pub(super) fn optional(&self, setting: &Setting) -> Result<Option<String>, ConfigError> {
        if self.trimmed(setting).is_empty() { Ok(None) } else { self.text(setting).map(Some) }
    }

    pub(super) fn path(&self, setting: &Setting) -> Result<Option<PathBuf>, ConfigError> {
        Ok(self.optional(setting)?.map(PathBuf::from))
    }

    pub(super) fn secret(&self, setting: &Setting) -> Result<Option<Secret>, ConfigError> {
        Ok(self.optional(setting)?.map(Secret::new))
    }

    pub(super) fn integer<T: TryFrom<u64>>(&self, setting: &Setting) -> Result<T, ConfigError> {
        self.parsed(setting, |text| {
            let Form::Integer(low, high) = setting.form else { return None };
            let number = text.parse().ok().filter(|number| (low..=high).contains(number))?;
            T::try_from(number).ok()
        })
    }

    pub(super) fn duration(&self, setting: &Setting) -> Result<Duration, ConfigError> {
        let least = match setting.form {
            Form::DurationFrom(least) => Duration::from_millis(least),
            _ => Duration::ZERO,
        };
        self.parsed(setting, |text| parse_duration(text).filter(|time| *time >= least))
    }

    pub(super) fn bytes(&self, setting: &Setting) -> Result<usize, ConfigError> {
        self.parsed(setting, parse_bytes)
    }

    /// None: not set.
    pub(super) fn optional_bytes(&self, setting: &Setting) -> Result<Option<usize>, ConfigError> {
        self.parsed(setting, |text| if text.is_empty() { Some(None) } else { parse_bytes(text).map(Some) })
    }

    pub(super) fn switch(&self, setting: &Setting) -> Result<bool, ConfigError> {
        self.parsed(setting, |text| match text {
            "true" | "1" | "on" => Some(true),
            "false" | "0" | "off" => Some(false),
            _ => None,
        })
    }

    pub(super) fn address(&self, setting: &Setting) -> Result<Option<SocketAddr>, ConfigError> {
        self.parsed(setting, |text| match text {
            "" | "off" => Some(None),
            _ => match text.strip_prefix("localhost:") {
                Some(port) => format!("127.0.0.1:{port}").parse().ok().map(Some),
                None => text.parse().ok().map(Some),
            },
        })
    }

    fn parsed<T>(&self, setting: &Setting, parse: impl FnOnce(&str) -> Option<T>) -> Result<T, ConfigError> {
        parse(self.trimmed(setting)).ok_or_else(|| self.refuse(setting, &setting.form.allowed()))
    }

    fn trimmed(&self, setting: &Setting) -> &str {
        self.said.get(setting.env).map_or(setting.default, |(_, _, text)| text.trim())
    }

    /// The error for a value in the wrong form. A value that may hold a password is not repeated.
    pub(super) fn refuse(&self, setting: &Setting, allowed: &str) -> ConfigError {
        let (name, value) = match self.said.get(setting.env) {
            Some((_, name, value)) => (name.as_str(), value.as_str()),
            None => (setting.env, setting.default),
        };
        if matches!(setting.form, Form::Secret | Form::Url(_)) {
            return ConfigError::new(format!("{name}: must be {allowed}"));
        }
        // A URL may have been given for another setting.
        let value = without_password(value);
        ConfigError::new(format!("{name}: {value:?} is not allowed; must be {allowed}"))
    }
}

/// The place where a document isn't TOML. The library's message would repeat the line, which may hold a key or a
/// password.
fn toml_mistake(text: &str, error: &toml::de::Error, file: &str) -> ConfigError {
    let before = error.span().and_then(|span| text.get(..span.start));
    let place = before.map_or_else(String::new, |before| {
        let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        format!("line {line}, column {column}: ")
    });
    ConfigError::new(format!("{file}: {place}{}", error.message()))
}

/// A value in the predecessor's spelling: seconds without a unit, words in any case.
fn of_the_predecessor(setting: &Setting, value: String) -> String {
    match setting.form {
        form if form.is_duration() && value.bytes().all(|byte| byte.is_ascii_digit()) => value + "s",
        Form::Word(_) => value.to_ascii_lowercase(),
        // Its connections carry one command at a time, ours many: larger numbers become our maximum.
        Form::Integer(_, most)
            if setting.env == "KIRO_REDIS_POOL_SIZE" && value.parse().is_ok_and(|n: u64| n > most) =>
        {
            most.to_string()
        }
        _ => value,
    }
}

fn is_setting(name: &str) -> bool {
    name == "GO_KIRO_LOG_JSON" || SETTINGS.iter().any(|s| s.env == name || s.alias == Some(name))
}

/// The setting whose name is two changes away at most.
fn meant(name: &str) -> Option<&'static str> {
    near(name, SETTINGS.iter().flat_map(|s| [Some(s.env), s.alias]).flatten(), 2)
}

/// `; did you mean x?` for the closest known name, when it is close.
pub fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    near(name, known, 3).map(|known| format!("; did you mean {known}?")).unwrap_or_default()
}

/// The known name that needs the fewest changes, at most `most`.
fn near<'a>(name: &str, known: impl Iterator<Item = &'a str>, most: usize) -> Option<&'a str> {
    let best = known.map(|k| (distance(&name.to_ascii_lowercase(), &k.to_ascii_lowercase()), k)).min();
    best.filter(|(changes, _)| *changes <= most).map(|(_, known)| known)
}

fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let cost = if x == y { diagonal } else { diagonal + 1 };
            diagonal = row[j + 1];
            row[j + 1] = cost.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
