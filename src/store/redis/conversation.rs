//! The instances' shared knowledge about conversations (R102, R103): one key for each command, as everywhere.

use redis::Value;

use super::{RedisStore, StoreError, broken, bytes, command, is_wrong_type};
use crate::secret::Secret;

/// Seconds after which a conversation's account is forgotten (R102).
const HOME_SECONDS: &str = "3600";
const SECRET: &str = "kiro:id-secret";

impl RedisStore {
    pub(in crate::store) async fn home(&self, conversation: &str) -> Result<Option<String>, StoreError> {
        let name = self.home_key(conversation);
        let found = self.one(command("GET", &[name.as_bytes()])).await.and_then(bytes)?;
        Ok(found.and_then(|id| String::from_utf8(id.into()).ok()))
    }

    pub(in crate::store) async fn keep_home(&self, conversation: &str, account: &str) -> Result<(), StoreError> {
        let name = self.home_key(conversation);
        let set = command("SET", &[name.as_bytes(), account.as_bytes(), b"EX", HOME_SECONDS.as_bytes()]);
        self.write(set).await.map(|_| ())
    }

    pub(in crate::store) async fn id_secret(&self, fresh: &str) -> Result<Secret, StoreError> {
        let name = self.key(SECRET);
        let found = || async {
            match self.one(command("GET", &[name.as_bytes()])).await.and_then(bytes) {
                Ok(secret) => Ok(secret.and_then(|secret| String::from_utf8(secret.into()).ok()).map(Secret::new)),
                Err(error) if is_wrong_type(&error) => Err(broken("kiro:id-secret is no string")),
                Err(error) => Err(error),
            }
        };
        if let Some(secret) = found().await? {
            return Ok(secret);
        }
        if self.write(command("SET", &[name.as_bytes(), fresh.as_bytes(), b"NX"])).await? == Value::Okay {
            return Ok(Secret::new(fresh));
        }
        found().await?.ok_or_else(|| StoreError::away("the secret of derived ids is gone again"))
    }

    fn home_key(&self, conversation: &str) -> String {
        self.key(&format!("kiro:affinity:{conversation}"))
    }
}
