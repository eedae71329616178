//! Parts of a URL.

/// The first value of a query parameter, percent-decoded. A broken escape stays as it is: the value is then wrong, not
/// absent.
pub(crate) fn query_value(query: &str, name: &str) -> Option<String> {
    let pair = query.split('&').find(|pair| pair.split('=').next() == Some(name))?;
    let raw = pair.split_once('=').map_or("", |(_, value)| value);
    Some(percent_decoded(&raw.replace('+', " ")).unwrap_or_else(|| raw.to_owned()))
}

/// Percent-decodes a part of a URL; `None` for a broken escape and for bytes that aren't UTF-8.
pub(super) fn percent_decoded(raw: &str) -> Option<String> {
    let mut out = Vec::with_capacity(raw.len());
    let mut bytes = raw.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let digit = |b: Option<u8>| b.and_then(|b| (b as char).to_digit(16));
                out.push((digit(bytes.next())? * 16 + digit(bytes.next())?) as u8);
            }
            other => out.push(other),
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_values_are_decoded() {
        assert_eq!(query_value("beta=true&key=a%20b%2Bc", "key").as_deref(), Some("a b+c"));
        assert_eq!(query_value("key", "key").as_deref(), Some(""));
        assert_eq!(query_value("keys=1", "key"), None);
        assert_eq!(query_value("key=%zz&key=a", "key").as_deref(), Some("%zz"));
        assert_eq!(query_value("key=a+%FF", "key").as_deref(), Some("a+%FF"));
    }
}
