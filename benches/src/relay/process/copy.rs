//! The baseline that everybody would write: read into a buffer, hash it, write it to each child, write it to a file.

use std::fs::File;
use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context, Result, ensure};
use xxhash_rust::xxh3::xxh3_128;

use super::super::Mode;
use super::{Job, Ledger, Relay};

pub(super) struct CopyRelay {
    port: u16,
    thread: Option<JoinHandle<Result<Ledger>>>,
    /// The file without a name ends with the relay.
    _kept: Option<Arc<File>>,
}

/// Hashing goes by this much, while it is in cache.
const HASH_STEP: usize = 256 << 10;

impl CopyRelay {
    pub(super) fn start(job: &Job, buffer_bytes: usize) -> Result<Self> {
        let listener = TcpListener::bind(("0.0.0.0", 0)).context("the relay cannot listen")?;
        let port = listener.local_addr()?.port();
        let job = job.clone();
        let expected = job.stream()?.wire_bytes();
        let file = match job.mode {
            Mode::Forward => None,
            _ => {
                let file = tempfile::tempfile_in(&job.folder).context("cannot make a file")?;
                // As the store does it.
                faasnet_ring::file::preallocate(&file, expected)?;
                Some(Arc::new(file))
            }
        };
        let kept = file.clone();
        let thread = Some(std::thread::spawn(move || {
            let (upstream, children) = meet(&job, &listener)?;
            relay(upstream, &children, file.as_deref(), job.mode, buffer_bytes, expected)
        }));
        Ok(Self { port, thread, _kept: kept })
    }
}

impl Relay for CopyRelay {
    fn port(&self) -> u16 {
        self.port
    }

    fn finish(&mut self) -> Result<Ledger> {
        let thread = self.thread.take().context("finished twice")?;
        thread.join().map_err(|_| anyhow::anyhow!("the copy loop panicked"))?
    }
}

/// Waits for the children, then connects to the origin.
pub(super) fn meet(job: &Job, listener: &TcpListener) -> Result<(TcpStream, Vec<TcpStream>)> {
    let children = (0..job.children.len()).map(|_| {
        let (child, _) = listener.accept()?;
        child.set_nodelay(true)?;
        Ok(child)
    });
    let children = children.collect::<std::io::Result<_>>().context("the relay cannot accept")?;
    Ok((TcpStream::connect(job.origin).context("the relay cannot connect to the origin")?, children))
}

fn relay(
    mut upstream: TcpStream,
    children: &[TcpStream],
    file: Option<&File>,
    mode: Mode,
    buffer_bytes: usize,
    expected: u64,
) -> Result<Ledger> {
    let mut buffer = vec![0; buffer_bytes];
    let mut done = 0u64;
    loop {
        let moved = upstream.read(&mut buffer)?;
        if moved == 0 {
            break;
        }
        let bytes = &buffer[..moved];
        for step in bytes.chunks(HASH_STEP) {
            match mode {
                Mode::KeepXxh3 => drop(black_box(xxh3_128(step))),
                Mode::KeepBlake3 => drop(black_box(blake3::hash(step))),
                Mode::Forward | Mode::Keep => {}
            }
        }
        for mut child in children {
            child.write_all(bytes)?;
        }
        if let Some(file) = file {
            file.write_all_at(bytes, done)?;
        }
        done += moved as u64;
    }
    ensure!(done == expected, "{done} of {expected} bytes came from the origin");
    let copies = 1 + children.len() as u64 + u64::from(file.is_some());
    Ok(Ledger { upstream_bytes: done, copied_bytes: copies * done })
}
