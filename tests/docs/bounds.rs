//! What is kept in memory from one request to the next, its bound, and what goes first: read from the code, into
//! `docs/operations.md`.
//!
//! Above such a field stands `// Bound: WHAT | MOST | WHEN FULL`. MOST is a constant of the same file, a setting, or words for
//! what else bounds it. A collection in a struct without such a line, and without a reason in [`WITHOUT`], fails.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use kiro_messages::config::SETTINGS;

/// Folders and files whose structs live no longer than one request, one stream or one command.
const OF_A_REQUEST: &[(&str, &str)] = &[
    ("src/proto/", "pure: a call or a stream keeps nothing behind; what a stream holds is bounded there"),
    ("src/bin/", "a command ends"),
    ("src/accounts/", "a sign-in or an import ends"),
    ("src/simulator/", "it plays Kiro in tests and on a desk"),
    ("src/server/debug/", "one profile at a time, of at most 300 s"),
    ("src/config/", "the settings, read once"),
];

/// Fields that need no row: file, field, why.
const WITHOUT: &[(&str, &str, &str)] = &[
    ("src/addon/feed.rs", "chunks", "a request's body: beyond `HIGH` JavaScript stops to feed"),
    ("src/addon/bell.rs", "messages", "a call's: `held` bounds its bytes"),
    ("src/gateway/dump.rs", "tail", "an attempt's: the end of its frames"),
    ("src/gateway/rounds.rs", "waiting", "a message's searches"),
    ("src/gateway/structured.rs", "of_reference", "a request's schema"),
    ("src/gateway/status.rs", "requests", "an answer of the status: four outcomes"),
    ("src/gateway/status.rs", "hosts", "an answer of the status"),
    ("src/policy/notices.rs", "accounts", "the facts of one look"),
    ("src/policy/affinity.rs", "entries", "the three of `Affinity` have rows"),
    ("src/policy/affinity.rs", "order", "likewise"),
    ("src/pool/lease.rs", "states", "a refusal's facts"),
    ("src/store/file/content.rs", "accounts", "the file's records, once read; the file is at most 256 MiB"),
    ("src/store/file/content.rs", "tokens", "likewise"),
    ("src/store/file/service.rs", "accounts", "the service's file, once read"),
    ("src/store/records.rs", "KnownLogins", "made for one command"),
];

const COLLECTIONS: [&str; 8] =
    ["HashMap<", "BTreeMap<", "VecDeque<", "HashSet<", "BTreeSet<", "BinaryHeap<", "LinkedList<", "UnboundedReceiver<"];

struct Row {
    what: String,
    most: String,
    when_full: String,
    file: String,
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The rows of a file, and its collections in structs that have none.
fn read(root: &Path, file: &str, text: &str, rows: &mut Vec<Row>, bare: &mut Vec<(String, String)>) {
    let tests =
        ["#[cfg(test)]\nmod tests {", "#[cfg(test)]\n#[expect"].iter().filter_map(|begin| text.find(begin)).min();
    let code = &text[..tests.unwrap_or(text.len())];
    let before = rows.len();
    let (mut inside, mut above) = (false, None);
    for line in code.lines() {
        let words = line.trim_start().trim_start_matches("pub(crate) ").trim_start_matches("pub(super) ");
        let words = words.trim_start_matches("pub ");
        let tuple = words.starts_with("struct ") && words.contains('(') && words.ends_with(';');
        inside = (inside || words.starts_with("struct ") && words.ends_with('{')) && line != "}";
        if let Some(bound) = words.strip_prefix("// Bound: ") {
            let parts: Vec<&str> = bound.split(" | ").collect();
            let [what, most, when_full] = parts[..] else { panic!("{file}: three parts: {bound}") };
            let most = value_of(root, file, code, most);
            above = Some(());
            rows.push(Row { what: what.into(), most, when_full: when_full.into(), file: file.to_owned() });
            continue;
        }
        let is_field = tuple || inside && line.starts_with("    ") && words.contains(": ") && !words.starts_with('/');
        if is_field && COLLECTIONS.iter().any(|name| words.contains(name)) && above.is_none() {
            let name = words.trim_start_matches("struct ").split([':', '(', '<']).next().unwrap();
            bare.push((file.to_owned(), name.to_owned()));
        }
        if !words.starts_with("//") && !words.starts_with('#') {
            assert!(
                above.is_none() || is_field || words.starts_with("const "),
                "{file}: a bound stands above a field: {line}"
            );
            above = None;
        }
    }
    assert_eq!(rows.len() - before, text.matches("// Bound: ").count(), "{file}: a bound that isn't read");
}

/// What stands in the table: a constant's value, which the code has to use; else the words.
fn value_of(root: &Path, file: &str, code: &str, most: &str) -> String {
    let mut words = Vec::new();
    for word in most.split(' ') {
        let name = word.trim_end_matches(',');
        // `client_key::MOST_KEYS` is a constant of another file.
        if let Some((module, constant)) = name.split_once("::") {
            let mut files = Vec::new();
            sources(&root.join("src"), &mut files);
            let other = files.into_iter().find(|path| path.file_stem().is_some_and(|stem| stem == module)).unwrap();
            let other = std::fs::read_to_string(other).unwrap() + code;
            words.push(word.replace(name, &value_of(root, module, &other, constant)));
            continue;
        }
        if SETTINGS.iter().any(|setting| setting.env == name) {
            words.push(word.replace(name, &format!("`{name}`")));
        } else if name.len() > 1 && name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_') {
            let defined = code.split_once(&format!("const {name}: usize = "));
            let value = defined.unwrap_or_else(|| panic!("{file}: no constant {name}")).1.split(';').next().unwrap();
            let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
            let uses = lines.flat_map(|line| line.split(|c| !is_name(c))).filter(|word| *word == name).count();
            assert!(uses > 1, "{file}: nothing uses {name}");
            let number = |text: &str| text.replace('_', "").parse::<usize>();
            let value = match value.split_once(" << ") {
                Some((one, by)) => number(one).unwrap() << number(by).unwrap(),
                None => number(value).unwrap_or_else(|_| panic!("{file}: {name} is {value}")),
            };
            words.push(word.replace(name, &thousands(value)));
        } else {
            words.push(word.to_owned());
        }
    }
    words.join(" ")
}

fn thousands(value: usize) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[test]
fn what_is_kept_in_memory_has_a_bound_and_a_row() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    sources(&root.join("src"), &mut files);
    let (mut rows, mut bare) = (Vec::new(), Vec::new());
    for path in files {
        let file = path.strip_prefix(root).unwrap().to_str().unwrap().replace('\\', "/");
        if OF_A_REQUEST.iter().any(|(folder, _)| file.starts_with(folder)) || file.ends_with("tests.rs") {
            continue;
        }
        read(root, &file, &std::fs::read_to_string(&path).unwrap(), &mut rows, &mut bare);
    }
    let known: BTreeSet<(String, String)> =
        WITHOUT.iter().map(|(file, field, _)| ((*file).to_owned(), (*field).to_owned())).collect();
    let bare: BTreeSet<(String, String)> = bare.into_iter().collect();
    let missing: Vec<_> = bare.difference(&known).collect();
    assert!(missing.is_empty(), "kept in memory without a bound: {missing:?}");
    let gone: Vec<_> = known.difference(&bare).collect();
    assert!(gone.is_empty(), "there is no such field any more, or it has a bound: {gone:?}");

    let (begin, end) = ("| what | at most | when it is full |\n|---|---|---|\n", "<!-- the end of the table -->");
    let page = std::fs::read_to_string(root.join("docs/operations.md")).unwrap();
    let (before, rest) = page.split_once(begin).unwrap();
    let (_, after) = rest.split_once(end).unwrap();
    rows.sort_by(|one, other| (&one.file, &one.what).cmp(&(&other.file, &other.what)));
    let mut table = String::new();
    for row in rows {
        writeln!(table, "| {} | {} | {} |", row.what, row.most, row.when_full).unwrap();
    }
    super::same("docs/operations.md", &format!("{before}{begin}{table}{end}{after}"));
}

#[test]
fn the_reader_of_bounds_reads() {
    let text = "const MOST: usize = 1_024;\nstruct Kept {\n    /// Names.\n    // Bound: names | MOST | the oldest goes\n    \
                names: HashMap<String, u8>,\n    other: VecDeque<u8>,\n}\nfn f(it: &HashMap<u8, u8>) {\n    MOST;\n}\n\
                pub struct Tuple(HashSet<u8>);\n";
    let (mut rows, mut bare) = (Vec::new(), Vec::new());
    read(Path::new(""), "x.rs", text, &mut rows, &mut bare);
    let found: Vec<_> = rows.iter().map(|row| (row.what.as_str(), row.most.as_str(), row.when_full.as_str())).collect();
    assert_eq!(found, [("names", "1,024", "the oldest goes")]);
    let fields: Vec<_> = bare.iter().map(|(_, field)| field.as_str()).collect();
    assert_eq!(fields, ["other", "Tuple"]);
}

#[test]
#[should_panic(expected = "nothing uses MOST")]
fn a_constant_that_nothing_uses_is_no_bound() {
    value_of(Path::new(""), "x.rs", "const MOST: usize = 9;\n", "MOST");
}
