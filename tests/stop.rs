//! What a signal does to `kiro-server`, from outside.
#![cfg(all(unix, feature = "server"))]

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

/// SIGTERM the moment it says that it listens: handlers must be there before anybody is told. Whoever starts it under a
/// supervisor sees a clean end and not a death by signal.
#[test]
fn a_signal_right_after_the_start_is_a_clean_end() {
    let store = std::env::temp_dir().join(format!("kiro-stop-{}.json", std::process::id()));
    let store_setting = format!("file:{}", store.display());
    let serve = ["--port", "0", "--upstream", "simulator", "--store", &store_setting];
    let simulate = ["simulate", "--listen", "127.0.0.1:0"];
    for _ in 0..20 {
        for args in [&serve[..], &simulate[..]] {
            let mut server = Command::new(env!("CARGO_BIN_EXE_kiro-server"))
                .args(args)
                .env("KIRO_LOG_FORMAT", "json")
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            // A shell that stands ready, since starting one takes longer than the gap that is looked for.
            let mut killer = Command::new("sh")
                .args(["-c", "read _; kill -TERM $0", &server.id().to_string()])
                .stdin(Stdio::piped())
                .spawn()
                .unwrap();
            let mut said = BufReader::new(server.stderr.take().unwrap()).lines().map_while(Result::ok);
            assert!(said.any(|line| line.contains("\"address\"")), "{args:?} listens");
            killer.stdin.take().unwrap().write_all(b"\n").unwrap();
            let rest: Vec<_> = said.collect();
            assert!(killer.wait().unwrap().success());
            assert_eq!(server.wait().unwrap().code(), Some(0), "{args:?} said {rest:?}");
        }
    }
    std::fs::remove_file(store).ok();
}
