//! Selection tickets in hand (R36).

use crate::store::Tickets;

/// Tickets reserved at a time.
pub(super) const BLOCK: u64 = 64;
/// Tickets left at which the next block is fetched.
const LOW: u64 = 16;

/// Tickets of the shared counter; local ones when the block is used up.
#[derive(Debug)]
pub(super) struct Book {
    hand: Tickets,
    following: Option<Tickets>,
    last: u64,
    fetching: bool,
}

impl Book {
    pub(super) fn new() -> Self {
        // The first local ticket is 0.
        Self { hand: 0..0, following: None, last: u64::MAX, fetching: false }
    }

    /// The next ticket; never waits. True: a block should be fetched now.
    pub(super) fn take(&mut self) -> (u64, bool) {
        if self.hand.is_empty() {
            self.hand = self.following.take().unwrap_or(0..0);
        }
        self.last = self.hand.next().unwrap_or_else(|| self.last.wrapping_add(1));
        let left = self.hand.end.saturating_sub(self.hand.start);
        let fetch = !self.fetching && self.following.is_none() && left <= LOW;
        self.fetching |= fetch;
        (self.last, fetch)
    }

    /// A block came, or the fetch failed; the next low number fetches again.
    pub(super) fn fetched(&mut self, block: Option<Tickets>) {
        self.fetching = false;
        self.following = block.or(self.following.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_follow_each_other_and_are_asked_for_in_time_r36() {
        let mut book = Book::new();
        book.fetched(Some(0..64));
        for expected in 0..48 {
            assert_eq!(book.take(), (expected, expected == 47), "the next block is fetched when 16 are left");
        }
        book.fetched(Some(640..704));
        for expected in (48..64).chain(640..680) {
            assert_eq!(book.take(), (expected, false));
        }
    }

    #[test]
    fn without_a_block_tickets_go_on_locally_r36() {
        let mut book = Book::new();
        assert_eq!((book.take(), book.take()), ((0, true), (1, false)));
        book.fetched(None);
        assert_eq!(book.take(), (2, true));
        book.fetched(Some(64..66));
        assert_eq!([book.take().0, book.take().0, book.take().0], [64, 65, 66]);
    }
}
