//! `faasnet lab fault`: disturbs one host of a lab that is up, by hand.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use faasnet_lab::{Host, Network, leftovers};
use rustix::process::{Pid, Signal, kill_process};

use super::{FaultArgs, keeper};

/// What happens to a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Trouble {
    /// SIGKILL to its daemon, which stays dead
    Kill,
    /// SIGSTOP to its daemon
    Stop,
    /// The cable is pulled
    Link,
    /// A tenth of the rate
    Slow,
    /// Continue, cable in, full rate
    Heal,
}

/// A slow host has one part in so many of the rate.
const SLOWER: u64 = 10;

/// Runs the command.
pub fn run(args: FaultArgs) -> Result<()> {
    let network = keeper::find(args.id.as_ref())?;
    let host = network.host(&args.host).with_context(|| {
        format!(
            "the lab {} has no host {}; it has origin, controller and n1 to n{}",
            network.id(),
            args.host,
            network.agents().len()
        )
    })?;
    if let Some(seconds) = args.seconds {
        ensure!((0.0..=3600.0).contains(&seconds), "--seconds {seconds}: between 0 and 3600");
        ensure!(!matches!(args.kind, Trouble::Kill | Trouble::Heal), "{:?} cannot be undone after a time", args.kind);
    }
    apply(&network, host, args.kind)?;
    if let Some(seconds) = args.seconds {
        std::thread::sleep(Duration::from_secs_f64(seconds));
        apply(&network, host, Trouble::Heal)?;
    }
    Ok(())
}

fn apply(network: &Network, host: &Host, trouble: Trouble) -> Result<()> {
    match trouble {
        Trouble::Kill => signal(host, Signal::KILL),
        Trouble::Stop => signal(host, Signal::STOP),
        Trouble::Link => Ok(network.set_link(host, false)?),
        Trouble::Slow => Ok(network.set_rate(host, network.rate().divided(SLOWER))?),
        Trouble::Heal => {
            network.set_link(host, true)?;
            network.set_rate(host, network.rate())?;
            // Ignored: a host whose daemon was killed has nothing to continue.
            let _ = signal(host, Signal::CONT);
            Ok(())
        }
    }
}

fn signal(host: &Host, signal: Signal) -> Result<()> {
    let pids = daemons(host);
    if pids.is_empty() {
        bail!("no daemon runs on {}; it was killed before", host.name);
    }
    pids.into_iter().filter_map(|pid| Pid::from_raw(pid as i32)).try_for_each(|pid| {
        kill_process(pid, signal).with_context(|| format!("cannot signal the daemon on {}", host.name))
    })
}

/// The host's processes that are this program: a shell that somebody has open there is left alone.
fn daemons(host: &Host) -> Vec<u32> {
    let program = |pid: &str| std::fs::read_link(format!("/proc/{pid}/exe")).ok();
    let own = program("self");
    let pids = leftovers::processes(std::slice::from_ref(&host.namespace)).into_iter();
    pids.filter(|pid| own.is_some() && program(&pid.to_string()) == own).collect()
}
