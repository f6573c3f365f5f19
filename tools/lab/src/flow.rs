//! One raw TCP flow between two hosts: the payload rate that the shaped link really gives, against which everything else is measured.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::network::Host;
use crate::{LabError, enter};

/// The first bytes come out of full token buckets faster than the line: they do not count.
const WARM_UP_BYTES: u64 = 2 << 20;
/// Nothing for this long means that the link is broken.
const SILENCE: Duration = Duration::from_secs(5);
/// As programs that are good at it write.
const WRITE_BYTES: usize = 256 << 10;

/// Sends `bytes` (and a warm-up before them) from one host to another; payload bytes per second as they arrived.
pub fn payload_rate(from: &Host, to: &Host, bytes: u64) -> Result<f64> {
    let address = to.address;
    let listener = enter::run(&to.namespace, move || TcpListener::bind((address, 0)))?;
    let listener = listener.map_err(LabError::io(format!("cannot listen on {}", to.name)))?;
    let target = listener.local_addr().map_err(LabError::io("cannot ask for the listening address"))?;
    let total = WARM_UP_BYTES + bytes;
    let sender = enter::spawn(&from.namespace, move || {
        let mut stream = TcpStream::connect_timeout(&target, SILENCE)?;
        stream.set_write_timeout(Some(SILENCE))?;
        send(&mut stream, total)
    })?;
    let received = listener.accept().and_then(|(mut stream, _)| {
        stream.set_read_timeout(Some(SILENCE))?;
        receive(&mut stream, total)
    });
    let sent = sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    let what = format!("a raw TCP flow from {} to {}", from.name, to.name);
    sent.map_err(LabError::io(what.clone()))?;
    let elapsed = received.map_err(LabError::io(what))?;
    Ok(bytes as f64 / elapsed.as_secs_f64().max(1e-6))
}

fn send(stream: &mut impl Write, total: u64) -> std::io::Result<()> {
    let buffer = vec![0x5a; WRITE_BYTES];
    let mut left = total;
    while left > 0 {
        let count = left.min(buffer.len() as u64) as usize;
        stream.write_all(&buffer[..count])?;
        left -= count as u64;
    }
    Ok(())
}

/// The time between the end of the warm-up and the last byte.
fn receive(stream: &mut impl Read, total: u64) -> std::io::Result<Duration> {
    let mut buffer = vec![0; WRITE_BYTES];
    let mut done = 0;
    let mut begin = None;
    while done < total {
        match stream.read(&mut buffer)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            count => done += count as u64,
        }
        if begin.is_none() && done >= WARM_UP_BYTES {
            // What came with this read beyond the warm-up is at most one buffer.
            begin = Some(Instant::now());
        }
    }
    Ok(begin.map_or(Duration::ZERO, |begin| begin.elapsed()))
}
