//! Our rows: the agent's own worker, with a store, a ticket, frames and maps; this file plays the control side.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use faasnet_agent::Engine as WorkerEngine;
use faasnet_agent::tuning::Tuning;
use faasnet_agent::worker::mailbox::{Assignment, FunctionReport, StripePlan, Target, WorkerCommand, WorkerEvent};
use faasnet_agent::worker::{self, WorkerConfig, WorkerHandle};
use faasnet_agent::{Trust, WorkerLink};
use faasnet_api::{KeySet, TicketKey, Verify};
use faasnet_ring::{DriverOptions, SocketOptions};
use faasnet_store::{Store, StoreOptions};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::watch;

use super::super::{Engine, Knobs, Mode};
use super::{FUNCTION, Job, KEY, Ledger, Relay, ticket};

pub(super) struct WorkerRelay {
    worker: WorkerHandle,
    runtime: Runtime,
    keeps: bool,
    // The image's files; removed when the relay ends.
    _store: Store,
    _folder: TempDir,
}

/// Longer than any run takes.
const DEADLINE: Duration = Duration::from_secs(240);
/// As an agent has by default.
const BUFFERS: usize = 24;

impl WorkerRelay {
    pub(super) fn start(job: &Job) -> Result<Self> {
        let stream = job.stream()?;
        let folder = TempDir::new_in(&job.folder).context("cannot make a folder for the store")?;
        let store =
            Store::open_with(folder.path(), StoreOptions { write: job.knobs.store_write, ..StoreOptions::default() })?;
        let image = store.open_image("bench", Arc::clone(&stream.descriptor))?;
        let keys = KeySet::new([TicketKey { public: KEY.public(), valid_until: u64::MAX }]);
        let config = WorkerConfig {
            listen: ([0, 0, 0, 0], 0).into(),
            advertise: None,
            node: job.node,
            trust: Trust::new(KEY.clone(), watch::channel(keys).1),
            feed: ([127, 0, 0, 1], 1).into(),
            engine: match job.engine {
                Engine::Auto => WorkerEngine::Auto,
                Engine::Splice => WorkerEngine::Splice,
                Engine::Registered => WorkerEngine::Registered,
                Engine::Copy => WorkerEngine::Copy,
                Engine::TokioUring => WorkerEngine::TokioUring,
                other => bail!("{other} is not an agent's engine"),
            },
            patience: Default::default(),
            buffers: job.knobs.buffers.unwrap_or(BUFFERS),
            socket_options: SocketOptions { busy_poll_us: job.knobs.busy_poll_us, ..SocketOptions::default() },
            tuning: tuning(&job.knobs),
            store_write: job.knobs.store_write,
            forward_only: job.mode == Mode::Forward,
            verify: match job.mode {
                Mode::Forward | Mode::Keep => Verify::Off,
                Mode::KeepXxh3 => Verify::Xxh3,
                Mode::KeepBlake3 => Verify::Blake3,
            },
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let worker = runtime.block_on(worker::start(config))?;
        let plan = StripePlan {
            upstream: Target::Node(job.upstream, job.origin),
            fallbacks: Vec::new(),
            children: job.children.clone(),
        };
        let assignment = Assignment {
            function: *FUNCTION,
            image: image.descriptor().id(),
            term: 1,
            epoch: 1,
            ticket: ticket(job.node, image.descriptor().id()),
            stripes: vec![plan],
            stored: Some(image),
        };
        worker.send(WorkerCommand::Assign(Box::new(assignment)))?;
        let keeps = job.mode != Mode::Forward;
        Ok(Self { worker, runtime, keeps, _store: store, _folder: folder })
    }
}

fn tuning(knobs: &Knobs) -> Tuning {
    let default = Tuning::default();
    Tuning {
        driver: DriverOptions { sqpoll_idle_ms: knobs.sqpoll_idle_ms, busy_poll_us: knobs.busy_poll_us },
        huge_pages: knobs.huge_pages.unwrap_or(default.huge_pages),
        pipe_bytes: knobs.pipe_bytes.unwrap_or(default.pipe_bytes),
        ..default
    }
}

impl Relay for WorkerRelay {
    fn port(&self) -> u16 {
        self.worker.data_address().port()
    }

    fn finish(&mut self) -> Result<Ledger> {
        let worker = &mut self.worker;
        let report = self.runtime.block_on(async { tokio::time::timeout(DEADLINE, complete(worker)).await });
        let report = report.context("the worker did not complete the image")??;
        if report.edges_failed > 0 || report.bytes_refetched > 0 {
            bail!("not a clean run: {report:?}");
        }
        // Into a buffer, unless nobody looks at what passes (only `splice` can do that); into the page cache; and what the worker sent to children from buffers.
        let looked_at = |(mover, _): &&(&str, u64)| self.keeps || *mover != "splice";
        let into_buffers: u64 = report.bytes_by_mover.iter().filter(looked_at).map(|(_, bytes)| bytes).sum();
        let into_cache = if self.keeps { report.bytes_received - report.bytes_direct } else { 0 };
        let copied_bytes = into_buffers + into_cache + report.bytes_copied;
        Ok(Ledger { upstream_bytes: report.bytes_received, copied_bytes })
    }
}

async fn complete(worker: &mut WorkerHandle) -> Result<FunctionReport> {
    loop {
        match worker.next_event().await.context("the worker ended")? {
            WorkerEvent::Completed { .. } => worker.send(WorkerCommand::Report)?,
            WorkerEvent::Reported(reports) => return reports.into_iter().next().context("a report without function"),
            other => bail!("the worker said {other:?}"),
        }
    }
}
