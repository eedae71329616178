//! The waiting line for accounts, first come, first served.
//!
//! Whether a request can have an account depends only on its [`Needs`]. Requests with equal needs stand in one row, and
//! a refusal of one counts for the whole row. A free place is offered to the first of each row, in the order of their
//! arrival: no request holds up those that need another account, and the cost doesn't grow with the number of waiting
//! requests.

use std::collections::BTreeMap;
use std::sync::Arc;

/// The facts that decide whether a request can have an account.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Needs {
    pub model_names: Vec<String>,
    pub kiro_id: String,
    /// Sorted.
    pub exclude: Vec<super::AccountId>,
    pub only: Option<String>,
}

/// `W` is kept for each waiting request.
#[derive(Debug)]
pub(super) struct Line<W> {
    /// Rows; none is empty.
    // Bound: requests that wait for an account | KIRO_MAX_CONNS | a further one is refused at once
    rows: BTreeMap<Arc<Needs>, BTreeMap<u64, W>>,
    len: usize,
    next: u64,
}

/// A place in the line.
#[derive(Clone, Debug)]
pub(super) struct Number {
    needs: Arc<Needs>,
    nth: u64,
}

impl<W> Default for Line<W> {
    fn default() -> Self {
        Self { rows: BTreeMap::new(), len: 0, next: 0 }
    }
}

impl<W> Line<W> {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Joins at the end.
    pub(super) fn join(&mut self, needs: Needs, waiter: W) -> Number {
        let (needs, nth) = (Arc::new(needs), self.next);
        self.next += 1;
        self.len += 1;
        self.rows.entry(needs.clone()).or_default().insert(nth, waiter);
        Number { needs, nth }
    }

    /// Leaves the line; nothing happens if it was served.
    pub(super) fn leave(&mut self, number: &Number) -> Option<W> {
        let row = self.rows.get_mut(&number.needs)?;
        let waiter = row.remove(&number.nth)?;
        self.len -= 1;
        if row.is_empty() {
            self.rows.remove(&number.needs);
        }
        Some(waiter)
    }

    /// Offers free places: `ask` is called with the first of each row, and again with the next one of a row whose first
    /// was served. Served requests have left.
    pub(super) fn serve<T>(&mut self, mut ask: impl FnMut(&Needs, &W) -> Option<T>) -> Vec<(W, T)> {
        let first = |(needs, row): (&Arc<Needs>, &BTreeMap<u64, W>)| Some((*row.first_key_value()?.0, needs.clone()));
        let mut heads: BTreeMap<u64, Arc<Needs>> = self.rows.iter().filter_map(first).collect();
        let mut served = Vec::new();
        while let Some((nth, needs)) = heads.pop_first() {
            let Some(row) = self.rows.get(&needs) else { continue };
            let Some(given) = row.get(&nth).and_then(|waiter| ask(&needs, waiter)) else { continue };
            if let Some((next, _)) = row.range(nth + 1..).next() {
                heads.insert(*next, needs.clone());
            }
            served.extend(self.leave(&Number { needs, nth }).map(|waiter| (waiter, given)));
        }
        served
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needs(kiro_id: &str) -> Needs {
        Needs { model_names: Vec::new(), kiro_id: kiro_id.to_owned(), exclude: Vec::new(), only: None }
    }

    /// Serves at most `places`, each to one of `fits`. Returns who was asked and who was served.
    fn serve(line: &mut Line<u32>, mut places: usize, fits: &[&str]) -> (Vec<u32>, Vec<u32>) {
        let mut asked = Vec::new();
        let served = line.serve(|needs, waiter| {
            asked.push(*waiter);
            places = places.checked_sub(usize::from(fits.contains(&needs.kiro_id.as_str())))?;
            fits.contains(&needs.kiro_id.as_str()).then_some(())
        });
        (asked, served.into_iter().map(|(waiter, ())| waiter).collect())
    }

    #[test]
    fn first_come_first_served_and_nobody_is_held_up_by_another_row() {
        let mut line = Line::default();
        for (waiter, needed) in [(1, "a"), (2, "a"), (3, "b"), (4, "a"), (5, "b")] {
            line.join(needs(needed), waiter);
        }
        assert_eq!(serve(&mut line, 1, &["b"]), (vec![1, 3, 5], vec![3]), "a row is asked once");
        assert_eq!(serve(&mut line, 3, &["a", "b"]), (vec![1, 2, 4, 5], vec![1, 2, 4]), "in the order they came");
        assert_eq!((line.len(), line.rows.len()), (1, 1));
        assert_eq!(serve(&mut line, 9, &["a", "b"]), (vec![5], vec![5]));
        assert!(line.is_empty() && line.rows.is_empty());
    }

    #[test]
    fn a_request_that_left_is_not_asked_any_more() {
        let mut line = Line::default();
        let numbers: Vec<_> = (1..=3).map(|waiter| line.join(needs("a"), waiter)).collect();
        assert_eq!(line.leave(&numbers[0]), Some(1));
        assert_eq!(line.leave(&numbers[0]), None, "once");
        assert_eq!(serve(&mut line, 1, &["a"]), (vec![2, 3], vec![2]));
        assert_eq!((line.leave(&numbers[1]), line.leave(&numbers[2])), (None, Some(3)));
        assert!(line.is_empty() && line.rows.is_empty());
    }
}
