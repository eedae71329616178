//! Scenarios by name: one for every row of the fault table (K45), and the ways a stream goes wrong.

use serde_json::{Value, json};

/// Name and scenario. As an access token, a preset has `sim-` in front and may have `.anything` behind it.
pub(super) const PRESETS: &[(&str, &str)] = &[
    // PromptTooLong, TooLarge
    (
        "prompt-too-long",
        r#"{"http":{"status":400,"type":"ValidationException","reason":"CONTENT_LENGTH_EXCEEDS_THRESHOLD","message":"Input is too long."}}"#,
    ),
    ("413", r#"{"http":{"status":413,"message":"Request Entity Too Large"}}"#),
    ("context-limit", r#"{"http":{"status":400,"type":"ValidationException","message":"Context limit exceeded."}}"#),
    (
        "too-many-tokens",
        r#"{"http":{"status":400,"type":"ValidationException","message":"prompt is too long: 250001 tokens > 200000 maximum"}}"#,
    ),
    (
        "not-buffered",
        r#"{"http":{"status":500,"type":"InternalServerException","message":"Failed to buffer the request body: length limit exceeded"}}"#,
    ),
    // UnknownModel, ThinkingSignature, ProfileArn
    (
        "unknown-model",
        r#"{"http":{"status":400,"type":"ValidationException","reason":"INVALID_MODEL_ID","message":"Invalid model. Please select a different model to continue."}}"#,
    ),
    (
        "thinking-signature",
        r#"{"when":"reasoning","http":{"status":400,"type":"ValidationException","reason":"THINKING_SIGNATURE_INVALID","message":"Invalid signature in thinking block."}}"#,
    ),
    (
        "profile-arn",
        r#"{"when":"no_profile_arn","http":{"status":400,"type":"ValidationException","reason":null,"message":"profileArn is required for this request."}}"#,
    ),
    // BadRequest
    (
        "400",
        r#"{"http":{"status":400,"type":"ValidationException","reason":null,"message":"Improperly formed request."}}"#,
    ),
    (
        "conversation-limit",
        r#"{"http":{"status":402,"type":"ServiceQuotaExceededException","reason":"CONVERSATION_LIMIT_EXCEEDED","message":"The conversation has too many turns."}}"#,
    ),
    (
        "expected-results",
        r#"{"http":{"status":503,"type":"ServiceUnavailableException","message":"Expected toolResult blocks at messages.2.content for the following Ids: tooluse_1"}}"#,
    ),
    // TokenRejected
    (
        "invalid-token",
        r#"{"everywhere":true,"http":{"status":403,"type":"AccessDeniedException","message":"Invalid token"}}"#,
    ),
    ("401", r#"{"everywhere":true,"http":{"status":401,"type":"UnauthorizedException","message":"Unauthorized"}}"#),
    (
        "403-invalid-token",
        r#"{"everywhere":true,"http":{"status":403,"type":"AccessDeniedException","reason":null,"message":"The bearer token included in the request is invalid."}}"#,
    ),
    (
        "403-expired-token",
        r#"{"everywhere":true,"http":{"status":403,"type":"ExpiredTokenException","message":"ExpiredToken: the security token included in the request is expired"}}"#,
    ),
    // Suspended
    (
        "suspended",
        r#"{"everywhere":true,"http":{"status":403,"type":"AccessDeniedException","reason":"TEMPORARILY_SUSPENDED","message":"Your User ID (d-0000000000.simulated) temporarily is suspended. We've locked it as a security precaution. To restore access, please contact our support team: https://support.example/simulated"}}"#,
    ),
    (
        "suspended-by-message",
        r#"{"everywhere":true,"http":{"status":403,"type":"AccessDeniedException","reason":null,"message":"Your User ID (d-0000000000.simulated) is temporarily suspended."}}"#,
    ),
    // Forbidden
    (
        "not-authorized",
        r#"{"http":{"status":403,"type":"AccessDeniedException","message":"User is not authorized to make this call."}}"#,
    ),
    (
        "403",
        r#"{"http":{"status":403,"type":"AccessDeniedException","reason":"FEATURE_NOT_SUPPORTED","message":"User is not authorized to access this resource."}}"#,
    ),
    ("409", r#"{"http":{"status":409,"type":"ConflictException","reason":null,"message":"Conflict"}}"#),
    // QuotaMonth, QuotaDay
    (
        "402",
        r#"{"http":{"status":402,"type":"ServiceQuotaExceededException","reason":"MONTHLY_REQUEST_COUNT","message":"You have reached the limit."}}"#,
    ),
    (
        "402-plain",
        r#"{"http":{"status":402,"type":"ServiceQuotaExceededException","reason":null,"message":"Quota exceeded."}}"#,
    ),
    (
        "overage",
        r#"{"http":{"status":429,"type":"ThrottlingException","reason":"OVERAGE_REQUEST_LIMIT_EXCEEDED","message":"You have reached the limit for overages."}}"#,
    ),
    (
        "daily",
        r#"{"http":{"status":429,"type":"ThrottlingException","reason":"DAILY_REQUEST_COUNT","message":"You have reached the daily limit."}}"#,
    ),
    // Suspicious, ModelCapacity, RateLimited
    (
        "suspicious",
        r#"{"http":{"status":429,"type":"ThrottlingException","reason":null,"message":"Suspicious activity was detected on your account."}}"#,
    ),
    (
        "capacity",
        r#"{"http":{"status":429,"type":"ThrottlingException","reason":"INSUFFICIENT_MODEL_CAPACITY","message":"I am experiencing high traffic, please try again shortly."}}"#,
    ),
    (
        "unavailable",
        r#"{"http":{"status":500,"type":"InternalServerException","reason":"MODEL_TEMPORARILY_UNAVAILABLE","message":"The model is temporarily unavailable."}}"#,
    ),
    (
        "high-traffic",
        r#"{"http":{"status":500,"type":"InternalServerException","reason":null,"message":"Encountered unexpectedly high load when processing the request, please try again."}}"#,
    ),
    ("529", r#"{"http":{"status":529,"message":"Overloaded"}}"#),
    (
        "429",
        r#"{"http":{"status":429,"type":"ThrottlingException","reason":null,"message":"Too many requests, please wait before trying again."}}"#,
    ),
    (
        "429-user-rate",
        r#"{"http":{"status":429,"type":"ThrottlingException","reason":"USER_REQUEST_RATE_EXCEEDED","message":"Rate exceeded."}}"#,
    ),
    (
        "429-retry-after-date",
        r#"{"http":{"status":429,"type":"ThrottlingException","reason":null,"message":"Too many requests.","headers":{"retry-after":"{date+30}"}}}"#,
    ),
    (
        "was-throttled",
        r#"{"http":{"status":500,"type":"InternalServerException","message":"The request was throttled."}}"#,
    ),
    (
        "400-throttling",
        r#"{"http":{"status":400,"type":"ThrottlingException","reason":null,"message":"Rate exceeded."}}"#,
    ),
    // ServerError
    (
        "500",
        r#"{"http":{"status":500,"type":"InternalServerException","reason":null,"message":"Encountered an unexpected error when processing the request, please try again."}}"#,
    ),
    (
        "503",
        r#"{"http":{"status":503,"type":"ServiceUnavailableException","reason":null,"message":"Service unavailable."}}"#,
    ),
    (
        "502-html",
        r#"{"http":{"status":502,"headers":{"content-type":"text/html"},"body":"<html><body>502 Bad Gateway</body></html>"}}"#,
    ),
    ("408", r#"{"http":{"status":408,"message":"Request Timeout"}}"#),
    (
        "invalid-state",
        r#"{"steps":[{"event":"invalidStateEvent","payload":{"reason":"INVALID_TASK_ASSIST_PLAN","message":"Invalid task assist plan."}}]}"#,
    ),
    // Network
    ("drop", r#"{"drop":"close"}"#),
    ("drop-reset", r#"{"drop":"reset"}"#),
    ("empty", r#"{"steps":[]}"#),
    ("cut-early", r#"{"end":"cut"}"#),
    ("cut", r#"{"text":"This answer is cut ","pieces":4,"end":"cut"}"#),
    ("reset", r#"{"text":"This answer is reset ","pieces":4,"end":"reset"}"#),
    // Timeout
    ("no-head", r#"{"head_ms":86400000}"#),
    ("silent", r#"{"end":"hang"}"#),
    ("stall", r#"{"text":"This answer stalls ","pieces":4,"end":"hang"}"#),
    // Protocol
    ("corrupt", r#"{"end":"corrupt_crc"}"#),
    ("corrupt-prelude", r#"{"end":"corrupt_prelude"}"#),
    ("corrupt-length", r#"{"end":"corrupt_length"}"#),
    ("corrupt-late", r#"{"text":"This answer goes wrong ","pieces":4,"end":"corrupt_crc"}"#),
    ("leftover", r#"{"text":"This answer ends inside a frame ","pieces":4,"end":"leftover"}"#),
    ("unknown-message-type", r#"{"steps":[{"headers":{":message-type":"surprise"},"raw":"{}"}]}"#),
    ("broken-payload", r#"{"steps":[{"event":"assistantResponseEvent","raw":"{\"content\":"}]}"#),
    (
        "200-json",
        r#"{"http":{"status":200,"body":{"__type":"com.amazon.aws.codewhisperer#ThrottlingException","message":"Too many requests."}}}"#,
    ),
    ("200-unknown", r#"{"http":{"status":200,"headers":{"content-type":"text/html"},"body":"<html>hello</html>"}}"#),
    // Endpoint
    ("404", r#"{"http":{"status":404,"type":"UnknownOperationException","message":"Not found"}}"#),
    ("405", r#"{"http":{"status":405,"message":"Method not allowed"}}"#),
    ("415", r#"{"http":{"status":415,"message":"Unsupported media type"}}"#),
    // Exceptions that mean no failure, and the output limit (K36, K37)
    (
        "ghost",
        r#"{"text":"A whole answer.","usage":true,"exception":{"type":"InternalServerException","message":"Ghost."}}"#,
    ),
    (
        "output-limit",
        r#"{"text":"An answer that was too lo","exception":{"type":"ContentLengthExceededException","message":"Output limit."}}"#,
    ),
    // Differences of the world: for one account as a token preset, for all as a world. Each comment names a check of
    // `doctor --live` (K139). Version accepted per call and host
    ("old-version", r#"{"world":{"min_version":"9999.0.0"}}"#),
    ("old-version-q", r#"{"world":{"min_version":{"q":"9999.0.0"}}}"#),
    ("old-version-runtime", r#"{"world":{"min_version":{"runtime":"9999.0.0"}}}"#),
    ("old-version-usage", r#"{"world":{"min_version":{"usage":"9999.0.0"}}}"#),
    ("any-version", r#"{"world":{"min_version":null}}"#),
    ("any-client", r#"{"world":{"agents":false,"min_version":null}}"#),
    // Both shapes, and which members of the runtime body are taken
    ("gone-q", r#"{"when":{"shape":"q"},"everywhere":true,"gone":true}"#),
    ("gone-runtime", r#"{"when":{"shape":"runtime"},"everywhere":true,"gone":true}"#),
    ("deprecated-q", r#"{"when":{"shape":"q"},"everywhere":true,"deprecated":true}"#),
    ("dns-q", r#"{"world":{"dns":["q"]}}"#),
    ("dns-runtime", r#"{"world":{"dns":["runtime"]}}"#),
    ("throttled-q", r#"{"throttle":{"shape":"q"}}"#),
    ("throttled-runtime", r#"{"throttle":{"shape":"runtime"}}"#),
    (
        "wrong-app",
        r#"{"when":{"shape":"q"},"http":{"status":403,"type":"AccessDeniedException","message":"Your subscription does not support this application."}}"#,
    ),
    (
        "no-continuation",
        r#"{"when":{"shape":"runtime","members":["agentContinuationId","agentTaskType","agentMode","rootConversationId"]},"http":{"status":400,"type":"ValidationException","reason":"REQUEST_BODY_INVALID","message":"Improperly formed request."}}"#,
    ),
    (
        "no-silent-fields",
        r#"{"when":{"shape":"runtime","fields":true},"http":{"status":400,"type":"ValidationException","reason":"REQUEST_BODY_INVALID","message":"Improperly formed request."}}"#,
    ),
    // Variants of the profile, usage with and without ARN
    (
        "needs-arn",
        r#"{"when":{"profile_arn":false},"http":{"status":400,"type":"ValidationException","message":"profileArn is required for this request."}}"#,
    ),
    (
        "needs-arn-runtime",
        r#"{"when":{"shape":"runtime","profile_arn":false},"http":{"status":400,"type":"ValidationException","message":"profileArn is required for this request."}}"#,
    ),
    (
        "no-service-arn",
        r#"{"when":{"service_arn":true},"http":{"status":403,"type":"AccessDeniedException","message":"User is not authorized to make this call."}}"#,
    ),
    (
        "usage-without-arn",
        r#"{"when":{"call":"usage","profile_arn":true},"http":{"status":400,"type":"ValidationException","message":"Improperly formed request."}}"#,
    ),
    (
        "usage-needs-arn",
        r#"{"when":{"call":"usage","profile_arn":false},"http":{"status":400,"type":"ValidationException","message":"profileArn is required for this request."}}"#,
    ),
    // Catalogue
    ("free-tier", r#"{"world":{"models":["claude-sonnet-4.5","claude-opus-4.5","claude-haiku-4.5"]}}"#),
    ("new-model", r#"{"world":{"more_models":[{"id":"claude-opus-9.9","window":2000000}]}}"#),
    ("other-windows", r#"{"world":{"windows":300000}}"#),
    ("no-schemas", r#"{"world":{"schemas":null}}"#),
    // Reasoning seen, signature seen, effort accepted, max_tokens accepted
    (
        "no-fields",
        r#"{"when":{"fields":true},"http":{"status":400,"type":"ValidationException","reason":"REQUEST_BODY_INVALID","message":"additionalModelRequestFields is not supported for this model"}}"#,
    ),
    ("fields-strict", r#"{"world":{"fields_refused":["display","output_config"]}}"#),
    ("no-xhigh", r#"{"world":{"fields_refused":["xhigh"]}}"#),
    ("no-max-tokens", r#"{"world":{"fields_refused":["max_tokens"]}}"#),
    ("no-thinking", r#"{"world":{"thinking":"none"}}"#),
    ("no-signature", r#"{"world":{"thinking":"unsigned"}}"#),
    ("signature-only", r#"{"world":{"thinking":"signature-only"}}"#),
    ("segments", r#"{"world":{"segments":3}}"#),
    // Schemas of tools, an image beside a tool result, a document, a cache point
    (
        "plain-schemas",
        r#"{"when":{"schema_keywords":true},"http":{"status":400,"type":"ValidationException","reason":"TOOL_SCHEMA_INVALID","message":"Invalid tool schema."}}"#,
    ),
    (
        "no-result-images",
        r#"{"when":{"result_images":true},"http":{"status":400,"type":"ValidationException","message":"Improperly formed request."}}"#,
    ),
    (
        "no-documents",
        r#"{"when":{"documents":true},"http":{"status":400,"type":"ValidationException","message":"Improperly formed request."}}"#,
    ),
    (
        "no-cache-points",
        r#"{"when":{"cache_points":true},"http":{"status":400,"type":"ValidationException","message":"Improperly formed request."}}"#,
    ),
    // Two equal turns for the credits
    ("no-discount", r#"{"world":{"discount":false}}"#),
    // Replay of a signed thought
    ("signature-bound", r#"{"world":{"bind":"strict"}}"#),
    ("signature-free", r#"{"world":{"bind":"off"}}"#),
    (
        "no-replay",
        r#"{"when":{"reasoning":true},"http":{"status":400,"type":"ValidationException","message":"Invalid `signature` in `thinking` block. The block is bound to a different conversation."}}"#,
    ),
    // One web search
    ("search-down", r#"{"world":{"search":"error"}}"#),
    // Rounds of a message: the model calls a search and the client's tool `f`; structured output and its complaint
    (
        "search-mixed",
        r#"{"world":{"rules":[{"when":{"call":"chat","round":1},"tools":[{"name":"web_search","id":"tooluse_mixed_1","input":{"query":"rust"}},{"name":"f","id":"tooluse_mixed_2","input":{}}]}]}}"#,
    ),
    ("structured", r#"{"text":"```json\n{\"title\":\"Simulated title\"}\n```","pieces":4}"#),
    (
        "structured-bad-once",
        r#"{"world":{"rules":[{"when":{"call":"chat","says":"Your reply can't be used"},"text":"{\"title\":\"Simulated title\"}"},{"when":{"call":"chat"},"text":"No JSON this time."}]}}"#,
    ),
    ("structured-bad", r#"{"text":"No JSON at any time."}"#),
    // The largest body and the largest picture that pass
    (
        "small-bodies",
        r#"{"when":{"body_over":200000},"http":{"status":400,"type":"ValidationException","message":"Improperly formed request."}}"#,
    ),
    ("body-limit", r#"{"world":{"max_body":1085440}}"#),
    (
        "small-pictures",
        r#"{"when":{"image_over":400000},"http":{"status":400,"type":"ValidationException","reason":"IMAGE_SIZE_EXCEEDED","message":"The image is too large."}}"#,
    ),
    // Stop order of the end events
    ("no-end-events", r#"{"world":{"end":[]}}"#),
    ("other-end-order", r#"{"world":{"end":["metering","metadata","context"]}}"#),
    // Refresh tokens work once in every world; in this one access tokens end, too
    ("one-time-tokens", r#"{"world":{"token_life":2}}"#),
    // Each account has a little, and answers use it up
    ("runs-dry", r#"{"world":{"credits":0.05}}"#),
    // Percentage × window against tokenUsage
    ("token-usage", r#"{"world":{"tokens":true}}"#),
    ("usage-window", r#"{"world":{"tokens":true,"usage_window":454000}}"#),
];

/// Rounds in which `search-forever` calls a search.
const SEARCHING_ROUNDS: usize = 120;

/// The scenario called `name`, as JSON: one of [`PRESETS`], or one with a parameter:
/// `429-retry-after-N` (seconds) · `reason-NAME` (a 400 with that reason) · `exception-TYPE` and `error-CODE` (the
/// first frame) · `late-exception-TYPE` and `late-error-CODE` (after text) · `one-time-tokens-N` (seconds of an access
/// token) · any status from 400 to 599. And `search-forever`: the model calls another search in each round.
pub(super) fn find(name: &str) -> Option<Value> {
    if let Some((_, json)) = PRESETS.iter().find(|(preset, _)| *preset == name) {
        return serde_json::from_str(json).ok();
    }
    let with = |prefix: &str| name.strip_prefix(prefix).filter(|parameter| !parameter.is_empty());
    let text = "This answer goes wrong ";
    if let Some(seconds) = with("429-retry-after-").and_then(|seconds| seconds.parse::<u32>().ok()) {
        let http = json!({
            "status": 429, "type": "ThrottlingException", "message": "Too many requests, please wait before trying again.",
            "headers": { "retry-after": seconds.to_string() },
        });
        return Some(json!({ "http": http }));
    }
    if let Some(reason) = with("reason-") {
        let message = "Improperly formed request.";
        return Some(json!({
            "http": { "status": 400, "type": "ValidationException", "reason": reason, "message": message },
        }));
    }
    if let Some(kind) = with("exception-") {
        return Some(json!({ "exception": kind }));
    }
    if let Some(code) = with("error-") {
        return Some(json!({ "error": { "code": code } }));
    }
    if let Some(kind) = with("late-exception-") {
        return Some(json!({ "text": text, "pieces": 4, "exception": kind }));
    }
    if let Some(code) = with("late-error-") {
        return Some(json!({ "text": text, "pieces": 4, "error": { "code": code } }));
    }
    if let Some(seconds) = with("one-time-tokens-").and_then(|seconds| seconds.parse::<u32>().ok()) {
        return Some(json!({ "world": { "token_life": seconds } }));
    }
    if name == "search-forever" {
        let rules = (1..=SEARCHING_ROUNDS).map(|round| {
            let search = json!({
                "name": "web_search", "id": format!("tooluse_search_{round}"), "input": { "query": format!("rust {round}") },
            });
            json!({ "when": { "call": "chat", "round": round }, "tools": [search] })
        });
        return Some(json!({ "world": { "rules": rules.collect::<Vec<_>>() } }));
    }
    let status = name.parse::<u16>().ok().filter(|status| name.len() == 3 && (400..=599).contains(status))?;
    Some(json!({ "http": { "status": status } }))
}

#[cfg(test)]
mod tests {
    use super::super::refresh_answer::{REFRESH_PRESETS, RefreshAnswer};
    use super::super::scenario::Scenario;
    use super::*;

    #[test]
    fn every_preset_is_a_scenario_and_no_two_share_a_name() {
        for (n, (name, _)) in PRESETS.iter().enumerate() {
            assert!(Scenario::preset(name).is_some_and(|scenario| scenario.is_ok()), "{name}");
            assert!(Scenario::preset(&format!("sim-{name}")).is_some(), "{name}");
            assert!(!name.contains('.'), "{name}: what follows a dot is not read");
            assert!(PRESETS[..n].iter().all(|(other, _)| other != name), "{name} twice");
        }
        let with_parameter = [
            "429-retry-after-7",
            "reason-TOOL_DUPLICATE",
            "exception-ThrottlingException",
            "error-Oops",
            "late-exception-InternalServerException",
            "late-error-Oops",
            "one-time-tokens-5",
            "search-forever",
            "418",
            "599",
        ];
        for name in with_parameter {
            assert!(Scenario::preset(name).is_some_and(|scenario| scenario.is_ok()), "{name}");
        }
        for name in ["", "200", "600", "4290", "reason-", "exception-", "429-retry-after-", "429-retry-after-soon"] {
            assert!(Scenario::preset(name).is_none(), "{name}");
        }
        for (name, json) in REFRESH_PRESETS {
            assert!(RefreshAnswer::from_value(serde_json::from_str(json).unwrap()).is_ok(), "{name}");
        }
    }

    #[test]
    fn every_preset_is_in_the_documentation() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/simulator.md");
        let docs = std::fs::read_to_string(path).unwrap();
        for (name, _) in PRESETS.iter().chain(REFRESH_PRESETS) {
            assert!(docs.contains(&format!("`{name}`")), "docs/simulator.md doesn't have `{name}`");
        }
    }
}
