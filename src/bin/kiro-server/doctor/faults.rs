//! Upstream's faults, for a person: what each concerns, and in a few words.

use kiro_messages::proto::kiro::fault::{Fault, FaultKind};

use super::super::output::plain;

/// Characters that are kept of upstream's message.
const MOST_WORDS: usize = 160;

/// Whether the fault concerns the profile. An application that the account may not use concerns the shape (K119).
pub fn is_of_the_profile(fault: &Fault) -> bool {
    match fault.kind {
        // A profile of another kind of login reads as a bad token (K78).
        FaultKind::ProfileArn | FaultKind::TokenRejected => true,
        FaultKind::Forbidden => !fault.message.contains("does not support this application"),
        _ => false,
    }
}

/// Whether the fault concerns the address and not the request.
pub fn is_of_the_host(fault: &Fault) -> bool {
    matches!(
        fault.kind,
        FaultKind::Network | FaultKind::Unreachable | FaultKind::Timeout | FaultKind::Endpoint | FaultKind::ServerError
    )
}

/// A fault in a few words: kind, status, reason, and upstream's text without names and ids.
pub fn said(fault: &Fault) -> String {
    let status = fault.status.map(|status| format!(" {status}")).unwrap_or_default();
    let reason = fault.reason.as_deref().map(|reason| format!(" {}", masked(reason))).unwrap_or_default();
    let text = match fault.message.is_empty() {
        true => String::new(),
        false => format!(": {}", plain(&masked(&fault.message), MOST_WORDS)),
    };
    format!("{}{status}{reason}{text}", fault.kind.as_str())
}

/// Upstream's words without ids: ARNs, addresses, account numbers, and long runs of letters and digits.
pub fn masked(text: &str) -> String {
    let apart = |c: char| {
        c.is_whitespace() || matches!(c, '"' | '\'' | '`' | '(' | ')' | '[' | ']' | ',' | ';' | '<' | '>' | '=')
    };
    let names_somebody = |word: &str| {
        let digits = word.bytes().filter(u8::is_ascii_digit).count();
        let in_a_row = word.split(|c: char| !c.is_ascii_digit()).map(str::len).max().unwrap_or(0);
        let letters = word.bytes().any(|byte| byte.is_ascii_alphabetic());
        word.starts_with("arn:")
            || word.contains('@')
            || in_a_row >= 8
            || (digits >= 4 && letters && in_a_row >= 4)
            || (word.len() >= 24 && digits > 0 && !word.contains(['.', '_']))
            || word.len() >= 64
    };
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(apart).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        out.push_str(if names_somebody(word) { "…" } else { word });
        let gap = after.find(|c: char| !apart(c)).unwrap_or(after.len());
        out.push_str(&after[..gap]);
        rest = &after[gap..];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstreams_words_are_shown_without_ids_k140() {
        for (text, wanted) in [
            ("User d-9067012345.abc is not authorized", "User … is not authorized"),
            ("arn:aws:codewhisperer:us-east-1:111122223333:profile/EEEE1 (a)", "… (a)"),
            ("ask someone@example.org, or 1234567890", "ask …, or …"),
            ("id=0aa11bb2-3c4d-5e6f-7a8b-9c0d1e2f3a4b!", "id=…"),
            (
                "no property 'output_config' is defined; maximum value of 128000",
                "no property 'output_config' is defined; maximum value of 128000",
            ),
            ("claude-opus-5.5 needs 0.11.133, INVALID_MODEL_ID", "claude-opus-5.5 needs 0.11.133, INVALID_MODEL_ID"),
            ("token eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9", "token …"),
        ] {
            assert_eq!(masked(text), wanted);
        }
    }
}
