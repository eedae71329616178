//! The meaning of Redis's failures (R49), without values in the text (R6).

use redis::{ErrorKind, RedisError, ServerErrorKind};

use super::super::{StoreError, StoreErrorKind};

/// A server that answers with one of these is away; MOVED and ASK come only when the library could not follow them.
const AWAY: [&str; 8] = ["LOADING", "READONLY", "CLUSTERDOWN", "MASTERDOWN", "TRYAGAIN", "BUSY", "MOVED", "ASK"];
/// The server refuses us.
const REFUSED: [&str; 3] = ["NOAUTH", "WRONGPASS", NO_PERMISSION];
/// The server refuses writes.
const WRITES_REFUSED: [&str; 3] = ["OOM", "MISCONF", "NOREPLICAS"];

/// Sorts an error of the client library. Only error words and the operating system's messages are taken over.
pub(super) fn classify(error: &RedisError) -> StoreError {
    match error.kind() {
        ErrorKind::Io if error.is_timeout() => no_answer(),
        ErrorKind::Io if error.is_connection_refusal() => StoreError::away("connection refused"),
        // Messages of the operating system and of TLS: they hold no value.
        ErrorKind::Io => perhaps_done(&error.to_string()),
        ErrorKind::Parse => perhaps_done("answer is not Redis protocol"),
        ErrorKind::AuthenticationFailed => StoreError::new(StoreErrorKind::Refused, "WRONGPASS"),
        ErrorKind::RESP3NotSupported => {
            StoreError::new(StoreErrorKind::Refused, "HELLO is unknown: Redis 6.0 or later is needed")
        }
        // The library also gives it to running commands when it can't read the map of slots.
        ErrorKind::ClusterConnectionNotFound => perhaps_done("no node of the cluster answers"),
        ErrorKind::Server(ServerErrorKind::NoScript) => StoreError::new(StoreErrorKind::Broken, NO_SCRIPT),
        ErrorKind::Server(kind) => answer(word_of(kind), error.detail()),
        ErrorKind::Extension => answer(error.code().unwrap_or("ERR"), error.detail()),
        ErrorKind::InvalidClientConfig | ErrorKind::Client => {
            StoreError::new(StoreErrorKind::Config, error.category().to_owned())
        }
        _ => StoreError::new(StoreErrorKind::Broken, error.category().to_owned()),
    }
}

/// The detail of a timeout.
pub(super) const NO_ANSWER: &str = "no answer in time";

/// The server took too long.
pub(super) fn no_answer() -> StoreError {
    perhaps_done(NO_ANSWER)
}

/// Whether the server took too long.
pub(super) fn is_timeout(error: &StoreError) -> bool {
    error.detail == NO_ANSWER
}

/// Whether this user lacks a right, on whatever connection.
pub(super) fn is_permission(error: &StoreError) -> bool {
    error.detail == NO_PERMISSION
}

const NO_PERMISSION: &str = "NOPERM";

/// Whether the key holds another type than expected, so that the expected value doesn't exist. A proxy's `-ERR backend
/// is gone` doesn't mean that.
pub(super) fn is_wrong_type(error: &StoreError) -> bool {
    error.detail == WRONG_TYPE
}

const WRONG_TYPE: &str = "WRONGTYPE";

/// Whether the server doesn't know the script.
pub(super) fn is_no_script(error: &StoreError) -> bool {
    error.detail == NO_SCRIPT
}

/// The detail of an EVALSHA whose script the server doesn't know (R21).
const NO_SCRIPT: &str = "NOSCRIPT";

fn word_of(kind: ServerErrorKind) -> &'static str {
    match kind {
        ServerErrorKind::BusyLoading => "LOADING",
        ServerErrorKind::ReadOnly => "READONLY",
        ServerErrorKind::ClusterDown => "CLUSTERDOWN",
        ServerErrorKind::MasterDown => "MASTERDOWN",
        ServerErrorKind::TryAgain => "TRYAGAIN",
        ServerErrorKind::NoPerm => NO_PERMISSION,
        ServerErrorKind::Moved => "MOVED",
        ServerErrorKind::Ask => "ASK",
        ServerErrorKind::CrossSlot => "CROSSSLOT",
        _ => "ERR",
    }
}

fn answer(word: &str, detail: Option<&str>) -> StoreError {
    let detail = detail.unwrap_or("");
    if word == "ERR" {
        if detail.contains("not an integer") || detail.contains("overflow") {
            return StoreError::new(StoreErrorKind::Counter, "not an integer, or too large");
        }
        if detail.starts_with("max number of clients") {
            return StoreError::away("max number of clients reached");
        }
        if detail.starts_with("DB index is out of range") {
            return StoreError::new(StoreErrorKind::Refused, "Redis has no database of that number");
        }
        // Redis 6 wraps the error of a command inside a script: `ERR Error running script …: -READONLY You can't …`.
        let wrapped = AWAY.iter().chain(&REFUSED).chain(&WRITES_REFUSED).chain(&[WRONG_TYPE]);
        if let Some(inner) = wrapped.copied().find(|inner| detail.contains(&format!("-{inner} "))) {
            return answer(inner, None);
        }
    }
    if AWAY.contains(&word) {
        StoreError { read_only: word == "READONLY", ..StoreError::away(word) }
    } else if REFUSED.contains(&word) {
        StoreError::new(StoreErrorKind::Refused, word)
    } else if WRITES_REFUSED.contains(&word) {
        StoreError::new(StoreErrorKind::WritesRefused, word)
    } else {
        StoreError::new(StoreErrorKind::Broken, word)
    }
}

fn perhaps_done(detail: &str) -> StoreError {
    let mut error = StoreError::away(detail);
    error.perhaps_done = true;
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_words_become_kinds_of_errors() {
        for (word, detail, kind) in [
            ("LOADING", None, StoreErrorKind::Away),
            ("READONLY", Some("You can't write against a read only replica."), StoreErrorKind::Away),
            ("CLUSTERDOWN", None, StoreErrorKind::Away),
            ("MASTERDOWN", None, StoreErrorKind::Away),
            ("NOAUTH", Some("Authentication required."), StoreErrorKind::Refused),
            ("WRONGPASS", None, StoreErrorKind::Refused),
            ("NOPERM", None, StoreErrorKind::Refused),
            ("OOM", None, StoreErrorKind::WritesRefused),
            ("MISCONF", None, StoreErrorKind::WritesRefused),
            ("WRONGTYPE", None, StoreErrorKind::Broken),
            ("ERR", Some("value is not an integer or out of range"), StoreErrorKind::Counter),
            ("ERR", Some("increment or decrement would overflow"), StoreErrorKind::Counter),
            (
                "ERR",
                Some("Error running script (call to f_1): @user_script:6: -OOM command not allowed"),
                StoreErrorKind::WritesRefused,
            ),
            (
                "ERR",
                Some("Error running script (call to f_1): @user_script:6: -READONLY You can't"),
                StoreErrorKind::Away,
            ),
            ("ERR", Some("max number of clients reached"), StoreErrorKind::Away),
            ("ERR", Some("DB index is out of range"), StoreErrorKind::Refused),
            ("ERR", Some("unknown command 'X', with args beginning with: 'hush'"), StoreErrorKind::Broken),
        ] {
            let error = answer(word, detail);
            assert_eq!(error.kind(), kind, "{word} {detail:?}");
            assert!(!error.to_string().contains("hush"));
        }
    }

    #[test]
    fn only_a_lost_answer_leaves_a_doubt() {
        let reset = RedisError::from(std::io::Error::from(std::io::ErrorKind::ConnectionReset));
        assert!(classify(&reset).is_perhaps_done());
        let refused = RedisError::from(std::io::Error::from(std::io::ErrorKind::ConnectionRefused));
        assert!(!classify(&refused).is_perhaps_done());
        assert!(!answer("LOADING", None).is_perhaps_done());
    }
}
