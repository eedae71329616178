//! Single values: tolerant readings (R10–R12), the largest integer and the form of times as written (R24, R25).

use jiff::Timestamp;

use super::Json;

/// Integers are written below this (R25): another writer's JSON keeps 14 significant digits.
pub(super) const MAX_INTEGER: u64 = 99_999_999_999_999;

/// `YYYY-MM-DDTHH:MM:SS.sssZ`, cut to milliseconds (R24).
pub fn rfc3339(time: Timestamp) -> String {
    let millis = Timestamp::from_millisecond(time.as_millisecond()).unwrap_or(time);
    format!("{millis:.3}")
}

/// true, false, `"true"`, `"false"` in any case, 1, 0, `"1"`, `"0"`; `None` for anything else (R11).
pub(super) fn boolean(value: Json<'_>) -> Option<bool> {
    if let Some(boolean) = value.boolean() {
        return Some(boolean);
    }
    if let Some(number) = value.number() {
        return match number.parse::<f64>() {
            Ok(1.0) => Some(true),
            Ok(0.0) => Some(false),
            _ => None,
        };
    }
    match value.string()?.trim() {
        "1" => Some(true),
        "0" => Some(false),
        text if text.eq_ignore_ascii_case("true") => Some(true),
        text if text.eq_ignore_ascii_case("false") => Some(false),
        _ => None,
    }
}

/// A number or the digits of one, its fraction cut off; 0 for negative numbers and for anything else (R70). Capped as
/// R25 writes it.
pub(super) fn count(value: Json<'_>) -> u64 {
    decimal(value).map_or(0, |number| if number < MAX_INTEGER as f64 { number as u64 } else { MAX_INTEGER })
}

/// A number or the text of one, its fraction cut off; 0 for anything else.
pub(super) fn integer(value: Json<'_>) -> i64 {
    let string = value.string();
    let text = string.as_deref().map(str::trim).or_else(|| value.number());
    text.and_then(|text| text.parse::<f64>().ok()).map_or(0, |number| number as i64)
}

/// A string, or an array of strings joined by a space; `None` when it is empty.
pub(super) fn words(value: Json<'_>) -> Option<String> {
    let joined = |array: Vec<Json<'_>>| array.into_iter().filter_map(text).collect::<Vec<_>>().join(" ");
    value.elements().map(joined).or_else(|| text(value)).filter(|text| !text.is_empty())
}

/// RFC 3339 with any fraction and offset, epoch milliseconds as number or digits, 10 digits as seconds (R12).
pub fn time(value: Json<'_>) -> Option<Timestamp> {
    if let Some(number) = decimal(value) {
        let number = number.trunc();
        let seconds = (1e9..1e10).contains(&number);
        let millis = if seconds { number * 1000.0 } else { number };
        // 9999-12-31: beyond it a cast would still fit, a timestamp would not.
        return if (0.0..2.6e14).contains(&millis) { Timestamp::from_millisecond(millis as i64).ok() } else { None };
    }
    timestamp(value.string()?.trim())
}

/// A string that is not empty.
pub(super) fn text(value: Json<'_>) -> Option<String> {
    value.string().filter(|text| !text.is_empty()).map(Into::into)
}

/// An array of strings; also a string that holds a JSON array or a comma list (`notSupportedModels`, R70).
pub(super) fn names(value: Json<'_>) -> Vec<String> {
    let strings =
        |array: Json<'_>| -> Option<Vec<String>> { Some(array.elements()?.into_iter().filter_map(text).collect()) };
    if let Some(names) = strings(value) {
        return names;
    }
    let Some(list) = value.string() else { return Vec::new() };
    if let Some(names) = Json::parse(&list).and_then(strings) {
        return names;
    }
    list.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// Parses RFC 3339, the fraction cut to what a timestamp holds.
pub(super) fn timestamp(text: &str) -> Option<Timestamp> {
    const DATE_AND_TIME: usize = "2026-11-23T10:00:00".len();
    if text.len() > 128 || !text.is_ascii() || text.len() <= DATE_AND_TIME {
        return None;
    }
    let (head, tail) = text.split_at(DATE_AND_TIME);
    let Some(fraction) = tail.strip_prefix('.') else { return text.parse().ok() };
    let digits = fraction.bytes().take_while(u8::is_ascii_digit).count();
    if digits == 0 {
        return None;
    }
    let (fraction, zone) = fraction.split_at(digits);
    format!("{head}.{}{zone}", &fraction[..digits.min(9)]).parse().ok()
}

/// A number that is not negative, or a string of one.
fn decimal(value: Json<'_>) -> Option<f64> {
    let string = value.string();
    let text = match &string {
        Some(text) => text.trim(),
        None => value.number()?,
    };
    // A string counts only when JSON would call it a number: no `inf`, no `0x`.
    let plain = |byte: u8| byte.is_ascii_digit() || matches!(byte, b'.' | b'-' | b'+' | b'e' | b'E');
    if !text.starts_with(|c: char| c.is_ascii_digit()) || !text.bytes().all(plain) {
        return None;
    }
    text.parse::<f64>().ok().filter(|number| number.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> Json<'_> {
        Json::parse(text).unwrap()
    }

    #[test]
    fn booleans_are_read_in_every_spelling_r11() {
        for text in ["true", "\"true\"", "\"TRUE\"", "1", "\"1\"", "1.0"] {
            assert_eq!(boolean(json(text)), Some(true), "{text}");
        }
        for text in ["false", "\"False\"", "0", "\"0\"", "-0"] {
            assert_eq!(boolean(json(text)), Some(false), "{text}");
        }
        for text in ["2", "\"yes\"", "\"\"", "null", "[]", "{}", "-1"] {
            assert_eq!(boolean(json(text)), None, "{text}");
        }
    }

    #[test]
    fn counts_are_never_negative_and_never_too_long() {
        for (text, expected) in [
            ("5", 5),
            ("\"5\"", 5),
            ("5.0", 5),
            ("5.9", 5),
            ("1e3", 1000),
            ("\" 7 \"", 7),
            ("-5", 0),
            ("null", 0),
            ("\"\"", 0),
            ("\"inf\"", 0),
            ("\"x\"", 0),
            ("true", 0),
            ("[5]", 0),
            ("1e999", 0),
            ("99999999999999", MAX_INTEGER),
            ("12345678901234567890", MAX_INTEGER),
        ] {
            assert_eq!(count(json(text)), expected, "{text}");
        }
    }

    #[test]
    fn times_are_read_in_every_spelling_case_19_r12() {
        let t0 = "2026-11-23T10:00:00Z".parse::<Timestamp>().unwrap();
        for text in [
            "\"2026-11-23T18:00:00+08:00\"",
            "1795428000000",
            "\"1795428000000\"",
            "1795428000",
            "\"1795428000\"",
            "1795428000000.7",
            "\"2026-11-23T10:00:00.000Z\"",
            "\"2026-11-23T10:00:00.000000000000001Z\"",
            "\"2026-11-23t10:00:00z\"",
            "\"2026-11-23T05:00:00.0-05:00\"",
        ] {
            assert_eq!(time(json(text)), Some(t0), "{text}");
        }
        for text in [
            "\"\"",
            "null",
            "\"2026-11-23\"",
            "\"2026-11-23T10:00:00\"",
            "\"tomorrow\"",
            "true",
            "[]",
            "-1",
            "1e300",
            "\"2026-11-23T10:00:00.Z\"",
            "\"2026-13-23T10:00:00Z\"",
            "\"2026-11-23T10:00:00é\"",
            "1e14000",
            "260000000000000",
        ] {
            assert_eq!(time(json(text)), None, "{text}");
        }
        assert_eq!(time(json("\"2026-11-23T10:00:00.5Z\"")).unwrap().as_millisecond(), 1_795_428_000_500);
    }

    #[test]
    fn model_lists_are_read_in_every_spelling() {
        for text in ["[\"a\",\"b\"]", "\"[\\\"a\\\",\\\"b\\\"]\"", "\"a, b\"", "\"a,,b,\"", "[\"a\",5,null,\"b\",\"\"]"]
        {
            assert_eq!(names(json(text)), ["a", "b"], "{text}");
        }
        for text in ["{}", "null", "\"\"", "5", "\"[]\"", "\" , \""] {
            assert!(names(json(text)).is_empty(), "{text}");
        }
    }
}
