//! The processes of one delivery: daemons, a client per host behind a gate, the clock. Dropping it ends every process on the lab's hosts.
//!
//! Processes are born in their host's namespace: one that had to enter it first could be missed by whoever ends all that are in there.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use super::{BLOB, Delivery, Job};
use crate::error::Result;
use crate::network::Host;
use crate::sampler::Sampler;
use crate::{LabError, enter, leftovers, process, tail};

/// How long a daemon may take until it listens: varnish compiles C first, and all hosts share the machine's cores.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// What a client prints when its host has everything.
const DONE: &str = "done";

/// The processes.
pub(super) struct Stage<'a> {
    job: &'a Job<'a>,
    daemons: Vec<(Host, Child)>,
    clients: Vec<Client>,
}

struct Client {
    host: Host,
    file: PathBuf,
    log: PathBuf,
    process: Child,
}

/// A client's output has a line, or ended.
struct Heard {
    client: usize,
    when: Instant,
    line: Option<String>,
}

impl<'a> Stage<'a> {
    pub(super) fn new(job: &'a Job<'a>) -> Self {
        Self { job, daemons: Vec::new(), clients: Vec::new() }
    }

    /// A folder of `host` for `purpose`.
    pub(super) fn folder(&self, host: &Host, purpose: &str) -> Result<PathBuf> {
        let folder = self.job.folder.join(&host.name).join(purpose);
        fs::create_dir_all(&folder).map_err(LabError::io(format!("cannot make {}", folder.display())))?;
        Ok(folder)
    }

    /// The folder into which `host` receives the file, under its own name.
    pub(super) fn target(&self, host: &Host) -> Result<PathBuf> {
        self.folder(host, "got")
    }

    /// Writes a configuration file.
    pub(super) fn write(path: &std::path::Path, text: &str) -> Result<()> {
        fs::write(path, text).map_err(LabError::io(format!("cannot write {}", path.display())))
    }

    /// Starts a daemon on `host`.
    pub(super) fn daemon<A: Into<OsString>>(
        &mut self,
        host: &Host,
        program: &str,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<()> {
        let (mut command, _) = self.command(host, program)?;
        command.args(arguments.into_iter().map(Into::into)).stdin(Stdio::null());
        let daemon = self.spawn(host, command)?;
        self.daemons.push((host.clone(), daemon));
        Ok(())
    }

    /// Starts the client of `host`: a shell script that begins its work with the first line of its input, prints `done` on a line of its own
    /// when the file is whole, and lives on until its input ends, so that its CPU time can be read.
    pub(super) fn client<A: Into<OsString>>(
        &mut self,
        host: &Host,
        script: &str,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<()> {
        let file = self.target(host)?.join(BLOB);
        let (mut command, log) = self.command(host, "sh")?;
        command.arg("-c").arg(script).arg("client").args(arguments.into_iter().map(Into::into));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let process = self.spawn(host, command)?;
        self.clients.push(Client { host: host.clone(), file, log, process });
        Ok(())
    }

    /// Waits until something on `host` accepts connections there; an error at once when a daemon of that host ended.
    pub(super) fn wait_listening(&mut self, host: &Host, port: u16) -> Result<()> {
        let (address, deadline) = (SocketAddr::new(host.address.into(), port), Instant::now() + START_PATIENCE);
        while !enter::run(&host.namespace, move || TcpStream::connect(address).is_ok())? {
            let mut daemons = self.daemons.iter_mut().filter(|(at, _)| at == host);
            // One that cannot be asked is not known to have ended.
            let ended = daemons.any(|(_, daemon)| daemon.try_wait().is_ok_and(|status| status.is_some()));
            if ended || Instant::now() > deadline {
                let what = format!("nothing listens on {address} of {}: {}", host.name, self.logs(host));
                return Err(LabError::Late(what));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Opens the gate for all clients and waits for them.
    pub(super) fn race(mut self) -> Result<Delivery> {
        let sampler = Sampler::start(self.job.network)?;
        let heard = self.listen()?;
        let before = self.cpu_seconds();
        let begin = Instant::now();
        for client in &mut self.clients {
            let gate = client.process.stdin.as_mut();
            let opened = gate.map_or(Ok(()), |gate| gate.write_all(b"go\n"));
            opened.map_err(LabError::io(format!(
                "the client on {} is gone: {}",
                client.host.name,
                tail(&client.log)
            )))?;
        }
        let seconds = self.wait(&heard, begin)?;
        let after = self.cpu_seconds();
        let cpu = after.iter().map(|(pid, used)| used - before.get(pid).copied().unwrap_or(0.0)).sum();
        let recording = sampler.stop()?;
        let files = self.clients.iter().map(|client| client.file.clone()).collect();
        Ok(Delivery { seconds, files, cpu_seconds: cpu, origin_bytes: recording.total(0).sent })
    }

    /// A thread per client reads its output.
    fn listen(&mut self) -> Result<Receiver<Heard>> {
        let (sender, heard) = mpsc::channel();
        for (number, client) in self.clients.iter_mut().enumerate() {
            let Some(output) = client.process.stdout.take() else { continue };
            let sender = sender.clone();
            let listen = move || {
                let lines = BufReader::new(output).lines().map_while(std::io::Result::ok).map(Some);
                for line in lines.chain([None]) {
                    // Ignored: nobody listens any more.
                    let _ = sender.send(Heard { client: number, when: Instant::now(), line });
                }
            };
            let thread = std::thread::Builder::new().name("lab".into()).spawn(listen);
            thread.map_err(LabError::io("cannot start a thread; is the limit of processes reached?"))?;
        }
        Ok(heard)
    }

    fn wait(&self, heard: &Receiver<Heard>, begin: Instant) -> Result<Vec<f64>> {
        let deadline = begin + self.job.patience;
        let mut seconds = vec![None; self.clients.len()];
        while seconds.contains(&None) {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(heard) = heard.recv_timeout(left) else {
                let done = seconds.iter().flatten().count();
                let late = &self.clients[seconds.iter().position(Option::is_none).unwrap_or(0)];
                return Err(LabError::Late(format!(
                    "after {:.0} s only {done} of {} hosts are done; {} is not: {}",
                    begin.elapsed().as_secs_f64(),
                    seconds.len(),
                    late.host.name,
                    self.logs(&late.host)
                )));
            };
            match heard.line {
                Some(line) if line.trim() == DONE => {
                    seconds[heard.client].get_or_insert(heard.when.duration_since(begin).as_secs_f64());
                }
                None if seconds[heard.client].is_none() => {
                    let host = &self.clients[heard.client].host;
                    return Err(LabError::Late(format!("the client on {} ended: {}", host.name, self.logs(host))));
                }
                _ => {}
            }
        }
        Ok(seconds.into_iter().flatten().collect())
    }

    /// CPU time so far of every process on the agents' hosts, that of their ended children included.
    fn cpu_seconds(&self) -> BTreeMap<u32, f64> {
        let namespaces: Vec<_> = self.job.network.agents().iter().map(|host| host.namespace.clone()).collect();
        let pids = leftovers::processes(&namespaces).into_iter();
        pids.filter_map(|pid| Some((pid, process::cpu_seconds_with_children(pid)?))).collect()
    }

    fn spawn(&self, host: &Host, mut command: Command) -> Result<Child> {
        let brake = self.job.brake.clone();
        let what = format!("cannot start {} on {}", command.get_program().display(), host.name);
        enter::run(&host.namespace, move || brake.unless_pulled(|| command.spawn()))?.map_err(LabError::io(what))
    }

    /// A command for `host` whose messages go to a log.
    fn command(&self, host: &Host, program: &str) -> Result<(Command, PathBuf)> {
        let missing = || LabError::Invalid(format!("{program} is not installed"));
        let path = super::program::path(program).ok_or_else(missing)?;
        let log = self.folder(host, "log")?.join(path.file_name().unwrap_or_default());
        let open = |log: &PathBuf| File::options().append(true).create(true).open(log);
        let file = open(&log).and_then(|file| Ok((file.try_clone()?, file)));
        let (out, errors) = file.map_err(LabError::io(format!("cannot write {}", log.display())))?;
        let mut command = Command::new(path);
        command.stdout(out).stderr(errors);
        Ok((command, log))
    }

    /// The last lines of what the host's processes said.
    fn logs(&self, host: &Host) -> String {
        let entries = fs::read_dir(self.job.folder.join(&host.name).join("log")).into_iter().flatten().flatten();
        let said = entries.map(|entry| tail(&entry.path())).filter(|text| !text.is_empty());
        let said: Vec<_> = said.collect();
        if said.is_empty() { "its log is empty".into() } else { said.join("; ") }
    }
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        // Daemons have children of their own, so not only those that were started here.
        let ended = leftovers::namespaces(self.job.network.id()).and_then(|all| leftovers::end_processes(&all));
        if ended.is_err() {
            // What cannot be ended now is found by the audit of left-overs; waiting for it would take for ever.
            return;
        }
        let clients = self.clients.iter_mut().map(|client| &mut client.process);
        for child in self.daemons.iter_mut().map(|(_, daemon)| daemon).chain(clients) {
            // Ignored: it was killed, only its entry in the process table remains.
            let _ = child.wait();
        }
    }
}
