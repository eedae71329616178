//! Accounts as they lie in Redis.

use redis::{Commands as _, Connection};
use serde_json::{Value, json};

/// The pool's key.
pub const POOL: &str = "aiclient:pools:claude-kiro-oauth";

/// The key of a token record.
pub fn token_key(id: &str) -> String {
    format!("aiclient:tokens:claude-kiro-oauth:{id}")
}

/// Writes an account with its token record, to the byte; the token first, since an account without one is unusable.
pub fn put_account(redis: &mut Connection, id: &str, record: &str, token: &str) {
    redis.set::<_, _, ()>(token_key(id), token).expect("Redis takes writes");
    redis.hset::<_, _, _, ()>(POOL, id, record).expect("Redis takes writes");
}

/// Writes a healthy account with these members beside, and its token record.
pub fn add_account(redis: &mut Connection, id: &str, members: &Value, token: &Value) {
    let mut account = json!({ "uuid": id, "isHealthy": true });
    account.as_object_mut().expect("an object").extend(members.as_object().expect("members").clone());
    put_account(redis, id, &account.to_string(), &token.to_string());
}

/// The record of an account.
pub fn record(redis: &mut Connection, id: &str) -> String {
    redis.hget(POOL, id).expect("a record")
}

/// Its token record.
pub fn token(redis: &mut Connection, id: &str) -> String {
    redis.get(token_key(id)).expect("a token record")
}
