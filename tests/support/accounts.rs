//! Accounts as they lie in Redis.

use serde_json::{Value, json};

/// Writes a healthy account with these members beside, and its token record.
pub fn add_account(redis: &mut redis::Connection, id: &str, members: &Value, token: &Value) {
    let mut account = json!({ "uuid": id, "isHealthy": true });
    account.as_object_mut().expect("an object").extend(members.as_object().expect("members").clone());
    let mut set = redis::pipe();
    set.hset("aiclient:pools:claude-kiro-oauth", id, account.to_string()).ignore();
    set.set(format!("aiclient:tokens:claude-kiro-oauth:{id}"), token.to_string()).ignore();
    set.query::<()>(redis).expect("Redis takes writes");
}
