//! A module uses only lower layers: the table of the house, held against every `crate::` path in `src/`. And no file
//! stands in a circle with others.
#![expect(clippy::unwrap_used, reason = "test code")]

#[path = "layering/circles.rs"]
mod circles;
#[path = "support/files.rs"]
mod files;
#[path = "layering/uses.rs"]
mod uses;

use std::fs;
use std::path::Path;

/// Longest prefix wins. `lib.rs` stands outside: it only declares.
const LAYERS: &[(&str, u8)] = &[
    ("secret", 0),
    ("simd", 0),
    ("program", 0),
    ("files", 4),
    ("memory", 4),
    ("proto::address", 1),
    ("proto::effort", 1),
    ("proto::json", 1),
    ("proto::said", 1),
    ("proto::eventstream", 1),
    ("proto::messages", 1),
    ("proto::kiro", 1),
    ("proto::record", 1),
    ("proto::translate", 2),
    ("proto::pipeline", 2),
    ("policy", 3),
    ("error", 4),
    ("config", 4),
    ("store", 5),
    ("upstream", 5),
    ("credentials", 5),
    ("pool", 5),
    ("metrics", 5),
    ("accounts", 6),
    ("gateway", 6),
    ("addon", 7),
    ("server", 7),
    ("simulator", 7),
    ("bin::kiro-server", 8),
];

#[test]
fn a_module_uses_only_lower_layers_or_its_own() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = files::files(&src, "rs");
    assert!(files.len() > 20, "the walk over src/ found only {} files", files.len());
    let mut arrows = 0;
    let mut wrong = Vec::new();
    for file in &files {
        let module = module_of(file.strip_prefix(&src).unwrap());
        let Some(own) = layer(&module) else {
            if module != "lib" && module != "proto" {
                wrong.push(format!("{module}: not in the table"));
            }
            continue;
        };
        let text = fs::read_to_string(file).unwrap();
        for target in paths(&text) {
            let Some(theirs) = layer(&target) else {
                wrong.push(format!("{module} uses crate::{target}, which is not in the table"));
                continue;
            };
            arrows += 1;
            if theirs > own {
                wrong.push(format!("{module} (layer {own}) uses {target} (layer {theirs})"));
            }
        }
    }
    assert!(arrows > 20, "only {arrows} paths found: the reader of paths is broken");
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn the_reader_of_paths_sees_every_form() {
    let text = "use crate::proto::{kiro::fault::Fault, messages};\nuse crate::gateway;\n let x = crate::secret::Secret::new();\n // crate::server in a comment\n/// [`crate::server`] in a doc\nuse kiro_messages::{config, server::listen};";
    assert_eq!(
        paths(text),
        ["proto::kiro::fault::Fault", "proto::messages", "gateway", "secret::Secret::new", "config", "server::listen"]
    );
    assert_eq!(layer("proto::kiro::fault::Fault"), Some(1));
    assert_eq!(layer("bin::kiro-server::main"), Some(8));
}

fn module_of(file: &Path) -> String {
    let text = file.with_extension("").to_string_lossy().replace(['/', '\\'], "::");
    text.strip_suffix("::mod").unwrap_or(&text).to_owned()
}

fn layer(module: &str) -> Option<u8> {
    LAYERS
        .iter()
        .filter(|(name, _)| module == *name || module.strip_prefix(name).is_some_and(|rest| rest.starts_with("::")))
        .max_by_key(|(name, _)| name.len())
        .map(|(_, layer)| *layer)
}

/// Every path below `crate::` or `kiro_messages::` outside comments, with one level of braces spread.
fn paths(text: &str) -> Vec<String> {
    let mut code = String::new();
    for line in text.lines() {
        code.push_str(line.split("//").next().unwrap_or_default());
        code.push('\n');
    }
    let mut found = Vec::new();
    for root in ["crate::", "kiro_messages::"] {
        for (at, _) in code.match_indices(root) {
            let rest = &code[at + root.len()..];
            if rest.starts_with('{') {
                spread("", rest, &mut found);
                continue;
            }
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_' && c != ':').unwrap_or(rest.len());
            let path = rest[..end].trim_end_matches(':');
            if rest[end..].starts_with('{') {
                spread(path, &rest[end..], &mut found);
            } else {
                found.push(path.to_owned());
            }
        }
    }
    found
}

fn spread(base: &str, braces: &str, found: &mut Vec<String>) {
    let end = braces.find('}').unwrap_or(braces.len());
    for part in braces[1..end].split(',') {
        let name: String = part.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_' || *c == ':').collect();
        if name.is_empty() || name == "self" {
            continue;
        }
        found.push(if base.is_empty() { name } else { format!("{base}::{name}") });
    }
}
