//! A text that is written out of another one: long pieces of that other one are shared, the rest is copied.

use bytes::{Bytes, BytesMut};

use super::tree::Sink;

/// A piece at least this long is shared. A shared one costs two entries of 32 bytes: its own, and that of what stands
/// before it.
const SHARED: usize = 1024;
/// Size of the buffers for what is copied.
const BUFFER: usize = 16 * 1024;

/// Takes a text and gives it back as consecutive segments. Pieces of [`SHARED`] bytes or more that lie in the source
/// are slices of it.
#[derive(Debug)]
pub(crate) struct Segments<'s> {
    source: Option<&'s Bytes>,
    done: Vec<Bytes>,
    /// What was copied behind the last segment.
    copied: BytesMut,
}

impl<'s> Segments<'s> {
    /// `size`: a guess at the bytes that will be copied.
    pub(crate) fn new(source: Option<&'s Bytes>, size: usize) -> Self {
        Self { source, done: Vec::new(), copied: BytesMut::with_capacity(size.min(BUFFER)) }
    }

    /// The text so far.
    pub(crate) fn finish(mut self) -> Vec<Bytes> {
        self.cut();
        self.done
    }

    /// Ends the copied segment. Those of one buffer share it.
    fn cut(&mut self) {
        if !self.copied.is_empty() {
            self.done.push(self.copied.split().freeze());
        }
    }

    /// The place of a piece in the source, if it lies in there.
    fn shared(&self, piece: &[u8]) -> Option<Bytes> {
        let source = self.source?;
        let start = (piece.as_ptr() as usize).checked_sub(source.as_ptr() as usize)?;
        let end = start.checked_add(piece.len())?;
        (end <= source.len()).then(|| source.slice(start..end))
    }
}

impl Sink for Segments<'_> {
    fn put(&mut self, text: &str) {
        let mut piece = text.as_bytes();
        if piece.len() >= SHARED
            && let Some(slice) = self.shared(piece)
        {
            self.cut();
            return self.done.push(slice);
        }
        loop {
            let room = self.copied.capacity() - self.copied.len();
            let (now, later) = piece.split_at(room.min(piece.len()));
            self.copied.extend_from_slice(now);
            if later.is_empty() {
                return;
            }
            self.cut();
            self.copied = BytesMut::with_capacity(BUFFER);
            piece = later;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_pieces_of_the_source_are_shared_and_others_copied() {
        let source = Bytes::from("é".repeat(SHARED) + &"x".repeat(3 * BUFFER));
        let whole = std::str::from_utf8(&source).unwrap();
        let foreign = "f".repeat(2 * BUFFER + 7);
        let short = &whole[..SHARED - 2];
        let pieces = ["[", &whole[..SHARED], short, &foreign, &whole[2..], "", &whole[4..4 + SHARED], "]"];
        let mut out = Segments::new(Some(&source), 10);
        pieces.iter().for_each(|piece| out.put(piece));
        let segments = out.finish();
        assert_eq!(segments.concat(), pieces.concat().as_bytes());
        let inside = source.as_ptr_range();
        let shared: usize = segments.iter().filter(|s| inside.contains(&s.as_ptr())).map(Bytes::len).sum();
        assert_eq!(shared, SHARED + whole.len() - 2 + SHARED);
        assert!(segments.iter().all(|segment| !segment.is_empty()));
        // Many small pieces lie in few buffers.
        let mut out = Segments::new(Some(&source), 0);
        (0..10_000).for_each(|_| out.put(short));
        assert!(out.finish().len() <= 10_000 * short.len() / BUFFER + 2);
    }

    #[test]
    fn a_piece_of_another_text_is_never_taken_for_the_sources() {
        // Neighbours in one allocation: the source is its middle.
        let all = Bytes::from("a".repeat(4 * SHARED));
        let text = std::str::from_utf8(&all).unwrap();
        let source = all.slice(SHARED..3 * SHARED);
        for range in [0..SHARED, SHARED - 1..2 * SHARED, 2 * SHARED..3 * SHARED + 1, 3 * SHARED..4 * SHARED] {
            assert!(Segments::new(Some(&source), 0).shared(text[range].as_bytes()).is_none());
        }
        assert_eq!(Segments::new(Some(&source), 0).shared(&all[SHARED..3 * SHARED]), Some(source.clone()));
        assert!(Segments::new(None, 0).shared(b"x").is_none());
    }
}
