//! Images and documents: formats and base64.

/// The image formats that both sides know (M40, TR25).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ImageFormat {
    Jpeg,
    Png,
    Gif,
    WebP,
}

impl ImageFormat {
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::Jpeg => "image/jpeg",
            Self::Png => "image/png",
            Self::Gif => "image/gif",
            Self::WebP => "image/webp",
        }
    }

    /// Kiro's name: the media type's subtype.
    pub const fn kiro_name(self) -> &'static str {
        match self {
            Self::Jpeg => "jpeg",
            Self::Png => "png",
            Self::Gif => "gif",
            Self::WebP => "webp",
        }
    }

    /// The format that a file's first bytes show.
    pub fn of_bytes(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [0xff, 0xd8, 0xff, ..] => Some(Self::Jpeg),
            [0x89, 0x50, 0x4e, 0x47, ..] => Some(Self::Png),
            [b'G', b'I', b'F', b'8', ..] => Some(Self::Gif),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some(Self::WebP),
            _ => None,
        }
    }
}

/// The document formats of a base64 source (M41, TR27).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DocumentFormat {
    Pdf,
    Csv,
    Doc,
    Docx,
    Xls,
    Xlsx,
    Html,
    Txt,
    Md,
}

impl DocumentFormat {
    pub const ALL: [Self; 9] =
        [Self::Pdf, Self::Csv, Self::Html, Self::Txt, Self::Md, Self::Doc, Self::Xls, Self::Docx, Self::Xlsx];

    pub const fn media_type(self) -> &'static str {
        match self {
            Self::Pdf => "application/pdf",
            Self::Csv => "text/csv",
            Self::Html => "text/html",
            Self::Txt => "text/plain",
            Self::Md => "text/markdown",
            Self::Doc => "application/msword",
            Self::Xls => "application/vnd.ms-excel",
            Self::Docx => "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
            Self::Xlsx => "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
        }
    }

    pub const fn kiro_name(self) -> &'static str {
        match self {
            Self::Pdf => "pdf",
            Self::Csv => "csv",
            Self::Doc => "doc",
            Self::Docx => "docx",
            Self::Xls => "xls",
            Self::Xlsx => "xlsx",
            Self::Html => "html",
            Self::Txt => "txt",
            Self::Md => "md",
        }
    }

    /// Whether its bytes are the text itself (TU7).
    pub const fn is_text(self) -> bool {
        matches!(self, Self::Csv | Self::Html | Self::Txt | Self::Md)
    }
}

/// Whether a text is standard base64 with padding and at least one byte. Bits left over in the last character don't
/// matter: decoders upstream don't look at them either.
pub(crate) fn is_base64(data: &str) -> bool {
    let bytes = data.as_bytes();
    if bytes.is_empty() || !bytes.len().is_multiple_of(4) {
        return false;
    }
    let digits = bytes.strip_suffix(b"==").or_else(|| bytes.strip_suffix(b"=")).unwrap_or(bytes);
    digits.iter().fold(0, |seen, &byte| seen | DIGITS[byte as usize]) & NO_DIGIT == 0
}

/// How many bytes checked base64 stands for.
pub(crate) fn decoded_len(data: &str) -> usize {
    data.len() / 4 * 3 - data.bytes().rev().take(2).filter(|&byte| byte == b'=').count()
}

/// The first (at most 12) bytes that checked base64 stands for.
pub(crate) fn first_bytes(data: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(12);
    for group in data.as_bytes().chunks_exact(4).take(4) {
        let digits = group.iter().take_while(|&&byte| byte != b'=').count();
        let bits = group.iter().fold(0_u32, |bits, &byte| bits << 6 | u32::from(DIGITS[byte as usize] & 0x3f));
        bytes.extend_from_slice(&bits.to_be_bytes()[1..digits.max(1)]);
    }
    bytes
}

/// Marks the bytes that aren't base64 digits.
const NO_DIGIT: u8 = 0x80;

/// The value of each base64 digit.
const DIGITS: [u8; 256] = {
    let mut digits = [NO_DIGIT; 256];
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut value = 0;
    while value < 64 {
        digits[alphabet[value] as usize] = value as u8;
        value += 1;
    }
    digits
};

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine as _;

    #[test]
    fn base64_agrees_with_the_crate() {
        for length in 1..40 {
            let bytes: Vec<u8> = (0..length).map(|at| (at * 37 + length) as u8).collect();
            let data = base64::engine::general_purpose::STANDARD.encode(&bytes);
            assert!(is_base64(&data), "{data}");
            assert_eq!(decoded_len(&data), bytes.len(), "{data}");
            assert_eq!(first_bytes(&data), bytes[..bytes.len().min(12)], "{data}");
        }
    }

    #[test]
    fn base64_that_upstream_would_refuse_is_refused() {
        for data in ["", "@@@@", "YQ", "YQ=", "YQ===", "Y===", "====", "YQ==YQ==", "YW-_", "YWJj\nYWJj", "YQ= ="] {
            assert!(!is_base64(data), "{data}");
        }
        assert!(is_base64("YR=="));
    }
}
