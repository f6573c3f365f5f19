//! Frames of a child, read from an async stream.
//!
//! Knows the form of frames only; what they mean is the edge's business.

use faasnet_api::{ChunkIndex, geometry::MAX_BLOCKS};
use faasnet_relay::wire::{Frame, HEADER_BYTES, Hello, Kind, WireError};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::{mpsc, oneshot};

/// What a child says after its `Want`.
#[derive(Debug)]
pub(super) enum Word {
    /// Somebody waits for this block (position within a chunk).
    Request(ChunkIndex, u32),
    /// Send nothing more.
    Stop,
    /// It broke the protocol.
    Broken(String),
}

/// Why no frame could be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum FrameError {
    /// The connection ended, between frames or within one.
    #[error("the connection ended: {0}")]
    Ended(#[from] std::io::Error),
    /// Not a frame, or not one that is allowed here.
    #[error("{0}")]
    Broken(String),
}

impl From<WireError> for FrameError {
    fn from(error: WireError) -> Self {
        Self::Broken(error.to_string())
    }
}

/// Reads the `Hello` that opens a connection.
pub(super) async fn read_hello(stream: &mut (impl AsyncRead + Unpin)) -> Result<Hello, FrameError> {
    let (frame, payload) = read_frame(stream).await?;
    match frame.kind {
        Kind::Hello => Ok(Hello::parse(&payload)?),
        kind => Err(FrameError::Broken(format!("a connection opens with Hello, not with {kind:?}"))),
    }
}

/// Reads a child's frames until the connection ends: the one `Want` goes to `want`, everything else to `words`. Both close at the end.
pub(super) async fn read_child(
    mut stream: impl AsyncRead + Unpin,
    want: oneshot::Sender<Vec<u8>>,
    words: mpsc::Sender<Word>,
) {
    let mut want = Some(want);
    let mut bitmap = Vec::new();
    loop {
        let step = match read_frame(&mut stream).await {
            Ok((frame, payload)) => child_frame(frame, &payload, &mut bitmap, &mut want),
            Err(FrameError::Ended(_)) => return,
            Err(FrameError::Broken(reason)) => Err(reason),
        };
        let word = match step {
            Ok(None) => continue,
            Ok(Some(word)) => word,
            Err(reason) => Word::Broken(reason),
        };
        let last = matches!(word, Word::Broken(_));
        if words.send(word).await.is_err() || last {
            return;
        }
    }
}

fn child_frame(
    frame: Frame,
    payload: &[u8],
    bitmap: &mut Vec<u8>,
    want: &mut Option<oneshot::Sender<Vec<u8>>>,
) -> Result<Option<Word>, String> {
    match frame.kind {
        Kind::Stop => Ok(Some(Word::Stop)),
        Kind::Request => Ok(Some(Word::Request(ChunkIndex(frame.chunk), frame.block))),
        Kind::Want => {
            if u64::from(frame.chunk) != bitmap.len() as u64 * 8 {
                return Err("the parts of Want are not in order".into());
            }
            bitmap.extend_from_slice(payload);
            if bitmap.len() as u64 > MAX_BLOCKS / 8 {
                return Err("Want is longer than any image".into());
            }
            if frame.block == 1 {
                let sender = want.take().ok_or("a second Want on one connection")?;
                // Ignored: the edge has ended and will drop this task.
                let _ = sender.send(std::mem::take(bitmap));
            }
            Ok(None)
        }
        kind => Err(format!("a child does not send {kind:?} here")),
    }
}

/// Reads one frame. Not cancel-safe: only whole-connection tasks use it.
async fn read_frame(stream: &mut (impl AsyncRead + Unpin)) -> Result<(Frame, Vec<u8>), FrameError> {
    let mut header = [0; HEADER_BYTES];
    stream.read_exact(&mut header).await?;
    let frame = Frame::parse(&header)?;
    if frame.kind == Kind::Block {
        // Checked before the payload is read: nobody may make the feed take in image bytes.
        return Err(FrameError::Broken("a child does not send blocks".into()));
    }
    let mut payload = vec![0; frame.len as usize];
    stream.read_exact(&mut payload).await?;
    Ok((frame, payload))
}

/// A block frame, header and all, whose payload is still to be filled in.
#[derive(Debug)]
pub(super) struct BlockFrame {
    bytes: Vec<u8>,
    total: usize,
}

impl BlockFrame {
    /// An empty frame for `block`, which lies at `in_chunk` of `chunk` and has `len` bytes.
    pub(super) fn new(chunk: ChunkIndex, in_chunk: u32, len: u32) -> Self {
        let frame = Frame::new(Kind::Block, len, chunk.0, in_chunk);
        let mut bytes = Vec::with_capacity(frame.total_bytes());
        bytes.extend_from_slice(&frame.header());
        Self { bytes, total: frame.total_bytes() }
    }

    /// Takes what the payload still needs from `data`; answers the rest.
    pub(super) fn fill<'a>(&mut self, data: &'a [u8]) -> &'a [u8] {
        let (mine, rest) = data.split_at(data.len().min(self.total - self.bytes.len()));
        self.bytes.extend_from_slice(mine);
        rest
    }

    /// Whether the payload is whole.
    pub(super) fn is_full(&self) -> bool {
        self.bytes.len() == self.total
    }

    /// The payload so far.
    pub(super) fn payload(&self) -> &[u8] {
        &self.bytes[HEADER_BYTES..]
    }

    /// The frame as it travels.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}
