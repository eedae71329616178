//! `health`: whether a running server can serve. For images without a shell.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::ExitCode;
use std::time::Duration;

use clap::ArgMatches;
use kiro_messages::config::Config;
use serde_json::Value;

use super::output::{CommandFailure, innermost, show, show_json};

/// Docker's and Kubernetes' probes give up after a few seconds; this must be sooner.
const ANSWER_WITHIN: Duration = Duration::from_secs(4);

pub async fn run(config: &Config, options: &ArgMatches) -> Result<ExitCode, CommandFailure> {
    let url = address(config, options)? + "/health";
    // reqwest needs a TLS provider even for a plain http address, and none is installed yet.
    let _there_already = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder()
        .no_proxy()
        // Our own server, under an address that no certificate names. Nothing secret is sent, and only its health is
        // read.
        .danger_accept_invalid_certs(options.get_one::<String>("url").is_none())
        .timeout(ANSWER_WITHIN)
        .build()
        .map_err(|error| CommandFailure::new(error.to_string()))?;
    let answer =
        client.get(&url).send().await.map_err(|error| CommandFailure::new(format!("{url}: {}", innermost(&error))))?;
    let status = answer.status();
    let health: Value = answer
        .text()
        .await
        .ok()
        .and_then(|text| serde_json::from_str(&text).ok())
        .filter(Value::is_object)
        .ok_or_else(|| CommandFailure::new(format!("{url}: status {status}, and it isn't kiro-server's answer")))?;
    if options.get_flag("json") {
        show_json(&health)?;
    } else {
        show(&in_words(&health, status.is_success()))?;
    }
    Ok(if status.is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One line, and one more for each problem that an operator can solve (K107).
fn in_words(health: &Value, can_serve: bool) -> String {
    let word = |pointer: &str| health.pointer(pointer).map_or_else(|| "?".to_owned(), plain);
    let [state, store, healthy, total] = ["/status", "/redis", "/accounts/healthy", "/accounts/total"].map(word);
    let serves = if can_serve { "" } else { ", can't serve" };
    let mut text = format!("{state}{serves}: store {store}, {healthy} of {total} accounts in service\n");
    if health.pointer("/clientVersion/refused") == Some(&Value::Bool(true)) {
        let [version, since] = ["/clientVersion/value", "/clientVersion/since"].map(word);
        text.push_str(&format!(
            "Kiro refuses client version {version} since {since}: update kiro-server, or set KIRO_CLIENT_VERSION to a newer one\n"
        ));
    }
    let journal = health.get("journal").and_then(Value::as_str).unwrap_or_default();
    if journal == "broken" {
        text.push_str("KIRO_STATE_DIR can't be written: tokens that wait to be saved are kept nowhere\n");
    }
    let unsaved = health.get("unsavedTokens").and_then(Value::as_u64).unwrap_or(0);
    if unsaved > 0 {
        let advice = if journal == "ok" { "a restart keeps them" } else { "a restart now would lose them" };
        text.push_str(&format!("{unsaved} refreshed tokens wait to be saved; {advice}\n"));
    }
    let hosts = health.get("hosts").and_then(Value::as_object).into_iter().flatten();
    let open: Vec<&str> = hosts.filter(|(_, state)| *state == "open").map(|(host, _)| host.as_str()).collect();
    if !open.is_empty() {
        text.push_str(&format!("left alone for a while, since they don't answer: {}\n", open.join(", ")));
    }
    text
}

/// The server's address, as `--url` says or by its settings, without `/v1` and a slash at the end.
pub fn address(config: &Config, options: &ArgMatches) -> Result<String, CommandFailure> {
    let Some(url) = options.get_one::<String>("url") else { return own_address(config) };
    let url = url.trim_end_matches('/');
    let url = url.strip_suffix("/v1").unwrap_or(url);
    match reqwest::Url::parse(url) {
        Ok(parsed) if matches!(parsed.scheme(), "http" | "https") && parsed.query().is_none() => Ok(url.to_owned()),
        _ => Err(CommandFailure::usage("--url: must be the server's address, such as http://127.0.0.1:8081")),
    }
}

/// Where a server with these settings listens, without a slash at the end; on loopback when it listens everywhere.
fn own_address(config: &Config) -> Result<String, CommandFailure> {
    let mut address = config.listen;
    if address.port() == 0 {
        return Err(CommandFailure::usage("the port is 0, so the server took a free one: name it with --url"));
    }
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    Ok(format!("{scheme}://{address}"))
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn problems_that_an_operator_can_solve_are_named_k107_k120() {
        let mut health = json!({
            "status": "degraded", "redis": "connected", "accounts": { "total": 4, "healthy": 4 },
            "hosts": { "q.us-east-1.amazonaws.com": "closed" },
            "clientVersion": { "value": "0.8.140", "refused": true, "since": "2026-11-09T00:00:00.000Z" },
        });
        assert_eq!(
            in_words(&health, false),
            "degraded, can't serve: store connected, 4 of 4 accounts in service\nKiro refuses client version 0.8.140 since \
             2026-11-09T00:00:00.000Z: update kiro-server, or set KIRO_CLIENT_VERSION to a newer one\n"
        );
        health["clientVersion"] = json!({ "value": "1.1.70", "refused": false });
        assert_eq!(in_words(&health, true), "degraded: store connected, 4 of 4 accounts in service\n");
        health["hosts"]["runtime.us-east-1.kiro.dev"] = json!("open");
        assert!(in_words(&health, true).ends_with("since they don't answer: runtime.us-east-1.kiro.dev\n"));
        for (journal, told) in [
            ("off", "service\n2 refreshed tokens wait to be saved; a restart now would lose them\n"),
            ("ok", "service\n2 refreshed tokens wait to be saved; a restart keeps them\n"),
            (
                "broken",
                "service\nKIRO_STATE_DIR can't be written: tokens that wait to be saved are kept nowhere\n\
                 2 refreshed tokens wait to be saved; a restart now would lose them\n",
            ),
        ] {
            let text = in_words(&json!({ "unsavedTokens": 2, "journal": journal }), true);
            assert!(text.ends_with(told), "{text}");
        }
        assert_eq!(in_words(&json!({}), true), "?: store ?, ? of ? accounts in service\n");
    }
}
