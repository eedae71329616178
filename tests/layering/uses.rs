//! Which file uses which: from `use` trees and the paths beside them to the file that defines the name.

use std::collections::{BTreeMap, BTreeSet};

/// From a file to a file that defines something which it uses, with the paths that say so.
pub type Arrows = BTreeMap<(String, String), BTreeSet<String>>;

/// Segments from the root of the library; a binary's begin with `bin` and its name.
type ModulePath = Vec<String>;

/// The files, each by its module.
pub struct Sources(BTreeMap<ModulePath, Source>);

/// A file without comments, texts and what only tests see.
#[derive(Default)]
struct Source {
    /// Names that it defines, modules inside it among them.
    items: BTreeSet<String>,
    imports: Vec<Import>,
    /// Paths beside the `use` trees, each with the modules inside the file that it stands in.
    paths: Vec<(ModulePath, ModulePath)>,
    /// Names beside the `use` trees.
    names: BTreeSet<String>,
}

/// A leaf of a `use` tree.
struct Import {
    /// The modules inside the file that it stands in.
    inside: ModulePath,
    path: ModulePath,
    /// The name that it gives; `*` for all.
    name: String,
    /// Others may take it from here.
    public: bool,
}

impl Sources {
    /// From the module of each file, `lib` and `bin::…::main` for the roots, and its text.
    pub fn read(texts: impl Iterator<Item = (String, String)>) -> Self {
        let (mut files, mut of_tests) = (BTreeMap::new(), Vec::new());
        for (module, text) in texts {
            let mut path: ModulePath = module.split("::").map(str::to_owned).collect();
            path.pop_if(|last| last == "lib" || last == "main");
            let (source, tests) = Source::read(&text);
            of_tests.extend(tests.into_iter().map(|name| [&path[..], &[name]].concat()));
            files.insert(path, source);
        }
        files.retain(|path, _| !of_tests.iter().any(|tests| path.starts_with(tests)));
        Self(files)
    }

    pub fn arrows(&self) -> Arrows {
        let mut arrows = Arrows::new();
        let shown = |file: &[String]| if file.is_empty() { "lib".to_owned() } else { file.join("::") };
        for (file, source) in &self.0 {
            let mut add = |path: &[String], said: String| {
                let definer = self.definer(path, 0).filter(|definer| definer != file);
                if let Some(to) = definer {
                    arrows.entry((shown(file), shown(&to))).or_default().insert(said);
                }
            };
            for import in &source.imports {
                // A re-export is no use; a module alone is none before something of it is.
                let counts = !import.public || source.names.contains(&import.name);
                let path = self.absolute(file, &import.inside, &import.path).filter(|_| counts);
                match path {
                    Some(path) if import.name == "*" => add(&path, import.path.join("::") + "::*"),
                    Some(path) if !self.0.contains_key(&path) => add(&path, import.path.join("::")),
                    _ => {}
                }
            }
            for (inside, said) in &source.paths {
                let path = self.absolute(file, inside, said).or_else(|| self.imported(file, said));
                if let Some(path) = path.filter(|path| !self.0.contains_key(path)) {
                    add(&path, said.join("::"));
                }
            }
        }
        arrows
    }

    /// A path of a file from the root: by `crate`, `self`, `super`, the library's name, or a module below.
    fn absolute(&self, file: &[String], inside: &[String], path: &[String]) -> Option<ModulePath> {
        let root = if file.first().is_some_and(|first| first == "bin") { 2 } else { 0 };
        let scope = [file, inside].concat();
        let (first, rest) = path.split_first()?;
        let up = path.iter().take_while(|segment| *segment == "super").count();
        Some(match first.as_str() {
            "crate" => [&file[..root], rest].concat(),
            "kiro_messages" => rest.to_vec(),
            "self" => [&scope, rest].concat(),
            "super" => [&scope[..scope.len().checked_sub(up)?], &path[up..]].concat(),
            _ => {
                let is_below = self.0.contains_key(&[&scope[..], &path[..1]].concat());
                is_below.then(|| [&scope[..], path].concat())?
            }
        })
    }

    /// A path that begins with an imported module; other imported names count where they are imported.
    fn imported(&self, file: &ModulePath, path: &[String]) -> Option<ModulePath> {
        let import = self.0[file].imports.iter().find(|import| import.name == path[0])?;
        let module = self.absolute(file, &import.inside, &import.path)?;
        self.0.contains_key(&module).then(|| [&module[..], &path[1..]].concat())
    }

    /// The file that defines the thing at a path. Its first segment below the modules with files decides: an item of
    /// that file, or a name that came there by `use`.
    fn definer(&self, path: &[String], depth: u8) -> Option<ModulePath> {
        let modules = (0..=path.len()).rev().find(|len| self.0.contains_key(&path[..*len]))?;
        let (file, rest) = path.split_at(modules);
        let (file, source) = (file.to_vec(), &self.0[file]);
        let Some(name) = rest.first().filter(|name| !source.items.contains(*name) && depth < 8) else {
            return Some(file);
        };
        let from = |import: &Import| self.absolute(&file, &import.inside, &import.path);
        let given = source.imports.iter().filter(|import| import.name == *name).filter_map(from);
        if let Some(from) = given.into_iter().find(|from| *from != [&file[..], &rest[..1]].concat()) {
            return self.definer(&[&from[..], &rest[1..]].concat(), depth + 1);
        }
        let stars = source.imports.iter().filter(|import| import.name == "*").filter_map(from);
        let by_star = stars.filter_map(|from| {
            let definer = self.definer(&[&from[..], rest].concat(), depth + 1)?;
            self.0[&definer].items.contains(name).then_some(definer)
        });
        by_star.into_iter().next().or(Some(file))
    }
}

impl Source {
    /// With the names of the modules in files of their own that only tests see.
    fn read(text: &str) -> (Self, Vec<String>) {
        let (tokens, tests) = without_tests(tokens(text));
        let mut source = Self::default();
        let mut inside: Vec<(String, usize)> = Vec::new();
        let (mut depth, mut at) = (0, 0);
        while let Some(token) = tokens.get(at) {
            let scope: ModulePath = inside.iter().map(|(name, _)| name.clone()).collect();
            let next = |n: usize| tokens.get(at + n).map_or("", String::as_str);
            let mut taken = 1;
            match token.as_str() {
                "{" | "(" | "[" => depth += 1,
                "}" | ")" | "]" => {
                    depth -= 1;
                    inside.pop_if(|(_, from)| *from == depth);
                }
                // Not the `use<…>` of an `impl Trait`.
                "use" if next(1) != "<" => {
                    taken = tokens[at..].iter().position(|token| token == ";").unwrap_or(tokens.len() - at);
                    let public = at > 0 && matches!(tokens[at - 1].as_str(), "pub" | ")");
                    let import = |(path, name)| Import { inside: scope.clone(), path, name, public };
                    source.imports.extend(use_tree(&tokens[at + 1..at + taken]).into_iter().map(import));
                }
                "mod" => {
                    if next(2) == "{" {
                        source.items.insert(next(1).to_owned());
                        inside.push((next(1).to_owned(), depth));
                    }
                    taken = 2;
                }
                "struct" | "enum" | "fn" | "trait" | "type" | "const" | "static" | "union" | "macro_rules"
                    if depth == inside.len() =>
                {
                    let name = if matches!(next(1), "mut" | "!") { next(2) } else { next(1) };
                    source.items.extend(is_name(name).then(|| name.to_owned()));
                }
                name if is_name(name) => {
                    let mut path = vec![name.to_owned()];
                    while next(taken) == "::" && is_name(next(taken + 1)) {
                        path.push(next(taken + 1).to_owned());
                        taken += 2;
                    }
                    source.names.insert(name.to_owned());
                    if path.len() > 1 {
                        source.paths.push((scope, path));
                    }
                }
                _ => {}
            }
            at += taken;
        }
        (source, tests)
    }
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// The leaves of a `use` tree: the path of each and the name that it gives.
fn use_tree(tokens: &[String]) -> Vec<(ModulePath, String)> {
    let mut found = Vec::new();
    let (mut path, mut bases, mut alias) = (ModulePath::new(), vec![0], None);
    let mut words = tokens.iter().map(String::as_str).chain([","]);
    while let Some(word) = words.next() {
        let base = bases.last().copied().unwrap_or(0);
        match word {
            "::" => {}
            "{" => bases.push(path.len()),
            "as" => alias = words.next().map(str::to_owned),
            "," | "}" => {
                if path.len() > base {
                    let mut leaf = path.clone();
                    let star = leaf.pop_if(|last| last == "*");
                    leaf.pop_if(|last| last == "self");
                    let name = alias.take().or(star).or_else(|| leaf.last().cloned()).unwrap_or_default();
                    found.push((leaf, name));
                }
                if word == "}" {
                    bases.pop();
                }
                // Behind a brace the path goes back to where its tree began.
                path.truncate(if word == "}" { bases.last().copied().unwrap_or(0) } else { base });
            }
            name => path.push(name.to_owned()),
        }
    }
    found
}

/// Leaves out the items behind `#[cfg(test)]`, or behind a `cfg` that asks for tests among others. Also the names of
/// the modules among them that have files of their own.
fn without_tests(tokens: Vec<String>) -> (Vec<String>, Vec<String>) {
    let (mut kept, mut files, mut at) = (Vec::new(), Vec::new(), 0);
    while at < tokens.len() {
        let is_cfg = tokens[at] == "#" && tokens.get(at + 2).is_some_and(|token| token == "cfg");
        let behind = if is_cfg { closed(&tokens, at) } else { at };
        let has = |word: &str| tokens[at..behind].iter().any(|token| token == word);
        if !has("test") || has("not") {
            kept.push(tokens[at].clone());
            at += 1;
            continue;
        }
        at = behind;
        while tokens.get(at).is_some_and(|token| token == "#") {
            at = closed(&tokens, at);
        }
        // To the end of the item: a semicolon, or the body's last brace.
        let begin = at;
        while at < tokens.len() && tokens[at] != ";" && tokens[at] != "{" {
            at = if matches!(tokens[at].as_str(), "(" | "[") { closed(&tokens, at) } else { at + 1 };
        }
        let module = tokens[begin..at].iter().position(|token| token == "mod");
        if tokens.get(at).is_some_and(|token| token == "{") {
            at = closed(&tokens, at);
        } else {
            files.extend(module.and_then(|place| tokens.get(begin + place + 1)).cloned());
            at += 1;
        }
    }
    (kept, files)
}

/// Behind the bracket that closes the first one at or behind `at`.
fn closed(tokens: &[String], at: usize) -> usize {
    let mut depth = 0;
    for (place, token) in tokens.iter().enumerate().skip(at) {
        match token.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" if depth == 1 => return place + 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
    }
    tokens.len()
}

/// Names, `::` and other characters one by one, without comments, texts, characters, numbers and lifetimes.
fn tokens(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let len = match c {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => block_comment(rest),
            '"' => quoted(rest),
            '\'' => character(rest),
            c if c.is_alphanumeric() || c == '_' => {
                let len = word(rest);
                raw_text(rest, len).unwrap_or_else(|| {
                    let name = &rest[..len];
                    let is_prefix = matches!(name, "b" | "c") && rest[len..].starts_with(['"', '\'']);
                    found.extend((is_name(name) && !is_prefix).then(|| name.to_owned()));
                    len
                })
            }
            ':' if rest.starts_with("::") => {
                found.push("::".to_owned());
                2
            }
            c => {
                found.extend((!c.is_whitespace()).then(|| c.to_string()));
                c.len_utf8()
            }
        };
        rest = &rest[len..];
    }
    found
}

fn word(text: &str) -> usize {
    text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len())
}

fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    loop {
        match &text.as_bytes()[at..] {
            [] => return at,
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
}

fn quoted(text: &str) -> usize {
    let mut escaped = false;
    let end = text.bytes().skip(1).position(|byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    });
    end.map_or(text.len(), |end| end + 2)
}

/// A character, or a lifetime.
fn character(text: &str) -> usize {
    match text[1..].chars().next() {
        Some('\\') => 4 + text[3..].find('\'').unwrap_or(0),
        Some(inner) if text[1 + inner.len_utf8()..].starts_with('\'') => 2 + inner.len_utf8(),
        _ => 1 + word(&text[1..]),
    }
}

/// `r"…"`, `br#"…"#`: `prefix` is the length of the word in front.
fn raw_text(text: &str, prefix: usize) -> Option<usize> {
    let hashes = text[prefix..].bytes().take_while(|byte| *byte == b'#').count();
    let begin = prefix + hashes + 1;
    let is_raw = matches!(&text[..prefix], "r" | "br" | "cr") && text[prefix + hashes..].starts_with('"');
    let end = format!("\"{}", "#".repeat(hashes));
    is_raw.then(|| begin + text[begin..].find(&end).unwrap_or(0) + end.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The arrows of files as lines.
    fn arrows(texts: &[(&str, &str)]) -> Vec<String> {
        let texts = texts.iter().map(|(module, text)| ((*module).to_owned(), (*text).to_owned()));
        let line = |((from, to), names): ((String, String), BTreeSet<String>)| {
            format!("{from} -> {to}: {}", Vec::from_iter(names).join(", "))
        };
        Sources::read(texts).arrows().into_iter().map(line).collect()
    }

    const LEAF: (&str, &str) = ("room::leaf", "pub struct Leaf; pub(super) fn help() {} pub const MOST: u8 = b'\"';");

    #[test]
    fn a_re_export_leads_to_the_file_that_defines_the_name() {
        let face = ("room", "mod leaf; mod user; pub use self::leaf::{Leaf, help as aid}; pub struct Face;");
        let user = ("room::user", "use super::{Leaf, aid, Face}; fn f() { super::leaf::MOST; }");
        assert_eq!(
            arrows(&[LEAF, face, user]),
            ["room::user -> room: super::Face", "room::user -> room::leaf: super::Leaf, super::aid, super::leaf::MOST"]
        );
        // A face that needs the name itself uses it; a private `use` is one in any case.
        let needs = ("room", "mod leaf; pub use leaf::Leaf; impl Leaf {}");
        assert_eq!(arrows(&[LEAF, needs]), ["room -> room::leaf: leaf::Leaf"]);
        let private = ("room", "mod leaf; use leaf::Leaf;");
        assert_eq!(arrows(&[LEAF, private]), ["room -> room::leaf: leaf::Leaf"]);
        let by_star = ("room", "mod leaf; pub use leaf::*;");
        let user = ("other", "use crate::room::Leaf;");
        assert_eq!(arrows(&[LEAF, by_star, user]), ["other -> room::leaf: crate::room::Leaf"]);
    }

    #[test]
    fn every_form_of_a_path_is_read() {
        for (text, path) in [
            ("use crate::room::leaf as l; fn f() { l::help() }", "l::help"),
            ("use crate::{room::leaf::{self, *}};", "crate::room::leaf::*"),
            ("use crate::{room::{leaf::{MOST}}, other};", "crate::room::leaf::MOST"),
            ("fn f<'a>(x: &'a crate::room::leaf::Leaf::Variant) {}", "crate::room::leaf::Leaf::Variant"),
            ("fn f() -> impl Send + use<> { super::room::leaf::help() }", "super::room::leaf::help"),
            ("mod on { fn f() { super::super::room::leaf::help() } }", "super::super::room::leaf::help"),
        ] {
            assert_eq!(arrows(&[LEAF, ("other", text)]), [format!("other -> room::leaf: {path}")], "{text}");
        }
        // A module alone, a name of the file's own, and one of another crate are no arrows.
        let none = "use crate::room::leaf; mod on { use super::Own; } struct Own; use leaf_crate::Leaf; fn f() { std::fs::read() }";
        assert_eq!(arrows(&[LEAF, ("other", none)]), <[&str; 0]>::default());
    }

    #[test]
    fn a_binary_has_a_root_of_its_own() {
        let user = ("bin::tool::cli", "use crate::leaf::X; use kiro_messages::room::leaf::Leaf;");
        let files = [LEAF, user, ("bin::tool::leaf", "pub struct X;"), ("bin::tool::main", "mod cli; mod leaf;")];
        assert_eq!(
            arrows(&files),
            [
                "bin::tool::cli -> bin::tool::leaf: crate::leaf::X",
                "bin::tool::cli -> room::leaf: kiro_messages::room::leaf::Leaf",
            ]
        );
    }

    #[test]
    fn comments_texts_and_tests_are_left_out() {
        let silent = "// use crate::room::leaf::Leaf;\n/* /* */ crate::room::leaf::X */\n\
            const S: &str = r#\"\"crate::room::leaf::X\"#; const T: &str = \"\\\" crate::room::leaf::X\";\n\
            #[cfg(test)]\n#[path = \"x\"]\nmod tests { use crate::room::leaf::Leaf; }\n\
            #[cfg(all(test, unix))]\nfn f(x: [u8; 2]) { crate::room::leaf::help() }";
        assert_eq!(arrows(&[LEAF, ("other", silent)]), <[&str; 0]>::default());
        let files = [
            LEAF,
            ("other", "#[cfg(test)]\nmod tests;\n#[cfg(not(test))]\nuse crate::room::leaf::Leaf;"),
            ("other::tests", "use crate::room::leaf::Leaf;"),
        ];
        assert_eq!(arrows(&files), ["other -> room::leaf: crate::room::leaf::Leaf"]);
    }
}
