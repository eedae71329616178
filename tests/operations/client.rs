//! `kiro-server client`: settings on standard output, checks by real calls on standard error.

use std::net::TcpListener;
use std::process::{Command, Output};

use serde_json::Value;

use crate::place::Server;

const CLIENTS: [&str; 6] = ["claude-code", "anthropic-sdk", "langchain", "ai-sdk", "opencode", "continue"];

fn run(environment: &[(&str, &str)], arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiro-server"));
    let Output { status, stdout, stderr } =
        command.arg("client").args(arguments).env_clear().envs(environment.iter().copied()).output().unwrap();
    (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

#[test]
fn every_client_gets_settings_that_are_checked_by_real_calls() {
    let server = Server::start(&[], &[("KIRO_API_KEY", "right-1")]);
    let url = format!("http://{}", server.address());
    for client in CLIENTS {
        // Its address may have been written as another client wants it.
        let (code, settings, said) = run(&[], &[client, "--url", &format!("{url}/v1/"), "--key", "right-1"]);
        assert_eq!(code, 0, "{client}: {said}");
        assert!(settings.contains(&url) && settings.contains("right-1"), "{client}: {settings}");
        assert_eq!(settings.contains(&format!("{url}/v1")), ["ai-sdk", "opencode", "continue"].contains(&client));
        assert_eq!(said.matches('✓').count(), 4, "{client}: {said}");
        assert!(!said.contains("right-1"), "{said}");
    }
    // What a shell takes is what it says.
    let (_, settings, _) = run(&[], &["claude-code", "--url", &url, "--key", "it's $HOME", "--no-check"]);
    let script = format!("{settings}\nprintf %s \"$ANTHROPIC_BASE_URL|$ANTHROPIC_AUTH_TOKEN\"");
    let shell = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert_eq!(String::from_utf8(shell.stdout).unwrap(), format!("{url}|it's $HOME"));
    let (_, settings, _) = run(&[], &["opencode", "--url", &url, "--key", "a\"b", "--no-check"]);
    let settings: Value = serde_json::from_str(&settings).unwrap();
    assert_eq!(settings["provider"]["anthropic"]["options"]["apiKey"], "a\"b");
}

#[test]
fn a_key_of_the_settings_is_used_and_shown_only_on_request() {
    let server = Server::start(&[], &[("KIRO_API_KEY", "right-1")]);
    let url = format!("http://{}", server.address());
    let environment = [("KIRO_API_KEY", "right-1")];
    let (code, settings, said) = run(&environment, &["claude-code", "--url", &url]);
    assert_eq!(code, 0, "{said}");
    assert!(settings.contains("the-client-key") && said.contains("--show-key"), "{settings}{said}");
    let (_, report, said_json) = run(&environment, &["claude-code", "--url", &url, "--json"]);
    assert!(![&settings, &said, &report, &said_json].iter().any(|text| text.contains("right-1")));
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!((&report["ok"], report["checks"].as_array().unwrap().len()), (&Value::Bool(true), 4));
    let (_, settings, _) = run(&environment, &["claude-code", "--url", &url, "--show-key"]);
    assert!(settings.contains("ANTHROPIC_AUTH_TOKEN=right-1"), "{settings}");
}

#[test]
fn what_is_wrong_has_its_cure_and_an_exit_code() {
    let server = Server::start(&[], &[("KIRO_API_KEY", "right-1")]);
    let url = format!("http://{}", server.address());
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    // Its own accounts are empty.
    let folder = tempfile::tempdir().unwrap();
    let store = format!("file:{}", folder.path().join("pool.json").display());
    let empty = Server::start(&[], &[("KIRO_STORE", &store), ("KIRO_UPSTREAM", "kiro")]);
    let empty_url = format!("http://{}", empty.address());
    for (arguments, wrong, cure) in [
        (vec!["--url", &url, "--key", "wrong-1"], "key: the server refuses it", "keys list` at the server"),
        (vec!["--url", &url], "key: the server asks for one", "--key or KIRO_API_KEY"),
        (vec!["--url", &format!("http://{free}")], "address: ", "start kiro-server there"),
        (vec!["--url", &format!("{url}/elsewhere")], "is no kiro-server: /health has status 404", "--url, without /v1"),
        (vec!["--url", &empty_url], "can't serve now", "`kiro-server doctor` says why"),
    ] {
        let (code, settings, said) = run(&[], &[&["claude-code"], &arguments[..]].concat());
        assert_eq!(code, 1, "{arguments:?}: {said}");
        assert!(said.contains(wrong) && said.contains(cure), "{arguments:?}: {said}");
        assert_eq!(said.matches('✗').count(), 1, "{said}");
        assert!(settings.starts_with("export ANTHROPIC_BASE_URL="), "{settings}");
        assert!(!said.contains("wrong-1"), "{said}");
    }
    for (client, needed) in [("codex", "/v1/responses"), ("cursor", "/v1/chat/completions")] {
        let (code, settings, said) = run(&[], &[client]);
        assert_eq!((code, settings.as_str()), (1, ""), "{client}");
        assert!(said.contains("Messages API alone") && said.contains(needed), "{said}");
    }
    for arguments in [&["nobody"][..], &["claude-code", "--url", "ftp://h"], &["claude-code", "--url", "localhost"]] {
        assert_eq!(run(&[], arguments).0, 2, "{arguments:?}");
    }
    let (code, list, _) = run(&[], &[]);
    assert_eq!(code, 0);
    assert!(CLIENTS.iter().chain(&["codex", "cursor"]).all(|client| list.contains(client)), "{list}");
}
