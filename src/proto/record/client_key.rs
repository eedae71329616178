//! Named client keys: one record a key, in a file or in a Redis hash (R108, R109). Only the SHA-256 of a key is kept.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::{hex, rfc3339};
use crate::proto::json::without_mark;

/// Most named keys of one place.
pub const MOST_KEYS: usize = 20_000;
/// Most bytes of the file.
pub const MOST_BYTES: u64 = 16 << 20;
/// Most characters of a name.
const MOST_NAME: usize = 64;
/// Most bytes of a record in Redis: what we read of it takes a few hundred.
const MOST_RECORD: usize = 64 << 10;
/// The name that metrics give to keys beyond their limit.
pub const OTHER: &str = "other";

/// SHA-256 of a client key. `Debug` doesn't show it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyDigest(pub [u8; 32]);

impl KeyDigest {
    /// Of the key's UTF-8 bytes. Digests have one length, so comparing them tells nothing about the length of a key.
    pub fn of(key: &str) -> Self {
        Self(Sha256::digest(key.as_bytes()).into())
    }

    /// 64 lower-case hex digits.
    fn parse(text: &str) -> Option<Self> {
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        let mut digest = [0; 32];
        if text.len() != 2 * digest.len() {
            return None;
        }
        for (byte, pair) in digest.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Some(Self(digest))
    }
}

impl fmt::Debug for KeyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// One named key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientKey {
    /// 1–64 of `[A-Za-z0-9._@-]`, beginning with a letter or digit.
    pub name: Arc<str>,
    /// Of the key.
    pub digest: KeyDigest,
    /// Default true.
    pub enabled: bool,
    /// From then on it is refused; none: it never ends.
    pub expires: Option<Timestamp>,
    /// Requests for an answer that may run at once in one process; none: no limit.
    pub max_inflight: Option<u32>,
    /// Requests for an answer a minute and process; none: no limit.
    pub rpm: Option<u32>,
}

/// Whether a named key opens the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyStanding {
    /// It does.
    Valid,
    /// `enabled: false`.
    Disabled,
    /// Its time is over.
    Expired,
}

impl KeyStanding {
    /// The word in lists.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::Disabled => "disabled",
            Self::Expired => "expired",
        }
    }
}

/// The members of a record, of any type. Others are not read.
#[derive(Deserialize)]
struct Members {
    name: Option<Value>,
    sha256: Option<Value>,
    enabled: Option<Value>,
    expires: Option<Value>,
    max_inflight: Option<Value>,
    rpm: Option<Value>,
}

#[derive(Deserialize)]
struct Document<'a> {
    #[serde(borrow)]
    keys: Vec<&'a RawValue>,
}

impl ClientKey {
    /// A record of the file; with `field`, one of the Redis hash, where the field is the name.
    ///
    /// # Errors
    /// A sentence that names the member and the allowed form, never a value.
    pub fn parse(record: &[u8], field: Option<&str>) -> Result<Self, String> {
        if record.len() > MOST_RECORD {
            return Err(format!("is longer than {MOST_RECORD} bytes"));
        }
        let members: Members = serde_json::from_slice(record).map_err(|error| unreadable(&error))?;
        let own = members.name.as_ref().and_then(Value::as_str);
        let name = field.or(own).ok_or("name: is missing, or no text")?;
        if !is_key_name(name) {
            return Err(NAME_FORM.to_owned());
        }
        let digest = members.sha256.as_ref().and_then(Value::as_str).and_then(KeyDigest::parse);
        let expires = match members.expires {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) => Some(parse_expiry(&text)?),
            Some(_) => return Err(EXPIRES_FORM.to_owned()),
        };
        Ok(Self {
            name: name.into(),
            digest: digest.ok_or("sha256: must be 64 lower-case hex digits: the SHA-256 of the key's UTF-8 bytes")?,
            enabled: match members.enabled {
                None | Some(Value::Null) => true,
                Some(Value::Bool(enabled)) => enabled,
                Some(_) => return Err("enabled: must be true or false".to_owned()),
            },
            expires,
            max_inflight: limit("max_inflight", members.max_inflight.as_ref())?,
            rpm: limit("rpm", members.rpm.as_ref())?,
        })
    }

    /// The record as JSON; `named`: with its name, as in the file.
    pub fn to_json(&self, named: bool) -> Value {
        let mut record = Map::new();
        if named {
            record.insert("name".to_owned(), json!(self.name));
        }
        record.insert("sha256".to_owned(), json!(hex(&self.digest.0)));
        record.insert("enabled".to_owned(), json!(self.enabled));
        if let Some(expires) = self.expires {
            record.insert("expires".to_owned(), json!(rfc3339(expires)));
        }
        for (name, limit) in [("max_inflight", self.max_inflight), ("rpm", self.rpm)] {
            if let Some(limit) = limit {
                record.insert(name.to_owned(), json!(limit));
            }
        }
        Value::Object(record)
    }

    /// Whether it opens the server at this time.
    pub fn standing(&self, now: Timestamp) -> KeyStanding {
        match self.expires {
            _ if !self.enabled => KeyStanding::Disabled,
            Some(end) if end <= now => KeyStanding::Expired,
            _ => KeyStanding::Valid,
        }
    }
}

const NAME_FORM: &str = "name: must be 1–64 characters of A–Z a–z 0–9 . _ @ -, begin with a letter or digit, and not be \
                         `other`, which metrics need";
const EXPIRES_FORM: &str = "expires: must be a time of RFC 3339, such as 2027-01-31T00:00:00Z";

/// Whether a key may have this name: it stands in logs and metrics.
pub fn is_key_name(name: &str) -> bool {
    (1..=MOST_NAME).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._@-".contains(&byte))
        && name.as_bytes()[0].is_ascii_alphanumeric()
        && name != OTHER
}

/// The end of a key, RFC 3339.
///
/// # Errors
/// A sentence with the allowed form.
pub fn parse_expiry(text: &str) -> Result<Timestamp, String> {
    text.parse().map_err(|_| EXPIRES_FORM.to_owned())
}

fn limit(name: &str, value: Option<&Value>) -> Result<Option<u32>, String> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64() {
            Some(limit @ 1..=1_000_000) => Ok(u32::try_from(limit).ok()),
            _ => Err(format!("{name}: must be a whole number from 1 to 1000000")),
        },
    }
}

/// The keys of a file's text, sorted by name.
///
/// # Errors
/// A sentence that names the record and the member, never a value. One bad record refuses all: the caller keeps the keys
/// that it has.
pub fn client_keys(text: &[u8]) -> Result<Vec<ClientKey>, String> {
    if text.len() as u64 > MOST_BYTES {
        return Err(format!("is larger than {MOST_BYTES} bytes"));
    }
    let document: Document<'_> = serde_json::from_slice(without_mark(text)).map_err(|error| unreadable(&error))?;
    fits(document.keys.len())?;
    let mut keys = Vec::with_capacity(document.keys.len());
    for (at, record) in document.keys.iter().enumerate() {
        let key = ClientKey::parse(record.get().as_bytes(), None);
        keys.push(key.map_err(|problem| format!("keys[{at}]: {problem}"))?);
    }
    distinct(keys)
}

/// The keys of a Redis hash, sorted by name.
///
/// # Errors
/// As [`client_keys`].
pub fn client_keys_of_hash<T: AsRef<[u8]>>(fields: &[(Vec<u8>, T)]) -> Result<Vec<ClientKey>, String> {
    fits(fields.len())?;
    let mut keys = Vec::with_capacity(fields.len());
    for (field, record) in fields {
        let name = std::str::from_utf8(field).ok().filter(|name| is_key_name(name));
        let name = name.ok_or_else(|| format!("a field's {NAME_FORM}"))?;
        let key = ClientKey::parse(record.as_ref(), Some(name));
        keys.push(key.map_err(|problem| format!("field {name}: {problem}"))?);
    }
    distinct(keys)
}

fn fits(count: usize) -> Result<(), String> {
    if count <= MOST_KEYS { Ok(()) } else { Err(format!("holds {count} keys; at most {MOST_KEYS} are taken")) }
}

/// A name that two keys have would be one caller in logs, and a key under two names nobody knows whose.
fn distinct(mut keys: Vec<ClientKey>) -> Result<Vec<ClientKey>, String> {
    keys.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some(pair) = keys.windows(2).find(|pair| pair[0].name == pair[1].name) {
        return Err(format!("two keys are called {}", pair[0].name));
    }
    let mut digests = HashSet::with_capacity(keys.len());
    match keys.iter().find(|key| !digests.insert(key.digest)) {
        Some(key) => Err(format!("{} is the same key as another one", key.name)),
        None => Ok(keys),
    }
}

/// What is wrong with a JSON text, without any of it.
fn unreadable(error: &serde_json::Error) -> String {
    if error.is_data() {
        return "must be a JSON object with the members of docs/operations.md, each at most once".to_owned();
    }
    format!("is not JSON (line {}, column {})", error.line(), error.column())
}

/// A file's text with one more key. All other members stay. `None`: a new file.
///
/// # Errors
/// The text can't be read, or wouldn't be good afterwards.
pub fn with_client_key(text: Option<&[u8]>, key: &ClientKey) -> Result<Vec<u8>, String> {
    edited(text.unwrap_or(br#"{"keys":[]}"#), |keys| keys.push(key.to_json(true)))
}

/// A file's text in which the key is enabled or disabled; `None` when there is no such key.
///
/// # Errors
/// As [`with_client_key`].
pub fn with_client_key_switched(text: &[u8], name: &str, enabled: bool) -> Result<Option<Vec<u8>>, String> {
    let mut found = false;
    let edited = edited(text, |keys| {
        let named = keys.iter_mut().filter(|key| key["name"] == name).filter_map(Value::as_object_mut);
        for key in named {
            key.insert("enabled".to_owned(), json!(enabled));
            found = true;
        }
    })?;
    Ok(found.then_some(edited))
}

/// A file's text without a key; `None` when there is no such key. The others may be bad: a key can always be taken away.
///
/// # Errors
/// The text can't be read.
pub fn without_client_key(text: &[u8], name: &str) -> Result<Option<Vec<u8>>, String> {
    let mut document = document(text)?;
    let keys = records(&mut document)?;
    let before = keys.len();
    keys.retain(|key| key["name"] != name);
    if keys.len() == before { Ok(None) } else { Ok(Some(written(&document))) }
}

/// A record of the hash that is enabled or disabled. Its other members stay.
///
/// # Errors
/// The record is not good.
pub fn switched(record: &[u8], name: &str, enabled: bool) -> Result<Vec<u8>, String> {
    ClientKey::parse(record, Some(name))?;
    let mut record = document(record)?;
    record["enabled"] = json!(enabled);
    Ok(record.to_string().into_bytes())
}

fn edited(text: &[u8], edit: impl FnOnce(&mut Vec<Value>)) -> Result<Vec<u8>, String> {
    let mut document = document(text)?;
    edit(records(&mut document)?);
    let text = written(&document);
    client_keys(&text)?;
    Ok(text)
}

fn document(text: &[u8]) -> Result<Value, String> {
    let document: Value = serde_json::from_slice(without_mark(text)).map_err(|error| unreadable(&error))?;
    if document.is_object() { Ok(document) } else { Err("must be a JSON object".to_owned()) }
}

fn records(document: &mut Value) -> Result<&mut Vec<Value>, String> {
    let keys = document.get_mut("keys").and_then(Value::as_array_mut);
    keys.ok_or_else(|| "keys: must be a list".to_owned())
}

fn written(document: &Value) -> Vec<u8> {
    format!("{document:#}\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn digest(n: usize) -> String {
        format!("{n:064x}")
    }

    fn file(records: &[Value]) -> Vec<u8> {
        json!({ "keys": records }).to_string().into_bytes()
    }

    fn names(text: &[u8]) -> Result<Vec<String>, String> {
        client_keys(text).map(|keys| keys.iter().map(|key| key.name.to_string()).collect())
    }

    #[test]
    fn a_record_is_read_with_its_defaults_r108() {
        let full = json!({
            "name": "ci", "sha256": A, "enabled": false, "expires": "2027-01-31T12:00:00+02:00",
            "max_inflight": 4, "rpm": 60, "note": "theirs",
        });
        let keys = client_keys(&file(&[json!({ "name": "b", "sha256": digest(1), "rpm": null }), full])).unwrap();
        let [b, ci] = &keys[..] else { panic!("{keys:?}") };
        assert_eq!(ci.digest, KeyDigest::of("abc"));
        assert_eq!((ci.enabled, ci.max_inflight, ci.rpm), (false, Some(4), Some(60)));
        assert_eq!(ci.expires.unwrap().to_string(), "2027-01-31T10:00:00Z");
        assert_eq!((&*b.name, b.enabled, b.expires, b.max_inflight, b.rpm), ("b", true, None, None, None));
        assert!(!format!("{keys:?}").contains("ba7816"), "no hash can be printed");
    }

    #[test]
    fn the_end_is_the_first_moment_at_which_a_key_is_wrong_r108() {
        let key = json!({ "name": "a", "sha256": A, "expires": "2027-01-01T00:00:00Z" });
        let key = client_keys(&file(&[key])).unwrap().remove(0);
        let end = key.expires.unwrap();
        let before = end - jiff::SignedDuration::from_millis(1);
        assert_eq!([key.standing(before), key.standing(end)], [KeyStanding::Valid, KeyStanding::Expired]);
        assert_eq!(ClientKey { enabled: false, ..key }.standing(end), KeyStanding::Disabled);
    }

    /// What a member must be, and values that it must not have. No complaint repeats a value.
    #[test]
    fn hostile_records_are_refused_by_the_members_name_r108() {
        let long = "n".repeat(10 << 20);
        for (member, values) in [
            (
                "name",
                vec![json!("a\u{1b}[31m"), json!("a\nb"), json!(""), json!("-a"), json!("other"), json!("ä"), json!(7)],
            ),
            ("name", vec![json!("n".repeat(65)), json!(null), json!("a b"), json!("a\"b")]),
            (
                "sha256",
                vec![json!(A.to_uppercase()), json!(&A[1..]), json!(format!("{A}0")), json!("secretsecret"), json!(1)],
            ),
            ("sha256", vec![json!(null), json!(""), json!("é".repeat(32))]),
            ("enabled", vec![json!("yes"), json!(1)]),
            (
                "expires",
                vec![json!("tomorrow"), json!(1_800_000_000), json!("2027-02-30T00:00:00Z"), json!("2027-01-01")],
            ),
            ("max_inflight", vec![json!(0), json!(-1), json!(1.5), json!("4"), json!(1_000_001)]),
            ("rpm", vec![json!(0), json!(u64::MAX), json!([])]),
        ] {
            for value in values {
                let mut record = json!({ "name": "a", "sha256": A });
                record[member] = value.clone();
                let refused = names(&file(&[json!({ "name": "good", "sha256": digest(7) }), record])).unwrap_err();
                assert!(refused.starts_with(&format!("keys[1]: {member}: ")), "{member} {value}: {refused}");
                assert!(!refused.contains("secret") && !refused.contains('\u{1b}'), "{refused}");
            }
        }
        let refused = names(&file(&[json!({ "name": long, "sha256": A })])).unwrap_err();
        assert_eq!(refused, "keys[0]: is longer than 65536 bytes");
    }

    #[test]
    fn hostile_files_are_refused_r108() {
        let pair = |a: (&str, usize), b: (&str, usize)| {
            file(&[a, b].map(|(name, n)| json!({ "name": name, "sha256": digest(n) })))
        };
        let million = format!("{{\"keys\":[{}{{}}]}}", "{},".repeat(999_999));
        let twice = format!(r#"{{"keys":[{{"name":"a","sha256":"{A}","sha256":"{A}"}}]}}"#);
        for (text, expected) in [
            (b"not JSON, secret".to_vec(), "is not JSON (line 1, column 2)"),
            (Vec::new(), "is not JSON (line 1, column 0)"),
            (b"[]".to_vec(), "must be a JSON object"),
            (br#"{"keys":"secret"}"#.to_vec(), "must be a JSON object"),
            (br#"{"key":[]}"#.to_vec(), "must be a JSON object"),
            (br#"{"keys":["secret"]}"#.to_vec(), "keys[0]: must be a JSON object"),
            ("[".repeat(1 << 20).into_bytes(), "is not JSON"),
            (twice.into_bytes(), "keys[0]: must be a JSON object with the members"),
            (pair(("a", 1), ("a", 2)), "two keys are called a"),
            (pair(("a", 1), ("b", 1)), "is the same key as another one"),
            (million.into_bytes(), "holds 1000000 keys; at most 20000 are taken"),
            (vec![b' '; MOST_BYTES as usize + 1], "is larger than 16777216 bytes"),
            (b"{\"keys\":[{\"name\":\"\xff\"}]}".to_vec(), "is not JSON"),
        ] {
            let refused = names(&text).unwrap_err();
            assert!(refused.contains(expected), "{expected}: {refused}");
            assert!(!refused.contains("secret"), "{refused}");
        }
        assert_eq!(names(br#"{"keys":[]}"#).unwrap(), Vec::<String>::new());
        assert!(names("\u{feff}{\"keys\":[]}".as_bytes()).unwrap().is_empty(), "as some editors write it");
    }

    #[test]
    fn a_hash_has_the_names_as_fields_r109() {
        let record = |n| json!({ "name": "ignored", "sha256": digest(n) }).to_string();
        let hash = |fields: &[(&[u8], String)]| {
            let fields: Vec<_> = fields.iter().map(|(name, record)| (name.to_vec(), record.clone())).collect();
            client_keys_of_hash(&fields).map(|keys| keys.iter().map(|key| key.name.to_string()).collect::<Vec<_>>())
        };
        assert_eq!(hash(&[(b"b", record(1)), (b"a", record(2))]).unwrap(), ["a", "b"]);
        assert!(hash(&[(b"a\xff", record(1))]).unwrap_err().starts_with("a field's name: "));
        assert!(hash(&[(b"a", "{".to_owned())]).unwrap_err().starts_with("field a: is not JSON"));
        assert!(hash(&[(b"a", record(1)), (b"b", record(1))]).unwrap_err().contains("the same key"));
        let many: Vec<_> = (0..=MOST_KEYS).map(|_| (b"a".to_vec(), "{}")).collect();
        assert!(client_keys_of_hash(&many).unwrap_err().contains("at most 20000"));
    }

    #[test]
    fn edits_keep_what_they_do_not_know_r108() {
        let text = format!(
            r#"{{"comment":"ours","keys":[{{"team":{{"id":1.50}},"name":"a","sha256":"{A}"}}],"more":12345678901234567890123}}"#
        );
        let key = ClientKey {
            name: "b".into(),
            digest: KeyDigest::of("k"),
            enabled: true,
            expires: "2027-01-01T00:00:00Z".parse().ok(),
            max_inflight: None,
            rpm: Some(5),
        };
        let added = with_client_key(Some(text.as_bytes()), &key).unwrap();
        assert_eq!(client_keys(&added).unwrap()[1], key);
        let off = with_client_key_switched(&added, "a", false).unwrap().unwrap();
        assert!(!client_keys(&off).unwrap()[0].enabled);
        let gone = without_client_key(&off, "b").unwrap().unwrap();
        assert_eq!(names(&gone).unwrap(), ["a"]);
        let shown = String::from_utf8(gone).unwrap();
        for kept in [r#""comment": "ours""#, r#""id": 1.50"#, r#""more": 12345678901234567890123"#] {
            assert!(shown.contains(kept), "{kept}: {shown}");
        }
        assert_eq!(client_keys(&with_client_key(None, &key).unwrap()).unwrap(), std::slice::from_ref(&key));
        assert!(with_client_key(Some(&added), &key).unwrap_err().contains("two keys are called b"));
        assert_eq!(with_client_key_switched(&added, "c", true).unwrap(), None);
        assert_eq!(without_client_key(&added, "c").unwrap(), None);
        // A bad one can be taken away, and only that.
        let bad = br#"{"keys":[{"name":"x"},{"name":"y","sha256":1}]}"#;
        assert!(with_client_key(Some(bad), &key).is_err() && with_client_key_switched(bad, "x", true).is_err());
        assert!(without_client_key(bad, "x").unwrap().is_some());
        let record = switched(format!(r#"{{"sha256":"{A}","x":1}}"#).as_bytes(), "a", false).unwrap();
        assert_eq!(String::from_utf8(record).unwrap(), format!(r#"{{"sha256":"{A}","x":1,"enabled":false}}"#));
    }
}
