//! The end of a log, for messages.

use std::fs;
use std::path::Path;

const LINES: usize = 3;

/// The last few lines that say something, as one; empty when there are none.
pub fn tail(log: &Path) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().map(str::trim_end).filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(LINES)..].join(" | ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a message with the beginning of a log, or with nothing because the log ends with empty lines.
    #[test]
    fn the_end_is_told() {
        let log = tempfile::NamedTempFile::new().unwrap();
        fs::write(log.path(), "1\n2\n\n3\n4\n\n \n").unwrap();
        assert_eq!(tail(log.path()), "2 | 3 | 4");
        assert_eq!(tail(Path::new("/nowhere/at/all")), "");
    }
}
