//! `client`: the settings of a program that is to use this server, and whether address, key and models work. It edits
//! nothing.

use std::process::ExitCode;
use std::time::Duration;

use clap::ArgMatches;
use kiro_messages::config::Config;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};

use super::health::address;
use super::output::{CommandFailure, complain, innermost, show, show_json, table};

/// How long each answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// What stands for a key that isn't shown.
const NO_KEY: &str = "the-client-key";
/// The model of a snippet that needs one.
const MODEL: &str = "claude-sonnet-5-5";

/// A program that people want to use.
struct Known {
    name: &'static str,
    what: &'static str,
    setup: Setup,
}

enum Setup {
    /// Lines for a shell.
    Environment(fn(&Target<'_>) -> String),
    /// A snippet, and where it belongs.
    Snippet(&'static str, fn(&Target<'_>) -> String),
    /// It can't: why, and what would be needed.
    Not(&'static str),
}

/// What a program must be told.
struct Target<'a> {
    /// Without `/v1`, without a slash at the end.
    url: &'a str,
    key: &'a str,
}

const MESSAGES_ONLY: &str = "this server speaks Anthropic's Messages API alone";

/// Every client that is known (docs/clients.md).
const CLIENTS: &[Known] = &[
    Known { name: "claude-code", what: "Claude Code; run by our tests", setup: Setup::Environment(claude_code) },
    Known {
        name: "anthropic-sdk",
        what: "Anthropic's SDKs for TypeScript and Python; run by our tests",
        setup: Setup::Environment(anthropic_sdk),
    },
    Known {
        name: "langchain",
        what: "langchain-anthropic; run by our tests",
        setup: Setup::Snippet("Python", |to| {
            format!("ChatAnthropic(model={}, base_url={}, api_key={})\n", text(MODEL), text(to.url), text(to.key))
        }),
    },
    Known {
        name: "ai-sdk",
        what: "Vercel's AI SDK; run by our tests",
        setup: Setup::Snippet("JavaScript", |to| {
            format!("createAnthropic({{ baseURL: {}, apiKey: {} }})\n", text(&to.with_v1()), text(to.key))
        }),
    },
    Known {
        name: "opencode",
        what: "OpenCode; as its documentation says, not run by our tests",
        setup: Setup::Snippet("opencode.json", |to| {
            let options = json!({ "baseURL": to.with_v1(), "apiKey": to.key });
            format!("{:#}\n", json!({ "provider": { "anthropic": { "options": options } } }))
        }),
    },
    Known {
        name: "continue",
        what: "Continue; as its documentation says, not run by our tests",
        setup: Setup::Snippet("config.yaml", |to| {
            let (base, key) = (text(&(to.with_v1() + "/")), text(to.key));
            format!(
                "models:\n  - name: Claude through Kiro\n    provider: anthropic\n    model: {MODEL}\n    apiBase: {base}\n    \
                 apiKey: {key}\n"
            )
        }),
    },
    Known {
        name: "codex",
        what: "can't use it: speaks OpenAI's Responses API",
        setup: Setup::Not(
            "it speaks OpenAI's Responses API alone (wire_api = \"responses\"): needed is a gateway in between that takes \
             /v1/responses and asks /v1/messages here",
        ),
    },
    Known {
        name: "cursor",
        what: "can't use it: has no address for Anthropic's models",
        setup: Setup::Not(
            "it takes another address for OpenAI's API alone, and none for Anthropic's: needed is a gateway in between that \
             takes /v1/chat/completions under an address that Cursor reaches, and asks /v1/messages here",
        ),
    },
];

impl Target<'_> {
    fn with_v1(&self) -> String {
        format!("{}/v1", self.url)
    }
}

fn claude_code(to: &Target<'_>) -> String {
    format!(
        "export ANTHROPIC_BASE_URL={}\nexport ANTHROPIC_AUTH_TOKEN={}\nexport CLAUDE_CODE_AUTO_MODE_SERVER=0\n\
         export CLAUDE_CODE_ENABLE_GATEWAY_MODEL_DISCOVERY=1\nexport CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1\n",
        quoted(to.url),
        quoted(to.key)
    )
}

fn anthropic_sdk(to: &Target<'_>) -> String {
    format!("export ANTHROPIC_BASE_URL={}\nexport ANTHROPIC_API_KEY={}\n", quoted(to.url), quoted(to.key))
}

/// For a shell.
fn quoted(value: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:@%+=,".contains(&byte);
    if !value.is_empty() && value.bytes().all(is_plain) {
        return value.to_owned();
    }
    format!("'{}'", value.replace('\'', r"'\''"))
}

/// A literal of JSON, which JavaScript, Python and YAML read as well.
fn text(value: &str) -> String {
    Value::from(value).to_string()
}

/// Prints the settings on standard output, and what the checks say on standard error.
pub async fn run(config: &Config, options: &ArgMatches) -> Result<ExitCode, CommandFailure> {
    let as_json = options.get_flag("json");
    let Some(name) = options.get_one::<String>("name") else { return list(as_json) };
    let Some(known) = CLIENTS.iter().find(|known| known.name == name) else {
        let names: Vec<&str> = CLIENTS.iter().map(|known| known.name).collect();
        return Err(CommandFailure::usage(format!("client: {name} isn't known; known are {}", names.join(", "))));
    };
    let (place, settings) = match &known.setup {
        Setup::Environment(settings) => ("environment", settings),
        Setup::Snippet(place, settings) => (*place, settings),
        Setup::Not(why) => {
            return Err(CommandFailure::new(format!("{name} can't use this server: {MESSAGES_ONLY}, and {why}")));
        }
    };
    let url = address(config, options)?;
    let given = options.get_one::<String>("key").map(String::as_str);
    let key = given.or_else(|| config.api_key.as_ref().map(|key| key.expose()));
    let is_shown = given.is_some() || options.get_flag("show-key");
    let settings = settings(&Target { url: &url, key: key.filter(|_| is_shown).unwrap_or(NO_KEY) });
    if !as_json {
        show(&settings)?;
        if key.is_some() && !is_shown {
            complain(format!("the key isn't shown: --show-key puts it in the place of {NO_KEY}"));
        }
    }
    let checks = if options.get_flag("no-check") { Vec::new() } else { check(&url, key).await? };
    let is_fine = checks.iter().all(|check| check.problem.is_none());
    if as_json {
        let checks: Vec<Value> = checks.iter().map(Check::json).collect();
        show_json(&json!({ "client": name, "place": place, "settings": settings, "ok": is_fine, "checks": checks }))?;
    } else {
        checks.iter().for_each(|check| complain(check.line()));
    }
    Ok(if is_fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn list(as_json: bool) -> Result<ExitCode, CommandFailure> {
    let works = |known: &Known| !matches!(known.setup, Setup::Not(_));
    if as_json {
        let all =
            CLIENTS.iter().map(|known| json!({ "client": known.name, "works": works(known), "what": known.what }));
        show_json(&json!({ "clients": all.collect::<Vec<_>>() }))?;
    } else {
        let rows = CLIENTS.iter().map(|known| vec![known.name.to_owned(), known.what.to_owned()]);
        let head = vec!["CLIENT".to_owned(), "WHAT".to_owned()];
        show(&table(&[head].into_iter().chain(rows).collect::<Vec<_>>()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// One real call.
struct Check {
    what: &'static str,
    found: String,
    /// What is wrong, with the cure.
    problem: Option<String>,
}

impl Check {
    fn ok(what: &'static str, found: impl Into<String>) -> Self {
        Self { what, found: found.into(), problem: None }
    }

    fn wrong(what: &'static str, found: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { what, found: found.into(), problem: Some(cure.into()) }
    }

    fn line(&self) -> String {
        match &self.problem {
            None => format!("✓ {}: {}", self.what, self.found),
            Some(cure) => format!("✗ {}: {} → {cure}", self.what, self.found),
        }
    }

    fn json(&self) -> Value {
        json!({ "check": self.what, "ok": self.problem.is_none(), "message": self.found, "cure": self.problem })
    }
}

/// Address, key, models, and a count of tokens; the first that fails is the last.
async fn check(url: &str, key: Option<&str>) -> Result<Vec<Check>, CommandFailure> {
    // reqwest needs a TLS provider even for a plain http address, and none is installed yet.
    let _there_already = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder()
        .no_proxy()
        // The key goes to the address that was named, and nowhere else.
        .redirect(reqwest::redirect::Policy::none())
        .timeout(ANSWER_WITHIN)
        .build()
        .map_err(|error| CommandFailure::new(error.to_string()))?;
    let ask = |method: Method, path: &str| {
        let request = client.request(method, format!("{url}{path}"));
        match key {
            Some(key) => request.header("x-api-key", key),
            None => request,
        }
    };
    let mut checks = vec![reaches(url, client.get(format!("{url}/health"))).await];
    if checks[0].problem.is_some() {
        return Ok(checks);
    }
    let (models, first) = lists(ask(Method::GET, "/v1/models?limit=1000"), key.is_some()).await;
    checks.extend(models);
    if let Some(model) = first {
        let body = json!({ "model": model, "messages": [{ "role": "user", "content": "hi" }] });
        let counted = answer(ask(Method::POST, "/v1/messages/count_tokens").body(body.to_string())).await;
        checks.push(match counted {
            Ok((StatusCode::OK, count)) if count["input_tokens"].is_u64() => Check::ok("count_tokens", model),
            Ok((status, body)) => Check::wrong("count_tokens", said(status, &body), "look at the server's log"),
            Err(error) => Check::wrong("count_tokens", error, "look at the server's log"),
        });
    }
    Ok(checks)
}

async fn reaches(url: &str, request: RequestBuilder) -> Check {
    match answer(request).await {
        Ok((StatusCode::OK, health)) if health["accounts"].is_object() => Check::ok("address", url),
        Ok((StatusCode::SERVICE_UNAVAILABLE, health)) if health["accounts"].is_object() => {
            Check::wrong("address", format!("{url} can't serve now"), "`kiro-server doctor` says why")
        }
        Ok((status, _)) => {
            let found = format!("{url} is no kiro-server: /health has status {status}");
            Check::wrong("address", found, "name the server's own address with --url, without /v1")
        }
        Err(error) => Check::wrong(
            "address",
            format!("{url}: {error}"),
            "start kiro-server there, or name where it listens with --url (with TLS: as its certificate names it)",
        ),
    }
}

/// The key and the models, and the model to count with.
async fn lists(request: RequestBuilder, has_key: bool) -> (Vec<Check>, Option<String>) {
    let (status, body) = match answer(request).await {
        Ok(answer) => answer,
        Err(error) => return (vec![Check::wrong("models", error, "look at the server's log")], None),
    };
    let ids: Vec<&str> =
        body["data"].as_array().into_iter().flatten().filter_map(|model| model["id"].as_str()).collect();
    match status {
        StatusCode::OK if !ids.is_empty() => {
            let model = ids.iter().find(|id| **id == MODEL).unwrap_or(&ids[0]);
            let key = if has_key { "it is right, or none is needed" } else { "none is needed" };
            (vec![Check::ok("key", key), Check::ok("models", format!("{}", ids.len()))], Some((*model).to_owned()))
        }
        StatusCode::OK => {
            (vec![Check::wrong("models", "none", "`kiro-server accounts check` says what the accounts have")], None)
        }
        StatusCode::UNAUTHORIZED => {
            let (found, cure) = if has_key {
                let cure = "`kiro-server keys list` at the server says which have ended; `kiro-server keys add NAME` makes one";
                ("the server refuses it", cure)
            } else {
                let cure = "name it with --key or KIRO_API_KEY; `kiro-server keys add NAME` makes one";
                ("the server asks for one", cure)
            };
            (vec![Check::wrong("key", found, cure)], None)
        }
        status => (vec![Check::wrong("models", said(status, &body), "`kiro-server doctor` says why")], None),
    }
}

/// Status and JSON of an answer; null where it is none.
async fn answer(request: RequestBuilder) -> Result<(StatusCode, Value), String> {
    let answer = request.send().await.map_err(|error| innermost(&error))?;
    let status = answer.status();
    let text = answer.text().await.map_err(|error| innermost(&error))?;
    Ok((status, serde_json::from_str(&text).unwrap_or_default()))
}

/// An error answer in one line.
fn said(status: StatusCode, body: &Value) -> String {
    let message = body["error"]["message"].as_str().unwrap_or("no error of this server's");
    format!("status {}: {}", status.as_u16(), super::output::plain(message, 200))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the documents tell is what the command prints.
    #[test]
    fn the_documents_have_the_same_lines() {
        let read = |name: &str| std::fs::read_to_string(format!("{}/docs/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap();
        let to = Target { url: "http://127.0.0.1:8081", key: NO_KEY };
        let document = read("claude-code.md");
        for line in claude_code(&to).lines() {
            assert!(document.contains(line), "docs/claude-code.md lacks {line}");
        }
        let document = read("clients.md");
        for known in CLIENTS {
            assert!(document.contains(&format!("`{}`", known.name)), "docs/clients.md lacks {}", known.name);
        }
    }

    #[test]
    fn values_are_quoted_for_their_place() {
        assert_eq!(quoted("http://127.0.0.1:8081"), "http://127.0.0.1:8081");
        assert_eq!(quoted("a'b$c d"), r"'a'\''b$c d'");
        assert_eq!(quoted(""), "''");
        assert_eq!(quoted("http://[::1]:8081"), "'http://[::1]:8081'");
        let to = Target { url: "http://h", key: "a\"b\nc" };
        for known in CLIENTS {
            if let Setup::Snippet(place, settings) = &known.setup {
                let text = settings(&to);
                assert!(text.contains(r#""a\"b\nc""#), "{place}: {text}");
            }
        }
    }
}
