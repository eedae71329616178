//! Whatever upstream repeats of what it was sent stays here: the answer to the client, the log at any level, metrics, status,
//! marks in the store, dumps and the addon's errors.

use std::io::Write;
use std::sync::{Arc, Mutex};

use futures_util::StreamExt as _;
use kiro_messages::gateway::Call;
use serde_json::{Value, json};

use crate::upstream::{Act, Upstream, answer, event, frame, stream_head, text};
use crate::world::{KEY, World, base, with};

const TOKEN: &str = "ordinary-looking.Token:of/our=account+with~all-signs";
const ARN: &str = "arn:aws:codewhisperer:us-east-1:111122223333:profile/EHGA3GRVQMUK";
const EMAIL: &str = "someone.private@mail.example.org";
const USER: &str = "d-9067012345.0aa11bb2-3c4d-5e6f-7a8b-9c0d1e2f3a4b";
const ACCOUNT: &str = "00000000-0000-4000-8000-000000000000";
const REFRESH: &str = "aorAAAAAGx7ZrefreshrefreshrefreshREFRESH";

/// Everything that is logged, at every level.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// In a text of upstream's, everything that it knows of us.
fn said() -> String {
    format!(
        "Invalid model. The security token {TOKEN} (cut: {}) of {ARN}, account 111122223333, user {USER} <{EMAIL}>, \
         {ACCOUNT}, refreshToken={REFRESH} is wrong",
        &TOKEN[5..30]
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_that_upstream_repeats_go_nowhere_k48() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();

    let json = |extra: Value| {
        let mut body = json!({ "message": said() });
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        body.to_string()
    };
    let named = |kind: &str| json(json!({ "__type": format!("ns#{kind}"), "reason": "NEW_REASON" }));
    let hard = format!("bad{TOKEN}");
    let mut vectors: Vec<(String, Vec<Act>)> = Vec::new();
    for status in [200, 302, 400, 401, 402, 403, 404, 409, 413, 429, 500, 503, 529] {
        vectors.push((format!("{status} json"), answer(status, &[("x-amzn-errortype", &hard)], json(json!({})))));
        vectors.push((format!("{status} text"), answer(status, &[("retry-after", TOKEN)], said())));
        let reason = json!({ "reason": said(), "__type": hard }).to_string();
        vectors
            .push((format!("{status} reason"), answer(status, &[("location", &format!("https://x/{TOKEN}"))], reason)));
        vectors.push((format!("{status} name"), answer(status, &[], named("ValidationException"))));
    }
    let mut in_stream = |name: &str, frames: Vec<Vec<u8>>| {
        for text_before in [false, true] {
            let mut acts = vec![Act::Say(stream_head())];
            acts.extend(text_before.then(|| Act::Say(text("before"))));
            acts.extend(frames.iter().cloned().map(Act::Say));
            vectors.push((format!("{name}, text before: {text_before}"), acts));
        }
    };
    let exception = |kind: &str, payload: &str| {
        frame(
            &[(":message-type", "exception"), (":exception-type", kind), (":content-type", "application/json")],
            payload,
        )
    };
    for kind in
        ["ValidationException", "AccessDeniedException", "InternalServerException", "ThrottlingException", TOKEN]
    {
        in_stream(&format!("exception {kind}"), vec![exception(kind, &json(json!({ "reason": said() })))]);
        in_stream(&format!("exception {kind}, plain"), vec![exception(kind, &said())]);
    }
    let error = frame(&[(":message-type", "error"), (":error-code", TOKEN), (":error-message", &said())], "");
    in_stream("error", vec![error]);
    let state = json!({ "reason": said(), "message": said() }).to_string();
    in_stream("invalidStateEvent", vec![event("invalidStateEvent", &state)]);
    in_stream("unknown event", vec![event(TOKEN, "{}"), event(&format!("x{TOKEN}x"), "{}"), event(EMAIL, "{}")]);
    in_stream("unknown message type", vec![frame(&[(":message-type", TOKEN)], &said())]);
    in_stream("broken payload", vec![event("assistantResponseEvent", &format!("{{\"content\":{TOKEN}"))]);

    let usage = json(json!({}));
    let now = Arc::new(Mutex::new(Vec::new()));
    let served = now.clone();
    let upstream = Upstream::start(move |head| match head.starts_with("POST /generate") {
        true => served.lock().unwrap().clone(),
        false => answer(403, &[("x-amzn-errortype", TOKEN)], &usage),
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let settings = upstream.settings();
    let world = World::with_tokens(
        &[TOKEN],
        &[
            (settings[0].0, settings[0].1.as_str()),
            ("KIRO_SOCIAL_REFRESH_URL", &format!("http://{}/refresh", upstream.address)),
            ("KIRO_DEBUG_DUMP_DIR", folder.path().to_str().unwrap()),
            ("KIRO_MAX_ATTEMPTS", "1"),
        ],
    )
    .await;

    let mut outputs: Vec<(String, String)> = Vec::new();
    for (name, acts) in vectors {
        *now.lock().unwrap() = acts;
        for stream in [false, true] {
            // An account that is asked by name is asked whatever its marks say.
            let call = Call { account_id: Some(ACCOUNT.to_owned()), ..Call::default() };
            let body = with(json!({ "stream": stream })).to_string().into();
            let mut heard = Vec::new();
            let failed = match stream {
                false => world.gateway.create(body, call).await.map(|whole| heard.extend_from_slice(&whole.body)).err(),
                true => match world.gateway.stream(body, call).await {
                    Ok(mut answer) => {
                        while let Some(bytes) = answer.next().await {
                            heard.extend_from_slice(&bytes);
                        }
                        None
                    }
                    Err(error) => Some(error),
                },
            };
            if let Some(error) = &failed {
                heard.extend_from_slice(&error.api_error().body("req_1"));
                heard.extend_from_slice(
                    format!("{error} {:?} {:?}", error.headers(), error.account_failure()).as_bytes(),
                );
            }
            outputs.push((format!("{name}: the client"), String::from_utf8(heard).unwrap()));
        }
        let reply = world.messages(&base()).await;
        outputs.push((format!("{name}: over HTTP"), format!("{:?} {}", reply.headers, reply.text)));
        outputs.push((format!("{name}: marks"), json!(world.accounts()).to_string().replace(ACCOUNT, "")));
    }
    let usage = world.gateway.usage_limits(ACCOUNT).await;
    outputs.push(("usage".into(), usage.err().unwrap().to_string()));
    for path in ["/metrics", "/status", "/health", "/v1/models"] {
        let reply = world.http.get(world.url(path)).header("x-api-key", KEY).send().await.unwrap();
        outputs.push((path.into(), reply.text().await.unwrap()));
    }
    let mut dumps = 0;
    for folder in std::fs::read_dir(folder.path()).unwrap() {
        // Some are still being written, and some make room.
        let folder = folder.unwrap().path();
        let Ok(files) = std::fs::read_dir(&folder) else { continue };
        for file in files {
            let path = file.unwrap().path();
            let Ok(bytes) = std::fs::read(&path) else { continue };
            dumps += 1;
            // A prompt may speak of people; what upstream says of them stands in the summary.
            let text = String::from_utf8_lossy(&bytes).into_owned();
            match path.ends_with("summary.json") {
                true => outputs.push((path.display().to_string(), text)),
                false => assert!(!text.contains(TOKEN) && !text.contains(REFRESH), "{}: {text}", path.display()),
            }
        }
    }
    assert!(dumps > 20, "{dumps}");
    let told = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(told.contains("an attempt failed") && told.contains("NEW_REASON"), "the log was not seen");
    let mut found = Vec::new();
    outputs.extend(told.lines().map(|line| ("the log".to_owned(), line.to_owned())));
    for (place, text) in &outputs {
        for secret in [TOKEN, &TOKEN[5..30], ARN, "EHGA3GRVQMUK", "111122223333", USER, EMAIL, ACCOUNT, REFRESH] {
            if text.contains(secret) {
                found.push(format!("{place} has {secret}: {text}"));
            }
        }
    }
    assert!(found.is_empty(), "{} times: {}", found.len(), found[..found.len().min(5)].join("\n"));
    assert!(outputs.len() > 200);
}

/// The model's own answer is nobody's text but the model's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_is_never_scrubbed() {
    let all = said();
    let served = all.clone();
    let upstream = Upstream::start(move |_| {
        let tool = json!({ "toolUseId": TOKEN, "name": "mail", "input": { "to": EMAIL, "arn": ARN }, "stop": true });
        vec![Act::Say(stream_head()), Act::Say(text(&served)), Act::Say(event("toolUseEvent", &tool.to_string()))]
    })
    .await;
    let settings = upstream.settings();
    let world = World::with_tokens(&[TOKEN], &[(settings[0].0, settings[0].1.as_str())]).await;
    let reply = world.messages(&with(json!({ "max_tokens": 10_000 }))).await.json();
    assert_eq!(reply["content"][0]["text"], all);
    assert_eq!((&reply["content"][1]["id"], &reply["content"][1]["input"]["to"]), (&json!(TOKEN), &json!(EMAIL)));
}
