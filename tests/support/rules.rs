//! `tests/golden/rules.*.txt`: which vectors and which tests hold each rule of a half. Written by `KIRO_BLESS=1`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

mod files;

use files::files;

/// What a half answers for.
pub struct Half {
    /// `request` or `response`.
    pub name: &'static str,
    pub rules: Vec<String>,
    /// Its vectors, each with its rules.
    pub vectors: Vec<(String, Vec<String>)>,
    /// What may stand before the numbers at the end of a test's name: `ts` in `…_ts7`.
    pub letters: &'static [&'static str],
    /// Whether a file is one of its own: the path without `.rs`.
    pub owns: fn(&str) -> bool,
}

impl Half {
    /// Every rule is held by something, and the file says by what.
    pub fn check(&self) {
        let mut rules: BTreeMap<String, BTreeSet<String>> =
            self.rules.iter().map(|rule| (sort_key(rule), BTreeSet::new())).collect();
        for (id, of) in &self.vectors {
            for rule in of {
                let held = rules.get_mut(&sort_key(rule)).unwrap_or_else(|| panic!("{id}: {rule} is no rule"));
                held.insert(sort_key(id));
            }
        }
        for (file, test) in self.named_tests() {
            for rule in test.rsplit('_').map_while(|word| self.rule_name(word)) {
                if let Some(held) = rules.get_mut(&sort_key(&rule)) {
                    held.insert(format!("{file}::{test}"));
                }
            }
        }
        let mut text = format!(
            "# Rules of the {} half: the vectors and tests that hold them. Written by KIRO_BLESS=1.\n",
            self.name
        );
        for (rule, held) in &rules {
            let held: Vec<_> = held.iter().map(|name| name.replace(' ', "")).collect();
            writeln!(text, "{}: {}", rule.replace(' ', ""), held.join(" ")).unwrap();
        }
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/rules.{}.txt", self.name));
        if blessing() {
            fs::write(&path, &text).unwrap();
        }
        assert_eq!(fs::read_to_string(&path).unwrap_or_default(), text, "KIRO_BLESS=1 writes it anew");
        let unheld: Vec<_> = rules.iter().filter(|(_, held)| held.is_empty()).map(|(rule, _)| rule).collect();
        assert!(unheld.is_empty(), "nothing holds {unheld:?}");
    }

    /// Every test of its files whose name ends with a rule: (file without extension, name).
    fn named_tests(&self) -> Vec<(String, String)> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut tests = Vec::new();
        for file in ["src/proto", "tests"].into_iter().flat_map(|folder| files(&root.join(folder), "rs")) {
            let text = fs::read_to_string(&file).unwrap();
            let path = file.strip_prefix(root).unwrap().with_extension("").display().to_string();
            if !(self.owns)(&path) {
                continue;
            }
            let mut lines = text.lines().map(str::trim_start);
            while lines.any(|line| line == "#[test]") {
                let name = lines.by_ref().find_map(|line| line.strip_prefix("fn ")?.split('(').next());
                let Some(name) = name else { break };
                if name.rsplit('_').next().is_some_and(|word| self.rule_name(word).is_some()) {
                    tests.push((path.clone(), name.to_owned()));
                }
            }
        }
        tests
    }

    /// `ts22` → `TS22`.
    fn rule_name(&self, word: &str) -> Option<String> {
        let digits = word.trim_start_matches(|character: char| character.is_ascii_lowercase());
        let letters = &word[..word.len() - digits.len()];
        let is_rule =
            self.letters.contains(&letters) && !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        is_rule.then(|| word.to_uppercase())
    }
}

/// `TS7` sorts before `TS12`.
pub fn sort_key(rule: &str) -> String {
    let letters = rule.trim_end_matches(|character: char| !character.is_ascii_uppercase());
    format!("{letters}{:>4}", &rule[letters.len()..])
}

pub fn blessing() -> bool {
    std::env::var_os("KIRO_BLESS").is_some_and(|value| value == "1")
}
