//! A TCP proxy inside a host's namespace that can flip bits on their way out: a parent whose memory or card is broken.
//!
//! Two threads per connection, blocking; they end with the connection. Dropping the proxy stops it from accepting.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::error::Result;
use crate::{LabError, enter};

/// One bit of so many bytes is flipped.
pub const FLIP_EVERY_BYTES: u64 = 1 << 20;
/// How long the program behind it may take to accept.
const PATIENCE: Duration = Duration::from_secs(5);

/// A running proxy.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
    listen: SocketAddr,
    namespace: String,
}

#[derive(Debug, Default)]
struct Shared {
    armed: AtomicBool,
    stopped: AtomicBool,
    flipped: AtomicU64,
}

impl Proxy {
    /// Passes what comes to `listen` in `namespace` on to `target` in the same namespace.
    pub fn start(namespace: &str, listen: SocketAddr, target: SocketAddr) -> Result<Self> {
        let listener = enter::run(namespace, move || TcpListener::bind(listen))?;
        let listener = listener.map_err(LabError::io(format!("cannot listen on {listen} in {namespace}")))?;
        let shared = Arc::new(Shared::default());
        let theirs = shared.clone();
        let accept = move || {
            for client in listener.incoming() {
                if theirs.stopped.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(client) = client else { continue };
                let shared = theirs.clone();
                // Threads inherit the namespace. Ignored: the client sees a closed connection and tries again.
                let _ = std::thread::Builder::new().spawn(move || serve(client, target, &shared));
            }
        };
        // Ignored: the thread ends by itself, woken by `drop`.
        let _ = enter::spawn(namespace, accept)?;
        Ok(Self { shared, listen, namespace: namespace.to_owned() })
    }

    /// Begins, or ends, to flip bits.
    pub fn arm(&self, armed: bool) {
        self.shared.armed.store(armed, Ordering::Relaxed);
    }

    /// How many bits were flipped.
    pub fn flipped(&self) -> u64 {
        self.shared.flipped.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        let listen = self.listen;
        // Wakes the accepting thread. Ignored: without its namespace there is nothing to wake.
        let _ = enter::run(&self.namespace, move || TcpStream::connect_timeout(&listen, PATIENCE).map(drop));
    }
}

fn serve(client: TcpStream, target: SocketAddr, shared: &Arc<Shared>) {
    let Ok(server) = TcpStream::connect_timeout(&target, PATIENCE) else { return };
    let (Ok(from), Ok(to)) = (client.try_clone(), server.try_clone()) else { return };
    // Small control frames must not wait for more.
    // Ignored: only slower without.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let up = std::thread::Builder::new().spawn(move || pass(from, to, |_| ()));
    let mut seen = 0;
    pass(server, client, |bytes| corrupt(bytes, &mut seen, shared));
    // Ignored: without that thread the connection is closed already.
    let _ = up.map(std::thread::JoinHandle::join);
}

fn pass(mut from: TcpStream, mut to: TcpStream, mut change: impl FnMut(&mut [u8])) {
    let mut buffer = vec![0; 256 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        change(&mut buffer[..count]);
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    // Ignored: both ends may be gone.
    let _ = (from.shutdown(Shutdown::Read), to.shutdown(Shutdown::Write));
}

/// Flips the lowest bit of every byte that completes a multiple of [`FLIP_EVERY_BYTES`].
fn corrupt(bytes: &mut [u8], seen: &mut u64, shared: &Shared) {
    let (before, after) = (*seen, *seen + bytes.len() as u64);
    *seen = after;
    let next = (before / FLIP_EVERY_BYTES + 1) * FLIP_EVERY_BYTES;
    if shared.armed.load(Ordering::Relaxed) && next <= after {
        bytes[(next - before - 1) as usize] ^= 1;
        shared.flipped.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a proxy that flips nothing, or more than one bit per stretch, or flips before it is armed.
    #[test]
    fn one_bit_per_stretch_once_armed() {
        let shared = Shared::default();
        let mut seen = 0;
        let mut flips = |shared: &Shared| {
            let mut bits = 0;
            for _ in 0..64 {
                let mut bytes = vec![0; 65_536];
                corrupt(&mut bytes, &mut seen, shared);
                bits += bytes.iter().map(|byte| byte.count_ones()).sum::<u32>();
            }
            bits
        };
        assert_eq!(flips(&shared), 0);
        shared.armed.store(true, Ordering::Relaxed);
        assert_eq!(flips(&shared), 4);
        assert_eq!(shared.flipped.load(Ordering::Relaxed), 4);
    }
}
