//! What relays over HTTP have in common: who reads from whom, and the clients. Hosts without children need no relay: their client reads
//! the parent's, which is cheaper for them.

use std::net::SocketAddrV4;

use super::stage::Stage;
use super::{BLOB, Job};
use crate::error::Result;
use crate::network::Host;

/// Where relays and the origin listen, on hosts of their own.
pub(super) const PORT: u16 = 8080;
/// Fails on every status that is no success; writes the file as it comes. curl is there already when the gate opens, and waits for the end of
/// its configuration: its start is not in the time.
const CLIENT: &str = r#"{ read go; printf 'url = "%s"\n' "$2"; } | curl --silent --show-error --fail --output "$1" --config - && echo done
read rest"#;

/// How relays are connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// Each feeds at most two.
    Tree,
    /// Each feeds one.
    Chain,
}

impl Shape {
    /// The place of the host that feeds `place`; `None` is the origin.
    fn parent(self, place: usize) -> Option<usize> {
        match self {
            Self::Tree => Some(place.checked_sub(1)? / 2),
            Self::Chain => place.checked_sub(1),
        }
    }

    fn feeds(self, place: usize, hosts: usize) -> bool {
        (place + 1..hosts).any(|other| self.parent(other) == Some(place))
    }
}

/// Starts a relay on every host with children by `start`, which gets the host and its upstream, and a client on every host.
pub(super) fn lay_out(
    stage: &mut Stage<'_>,
    job: &Job<'_>,
    shape: Shape,
    start: impl Fn(&mut Stage<'_>, &Host, SocketAddrV4) -> Result<()>,
) -> Result<()> {
    let hosts = job.network.agents();
    for (place, host) in hosts.iter().enumerate() {
        let upstream = shape.parent(place).map_or(job.network.origin(), |parent| &hosts[parent]);
        let source = match shape.feeds(place, hosts.len()) {
            true => {
                start(stage, host, at(upstream))?;
                host
            }
            false => upstream,
        };
        client(stage, host, source)?;
    }
    let relays = hosts.iter().enumerate().filter(|(place, _)| shape.feeds(*place, hosts.len()));
    relays.map(|(_, host)| host).try_for_each(|host| stage.wait_listening(host, PORT))
}

/// A client on `host` that reads from `source`.
pub(super) fn client(stage: &mut Stage<'_>, host: &Host, source: &Host) -> Result<()> {
    let file = stage.target(host)?.join(BLOB);
    stage.client(host, CLIENT, [file.into_os_string(), format!("http://{}/{BLOB}", at(source)).into()])
}

fn at(host: &Host) -> SocketAddrV4 {
    SocketAddrV4::new(host.address, PORT)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches trees with more than two children a host, and hosts that nobody feeds.
    #[test]
    fn everybody_is_fed_by_the_shape() {
        let parents: Vec<_> = (0..7).map(|place| Shape::Tree.parent(place)).collect();
        assert_eq!(parents, [None, Some(0), Some(0), Some(1), Some(1), Some(2), Some(2)]);
        assert!((0..3).all(|place| Shape::Tree.feeds(place, 7)) && !Shape::Tree.feeds(3, 7));
        assert_eq!((Shape::Chain.parent(0), Shape::Chain.parent(4)), (None, Some(3)));
        assert!(Shape::Chain.feeds(0, 2) && !Shape::Chain.feeds(1, 2));
    }
}
