//! The frames of a stream that depend on the request and on the world.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::script::{
    DEFAULT_OUTPUT, DEFAULT_PERCENT, Figure, Notes, ScriptStep, StreamScript, cut, event_frame, text_payload,
};
use super::world::{EndNote, SimWorld, Thinking};

/// The thought of a simulated model.
const DEFAULT_THOUGHT: &str = "This thought is simulated, as the answer below it is.";

/// The parts of the request and the world that [`StreamScript::stage`] needs.
pub(super) struct Stage<'a> {
    pub world: &'a SimWorld,
    /// The protocol's own first frame comes before the answer's (K114).
    pub has_initial_response: bool,
    pub thought: Thought,
    /// Makes a signature that is bound to the request and to the signature before it, which may be empty.
    pub sign: &'a dyn Fn(&str) -> String,
    pub credits: f64,
    /// The model's window.
    pub window: u64,
}

/// How the request asks the model to show its thinking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Thought {
    None,
    /// Events, with or without their text.
    Events {
        omitted: bool,
    },
    /// Text between tags.
    Tags,
    /// One event with an encrypted thought.
    Encrypted,
}

impl StreamScript {
    /// Makes the frames that depend on the request and the world.
    ///
    /// # Errors
    /// A sentence, when a text doesn't fit into a frame.
    pub fn stage(&mut self, stage: &Stage<'_>) -> Result<(), String> {
        let mut steps = Vec::with_capacity(self.steps.len() + 3);
        if stage.has_initial_response && !self.steps.is_empty() {
            steps.push(ScriptStep::Frames(event_frame("initial-response", &json!({}))?));
        }
        for step in self.steps.drain(..) {
            match step {
                ScriptStep::Think { text, segments } => {
                    for (name, payload) in stage.thoughts(&text, segments) {
                        steps.push(ScriptStep::Frames(event_frame(name, &payload)?));
                    }
                }
                ScriptStep::Notes(notes) => {
                    for (name, payload) in stage.notes(notes) {
                        steps.push(ScriptStep::Frames(event_frame(name, &payload)?));
                    }
                }
                step => steps.push(step),
            }
        }
        self.steps = steps;
        self.length = if self.with_length { Some(self.total()?) } else { None };
        Ok(())
    }
}

impl Stage<'_> {
    fn thoughts(&self, text: &str, segments: usize) -> Vec<(&'static str, Value)> {
        const NAME: &str = "reasoningContentEvent";
        let text = if text.is_empty() { DEFAULT_THOUGHT } else { text };
        let kind = self.world.thinking;
        match self.thought {
            Thought::None => Vec::new(),
            _ if kind == Thinking::None => Vec::new(),
            Thought::Tags => {
                let text = format!("<thinking>\n{text}\n</thinking>\n\n");
                vec![("assistantResponseEvent", text_payload(&text, None))]
            }
            Thought::Encrypted => {
                vec![(NAME, json!({ "redactedContent": BASE64_STANDARD.encode((self.sign)("")) }))]
            }
            Thought::Events { omitted } => {
                let segments = segments.max(self.world.segments);
                let mut events = Vec::new();
                let mut signature = String::new();
                for segment in cut(text, segments) {
                    if !omitted && kind != Thinking::SignatureOnly {
                        events.push((NAME, json!({ "text": segment })));
                    }
                    if kind != Thinking::Unsigned {
                        signature = (self.sign)(&signature);
                        events.push((NAME, json!({ "signature": signature })));
                    }
                }
                events
            }
        }
    }

    fn notes(&self, notes: Notes) -> Vec<(&'static str, Value)> {
        let Notes { percent, metadata, metering, tools } = notes;
        let event = |note: &EndNote| match note {
            EndNote::Context => {
                let percent = match &percent {
                    Figure::None => return None,
                    Figure::Usual => DEFAULT_PERCENT.into(),
                    Figure::Given(percent) => percent.clone(),
                };
                Some(("contextUsageEvent", json!({ "contextUsagePercentage": percent })))
            }
            EndNote::Metadata => {
                let payload = match &metadata {
                    Figure::None => return None,
                    Figure::Given(metadata) => metadata.clone(),
                    Figure::Usual => {
                        let mut payload = json!({});
                        if self.world.is_today {
                            payload["stopReason"] = if tools { "TOOL_USE" } else { "END_TURN" }.into();
                        }
                        if self.world.tokens {
                            let window = self.world.usage_window.unwrap_or(self.window) as f64;
                            let total = (window * DEFAULT_PERCENT / 100.0).round() as u64;
                            payload["tokenUsage"] = json!({
                                "uncachedInputTokens": total.saturating_sub(DEFAULT_OUTPUT), "outputTokens": DEFAULT_OUTPUT,
                                "totalTokens": total,
                            });
                        }
                        payload
                    }
                };
                Some(("metadataEvent", payload))
            }
            EndNote::Metering => {
                let credits = match &metering {
                    Figure::None => return None,
                    Figure::Usual => self.credits.into(),
                    Figure::Given(credits) => credits.clone(),
                };
                Some(("meteringEvent", json!({ "usage": credits, "unit": "credit", "unitPlural": "credits" })))
            }
        };
        self.world.end.iter().filter_map(event).collect()
    }
}
