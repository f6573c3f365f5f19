//! Where origin, relay and children are: four hosts joined by links of their own when we are root, else loopback.
//!
//! Without a bridge and without shaping, unlike a lab: what is measured is the relay, not the wire. The lab's library makes them, so that
//! `faasnet lab down` finds what a crash left. Owned by the bench; dropping it removes everything.

use std::net::{IpAddr, Ipv4Addr};
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail, ensure};
use faasnet_lab::enter;
use faasnet_lab::links::{End, LinkOptions, Links};

use super::knobs::Knobs;

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Network {
    /// `None`: loopback.
    links: Option<Links>,
    knobs: Knobs,
}

/// Who is somewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Origin,
    Relay,
    Left,
    Right,
}

const PLACES: [Place; 4] = [Place::Origin, Place::Relay, Place::Left, Place::Right];
const OTHERS: [Place; 3] = [Place::Origin, Place::Left, Place::Right];
const ETHERNET_MTU: u32 = 1500;
/// The interface towards the relay; the relay's are called after their other end.
const UPLINK: &str = "relay";
/// Congestion controls that need no pacing qdisc; a namespace may only choose what the host allows.
const CONGESTION: [&str; 2] = ["cubic", "reno"];
const CONGESTION_KEY: &str = "net/ipv4/tcp_congestion_control";

impl Place {
    fn name(self) -> &'static str {
        match self {
            Self::Origin => "origin",
            Self::Relay => "relay",
            Self::Left => "left",
            Self::Right => "right",
        }
    }
}

impl Network {
    pub(crate) fn up(knobs: &Knobs, notes: &mut Vec<String>) -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            ensure!(
                !knobs.need_namespaces(),
                "--mtu, --gso, --congestion, --rmem, --wmem and --single-packets need hosts and links of our own, and those need root"
            );
            let note = "loopback instead of links between namespaces, which need root: compare with nothing else";
            if !notes.iter().any(|other| other == note) {
                notes.push(note.into());
            }
            return Ok(Self { links: None, knobs: knobs.clone() });
        }
        let links = Links::up(&PLACES.map(Place::name)).context("cannot make the bench's namespaces")?;
        let network = Self { links: Some(links), knobs: knobs.clone() };
        network.make().context("cannot set up the bench's namespaces")?;
        Ok(network)
    }

    /// What it is, for the report.
    pub(crate) fn describe(&self) -> String {
        let Knobs { mtu, gso_bytes, single_packets, .. } = self.knobs;
        let mut text = match &self.links {
            None => return "loopback".into(),
            Some(_) => format!("veth between namespaces, MTU {}", mtu.unwrap_or(ETHERNET_MTU)),
        };
        if let Some(bytes) = gso_bytes {
            text += &format!(", runs of {bytes} bytes");
        }
        if single_packets {
            text += ", single packets to the relay";
        }
        text
    }

    pub(crate) fn is_loopback(&self) -> bool {
        self.links.is_none()
    }

    /// The address of `place`; `seen_by` is at the other end of one of the relay's links when `place` is the relay.
    pub(crate) fn address(&self, place: Place, seen_by: Place) -> IpAddr {
        if self.links.is_none() {
            return Ipv4Addr::LOCALHOST.into();
        }
        let (link, host) = if place == Place::Relay { (seen_by, 1) } else { (place, 2) };
        Ipv4Addr::new(10, 214, link as u8, host).into()
    }

    /// Starts a thread at `place`.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        place: Place,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<JoinHandle<Result<T>>> {
        let Some(links) = &self.links else {
            return Ok(std::thread::Builder::new().name(place.name().into()).spawn(work)?);
        };
        let inside = enter::spawn(&links.namespace(place.name()), work)?;
        Ok(std::thread::spawn(move || join(inside)??))
    }

    /// Does something at `place`.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        place: Place,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        join(self.spawn(place, work)?)?
    }

    /// Lets the origin send at `bits_per_second` only, or freely again.
    pub(crate) fn shape(&self, bits_per_second: Option<u64>) -> Result<()> {
        let Some(links) = &self.links else { bail!("loopback cannot be shaped; run as root") };
        Ok(links.shape(Place::Origin.name(), UPLINK, bits_per_second)?)
    }

    fn make(&self) -> Result<()> {
        let Some(links) = &self.links else { return Ok(()) };
        for host in PLACES.map(Place::name) {
            self.set_up(links, host)?;
        }
        let options = LinkOptions { mtu: self.knobs.mtu.unwrap_or(ETHERNET_MTU), gso_bytes: self.knobs.gso_bytes };
        for other in OTHERS {
            let (here, there) = (self.address(Place::Relay, other), self.address(other, Place::Relay));
            let (IpAddr::V4(here), IpAddr::V4(there)) = (here, there) else { bail!("links have IPv4 addresses") };
            let near = End { host: Place::Relay.name(), interface: other.name(), address: here };
            let far = End { host: other.name(), interface: UPLINK, address: there };
            links.join(near, far, options)?;
        }
        // Only towards the relay: what matters is that it receives single packets.
        if self.knobs.single_packets {
            links.send_single_packets(Place::Origin.name(), UPLINK)?;
        }
        Ok(())
    }

    /// A fresh namespace's settings: nothing is remembered from run to run, and what the knobs say.
    fn set_up(&self, links: &Links, host: &str) -> Result<()> {
        links.set(host, "net/ipv4/tcp_no_metrics_save", "1")?;
        match &self.knobs.congestion {
            Some(name) => links.set(host, CONGESTION_KEY, name).with_context(|| {
                let known = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_available_congestion_control");
                format!("no congestion control {name}; there are {}", known.unwrap_or_default().trim())
            })?,
            // Ignored: a host that allows neither has its own, which the report tells.
            None => drop(CONGESTION.iter().find_map(|name| links.set(host, CONGESTION_KEY, name).ok())),
        }
        let buffers = [("net/ipv4/tcp_rmem", self.knobs.rmem_bytes), ("net/ipv4/tcp_wmem", self.knobs.wmem_bytes)];
        for (key, most) in buffers.into_iter().filter_map(|(key, most)| Some((key, most?))) {
            let (least, first) = (4096, most.min(128 << 10));
            links.set(host, key, &format!("{least} {first} {most}"))?;
        }
        Ok(())
    }
}

fn join<T>(handle: JoinHandle<T>) -> Result<T> {
    handle.join().map_err(|_| anyhow::anyhow!("a thread of the bench panicked; its message is above"))
}
