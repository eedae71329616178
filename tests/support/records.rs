//! The records of store tests, for every store.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kiro_messages::policy::outcome::Outcome;
use kiro_messages::proto::record::{Entry, Fingerprint};
use kiro_messages::secret::Secret;
use kiro_messages::store::{Clock, NewAccount, Status, Store, TokenKey, UnsavedToken, Writer};
use tokio::time::timeout;

#[path = "clock.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod clock;
pub use clock::t0;

/// What a success at [`t0`] leaves.
pub const USED: &str = r#""lastUsed":"2026-11-23T10:00:00.000Z""#;

/// A time on the day of the examples.
pub fn time(text: &str) -> Timestamp {
    format!("2026-11-23T{text}Z").parse().unwrap()
}

/// Always [`t0`].
pub fn clock() -> Clock {
    Arc::new(t0)
}

/// Waits for a status.
pub async fn wait_for(store: &Store, wanted: impl Fn(&Status) -> bool, within: Duration) {
    let mut status = store.watch();
    let reached = timeout(within, status.wait_for(|status| wanted(status))).await;
    assert!(reached.is_ok(), "still {:?} after {within:?}", store.status());
}

/// At [`t0`].
pub fn success() -> Outcome {
    Outcome::success(t0(), t0())
}

/// Records a few outcomes of account a1 and waits until they are written.
pub async fn record(store: &Store, outcomes: impl IntoIterator<Item = Outcome>) {
    record_of("a1", store, outcomes).await;
}

/// The same for another account.
pub async fn record_of(id: &str, store: &Store, outcomes: impl IntoIterator<Item = Outcome>) {
    let writer = Writer::spawn(store.clone(), clock());
    for outcome in outcomes {
        writer.record(id, &outcome);
    }
    assert!(writer.flush(Duration::from_secs(5)).await.is_empty());
}

/// Cases 1 to 5: a record, how many successes at [`t0`], and the record after them.
pub const PATCHED: [(u8, &str, usize, &str); 5] = [
    (
        1,
        r#"{"uuid":"a1","notSupportedModels":[],"big":12345678901234567890,"usageCount":5,"note":"x\/y","z":{"keep":[1,2.5,[]]}}"#,
        3,
        r#"{"uuid":"a1","notSupportedModels":[],"big":12345678901234567890,"usageCount":8,"note":"x\/y","z":{"keep":[1,2.5,[]]},"lastUsed":"2026-11-23T10:00:00.000Z"}"#,
    ),
    (
        2,
        r#"{ "usageCount" : "5" , "isHealthy" : "true" }"#,
        1,
        r#"{ "usageCount" : 6 , "isHealthy" : "true","lastUsed":"2026-11-23T10:00:00.000Z" }"#,
    ),
    (
        3,
        r#"{"usageCount":1,"usageCount":7}"#,
        1,
        r#"{"usageCount":1,"usageCount":8,"lastUsed":"2026-11-23T10:00:00.000Z"}"#,
    ),
    (4, r#"{"usage\u0043ount":1}"#, 1, r#"{"usage\u0043ount":2,"lastUsed":"2026-11-23T10:00:00.000Z"}"#),
    (5, "{}", 1, r#"{"usageCount":1,"lastUsed":"2026-11-23T10:00:00.000Z"}"#),
];

/// A token record before its refresh.
pub const TOKEN: &str = r#"{"accessToken":"old","refreshToken":"refresh-1","expiresAt":1767225600000,"authMethod":"builder-id","clientId":"c","clientSecret":"s","region":"us-east-1","n":[]}"#;

/// What a refresh of `base` with refresh-1 brought.
pub fn refreshed(key: &TokenKey, base: &[u8]) -> UnsavedToken {
    UnsavedToken {
        key: key.clone(),
        base: base.to_vec().into(),
        replaces: vec![Fingerprint::of(&Secret::new("refresh-1"))],
        entries: vec![
            Entry::AccessToken(Secret::new("new")),
            Entry::RefreshToken(Secret::new("refresh-2")),
            Entry::ExpiresAt(time("11:00:00")),
        ],
    }
}

/// An account to add.
pub fn new_account(id: &str, token: &str) -> NewAccount {
    NewAccount {
        id: id.into(),
        custom_name: Some("mine".into()),
        added_at: t0(),
        token: token.into(),
        members: Vec::new(),
    }
}
