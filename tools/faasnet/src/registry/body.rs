//! Bodies of answers: bytes from memory or from a blob's file, counted as they go, paced, and cut or stalled on request.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use tokio_util::sync::CancellationToken;

use super::faults::BodyFault;
use super::record::RequestRecord;

/// A part of a file on its way.
struct FileBody {
    file: Arc<File>,
    range: Range<u64>,
    sent: u64,
    fault: BodyFault,
    record: RequestRecord,
    stopped: CancellationToken,
}

/// The bytes `range` of `file` as a body.
pub(super) fn of_file(
    file: File,
    range: Range<u64>,
    fault: BodyFault,
    record: RequestRecord,
    stopped: CancellationToken,
) -> Body {
    let body = FileBody { file: Arc::new(file), range, sent: 0, fault, record, stopped };
    Body::from_stream(futures_util::stream::try_unfold(body, |mut body| async move {
        let stopped = body.stopped.clone();
        let next = tokio::select! {
            next = body.next() => next?,
            () = stopped.cancelled() => return Err(io::Error::other("the registry stops")),
        };
        Ok(next.map(|bytes| (bytes, body)))
    }))
}

/// A small body; the record lives until it was sent.
pub(super) fn of_bytes(bytes: Bytes, record: RequestRecord) -> Body {
    if bytes.is_empty() {
        drop(record);
        return Body::empty();
    }
    Body::from_stream(futures_util::stream::unfold((Some(bytes), record), |(bytes, mut record)| async move {
        let bytes = bytes?;
        record.sent(bytes.len() as u64);
        Some((Ok::<_, io::Error>(bytes), (None, record)))
    }))
}

impl FileBody {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        let mut len = (self.range.end - self.range.start).min(self.record.recorder().frame_bytes());
        match self.fault {
            BodyFault::Cut(after) if self.sent >= after => return Err(io::Error::other("cut on request")),
            BodyFault::Stall(after) if self.sent >= after => std::future::pending().await,
            BodyFault::Cut(after) | BodyFault::Stall(after) => len = len.min(after - self.sent),
            BodyFault::None => {}
        }
        if len == 0 {
            return Ok(None);
        }
        self.record.recorder().pace(len).await;
        let (file, start) = (self.file.clone(), self.range.start);
        let read = tokio::task::spawn_blocking(move || {
            let mut bytes = vec![0; len as usize];
            file.read_exact_at(&mut bytes, start).map(|()| Bytes::from(bytes))
        });
        let bytes = read.await.map_err(io::Error::other)??;
        self.range.start += len;
        self.sent += len;
        self.record.sent(len);
        Ok(Some(bytes))
    }
}
