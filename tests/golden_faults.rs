//! Every row of the fault table (K45), K42–K49: `tests/golden/faults.txt` says what upstream
//! sends and what becomes of it for the account, the next attempt and the client.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]

use std::collections::BTreeSet;
use std::time::Duration;

use kiro_messages::policy::health::{Effect, Rules, effect};
use kiro_messages::policy::retry::{AttemptLimits, Budget, Remedy, Sent, Verdict};
use kiro_messages::proto::kiro::fault::{Exception, Fault, FaultKind, RetryAfter};
use kiro_messages::proto::translate::fault::{PromptSize, api_error};

const TABLE: &str = include_str!("golden/faults.txt");
const PROMPT: PromptSize = PromptSize { estimate: 150_000, window: 172_500 };

#[test]
fn every_row_is_classified_as_the_table_says_k38_k42_k43_k44_k45() {
    for (input, expected) in rows() {
        assert_eq!(projections(&fault(input)), expected, "{input}");
    }
}

#[test]
fn every_kind_and_every_reason_has_a_row_k45() {
    let kinds: BTreeSet<FaultKind> = rows().iter().map(|(input, _)| fault(input).kind).collect();
    assert_eq!(kinds, FaultKind::ALL.into_iter().collect());
    let reasons: BTreeSet<String> =
        rows().iter().filter_map(|(input, _)| fault(input).reason).map(|said| said.to_string()).collect();
    for reason in [
        "CONTENT_LENGTH_EXCEEDS_THRESHOLD PROMPT_TOO_LONG INVALID_MODEL_ID THINKING_SIGNATURE_INVALID",
        "REQUEST_BODY_INVALID REQUEST_BODY_INVALID_JSON TOOL_CONFIG_MISSING TOOL_DUPLICATE TOOL_SCHEMA_INVALID",
        "TOOL_USE_RESULT_MISMATCH INVALID_CONVERSATION_ID INVALID_KMS_GRANT IMAGE_COUNT_EXCEEDED",
        "IMAGE_DIMENSION_EXCEEDED IMAGE_FORMAT_UNSUPPORTED IMAGE_MIME_MISMATCH IMAGE_SIZE_EXCEEDED",
        "DOCUMENT_COUNT_EXCEEDED DOCUMENT_DUPLICATE_NAME DOCUMENT_MAXIMUM_PAGES_EXCEEDED",
        "DOCUMENT_MODEL_NOT_SUPPORTED DOCUMENT_PASSWORD_PROTECTED DOCUMENT_SIZE_EXCEEDED CONVERSATION_LIMIT_EXCEEDED",
        "TEMPORARILY_SUSPENDED FEATURE_NOT_SUPPORTED MONTHLY_REQUEST_COUNT OVERAGE_REQUEST_LIMIT_EXCEEDED",
        "DAILY_REQUEST_COUNT INSUFFICIENT_MODEL_CAPACITY MODEL_TEMPORARILY_UNAVAILABLE USER_REQUEST_RATE_EXCEEDED",
        "SERVICE_REQUEST_RATE_EXCEEDED CREDIT_CONSUMPTION_RATE_EXCEEDED",
    ]
    .join(" ")
    .split(' ')
    {
        assert!(reasons.contains(reason), "{reason} has no row");
    }
}

/// K45: total. Every status has a class, and none panics, whatever the body.
#[test]
fn every_status_is_classified_k45() {
    let bodies: [&[u8]; 8] = [b"", b"{", b"[]", b"null", b"\"x\"", b"\xff\xfe", br#"{"message":5,"reason":[]}"#, b"{}"];
    for status in 0..=1_000 {
        for body in bodies {
            let kind = Fault::from_http(status, None, None, body, false, &Default::default()).kind;
            match status {
                402 => assert_eq!(kind, FaultKind::QuotaMonth),
                400..=499 => assert_ne!(kind, FaultKind::Protocol, "{status}"),
                529 => assert_eq!(kind, FaultKind::ModelCapacity),
                500..=599 => assert_eq!(kind, FaultKind::ServerError, "{status}"),
                300..=399 => assert_eq!(kind, FaultKind::Endpoint),
                _ => assert_eq!(kind, FaultKind::Protocol, "{status}"),
            }
        }
    }
}

#[test]
fn retry_after_is_seconds_or_a_date_or_ignored_k46() {
    let read = |header| Fault::from_http(429, None, header, b"{}", false, &Default::default()).retry_after;
    assert_eq!(read(Some("7")), Some(RetryAfter::Seconds(7)));
    assert_eq!(read(Some(" 0 ")), Some(RetryAfter::Seconds(0)));
    let date = "1994-11-06T08:49:37Z".parse().unwrap();
    for form in ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"] {
        assert_eq!(read(Some(form)), Some(RetryAfter::At(date)), "{form}");
    }
    for ignored in [
        "Sunday, 31-Nov-94 08:49:37 GMT",
        "1994-11-06T08:49:37Z",
        "",
        "-1",
        "1.5",
        "soon",
        "7s",
        "99999999999999999999999",
        "0x7",
        "+7",
    ] {
        assert_eq!(read(Some(ignored)), None, "{ignored}");
    }
    assert_eq!(read(None), None);
}

/// K48, trap 41: upstream's text reaches the client for three kinds only, and `Display` never shows it. The text of
/// `Unreachable` is ours: nobody answered.
#[test]
fn upstream_text_is_not_for_clients_k48_m63_trap41() {
    let secret = "user d-9067.a1b2 arn:aws:codewhisperer:us-east-1:123:profile/X";
    for kind in FaultKind::ALL {
        let fault = Fault { kind, status: Some(400), reason: None, message: secret.into(), retry_after: None };
        let shown = api_error(&fault, PROMPT).message.contains("d-9067");
        let allowed = matches!(
            kind,
            FaultKind::BadRequest
                | FaultKind::ModelFields
                | FaultKind::UnknownModel
                | FaultKind::TooLarge
                | FaultKind::Unreachable
        );
        assert_eq!(shown, allowed, "{kind}");
        assert!(!fault.to_string().contains("d-9067"));
    }
}

/// TS25: upstream's text is cut at 1,000 characters.
#[test]
fn error_text_is_bounded_ts25() {
    let body = format!(r#"{{"message":"{}","reason":"{}"}}"#, "é".repeat(5_000), "R".repeat(5_000));
    let fault = Fault::from_http(400, None, None, body.as_bytes(), false, &Default::default());
    assert_eq!(fault.message.chars().count(), 1_000);
    assert_eq!(fault.reason.as_ref().unwrap().len(), 1_000);
    assert_eq!(api_error(&fault, PROMPT).message.chars().count(), 1_000);
}

/// M62, TV58: n is the larger of our estimate and the window + 1.
#[test]
fn a_long_prompt_gets_the_sentence_that_clients_know_m62_tv58() {
    let fault = Fault::from_http(400, None, None, br#"{"message":"Input is too long"}"#, false, &Default::default());
    let sentence = |estimate| api_error(&fault, PromptSize { estimate, window: 200_000 }).message;
    assert_eq!(sentence(150_000), "prompt is too long: 200001 tokens > 200000 maximum");
    assert_eq!(sentence(250_000), "prompt is too long: 250000 tokens > 200000 maximum");
}

/// K37, TS16: no fault, wherever the name stands.
#[test]
fn the_output_limit_is_no_fault_k37() {
    for name in ["ContentLengthExceededException", "com.amazon#ContentLengthExceededException:x"] {
        assert_eq!(Exception::from_frame(Some(name), b"{}"), Exception::OutputLimit);
        assert_eq!(Exception::from_error_frame(Some(name), Some("m")), Exception::OutputLimit);
    }
    let body = br#"{"__type":"ns#ContentLengthExceededException","message":"m"}"#;
    assert_eq!(Exception::from_frame(Some("error"), body), Exception::OutputLimit);
}

/// In-band faults of an API key account: there is no token to refresh.
#[test]
fn an_api_key_account_has_no_token_to_refresh() {
    for kind in FaultKind::ALL {
        let fault = Fault { kind, status: None, reason: None, message: Default::default(), retry_after: None };
        let expected = if kind == FaultKind::TokenRejected { FaultKind::Forbidden } else { kind };
        assert_eq!(fault.for_api_key_account().kind, expected);
    }
}

/// (input, expected) of every row.
fn rows() -> Vec<(&'static str, &'static str)> {
    let mut lines = TABLE.lines().skip_while(|line| !line.starts_with("# ")).filter(|line| !line.is_empty());
    let mut rows = Vec::new();
    while let Some(line) = lines.next() {
        if !line.starts_with("# ") {
            rows.push((line, lines.next().unwrap().strip_prefix("    ").unwrap()));
        }
    }
    assert!(rows.len() > 90, "only {} rows", rows.len());
    rows
}

fn fault(input: &str) -> Fault {
    let (form, rest) = input.split_once(' ').unwrap();
    let (word, mut rest) = rest.split_once(' ').unwrap_or((rest, ""));
    match form {
        "http" => {
            let (mut name, mut retry_after, mut api_key) = (None, None, false);
            loop {
                if let Some(after) = rest.strip_prefix("type ") {
                    let (value, after) = after.split_once(' ').unwrap();
                    (name, rest) = (Some(value), after);
                } else if let Some(after) = rest.strip_prefix("retry-after ") {
                    let (value, after) = after.split_once(' ').unwrap();
                    (retry_after, rest) = (Some(value), after);
                } else if let Some(after) = rest.strip_prefix("api-key ") {
                    (api_key, rest) = (true, after);
                } else {
                    break;
                }
            }
            Fault::from_http(word.parse().unwrap(), name, retry_after, rest.as_bytes(), api_key, &Default::default())
        }
        "exception" => in_band(Exception::from_frame(Some(word), rest.as_bytes())),
        "error" => in_band(Exception::from_error_frame(Some(word), Some(rest))),
        "ours" => match word {
            "network" => Fault::network("reset"),
            "unreachable" => Fault::unreachable("no such host"),
            "timeout" => Fault::timeout("idle"),
            "protocol" => Fault::protocol("bad frame"),
            other => panic!("{other}"),
        },
        other => panic!("{other}"),
    }
}

fn in_band(exception: Exception) -> Fault {
    match exception {
        Exception::Fault(fault) => fault,
        Exception::OutputLimit => panic!("no fault"),
    }
}

/// `KIND | account | verdict | client`
fn projections(fault: &Fault) -> String {
    let rules = Rules { cool_down: Duration::from_secs(60) };
    let account = |again| match effect(fault.kind, again, rules) {
        Effect::Nothing => "nothing".to_owned(),
        Effect::Counted => "counted".to_owned(),
        Effect::Rest(rest) => format!("rest {}s", rest.as_secs()),
        Effect::QuotaMonth => "quota of the month".to_owned(),
        Effect::QuotaDay => "quota of the day".to_owned(),
        Effect::Eject => "eject".to_owned(),
    };
    let next = |again| {
        let limits = AttemptLimits { attempts: 3, accounts: 8, time: Duration::ZERO };
        let mut budget = Budget::new(limits);
        budget.next_account();
        let rng = &mut fastrand::Rng::with_seed(1);
        let all = Sent {
            reasoning: true,
            fields: true,
            variant_proven: false,
            variant_left: true,
            shape_left: true,
            model_id_left: true,
            ..Sent::PLAIN
        };
        let sent = if again { Sent { refreshable: false, variant_proven: false, ..Sent::PLAIN } } else { all };
        match budget.fault(fault.clone(), &sent, Duration::ZERO, false, rng) {
            Verdict::Stop => "stop",
            Verdict::SameAccount(Remedy::RefreshToken) => "same with a new token",
            Verdict::SameAccount(Remedy::WithoutReasoning) => "same without reasoning",
            Verdict::SameAccount(Remedy::OtherFields) => "same with other fields",
            Verdict::SameAccount(Remedy::OtherModelId) => "same with the model's other id",
            Verdict::SameAccount(Remedy::NextVariant) => "same with another profile",
            Verdict::SameAccount(Remedy::OtherShape) => "same in the other shape",
            Verdict::SameAccount(_) => "same, repaired",
            Verdict::OtherRegion => "another region",
            Verdict::NextAccount { after } if after.is_zero() => "next",
            Verdict::NextAccount { .. } => "next after a wait",
        }
        .to_owned()
    };
    let client = api_error(fault, PROMPT);
    format!(
        "{} | {} | {} | {} {} {}",
        fault.kind,
        twice(account(false), account(true)),
        twice(next(false), next(true)),
        client.status,
        client.kind,
        client.message
    )
}

fn twice(first: String, second: String) -> String {
    if first == second { first } else { format!("{first}, then {second}") }
}
