//! `faasnet controller` and `faasnet agent`: start, the line that says "ready", signals, the end.

use std::future::Future;
use std::io::Read;
use std::net::SocketAddr;

use anyhow::{Context, Result};
use clap::{Arg, Args, Command};
use faasnet_agent::Agent;
use faasnet_agent::budget::Budget;
use faasnet_controller::Controller;
use rustix::process::Resource;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::cli::{Global, RegistryArgs};
use crate::daemon_args::{AgentArgs, AgentSettings, ControllerArgs, ControllerSettings};
use crate::registry::{Faults, RegistryOptions, RegistryServer, TokenAuth, default_name};
use crate::{output, service, settings};

/// Takes as many descriptors as the hard limit allows: each agent, child and client is one, and shells give 1,024.
pub fn raise_open_files() {
    let mut limit = rustix::process::getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Ignored: `faasnet tune show` tells of a low limit, and whoever runs into it gets an error that names it.
    let _ = rustix::process::setrlimit(Resource::Nofile, limit);
}

/// Runs an agent until it is told to stop.
pub async fn agent(global: &Global, mut args: AgentArgs) -> Result<()> {
    raise_open_files();
    // A variable that is set to nothing is not set.
    args.settings.controller = global.controller.clone().filter(|url| !url.trim().is_empty());
    args.settings.tls_ca = global.tls_ca.clone();
    args.settings.tls_cert = global.tls_cert.clone();
    args.settings.tls_key = global.tls_key.clone();
    args.settings.cluster_secret = global.secret.clone();
    args.settings.cluster_secret_file = global.secret_file.clone();
    let config: faasnet_agent::Config = settings::load(args.common.config.as_deref(), &args.settings)?;
    if args.common.print_config {
        settings::print(
            global.json,
            &config,
            &AgentSettings::augment_args(Command::new("agent")).arg(Arg::new("tls_ca")),
        )?;
        return match global.json {
            true => Ok(()),
            false => output::line(format!("# memory of the data path: {}", Budget::of_this_host(&config))),
        };
    }
    let shutdown = shutdown(args.common.exit_with_stdin)?;
    let agent = Agent::start(config).await?;
    let mut addresses = vec![("listen", agent.data_address()), ("admin", agent.admin_address())];
    addresses.extend(agent.mirror_address().map(|address| ("mirror", address)));
    // Not at once: an agent whom the controller refuses receives nothing, so whoever waits for it must not be told to go on.
    let works = agent.ready();
    let announce = tokio::spawn(async move {
        works.await;
        ready(&addresses);
    });
    let ended = agent.run_until(shutdown).await;
    announce.abort();
    ended?;
    Ok(())
}

/// Runs the controller until it is told to stop.
pub async fn controller(global: &Global, mut args: ControllerArgs) -> Result<()> {
    raise_open_files();
    args.settings.tls_cert = global.tls_cert.clone();
    args.settings.tls_key = global.tls_key.clone();
    args.settings.cluster_secret = global.secret.clone();
    args.settings.cluster_secret_file = global.secret_file.clone();
    let config: faasnet_controller::Config = settings::load(args.common.config.as_deref(), &args.settings)?;
    if args.common.print_config {
        return settings::print(global.json, &config, &ControllerSettings::augment_args(Command::new("controller")));
    }
    let shutdown = shutdown(args.common.exit_with_stdin)?;
    let controller = Controller::start(config).await?;
    ready(&[("listen", controller.local_addr()), ("http", controller.http_addr())]);
    controller.run_until(shutdown).await?;
    Ok(())
}

/// Serves a layout as a registry until it is told to stop.
pub async fn registry(args: RegistryArgs) -> Result<()> {
    let shutdown = shutdown(args.exit_with_stdin)?;
    let token = args.login.map(|login| TokenAuth { login: Some(login), requests: args.token_requests });
    let faults = Faults { token, ..Faults::default() };
    let options = RegistryOptions { access_log: args.access_log, rate: args.rate, faults, keep_reads: false };
    let name = args.name.unwrap_or_else(|| default_name(&args.layout));
    let registry = RegistryServer::start_named(&[(name, args.layout)], args.listen, options).await?;
    ready(&[("listen", registry.local_addr())]);
    if let Some(reference) = registry.reference() {
        tracing::info!("register it with: faasnet function create NAME --plain-http --image {reference}");
    }
    shutdown.await;
    registry.stop().await;
    Ok(())
}

/// Ends with the first SIGTERM or SIGINT, or with standard input when `with_stdin` is set.
pub fn shutdown(with_stdin: bool) -> Result<impl Future<Output = ()> + Send + 'static> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot watch for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot watch for SIGINT")?;
    let input = with_stdin.then(stdin_end);
    Ok(async move {
        let input = async {
            match input {
                // Ignored: a watcher that is gone means the same as its message.
                Some(input) => drop(input.await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
            _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
            () = input => tracing::info!("standard input ended: stopping"),
        }
        service::stopping();
    })
}

/// Says on standard output, in one line, that the daemon serves and where; and says so to systemd.
pub fn ready(addresses: &[(&str, SocketAddr)]) {
    let places: Vec<_> = addresses.iter().map(|(what, address)| format!("{what}={address}")).collect();
    // Ignored: a daemon whose starter closed its standard output serves all the same.
    let _ = output::line(format!("ready {}", places.join(" ")));
    service::ready();
}

/// A thread of its own, not tokio's: a blocking read that cannot be cancelled must not hold up the runtime's end.
fn stdin_end() -> oneshot::Receiver<()> {
    let (sender, receiver) = oneshot::channel();
    std::thread::spawn(move || {
        let mut bytes = [0; 64];
        while matches!(std::io::stdin().read(&mut bytes), Ok(count) if count > 0) {}
        // Ignored: nobody waits any more when the daemon has stopped for another reason.
        let _ = sender.send(());
    });
    receiver
}
