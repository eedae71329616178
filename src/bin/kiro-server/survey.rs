//! How an account is served, for a person: its wire shapes, its models, and whether it may search the web (K125).
//!
//! It costs no credits and doesn't touch health. Shapes and search need one question, `tools/list`: it goes to the
//! hosts of conversations and names the account's tools.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use kiro_messages::policy::learned::{Lesson, Variant};
use kiro_messages::pool::Lease;
use kiro_messages::proto::kiro::catalogue::Catalogue;
use kiro_messages::proto::kiro::fault::{Fault, FaultKind};
use kiro_messages::proto::kiro::route::{Operation, Shape};
use kiro_messages::proto::kiro::search::SCHEMA;
use serde_json::Value;

use super::desk::Desk;
use super::doctor::faults::{is_of_the_host, is_of_the_profile, said};
use super::doctor::probe::ProbeAccount;

/// The whole time of one question.
const WITHIN: Duration = Duration::from_secs(20);

/// The answers.
pub struct Survey {
    /// The usable shapes, the preferred one first, and why one doesn't answer.
    pub shapes: Vec<(Shape, Result<(), Silence>)>,
    /// Whether web search is offered.
    pub search: Search,
    /// The account's catalogue (K124), or why it can't be read.
    pub models: Result<Arc<Catalogue>, String>,
    /// The lessons of the account's answers, in words (R72).
    pub learned: Vec<String>,
}

/// Why a shape doesn't answer.
#[derive(Debug, PartialEq, Eq)]
pub enum Silence {
    /// It refuses our client version (K104).
    ClientVersion,
    /// In words.
    Because(String),
}

impl fmt::Display for Silence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClientVersion => f.write_str("refuses our client version"),
            Self::Because(why) => write!(f, "doesn't answer: {why}"),
        }
    }
}

/// Web search of an account.
#[derive(Debug, PartialEq, Eq)]
pub enum Search {
    /// It is offered; the flag: declared as we declare it.
    Offered(bool),
    /// It isn't, and why.
    Not(String),
    /// There was no answer.
    Unknown,
}

impl Survey {
    /// Asks: one page of models or more, and `tools/list` in each shape. Waits at most 20 s for each answer.
    pub async fn of(desk: &Desk, lease: &Lease) -> Self {
        let models = desk.credentials.list_models(lease).await.map_err(|fault| said(&fault)).map(Arc::new);
        if let Ok(catalogue) = &models {
            lease.learn(Lesson::Catalogue(catalogue.clone()));
        }
        let (shapes, search) = match ask_tools(desk, lease).await {
            Ok(asked) => asked,
            Err(fault) => (Vec::new(), Search::Not(said(&fault))),
        };
        Self { shapes, search, models, learned: learned(desk, lease) }
    }

    /// The shape of the account's conversations: the first one that answers.
    pub fn shape(&self) -> Option<Shape> {
        self.shapes.iter().find(|(_, answer)| answer.is_ok()).map(|(shape, _)| *shape)
    }

    /// `q answers · runtime doesn't answer: Endpoint 410`.
    pub fn words(&self) -> String {
        let word = |(shape, answer): &(Shape, Result<(), Silence>)| match answer {
            Ok(()) => format!("{shape} answers"),
            Err(why) => format!("{shape} {why}"),
        };
        self.shapes.iter().map(word).collect::<Vec<_>>().join(" · ")
    }
}

/// Each shape with the first profile that it takes; the first one that answers says whether there is web search.
async fn ask_tools(desk: &Desk, lease: &Lease) -> Result<(Vec<(Shape, Result<(), Silence>)>, Search), Fault> {
    let bearer = desk.credentials.access_token(lease).await?;
    let view = desk.pool.account(lease.account().id()).unwrap_or_else(|| lease.account().clone());
    let mut search = Search::Unknown;
    let mut shapes = Vec::new();
    for shape in view.shapes(view.region()).to_vec() {
        let mut answer = Err(Fault::protocol("there is no profile to ask with"));
        let mut known = false;
        for variant in view.variants() {
            // A probe for each question, so that none ends the others.
            let mut probe = ProbeAccount::new(&desk.upstream, (*view).clone(), &bearer, Duration::ZERO)?;
            let asked = tokio::time::timeout(WITHIN, probe.mcp(shape, variant.arn(), "tools/list", "{}"));
            answer = match asked.await {
                Ok(Ok(answer)) => answer,
                Ok(Err(stopped)) => Err(stopped.fault),
                Err(_) => Err(Fault::timeout("no answer within 20 s")),
            };
            // A host that doesn't know `tools/list` may still serve the shape.
            if answer.as_ref().is_err_and(|fault| fault.kind == FaultKind::Endpoint) {
                let asked = tokio::time::timeout(WITHIN, probe.usage(shape, variant.arn()));
                known = matches!(asked.await, Ok(Ok(usage)) if !usage.as_ref().is_err_and(is_of_the_shape));
            }
            if !answer.as_ref().is_err_and(is_of_the_profile) {
                break;
            }
        }
        let reached = match &answer {
            Err(fault) if fault.kind == FaultKind::ClientVersion => Err(Silence::ClientVersion),
            Err(fault) if is_of_the_shape(fault) && !known => Err(Silence::Because(said(fault))),
            _ => Ok(()),
        };
        if reached.is_ok() && search == Search::Unknown {
            search = match answer {
                Ok(answer) => offered(&answer["result"]["tools"]),
                Err(fault) => Search::Not(said(&fault)),
            };
        }
        shapes.push((shape, reached));
    }
    Ok((shapes, search))
}

/// Whether the fault keeps the account from the shape, and not only from its tools (K119).
fn is_of_the_shape(fault: &Fault) -> bool {
    is_of_the_host(fault)
        || fault.kind == FaultKind::ClientVersion
        || fault.message.contains("does not support this application")
}

/// Whether the tools hold web search, and whether it is declared with our parameters.
fn offered(tools: &Value) -> Search {
    let Some(tool) = tools.as_array().into_iter().flatten().find(|tool| tool["name"] == "web_search") else {
        return Search::Not("Kiro doesn't offer it".to_owned());
    };
    Search::Offered(is_declared_as_ours(tool))
}

/// Whether it has the properties of our declaration (K133), and the same ones are required.
pub fn is_declared_as_ours(tool: &Value) -> bool {
    let (schema, ours) = (&tool["inputSchema"], serde_json::from_str::<Value>(SCHEMA).unwrap_or_default());
    let names = |of: &Value| of["properties"].as_object().map(|all| all.keys().cloned().collect::<Vec<_>>());
    names(schema) == names(&ours) && schema["required"] == ours["required"]
}

fn learned(desk: &Desk, lease: &Lease) -> Vec<String> {
    let expected = desk.pool.account(lease.account().id()).and_then(|view| view.forms().first().cloned());
    lease.learned(|learned, now| {
        let mut words = learned.words(now);
        for (call, what) in [(Operation::Usage, "usage"), (Operation::Models, "models")] {
            let other = |form: &&Variant| expected.as_ref().is_some_and(|expected| expected.arn() != form.arn());
            if let Some(form) = learned.form(call).filter(other) {
                words.push(format!("{what}: profile {} works", form.as_str()));
            }
        }
        words
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn web_search_is_distinguished_from_other_tools() {
        let tool = |name: &str, schema: Value| json!([{ "name": "other" }, { "name": name, "inputSchema": schema }]);
        let ours = json!({ "type": "object", "properties": { "query": { "type": "string" } }, "required": ["query"] });
        assert_eq!(offered(&tool("web_search", ours.clone())), Search::Offered(true));
        let more = json!({ "properties": { "query": {}, "country": {} }, "required": ["query"] });
        assert_eq!(offered(&tool("web_search", more)), Search::Offered(false));
        for none in [tool("fetch", ours), Value::Null, json!([])] {
            assert!(matches!(offered(&none), Search::Not(_)), "{none}");
        }
    }
}
