//! Stop sequences (M82), found in text that comes in pieces.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;

/// The stop sequences of a request, as one automaton (Aho and Corasick's): the cost of a byte doesn't grow with their
/// number.
#[derive(Debug, PartialEq, Eq)]
pub struct StopSequences {
    sequences: Vec<String>,
    /// The children of the root, by their byte.
    first: [u16; 256],
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
        let mut stops = Self { sequences: Vec::new(), first: [0; 256], nodes: vec![Node::default()] };
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
    /// The text of `node`.
    held: String,
}

impl StopScanner {
    /// A scanner at the beginning of a text.
    pub fn new(stops: Arc<StopSequences>) -> Self {
        Self { stops, node: 0, held: String::new() }
    }

    /// Whether this piece goes out as it is, and nothing is held: then it needn't be taken. Its bytes may be those of a
    /// JSON literal; one with an escape is decoded first.
    pub fn passes(&self, bytes: &[u8]) -> bool {
        let mut node = self.node;
        if node != 0 {
            return false;
        }
        for &byte in bytes {
            node = self.stops.step(node, byte);
            if byte == b'\\' || (node != 0 && self.stops.nodes[usize::from(node)].hit != 0) {
                return false;
            }
        }
        node == 0
    }

    /// Takes the next piece: what goes out of the text, and the index of the sequence that ends it.
    pub fn take<'t>(&mut self, text: &'t str) -> (Cow<'t, str>, Option<usize>) {
        let mut node = self.node;
        let mut hit = None;
        let mut end = text.len();
        for (at, &byte) in text.as_bytes().iter().enumerate() {
            node = self.stops.step(node, byte);
            let found = self.stops.nodes[usize::from(node)].hit;
            if found != 0 {
                hit = Some(usize::from(found) - 1);
                end = at + 1;
                break;
            }
        }
        let kept = match hit {
            Some(index) => self.stops.get(index).map_or(0, str::len),
            None => usize::from(self.stops.nodes[usize::from(node)].depth),
        };
        self.node = if hit.is_some() { 0 } else { node };
        if self.held.is_empty() {
            let (free, held) = text[..end].split_at(end - kept);
            if hit.is_none() {
                self.held.push_str(held);
            }
            return (Cow::Borrowed(free), hit);
        }
        let mut free = std::mem::take(&mut self.held);
        free.push_str(&text[..end]);
        let held = free.split_off(free.len() - kept);
        if hit.is_none() {
            self.held = held;
        }
        (Cow::Owned(free), hit)
    }

    /// The text ends here: what was held is text.
    pub fn flush(&mut self) -> String {
        self.node = 0;
        std::mem::take(&mut self.held)
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scanner(sequences: &[&str]) -> StopScanner {
        StopScanner::new(StopSequences::new(sequences.iter().map(|text| (*text).to_owned()).collect()).unwrap())
    }

    /// All that goes out, and the sequence.
    fn scan<'p>(sequences: &[&str], pieces: impl IntoIterator<Item = &'p str>) -> (String, Option<usize>) {
        let mut scanner = scanner(sequences);
        let mut out = String::new();
        for piece in pieces {
            let passes = scanner.passes(piece.as_bytes());
            let (free, hit) = scanner.take(piece);
            assert_eq!(passes, free == piece && hit.is_none() && !scanner.holds(), "{piece}");
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
        let mut free = |piece: &'static str| scanner.take(piece).0.into_owned();
        assert_eq!(free("Hello there"), "Hello there");
        assert_eq!(free(".\n"), ".");
        assert_eq!(free("\nHu"), "");
        assert_eq!(free("ge"), "\n\nHuge");
        assert_eq!(free("EEN"), "E");
        assert_eq!(free("x"), "ENx");
        assert!(matches!(scanner.take("plain"), (Cow::Borrowed("plain"), None)), "no copy is made");
    }

    #[test]
    fn sixteen_of_the_longest_sequences_fit_m82() {
        let long: Vec<String> = (0..16).map(|n| format!("{}{n:x}", "\u{1F600}".repeat(255))).collect();
        let stops = StopSequences::new(long.clone()).unwrap();
        assert_eq!(stops.sequences, long);
        let mut scanner = StopScanner::new(stops);
        let text = "\u{1F600}".repeat(300);
        let (free, hit) = scanner.take(&text);
        assert_eq!((free.chars().count(), hit), (45, None), "all but 255 characters");
        assert_eq!(scanner.take("f"), (Cow::Owned(String::new()), Some(15)));
        assert!(StopSequences::new(Vec::new()).is_none());
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

        /// However the text is cut, the result is the definition's.
        #[test]
        fn any_cut_of_the_text_gives_the_same_m82(
            text in "[abé]{0,24}", sequences in prop::collection::vec("[abé]{1,5}", 1..6), size in 1_usize..6,
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
                if scanner.take(&text[at..=at]).1.is_some() {
                    break;
                }
                let is_beginning = |held: &str| sequences.iter().any(|stop| stop.starts_with(held));
                prop_assert!(scanner.held.is_empty() || is_beginning(&scanner.held));
                let longest = (1..5).rev().filter_map(|n| text[..=at].get((at + 1).checked_sub(n)?..)).find(|end| is_beginning(end));
                prop_assert_eq!(scanner.held.len(), longest.map_or(0, str::len));
            }
        }
    }
}
