//! No relay: one child on the relay's core that throws away what the origin sends. What one hop costs at least.

use std::net::TcpStream;
use std::thread::JoinHandle;

use anyhow::{Context, Result};

use super::super::sink::discard;
use super::{Job, Ledger, Relay};

pub(super) struct DirectRelay {
    thread: Option<JoinHandle<Result<Ledger>>>,
}

impl DirectRelay {
    pub(super) fn start(job: &Job) -> Result<Self> {
        let stream = job.stream()?;
        let upstream = TcpStream::connect(job.origin).context("cannot connect to the origin")?;
        let thread = Some(std::thread::spawn(move || {
            let mut scratch = vec![0; stream.frame_bytes()];
            (0..stream.frames()).try_for_each(|_| discard(&upstream, &mut scratch))?;
            Ok(Ledger { upstream_bytes: stream.wire_bytes(), copied_bytes: 0 })
        }));
        Ok(Self { thread })
    }
}

impl Relay for DirectRelay {
    fn port(&self) -> u16 {
        0
    }

    fn finish(&mut self) -> Result<Ledger> {
        let thread = self.thread.take().context("finished twice")?;
        thread.join().map_err(|_| anyhow::anyhow!("the child panicked"))?
    }
}
