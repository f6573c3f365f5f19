//! The relay as a process of its own: both ends of the conversation between the bench and it, one line of JSON each.
//!
//! A process, because then its CPU time is exactly the relay's, with every thread that the kernel or a runtime starts for it.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use faasnet_api::ticket::LIFETIME_SECONDS;
use faasnet_api::{Claims, FunctionId, ImageId, NodeId, SigningKey, TenantId, Ticket};
use rustix::time::ClockId;
use serde::{Deserialize, Serialize};

use super::network::{Network, Place};
use super::stream::Stream;
use super::{Engine, Knobs, Mode, environment};

mod copy;
mod direct;
mod with_tokio;
mod worker;

/// The bench's function.
pub(crate) static FUNCTION: LazyLock<FunctionId> = LazyLock::new(|| FunctionId::new("bench", "relay"));
/// The key of its controller and of all its nodes, which protects nothing.
pub(crate) static KEY: LazyLock<Arc<SigningKey>> = LazyLock::new(|| Arc::new(SigningKey::from_seed([1; 32])));
/// The origin as a parent.
pub(crate) const ORIGIN_NODE: NodeId = NodeId([1; 16]);
/// The relay.
pub(crate) const RELAY_NODE: NodeId = NodeId([4; 16]);
/// The children.
pub(crate) const CHILD_NODES: [NodeId; 2] = [NodeId([2; 16]), NodeId([3; 16])];

/// The permission of `node` to fetch the bench's image.
pub(crate) fn ticket(node: NodeId, image: ImageId) -> Ticket {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    KEY.issue(Claims {
        expires: now + LIFETIME_SECONDS,
        key: KEY.public().id(),
        node,
        node_key: KEY.public(),
        tenant: TenantId::new("bench"),
        function: *FUNCTION,
        image,
    })
}

/// What a relay process is to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) engine: Engine,
    pub(crate) mode: Mode,
    pub(crate) core: usize,
    pub(crate) gib: f64,
    pub(crate) origin: SocketAddr,
    /// Who this relay is, and who is around it.
    pub(crate) node: NodeId,
    pub(crate) upstream: NodeId,
    pub(crate) children: Vec<NodeId>,
    pub(crate) folder: PathBuf,
    pub(crate) knobs: Knobs,
}

impl Job {
    /// What flows.
    fn stream(&self) -> Result<Stream> {
        Stream::new(self.gib, self.knobs.block_bytes)
    }
}

/// What a relay counted.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Ledger {
    /// From the origin.
    pub(crate) upstream_bytes: u64,
    /// Between kernel and user memory, in both directions, and into the page cache.
    pub(crate) copied_bytes: u64,
}

/// What the process says.
#[derive(Debug, Serialize, Deserialize)]
enum Word {
    /// Children may connect to this port.
    Ready(u16),
    /// CPU seconds so far.
    Cpu(f64),
    /// Everything is passed on and kept.
    Done { cpu_s: f64, ledger: Ledger },
    /// It cannot go on.
    Failed(String),
}

/// A relay inside its process.
trait Relay {
    /// Where children connect to.
    fn port(&self) -> u16;
    /// Waits until everything is passed on and kept. What was kept is removed when the relay is dropped: removing a file of a GiB takes a
    /// file system that discards what it frees longer than a tenth of a second, and is no part of relaying. Called once.
    fn finish(&mut self) -> Result<Ledger>;
}

/// The whole life of a relay process; `job` is its only argument. Ends when its standard input does.
pub fn main(job: &str) -> Result<()> {
    match serve(job) {
        Ok(()) => Ok(()),
        Err(error) => {
            say(&Word::Failed(format!("{error:#}")))?;
            Err(error)
        }
    }
}

fn serve(job: &str) -> Result<()> {
    let job: Job = serde_json::from_str(job).context("this command is started by `faasnet bench relay` only")?;
    environment::pin(&[job.core])?;
    let mut relay: Box<dyn Relay> = match job.engine {
        ours if ours.is_ours() => Box::new(worker::WorkerRelay::start(&job)?),
        Engine::Copy256K => Box::new(copy::CopyRelay::start(&job, 256 << 10)?),
        Engine::Copy1M => Box::new(copy::CopyRelay::start(&job, 1 << 20)?),
        Engine::Tokio => Box::new(with_tokio::TokioRelay::start(&job)?),
        Engine::Direct => Box::new(direct::DirectRelay::start(&job)?),
        other => bail!("{other} is a process of its own"),
    };
    say(&Word::Ready(relay.port()))?;
    for line in std::io::stdin().lines() {
        match line?.as_str() {
            "cpu" => say(&Word::Cpu(cpu_seconds()))?,
            _ => {
                let ledger = relay.finish()?;
                return say(&Word::Done { cpu_s: cpu_seconds(), ledger });
            }
        }
    }
    Ok(())
}

fn say(word: &Word) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(word)?)?;
    Ok(out.flush()?)
}

fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// The bench's hold on a relay process. Dropping it ends the process.
pub(crate) struct RelayProcess {
    child: Child,
    input: ChildStdin,
    words: Receiver<String>,
    port: u16,
    /// It has said all that it will, and is removing what it kept.
    is_done: bool,
}

/// Longer than any run takes.
const DEADLINE: Duration = Duration::from_secs(300);
/// Longer than a relay takes to remove what it kept.
const REMOVAL: Duration = Duration::from_secs(20);

impl RelayProcess {
    pub(crate) fn start(network: &Network, place: Place, job: &Job) -> Result<Self> {
        let job = serde_json::to_string(job)?;
        // The process inherits the namespace of the thread that starts it.
        let mut child = network.run(place, move || {
            let program = std::env::current_exe().context("cannot find this program's file")?;
            let mut command = Command::new(program);
            command.args(["bench", "relay-process", &job]).stdin(Stdio::piped()).stdout(Stdio::piped());
            command.spawn().context("cannot start the relay's process")
        })?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else { bail!("no pipes") };
        let (sender, words) = channel();
        std::thread::spawn(move || {
            let lines = BufReader::new(output).lines();
            lines.map_while(Result::ok).take_while(|line| sender.send(line.clone()).is_ok()).for_each(drop);
        });
        let mut process = Self { child, input, words, port: 0, is_done: false };
        match process.hear()? {
            Word::Ready(port) => process.port = port,
            other => bail!("the relay's process said {other:?}"),
        }
        Ok(process)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn cpu_seconds(&mut self) -> Result<f64> {
        writeln!(self.input, "cpu").context("the relay's process ended")?;
        match self.hear()? {
            Word::Cpu(seconds) => Ok(seconds),
            other => bail!("the relay's process said {other:?}"),
        }
    }

    /// Waits until everything is passed on and kept.
    pub(crate) fn finish(&mut self) -> Result<(f64, Ledger)> {
        writeln!(self.input, "finish").context("the relay's process ended")?;
        match self.hear()? {
            Word::Done { cpu_s, ledger } => {
                self.is_done = true;
                Ok((cpu_s, ledger))
            }
            other => bail!("the relay's process said {other:?}"),
        }
    }

    fn hear(&self) -> Result<Word> {
        let line = self.words.recv_timeout(DEADLINE).context("the relay's process ended or hangs")?;
        match serde_json::from_str(&line).with_context(|| format!("the relay's process said {line:?}"))? {
            Word::Failed(reason) => bail!("the relay failed: {reason}"),
            word => Ok(word),
        }
    }
}

impl Drop for RelayProcess {
    fn drop(&mut self) {
        // Its words end when it does.
        while self.is_done && self.words.recv_timeout(REMOVAL).is_ok() {}
        // Ignored: it may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
