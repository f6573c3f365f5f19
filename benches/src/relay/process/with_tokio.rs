//! The same copy loop with tokio, on one thread: both children are written to at the same time.

use std::net::TcpListener;
use std::thread::JoinHandle;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::copy::meet;
use super::{Job, Ledger, Relay};

pub(super) struct TokioRelay {
    port: u16,
    thread: Option<JoinHandle<Result<Ledger>>>,
}

const BUFFER_BYTES: usize = 256 << 10;

impl TokioRelay {
    pub(super) fn start(job: &Job) -> Result<Self> {
        let listener = TcpListener::bind(("0.0.0.0", 0)).context("the relay cannot listen")?;
        let port = listener.local_addr()?.port();
        let job = job.clone();
        let expected = job.stream()?.wire_bytes();
        let thread = Some(std::thread::spawn(move || {
            let (upstream, children) = meet(&job, &listener)?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let convert = |stream: std::net::TcpStream| {
                    stream.set_nonblocking(true)?;
                    TcpStream::from_std(stream)
                };
                let children = children.into_iter().map(convert).collect::<std::io::Result<Vec<_>>>()?;
                relay(convert(upstream)?, children, expected).await
            })
        }));
        Ok(Self { port, thread })
    }
}

impl Relay for TokioRelay {
    fn port(&self) -> u16 {
        self.port
    }

    fn finish(&mut self) -> Result<Ledger> {
        let thread = self.thread.take().context("finished twice")?;
        thread.join().map_err(|_| anyhow::anyhow!("the tokio relay panicked"))?
    }
}

async fn relay(mut upstream: TcpStream, children: Vec<TcpStream>, expected: u64) -> Result<Ledger> {
    let [mut left, mut right] = <[TcpStream; 2]>::try_from(children)
        .map_err(|children| anyhow::anyhow!("{} children instead of two", children.len()))?;
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut done = 0u64;
    loop {
        let moved = upstream.read(&mut buffer).await?;
        if moved == 0 {
            break;
        }
        tokio::try_join!(left.write_all(&buffer[..moved]), right.write_all(&buffer[..moved]))?;
        done += moved as u64;
    }
    ensure!(done == expected, "{done} of {expected} bytes came from the origin");
    Ok(Ledger { upstream_bytes: done, copied_bytes: 3 * done })
}
