//! The `Range` header (RFC 9110 section 14): which bytes of a blob a request wants.

use std::ops::Range;

/// What to answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// No range, or one that may be ignored (several ranges, another unit, malformed): the whole blob.
    Whole,
    /// One range within the blob; not empty.
    Part(Range<u64>),
    /// A range that lies behind the blob's end.
    Unsatisfiable,
}

/// Reads the header for a blob of `len` bytes.
pub fn parse(header: Option<&str>, len: u64) -> Wanted {
    let Some(spec) = header.and_then(|header| header.trim().strip_prefix("bytes=")) else { return Wanted::Whole };
    let Some((first, last)) = spec.split_once('-').filter(|_| !spec.contains(',')) else { return Wanted::Whole };
    let number = |text: &str| {
        text.trim().bytes().all(|byte| byte.is_ascii_digit()).then(|| text.trim().parse::<u64>().ok()).flatten()
    };
    let (start, end) = match (first.trim().is_empty(), last.trim().is_empty()) {
        (true, true) => return Wanted::Whole,
        (true, false) => match number(last) {
            Some(suffix) => (len.saturating_sub(suffix), len),
            None => return Wanted::Whole,
        },
        (false, true) => match number(first) {
            Some(first) => (first, len),
            None => return Wanted::Whole,
        },
        (false, false) => match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => (first, last.saturating_add(1).min(len)),
            _ => return Wanted::Whole,
        },
    };
    if start < end { Wanted::Part(start..end) } else { Wanted::Unsatisfiable }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a range that sends a byte too many or too few, and a malformed one that is not ignored.
    #[test]
    fn ranges_are_read_as_the_rfc_says() {
        for (header, wanted) in [
            ("bytes=0-0", Wanted::Part(0..1)),
            ("bytes=0-99", Wanted::Part(0..100)),
            ("bytes=99-500", Wanted::Part(99..100)),
            ("bytes=10-", Wanted::Part(10..100)),
            ("bytes=-1", Wanted::Part(99..100)),
            ("bytes=-500", Wanted::Part(0..100)),
            ("bytes=0-18446744073709551615", Wanted::Part(0..100)),
            ("bytes=100-", Wanted::Unsatisfiable),
            ("bytes=100-200", Wanted::Unsatisfiable),
            ("bytes=-0", Wanted::Unsatisfiable),
            ("bytes=5-4", Wanted::Whole),
            ("bytes=0-1,5-6", Wanted::Whole),
            ("bytes=-", Wanted::Whole),
            ("bytes=a-b", Wanted::Whole),
            ("bytes=+1-2", Wanted::Whole),
            ("chunks=0-1", Wanted::Whole),
        ] {
            assert_eq!(parse(Some(header), 100), wanted, "{header}");
        }
        assert_eq!(parse(None, 100), Wanted::Whole);
        assert_eq!(parse(Some("bytes=0-"), 0), Wanted::Unsatisfiable);
    }
}
