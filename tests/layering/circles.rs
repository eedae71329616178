//! No circle between files: what two files need from each other stands in a third.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use super::uses::{Arrows, Sources};
use super::{files, module_of};

/// The arrows between the files of a circle.
type Circle = Vec<(String, String, BTreeSet<String>)>;

#[test]
fn no_file_stands_in_a_circle() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let texts = files::files(&src, "rs").into_iter().map(|file| {
        let module = module_of(file.strip_prefix(&src).unwrap());
        (module, fs::read_to_string(&file).unwrap())
    });
    let arrows = Sources::read(texts).arrows();
    assert!(arrows.len() > 500, "only {} arrows found: the reader of uses is broken", arrows.len());
    let found: Vec<String> = circles(&arrows).iter().map(told).collect();
    let advice = "Move what both sides need into a file of its own; a face re-exports it, so that its path stays.";
    assert!(found.is_empty(), "\n{}\n{advice}", found.join("\n"));
}

/// The strongly connected components with more than one file.
fn circles(arrows: &Arrows) -> Vec<Circle> {
    let mut next: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (from, to) in arrows.keys() {
        next.entry(from).or_default().push(to);
    }
    let mut reach: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for from in next.keys().copied() {
        let (mut seen, mut open) = (BTreeSet::new(), vec![from]);
        while let Some(file) = open.pop() {
            open.extend(next.get(file).into_iter().flatten().copied().filter(|to| seen.insert(*to)));
        }
        reach.insert(from, seen);
    }
    let leads = |from: &str, to: &str| reach.get(from).is_some_and(|seen| seen.contains(to));
    let mut circles: Vec<Circle> = Vec::new();
    for ((from, to), names) in arrows.iter().filter(|((from, to), _)| leads(to, from)) {
        let arrow = (from.clone(), to.clone(), names.clone());
        match circles.iter_mut().find(|circle| leads(from, &circle[0].0) && leads(&circle[0].0, from)) {
            Some(circle) => circle.push(arrow),
            None => circles.push(vec![arrow]),
        }
    }
    circles
}

fn told(circle: &Circle) -> String {
    let files: BTreeSet<_> = circle.iter().map(|(from, ..)| from).collect();
    let line = |(from, to, names): &(String, String, BTreeSet<String>)| {
        format!("\n  {from} -> {to}: {}", Vec::from_iter(names.iter().map(String::as_str)).join(", "))
    };
    format!("a circle of {} files:{}", files.len(), circle.iter().map(line).collect::<String>())
}

#[test]
fn circles_are_told_with_the_names_behind_each_arrow() {
    let arrow =
        |from: &str, to: &str, name: &str| ((from.to_owned(), to.to_owned()), BTreeSet::from([name.to_owned()]));
    let arrows = Arrows::from([
        arrow("a", "b", "super::b::B"),
        arrow("b", "c", "super::c::C"),
        arrow("c", "a", "super::A"),
        arrow("c", "d", "super::d::D"),
        arrow("e", "a", "crate::a::A"),
        arrow("x", "y", "super::Y"),
        arrow("y", "x", "super::X"),
    ]);
    let found: Vec<String> = circles(&arrows).iter().map(told).collect();
    assert_eq!(
        found,
        [
            "a circle of 3 files:\n  a -> b: super::b::B\n  b -> c: super::c::C\n  c -> a: super::A",
            "a circle of 2 files:\n  x -> y: super::Y\n  y -> x: super::X",
        ]
    );
}
