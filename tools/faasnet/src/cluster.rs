//! A cluster on one machine: a controller and agents as child processes, each with a folder and a loopback address of its own.
//!
//! Used by the demo and by the end-to-end tests. A process started here never outlives this one: it watches a pipe that ends with
//! us, however we end. Not for production: addresses are loopback only.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::timeout;

use crate::client::{self, Control};
use crate::nodes;

/// How long a daemon may take to say that it is ready.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// How long a daemon may take to stop after its standard input ended; then it is killed.
const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// What a cluster is made of.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// The `faasnet` program.
    pub exe: PathBuf,
    /// Where folders and logs go; must exist.
    pub dir: PathBuf,
    /// How many agents: `n1`, `n2`, …
    pub agents: usize,
    /// Agent `n1` has the next address after this one, and so on; all must be the loopback interface's.
    pub first_address: IpAddr,
    /// More arguments for every agent.
    pub agent_args: Vec<String>,
    /// More arguments for the controller.
    pub controller_args: Vec<String>,
}

/// A running cluster. Dropping it kills the processes; [`Cluster::stop`] ends them in order.
#[derive(Debug)]
pub struct Cluster {
    options: ClusterOptions,
    secret: String,
    /// The control plane.
    pub controller: Daemon,
    /// The nodes: `agents[0]` is `n1`.
    pub agents: Vec<Daemon>,
}

/// One daemon process.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: Child,
    // Kept apart from `child`: tokio closes a child's standard input before it waits for it, and the daemon would stop.
    input: Option<ChildStdin>,
    addresses: HashMap<String, SocketAddr>,
    log: PathBuf,
}

impl Cluster {
    /// Starts the controller, then all agents at once, and waits until the controller counts them as live.
    pub async fn start(options: ClusterOptions) -> Result<Self> {
        let secret = random_secret()?;
        write_secret(&secret_file(&options.dir), &secret)?;
        let controller = start_controller(&options, "127.0.0.1:0", "127.0.0.1:0").await?;
        let mut cluster = Self { options, secret, controller, agents: Vec::new() };
        let starts = (0..cluster.options.agents).map(|index| cluster.start_agent(index));
        cluster.agents = futures_util::future::try_join_all(starts).await?;
        cluster.wait_live(cluster.options.agents).await?;
        Ok(cluster)
    }

    /// A cluster of this program for a measurement: in a folder of its own, with the settings that daemons have by default.
    pub(crate) async fn start_fresh(agents: usize, first_address: IpAddr) -> Result<(Self, TempDir)> {
        let dir = tempfile::tempdir().context("cannot make a folder for the daemons")?;
        let options = ClusterOptions {
            exe: std::env::current_exe().context("cannot find this program's own file")?,
            dir: dir.path().to_owned(),
            agents,
            first_address,
            agent_args: Vec::new(),
            controller_args: Vec::new(),
        };
        Ok((Self::start(options).await?, dir))
    }

    /// The controller's address for clients.
    pub fn url(&self) -> String {
        format!("http://{}", self.controller.address("listen"))
    }

    /// The controller's live page and JSON API.
    pub fn http_url(&self) -> String {
        format!("http://{}", self.controller.address("http"))
    }

    /// A connection to the controller.
    pub async fn control(&self) -> Result<Control> {
        client::connect(&self.url(), Some(self.secret.as_bytes())).await
    }

    /// The file that holds the cluster's secret.
    pub fn secret_file(&self) -> PathBuf {
        secret_file(&self.options.dir)
    }

    /// The store of agent `index`.
    pub fn store(&self, index: usize) -> PathBuf {
        self.options.dir.join(agent_name(index))
    }

    /// The names of the agents.
    pub fn names(&self) -> Vec<String> {
        (0..self.options.agents).map(agent_name).collect()
    }

    /// Waits until `count` nodes are live.
    pub async fn wait_live(&self, count: usize) -> Result<()> {
        let mut control = self.control().await?;
        let all = async {
            loop {
                let live = nodes::hosts(&mut control).await?.iter().filter(|host| host.state == "live").count();
                if live >= count {
                    return Ok::<_, anyhow::Error>(());
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(START_DEADLINE, all).await.map_err(|_| {
            anyhow!("not all of {count} agents reached the controller; see the logs in {}", self.options.dir.display())
        })?
    }

    /// Starts agent `index` again, after it was killed or stopped, with the store that it had.
    pub async fn restart_agent(&mut self, index: usize) -> Result<()> {
        self.agents[index] = self.start_agent(index).await?;
        Ok(())
    }

    /// Starts the controller again on the addresses that it had.
    pub async fn restart_controller(&mut self) -> Result<()> {
        let [listen, http] = ["listen", "http"].map(|what| self.controller.address(what).to_string());
        self.controller = start_controller(&self.options, &listen, &http).await?;
        Ok(())
    }

    /// Waits until any of the processes ends, which none should, and says which.
    pub async fn first_death(&mut self) -> anyhow::Error {
        let daemons = self.agents.iter_mut().chain([&mut self.controller]);
        let deaths = daemons.map(|daemon| {
            Box::pin(async move {
                let status = daemon.wait().await.map_or_else(|error| error.to_string(), |status| status.to_string());
                anyhow!("{} died ({status}): {}", daemon.name, last_line(&daemon.log))
            })
        });
        futures_util::future::select_all(deaths).await.0
    }

    /// Ends all processes: asks, waits, and kills those that do not listen. Nothing runs any more when it returns.
    pub async fn stop(&mut self) -> Result<()> {
        let agents = self.agents.iter_mut().map(Daemon::stop);
        let stopped = futures_util::future::join_all(agents).await;
        let controller = self.controller.stop().await;
        stopped.into_iter().chain([controller]).collect::<Result<Vec<_>>>().map(|_| ())
    }

    async fn start_agent(&self, index: usize) -> Result<Daemon> {
        let name = agent_name(index);
        let ip = nth_address(self.options.first_address, index + 1)?;
        let mut command = Command::new(&self.options.exe);
        command.arg("agent").args(["--name", &name]).arg("--controller").arg(self.url());
        command.arg("--secret-file").arg(self.secret_file()).arg("--store-dir").arg(self.store(index));
        command.arg("--listen").arg(SocketAddr::new(ip, 0).to_string()).args(["--admin", "127.0.0.1:0"]);
        command.args(["--mirror-listen", "127.0.0.1:0"]);
        command.args(&self.options.agent_args);
        Daemon::start(name, command, &self.options.dir).await
    }
}

impl Daemon {
    /// Starts `command` and waits for its `ready` line.
    pub async fn start(name: String, mut command: Command, dir: &Path) -> Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let errors = File::options().create(true).append(true).open(&log);
        let errors = errors.with_context(|| format!("cannot write the log {}", log.display()))?;
        for (variable, _) in std::env::vars_os() {
            // Settings that are meant for this process must not reach the daemons.
            if variable.as_encoded_bytes().starts_with(b"FAASNET_") {
                command.env_remove(variable);
            }
        }
        // A process group of its own: Ctrl-C on the terminal is for us, and we stop the daemons in order.
        command.arg("--exit-with-stdin").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors);
        let mut child =
            command.process_group(0).kill_on_drop(true).spawn().with_context(|| format!("cannot start {name}"))?;
        let output = child.stdout.take().context("a daemon has no standard output")?;
        let mut line = String::new();
        let read = timeout(START_DEADLINE, BufReader::new(output).read_line(&mut line)).await;
        let addresses = parse_ready(&line);
        match (read, addresses) {
            (Ok(Ok(_)), Some(addresses)) => Ok(Self { input: child.stdin.take(), name, child, addresses, log }),
            (Err(_), _) => bail!("{name} did not get ready within {START_DEADLINE:?}: {}", last_line(&log)),
            _ => bail!("{name} did not start: {}", last_line(&log)),
        }
    }

    /// The daemon's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// An address from the `ready` line; asking for one that is not there is a programming error.
    pub fn address(&self, what: &str) -> SocketAddr {
        match self.addresses.get(what) {
            Some(address) => *address,
            None => unreachable!("{} has no address called {what}", self.name),
        }
    }

    /// The process id; `None` after the process ended.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Where its standard error goes.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// SIGKILL, and wait.
    pub async fn kill(&mut self) -> Result<()> {
        self.child.kill().await.with_context(|| format!("cannot kill {}", self.name))
    }

    /// Waits until the process ends by itself.
    pub async fn wait(&mut self) -> Result<ExitStatus> {
        self.child.wait().await.with_context(|| format!("cannot wait for {}", self.name))
    }

    /// How the process ended, if it has, with the end of its log.
    pub fn death(&mut self) -> Option<String> {
        // One that cannot be asked is not known to have ended.
        let status = self.child.try_wait().ok().flatten()?;
        Some(format!("{} ended by itself ({status}): {}", self.name, self.last_words()))
    }

    /// Ends the process through its standard input; kills it when it does not listen. Fine when it ended before.
    pub async fn stop(&mut self) -> Result<()> {
        self.end().await.map(|wrong| wrong.iter().for_each(|wrong| tracing::warn!("{wrong}")))
    }

    /// Like [`Daemon::stop`]; what was wrong with its end, if anything: it had ended before, did not listen, or says that it failed.
    pub async fn end(&mut self) -> Result<Option<String>> {
        if let Some(death) = self.death() {
            return Ok(Some(death));
        }
        drop(self.input.take());
        match timeout(STOP_DEADLINE, self.child.wait()).await {
            Ok(status) => {
                let status = status.with_context(|| format!("cannot wait for {}", self.name))?;
                let wrong = || format!("{} was asked to stop and failed ({status}): {}", self.name, self.last_words());
                Ok((!status.success()).then(wrong))
            }
            Err(_) => {
                self.kill().await?;
                let (name, words) = (&self.name, self.last_words());
                Ok(Some(format!("{name} did not stop within {STOP_DEADLINE:?} and was killed: {words}")))
            }
        }
    }

    fn last_words(&self) -> String {
        let words = faasnet_lab::tail(&self.log);
        if words.is_empty() { "its log is empty".into() } else { words }
    }
}

/// Agents are called `n1`, `n2`, …
pub fn agent_name(index: usize) -> String {
    format!("n{}", index + 1)
}

async fn start_controller(options: &ClusterOptions, listen: &str, http: &str) -> Result<Daemon> {
    let mut command = Command::new(&options.exe);
    command.arg("controller").args(["--listen", listen, "--http", http]);
    command.arg("--secret-file").arg(secret_file(&options.dir)).arg("--state-dir").arg(options.dir.join("controller"));
    command.args(&options.controller_args);
    Daemon::start("controller".into(), command, &options.dir).await
}

fn nth_address(first: IpAddr, count: usize) -> Result<IpAddr> {
    let next = match first {
        IpAddr::V4(first) => first.to_bits().checked_add(count as u32).map(|bits| IpAddr::V4(bits.into())),
        IpAddr::V6(first) => first.to_bits().checked_add(count as u128).map(|bits| IpAddr::V6(bits.into())),
    };
    let next = next.with_context(|| format!("there is no address {count} after {first}"))?;
    ensure!(next.is_loopback(), "{next} is not a loopback address; take a lower first address");
    Ok(next)
}

/// Reads `ready listen=127.0.0.1:4123 admin=127.0.0.1:4124`.
fn parse_ready(line: &str) -> Option<HashMap<String, SocketAddr>> {
    let pairs = line.trim().strip_prefix("ready")?.split_whitespace();
    pairs
        .map(|pair| pair.split_once('=').and_then(|(what, place)| Some((what.to_owned(), place.parse().ok()?))))
        .collect()
}

pub(crate) fn last_line(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    // Below an error about an argument there is only how to call the program.
    let line = text.lines().rev().find(|line| line.starts_with("error: "));
    let line = line.or_else(|| text.lines().rev().find(|line| !line.trim().is_empty()));
    line.map_or_else(
        || format!("its log {} is empty", log.display()),
        |line| line.trim_start_matches("error: ").to_owned(),
    )
}

fn secret_file(dir: &Path) -> PathBuf {
    dir.join("secret")
}

pub(crate) fn write_secret(path: &Path, secret: &str) -> Result<()> {
    let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(secret.as_bytes()))
        .with_context(|| format!("cannot write {}", path.display()))
}

pub(crate) fn random_secret() -> Result<String> {
    let mut bytes = [0; 32];
    File::open("/dev/urandom")
        .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut bytes))
        .context("cannot read random bytes from /dev/urandom")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a change of the ready line that only one side knows of.
    #[test]
    fn the_ready_line_is_read() {
        let addresses = parse_ready("ready listen=127.77.0.2:41 admin=127.0.0.1:42\n").unwrap();
        assert_eq!(addresses["admin"], "127.0.0.1:42".parse().unwrap());
        assert!(parse_ready("").is_none() && parse_ready("ready listen=x").is_none());
    }

    /// Catches agents that would listen on an address which is not this machine's own loopback.
    #[test]
    fn addresses_follow_one_another_on_loopback() {
        let first = "127.77.0.1".parse().unwrap();
        assert_eq!(nth_address(first, 1).unwrap().to_string(), "127.77.0.2");
        assert_eq!(nth_address(first, 255).unwrap().to_string(), "127.77.1.0");
        assert!(nth_address("127.255.255.255".parse().unwrap(), 1).is_err());
    }

    /// Catches a program that does not get ready and takes the demo with it without a word.
    #[tokio::test]
    async fn a_daemon_that_fails_shows_its_last_words() {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "printf 'error: port taken; choose another\n\nFor more, try --help.\n' >&2; exit 1"]);
        let error = Daemon::start("n1".into(), command, dir.path()).await.unwrap_err().to_string();
        assert_eq!(error, "n1 did not start: port taken; choose another");
    }

    /// Catches a daemon whose death, or failure at the end, passes for an orderly stop.
    #[tokio::test]
    async fn an_end_is_told_by_its_status() {
        let dir = tempfile::tempdir().unwrap();
        let start = async |name: &str, rest: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", &format!("echo ready; echo 'last word' >&2; {rest}")]);
            Daemon::start(name.into(), command, dir.path()).await.unwrap()
        };
        assert_eq!(start("n1", "read wait; exit 0").await.end().await.unwrap(), None);
        let failed = start("n2", "read wait; exit 3").await.end().await.unwrap().unwrap();
        assert!(
            failed.contains("n2 was asked to stop") && failed.contains("3") && failed.contains("last word"),
            "{failed}"
        );
        let mut killed = start("n3", "kill -9 $$").await;
        killed.wait().await.unwrap();
        let death = killed.death().unwrap();
        assert!(death.contains("n3 ended by itself") && death.contains("9"), "{death}");
        assert_eq!(killed.end().await.unwrap(), Some(death));
    }
}
