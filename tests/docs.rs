//! Documents that are made from the code: they can't drift. `KIRO_BLESS=1` writes them again.
#![cfg(feature = "gateway")]
#![expect(clippy::unwrap_used, reason = "test code")]

use std::fmt::Write as _;
use std::path::Path;

use kiro_messages::config::SETTINGS;

#[test]
fn configuration() {
    let mut text = String::from(
        "# Configuration\n\n\
         <!-- Made from src/config.rs by tests/docs.rs; KIRO_BLESS=1 writes it again. -->\n\n\
         Precedence: flag or JavaScript option > environment > config file (`--config FILE`, TOML) > default. An unknown flag, option \
         or key, or a value that doesn't have its form, is an error that names the key, the value and the allowed form; \
         `kiro-server` then ends with exit code 2. `kiro-server --print-config` shows every value with where it came from, \
         secrets redacted.\n\n\
         Durations: `500ms`, `5s`, `2m`, `1h`, or several in a row; in JavaScript a number of milliseconds. Sizes: bytes, or \
         `64KiB`, `32MiB`; in JavaScript a number of bytes. A limit of time that is `0s` is off.\n\n\
         | environment | flag | file | JavaScript | default | meaning |\n|---|---|---|---|---|---|\n",
    );
    for setting in SETTINGS {
        let flag = setting.flag.map_or(String::new(), |flag| format!("`--{flag}`"));
        let default = if setting.default.is_empty() { "none".into() } else { format!("`{}`", setting.default) };
        let alias = setting.alias.map_or(String::new(), |alias| format!(" (also `{alias}`)"));
        writeln!(
            text,
            "| `{}`{alias} | {flag} | `{}` | `{}` | {default} | {} Form: {}. |",
            setting.env,
            setting.file_key(),
            setting.js,
            setting.meaning,
            setting.form.allowed().replace('|', "\\|"),
        )
        .unwrap();
    }
    text.push_str(
        "\nThe predecessor's names work too: those above, and `GO_KIRO_LOG_JSON` (`true`: `KIRO_LOG_FORMAT=json`, else `pretty`).\n",
    );
    same("docs/configuration.md", &text);
}

fn same(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    if std::env::var_os("KIRO_BLESS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        there == text,
        "{name} is not what the code says: run KIRO_BLESS=1 cargo test --features server --test docs"
    );
}
