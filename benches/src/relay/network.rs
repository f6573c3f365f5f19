//! Where origin, relays and children are: hosts joined by links of their own when we are root, else loopback.
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
    joints: Vec<Joint>,
}

/// Two places with a link between them, the one nearer to the middle, or to the origin of a row, first.
type Joint = (Place, Place);

/// Who is somewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Origin,
    Relay,
    /// Below the first relay, counted from 0.
    Further(u8),
    Left,
    Right,
}

const STAR: [Joint; 3] = [(Place::Relay, Place::Origin), (Place::Relay, Place::Left), (Place::Relay, Place::Right)];
const FURTHER: [&str; 7] = ["relay2", "relay3", "relay4", "relay5", "relay6", "relay7", "relay8"];
/// The most relays in a row.
pub(crate) const MOST_RELAYS: usize = 1 + FURTHER.len();
const ETHERNET_MTU: u32 = 1500;
/// Congestion controls that need no pacing qdisc; a namespace may only choose what the host allows.
const CONGESTION: [&str; 2] = ["cubic", "reno"];
const CONGESTION_KEY: &str = "net/ipv4/tcp_congestion_control";

impl Place {
    /// The relay number `index` of a row, from 0.
    pub(crate) fn relay(index: usize) -> Self {
        match index {
            0 => Self::Relay,
            index => Self::Further(index as u8 - 1),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Origin => "origin",
            Self::Relay => "relay",
            Self::Further(index) => FURTHER[usize::from(index)],
            Self::Left => "left",
            Self::Right => "right",
        }
    }
}

impl Network {
    /// A relay between its origin and two children.
    pub(crate) fn star(knobs: &Knobs, notes: &mut Vec<String>) -> Result<Self> {
        Self::up(STAR.to_vec(), knobs, notes)
    }

    /// The origin, `relays` relays one below the other, and a child.
    pub(crate) fn row(relays: usize, knobs: &Knobs, notes: &mut Vec<String>) -> Result<Self> {
        let places: Vec<Place> =
            [Place::Origin].into_iter().chain((0..relays).map(Place::relay)).chain([Place::Left]).collect();
        Self::up(places.windows(2).map(|pair| (pair[0], pair[1])).collect(), knobs, notes)
    }

    fn up(joints: Vec<Joint>, knobs: &Knobs, notes: &mut Vec<String>) -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            ensure!(
                !knobs.need_namespaces(),
                "--mtu, --gso, --congestion, --rmem, --wmem and --single-packets need hosts and links of our own, and those need root"
            );
            let note = "loopback instead of links between namespaces, which need root: compare with nothing else";
            if !notes.iter().any(|other| other == note) {
                notes.push(note.into());
            }
            return Ok(Self { links: None, knobs: knobs.clone(), joints });
        }
        let mut hosts: Vec<_> = joints.iter().flat_map(|(near, far)| [near.name(), far.name()]).collect();
        hosts.sort_unstable();
        hosts.dedup();
        let links = Links::up(&hosts).context("cannot make the bench's namespaces")?;
        let network = Self { links: Some(links), knobs: knobs.clone(), joints };
        network.make(&hosts).context("cannot set up the bench's namespaces")?;
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

    /// The address of `place` on its link with `seen_by`.
    pub(crate) fn address(&self, place: Place, seen_by: Place) -> IpAddr {
        if self.links.is_none() {
            return Ipv4Addr::LOCALHOST.into();
        }
        let link = self.joints.iter().position(|joint| *joint == (place, seen_by) || *joint == (seen_by, place));
        let Some(link) = link else { unreachable!("{place:?} and {seen_by:?} are not joined") };
        let host = if self.joints[link].0 == place { 1 } else { 2 };
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
        Ok(links.shape(Place::Origin.name(), Place::Relay.name(), bits_per_second)?)
    }

    /// Lets nobody in a row send faster than this to the next.
    pub(crate) fn shape_row(&self, bits_per_second: u64) -> Result<()> {
        let Some(links) = &self.links else { return Ok(()) };
        self.joints
            .iter()
            .try_for_each(|(above, below)| Ok(links.shape(above.name(), below.name(), Some(bits_per_second))?))
    }

    fn make(&self, hosts: &[&str]) -> Result<()> {
        let Some(links) = &self.links else { return Ok(()) };
        for host in hosts {
            self.set_up(links, host)?;
        }
        let options = LinkOptions { mtu: self.knobs.mtu.unwrap_or(ETHERNET_MTU), gso_bytes: self.knobs.gso_bytes };
        for (near, far) in &self.joints {
            let (here, there) = (self.address(*near, *far), self.address(*far, *near));
            let (IpAddr::V4(here), IpAddr::V4(there)) = (here, there) else { bail!("links have IPv4 addresses") };
            let (near, far) = (near.name(), far.name());
            let [near, far] = [(near, far, here), (far, near, there)].map(|(host, interface, address)| End {
                host,
                interface,
                address,
            });
            links.join(near, far, options)?;
        }
        // Only towards the relay: what matters is that it receives single packets.
        if self.knobs.single_packets {
            links.send_single_packets(Place::Origin.name(), Place::Relay.name())?;
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
