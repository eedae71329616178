//! The contract in `docs/contract/`: each rule has one place, one mark and a way to what holds it, and a number that is
//! cited anywhere has its text there.

use std::collections::BTreeMap;
use std::path::Path;

use super::{Rule, files, key};

/// Where a rule, case, trap or vector has its text.
pub struct Place {
    /// The document, from the root.
    pub file: String,
    /// Its number there, as an anchor.
    pub anchor: String,
    /// Why no test holds it; none: tests must.
    pub no_test: Option<String>,
    /// What stands beside the number: its mark, and the way to its tests.
    head: String,
}

/// Families whose numbers are examples: what is contract in them and what is our choice say the rules that they exercise.
const EXAMPLES: [&str; 7] = ["A", "P", "D", "TV", "TRAP", "CASE", "NODE"];
const FAMILIES: [&str; 15] = ["TR", "TS", "TU", "TV", "TRAP", "K", "R", "M", "C", "A", "N", "P", "D", "CASE", "NODE"];

/// The anchor of a rule: `r55`, `case-34`.
pub fn anchor(family: &str, number: u32) -> String {
    let dash = if matches!(family, "TRAP" | "CASE" | "NODE") { "-" } else { "" };
    format!("{}{dash}{number}", family.to_lowercase())
}

fn rule_of(anchor: &str) -> Option<Rule> {
    let (family, number) = key(anchor)?;
    let family = family.trim_end_matches('-').to_owned();
    FAMILIES.contains(&&*family).then_some((family, number))
}

/// Every number of the contract. One that stands twice is in the list of faults.
pub fn places(root: &Path) -> (BTreeMap<Rule, Place>, Vec<String>) {
    let (mut places, mut faults) = (BTreeMap::new(), Vec::new());
    for file in files(root, &["docs/contract"], "md") {
        let text = std::fs::read_to_string(root.join(&file)).unwrap();
        let mut fenced = false;
        let mut lines = text.lines().peekable();
        while let Some(line) = lines.next() {
            fenced ^= line.starts_with("```");
            for (at, start) in line.match_indices("<a id=\"").filter(|_| !fenced) {
                let Some((id, rest)) = line[at + start.len()..].split_once("\"></a>") else { continue };
                // A row of a table has all of it in its first cell, a heading in the line below.
                let head = match line.starts_with('|') {
                    true => rest.split(" |").next().unwrap_or_default().to_owned(),
                    false => format!("{rest}\n{}", lines.peek().unwrap_or(&"")),
                };
                let Some(rule) = rule_of(id) else {
                    faults.push(format!("{file}: {id} is of no family"));
                    continue;
                };
                let no_test = head.split_once("no test: ").map(|(_, why)| why.trim().to_owned());
                let place = Place { file: file.clone(), anchor: id.to_owned(), no_test, head };
                if let Some(other) = places.insert(rule, place) {
                    faults.push(format!("{id} has two places: {} and {file}", other.file));
                }
            }
        }
    }
    (places, faults)
}

#[test]
fn each_rule_has_one_place_one_mark_and_a_way_to_its_tests() {
    let (places, mut faults) = places(Path::new(env!("CARGO_MANIFEST_DIR")));
    assert!(places.len() > 800, "only {} rules found: the reader of anchors is broken", places.len());
    for ((family, number), place) in &places {
        let Place { file, anchor: id, no_test, head } = place;
        if *id != anchor(family, *number) {
            faults.push(format!("{file}: {id} is written otherwise"));
        }
        if head.split_once('\n').is_some_and(|(title, _)| title.split_whitespace().count() < 2) {
            faults.push(format!("{file}: {id} has no subject"));
        }
        let marks = head.matches("*contract*").count() + head.matches("*our choice*").count();
        let wanted = usize::from(!EXAMPLES.contains(&family.as_str()));
        if marks != wanted {
            faults.push(format!("{file}: {id} has {marks} marks (*contract*, *our choice*), not {wanted}"));
        }
        let way = head.contains(&format!("](../conformance.md#{id})"));
        match no_test.as_deref() {
            None if !way => faults.push(format!("{file}: {id} leads to no tests and says no reason")),
            Some("") => faults.push(format!("{file}: {id} has no reason why no test holds it")),
            Some(_) if way => faults.push(format!("{file}: {id} leads to tests and says that there are none")),
            _ => {}
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_cited_rule_has_its_text() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (places, _) = places(root);
    let mut dead = Vec::new();
    let mut count = 0;
    for (file, text) in sources(root) {
        for (number, line) in text.lines().enumerate() {
            for rule in cited(of_words(&file, line)) {
                count += 1;
                if !places.contains_key(&rule) {
                    dead.push(format!("{file}:{}: {}{} has no text in docs/contract/", number + 1, rule.0, rule.1));
                }
            }
        }
    }
    assert!(count > 3000, "only {count} citations found");
    assert!(dead.is_empty(), "{}", dead.join("\n"));
}

/// A document or a file that code or a document names is there, and a place in it has a name: no paragraph sign.
#[test]
fn every_named_file_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut lost = Vec::new();
    let mut count = 0;
    // These tests name what isn't there.
    for (file, text) in sources(root).into_iter().filter(|(file, _)| !file.starts_with("tests/docs")) {
        let folders = [root.to_owned(), root.join("docs"), root.join(&file).parent().unwrap().to_owned()];
        for (number, line) in text.lines().enumerate() {
            if line.contains('\u{a7}') {
                lost.push(format!("{file}:{}: a paragraph sign: name the rule", number + 1));
            }
            for name in named(line) {
                count += 1;
                if !folders.iter().any(|folder| folder.join(name).exists()) {
                    lost.push(format!("{file}:{}: {name} isn't there", number + 1));
                }
            }
        }
    }
    assert!(count > 1000, "only {count} names found");
    assert!(lost.is_empty(), "{}", lost.join("\n"));
}

/// The documents, and the files of this repository, that a line names.
fn named(line: &str) -> impl Iterator<Item = &str> {
    const FOLDERS: &str = "src tests docs lib scripts deploy __test__ benches bench fuzz examples npm";
    let words = line.split(|c: char| !c.is_ascii_alphanumeric() && !"_./-*{},".contains(c));
    words.map(|word| word.trim_end_matches(['.', ',', '-']).trim_start_matches('/')).filter(|word| {
        let is_pattern = word.contains(['*', '{', '}', ',']) || word.contains("...");
        let first = word.split_once('/').map_or("", |(first, _)| first);
        let is_path = word.contains('.') && FOLDERS.split(' ').any(|folder| folder == first);
        // People make `deploy/.env` themselves; a `.so` is the system's.
        let is_foreign = word.ends_with("/.env") || word.contains(".so.");
        (is_path || word.len() > 3 && word.ends_with(".md")) && !is_pattern && !is_foreign
    })
}

/// The trails of CONTRIBUTING.md lead through files, and to names that stand in them.
#[test]
fn trails_lead_through_existing_places() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("CONTRIBUTING.md")).unwrap();
    let (_, trails) = text.split_once("## Trails").unwrap();
    let (trails, _) = trails.split_once("\n## ").unwrap();
    // Every second part is code.
    let parts: Vec<&str> = trails.split('`').collect();
    let is_path = |code: &str| code.contains('/') && !code.contains(' ');
    let mut lost = Vec::new();
    let mut count = 0;
    for (at, code) in parts.iter().enumerate().skip(1).step_by(2).filter(|(_, code)| is_path(code)) {
        count += 1;
        let path = root.join(code);
        if !path.exists() {
            lost.push((*code).to_owned());
        }
        if let Some([name, " in "]) = parts.get(at.saturating_sub(2)..at)
            && !std::fs::read_to_string(path).unwrap_or_default().contains(name)
        {
            lost.push(format!("{name} in {code}"));
        }
    }
    assert!(count > 20, "only {count} files found");
    assert!(lost.is_empty(), "{}", lost.join("\n"));
}

/// What people write and read in this repository: code and documents.
fn sources(root: &Path) -> Vec<(String, String)> {
    const FOLDERS: [&str; 10] =
        ["src", "tests", "__test__", "lib", "docs", "examples", "benches", "scripts", "fuzz", "deploy"];
    let mut names: Vec<String> = ["rs", "mjs", "js", "ts", "py", "lua", "md", "txt", "yml", "toml"]
        .iter()
        .flat_map(|extension| files(root, &FOLDERS, extension))
        // A sample of text whose tokens are counted, and what other programs build there.
        .filter(|name| !name.starts_with("tests/corpus/") && !name.contains("/target/"))
        .collect();
    names.extend(["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"].map(str::to_owned));
    let read = |name: String| std::fs::read_to_string(root.join(&name)).ok().map(|text| (name, text));
    names.into_iter().filter_map(read).collect()
}

/// A vector's input and output have words of their own, such as `C1` for a percentage of one.
fn of_words<'t>(file: &str, line: &'t str) -> &'t str {
    match file.starts_with("tests/golden/") {
        true if line.starts_with(['<', '>']) => "",
        true => line.split(" < ").next().unwrap_or_default(),
        false => line,
    }
}

/// The numbers that a line names; `R63–R68` names all of them.
fn cited(line: &str) -> Vec<Rule> {
    let mut found: Vec<Rule> = Vec::new();
    let mut rest = line;
    let mut before = None;
    while let Some(start) = rest.find(|c: char| c.is_alphanumeric() || c == '_') {
        let between = &rest[..start];
        let word = &rest[start..];
        let end = word.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(word.len());
        let (word, behind) = word.split_at(end);
        let rule = rule_in(word);
        if let (Some((family, number)), Some((from_family, from))) = (&rule, &before)
            && between == "–"
            && family == from_family
        {
            found.extend((from + 1..*number).map(|number| (family.clone(), number)));
        }
        found.extend(rule.clone());
        (before, rest) = (rule, behind);
    }
    found
}

fn rule_in(word: &str) -> Option<Rule> {
    let digits = word.find(|c: char| c.is_ascii_digit())?;
    let (family, number) = word.split_at(digits);
    let named = matches!(family, "K" | "R" | "TR" | "TS" | "TU" | "M" | "C" | "A" | "N" | "P" | "D" | "TV");
    let whole = number.bytes().all(|byte| byte.is_ascii_digit());
    (named && whole).then(|| Some((family.to_owned(), number.parse().ok()?)))?
}

#[test]
fn the_reader_of_citations_reads() {
    let rules = |line| cited(line).iter().map(|(family, number)| format!("{family}{number}")).collect::<Vec<_>>();
    assert_eq!(rules("(R63–R65, K8) TV50a x_R1 `M5`. TS42e: N4-N6"), ["R63", "R64", "R65", "K8", "M5", "N4", "N6"]);
    assert_eq!(rule_of("case-34"), Some(("CASE".to_owned(), 34)));
    assert_eq!(rule_of("r55"), Some(("R".to_owned(), 55)));
    assert_eq!((rule_of("case"), rule_of("x5")), (None, None));
}
