//! The content of the file: the records and their places in the text (R63), or one token (R67).

use std::collections::HashMap;
use std::fmt;

use bytes::Bytes;

use super::super::{StoreError, StoreErrorKind};
use crate::proto::json::without_mark;
use crate::proto::record::import::is_service_list;
use crate::proto::record::{Json, Limits, Object, TokenFile, Unusable, is_account_id};

/// A record that is nested too deep makes its own account unusable, not the file (R9).
pub(super) const FILE: Limits = Limits { bytes: super::disk::MOST, depth: usize::MAX };

/// A file, read.
#[derive(Clone)]
pub(super) enum Content {
    /// There is no file: an empty pool.
    Absent,
    /// Accounts and tokens.
    Pool(Pool),
    /// A token file of the Kiro IDE or CLI, as it lies there.
    Token(Bytes),
}

/// The records of a file, as slices of its text.
#[derive(Clone)]
pub(super) struct Pool {
    text: Bytes,
    pub(super) accounts: HashMap<String, Bytes>,
    pub(super) tokens: HashMap<String, Bytes>,
    pub(super) config: Option<Bytes>,
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("Absent"),
            Self::Pool(pool) => write!(f, "Pool({} bytes)", pool.text.len()),
            Self::Token(text) => write!(f, "Token({} bytes)", text.len()),
        }
    }
}

impl Content {
    /// Reads a file. An error names the place where it isn't JSON, or the kind of file that it is instead (R65, R79).
    pub(super) fn parse(text: Option<Vec<u8>>) -> Result<Self, StoreError> {
        let Some(text) = text.map(Bytes::from) else { return Ok(Self::Absent) };
        if text.starts_with(b"SQLite format 3\0") {
            return Err(broken("is a SQLite database; only JSON token files can be read"));
        }
        let object = Object::parse(&text, FILE).map_err(|error| broken(place(&text, error)))?;
        if TokenFile::is_one(&object) {
            TokenFile::parse(&text).map_err(|error| broken(place(&text, error)))?;
            return Ok(Self::Token(text));
        }
        if let Some(error) = of_another(&object) {
            return Err(error);
        }
        let slice = |raw: &str| text.slice_ref(raw.as_bytes());
        let records = |name: &str| -> Result<HashMap<String, Bytes>, StoreError> {
            let Some(member) = object.last(name).filter(|member| !member.is_null()) else { return Ok(HashMap::new()) };
            let members =
                Object::parse(member.raw().as_bytes(), FILE).map_err(|_| broken(format!("\"{name}\" is no object")))?;
            // Of a doubled id the last one counts, as everywhere (R10).
            Ok(members.members().map(|(id, record)| (id.into_owned(), slice(record.raw()))).collect())
        };
        let (accounts, tokens) = (records("accounts")?, records("tokens")?);
        let config = object.last("config").map(|config| slice(config.raw()));
        Ok(Self::Pool(Pool { accounts, tokens, config, text: text.clone() }))
    }

    /// Whether it was read from this text.
    pub(super) fn is(&self, text: &[u8]) -> bool {
        match self {
            Self::Absent => false,
            Self::Pool(pool) => pool.text == text,
            Self::Token(token) => token == text,
        }
    }

    /// The text as it was read; `None` without a file.
    pub(super) fn text(&self) -> Option<Vec<u8>> {
        match self {
            Self::Absent => None,
            Self::Pool(pool) => Some(pool.text.to_vec()),
            Self::Token(text) => Some(text.to_vec()),
        }
    }
}

impl Pool {
    /// Ids of accounts in their order (R13).
    pub(super) fn ids(&self) -> Vec<&str> {
        let mut ids: Vec<&str> =
            self.accounts.keys().map(String::as_str).filter(|id| is_account_id(id.as_bytes())).collect();
        ids.sort_unstable();
        ids
    }

    /// The text with some records, slices of this pool's text, replaced.
    pub(super) fn with_replaced(&self, mut replaced: Vec<(Bytes, Bytes)>) -> Vec<u8> {
        let place = |record: &Bytes| record.as_ptr() as usize - self.text.as_ptr() as usize;
        replaced.sort_by_key(|(old, _)| place(old));
        let mut out = Vec::with_capacity(self.text.len() + 256);
        let mut at = 0;
        for (old, new) in &replaced {
            let start = place(old);
            out.extend_from_slice(&self.text[at..start]);
            out.extend_from_slice(new);
            at = start + old.len();
        }
        out.extend_from_slice(&self.text[at..]);
        out
    }

    /// The text with accounts and their tokens added.
    pub(super) fn with_accounts(&self, new: &[&(String, Vec<u8>, Vec<u8>)]) -> Result<Vec<u8>, StoreError> {
        let file = self.object()?;
        let member = |name: &str, records: Vec<(&str, &Vec<u8>)>| -> Result<String, StoreError> {
            let before = file.last(name).filter(|member| !member.is_null()).map_or("{}", |member| member.raw());
            let members =
                Object::parse(before.as_bytes(), FILE).map_err(|_| broken(format!("\"{name}\" is no object")))?;
            let records = records.into_iter().map(|(id, record)| Ok((id, text_of(record.clone())?)));
            text_of(members.with(records.collect::<Result<Vec<_>, StoreError>>()?))
        };
        let accounts = member("accounts", new.iter().map(|(id, account, _)| (id.as_str(), account)).collect())?;
        // A record that is there may be newer than what its reader brings back (`accounts restore`).
        let fresh = new.iter().filter(|(id, ..)| !self.tokens.contains_key(id));
        let tokens = member("tokens", fresh.map(|(id, _, token)| (id.as_str(), token)).collect())?;
        Ok(file.with([("accounts", accounts), ("tokens", tokens)]))
    }

    /// The text without an account and without the token record that lies under `token_id`.
    pub(super) fn without_account(&self, id: &str, token_id: Option<&str>) -> Result<Vec<u8>, StoreError> {
        let file = self.object()?;
        let member = |name: &'static str, id: &str| -> Result<Option<(&'static str, String)>, StoreError> {
            let Some(before) = file.last(name).filter(|member| !member.is_null()) else { return Ok(None) };
            let members =
                Object::parse(before.raw().as_bytes(), FILE).map_err(|_| broken(format!("\"{name}\" is no object")))?;
            Ok(Some((name, text_of(members.without(id))?)))
        };
        let accounts = member("accounts", id)?;
        let tokens = token_id.map(|id| member("tokens", id)).transpose()?.flatten();
        Ok(file.with(accounts.into_iter().chain(tokens)))
    }

    fn object(&self) -> Result<Object<'_>, StoreError> {
        Object::parse(&self.text, FILE).map_err(|error| broken(place(&self.text, error)))
    }
}

impl Default for Pool {
    /// An empty file, to add to.
    fn default() -> Self {
        let text = Bytes::from_static(b"{\"accounts\":{},\"tokens\":{}}");
        Self { text, accounts: HashMap::new(), tokens: HashMap::new(), config: None }
    }
}

fn text_of(bytes: Vec<u8>) -> Result<String, StoreError> {
    String::from_utf8(bytes).map_err(|_| broken("a record is not UTF-8"))
}

/// The error for a file that another program keeps: its members are its own, and none of ours may get in (R104).
fn of_another(file: &Object<'_>) -> Option<StoreError> {
    let is_list = |value: Json<'_>| value.raw().starts_with('[');
    let is_service = file.members().any(|(name, value)| is_service_list(&name) && is_list(value));
    let is_ours = ["accounts", "tokens", "config"].iter().any(|name| file.last(name).is_some());
    if !is_service && (is_ours || file.members().next().is_none()) {
        return None;
    }
    let detail = if is_service || file.members().any(|(_, value)| is_list(value)) {
        "is the Node.js service's pool file and is never written: use it with KIRO_STORE=aiclient:PATH"
    } else {
        "is another program's file and is never written: name a file of its own"
    };
    Some(StoreError::new(StoreErrorKind::Config, detail))
}

/// Line and column of a mistake, from 1, columns in bytes.
pub(super) fn place(text: &[u8], error: Unusable) -> String {
    match error {
        Unusable::NotJson { at: 0 } if without_mark(text).len() < text.len() => {
            "begins with a byte-order mark: save it as UTF-8 without one".to_owned()
        }
        Unusable::NotUtf8 { at } | Unusable::NotJson { at } => {
            let before = &text[..at];
            let line = memchr::memchr_iter(b'\n', before).count() + 1;
            let column = at - memchr::memrchr(b'\n', before).map_or(0, |newline| newline + 1) + 1;
            let what = if matches!(error, Unusable::NotUtf8 { .. }) { "not UTF-8" } else { "not JSON" };
            format!("{what} at line {line}, column {column}")
        }
        other => other.to_string(),
    }
}

fn broken(detail: impl Into<String>) -> StoreError {
    StoreError::new(StoreErrorKind::Broken, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(text: &str) -> Pool {
        match Content::parse(Some(text.as_bytes().to_vec())).unwrap() {
            Content::Pool(pool) => pool,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn records_are_slices_and_everything_else_stays() {
        let text = "{ \"note\": 1,\n \"accounts\" : {\"b\": {\"x\":1 }, \"a\":[]},\"tokens\":{\"b\":{}} , \"config\":{\"apiKey\":\"k\"} }";
        let pool = pool(text);
        assert_eq!(pool.ids(), ["a", "b"]);
        assert_eq!(pool.accounts["b"], "{\"x\":1 }");
        let replaced = vec![
            (pool.tokens["b"].clone(), Bytes::from("{\"t\":1}")),
            (pool.accounts["b"].clone(), "{\"x\":2}".into()),
        ];
        let after =
            text.replace("{\"x\":1 }", "{\"x\":2}").replace("\"tokens\":{\"b\":{}}", "\"tokens\":{\"b\":{\"t\":1}}");
        assert_eq!(pool.with_replaced(replaced), after.as_bytes());
        assert_eq!(pool.config.as_deref(), Some(&b"{\"apiKey\":\"k\"}"[..]));
    }

    #[test]
    fn accounts_are_added_and_removed() {
        let record = |id: &str, token: &str| (id.to_owned(), b"{}".to_vec(), token.as_bytes().to_vec());
        let added = pool("{\"config\":{}}").with_accounts(&[&record("a", "{\"t\":1}")]).unwrap();
        assert_eq!(added, b"{\"config\":{},\"accounts\":{\"a\":{}},\"tokens\":{\"a\":{\"t\":1}}}");
        let restored = pool("{\"tokens\":{\"a\":{\"t\":2}}}").with_accounts(&[&record("a", "{\"t\":1}")]).unwrap();
        assert_eq!(restored, b"{\"tokens\":{\"a\":{\"t\":2}},\"accounts\":{\"a\":{}}}", "refreshed meanwhile");
        let both = pool(std::str::from_utf8(&added).unwrap()).with_accounts(&[&record("b", "{}")]).unwrap();
        let one = pool(std::str::from_utf8(&both).unwrap()).without_account("a", Some("a")).unwrap();
        assert_eq!(one, b"{\"config\":{},\"accounts\":{\"b\":{}},\"tokens\":{\"b\":{}}}");
        assert_eq!(
            Pool::default().with_accounts(&[&record("a", "{}"), &record("b", "{}")]).unwrap(),
            b"{\"accounts\":{\"a\":{},\"b\":{}},\"tokens\":{\"a\":{},\"b\":{}}}"
        );
    }

    #[test]
    fn a_mistake_is_named_by_its_place_and_without_its_text() {
        let error = |text: &[u8]| Content::parse(Some(text.to_vec())).unwrap_err().to_string();
        assert_eq!(
            error(b"{\n  \"accounts\": {\n    \"hush\" 1\n  }\n}"),
            "store content: not JSON at line 3, column 12"
        );
        assert_eq!(error(b""), "store content: not JSON at line 1, column 1");
        assert_eq!(error(b"{\"a\":\"\xff\"}"), "store content: not UTF-8 at line 1, column 7");
        assert_eq!(error(b"[1]"), "store content: not a JSON object");
        assert!(error(b"\xef\xbb\xbf{}").ends_with("begins with a byte-order mark: save it as UTF-8 without one"));
        assert_eq!(error(b"{\"accounts\":[\"hush\"]}"), "store content: \"accounts\" is no object");
        assert!(error(b"SQLite format 3\0\x10\x00").contains("only JSON token files"));
    }

    #[test]
    fn kinds_of_files_are_distinguished() {
        let kind = |text: &str| Content::parse(Some(text.as_bytes().to_vec())).unwrap();
        assert!(matches!(Content::parse(None).unwrap(), Content::Absent));
        assert!(matches!(kind("{\"refresh_token\":\"r\"}"), Content::Token(_)));
        assert!(matches!(kind("{\"accounts\":{},\"accessToken\":\"a\"}"), Content::Pool(_)));
        assert!(matches!(kind("{}"), Content::Pool(_)));
        // A broken token file isn't an empty pool: accounts would be added to it (R9, R67).
        let deep = format!("{{\"accessToken\":\"a\",\"x\":{}{}}}", "[".repeat(64), "]".repeat(64));
        let long = format!("{{\"accessToken\":\"a\",\"x\":\"{}\"}}", "x".repeat(1 << 20));
        for text in [deep, long] {
            let error = Content::parse(Some(text.into_bytes())).unwrap_err();
            assert_eq!(error.kind(), StoreErrorKind::Broken);
        }
    }

    #[test]
    fn a_record_that_is_too_deep_leaves_the_others_alone_r9() {
        for depth in [65, 70, 1_000_000] {
            let deep = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
            let pool = pool(&format!("{{\"accounts\":{{\"a\":{{\"x\":{deep}}},\"b\":{{}}}},\"note\":{deep}}}"));
            assert_eq!(pool.ids(), ["a", "b"]);
            assert!(crate::proto::record::Account::parse(&pool.accounts["a"], "a").is_err());
            assert!(crate::proto::record::Account::parse(&pool.accounts["b"], "b").is_ok());
        }
    }

    #[test]
    fn a_record_may_be_as_deep_here_as_elsewhere() {
        let record = format!("{{\"a\":{}{}}}", "[".repeat(63), "]".repeat(63));
        assert!(crate::proto::record::Account::parse(record.as_bytes(), "a").is_ok());
        assert_eq!(pool(&format!("{{\"accounts\":{{\"a\":{record}}}}}")).accounts["a"], record);
    }
}
