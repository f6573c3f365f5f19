//! `faasnet lab up | down | shell`: a lab that stays, held by a process of its own.
//!
//! The keeper starts the daemons with a pipe to itself; when it ends, however it ends, they end. `down` ends it and removes the rest.

use std::ffi::OsString;
use std::io::{Read, Seek};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use faasnet_lab::state::State;
use faasnet_lab::{LabId, Network, leftovers};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader};

use super::breaker::Breaker;
use super::cluster::{FUNCTION, LabCluster, enter_command};
use super::plan::Plan;
use super::session::Session;
use super::{DownArgs, ShellArgs, UpArgs};
use crate::cli::Global;
use crate::{daemon, output};

/// How long a keeper may take to end by itself.
const DEADLINE: Duration = Duration::from_secs(20);

/// `lab up`: starts the keeper, waits until it says that all is ready, and leaves it alone.
pub async fn up(global: &Global, args: UpArgs) -> Result<()> {
    let id = args.hosts.id.clone().unwrap_or_else(LabId::fresh);
    ensure!(State::read(&id).is_none(), "the lab {id} exists already; take it down with `faasnet lab down {id}`");
    let mut arguments: Vec<_> = std::env::args_os().skip(1).collect();
    if let Some(command) = arguments.iter_mut().find(|argument| *argument == "up") {
        *command = "keep".into();
    }
    if args.hosts.id.is_none() {
        arguments.extend(["--id".into(), id.to_string().into()]);
    }
    let exe = std::env::current_exe().context("cannot find this program's own file")?;
    let mut keeper = tokio::process::Command::new(exe);
    // It outlives this command: whoever reads our output must not wait for the keeper, nor Ctrl-C reach it.
    let mut errors = tempfile::tempfile().context("cannot make a file for the keeper's errors")?;
    let theirs = errors.try_clone().context("cannot pass the keeper a file for its errors")?;
    keeper.args(arguments).process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(theirs);
    let mut keeper = keeper.spawn().context("cannot start the keeper")?;
    let out = keeper.stdout.take().context("the keeper has no output")?;
    let mut line = String::new();
    BufReader::new(out).read_line(&mut line).await.context("cannot hear from the keeper")?;
    let Some(description) = line.trim().strip_prefix("ready ") else {
        let mut text = String::new();
        errors.rewind().and_then(|()| errors.read_to_string(&mut text)).context("cannot read the keeper's errors")?;
        let last = text.lines().last().unwrap_or("it says nothing").trim_start_matches("error: ");
        bail!("the lab did not come up: {last}");
    };
    if global.json {
        return output::line(description);
    }
    let own = std::env::args_os().next().unwrap_or_else(|| "faasnet".into());
    let own = Path::new(&own).display();
    output::line(format!(
        "the lab {id} is up: {} hosts at {}\nlook around:  {own} lab shell --id {id} -- faasnet nodes\n\
         bring the image everywhere:  {own} lab shell --id {id} -- faasnet provision {FUNCTION} --tenant lab --count {}\n\
         take it down:  {own} lab down {id}",
        args.hosts.hosts,
        Plan::from(&args).rate(),
        args.hosts.hosts
    ))
}

/// `lab keep`: brings the lab up, registers the image, and holds the daemons until it is told to stop.
pub async fn keep(args: UpArgs) -> Result<()> {
    let plan = Plan::from(&args).with_image_size().await?;
    plan.check()?;
    let shutdown = daemon::shutdown(false)?;
    let session = Session::open(&plan, true)?;
    let (network, folder, settings) = (session.network.clone(), session.folder().to_owned(), plan.clone());
    let work = async move {
        let layout = super::image::layout(&settings, &folder)?;
        let mut cluster = LabCluster::start(&network, &settings, &layout, &folder).await?;
        let function = cluster.register(&mut cluster.control().await?).await?;
        let description = serde_json::json!({
            "id": network.id().to_string(),
            "hosts": settings.hosts,
            "controller": cluster.url(),
            "secret_file": cluster.secret_file(),
            "folder": folder,
            "function": function,
        });
        let breaker = Breaker::listen(&folder, &settings)?;
        output::line(format!("ready {description}"))?;
        breaker.serve(&mut cluster, shutdown).await?;
        cluster.stop().await.map(|wrong| wrong.iter().for_each(|wrong| tracing::warn!("{wrong}")))
    };
    let outcome = session.inside(work).await;
    session.close(false)?;
    outcome
}

/// `lab down`.
pub fn down(global: &Global, args: DownArgs) -> Result<()> {
    let mut removed = Vec::new();
    let named = args.id.or(args.named);
    for id in named.clone().map_or_else(unused, |id| Ok(vec![id]))? {
        let state = State::read(&id);
        if let Some(state) = state.as_ref().filter(|state| state.is_owned()) {
            ensure!(state.stays, "the lab {id} is used by process {}; it goes when that ends", state.owner);
            end(state)?;
        }
        let found = leftovers::remove(&id)?;
        let is_nothing = state.is_none() && found.namespaces.is_empty() && found.folder.is_none();
        ensure!(named.is_none() || !is_nothing, "there is no lab {id}, nor anything that it left behind");
        let was_up = state.is_some_and(|state| state.stays);
        removed.push(serde_json::json!({ "id": id.to_string(), "found": found, "was_up": was_up }));
    }
    if global.json {
        return output::json(&removed);
    }
    match removed.len() {
        0 => output::line("there is no lab to take down"),
        count => output::line(format!("took down {count} lab{}", if count == 1 { "" } else { "s" })),
    }
}

/// The labs whose process ended without taking them down, and the one that is up if it is the only one. The others are named: somebody
/// may need them.
fn unused() -> Result<Vec<LabId>> {
    let (mut unused, mut up) = (Vec::new(), Vec::new());
    for id in leftovers::labs()? {
        match State::read(&id) {
            Some(state) if !state.is_owned() => unused.push(id),
            Some(state) if state.stays => up.push(id),
            Some(state) => eprintln!("left alone: the lab {id}, used by process {}", state.owner),
            // An unreadable note and nothing else: what a crash left.
            None if leftovers::namespaces(&id)?.is_empty() => unused.push(id),
            None => {
                eprintln!("left alone: the lab {id}, whose owner is unknown; if it is yours: faasnet lab down {id}")
            }
        }
    }
    if up.len() > 1 {
        up.drain(..)
            .for_each(|id| eprintln!("left alone: the lab {id}, one of several that are up; name it to take it down"));
    }
    unused.append(&mut up);
    Ok(unused)
}

/// `lab shell`: becomes the command.
pub fn shell(args: ShellArgs) -> Result<ExitCode> {
    let network = find(args.id.as_ref())?;
    let Some(host) = network.host(&args.host) else { bail!("the lab {} has no host {}", network.id(), args.host) };
    let state = State::read(network.id()).context("the lab has no note; take it down and make it anew")?;
    let folder = state.folder.context("the lab has no folder")?;
    let mut command = enter_command(&host.namespace).into_std();
    match args.command.is_empty() {
        true => command.arg(std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into())),
        false => command.args(args.command),
    };
    command.env("PATH", path_with_own_folder()?);
    command.env("FAASNET_CONTROLLER", format!("http://{}:7400", network.controller().address));
    command.env("FAASNET_SECRET_FILE", folder.join("secret")).env("FAASNET_LAB", network.id().to_string());
    Err(command.exec()).context("cannot enter the host; is nsenter (util-linux) installed?")
}

/// The folders of programs, this program's own first: `faasnet` is found in the shell also where nobody installed it, in this version.
fn path_with_own_folder() -> Result<OsString> {
    let exe = std::env::current_exe().context("cannot find this program's own file")?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = exe.parent().map(Path::to_owned).into_iter().chain(std::env::split_paths(&path));
    std::env::join_paths(folders).context("the folder of this program cannot be put into PATH; run it from another one")
}

/// The lab called `id`, or the only one that stays.
pub fn find(id: Option<&LabId>) -> Result<Network> {
    let stays = |id: &LabId| State::read(id).is_some_and(|state| state.stays);
    let id = match id {
        Some(id) => id.clone(),
        None => {
            let mut up: Vec<_> = leftovers::labs()?.into_iter().filter(stays).collect();
            match (up.pop(), up.is_empty()) {
                (Some(id), true) => id,
                (None, _) => bail!("no lab is up; make one with `faasnet lab up`"),
                _ => bail!("several labs are up; say which with --id"),
            }
        }
    };
    let rate = State::read(&id).and_then(|state| state.rate.parse().ok());
    let rate = rate.with_context(|| format!("there is no lab {id}; make it with `faasnet lab up --id {id}`"))?;
    Ok(Network::open(&id, rate)?)
}

fn end(state: &State) -> Result<()> {
    let Some(pid) = Pid::from_raw(state.owner as i32) else { return Ok(()) };
    // Ignored: it may have ended in the meantime.
    let _ = kill_process(pid, Signal::TERM);
    let deadline = Instant::now() + DEADLINE;
    while state.is_owned() {
        if Instant::now() > deadline {
            // Ignored: as above.
            let _ = kill_process(pid, Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
