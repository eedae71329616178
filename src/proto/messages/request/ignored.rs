//! Features that were accepted and have no effect (M80).

/// Features of a request that were accepted and have no effect, for `x-kiro-ignored` (M80): a bounded list of paths,
/// `tools.0.strict`, some with a word of the client's behind, `tools.1:code_execution_20250825`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ignored {
    entries: Vec<String>,
}

impl Ignored {
    /// Most entries.
    pub const MOST: usize = 16;
    /// Most bytes of [`Self::header`].
    pub const MOST_BYTES: usize = 512;
    /// Most bytes of the client's word behind a path.
    const MOST_WORD: usize = 64;
    const SEPARATOR: &'static str = ", ";

    /// Adds a path, unless it is there or there is no room.
    pub fn add(&mut self, path: &str) {
        let length =
            |entries: &[String]| entries.iter().map(|entry| entry.len() + Self::SEPARATOR.len()).sum::<usize>();
        let fits = self.entries.len() < Self::MOST && length(&self.entries) + path.len() <= Self::MOST_BYTES;
        if fits && is_plain(path) && !self.entries.iter().any(|entry| entry == path) {
            self.entries.push(path.to_owned());
        }
    }

    /// Adds a path and the client's word for the feature, unless the word can't stand in a header.
    pub fn add_named(&mut self, path: &str, word: &str) {
        match (1..=Self::MOST_WORD).contains(&word.len()) && is_plain(word) {
            true => self.add(&format!("{path}:{word}")),
            false => self.add(path),
        }
    }

    /// The entries, in the order in which they were found.
    pub fn entries(&self) -> &[String] {
        &self.entries
    }

    /// The value of `x-kiro-ignored`; none when everything has its effect.
    pub fn header(&self) -> Option<String> {
        (!self.entries.is_empty()).then(|| self.entries.join(Self::SEPARATOR))
    }
}

/// Whether a header may hold it, and whether it can't be taken for two entries.
fn is_plain(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-:".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_bounded_and_fit_for_a_header_m80_a189() {
        let mut ignored = Ignored::default();
        assert_eq!(ignored.header(), None);
        for n in 0..20 {
            ignored.add_named(&format!("tools.{n}"), "x_20250825");
            ignored.add_named(&format!("tools.{n}"), "x_20250825");
        }
        assert_eq!(ignored.entries().len(), 16);
        let mut long = Ignored::default();
        (0..20).for_each(|n| long.add_named(&format!("tools.{n}"), &"w".repeat(64)));
        let header = long.header().unwrap();
        assert!(header.len() <= 512 && header.len() > 400, "{}", header.len());
        let mut odd = Ignored::default();
        for word in ["a, b", "a\r\nx: y", "é", "", &"w".repeat(65)] {
            odd.add_named("tools.3", word);
        }
        assert_eq!(odd.header().as_deref(), Some("tools.3"));
    }
}
