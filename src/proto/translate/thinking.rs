//! The scanner for thinking tags (TS9–TS12).

use memchr::memchr;

const START: &str = "<thinking>";
const END: &str = "</thinking>";
/// More waiting blanks than this start the run (TS11, TS25), in bytes.
const MAX_BLANKS: usize = 64;

/// The kind of a stretch of text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Span {
    /// Text outside of the tags.
    Text,
    /// Text between the tags.
    Thinking,
    /// An end tag; it is never text.
    End,
}

/// The scanner's output in order; a reused buffer.
#[derive(Debug, Default)]
pub struct Spans {
    text: String,
    /// Each span with the end of its text.
    ends: Vec<(Span, usize)>,
}

impl Spans {
    /// The spans and their texts. Neighbours of one kind are one span; an empty thought ends no text.
    pub fn iter(&self) -> impl Iterator<Item = (Span, &str)> {
        let starts = std::iter::once(0).chain(self.ends.iter().map(|&(_, end)| end));
        self.ends.iter().zip(starts).map(|(&(span, end), start)| (span, self.text.get(start..end).unwrap_or_default()))
    }

    /// Forgets all spans.
    pub fn clear(&mut self) {
        self.text.clear();
        self.ends.clear();
    }

    fn push(&mut self, span: Span, text: &str) {
        self.text.push_str(text);
        match self.ends.last_mut() {
            Some((last, end)) if *last == span => *end = self.text.len(),
            // The thought that ends here was empty: the text before it goes on (TV90).
            Some((Span::Text, _)) if span == Span::End => {}
            _ => self.ends.push((span, self.text.len())),
        }
    }
}

/// Looks for `<thinking>` outside and for `</thinking>` inside of tags, wherever the text is cut. It holds back only
/// text that may still become a tag, and blanks in front of a run (TS11).
#[derive(Debug, Default)]
pub struct TagScanner {
    /// Between the tags: `</thinking>` is looked for.
    inside: bool,
    /// Bytes of that tag which the held tail matches. All of them: a quote stands before the tag, and the character
    /// behind it hasn't come (TS10).
    matched: usize,
    /// The quote right before the held tail.
    quote: Option<u8>,
    /// The last byte of the stream, a held tail not counted; none at the start and after a boundary.
    last: Option<u8>,
    /// The run's first character that isn't blank has come.
    running: bool,
    /// Line breaks that are still dropped at the beginning of the run.
    drops: u8,
    /// Blanks before the run.
    blanks: String,
}

impl TagScanner {
    /// Takes the next piece of the stream.
    pub fn text(&mut self, text: &str, spans: &mut Spans) {
        let bytes = text.as_bytes();
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            let tag = self.tag();
            if self.matched == tag.len() {
                if self.quote == Some(byte) {
                    self.matched = 0;
                    self.plain(tag, spans);
                } else {
                    self.pass_tag(spans);
                }
            } else if self.matched > 0 {
                if tag.as_bytes().get(self.matched) == Some(&byte) {
                    self.matched += 1;
                    at += 1;
                    if self.matched == tag.len() && self.quote.is_none() {
                        self.pass_tag(spans);
                    }
                } else {
                    // `<` stands only at the beginning of a tag, so no part of the tail can begin another one.
                    self.release(spans);
                }
            } else if byte == b'<' {
                self.quote = self.last.filter(|last| matches!(last, b'"' | b'\'' | b'`'));
                self.matched = 1;
                at += 1;
            } else {
                let run = memchr(b'<', &bytes[at..]).unwrap_or(bytes.len() - at);
                self.plain(&text[at..at + run], spans);
                at += run;
            }
        }
    }

    /// Ends the run before a tool block, native reasoning, the end or a fault (TS12): what is held goes out, and the
    /// stream begins anew outside of tags. An open thought is the caller's to close.
    pub fn boundary(&mut self, spans: &mut Spans) {
        if self.matched == self.tag().len() {
            self.pass_tag(spans);
        } else {
            self.release(spans);
        }
        // The buffer of the blanks stays.
        self.blanks.clear();
        *self = Self { blanks: std::mem::take(&mut self.blanks), ..Self::default() };
    }

    /// The tag looked for.
    fn tag(&self) -> &'static str {
        if self.inside { END } else { START }
    }

    /// The held tag counts: the run ends, blanks that waited in it are dropped.
    fn pass_tag(&mut self, spans: &mut Spans) {
        if self.inside {
            spans.push(Span::End, "");
        }
        self.inside = !self.inside;
        self.drops = if self.inside { 1 } else { 2 };
        self.matched = 0;
        self.last = Some(b'>');
        self.running = false;
        self.blanks.clear();
    }

    /// The held tail isn't a tag.
    fn release(&mut self, spans: &mut Spans) {
        let held = &self.tag()[..self.matched];
        self.matched = 0;
        self.plain(held, spans);
    }

    /// Text outside of tags.
    fn plain(&mut self, text: &str, spans: &mut Spans) {
        let Some(&last) = text.as_bytes().last() else { return };
        self.last = Some(last);
        let span = if self.inside { Span::Thinking } else { Span::Text };
        if self.running {
            return spans.push(span, text);
        }
        let mut text = text;
        while self.drops > 0 && !text.is_empty() {
            self.drops -= 1;
            match text.strip_prefix('\n') {
                Some(rest) => text = rest,
                None => self.drops = 0,
            }
        }
        self.blanks.push_str(text);
        let is_blank = |byte: u8| matches!(byte, b' ' | b'\t' | b'\r' | b'\n');
        if self.blanks.len() > MAX_BLANKS || !text.bytes().all(is_blank) {
            self.running = true;
            spans.push(span, &self.blanks);
            self.blanks.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each piece with the spans it lets through, then those of a boundary.
    fn scan(pieces: &[&str]) -> Vec<Vec<(Span, String)>> {
        let mut scanner = TagScanner::default();
        let mut spans = Spans::default();
        let mut out = Vec::new();
        for piece in pieces.iter().map(Some).chain([None]) {
            spans.clear();
            match piece {
                Some(piece) => scanner.text(piece, &mut spans),
                None => scanner.boundary(&mut spans),
            }
            out.push(spans.iter().map(|(span, text)| (span, text.to_owned())).collect());
        }
        out
    }

    fn text(text: &str) -> Vec<(Span, String)> {
        vec![(Span::Text, text.to_owned())]
    }

    fn thinking(text: &str) -> Vec<(Span, String)> {
        vec![(Span::Thinking, text.to_owned())]
    }

    fn end() -> Vec<(Span, String)> {
        vec![(Span::End, String::new())]
    }

    /// The stream one character at a time: what each one lets through.
    fn characters(stream: &str) -> Vec<Vec<(Span, String)>> {
        let characters: Vec<String> = stream.chars().map(String::from).collect();
        scan(&characters.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// TS12's table, first four rows.
    #[test]
    fn the_table_holds_one_character_at_a_time_ts12() {
        let mut steps = characters("a<thinking>b</thinking>\n\nc").into_iter();
        let mut expect = |stream: &str, expected: &dyn Fn(char) -> Vec<(Span, String)>| {
            for character in stream.chars() {
                assert_eq!(steps.next().unwrap(), expected(character), "{character} of {stream}");
            }
        };
        expect("a", &|_| text("a"));
        expect("<thinking>", &|_| vec![]);
        expect("b", &|_| thinking("b"));
        expect("</thinking", &|_| vec![]);
        expect(">", &|_| end());
        expect("\n\n", &|_| vec![]);
        expect("c", &|_| text("c"));
    }

    #[test]
    fn relatives_of_the_table_hold_ts12() {
        assert_eq!(characters("a<b")[2], text("<b"));
        assert_eq!(characters("a<<")[2], text("<"));
        assert_eq!(characters("a<<")[3], text("<"));
        assert_eq!(characters("a<thinkX")[7], text("<thinkX"));
        let quoted = characters("`<thinking>`");
        assert_eq!((&quoted[0], &quoted[10], &quoted[11]), (&text("`"), &vec![], &text("<thinking>`")));
        assert_eq!(characters("`<thinking>x")[11], thinking("x"));
        assert_eq!(characters("\"<thinking>'")[11], thinking("'"));
    }

    #[test]
    fn the_quote_behind_a_quoted_tag_is_before_the_next_one_ts10() {
        assert_eq!(scan(&["`<thinking>`<thinking>`"]), [text("`<thinking>`<thinking>`"), vec![]]);
        assert_eq!(scan(&["`<thinking>`<thinking>x"])[0], [text("`<thinking>`"), thinking("x")].concat());
    }

    #[test]
    fn no_character_before_at_the_start_and_after_a_boundary_ts10() {
        let mut scanner = TagScanner::default();
        let mut spans = Spans::default();
        scanner.text("`", &mut spans);
        scanner.boundary(&mut spans);
        scanner.text("<thinking>`", &mut spans);
        assert_eq!(spans.iter().last(), Some((Span::Thinking, "`")));
    }

    #[test]
    fn blanks_wait_for_the_run_or_vanish_ts11() {
        assert_eq!(scan(&[" \n", "\tx", " "]), [vec![], text(" \n\tx"), text(" "), vec![]]);
        assert_eq!(scan(&["\n\n<thinking>\n\nb"])[0], thinking("\nb"));
        assert_eq!(scan(&["<thinking>b</thinking> \n\nc"])[0][2], text(" \n\nc")[0]);
        assert_eq!(scan(&["\n\n"]), [vec![], vec![]]);
        assert_eq!(scan(&["\n<thi"]), [vec![], text("\n<thi")]);
    }

    #[test]
    fn more_than_64_waiting_blanks_start_the_run_ts25() {
        let blanks = " ".repeat(64);
        assert_eq!(scan(&[&blanks, "<thinking>x"]), [vec![], thinking("x"), vec![]]);
        assert_eq!(scan(&[&blanks, " ", "<thinking>x"])[1], text(&" ".repeat(65)));
        assert_eq!(scan(&["<thinking>", "\n", &blanks, " "])[3], thinking(&" ".repeat(65)));
    }

    #[test]
    fn the_other_tag_and_other_cases_are_text_ts9() {
        assert_eq!(scan(&["a</thinking>b"])[0], text("a</thinking>b"));
        assert_eq!(scan(&["<Thinking>b"])[0], text("<Thinking>b"));
        assert_eq!(scan(&["<thinking>a<thinking>b"])[0], thinking("a<thinking>b"));
        assert_eq!(scan(&["<thinking>a</ thinking>b"])[0], thinking("a</ thinking>b"));
    }

    #[test]
    fn a_boundary_lets_go_of_everything_ts12() {
        assert_eq!(scan(&["see \"<thinking>"]), [text("see \""), vec![]]);
        assert_eq!(scan(&["<thinking>no\"</thinking>"]), [thinking("no\""), end()]);
        assert_eq!(scan(&["<thinking>a</thin"]), [thinking("a"), thinking("</thin")]);
    }

    /// TS11: the result is the same at every split.
    #[test]
    fn any_split_gives_the_same_spans_ts11() {
        let streams = [
            "Hm.<thinking>\nb `</thinking>` \"no\"</thinking>\n\n\nSo `<thinking>` <thin <thinking></thinking>\nx",
            "\n\n<thinking><<</thinking>>></thinking>\"Hi\"<thinking>'</thinking>' \t",
        ];
        let joined = |pieces: &[&str]| {
            let mut spans = Spans::default();
            let mut scanner = TagScanner::default();
            pieces.iter().for_each(|piece| scanner.text(piece, &mut spans));
            scanner.boundary(&mut spans);
            spans.iter().map(|(span, text)| (span, text.to_owned())).collect::<Vec<_>>()
        };
        for stream in streams {
            let whole = joined(&[stream]);
            for first in 0..=stream.len() {
                for second in first..=stream.len() {
                    assert_eq!(joined(&[&stream[..first], &stream[first..second], &stream[second..]]), whole);
                }
            }
        }
    }
}
