//! Stop sequences (M82), found in text that comes in pieces.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;

use crate::proto::json::{Literal, escape, escaped_unit, short_escape};
use crate::proto::messages::event::Piece;

/// Bytes of room that a scanner keeps for the next piece.
const ROOM: usize = 4096;

/// The stop sequences of a request, as one automaton (Aho and Corasick's): the cost of a byte doesn't grow with their
/// number.
#[derive(Debug, PartialEq, Eq)]
pub struct StopSequences {
    sequences: Vec<String>,
    /// The children of the root, by their byte.
    first: [u16; 256],
    /// Whether a byte has one, or is a `\`, with which its escape may begin.
    begins: [bool; 256],
    /// The root is 0. A node stands for a beginning of at least one sequence.
    nodes: Vec<Node>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Node {
    byte: u8,
    /// Its first child and its next sibling; 0: none.
    child: u16,
    sibling: u16,
    /// The node of its longest proper ending that is a beginning too.
    fail: u16,
    /// Its length in bytes.
    depth: u16,
    /// The longest sequence that it ends with, counted from 1; 0: none.
    hit: u16,
}

impl StopSequences {
    /// None without a sequence. At most 16 of 256 characters each come here (M82), so that indices fit `u16`; what is
    /// over that is left out.
    pub fn new(sequences: Vec<String>) -> Option<Arc<Self>> {
        let mut stops =
            Self { sequences: Vec::new(), first: [0; 256], begins: [false; 256], nodes: vec![Node::default()] };
        stops.begins[usize::from(b'\\')] = true;
        for sequence in sequences {
            if !sequence.is_empty() && stops.nodes.len() + sequence.len() < usize::from(u16::MAX) {
                stops.insert(&sequence);
                stops.sequences.push(sequence);
            }
        }
        stops.link();
        (!stops.sequences.is_empty()).then(|| Arc::new(stops))
    }

    /// The sequence of that index.
    pub fn get(&self, index: usize) -> Option<&str> {
        self.sequences.get(index).map(String::as_str)
    }

    fn insert(&mut self, sequence: &str) {
        let mut at = 0;
        for &byte in sequence.as_bytes() {
            at = match self.child(at, byte) {
                0 => {
                    let new = self.nodes.len() as u16;
                    let Node { child, depth, .. } = self.nodes[usize::from(at)];
                    self.nodes.push(Node { byte, sibling: child, depth: depth + 1, ..Node::default() });
                    self.nodes[usize::from(at)].child = new;
                    if at == 0 {
                        self.first[usize::from(byte)] = new;
                        self.begins[usize::from(byte)] = true;
                    }
                    new
                }
                child => child,
            };
        }
        let node = &mut self.nodes[usize::from(at)];
        if node.hit == 0 {
            node.hit = self.sequences.len() as u16 + 1;
        }
    }

    /// Fills in `fail`, the shorter nodes first.
    fn link(&mut self) {
        let mut waiting = VecDeque::from([0]);
        while let Some(parent) = waiting.pop_front() {
            let Node { mut child, fail: from, .. } = self.nodes[usize::from(parent)];
            while child != 0 {
                waiting.push_back(child);
                let Node { byte, sibling, .. } = self.nodes[usize::from(child)];
                let fail = if parent == 0 { 0 } else { self.step(from, byte) };
                let inherited = self.nodes[usize::from(fail)].hit;
                let node = &mut self.nodes[usize::from(child)];
                node.fail = fail;
                if node.hit == 0 {
                    node.hit = inherited;
                }
                child = sibling;
            }
        }
    }

    /// Whether a sequence may begin with this byte of a text or of a literal.
    #[inline]
    fn begins(&self, byte: u8) -> bool {
        self.begins[usize::from(byte)]
    }

    /// The child with that byte; 0: none.
    fn child(&self, node: u16, byte: u8) -> u16 {
        let mut child = self.nodes[usize::from(node)].child;
        while child != 0 && self.nodes[usize::from(child)].byte != byte {
            child = self.nodes[usize::from(child)].sibling;
        }
        child
    }

    /// The node of the longest beginning that the text ends with, after one more byte.
    #[inline]
    fn step(&self, mut node: u16, byte: u8) -> u16 {
        while node != 0 {
            match self.child(node, byte) {
                0 => node = self.nodes[usize::from(node)].fail,
                child => return child,
            }
        }
        self.first[usize::from(byte)]
    }
}

/// Looks for the stop sequences in a text, wherever it is cut. It holds back only what may still become a sequence.
///
/// The sequence that ends first counts; of those that end at one place, the longest.
#[derive(Debug)]
pub struct StopScanner {
    stops: Arc<StopSequences>,
    node: u16,
    /// The text of `node`, as the content of a string literal.
    held: Vec<u8>,
    /// What goes out of a text that was held before, or decoded: room for it, used again and again.
    joined: Vec<u8>,
    decoded: String,
}

impl StopScanner {
    /// A scanner at the beginning of a text.
    pub fn new(stops: Arc<StopSequences>) -> Self {
        Self { stops, node: 0, held: Vec::new(), joined: Vec::new(), decoded: String::new() }
    }

    /// Whether this piece goes out as it is, as nothing is held and no sequence begins in it: then it needn't be taken.
    /// Its bytes may be those of a string literal.
    #[inline]
    pub fn passes(&self, bytes: &[u8]) -> bool {
        if self.node != 0 {
            return false;
        }
        let begins = |bytes: &[u8]| bytes.iter().fold(false, |any, &byte| any | self.stops.begins(byte));
        let (blocks, rest) = bytes.as_chunks::<16>();
        // The last block may overlap the one before it.
        let rest = bytes.last_chunk::<16>().filter(|_| !rest.is_empty()).map_or(rest, |last| &last[..]);
        !blocks.iter().any(|block| begins(block)) && !begins(rest)
    }

    /// Takes the next piece: what goes out of the text, and the index of the sequence that ends it.
    pub fn take<'a>(&'a mut self, piece: Piece<'a>) -> (Piece<'a>, Option<usize>) {
        match piece {
            Piece::Plain(text) if self.passes(text.as_bytes()) => (piece, None),
            Piece::Plain(text) => self.take_text(text),
            Piece::Literal(literal) => match self.look(literal.as_bytes()) {
                Some(found) => self.take_literal(literal.as_bytes(), found),
                None => self.take_text(&literal.decode()),
            },
        }
    }

    /// Runs through a literal without decoding it. None: it holds a `\u` escape.
    #[inline]
    fn look(&self, literal: &[u8]) -> Option<Found> {
        let stops = &*self.stops;
        let (mut node, mut rest) = (self.node, literal);
        // What is held and the literal are one text; this is where it last came from the root.
        let all = self.held.len() + literal.len();
        let mut run = 0;
        loop {
            if node == 0 {
                let Some(next) = rest.iter().position(|&byte| stops.begins(byte)) else {
                    return Some(Found { node, run: all, end: all });
                };
                rest = &rest[next..];
                run = all - rest.len();
            }
            let (byte, behind) = match rest {
                [b'\\', letter, behind @ ..] => (short_escape(*letter)?, behind),
                [byte, behind @ ..] => (*byte, behind),
                [] => break,
            };
            rest = behind;
            node = stops.step(node, byte);
            if node != 0 && stops.nodes[usize::from(node)].hit != 0 {
                break;
            }
        }
        Some(Found { node, run, end: all - rest.len() })
    }

    fn take_literal<'a>(&'a mut self, literal: &'a [u8], found: Found) -> (Piece<'a>, Option<usize>) {
        let (hit, kept) = self.arrive(found.node);
        let text = if self.held.is_empty() {
            literal
        } else {
            std::mem::swap(&mut self.held, &mut self.joined);
            self.held.clear();
            self.held.shrink_to(ROOM);
            self.joined.extend_from_slice(literal);
            &self.joined
        };
        let end = found.end.min(text.len());
        let cut = if kept == 0 { end } else { found.run + without_last(&text[found.run..end], kept) };
        if hit.is_none() {
            self.held.extend_from_slice(&text[cut..end]);
        }
        (Piece::Literal(Literal::part(&text[..cut])), hit)
    }

    fn take_text(&mut self, text: &str) -> (Piece<'_>, Option<usize>) {
        self.decoded.clear();
        self.decoded.shrink_to(ROOM);
        self.decoded.push_str(&held_text(&self.held));
        self.held.clear();
        let (mut node, mut end) = (self.node, self.decoded.len());
        self.decoded.push_str(text);
        for &byte in text.as_bytes() {
            node = self.stops.step(node, byte);
            end += 1;
            if self.stops.nodes[usize::from(node)].hit != 0 {
                break;
            }
        }
        let (hit, kept) = self.arrive(node);
        let cut = end - kept;
        if hit.is_none() {
            escape(&self.decoded[cut..end], &mut self.held);
        }
        self.decoded.truncate(cut);
        (Piece::Plain(&self.decoded), hit)
    }

    /// The text leads to this node: the sequence that ends there, and how many of its last bytes don't go out.
    fn arrive(&mut self, node: u16) -> (Option<usize>, usize) {
        let Node { hit, depth, .. } = self.stops.nodes[usize::from(node)];
        let hit = usize::from(hit).checked_sub(1);
        self.node = if hit.is_some() { 0 } else { node };
        (hit, hit.map_or(usize::from(depth), |index| self.stops.get(index).map_or(0, str::len)))
    }

    /// The text ends here: what was held is text.
    pub fn flush(&mut self) -> String {
        self.node = 0;
        held_text(&std::mem::take(&mut self.held)).into_owned()
    }

    /// Whether text is held.
    pub fn holds(&self) -> bool {
        !self.held.is_empty()
    }

    /// The sequences it looks for.
    pub fn sequences(&self) -> &StopSequences {
        &self.stops
    }
}

/// Where a literal leads.
struct Found {
    node: u16,
    /// Since here, counted with what is held, the text has been the beginning of some sequence.
    run: usize,
    end: usize,
}

fn held_text(held: &[u8]) -> Cow<'_, str> {
    Literal::part(held).decode()
}

/// The length of a literal without its last `count` decoded bytes. An escape stands for one byte: others are never part
/// of what is looked at, but for those of control characters.
fn without_last(literal: &[u8], count: usize) -> usize {
    let behind = |at: usize| at + if literal[at] == b'\\' { escaped_unit(&literal[at..]).1 } else { 1 };
    let (mut decoded, mut at) = (0, 0);
    while at < literal.len() {
        (decoded, at) = (decoded + 1, behind(at));
    }
    at = 0;
    for _ in count..decoded {
        at = behind(at);
    }
    at
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scanner(sequences: &[&str]) -> StopScanner {
        StopScanner::new(StopSequences::new(sequences.iter().map(|text| (*text).to_owned()).collect()).unwrap())
    }

    /// What goes out, decoded; the piece as text and as a literal in turn, since both may come.
    fn taken(scanner: &mut StopScanner, piece: &str) -> (String, Option<usize>) {
        let mut literal = Vec::new();
        escape(piece, &mut literal);
        let piece = if scanner.held.len().is_multiple_of(2) {
            Piece::Literal(Literal::new(&literal).unwrap())
        } else {
            Piece::Plain(piece)
        };
        let (free, hit) = scanner.take(piece);
        let free = match free {
            Piece::Plain(text) => text.to_owned(),
            Piece::Literal(literal) => Literal::new(literal.as_bytes()).unwrap().decode().into_owned(),
        };
        (free, hit)
    }

    /// All that goes out, and the sequence.
    fn scan<'p>(sequences: &[&str], pieces: impl IntoIterator<Item = &'p str>) -> (String, Option<usize>) {
        let mut scanner = scanner(sequences);
        let mut out = String::new();
        for piece in pieces {
            let passes = scanner.passes(piece.as_bytes());
            let (free, hit) = taken(&mut scanner, piece);
            assert!(!passes || (free == piece && hit.is_none() && !scanner.holds()), "{piece}");
            out += &free;
            if hit.is_some() {
                assert!(!scanner.holds());
                return (out, hit);
            }
        }
        out += &scanner.flush();
        (out, None)
    }

    /// By its definition: the place where the first sequence is whole, and the longest of those that end there.
    fn naive(sequences: &[&str], text: &str) -> (String, Option<usize>) {
        for end in (0..=text.len()).filter(|end| text.is_char_boundary(*end)) {
            let ending = sequences.iter().enumerate().filter(|(_, stop)| text[..end].ends_with(**stop));
            if let Some((index, stop)) = ending.max_by_key(|(index, stop)| (stop.len(), usize::MAX - index)) {
                return (text[..end - stop.len()].to_owned(), Some(index));
            }
        }
        (text.to_owned(), None)
    }

    #[test]
    fn the_first_end_counts_then_the_longest_sequence_m82() {
        assert_eq!(scan(&["STOP"], ["alpha STOP beta"]), ("alpha ".into(), Some(0)));
        assert_eq!(scan(&["STOP"], ["alpha ST", "O", "P beta"]), ("alpha ".into(), Some(0)));
        assert_eq!(scan(&["abcd", "bc"], ["xabcd"]), ("xa".into(), Some(1)), "it ends first");
        assert_eq!(scan(&["END", "THE END"], ["so: THE END"]), ("so: ".into(), Some(1)), "both end here");
        assert_eq!(scan(&["ab", "ab"], ["ab"]), (String::new(), Some(0)));
        assert_eq!(scan(&["aab"], ["aaaab"]), ("aa".into(), Some(0)));
        assert_eq!(scan(&["漢字"], ["a漢", "漢字b"]), ("a漢".into(), Some(0)));
        assert_eq!(scan(&["STOP"], ["a STO"]), ("a STO".into(), None), "the end of the text lets it go");
    }

    #[test]
    fn only_what_may_become_a_sequence_is_held_m82() {
        let mut scanner = scanner(&["\n\nHuman:", "END"]);
        let mut free = |piece: &'static str| taken(&mut scanner, piece).0;
        assert_eq!(free("Hello there"), "Hello there");
        assert_eq!(free(".\n"), ".");
        assert_eq!(free("\nHu"), "");
        assert_eq!(free("ge"), "\n\nHuge");
        assert_eq!(free("EEN"), "E");
        assert_eq!(free("x"), "ENx");
        let literal = Literal::new(b"plain \\\"text\\\"").unwrap();
        let (Piece::Literal(free), None) = scanner.take(Piece::Literal(literal)) else { panic!("it isn't decoded") };
        assert!(std::ptr::eq(free.as_bytes(), literal.as_bytes()), "no copy is made");
    }

    #[test]
    fn sixteen_of_the_longest_sequences_fit_m82() {
        let long: Vec<String> = (0..16).map(|n| format!("{}{n:x}", "\u{1F600}".repeat(255))).collect();
        let stops = StopSequences::new(long.clone()).unwrap();
        assert_eq!(stops.sequences, long);
        let mut scanner = StopScanner::new(stops);
        let text = "\u{1F600}".repeat(300);
        let (free, hit) = taken(&mut scanner, &text);
        assert_eq!((free.chars().count(), hit), (45, None), "all but 255 characters");
        assert_eq!(taken(&mut scanner, "f"), (String::new(), Some(15)));
        assert!(StopSequences::new(Vec::new()).is_none());
    }

    #[test]
    fn a_piece_passes_when_no_sequence_begins_in_it_m82() {
        let scanner = scanner(&["STOP"]);
        for length in 0..100 {
            let text = "x".repeat(length);
            assert!(scanner.passes(text.as_bytes()), "{length}");
            for place in 0..length {
                for byte in ["S", "\\"] {
                    let mut text = text.clone();
                    text.replace_range(place..=place, byte);
                    assert!(!scanner.passes(text.as_bytes()), "{length} {place}");
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

        /// However the text is cut, the result is the definition's.
        #[test]
        fn any_cut_of_the_text_gives_the_same_m82(
            text in "[abé\n\"\u{1}]{0,24}", sequences in prop::collection::vec("[abé\n\"\u{1}]{1,5}", 1..6), size in 1_usize..6,
        ) {
            let sequences: Vec<&str> = sequences.iter().map(String::as_str).collect();
            let pieces: Vec<String> =
                text.chars().collect::<Vec<_>>().chunks(size).map(|piece| piece.iter().collect()).collect();
            let expected = naive(&sequences, &text);
            prop_assert_eq!(scan(&sequences, pieces.iter().map(String::as_str)), expected.clone());
            prop_assert_eq!(scan(&sequences, [text.as_str()]), expected);
        }

        /// Text goes out as soon as it can't be part of a sequence.
        #[test]
        fn no_more_is_held_than_a_beginning_of_a_sequence_m82(
            text in "[ab]{0,24}", sequences in prop::collection::vec("[ab]{1,5}", 1..4),
        ) {
            let sequences: Vec<&str> = sequences.iter().map(String::as_str).collect();
            let mut scanner = scanner(&sequences);
            for at in 0..text.len() {
                if taken(&mut scanner, &text[at..=at]).1.is_some() {
                    break;
                }
                let is_beginning = |held: &str| sequences.iter().any(|stop| stop.starts_with(held));
                let held = held_text(&scanner.held).into_owned();
                prop_assert!(held.is_empty() || is_beginning(&held));
                let longest = (1..5).rev().filter_map(|n| text[..=at].get((at + 1).checked_sub(n)?..)).find(|end| is_beginning(end));
                prop_assert_eq!(held.len(), longest.map_or(0, str::len));
            }
        }
    }
}
