//! The step of a suspicion (K91), as a rest's cause says it in `lastErrorMessage`.

use crate::proto::record::{Note, Standing};

/// The beginning of a suspicious rest's cause; the step follows in brackets.
pub const SUSPICION: &str = "suspicious activity";

/// The step of the suspicion that the account is under (K91).
pub(super) fn suspicion(standing: &Standing) -> u32 {
    standing.mark().map_or(0, suspicion_of)
}

/// A rest as it is written over an unhealed mark of the record. It takes over the step of the suspicion, which its
/// writer may not have seen (K91).
pub fn carry_suspicion(new: &Note, old: &Note) -> Note {
    let step = suspicion_of(old);
    match (new, old) {
        (Note::CoolDown { until, cause }, Note::CoolDown { until: standing, .. }) if step > suspicion_of(new) => {
            if cause.starts_with(SUSPICION) {
                return Note::CoolDown { until: *until.max(standing), cause: format!("{SUSPICION} ({step})") };
            }
            let cause = cause.split_once(", after ").map_or(cause.as_str(), |(cause, _)| cause);
            Note::CoolDown { until: *until, cause: format!("{cause}, after {SUSPICION} ({step})") }
        }
        _ => new.clone(),
    }
}

/// The step of the suspicion in a mark; the first when it has no number (K91). 0: a mark for another reason.
pub fn suspicion_of(note: &Note) -> u32 {
    let Note::CoolDown { cause, .. } = note else { return 0 };
    let Some((_, rest)) = cause.split_once(SUSPICION) else { return 0 };
    let step = rest.strip_prefix(" (").and_then(|rest| rest.split_once(')')).and_then(|(step, _)| step.parse().ok());
    step.unwrap_or(1).max(1)
}
