//! The hosts: a namespace each, a veth pair into one bridge, a token bucket in both directions.
//!
//! The bridge lives in a namespace of its own, so the machine's own interfaces and routes are never touched. Owned by whoever called
//! [`Network::up`]; [`crate::leftovers::remove`] takes it down, also in another process.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::name::LabId;
use crate::rate::Rate;
use crate::state::State;
use crate::{LabError, enter, leftovers, tool};

/// The most hosts of one lab.
pub const MOST_HOSTS: usize = 200;
/// The host that serves images.
pub const ORIGIN: &str = "origin";
/// The host of the control plane.
pub const CONTROLLER: &str = "controller";
/// The bridge's namespace, and the bridge in it.
const SWITCH: &str = "switch";
const BRIDGE: &str = "br0";
/// The interface inside each host.
const INTERFACE: &str = "eth0";
/// Inside namespaces that nothing else can reach, any private network will do.
const FIRST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 213, 0, 1);
const PREFIX_BITS: u8 = 16;
/// The bucket must hold a whole segment of 64 KiB, or tbf cuts it up in software.
const BURST_BYTES: u64 = 256 << 10;
/// What may wait in a token bucket's queue: as much as it sends in this time, but at least two bursts.
const QUEUE_MS: u64 = 50;

/// What to make.
#[derive(Debug, Clone)]
pub struct NetworkOptions {
    /// Its name.
    pub id: LabId,
    /// How many hosts beside origin and controller: `n1`, `n2`, …
    pub hosts: usize,
    /// Of every link, each way.
    pub rate: Rate,
    /// The largest packet; `None` is Ethernet's 1500.
    pub mtu: Option<u32>,
}

/// One host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// `origin`, `controller`, `n1`, …
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its address.
    pub address: Ipv4Addr,
}

/// A network that is up.
#[derive(Debug, Clone)]
pub struct Network {
    options: NetworkOptions,
    hosts: Vec<Host>,
}

impl Network {
    /// Makes it all. On failure nothing remains.
    pub fn up(options: NetworkOptions) -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            return Err(LabError::NotRoot);
        }
        if !(1..=MOST_HOSTS).contains(&options.hosts) {
            return Err(LabError::Invalid(format!("{} hosts; the lab has 1 to {MOST_HOSTS}", options.hosts)));
        }
        let network = Self { hosts: hosts(&options), options };
        State::claim(&network.options.id)?;
        match network.make() {
            Ok(()) => Ok(network),
            Err(error) => {
                // Ignored: the first error says more; `lab down` finds what could not be removed.
                let _ = leftovers::remove(&network.options.id);
                Err(error)
            }
        }
    }

    /// A network that another process made, from its namespaces.
    pub fn open(id: &LabId, rate: Rate) -> Result<Self> {
        let names = leftovers::namespaces(id)?;
        let agents = names.iter().filter(|name| agent_number(id, name).is_some()).count();
        if agents == 0 {
            return Err(LabError::Invalid(format!("there is no lab {id}; make one with `faasnet lab up --id {id}`")));
        }
        let options = NetworkOptions { id: id.clone(), hosts: agents, rate, mtu: None };
        Ok(Self { hosts: hosts(&options), options })
    }

    /// Its name.
    pub fn id(&self) -> &LabId {
        &self.options.id
    }

    /// The rate of every link.
    pub fn rate(&self) -> Rate {
        self.options.rate
    }

    /// Origin, controller, `n1`, `n2`, …
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// The hosts `n1`, `n2`, …
    pub fn agents(&self) -> &[Host] {
        &self.hosts[2..]
    }

    /// The host that serves images.
    pub fn origin(&self) -> &Host {
        &self.hosts[0]
    }

    /// The host of the control plane.
    pub fn controller(&self) -> &Host {
        &self.hosts[1]
    }

    /// The host called `name`.
    pub fn host(&self, name: &str) -> Option<&Host> {
        self.hosts.iter().find(|host| host.name == name)
    }

    /// The bridge's namespace.
    pub fn switch(&self) -> String {
        self.options.id.namespace(SWITCH)
    }

    /// Cuts a host's cable, or plugs it in again.
    pub fn set_link(&self, host: &Host, up: bool) -> Result<()> {
        let state = if up { "up" } else { "down" };
        tool::run("ip", &["-n", &self.switch(), "link", "set", &port(&host.name), state]).map(drop)
    }

    /// Shapes a host's link anew, both ways.
    pub fn set_rate(&self, host: &Host, rate: Rate) -> Result<()> {
        tool::batch("tc", Some(&self.switch()), &[shape("change", &port(&host.name), rate)])?;
        tool::batch("tc", Some(&host.namespace), &[shape("change", INTERFACE, rate)])
    }

    fn make(&self) -> Result<()> {
        let switch = self.switch();
        let namespaces = [&switch].into_iter().chain(self.hosts.iter().map(|host| &host.namespace));
        let lines: Vec<_> = namespaces.clone().map(|name| format!("netns add {name}")).collect();
        tool::batch("ip", None, &lines)?;
        namespaces.cloned().try_for_each(|name| enter::run(&name, quiet)?)?;
        tool::batch("ip", Some(&switch), &self.switch_lines())?;
        tool::batch("tc", Some(&switch), &self.shapes())?;
        for host in &self.hosts {
            tool::batch("ip", Some(&host.namespace), &host_lines(host))?;
            tool::batch("tc", Some(&host.namespace), &[shape("add", INTERFACE, self.options.rate)])?;
        }
        self.wait_carrier()
    }

    fn switch_lines(&self) -> Vec<String> {
        let mtu = self.options.mtu.map(|mtu| format!(" mtu {mtu}")).unwrap_or_default();
        let mut lines = vec![
            "link set lo up".to_owned(),
            format!("link add {BRIDGE} type bridge stp_state 0 mcast_snooping 0"),
            format!("link set {BRIDGE} up"),
        ];
        for host in &self.hosts {
            let port = port(&host.name);
            lines.push(format!("link add {port}{mtu} type veth peer name {INTERFACE}{mtu} netns {}", host.namespace));
            lines.push(format!("link set {port} master {BRIDGE} up"));
        }
        lines
    }

    fn shapes(&self) -> Vec<String> {
        self.hosts.iter().map(|host| shape("add", &port(&host.name), self.options.rate)).collect()
    }

    /// A new port needs a moment until the bridge forwards; whoever sends before loses packets to it.
    fn wait_carrier(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let text = tool::run("ip", &["-n", &self.switch(), "-o", "link", "show", "master", BRIDGE])?;
            if text.lines().filter(|line| line.contains("state UP")).count() == self.hosts.len() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(LabError::Late(format!("not every host got onto the bridge of {}", self.options.id)));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The name of a host's port on the bridge.
pub(crate) fn port(host: &str) -> String {
    format!("p-{host}")
}

fn hosts(options: &NetworkOptions) -> Vec<Host> {
    let agents = (1..=options.hosts).map(|number| format!("n{number}"));
    let names = [ORIGIN.to_owned(), CONTROLLER.to_owned()].into_iter().chain(agents);
    names
        .zip(1..)
        .map(|(name, number)| Host {
            namespace: options.id.namespace(&name),
            name,
            address: Ipv4Addr::from_bits(FIRST_ADDRESS.to_bits() + number),
        })
        .collect()
}

fn agent_number(id: &LabId, namespace: &str) -> Option<usize> {
    namespace.strip_prefix(&id.prefix())?.strip_prefix('n')?.parse().ok()
}

fn host_lines(host: &Host) -> Vec<String> {
    vec![
        "link set lo up".to_owned(),
        format!("address add {}/{PREFIX_BITS} dev {INTERFACE}", host.address),
        format!("link set {INTERFACE} up"),
    ]
}

fn shape(verb: &str, interface: &str, rate: Rate) -> String {
    let queue = (rate.bytes() * QUEUE_MS / 1000).max(2 * BURST_BYTES);
    format!("qdisc {verb} dev {interface} root tbf rate {}bit burst {BURST_BYTES} limit {queue}", rate.bits())
}

/// Without IPv6 no host sends anything on its own, so that counters count what programs send.
pub(crate) fn quiet() -> Result<()> {
    for interface in ["all", "default"] {
        let path = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
        match std::fs::write(&path, "1") {
            Ok(()) => {}
            // A kernel without IPv6.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(LabError::io(format!("cannot write {path}"))(error)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches hosts that share an address or a namespace, and interface names that the kernel refuses (more than 15 characters).
    #[test]
    fn hosts_are_distinct_and_names_fit() {
        let options = NetworkOptions {
            id: "12345678".parse().unwrap(),
            hosts: MOST_HOSTS,
            rate: "100mbit".parse().unwrap(),
            mtu: None,
        };
        let hosts = hosts(&options);
        let mut seen: Vec<_> =
            hosts.iter().flat_map(|host| [host.namespace.clone(), host.address.to_string()]).collect();
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 2 * (MOST_HOSTS + 2));
        assert!(hosts.iter().all(|host| port(&host.name).len() <= 15));
        assert_eq!(agent_number(&options.id, &hosts[4].namespace), Some(3));
        assert_eq!(agent_number(&options.id, &hosts[0].namespace), None);
    }

    /// Catches a bucket that holds less than one segment of 64 KiB at any rate: tbf would crawl.
    #[test]
    fn the_bucket_holds_a_whole_segment() {
        let line = shape("add", "eth0", "10mbit".parse().unwrap());
        assert_eq!(line, "qdisc add dev eth0 root tbf rate 10000000bit burst 262144 limit 524288");
    }
}
