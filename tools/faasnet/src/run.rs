//! From arguments to an exit code: logging, the runtime, dispatch, the one line of an error.

use std::ffi::OsString;
use std::io::{IsTerminal, stderr};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

use crate::cli::{Cli, Command, ImageCommand};
use crate::spans::Spans;
use crate::{
    bench_commands, call, certs, daemon, demo, drain, explain, functions, image_commands, install, keys, lab_commands,
    nodes, output, provision, pull, secret, sim_commands, state_commands, tune,
};

/// Parses, runs, reports. 0: done; 1: failed, with one line on standard error; 2: wrong usage.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Ignored: when even this cannot be printed, the exit code still tells.
            let _ = error.print();
            return ExitCode::from(error.exit_code() as u8);
        }
    };
    match set_up_and_run(cli) {
        Ok(code) => code,
        // The reader has what it wanted.
        Err(error) if output::is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", output::one_line(&told(&error)));
            ExitCode::FAILURE
        }
    }
}

fn set_up_and_run(cli: Cli) -> Result<ExitCode> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if let Command::Agent(_) = cli.command {
        // The agent's data path has threads of its own; the cores of the host are the functions'.
        builder.worker_threads(2);
    }
    let runtime = builder.enable_all().build().context("cannot start threads; is the limit of processes reached?")?;
    let spans = {
        let _inside = runtime.enter();
        Spans::of(&cli.command)?
    };
    log(&cli, &spans)?;
    let code = runtime.block_on(dispatch(cli));
    spans.stop();
    // A blocking read of standard input never ends by itself.
    runtime.shutdown_background();
    code
}

async fn dispatch(cli: Cli) -> Result<ExitCode> {
    let global = &cli.global;
    match cli.command {
        Command::Demo(args) => return demo::run(global, args).await,
        Command::Controller(args) => daemon::controller(global, *args).await?,
        Command::Agent(args) => daemon::agent(global, *args).await?,
        Command::Function(command) => functions::run(global, command).await?,
        Command::Provision(args) => provision::run(global, args).await?,
        Command::Release(args) => provision::release(global, args).await?,
        Command::Scale(args) => provision::scale(global, args).await?,
        Command::Drain(args) => drain::run(global, args).await?,
        Command::Tree(args) => nodes::tree(global, args).await?,
        Command::Explain(args) => explain::run(global, args).await?,
        Command::Nodes => nodes::list(global).await?,
        Command::Call(args) => call::run(global, args).await?,
        Command::State(command) => state_commands::run(global, command)?,
        Command::Token => state_commands::token(global)?,
        Command::Pull(args) => pull::run(global, args).await?,
        Command::Certs(command) => certs::run(global, command)?,
        Command::Keys(command) => keys::run(global, command).await?,
        Command::Secret(command) => secret::run(global, command).await?,
        Command::Image(ImageCommand::Build(args)) => image_commands::build(args, global.json).await?,
        Command::Image(ImageCommand::Inspect(args)) => image_commands::inspect(args, global.json).await?,
        Command::Registry(args) => daemon::registry(args).await?,
        Command::Sim(args) => sim_commands::sim(global, args)?,
        Command::Bench(command) => bench_commands::run(global, command).await?,
        Command::Install(args) => install::install(global, args).await?,
        Command::Uninstall(args) => install::uninstall(global, &args)?,
        Command::Tune(command) => tune::run(global, &command)?,
        Command::Lab(command) => return lab_commands::run(global, command).await,
    }
    Ok(ExitCode::SUCCESS)
}

/// An error with its causes, each said once: some errors name their cause in their own words too.
fn told(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |told, cause| match told.as_str() {
        "" => cause,
        _ if told.contains(&cause) => told,
        _ => format!("{told}: {cause}"),
    })
}

/// Without this, a word that is no level would be taken for a module's name, and nothing be logged.
fn is_level(directive: &str) -> bool {
    let levels = ["off", "error", "warn", "info", "debug", "trace"];
    directive.contains(['=', '[']) || levels.iter().any(|level| directive.trim().eq_ignore_ascii_case(level))
}

fn log(cli: &Cli, spans: &Spans) -> Result<()> {
    let daemon = matches!(cli.command, Command::Controller(_) | Command::Agent(_) | Command::Registry(_));
    let level =
        cli.global.log.as_deref().filter(|level| !level.is_empty()).unwrap_or(if daemon { "info" } else { "warn" });
    let filter = Some(level).filter(|level| level.split(',').all(is_level));
    let filter = filter.and_then(|level| EnvFilter::try_new(level).ok());
    let filter = filter.with_context(|| {
        format!("--log {level:?} is not a level; write error, warn, info, debug or trace, or module=level,…")
    })?;
    let lines = tracing_subscriber::fmt::layer().with_writer(stderr).with_ansi(stderr().is_terminal());
    let lines = if cli.global.log_json { lines.json().boxed() } else { lines.boxed() };
    tracing_subscriber::registry().with(spans.layer()).with(lines.with_filter(filter)).init();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a cause that is told twice, and one that is left out.
    #[test]
    fn causes_are_told_once() {
        let error = anyhow::anyhow!("disk full").context("cannot write x: disk full; make room").context("no lab");
        assert_eq!(told(&error), "no lab: cannot write x: disk full; make room");
        assert_eq!(told(&anyhow::anyhow!("b").context("a")), "a: b");
    }

    /// Catches a slip that silences a daemon.
    #[test]
    fn levels_are_checked() {
        assert!(["info", "WARN", "faasnet_agent=debug", "off"].into_iter().all(is_level));
        assert!(!is_level("blah") && !is_level(""));
    }
}
