//! The heads of answers, and the errors of the distribution specification.

use std::fmt::Write;

/// Why a request is not fulfilled, in the specification's codes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: u16,
    pub(super) code: &'static str,
    pub(super) message: String,
}

/// A refusal.
pub(super) fn refuse(status: u16, code: &'static str, message: impl Into<String>) -> Refusal {
    Refusal { status, code, message: message.into() }
}

impl Refusal {
    /// The error document.
    pub(super) fn document(&self) -> Vec<u8> {
        let document = serde_json::json!({ "errors": [{ "code": self.code, "message": self.message }] });
        document.to_string().into_bytes()
    }
}

/// A head that is being written.
#[derive(Debug)]
pub(super) struct Head(String);

impl Head {
    /// The head of an answer whose body has `len` bytes.
    pub(super) fn new(status: u16, content_type: &str, len: u64) -> Self {
        let reason = match status {
            200 => "OK",
            206 => "Partial Content",
            404 => "Not Found",
            405 => "Method Not Allowed",
            413 => "Content Too Large",
            416 => "Range Not Satisfiable",
            431 => "Request Header Fields Too Large",
            503 => "Service Unavailable",
            _ => "Bad Request",
        };
        let head = Self(format!("HTTP/1.1 {status} {reason}\r\n"));
        head.with("Content-Type", content_type)
            .with("Content-Length", &len.to_string())
            .with("Docker-Distribution-Api-Version", "registry/2.0")
    }

    /// With one more header. Values are ours, or were checked: a control character in one ends the text there.
    pub(super) fn with(mut self, name: &str, value: &str) -> Self {
        let value = value.split(|c: char| c.is_control()).next().unwrap_or_default();
        // Ignored: writing to a String does not fail.
        let _ = write!(self.0, "{name}: {value}\r\n");
        self
    }

    /// With what names bytes: their digest.
    pub(super) fn of(self, digest: &str) -> Self {
        self.with("Docker-Content-Digest", digest).with("ETag", &format!("\"{digest}\""))
    }

    /// The bytes, with the empty line.
    pub(super) fn finish(mut self, keep_alive: bool) -> String {
        self.0.push_str(if keep_alive { "\r\n" } else { "Connection: close\r\n\r\n" });
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a foreign value (a media type of a manifest) that writes headers of its own.
    #[test]
    fn values_stay_in_their_line() {
        let head = Head::new(200, "text/plain\r\nX-Evil: 1", 5).of("sha256:1").finish(false);
        assert!(!head.contains("Evil") && head.ends_with("Connection: close\r\n\r\n"), "{head}");
        assert!(head.starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n"), "{head}");
    }
}
