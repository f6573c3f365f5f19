//! A patient reader of a part of a blob: what passes (cuts, stalls, 429, 5xx) is waited out and resumed at the next byte.

use std::ops::Range;

use bytes::Bytes;

use crate::{Backoff, BlobStream, Error, RetryPolicy, Source};

/// So many bytes after a failure count as success; a server that cuts every answer after a few bytes is given up.
const PROGRESS_BYTES: u64 = 64 << 10;

/// Reads one range of one blob. Bytes come in order, each once.
#[derive(Debug)]
pub struct BlobReader {
    source: Source,
    digest: String,
    range: Range<u64>,
    stream: Option<BlobStream>,
    backoff: Backoff,
    since_failure: u64,
    retries: u64,
}

impl BlobReader {
    pub(crate) fn new(source: Source, digest: String, range: Range<u64>, policy: RetryPolicy) -> Self {
        Self { source, digest, range, stream: None, backoff: Backoff::new(policy), since_failure: 0, retries: 0 }
    }

    /// The part that has not been handed out yet.
    pub fn remaining(&self) -> Range<u64> {
        self.range.clone()
    }

    /// How often the reader had to start again.
    pub fn retries(&self) -> u64 {
        self.retries
    }

    /// The next bytes as they come; `None` when the whole range was handed out. An error is final: it does not pass, or
    /// trying was given up. Dropping the future loses no bytes (but a wait before the next try ends).
    pub async fn next_bytes(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            if self.range.is_empty() {
                return Ok(None);
            }
            match self.try_next().await {
                Ok(bytes) => return Ok(Some(bytes)),
                Err(error) => self.wait(error).await?,
            }
        }
    }

    async fn try_next(&mut self) -> Result<Bytes, Error> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => none.insert(self.source.open_blob(&self.digest, Some(self.range.clone())).await?),
        };
        let Some(bytes) = stream.next_bytes().await? else {
            let cause = "the body ended early".into();
            return Err(Error::Cut { url: self.digest.clone(), received: 0, cause });
        };
        self.range.start += bytes.len() as u64;
        self.since_failure += bytes.len() as u64;
        if self.since_failure >= PROGRESS_BYTES {
            self.backoff.succeeded();
        }
        Ok(bytes)
    }

    async fn wait(&mut self, error: Error) -> Result<(), Error> {
        self.stream = None;
        self.since_failure = 0;
        let reason = error.to_string();
        let wait = self.backoff.failed(error)?;
        self.retries += 1;
        let wait_ms = wait.as_millis() as u64;
        tracing::warn!(digest = %self.digest, at = self.range.start, wait_ms, reason, "reading the origin failed; trying again");
        tokio::time::sleep(wait).await;
        Ok(())
    }
}
