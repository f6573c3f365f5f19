//! One connection's socket, TCP or unix: waits by tokio, moves bytes by plain system calls, so that files go out by sendfile.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use faasnet_ring::Outcome;
use faasnet_ring::socket::{peek, recv, send, sendfile};
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout_at};

/// A client that does not take this long what is sent at a time (a document, a few blocks) is gone, or might as well be. For the whole, so
/// that a byte now and then does not keep a place.
const TAKES_NOTHING: Duration = Duration::from_secs(60);

/// See the module's documentation.
#[derive(Debug)]
pub(super) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

impl Socket {
    /// Receives into `buffer`: 0 when the client has ended.
    pub(super) async fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            self.ready(Interest::READABLE).await?;
            match self.attempt(Interest::READABLE, || moved(recv(self, buffer))) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return done,
            }
        }
    }

    /// Sends all of `bytes`.
    pub(super) async fn send_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        let deadline = Instant::now() + TAKES_NOTHING;
        while !bytes.is_empty() {
            let sent = self.write(deadline, || moved(send(self, bytes, false))).await?;
            bytes = &bytes[sent..];
        }
        Ok(())
    }

    /// Sends `len` bytes of `file` from `offset` without a copy through this process. They should be resident.
    pub(super) async fn send_file(&self, file: &File, mut offset: u64, len: u64) -> io::Result<()> {
        let (end, deadline) = (offset + len, Instant::now() + TAKES_NOTHING);
        while offset < end {
            let step = (end - offset) as usize;
            let sent = self.write(deadline, || moved(sendfile(self, file, offset, step))).await?;
            if sent == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the store's file is shorter than its image"));
            }
            offset += sent as u64;
        }
        Ok(())
    }

    /// Whether the client is still there, as far as can be told without waiting.
    pub(super) fn is_open(&self) -> bool {
        !matches!(peek(self, &mut [0]), Outcome::Ended | Outcome::Failed(_))
    }

    async fn write(&self, deadline: Instant, mut step: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
        loop {
            let ready = timeout_at(deadline, self.ready(Interest::WRITABLE)).await;
            ready.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
            match self.attempt(Interest::WRITABLE, &mut step) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return done,
            }
        }
    }

    async fn ready(&self, interest: Interest) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.ready(interest).await.map(drop),
            Self::Unix(stream) => stream.ready(interest).await.map(drop),
        }
    }

    fn attempt(&self, interest: Interest, step: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_io(interest, step),
            Self::Unix(stream) => stream.try_io(interest, step),
        }
    }
}

fn moved(outcome: Outcome) -> io::Result<usize> {
    match outcome {
        Outcome::Moved(bytes) => Ok(bytes),
        Outcome::Ended => Ok(0),
        Outcome::WouldBlock => Err(io::ErrorKind::WouldBlock.into()),
        Outcome::Failed(error) => Err(error),
    }
}
