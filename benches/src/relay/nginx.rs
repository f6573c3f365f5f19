//! nginx as the relay: proxy_cache, proxy_cache_lock, one worker process, buffers as large as ours.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use faasnet_lab::process;
use tempfile::TempDir;

use super::environment::{Cores, pin};
use super::gate::PATIENCE;
use super::network::{Network, Place};

/// A running nginx. Dropping it ends it and removes its cache.
pub(crate) struct Nginx {
    child: Child,
    port: u16,
    _folder: TempDir,
}

/// Whether there is an nginx on this machine.
pub(crate) fn is_installed() -> bool {
    program().is_some()
}

fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    folders.map(|folder| folder.join("nginx")).find(|file| file.is_file())
}

impl Nginx {
    pub(crate) fn start(network: &Network, cores: &Cores, folder: &Path, origin: SocketAddr) -> Result<Self> {
        let folder = TempDir::new_in(folder).context("cannot make a folder for nginx")?;
        let (prefix, core) = (folder.path().to_owned(), cores.relay);
        let program = program().context("nginx is not installed")?;
        let (child, port) = network.run(Place::Relay, move || {
            // Threads and processes inherit cores and namespace.
            pin(&[core])?;
            let port = TcpListener::bind(("0.0.0.0", 0))?.local_addr()?.port();
            let file = prefix.join("nginx.conf");
            fs::write(&file, configuration(&prefix, port, origin)).context("cannot write nginx's configuration")?;
            let child = Command::new(program)
                .arg("-p")
                .arg(&prefix)
                .arg("-c")
                .arg(&file)
                .args(["-e", "error.log", "-g", "daemon off;"])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .context("cannot start nginx")?;
            Ok((child, port))
        })?;
        let mut nginx = Self { child, port, _folder: folder };
        nginx.wait_listening(network)?;
        Ok(nginx)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Of the master and its worker, in hundredths of a second.
    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        let pid = self.child.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        let children = children.split_whitespace().filter_map(|pid| pid.parse().ok());
        let used = [pid].into_iter().chain(children).map(|pid| process::usage(pid).map(|usage| usage.cpu_seconds));
        used.sum::<Option<f64>>().context("nginx ended")
    }

    fn wait_listening(&mut self, network: &Network) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let address = SocketAddr::new(network.address(Place::Relay, Place::Left), self.port);
        loop {
            if network.run(Place::Left, move || Ok(TcpStream::connect(address).is_ok()))? {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                let log = fs::read_to_string(self._folder.path().join("error.log")).unwrap_or_default();
                bail!("nginx ended with {status}: {}", log.trim());
            }
            if Instant::now() > deadline {
                bail!("nginx does not listen after {PATIENCE:?}");
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id() as i32) {
            // Ignored: it may have ended by itself. A killed master would leave its worker behind.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        // Ignored: there is nothing left to do about it.
        let _ = self.child.wait();
    }
}

fn configuration(prefix: &Path, port: u16, origin: SocketAddr) -> String {
    let prefix = prefix.display();
    let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
    format!(
        "{user}
worker_processes 1;
pid {prefix}/pid;
error_log {prefix}/error.log error;
events {{ worker_connections 64; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    client_body_temp_path {prefix}/body;
    proxy_temp_path {prefix}/temp;
    fastcgi_temp_path {prefix}/fastcgi;
    uwsgi_temp_path {prefix}/uwsgi;
    scgi_temp_path {prefix}/scgi;
    proxy_cache_path {prefix}/cache levels=1 keys_zone=bench:1m max_size=200g use_temp_path=off;
    server {{
        listen 0.0.0.0:{port};
        location / {{
            proxy_pass http://{origin};
            proxy_http_version 1.1;
            proxy_buffer_size 64k;
            proxy_buffers 16 256k;
            proxy_busy_buffers_size 1m;
            proxy_cache bench;
            proxy_cache_key blob;
            proxy_cache_valid 200 1h;
            proxy_cache_lock on;
            proxy_cache_lock_age 1h;
            proxy_cache_lock_timeout 1h;
        }}
    }}
}}
"
    )
}
