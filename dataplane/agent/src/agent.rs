//! One running agent: puts the parts together at start and takes them apart in order at the end.
//!
//! LIFECYCLE: store open → feed, admin and data ports bound → running (session, feed, admin, mirror, control, each one task) → stop: session and
//! control end, the worker finishes its writes, open images are synced.

use std::future::Future;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use faasnet_api::NodeId;
use faasnet_store::{Store, StoredImage};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::admin::{self, Admin};
use crate::arriving::Arrivals;
use crate::budget::Budget;
use crate::config::Config;
use crate::control::{Channels, Control, Handles, Kept};
use crate::feed::{self, Counters, Feed};
use crate::link::WorkerLink;
use crate::memory::Memory;
use crate::mirror::{self, Door};
use crate::node_key;
use crate::reading::Readings;
use crate::session::{Session, Standing};
use crate::trust::Trust;
use crate::view::Identity;

/// Admin responses under way at the end get this long.
const ADMIN_FAREWELL: Duration = Duration::from_secs(1);

/// What a worker must be given beside the settings.
pub(crate) struct WorkerNeeds {
    pub(crate) node: NodeId,
    pub(crate) trust: Trust,
    /// Port 0: the one that the worker's listener turns out to have.
    pub(crate) advertise: SocketAddr,
    pub(crate) feed: SocketAddr,
}

/// The parts of an agent that is bound and does not run yet, over any kind of worker.
pub(crate) struct Parts<W> {
    control: Control<W>,
    session: Session,
    feed: Feed,
    admin: Admin,
    mirror: Door,
    misses: mirror::Misses,
    shared: admin::Shared,
}

impl<W: WorkerLink> Parts<W> {
    /// Opens and binds everything. `start_worker` answers the worker and the address that it listens on.
    pub(crate) async fn start<F, S>(config: &Config, start_worker: F) -> anyhow::Result<Self>
    where
        F: FnOnce(WorkerNeeds) -> S,
        S: Future<Output = anyhow::Result<(W, SocketAddr)>>,
    {
        config.validate()?;
        let secret = config.secret()?;
        let opening = {
            let config = config.clone();
            move || {
                let store = Store::open_with(&config.store_dir, config.store())?;
                let key = node_key::open(&config.store_dir)?;
                anyhow::Ok((store, key, advertised(&config)?))
            }
        };
        let (store, key, advertise) = tokio::task::spawn_blocking(opening).await??;
        let admin = Admin::bind(config.admin).await?;
        let mirror = Door::bind(&config.mirror_listen).await?;
        let memory = Memory::open(store.path());
        let (keys, known_keys) = watch::channel(memory.keys());
        let node_key = Arc::new(key);
        let trust = Trust::new(node_key.clone(), known_keys);
        let channels = Channels::new();
        let Handles { inputs, view, descriptors } = channels.handles.clone();
        let (counters, sources) = (Arc::new(Counters::default()), Arc::<feed::Sources>::default());
        let readings = Readings::new(counters.clone());
        let feed = Feed::bind(feed::Shared {
            node: store.node_id(),
            trust: trust.clone(),
            descriptors,
            waiting_every: Duration::from_millis(config.waiting_every_ms),
            counters: counters.clone(),
            sources: sources.clone(),
            reports: inputs.clone(),
        })
        .await?;
        let session = Session::new(&config.controller, &secret, &config.tls(), inputs.clone())?;
        let needs = WorkerNeeds { node: store.node_id(), trust, advertise, feed: feed.address()? };
        let (worker, listening) = start_worker(needs)
            .await
            .with_context(|| format!("the data path did not start; it would listen on {}", config.listen))?;
        let port = if advertise.port() == 0 { listening.port() } else { advertise.port() };
        let identity = Identity {
            node: store.node_id(),
            incarnation: store.incarnation(),
            name: config.name.clone(),
            data_address: SocketAddr::new(advertise.ip(), port),
            memory_mib: config.memory_mib(),
            verify: config.verify,
        };
        let shared = admin::Shared {
            identity: identity.clone(),
            admin_address: admin.address()?,
            mirror_address: mirror.address()?,
            mirror: Arc::new(mirror::Counters::default()),
            view,
            inputs,
            feed: counters,
            budget: Budget::of_this_host(config),
            leases: worker.leases(),
        };
        let arrivals = readings.arrivals();
        let kept = Kept { node_key, store, memory, keys, sources, readings };
        let control = Control::new(identity, kept, worker, channels);
        let misses = misses(config, arrivals);
        Ok(Self { control, session, feed, admin, mirror, misses, shared })
    }

    /// Who this agent is.
    pub(crate) fn identity(&self) -> &Identity {
        &self.shared.identity
    }

    /// Where the admin endpoint listens.
    pub(crate) fn admin_address(&self) -> SocketAddr {
        self.shared.admin_address
    }

    /// Where the mirror listens, if it listens by TCP.
    pub(crate) fn mirror_address(&self) -> Option<SocketAddr> {
        self.shared.mirror_address
    }

    /// Ready when the controller has accepted this agent, or cannot be reached; never, if the agent ends before.
    pub(crate) fn ready(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut standing = self.session.standing();
        async move {
            let works = |standing: &Standing| matches!(standing, Standing::Accepted | Standing::Away);
            if standing.wait_for(works).await.is_err() {
                std::future::pending().await
            }
        }
    }

    /// Runs until `shutdown` is ready, then stops in order. An error if the worker ended before that.
    pub(crate) async fn run_until(self, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
        let Self { mut control, session, feed, admin, mirror, misses, shared } = self;
        let stop = CancellationToken::new();
        let feed = tokio::spawn(feed.run());
        let session = tokio::spawn(session.run(stop.clone()));
        let served =
            mirror.run(shared.view.clone(), shared.inputs.clone(), misses, shared.mirror.clone(), stop.clone());
        let mirror = tokio::spawn(served);
        let mut admin = tokio::spawn(admin.run(shared, stop.clone()));
        let running = tokio::select! {
            ended = control.run(&stop) => ended,
            () = shutdown => Ok(()),
        };
        tracing::info!("the agent stops");
        stop.cancel();
        let (worker, images, memory) = control.into_parts();
        // Its connections hold images open; it ends them at once.
        let mirror = mirror.await;
        // The session's own farewell is bounded.
        let session = session.await;
        memory.close().await;
        let synced = tokio::task::spawn_blocking(move || {
            worker.stop();
            finish(&images)
        });
        let synced = synced.await;
        feed.abort();
        if tokio::time::timeout(ADMIN_FAREWELL, &mut admin).await.is_err() {
            admin.abort();
        }
        running?;
        mirror.context("the mirror ended badly")?;
        session.context("the controller session ended badly")?;
        synced.context("the worker ended badly")?
    }
}

/// Syncs what is open, so that nothing has to be verified again after a crash of the host.
fn finish(images: &[Arc<StoredImage>]) -> anyhow::Result<()> {
    for image in images {
        image.finish().with_context(|| format!("image {} could not be synced", image.descriptor().id()))?;
    }
    Ok(())
}

fn misses(config: &Config, arrivals: Arrivals) -> mirror::Misses {
    mirror::Misses {
        on_miss: config.mirror_on_miss,
        register_wait: Duration::from_millis(config.mirror_register_wait_ms),
        plain_http: Arc::new(config.mirror_plain_http.clone()),
        arrivals,
    }
}

/// The address by which others reach this node; port 0 stands for the one that is bound. May ask the resolver.
fn advertised(config: &Config) -> anyhow::Result<SocketAddr> {
    if let Some(address) = config.advertise {
        return Ok(address);
    }
    if !config.listen.ip().is_unspecified() {
        return Ok(SocketAddr::new(config.listen.ip(), 0));
    }
    let ip = address_towards(config.controller_authority().unwrap_or_default()).with_context(|| {
        format!(
            "cannot tell the address by which other nodes reach this host (the route to {}); set `advertise`",
            config.controller
        )
    })?;
    Ok(SocketAddr::new(ip, 0))
}

/// The local address of the route to `authority`. Connecting a datagram socket chooses a route and sends nothing.
fn address_towards(authority: &str) -> std::io::Result<IpAddr> {
    let mut last = std::io::Error::from(std::io::ErrorKind::NotFound);
    for address in authority.to_socket_addrs()? {
        let any: SocketAddr = if address.is_ipv4() { ([0; 4], 0).into() } else { ([0; 16], 0).into() };
        match UdpSocket::bind(any).and_then(|socket| socket.connect(address).and_then(|()| socket.local_addr())) {
            Ok(local) => return Ok(local.ip()),
            Err(error) => last = error,
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches an agent that tells its neighbours an address that nobody can connect to.
    #[test]
    fn the_advertised_address_is_reachable() {
        let config = |listen: &str, advertise: Option<&str>| Config {
            listen: listen.parse().unwrap(),
            advertise: advertise.map(|address| address.parse().unwrap()),
            ..Config::default()
        };
        let text = |config: Config| advertised(&config).unwrap().to_string();
        assert_eq!(text(config("0.0.0.0:0", None)), "127.0.0.1:0");
        assert_eq!(text(config("127.0.0.7:9", None)), "127.0.0.7:0");
        assert_eq!(text(config("0.0.0.0:9", Some("10.1.2.3:0"))), "10.1.2.3:0");
        assert_eq!(text(config("0.0.0.0:9", Some("10.1.2.3:7"))), "10.1.2.3:7");
        let nowhere = Config { controller: "http://no.such.host.invalid:1".into(), ..config("0.0.0.0:0", None) };
        assert!(format!("{:#}", advertised(&nowhere).unwrap_err()).contains("advertise"));
    }
}
