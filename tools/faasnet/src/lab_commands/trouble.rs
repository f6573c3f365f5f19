//! `faasnet lab fault`: disturbs hosts of a lab that is up, by hand. The lab's keeper does it.

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use faasnet_lab::state::State;

use super::fault::FaultPlan;
use super::{FaultArgs, breaker, keeper};
use crate::cli::Global;
use crate::output;

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Trouble {
    /// SIGKILL to the daemon; --seconds or heal starts it again with the store that it had
    Kill,
    /// SIGSTOP to the daemon
    Stop,
    /// The cable is pulled
    Link,
    /// A tenth of the rate
    Slow,
    /// One wrong bit in every MiB that it sends; its agent is started anew behind a proxy
    Flip,
    /// A fresh disk with room for half of the image; its agent is started anew on it, as another node
    Full,
    /// So many hosts that do not hold the image ask for it at once
    Joins,
    /// As it was
    Heal,
}

/// Runs the command.
pub async fn run(global: &Global, args: FaultArgs) -> Result<()> {
    let network = keeper::find(args.id.as_ref())?;
    let state = State::read(network.id()).context("the lab has no note; take it down and make it anew")?;
    let folder = state.folder.context("the lab has no folder; take it down and make it anew")?;
    let kind = args.kind.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
    let mut line = format!("{kind}:{}", args.host);
    if args.kind == Trouble::Heal {
        ensure!(args.seconds.is_none(), "healing takes no time; leave --seconds out");
    } else {
        if let Some(seconds) = args.seconds {
            ensure!(args.kind != Trouble::Joins, "who has joined stays; leave --seconds out");
            line += &format!("+{seconds}");
        }
        // A slip is told here, with the words of the parser.
        line = line.parse::<FaultPlan>()?.to_string();
    }
    let report = breaker::ask(&folder, &line, args.seconds.is_some()).await?;
    match (global.json, report) {
        (true, report) => output::json(&report),
        (false, Some(report)) => output::line(report.by_hand()),
        (false, None) => output::line(format!("{} is as it was", args.host)),
    }
}
