//! Documents that are made from the code: they can't drift. `KIRO_BLESS=1` writes them again.
#![cfg(feature = "gateway")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "test code")]

#[path = "docs/bounds.rs"]
mod bounds;
#[path = "docs/contract.rs"]
mod contract;
#[path = "docs/features.rs"]
mod features;
#[path = "support/files.rs"]
mod files;
#[path = "docs/prose.rs"]
mod prose;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use kiro_messages::config::Group;
use kiro_messages::metrics::METRICS;

#[test]
fn configuration() {
    let mut text = String::from(
        "# Configuration\n\n\
         <!-- Made from src/config/table.rs by tests/docs.rs; KIRO_BLESS=1 writes it again. -->\n\n\
         Precedence: flag or JavaScript option > environment > config file (`--config FILE`, TOML) > default. An unknown flag, option \
         or key, or a value that doesn't have its form, is an error that names the key, the value and the allowed form; \
         `kiro-server` then ends with exit code 2. `kiro-server --print-config` shows every value with where it came from, \
         secrets redacted.\n\n\
         Durations: `500ms`, `5s`, `2m`, `1h`, or several in a row; in JavaScript a number of milliseconds. Sizes: bytes, or \
         `64KiB`, `32MiB`; in JavaScript a number of bytes. A limit of time that is `0s` is off.\n\n\
         What most people need comes first, then one group after the other. At the end come the escape hatches: each overrides a \
         fact about Kiro, for the day on which it is no longer true; [kiro.md](kiro.md) has the facts, and what the gateway does \
         by itself.\n",
    );
    for group in Group::ALL {
        writeln!(text, "\n## {}\n", group.title()).unwrap();
        let hatches = group == Group::Hatches;
        let (head, line) = if hatches { (" overrides |", "---|") } else { ("", "") };
        writeln!(text, "| environment | flag | file | JavaScript | default | meaning |{head}").unwrap();
        writeln!(text, "|---|---|---|---|---|---|{line}").unwrap();
        for setting in group.settings() {
            let flag = setting.flag.map_or(String::new(), |flag| format!("`--{flag}`"));
            let default = if setting.default.is_empty() { "none".into() } else { format!("`{}`", setting.default) };
            let alias = setting.alias.map_or(String::new(), |alias| format!(" (also `{alias}`)"));
            assert_eq!(setting.overrides.is_some(), hatches, "{}", setting.env);
            let fact = setting.overrides.map_or(String::new(), |fact| format!(" {fact} |"));
            writeln!(
                text,
                "| `{}`{alias} | {flag} | `{}` | `{}` | {default} | {} Form: {}. |{fact}",
                setting.env,
                setting.file_key(),
                setting.js(),
                setting.meaning,
                setting.form.allowed().replace('|', "\\|"),
            )
            .unwrap();
        }
    }
    text.push_str(
        "\nThe predecessor's names work too: those above, `GO_KIRO_LOG_JSON` (`true`: `KIRO_LOG_FORMAT=json`, else `pretty`), and \
         `GO_KIRO_MAX_CONNS`, which limited connections to a host and is read as no limit. For any other `GO_KIRO_*` the log has a warning.\n",
    );
    same("docs/configuration.md", &text);
}

/// What an escape hatch overrides is a row of `docs/kiro.md`, and that row names it.
#[test]
fn each_escape_hatch_overrides_a_fact() {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/kiro.md")).unwrap();
    let rows: Vec<Vec<&str>> = page.lines().map(|line| line.split('|').collect()).collect();
    for setting in Group::Hatches.settings() {
        let fact = setting.overrides.unwrap();
        let row = rows.iter().find(|row| row.len() > 6 && row[1].trim().replace('`', "").starts_with(fact));
        let row = row.unwrap_or_else(|| panic!("{}: docs/kiro.md has no row {fact:?}", setting.env));
        assert!(row[4].contains(setting.env), "docs/kiro.md: {fact:?} doesn't name {}", setting.env);
    }
}

#[test]
fn metrics() {
    let mut text = String::from(
        "# Metrics\n\n\
         <!-- Made from src/metrics/table.rs by tests/docs.rs; KIRO_BLESS=1 writes it again. -->\n\n\
         `GET /metrics`, in the OpenMetrics text format that Prometheus scrapes. No key is needed from the same machine, \
         unless a proxy passed the request on; else the client key. In the addon: `gateway.metrics()`. `deploy/grafana.json` is a dashboard on these names.\n\n\
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

/// Which vectors and tests hold each rule of the contract. A rule without any fails here, unless its text says why; so does a
/// test that names a rule without text.
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
    for (test, rules) in rust_tests(root).into_iter().chain(client_tests(root)) {
        for rule in rules {
            held.entry(rule).or_default().insert(test.clone());
        }
    }
    let acceptance = std::fs::read_to_string(root.join("tests/golden/request/acceptance.txt")).unwrap();
    for id in acceptance.lines().filter_map(|line| key(line.split_whitespace().next()?)).filter(|id| id.0 == "A") {
        held.entry(id).or_default().insert("tests/golden/request/acceptance.txt".to_owned());
    }

    // Vectors that are a single request or stream; the others are tests of their own, by their names.
    for half in ["request", "response"] {
        let file = format!("tests/golden/{half}/vectors.txt");
        let vectors = std::fs::read_to_string(root.join(&file)).unwrap();
        let ids =
            vectors.lines().filter_map(|line| key(line.strip_prefix("TV").and(line.split_whitespace().next())?));
        for id in ids {
            held.entry(id).or_default().insert(file.clone());
        }
    }

    let (places, _) = contract::places(root);
    let mut faults = Vec::new();
    for ((family, number), place) in &places {
        match (held.contains_key(&(family.clone(), *number)), &place.no_test) {
            (false, None) => faults.push(format!("no test names {family}{number}")),
            (true, Some(why)) => faults.push(format!("{family}{number} has tests, and its text says: no test, {why}")),
            _ => {}
        }
    }
    let unwritten = held.keys().filter(|rule| !places.contains_key(rule));
    faults.extend(
        unwritten.map(|(family, number)| format!("a test names {family}{number}, which docs/contract/ hasn't")),
    );
    assert!(faults.is_empty(), "{}", faults.join("\n"));

    let mut text = String::from(
        "# Conformance\n\n\
         <!-- Made from the tests by tests/docs.rs; KIRO_BLESS=1 writes it again. -->\n\n\
         What holds each rule of [the contract](contract/README.md). A number leads to its text, and from there back. The tests in \
         `tests/clients/` are run by `npm run test:clients`, all others by `npm test`; both fail when one of them does. This page \
         fails when a rule, case, trap or vector has no test and no reason for it, and when a test names one that has no text. \
         Vectors (TV…, and others of ours) stand in `tests/golden/request/` and `tests/golden/response/`; every response vector is \
         replayed at every chunk split, one character at a time, and cut at every byte.\n",
    );
    for (family, title) in [
        ("TR", "Request: Messages → Kiro (TR)"),
        ("TS", "Response: Kiro events → Messages stream (TS)"),
        ("TU", "Usage (TU)"),
        ("M", "The Messages API (M)"),
        ("C", "What clients require or break on (C)"),
        ("A", "Cases of the Messages API (A)"),
        ("K", "Kiro: wire and accounts (K)"),
        ("TRAP", "Traps seen in other programs"),
        ("R", "The store (R)"),
        ("CASE", "Cases of the store"),
        ("N", "The Node.js interface (N)"),
        ("NODE", "Cases of the Node.js interface"),
        ("P", "Cases of accounts (P)"),
        ("D", "Cases of clients and failover (D)"),
        ("TV", "Vectors (TV)"),
    ] {
        write!(text, "\n## {title}\n\n| | held by | passes |\n|---|---|:-:|\n").unwrap();
        for ((_, number), holders) in held.range((family.to_owned(), 0)..=(family.to_owned(), u32::MAX)) {
            let name = if matches!(family, "TRAP" | "CASE" | "NODE") { "" } else { family };
            let anchor = contract::anchor(family, *number);
            let file = places[&(family.to_owned(), *number)].file.trim_start_matches("docs/");
            let holders = list(holders);
            writeln!(text, "| <a id=\"{anchor}\"></a>[{name}{number}]({file}#{anchor}) | {holders} | ✓ |").unwrap();
        }
    }
    same("docs/conformance.md", &text);
}

/// A rule, case or trap: family and number.
type Rule = (String, u32);

/// `TS13` as family and number; a letter behind it (`TV50a`) doesn't matter.
fn key(rule: &str) -> Option<Rule> {
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

/// The Rust tests whose names end with rules, cases or traps: `timeouts_k68`, `…_a3_to_a48`, `…_trap_28`, `…_case_09`.
fn rust_tests(root: &Path) -> Vec<(String, Vec<Rule>)> {
    let mut found = Vec::new();
    for file in files(root, &["src", "tests"], "rs") {
        let text = std::fs::read_to_string(root.join(&file)).unwrap();
        // Each test: what follows its attribute, up to the next one's.
        for test in text.split("#[test]").flat_map(|part| part.split("#[tokio::test")).skip(1) {
            let Some((_, from_name)) = test.split_once("fn ") else { continue };
            let name = from_name.split('(').next().unwrap_or_default();
            let words: Vec<&str> = name.split('_').collect();
            if let Some(last) = words_last(&words) {
                panic!(
                    "{file}: {name} begins with its rule. Words come first, so that a failure explains itself: {last}"
                );
            }
            let rules = rules_behind(&words, from_name);
            if !rules.is_empty() {
                found.push((format!("{}::{name}", file.trim_end_matches(".rs")), rules));
            }
        }
    }
    found
}

/// A name whose rules stand before its words, as it should be.
fn words_last(words: &[&str]) -> Option<String> {
    let (_, count) = rules_before(words, "");
    let (rules, rest) = words.split_at(count);
    (!rules.is_empty() && !rest.is_empty()).then(|| [rest, rules].concat().join("_"))
}

/// The rules at the end of a name.
fn rules_behind(words: &[&str], body: &str) -> Vec<Rule> {
    (0..words.len())
        .map(|start| (rules_before(&words[start..], body), words.len() - start))
        .find_map(|((rules, count), wanted)| (count == wanted).then_some(rules))
        .unwrap_or_default()
}

#[test]
fn rules_come_last() {
    let of = |name: &str| rules_behind(&name.split('_').collect::<Vec<_>>(), "").len();
    assert_eq!((of("it_rests_r16"), of("a_rewrite_case_34_r55"), of("all_k4_to_k6"), of("r16_it_rests")), (1, 2, 3, 0));
    let last = |name: &str| words_last(&name.split('_').collect::<Vec<_>>());
    assert_eq!(last("case_34_r55_a_rewrite").as_deref(), Some("a_rewrite_case_34_r55"));
    assert_eq!((last("a_rewrite_case_34_r55"), last("r55")), (None, None));
}

/// The tests of the Node.js package, by the rules and cases in their titles, and those of the clients.
fn client_tests(root: &Path) -> Vec<(String, Vec<Rule>)> {
    let mut found = Vec::new();
    for file in files(root, &["__test__", "tests/clients", "tests/deploy"], "mjs") {
        let text = std::fs::read_to_string(root.join(&file)).unwrap();
        let of_node = file.starts_with("__test__");
        let calls = text.split("test(").skip(1).chain(text.split("describe(").skip(1));
        for title in calls.filter_map(title) {
            let mut words = title.split(|c: char| !c.is_ascii_alphanumeric()).peekable();
            while let Some(word) = words.next() {
                let case = words.peek().and_then(|next| next.parse().ok()).filter(|_| of_node && word == "case");
                let rule = case.map(|number| ("NODE".to_owned(), number)).or_else(|| is_upper_rule(word));
                found.extend(rule.map(|rule| (file.clone(), vec![rule])));
            }
        }
    }
    for file in files(root, &["tests/clients"], "py") {
        let text = std::fs::read_to_string(root.join(&file)).unwrap();
        for name in text.split("def test_").skip(1).filter_map(|rest| rest.split('(').next()) {
            let rules = rules_behind(&name.split('_').collect::<Vec<_>>(), "");
            if !rules.is_empty() {
                found.push((format!("{}::test_{name}", file.trim_end_matches(".py")), rules));
            }
        }
    }
    found
}

/// The string literal that a call begins with.
fn title(call: &str) -> Option<&str> {
    let call = call.trim_start();
    let quote = call.chars().next().filter(|c| matches!(c, '\'' | '"' | '`'))?;
    call[1..].split(quote).next()
}

fn is_upper_rule(word: &str) -> Option<Rule> {
    let rule = word.starts_with(|c: char| c.is_ascii_uppercase()).then(|| key(word))??;
    is_family(&rule.0).then_some(rule)
}

fn is_family(family: &str) -> bool {
    matches!(family, "K" | "R" | "M" | "A" | "C" | "TR" | "TS" | "TU" | "N" | "P" | "D")
}

/// Every file with this extension below the folders, as paths from the root, sorted.
fn files(root: &Path, folders: &[&str], extension: &str) -> Vec<String> {
    let found = folders.iter().flat_map(|folder| files::files(&root.join(folder), extension));
    let mut found: Vec<_> =
        found.map(|path| path.strip_prefix(root).unwrap().to_string_lossy().replace('\\', "/")).collect();
    found.sort();
    found
}

/// The rules that a name begins with, and how many words they take. A span of acceptance cases (`a3_to_a48`) stands for those that the test's
/// body names in quotes.
fn rules_before(words: &[&str], body: &str) -> (Vec<Rule>, usize) {
    let mut rules: Vec<Rule> = Vec::new();
    let mut n = 0;
    while n < words.len() {
        let word = words[n];
        if (word == "trap" || word == "case")
            && let Some(number) = words.get(n + 1).and_then(|next| next.parse().ok())
        {
            rules.push((word.to_ascii_uppercase(), number));
            n += 2;
            continue;
        }
        if word == "to" && n > 0 {
            if let (Some((family, from)), Some((other, to))) =
                (rules.last().cloned(), words.get(n + 1).and_then(|next| key(next)))
                && family == other
            {
                let is_named = |number: &u32| {
                    family != "A" || [":", "\""].iter().any(|end| body.contains(&format!("\"A{number}{end}")))
                };
                rules.extend((from + 1..=to).filter(is_named).map(|number| (family.clone(), number)));
                n += 2;
                continue;
            }
            break;
        }
        match key(word) {
            Some(rule) if is_family(&rule.0) || matches!(&*rule.0, "TRAP" | "TV") => rules.push(rule),
            _ => break,
        }
        n += 1;
    }
    (rules, n)
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
