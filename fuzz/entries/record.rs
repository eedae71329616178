//! Records against themselves and against `serde_json` (R9, R19, R20): the entry of the fuzz target `record` and of
//! `tests/record_seeds.rs`.

use kiro_messages::proto::record::{self, Account, Entry, Note, RECORD, Token, TokenFile, Unusable, patch};
use serde_json::Value;

/// Any bytes, as an account record, a token record, a token file, a configuration and a message.
pub fn run(data: &[u8]) {
    let account = Account::parse(data, "fuzz");
    let token = Token::parse(data);
    assert_eq!(account.as_ref().err(), token.as_ref().err(), "both need the same: an object");
    // Keys with this in them are serde_json's own: they turn an object into something else.
    if data.windows(10).any(|key| key == b"serde_json") {
        return;
    }
    agree_with_serde(data, account.as_ref().err());
    match account {
        Ok(account) => patched(data, &account),
        Err(error) => {
            assert_eq!(patch(data, &[Entry::UsageCount(1)]), Err(error), "an unusable record is never written")
        }
    }
    if let Ok(Some(file)) = TokenFile::parse(data) {
        let record = file.record(None, None);
        let token = Token::parse(&record).expect("a token file reads as a token record");
        assert_eq!(file.with_token(&token), Ok(None), "what was read needs no writing");
        let _ = file.registration_file();
    }
    let _ = record::client_key(data);
    if let Ok(text) = std::str::from_utf8(data) {
        let note = Note::parse(text).to_string();
        assert!(note.chars().count() <= 200 && !note.contains('\n'), "one line of at most 200 characters (R27)");
        assert_eq!(Note::parse(&note).to_string(), note, "what is written reads as itself");
    }
}

/// `serde_json` takes what we take, but for lone surrogate escapes; we take what it takes, within the limits.
fn agree_with_serde(data: &[u8], error: Option<&Unusable>) {
    let theirs = serde_json::from_slice::<Value>(data);
    match (error, theirs) {
        (None, theirs) => {
            let lone = data.windows(3).any(|escape| escape.eq_ignore_ascii_case(b"\\ud"));
            assert!(lone || theirs.is_ok_and(|value| value.is_object()), "taken, and no JSON object");
        }
        (Some(Unusable::NotObject), theirs) => assert!(theirs.is_ok_and(|value| !value.is_object())),
        (Some(Unusable::TooDeep { .. } | Unusable::TooLong { .. }), _) => {}
        (Some(Unusable::NotUtf8 { .. } | Unusable::NotJson { .. }), theirs) => {
            assert!(theirs.is_err(), "JSON, and not taken");
        }
    }
}

/// A patch gives the wanted values, changes no other member, and once is enough.
fn patched(data: &[u8], account: &Account) {
    let wanted = account.usage_count / 2 + 1;
    let entries = [Entry::UsageCount(wanted), Entry::IsHealthy(!account.standing.healthy)];
    let after = match patch(data, &entries) {
        Ok(after) => after.expect("isHealthy changes"),
        Err(error) => {
            let full = data.len() + 64 > RECORD.bytes;
            assert!(full && matches!(error, Unusable::TooLong { .. }), "{error}");
            return;
        }
    };
    let again = Account::parse(&after, "fuzz").expect("a patched record stays usable");
    assert_eq!((again.usage_count, again.standing.healthy), (wanted, !account.standing.healthy));
    assert_eq!(patch(&after, &entries), Ok(None), "once is enough");
    let (Ok(mut before), Ok(after)) = (serde_json::from_slice::<Value>(data), serde_json::from_slice::<Value>(&after))
    else {
        return;
    };
    before["isHealthy"] = (!account.standing.healthy).into();
    // An equal count in another spelling is left as it is (R20).
    before["usageCount"] = if wanted == account.usage_count { before["usageCount"].clone() } else { wanted.into() };
    assert_eq!(before, after, "no other member changes");
}
