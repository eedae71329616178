//! The members of a script's JSON.

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// The members of an object, taken one by one. A member that is left is an error that names it.
pub(super) struct Fields {
    pub place: String,
    map: Map<String, Value>,
}

impl Fields {
    pub fn new(place: &str, map: Map<String, Value>) -> Self {
        Self { place: place.to_owned(), map }
    }

    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    pub fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// A member; with an `Option` for T, null differs from absent.
    pub fn take<T: DeserializeOwned>(&mut self, key: &str) -> Result<Option<T>, String> {
        let Some(value) = self.map.shift_remove(key) else { return Ok(None) };
        serde_json::from_value(value).map(Some).map_err(|error| format!("`{}.{key}`: {error}", self.place))
    }

    pub fn need<T: DeserializeOwned>(&mut self, key: &str) -> Result<T, String> {
        self.take(key)?.ok_or_else(|| format!("`{}.{key}` is missing", self.place))
    }

    pub fn millis(&mut self, key: &str) -> Result<Option<Duration>, String> {
        Ok(self.take(key)?.map(Duration::from_millis))
    }

    pub fn positive(&mut self, key: &str) -> Result<Option<usize>, String> {
        match self.take(key)? {
            Some(0) => Err(format!("`{}.{key}` is at least 1", self.place)),
            number => Ok(number),
        }
    }

    pub fn finish(&self) -> Result<(), String> {
        match self.map.keys().next() {
            Some(key) => Err(format!("unknown key `{key}` in `{}`", self.place)),
            None => Ok(()),
        }
    }
}
