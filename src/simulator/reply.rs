//! An answer that is no stream.

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::fields::Fields;

#[derive(Clone, Debug)]
pub(super) struct HttpReply {
    pub status: u16,
    /// A value may hold `{date+N}`: the HTTP date N seconds from now.
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
}

impl HttpReply {
    /// An answer in the shape of upstream's errors.
    pub fn error(status: u16, kind: &str, reason: Option<&str>, message: &str) -> Self {
        let mut body = json!({ "message": message });
        if let Some(reason) = reason {
            body["reason"] = reason.into();
        }
        Self::json(status, &body).with("x-amzn-errortype", kind)
    }

    /// A failure of the simulator's own, or of how it is used.
    pub fn failure(status: u16, message: &str) -> Self {
        Self::json(status, &json!({ "message": message }))
    }

    pub fn json(status: u16, body: &Value) -> Self {
        let headers = vec![("content-type".to_owned(), "application/json".to_owned())];
        Self { status, headers, body: body.to_string().into() }
    }

    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The error in the form of shape `runtime` (K114): its name stands in the body and not in a header.
    pub fn named_in_body(mut self) -> Self {
        let Some(place) = self.headers.iter().position(|(name, _)| name == "x-amzn-errortype") else { return self };
        let (_, kind) = self.headers.remove(place);
        if let Ok(Value::Object(mut body)) = serde_json::from_slice(&self.body) {
            body.entry("__type").or_insert_with(|| format!("com.amazon.kiro.runtimeservice#{kind}").into());
            self.body = Value::Object(body).to_string().into();
        }
        self
    }

    pub fn read(map: Map<String, Value>) -> Result<Self, String> {
        let mut fields = Fields::new("http", map);
        let status = fields.take("status")?.unwrap_or(200);
        if !(200..=599).contains(&status) {
            return Err(format!("`http.status` is from 200 to 599, not {status}"));
        }
        let kind: Option<String> = fields.take("type")?;
        let message: Option<String> = fields.take("message")?;
        let reason: Option<Value> = fields.take("reason")?;
        let headers: Map<String, Value> = fields.take("headers")?.unwrap_or_default();
        let body = match fields.take::<Value>("body")? {
            Some(Value::String(text)) => text,
            Some(body) => body.to_string(),
            None => {
                let mut body = json!({ "message": message.unwrap_or_else(|| format!("Simulated status {status}.")) });
                if let Some(reason) = reason {
                    body["reason"] = reason;
                }
                body.to_string()
            }
        };
        fields.finish()?;
        let mut reply = Self { status, headers: Vec::new(), body: body.into() };
        if let Some(kind) = kind {
            reply = reply.with("x-amzn-errortype", &kind);
        }
        for (name, value) in headers {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            if http::HeaderName::try_from(&name).is_err() || http::HeaderValue::try_from(&value).is_err() {
                return Err(format!("`http.headers.{name}` is no header"));
            }
            reply = reply.with(&name.to_ascii_lowercase(), &value);
        }
        if reply.headers.iter().all(|(name, _)| name != "content-type") {
            reply = reply.with("content-type", "application/json");
        }
        Ok(reply)
    }
}
