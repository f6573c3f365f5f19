//! The start-up budget: the most memory that the data path of one agent takes, as a sum whose parts have names.
//!
//! Pure arithmetic over the settings and two of the host's limits. What it counts is bounded by construction: buffers are made at start,
//! pipes and sockets have caps, children per stripe (whoever they are: planned, riders, guests, moved elsewhere and not gone yet) and
//! stripes per image have limits.

use std::fmt;

use faasnet_api::MAX_BLOCK_BYTES;
use faasnet_relay::downstream::MAX_CHILDREN;
use faasnet_ring::HEADROOM_BYTES;
use serde::Serialize;

use crate::config::Config;

/// See the module's documentation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Budget {
    /// The agent's own memory: made at start, and there from then on.
    pub buffers: Part,
    /// Kernel memory: the pipe through which each worker's blocks pass.
    pub transit_pipes: Part,
    /// Kernel memory per image that is on its way: the pipes to children.
    pub child_pipes: Part,
    /// Kernel memory per image: what children have not acknowledged.
    pub child_sockets: Part,
    /// Kernel memory per image: what upstreams have sent and is not read yet.
    pub link_sockets: Part,
    /// As many images at once are counted.
    pub images: u64,
}

/// So many things of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Part {
    /// How many.
    pub count: u64,
    /// Bytes of each.
    pub bytes: u64,
}

/// The most bytes that the kernel lets a socket's buffers grow to by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketLimits {
    /// The third value of net.ipv4.tcp_rmem.
    pub receive_bytes: u64,
    /// The third value of net.ipv4.tcp_wmem.
    pub send_bytes: u64,
}

/// The most trees of an image.
const STRIPES: u64 = 2;
/// Connections to upstreams of one stripe: the one that delivers, and a candidate.
const LINKS: u64 = 2;
/// What the controller gives one node at most, by default.
const IMAGES: u64 = 20;

impl Budget {
    /// The sum for `config` on a host with these `limits`.
    pub fn new(config: &Config, limits: SocketLimits) -> Self {
        let workers = config.workers as u64;
        let children = MAX_CHILDREN as u64 * STRIPES;
        // The kernel counts its own bookkeeping: a buffer that was asked for takes twice its size.
        let fixed = |bytes: Option<usize>, grown: u64| bytes.map_or(grown, |bytes| 2 * bytes as u64);
        Self {
            buffers: Part {
                count: workers * config.buffers as u64,
                // A page before the block for its header, one behind it for the next one's.
                bytes: 2 * HEADROOM_BYTES as u64 + u64::from(MAX_BLOCK_BYTES),
            },
            transit_pipes: Part { count: workers, bytes: config.pipe_bytes as u64 },
            child_pipes: Part { count: children, bytes: config.pipe_bytes as u64 },
            child_sockets: Part { count: children, bytes: fixed(config.send_buffer_bytes, limits.send_bytes) },
            link_sockets: Part {
                count: LINKS * STRIPES,
                bytes: fixed(config.receive_buffer_bytes, limits.receive_bytes),
            },
            images: IMAGES,
        }
    }

    /// The same for the limits of this host.
    pub fn of_this_host(config: &Config) -> Self {
        Self::new(config, SocketLimits::read())
    }

    /// The agent's own memory.
    pub fn user_bytes(&self) -> u64 {
        self.buffers.total()
    }

    /// Kernel memory that one image may take while it is on its way.
    pub fn image_bytes(&self) -> u64 {
        self.child_pipes.total() + self.child_sockets.total() + self.link_sockets.total()
    }

    /// All of it, with every image on its way and every child and upstream as slow as can be.
    pub fn total(&self) -> u64 {
        self.user_bytes() + self.transit_pipes.total() + self.images * self.image_bytes()
    }
}

impl Part {
    /// Bytes of all of them.
    pub fn total(&self) -> u64 {
        self.count * self.bytes
    }
}

impl SocketLimits {
    fn read() -> Self {
        let last = |name: &str, default: u64| {
            let text = std::fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap_or_default();
            text.split_whitespace().nth(2).and_then(|word| word.parse().ok()).unwrap_or(default)
        };
        // The kernel's own defaults, where /proc does not tell.
        Self { receive_bytes: last("tcp_rmem", 6 << 20), send_bytes: last("tcp_wmem", 4 << 20) }
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { buffers, transit_pipes, child_pipes, child_sockets, link_sockets, images } = self;
        write!(
            f,
            "{} of buffers ({buffers}) + {} of transit pipes ({transit_pipes}) + {images} images x {} \
             (children: pipes {child_pipes}, sockets {child_sockets}; upstreams: sockets {link_sockets}) = {} at most",
            Size(buffers.total()),
            Size(transit_pipes.total()),
            Size(self.image_bytes()),
            Size(self.total()),
        )
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} x {}", self.count, Size(self.bytes))
    }
}

/// Bytes as people read them.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes if bytes < 10 << 20 && bytes % (1 << 20) != 0 => write!(f, "{} KiB", bytes.div_ceil(1 << 10)),
            bytes => write!(f, "{} MiB", bytes.div_ceil(1 << 20)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: SocketLimits = SocketLimits { receive_bytes: 6 << 20, send_bytes: 4 << 20 };

    /// Catches a part that is left out of the sum, or counted for one worker only.
    #[test]
    fn the_sum_has_all_parts() {
        let one = Budget::new(&Config::default(), LIMITS);
        assert_eq!(one.user_bytes(), 24 * (264 << 10));
        assert_eq!(one.image_bytes(), (12 * (1 + 4) + 4 * 6) << 20);
        assert_eq!(one.total(), 24 * (264 << 10) + (1 << 20) + 20 * (84 << 20));
        let two = Budget::new(&Config { workers: 2, ..Config::default() }, LIMITS);
        assert_eq!(two.total() - one.total(), 24 * (264 << 10) + (1 << 20));
        let capped =
            Config { send_buffer_bytes: Some(1 << 20), receive_buffer_bytes: Some(1 << 20), ..Config::default() };
        assert_eq!(Budget::new(&capped, LIMITS).image_bytes(), (12 * (1 + 2) + 4 * 2) << 20);
    }

    /// Catches a printed sum that does not add up for its reader.
    #[test]
    fn it_is_printed_as_a_sum() {
        let text = Budget::new(&Config::default(), LIMITS).to_string();
        assert_eq!(
            text,
            "6336 KiB of buffers (24 x 264 KiB) + 1 MiB of transit pipes (1 x 1 MiB) + 20 images x 84 MiB \
             (children: pipes 12 x 1 MiB, sockets 12 x 4 MiB; upstreams: sockets 4 x 6 MiB) = 1688 MiB at most"
        );
    }
}
