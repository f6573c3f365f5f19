//! Where origin, relay and children are: four network namespaces joined by veth pairs when we are root, else loopback.
//!
//! Without a bridge and without shaping, unlike a lab: what is measured is the relay, not the wire. Names are a lab's, so that
//! `faasnet lab down` finds what a crash left. Owned by the bench; dropping it removes everything.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail, ensure};
use faasnet_lab::state::State;
use faasnet_lab::{LabId, enter, leftovers};

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Network {
    /// `None`: loopback.
    id: Option<LabId>,
    pub(crate) mtu: u32,
    pub(crate) offload: bool,
}

/// Who is somewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Origin,
    Relay,
    Left,
    Right,
}

const OTHERS: [Place; 3] = [Place::Origin, Place::Left, Place::Right];
const ETHERNET_MTU: u32 = 1500;
const LOOPBACK_MTU: u32 = 65_536;
/// Congestion controls that need no pacing qdisc; a namespace may only choose what the host allows.
const CONGESTION: [&str; 2] = ["cubic", "reno"];
/// What else a fresh namespace is told: nothing is remembered from run to run.
const SYSCTLS: [(&str, &str); 2] = [("net/ipv4/tcp_no_metrics_save", "1"), ("net/ipv6/conf/all/disable_ipv6", "1")];

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
    pub(crate) fn up(mtu: Option<u32>, single_packets: bool, notes: &mut Vec<String>) -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            ensure!(
                mtu.is_none() && !single_packets,
                "--mtu and --single-packets need links of our own, and those need root"
            );
            notes.push(
                "loopback instead of links between namespaces, which need root: compare with nothing else".into(),
            );
            return Ok(Self { id: None, mtu: LOOPBACK_MTU, offload: true });
        }
        let mtu = mtu.unwrap_or(ETHERNET_MTU);
        ensure!((576..=65_535).contains(&mtu), "--mtu {mtu} is not between 576 and 65535");
        let id = LabId::fresh();
        // Noted first, so that `faasnet lab down` can tell a bench that runs from one that left something behind.
        State::claim(&id)?;
        let network = Self { id: Some(id), mtu, offload: !single_packets };
        network.make().context("cannot make the bench's namespaces")?;
        Ok(network)
    }

    /// What it is, for the report.
    pub(crate) fn describe(&self) -> String {
        match &self.id {
            None => "loopback".into(),
            Some(_) if self.offload => format!("veth between namespaces, MTU {}", self.mtu),
            Some(_) => format!("veth between namespaces, MTU {}, single packets to the relay", self.mtu),
        }
    }

    pub(crate) fn is_loopback(&self) -> bool {
        self.id.is_none()
    }

    /// The address of `place`; `seen_by` is at the other end of one of the relay's links when `place` is the relay.
    pub(crate) fn address(&self, place: Place, seen_by: Place) -> IpAddr {
        if self.id.is_none() {
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
        let Some(id) = &self.id else { return Ok(std::thread::Builder::new().name(place.name().into()).spawn(work)?) };
        let inside = enter::spawn(&id.namespace(place.name()), work)?;
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
        let Some(id) = &self.id else { bail!("loopback cannot be shaped; run as root") };
        let line = match bits_per_second {
            // The bucket holds several segments of 64 KiB, or tbf cuts them up in software.
            Some(bits) => format!("qdisc replace dev relay root tbf rate {bits}bit burst 256kb limit 4mb"),
            None => "qdisc del dev relay root".to_owned(),
        };
        batch("tc", Some(&id.namespace("origin")), &[line])
    }

    fn make(&self) -> Result<()> {
        let Some(id) = &self.id else { return Ok(()) };
        let all = [Place::Origin, Place::Relay, Place::Left, Place::Right].map(|place| id.namespace(place.name()));
        batch("ip", None, &all.clone().map(|name| format!("netns add {name}")))?;
        for name in all {
            enter::run(&name, || {
                let key = "net/ipv4/tcp_congestion_control";
                CONGESTION.iter().find_map(|value| set(key, value).ok());
                SYSCTLS.iter().try_for_each(|(key, value)| set(key, value))
            })??;
            batch("ip", Some(&name), &["link set lo up".to_owned()])?;
        }
        // Only towards the relay: what matters is that it receives single packets.
        let single = if self.offload { "" } else { " gso_max_segs 1" };
        for other in OTHERS {
            let (name, far, mtu) = (other.name(), id.namespace(other.name()), self.mtu);
            let near = id.namespace(Place::Relay.name());
            let (here, there) = (self.address(Place::Relay, other), self.address(other, Place::Relay));
            batch(
                "ip",
                Some(&near),
                &[
                    format!("link add {name} mtu {mtu} type veth peer name relay mtu {mtu} netns {far}"),
                    format!("address add {here}/24 dev {name}"),
                    format!("link set {name} up"),
                ],
            )?;
            let single = if other == Place::Origin { single } else { "" };
            let lines = [format!("address add {there}/24 dev relay"), format!("link set relay up{single}")];
            batch("ip", Some(&far), &lines)?;
        }
        Ok(())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if let Some(id) = &self.id
            && let Err(error) = leftovers::remove(id)
        {
            eprintln!("cannot remove the bench's namespaces ({error}); try `faasnet lab down {id}`");
        }
    }
}

fn join<T>(handle: JoinHandle<T>) -> Result<T> {
    handle.join().map_err(|_| anyhow::anyhow!("a thread of the bench panicked; its message is above"))
}

fn set(key: &str, value: &str) -> Result<()> {
    let path = format!("/proc/sys/{key}");
    match std::fs::write(&path, value) {
        // A kernel without IPv6.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result.with_context(|| format!("cannot write {path}")),
    }
}

fn batch(program: &str, namespace: Option<&str>, lines: &[String]) -> Result<()> {
    let mut command = Command::new(program);
    if let Some(namespace) = namespace {
        command.args(["-n", namespace]);
    }
    let piped = command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = piped.spawn().with_context(|| format!("cannot run {program}; install iproute2"))?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all((lines.join("\n") + "\n").as_bytes()).with_context(|| format!("cannot write to {program}"))?;
    }
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
