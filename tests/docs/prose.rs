//! What people write stays true: links lead somewhere, and every setting, code, metric, flag and route that is named is there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use kiro_messages::config::SETTINGS;
use kiro_messages::error::Code;
use kiro_messages::metrics::{METRICS, MetricKind};

/// Names of others that documents have to mention.
const NOT_OURS: &[&str] = &[
    // Members of account records and of the Node.js service's configuration.
    "KIRO_BASE_URL",
    "KIRO_REFRESH_URL",
    "KIRO_REFRESH_IDC_URL",
    "KIRO_TOKEN_FILE_PATH",
    "KIRO_OAUTH_CREDS_FILE_PATH",
    "KIRO_OAUTH_CREDS_BASE64",
    // Thrown by lib/ when there is no native side to ask; switches of tests and scripts; an example of the reader's own.
    "KIRO_BINDING_NOT_FOUND",
    "KIRO_BLESS",
    "KIRO_GATEWAY",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: impl AsRef<Path>) -> String {
    let path = root().join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every document that people read.
fn documents() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for folder in ["", "docs", "docs/contract", "tests/clients", "deploy"] {
        let entries = std::fs::read_dir(root().join(folder)).unwrap();
        let names = entries.map(|entry| Path::new(folder).join(entry.unwrap().file_name()));
        found.extend(names.filter(|name| name.extension().is_some_and(|extension| extension == "md")));
    }
    found.sort();
    assert!(found.len() > 12, "only {found:?}");
    found
}

#[test]
fn links_lead_somewhere() {
    let mut dead = Vec::new();
    let mut count = 0;
    let mut known = BTreeMap::new();
    for document in documents() {
        for target in links(&read(&document)) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            count += 1;
            let (file, place) =
                target.split_once('#').map_or((target.as_str(), None), |(file, place)| (file, Some(place)));
            let path = if file.is_empty() { document.clone() } else { document.parent().unwrap().join(file) };
            if !root().join(&path).exists() {
                dead.push(format!("{}: {target}", document.display()));
            } else if let Some(place) = place
                && !known.entry(path.clone()).or_insert_with(|| headings(&read(&path))).contains(place)
            {
                dead.push(format!("{}: {target}: no such heading", document.display()));
            }
        }
    }
    assert!(count > 40, "only {count} links found: the reader of links is broken");
    assert!(dead.is_empty(), "dead links:\n{}", dead.join("\n"));
}

#[test]
fn each_document_is_in_the_index() {
    for document in documents().iter().filter(|document| document.starts_with("docs")) {
        let index = document.with_file_name("README.md");
        let listed: BTreeSet<String> = links(&read(&index)).into_iter().collect();
        let name = document.file_name().unwrap().to_str().unwrap();
        assert!(name == "README.md" || listed.contains(name), "{} doesn't list {name}", index.display());
    }
    assert!(read("docs/README.md").contains("](contract/README.md)"));
}

#[test]
fn named_settings_and_codes_exist() {
    let mut known: BTreeSet<&str> = SETTINGS.iter().flat_map(|s| [Some(s.env), s.alias]).flatten().collect();
    known.extend(Code::ALL.iter().map(|code| code.as_str()));
    known.extend(NOT_OURS);
    known.extend(["GO_KIRO_LOG_JSON", "GO_KIRO_MAX_CONNS"]);
    known.extend(["GO_KIRO_DEBUG_DUMP", "GO_KIRO_DEBUG_DIR", "GO_KIRO_ERROR_DUMP"]);
    let deploy = [
        "Dockerfile",
        "docker-compose.yml",
        ".env.example",
        "kiro-server.service",
        "kiro-server.socket",
        "kubernetes.yaml",
        "nginx.conf",
        "alerts.yml",
    ];
    let deploy = deploy.map(|name| Path::new("deploy").join(name));
    let mut wrong = Vec::new();
    let mut count = 0;
    for document in documents().iter().chain(&deploy) {
        for word in words(&read(document), |c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_') {
            let ours = word.starts_with("KIRO_") || word.starts_with("GO_KIRO_") || word.starts_with("REDIS_");
            // `GO_KIRO_*` and `KIRO_…` speak of all of them.
            if ours && !word.ends_with('_') {
                count += 1;
                if !known.contains(word.as_str()) {
                    wrong.push(format!("{}: {word}", document.display()));
                }
            }
        }
    }
    assert!(count > 100, "only {count} names found");
    assert!(wrong.is_empty(), "neither a setting nor a code:\n{}", wrong.join("\n"));
    // The table of errors in the README has them all.
    let readme = read("README.md");
    for code in Code::ALL {
        let (status, kind) = (code.status(), code.error_type().as_str());
        let row = format!("| {status} | `{kind}` | {} |", if code.retryable() { "yes" } else { "no" });
        let name = format!("`{}`", code.as_str());
        let is_told = readme.lines().any(|line| line.starts_with("| `") && line.contains(&name) && line.contains(&row));
        assert!(is_told, "README.md has no row {name} … {row}");
    }
}

#[test]
fn named_metrics_exist_and_each_is_on_the_dashboard() {
    let mut known = BTreeSet::new();
    for metric in METRICS {
        known.insert(metric.name.to_owned());
        if metric.kind == MetricKind::Histogram {
            known.extend(["bucket", "sum", "count"].map(|part| format!("{}_{part}", metric.name)));
        }
    }
    let mut wrong = Vec::new();
    let mut shown = BTreeSet::new();
    let mut files = documents();
    files.extend([PathBuf::from("deploy/alerts.yml"), PathBuf::from("deploy/grafana.json")]);
    for file in &files {
        let is_dashboard = file.ends_with("grafana.json");
        for word in words(&read(file), |c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_') {
            let ours = (word.starts_with("kiro_") || word.starts_with("process_")) && !word.ends_with('_');
            if !ours || ["kiro_messages", "kiro_server", "kiro_model", "kiro_id"].contains(&word.as_str()) {
                continue;
            }
            if !known.contains(&word) {
                wrong.push(format!("{}: {word}", file.display()));
            }
            if is_dashboard {
                shown.insert(word);
            }
        }
    }
    assert!(wrong.is_empty(), "no such metric:\n{}", wrong.join("\n"));
    for metric in METRICS {
        let is_shown = shown.iter().any(|name| {
            name.strip_prefix(metric.name).is_some_and(|rest| rest.is_empty() || metric.kind == MetricKind::Histogram)
        });
        assert!(is_shown, "{} isn't on the dashboard", metric.name);
    }
    let dashboard: serde_json::Value = serde_json::from_str(&read("deploy/grafana.json")).unwrap();
    assert!(dashboard["panels"].as_array().unwrap().len() > 20);
}

/// Flags of `kiro-server` that a document names, in the text of its own `--help`.
#[cfg(feature = "server")]
#[test]
fn named_flags_and_commands_exist() {
    let help = |arguments: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_kiro-server"))
            .args(arguments)
            .arg("--help")
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let commands: [&[&str]; 20] = [
        &[],
        &["serve"],
        &["doctor"],
        &["health"],
        &["simulate"],
        &["accounts", "add"],
        &["accounts", "login"],
        &["accounts", "profiles"],
        &["accounts", "restore"],
        &["accounts", "list"],
        &["accounts", "check"],
        &["accounts", "disable"],
        &["accounts", "enable"],
        &["accounts", "remove"],
        &["client"],
        &["keys", "add"],
        &["keys", "list"],
        &["keys", "disable"],
        &["keys", "enable"],
        &["keys", "remove"],
    ];
    let all: String = commands.map(help).concat();
    let mut wrong = Vec::new();
    let mut count = 0;
    for document in documents() {
        for line in read(&document).lines().filter(|line| line.contains("kiro-server")) {
            for (at, _) in line.match_indices("kiro-server ") {
                let rest = &line[at + "kiro-server ".len()..];
                let command = rest.split(['`', '|', '#', ';', '&', '(']).next().unwrap_or_default();
                for flag in command.split_whitespace().filter(|word| word.starts_with("--")) {
                    let flag = flag.split(['=', ',', '.', ':', '…', ']', ')', '\'']).next().unwrap_or_default();
                    count += 1;
                    if !all.contains(flag) {
                        wrong.push(format!("{}: {flag} in {command}", document.display()));
                    }
                }
            }
        }
    }
    assert!(count > 8, "only {count} flags found");
    assert!(wrong.is_empty(), "no such flag:\n{}", wrong.join("\n"));
}

/// Targets of `[text](target)` outside code.
fn links(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut fenced = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        if fenced {
            continue;
        }
        // Every second part is code; what is left of a link around code is its target.
        for part in line.split('`').step_by(2) {
            for (at, _) in part.match_indices("](") {
                let target = &part[at + 2..];
                if let Some(end) = target.find(')') {
                    found.push(target[..end].to_owned());
                }
            }
        }
    }
    found
}

/// The anchors of a document: those that it sets itself, and those of its headings, as GitHub makes them.
fn headings(text: &str) -> BTreeSet<String> {
    let mut fenced = false;
    let mut found = BTreeSet::new();
    for line in text.lines() {
        if line.starts_with("```") {
            fenced = !fenced;
        }
        if fenced {
            continue;
        }
        let own = line.split("<a id=\"").skip(1).filter_map(|rest| rest.split_once("\"></a>"));
        found.extend(own.map(|(id, _)| id.to_owned()));
        if !line.starts_with('#') {
            continue;
        }
        let heading = line.trim_start_matches('#').trim().to_lowercase();
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        found.insert(kept.map(|c| if c == ' ' { '-' } else { c }).collect());
    }
    found
}

/// Runs of characters of one kind that stand alone.
fn words(text: &str, of: impl Fn(char) -> bool) -> Vec<String> {
    let whole = |c: char| c.is_alphanumeric() || c == '_';
    text.split(|c| !whole(c)).filter(|word| !word.is_empty() && word.chars().all(&of)).map(str::to_owned).collect()
}

#[test]
fn the_readers_read() {
    assert_eq!(links("[a](b.md#c) `[x](y)` [`d`](e)\n```\n[f](g)\n```\n[h](i)"), ["b.md#c", "e", "i"]);
    let anchors = headings("# It doesn't start\n```\n# no\n```\n## 400, 404, 413\n### a `b`\n| <a id=\"r1\"></a>R1 |");
    assert_eq!(anchors.into_iter().collect::<Vec<_>>(), ["400-404-413", "a-b", "it-doesnt-start", "r1"]);
    assert_eq!(
        words("`KIRO_A`, kiro_b=KIRO_C1 xKIRO_D", |c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'),
        ["KIRO_A", "KIRO_C1"]
    );
}

/// Each row of the threat model that claims something names tests, and each of them is there.
#[test]
fn every_claim_of_the_threat_model_has_its_test() {
    let mut tests = BTreeSet::new();
    for folder in ["src", "tests"] {
        for file in crate::files::files(&root().join(folder), "rs") {
            let text = std::fs::read_to_string(file).unwrap();
            let mut lines = text.lines().map(str::trim).skip_while(|line| !line.contains("test"));
            while let Some(line) = lines.next() {
                if line == "#[test]" || line.starts_with("#[tokio::test") {
                    let name = lines.by_ref().find_map(|line| {
                        line.trim_start_matches("async ")
                            .strip_prefix("fn ")?
                            .split(['(', '<'])
                            .next()
                            .map(str::to_owned)
                    });
                    tests.extend(name);
                }
            }
        }
    }
    let text = read("docs/security.md");
    let mut claims = 0;
    let mut held = false;
    for line in text.lines() {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        held = line.starts_with('|') && (held || cells.last() == Some(&"test"));
        if !held || cells.last().is_none_or(|cell| *cell == "test" || cell.starts_with("--")) {
            continue;
        }
        let named: Vec<&str> = cells.last().unwrap().split(", ").map(|name| name.trim_matches('`')).collect();
        for name in &named {
            assert!(tests.contains(*name), "docs/security.md: {name} is no test");
        }
        claims += 1;
    }
    assert!(claims >= 40, "{claims}");
}
