//! Text that is held until it is known to be the JSON that was asked for (TS37).

use super::{Response, State, Step, put_block};
use crate::proto::messages::event::{Sink, StopReason};
use crate::proto::translate::structured::{MAX_JSON, Rejected};

impl Response {
    /// Text that waits, all of it: it may have to go out as it is. Its bound is that of all answers (TS25).
    pub(super) fn hold(&mut self, text: &str) {
        if let Some(held) = &mut self.held {
            held.push_str(text);
        }
    }

    /// The upstream answer ends, for this reason: the JSON goes out. None when that is all, or nothing is held.
    pub(super) fn judge_held(&mut self, reason: StopReason, sink: &mut impl Sink) -> Option<Step> {
        let check = self.settings.extras.structured.clone()?;
        let held = self.held.take()?;
        if reason != StopReason::EndTurn {
            self.put_held(&held, sink);
            return None;
        }
        let found = match held.len() > MAX_JSON {
            true => Err("it is too long".to_owned()),
            false => check.find(&held),
        };
        match found {
            Ok(json) => {
                self.put_held(json, sink);
                None
            }
            Err(_) if self.rounds.rejected.is_some() => {
                self.state = State::Faulted { started: self.is_started() };
                Some(Step::Unfit)
            }
            Err(complaint) => {
                let mut reply = held;
                reply.truncate(reply.floor_char_boundary(MAX_JSON));
                self.rounds.rejected = Some(Rejected { reply, complaint, at: None });
                let counted = self.rounds.counted;
                let step = self.begin_round();
                // The reply isn't sent, so the next one may be as long.
                self.rounds.counted = counted;
                Some(step)
            }
        }
    }

    /// The reply that the next requests complain of.
    pub fn rejected(&mut self) -> Option<&mut Rejected> {
        self.rounds.rejected.as_mut()
    }

    fn put_held(&mut self, text: &str, sink: &mut impl Sink) {
        put_block(&mut self.index, text, sink);
        if !text.is_empty() && matches!(self.state, State::Open) {
            self.state = State::Gap;
        }
    }
}
