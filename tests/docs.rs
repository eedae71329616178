//! Documents that are made from the code: they can't drift. `KIRO_BLESS=1` writes them again.
#![cfg(feature = "gateway")]
#![expect(clippy::unwrap_used, reason = "test code")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use kiro_messages::config::SETTINGS;
use kiro_messages::metrics::METRICS;

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

#[test]
fn metrics() {
    let mut text = String::from(
        "# Metrics\n\n\
         <!-- Made from src/metrics/table.rs by tests/docs.rs; KIRO_BLESS=1 writes it again. -->\n\n\
         `GET /metrics`, in the OpenMetrics text format that Prometheus scrapes. No key is needed from a loopback address, else the \
         client key. In the addon: `gateway.metrics()`. `deploy/grafana.json` is a dashboard on these names.\n\n\
         Everything counts since the process started; one gateway counts for itself, so sum over instances. What belongs to a request \
         is counted at its end. Histograms have the usual `_bucket{le=…}`, `_sum` and `_count`.\n\n\
         | name | type | labels | meaning |\n|---|---|---|---|\n",
    );
    for metric in METRICS {
        let labels: Vec<String> =
            metric.labels.iter().map(|label| format!("`{}`: {}", label.name, label.values)).collect();
        let kind = metric.kind.as_str();
        writeln!(text, "| `{}` | {kind} | {} | {}. |", metric.name, labels.join("; "), metric.help).unwrap();
    }
    text.push_str(
        "\n## Gateway overhead\n\n\
         `kiro_gateway_overhead_seconds` is observed once for each request that reached an account and was not cancelled. It is the \
         time from the arrival of the whole request in the gateway to the end of its answer, without\n\n\
         - the time in which upstream was waited for: from each attempt's sending to the head of its answer, between the chunks of its \
         body, for a token refresh and a profile look-up;\n\
         - the time in which the caller was waited for: between the bytes handed out and the moment it asked for more.\n\n\
         What is left is parsing, translating, selecting, decoding and encoding, and also waiting for an account (`KIRO_ACCOUNT_WAIT`) \
         and the pauses between attempts. A whole answer costs well under a millisecond; more means that the CPU is short, or that \
         requests wait for accounts (`kiro_account_waits_total`).\n",
    );
    same("docs/metrics.md", &text);
}

/// Which vectors and tests hold each rule. A rule of translation.md without any fails here.
#[test]
fn conformance() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut held: BTreeMap<(String, u32), BTreeSet<String>> = BTreeMap::new();
    for half in ["request", "response"] {
        let map = std::fs::read_to_string(root.join(format!("tests/golden/rules.{half}.txt"))).unwrap();
        for line in map.lines().filter(|line| !line.starts_with('#')) {
            let (rule, holders) = line.split_once(':').unwrap();
            held.entry(key(rule).unwrap()).or_default().extend(holders.split_whitespace().map(str::to_owned));
        }
    }
    let mut cases: BTreeMap<(String, u32), BTreeSet<String>> = BTreeMap::new();
    for (test, rules) in named_tests(&root.join("tests")) {
        for rule in rules {
            let table = if matches!(rule.0.as_str(), "A" | "TRAP" | "CASE") { &mut cases } else { &mut held };
            table.entry(rule).or_default().insert(test.clone());
        }
    }
    let vectors = ["request", "response"].map(|half| {
        let text = std::fs::read_to_string(root.join(format!("tests/golden/{half}/vectors.txt"))).unwrap();
        (half, text)
    });
    let acceptance = std::fs::read_to_string(root.join("tests/golden/request/acceptance.txt")).unwrap();
    for id in acceptance.lines().filter_map(|line| key(line.split_whitespace().next()?)).filter(|id| id.0 == "A") {
        cases.entry(id).or_default().insert("tests/golden/request/acceptance.txt".to_owned());
    }

    for (family, last) in [("TR", 34), ("TS", 26), ("TU", 8)] {
        for number in 1..=last {
            let holders = held.get(&(family.to_owned(), number));
            assert!(holders.is_some_and(|holders| !holders.is_empty()), "{family}{number} is held by no test");
        }
    }

    let mut text = String::from(
        "# Conformance\n\n\
         <!-- Made from the tests by tests/docs.rs; KIRO_BLESS=1 writes it again. -->\n\n\
         Each rule of the contracts with the vectors and tests that hold it. All of them are part of `npm test`, which fails when one \
         of them does; this page fails when a rule of the translation has none. Vectors (TV…: the contract's own, others: ours) stand in \
         `tests/golden/request/` and `tests/golden/response/`; every response vector is replayed at every chunk split, one character \
         at a time, and cut at every byte.\n",
    );
    let families = [
        ("TR", "Request: Messages → Kiro"),
        ("TS", "Response: Kiro events → Messages stream"),
        ("TU", "Usage"),
        ("M", "The downstream contract"),
        ("K", "The upstream wire"),
        ("R", "The shared store"),
    ];
    for (family, title) in families {
        write!(text, "\n## {title} ({family})\n\n| rule | held by | passes |\n|---|---|:-:|\n").unwrap();
        for ((_, number), holders) in held.range((family.to_owned(), 0)..=(family.to_owned(), u32::MAX)) {
            if !holders.is_empty() {
                writeln!(text, "| {family}{number} | {} | ✓ |", list(holders)).unwrap();
            }
        }
    }
    text.push_str("\n## Vectors of the contract (TV)\n\n| vectors | file |\n|---|---|\n");
    let mut seen = BTreeSet::new();
    for (half, vectors) in &vectors {
        let ids: BTreeSet<u32> = vectors
            .lines()
            .filter_map(|line| line.strip_prefix("TV")?.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok())
            .collect();
        let names: Vec<String> = ids.iter().map(|id| format!("TV{id}")).collect();
        writeln!(text, "| {} | `tests/golden/{half}/vectors.txt` |", names.join(" ")).unwrap();
        seen.extend(ids);
    }
    for holders in held.values() {
        // Vectors that are no single request or stream are tests of their own.
        seen.extend(holders.iter().flat_map(|name| name.split(|c: char| !c.is_ascii_alphanumeric())).filter_map(
            |word| {
                let word = word.to_ascii_lowercase();
                word.strip_prefix("tv")?.trim_end_matches(|c: char| c.is_ascii_alphabetic()).parse::<u32>().ok()
            },
        ));
    }
    let missing: Vec<u32> = (1..=118).filter(|id| *id != 59 && !seen.contains(id)).collect();
    assert!(missing.is_empty(), "vectors without a test: {missing:?}");
    for (family, title) in [
        ("A", "Acceptance cases of the downstream contract (A)"),
        ("TRAP", "Traps seen in other programs"),
        ("CASE", "Acceptance cases of the shared store"),
    ] {
        write!(text, "\n## {title}\n\n| case | held by | passes |\n|---|---|:-:|\n").unwrap();
        for ((_, number), holders) in cases.range((family.to_owned(), 0)..=(family.to_owned(), u32::MAX)) {
            let name = match family {
                "A" => format!("A{number}"),
                _ => number.to_string(),
            };
            writeln!(text, "| {name} | {} | ✓ |", list(holders)).unwrap();
        }
    }
    same("docs/conformance.md", &text);
}

/// `TS13` as family and number.
fn key(rule: &str) -> Option<(String, u32)> {
    let digits = rule.find(|c: char| c.is_ascii_digit())?;
    let (family, rest) = rule.split_at(digits);
    let number = rest.trim_end_matches(|c: char| c.is_ascii_lowercase());
    Some((family.to_ascii_uppercase(), number.parse().ok()?))
}

fn list(holders: &BTreeSet<String>) -> String {
    holders
        .iter()
        .map(|holder| if holder.contains('/') { format!("`{holder}`") } else { holder.clone() })
        .collect::<Vec<_>>()
        .join(" ")
}

/// The tests below a folder whose names begin with rules, cases or traps: `k68_timeouts`, `a3_to_a48_…`, `trap_28_…`, `case_09_…`.
fn named_tests(folder: &Path) -> Vec<(String, Vec<(String, u32)>)> {
    let mut found = Vec::new();
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    for file in files.iter().filter(|file| file.extension().is_some_and(|e| e == "rs")) {
        let text = std::fs::read_to_string(file).unwrap();
        let mut is_test = false;
        for line in text.lines() {
            if line.trim_start().starts_with("#[test]") || line.trim_start().starts_with("#[tokio::test") {
                is_test = true;
            } else if let Some(at) = line.find("fn ").filter(|_| is_test) {
                is_test = false;
                let name = line[at + 3..].split('(').next().unwrap_or_default();
                let rules = rules_of(name);
                if !rules.is_empty() {
                    let file = file.file_stem().unwrap().to_string_lossy();
                    found.push((format!("tests/{file}::{name}"), rules));
                }
            }
        }
    }
    found
}

fn rules_of(name: &str) -> Vec<(String, u32)> {
    let mut rules: Vec<(String, u32)> = Vec::new();
    let words: Vec<&str> = name.split('_').collect();
    let mut n = 0;
    while n < words.len() {
        let word = words[n];
        if (word == "trap" || word == "case") && words.get(n + 1).is_some_and(|next| next.parse::<u32>().is_ok()) {
            rules.push((word.to_ascii_uppercase(), words[n + 1].parse().unwrap()));
            n += 2;
            continue;
        }
        if word == "to" && n > 0 {
            if let (Some((family, from)), Some((other, to))) =
                (rules.last().cloned(), words.get(n + 1).and_then(|next| key(next)))
                && family == other
            {
                rules.extend((from + 1..=to).map(|number| (family.clone(), number)));
                n += 2;
                continue;
            }
            break;
        }
        match key(word)
            .filter(|(family, _)| matches!(family.as_str(), "K" | "R" | "M" | "A" | "TR" | "TS" | "TU" | "N"))
        {
            Some(rule) => rules.push(rule),
            None => break,
        }
        n += 1;
    }
    rules
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
