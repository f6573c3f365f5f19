//! Hosts joined by veth pairs of their own: no bridge, no shaping, whatever packets the experiment wants. For benches that measure what a
//! host costs, not what a wire carries.
//!
//! Owned by whoever called [`Links::up`]; dropping it removes everything, [`crate::leftovers::remove`] does so after a crash.

use std::net::Ipv4Addr;

use crate::error::Result;
use crate::name::LabId;
use crate::state::State;
use crate::{LabError, enter, leftovers, network, tool};

/// See the module's documentation.
#[derive(Debug)]
pub struct Links {
    id: LabId,
}

/// One end of a link.
#[derive(Debug, Clone, Copy)]
pub struct End<'a> {
    /// One of the hosts.
    pub host: &'a str,
    /// The interface there.
    pub interface: &'a str,
    /// Its address; both ends are in one /24.
    pub address: Ipv4Addr,
}

/// What passes over a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkOptions {
    /// The largest packet.
    pub mtu: u32,
    /// The largest run of packets that the stack handles as one; more than 65,536 is BIG TCP (Linux 6.3 for IPv4). `None`: the kernel's.
    pub gso_bytes: Option<u32>,
}

const PREFIX_BITS: u8 = 24;
/// More than this needs a setting per protocol.
const LEGACY_GSO_BYTES: u32 = 65_536;

impl Links {
    /// Makes the hosts, with nothing but loopback. On failure nothing remains.
    pub fn up(hosts: &[&str]) -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            return Err(LabError::NotRoot);
        }
        let id = LabId::fresh();
        // Noted first, so that `faasnet lab down` can tell an experiment that runs from one that left something behind.
        State::claim(&id)?;
        let links = Self { id };
        let names: Vec<_> = hosts.iter().map(|host| links.namespace(host)).collect();
        tool::batch("ip", None, &names.iter().map(|name| format!("netns add {name}")).collect::<Vec<_>>())?;
        for name in names {
            enter::run(&name, network::quiet)??;
            tool::batch("ip", Some(&name), &["link set lo up".to_owned()])?;
        }
        Ok(links)
    }

    /// Its name.
    pub fn id(&self) -> &LabId {
        &self.id
    }

    /// The namespace of a host.
    pub fn namespace(&self, host: &str) -> String {
        self.id.namespace(host)
    }

    /// Joins two hosts.
    pub fn join(&self, near: End<'_>, far: End<'_>, options: LinkOptions) -> Result<()> {
        let mtu = options.mtu;
        let (here, there) = (near.interface, far.interface);
        let make = format!(
            "link add {here} mtu {mtu} type veth peer name {there} mtu {mtu} netns {}",
            self.namespace(far.host)
        );
        tool::batch("ip", Some(&self.namespace(near.host)), &[make])?;
        for end in [near, far] {
            let mut lines = vec![format!("address add {}/{PREFIX_BITS} dev {}", end.address, end.interface)];
            lines.push(format!("link set {} up", end.interface));
            tool::batch("ip", Some(&self.namespace(end.host)), &lines)?;
            if let Some(bytes) = options.gso_bytes {
                self.set_runs(end, bytes)?;
            }
        }
        Ok(())
    }

    fn set_runs(&self, end: End<'_>, bytes: u32) -> Result<()> {
        let line = format!("link set {} {}", end.interface, runs(bytes));
        let set = tool::batch("ip", Some(&self.namespace(end.host)), &[line]);
        set.map_err(|error| match bytes {
            0..=LEGACY_GSO_BYTES => error,
            _ => LabError::Invalid(format!(
                "runs of {bytes} bytes: more than {LEGACY_GSO_BYTES} over IPv4 needs iproute2 6.3 and Linux 6.3 ({error})"
            )),
        })
    }

    /// Has `host` send single packets over `interface`, as a card does that neither segments nor merges.
    pub fn send_single_packets(&self, host: &str, interface: &str) -> Result<()> {
        tool::batch("ip", Some(&self.namespace(host)), &[format!("link set {interface} gso_max_segs 1")])
    }

    /// Bounds what `host` sends over `interface`; `None`: no longer.
    pub fn shape(&self, host: &str, interface: &str, bits_per_second: Option<u64>) -> Result<()> {
        let line = match bits_per_second {
            // The bucket holds several segments of 64 KiB, or tbf cuts them up in software.
            Some(bits) => format!("qdisc replace dev {interface} root tbf rate {bits}bit burst 256kb limit 4mb"),
            None => format!("qdisc del dev {interface} root"),
        };
        tool::batch("tc", Some(&self.namespace(host)), &[line])
    }

    /// Writes a setting of a host's network, such as `net/ipv4/tcp_rmem`.
    pub fn set(&self, host: &str, key: &str, value: &str) -> Result<()> {
        let (path, value) = (format!("/proc/sys/{key}"), value.to_owned());
        enter::run(&self.namespace(host), move || {
            std::fs::write(&path, &value).map_err(LabError::io(format!("cannot write {value:?} to {path}")))
        })?
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        if let Err(error) = leftovers::remove(&self.id) {
            eprintln!("cannot remove the namespaces of {} ({error}); try `faasnet lab down {}`", self.id, self.id);
        }
    }
}

fn runs(bytes: u32) -> String {
    match bytes {
        0..=LEGACY_GSO_BYTES => format!("gso_max_size {bytes} gro_max_size {bytes}"),
        _ => format!("gso_max_size {bytes} gro_max_size {bytes} gso_ipv4_max_size {bytes} gro_ipv4_max_size {bytes}"),
    }
}
