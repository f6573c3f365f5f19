//! Reads the wanted blocks of one stripe from the origin, in order, verified, as frames that are ready to be sent.
//!
//! One request at a time, the next one asked for before the last one ends. What passes (cuts, stalls, 429, 5xx, a refused connection) is
//! waited out for as long as the edge lives; wrong bytes are read once more; anything else ends the edge with a reason.

use std::sync::Arc;
use std::time::{Duration, Instant};

use faasnet_api::{BlockIndex, Descriptor, FunctionId, Stripe, Verify};
use faasnet_origin::{BlobStream, Error, Source};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::frames::BlockFrame;
use super::plan::{ReadPlan, Span};
use super::{Counters, Shared};
use crate::backoff::Backoff;
use crate::control::Input;

/// The next request is made when the current one has about so much left as arrives until the answer comes. Earlier, and two answers share
/// the line: the second's bytes lie about while the children wait for the first's. Later, and the line is idle for a round trip.
const MIN_AHEAD_BYTES: u64 = 64 << 10;
const MAX_AHEAD_BYTES: u64 = faasnet_api::CHUNK_BYTES as u64;
/// The longest wait that an origin may ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);

/// What the edge gets.
#[derive(Debug)]
pub(super) enum Portion {
    /// A verified block, header and all.
    Block(Vec<u8>),
    /// Nothing more will come, and why.
    Failed(String),
}

/// Why a span could not be read to its end.
enum Trouble {
    /// The edge is gone.
    Closed,
    /// The bytes are not those of the image.
    Wrong(BlockIndex),
    /// The origin's fault, or the network's.
    Origin(Error),
}

/// Why reading ends early.
enum Stop {
    Closed,
    Failed(String),
}

/// A span whose request is under way.
struct Ahead {
    span: Span,
    opening: Opening,
}

/// A request under way: the answer, and how long it took to come.
type Opening = AbortOnDropHandle<(Result<BlobStream, Error>, Duration)>;

/// See the module's documentation.
pub(super) struct Reader {
    function: FunctionId,
    stripe: Stripe,
    descriptor: Arc<Descriptor>,
    plan: ReadPlan,
    shared: Arc<Shared>,
    ahead: Option<Ahead>,
    backoff: Backoff,
    /// What the last answer took to come.
    round_trip: Duration,
}

impl Reader {
    pub(super) fn new(
        function: FunctionId,
        stripe: Stripe,
        descriptor: Arc<Descriptor>,
        plan: ReadPlan,
        shared: Arc<Shared>,
    ) -> Self {
        let backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
        Self { function, stripe, descriptor, plan, shared, ahead: None, backoff, round_trip: Duration::from_millis(50) }
    }

    /// Reads everything that is wanted into `out`; blocks from `urgent` come first.
    pub(super) async fn run(mut self, out: mpsc::Sender<Portion>, mut urgent: mpsc::Receiver<BlockIndex>) {
        if let Err(Stop::Failed(reason)) = self.read_all(&out, &mut urgent).await {
            // Ignored: the edge has ended, nobody is left to tell.
            let _ = out.send(Portion::Failed(reason)).await;
        }
    }

    async fn read_all(
        &mut self,
        out: &mpsc::Sender<Portion>,
        urgent: &mut mpsc::Receiver<BlockIndex>,
    ) -> Result<(), Stop> {
        let source = self.source().await?;
        self.look_ahead(&source, urgent);
        while let Some(ahead) = self.ahead.take() {
            self.read_span(&source, ahead, out, urgent).await?;
            self.look_ahead(&source, urgent);
        }
        Ok(())
    }

    async fn source(&self) -> Result<Source, Stop> {
        let (shared, descriptor, function) = (self.shared.clone(), self.descriptor.clone(), self.function);
        let opened = tokio::task::spawn_blocking(move || shared.sources.get(function, descriptor.origin())).await;
        let source = opened.map_err(|error| Stop::Failed(format!("opening the origin did not end: {error}")))?;
        source.map_err(|error| Stop::Failed(error.to_string()))
    }

    /// Makes the next request, unless one is made already.
    fn look_ahead(&mut self, source: &Source, urgent: &mut mpsc::Receiver<BlockIndex>) {
        while let Ok(block) = urgent.try_recv() {
            self.plan.hurry(block);
        }
        if self.ahead.is_none()
            && let Some(span) = self.plan.next_span()
        {
            let opening = self.request(source, &span, span.bytes.start);
            self.ahead = Some(Ahead { span, opening });
        }
    }

    fn request(&self, source: &Source, span: &Span, start: u64) -> Opening {
        Counters::add(&self.shared.counters.requests, 1);
        let (source, range) = (source.clone(), start..span.bytes.end);
        let digest = self.descriptor.entries()[span.entry].digest.clone();
        AbortOnDropHandle::new(tokio::spawn(async move {
            let asked = Instant::now();
            let answer = source.open_blob(&digest, Some(range)).await;
            (answer, asked.elapsed())
        }))
    }

    /// Reads one span to its end, however often that takes.
    async fn read_span(
        &mut self,
        source: &Source,
        ahead: Ahead,
        out: &mpsc::Sender<Portion>,
        urgent: &mut mpsc::Receiver<BlockIndex>,
    ) -> Result<(), Stop> {
        let Ahead { span, mut opening } = ahead;
        let mut sent = 0;
        let mut wrong_once = false;
        loop {
            let (answer, round_trip) = finish_opening(opening).await;
            self.round_trip = round_trip;
            let trouble = match answer {
                Ok(stream) => self.read_stream(stream, &span, &mut sent, source, out, urgent).await,
                Err(error) => Err(Trouble::Origin(error)),
            };
            match trouble {
                Ok(()) => return Ok(()),
                Err(Trouble::Closed) => return Err(Stop::Closed),
                Err(Trouble::Wrong(block)) if wrong_once => return Err(self.accuse(&span, block).await),
                Err(Trouble::Wrong(_)) => wrong_once = true,
                Err(Trouble::Origin(error)) => self.wait_out(error).await?,
            }
            Counters::add(&self.shared.counters.retries, 1);
            opening = self.request(source, &span, self.offset(span.blocks[sent]));
        }
    }

    /// Reads blocks from the span's `sent`-th on, as far as the stream goes.
    async fn read_stream(
        &mut self,
        mut stream: BlobStream,
        span: &Span,
        sent: &mut usize,
        source: &Source,
        out: &mpsc::Sender<Portion>,
        urgent: &mut mpsc::Receiver<BlockIndex>,
    ) -> Result<(), Trouble> {
        let mut bytes = bytes::Bytes::new();
        let (began, start) = (Instant::now(), self.offset(span.blocks[*sent]));
        let mut offset = start;
        while let Some(&block) = span.blocks.get(*sent) {
            let place = self
                .descriptor
                .geometry()
                .place(block)
                .unwrap_or_else(|| unreachable!("spans hold blocks of the image"));
            let mut frame = BlockFrame::new(place.chunk, place.in_chunk, place.len);
            while !frame.is_full() {
                if bytes.is_empty() {
                    bytes = self.next_bytes(&mut stream).await?;
                }
                if span.bytes.end - offset <= self.ahead_bytes(offset - start, began.elapsed()) {
                    self.look_ahead(source, urgent);
                }
                // Between the blocks of a span lies what this stripe does not want, if the origin knows no ranges.
                let gap = place.entry_offset.saturating_sub(offset).min(bytes.len() as u64);
                let rest = frame.fill(&bytes[gap as usize..]).len();
                let used = bytes.len() - rest;
                offset += used as u64;
                bytes = bytes.slice(used..);
            }
            // Here the image enters the cluster, where others may check less or nothing: BLAKE3 whatever this node's own mode is.
            if !self.descriptor.verify(block, frame.payload(), Verify::Blake3) {
                Counters::add(&self.shared.counters.wrong_blocks, 1);
                return Err(Trouble::Wrong(block));
            }
            self.backoff.reset();
            out.send(Portion::Block(frame.into_bytes())).await.map_err(|_| Trouble::Closed)?;
            *sent += 1;
        }
        Ok(())
    }

    /// What arrives while the next answer is awaited, judged by what the present request brought so far.
    fn ahead_bytes(&self, received: u64, elapsed: Duration) -> u64 {
        let rate = received as f64 / elapsed.as_secs_f64().max(1e-6);
        ((rate * self.round_trip.as_secs_f64()) as u64).clamp(MIN_AHEAD_BYTES, MAX_AHEAD_BYTES)
    }

    async fn next_bytes(&self, stream: &mut BlobStream) -> Result<bytes::Bytes, Trouble> {
        let cut = || Error::Cut { url: "the blob".into(), received: 0, cause: "the body ended early".into() };
        let bytes = stream.next_bytes().await.and_then(|bytes| bytes.ok_or_else(cut)).map_err(Trouble::Origin)?;
        Counters::add(&self.shared.counters.bytes, bytes.len() as u64);
        Ok(bytes)
    }

    /// Waits before the next try, or gives up on what will not pass.
    async fn wait_out(&mut self, error: Error) -> Result<(), Stop> {
        if !error.is_transient() {
            return Err(Stop::Failed(error.to_string()));
        }
        let asked = error.retry_after().unwrap_or_default().min(MAX_RETRY_AFTER);
        let wait = self.backoff.next_delay().max(asked);
        let (function, wait_ms) = (self.function.short(), wait.as_millis() as u64);
        tracing::warn!(function, stripe = self.stripe.0, %error, wait_ms, "reading the origin failed; trying again");
        tokio::time::sleep(wait).await;
        Ok(())
    }

    /// The origin sent wrong bytes twice: tells the controller, and the edge why it ends.
    async fn accuse(&self, span: &Span, block: BlockIndex) -> Stop {
        let digest = &self.descriptor.entries()[span.entry].digest;
        let reason = format!(
            "the origin sends wrong bytes: block {} of blob {digest} failed verification twice; check the registry's storage, or push and \
             register the image again",
            block.0
        );
        let report = Input::OriginLied { function: self.function, stripe: self.stripe, reason: reason.clone() };
        // Ignored: the agent is stopping.
        let _ = self.shared.reports.send(report).await;
        Stop::Failed(reason)
    }

    fn offset(&self, block: BlockIndex) -> u64 {
        self.descriptor.geometry().place(block).map_or(0, |place| place.entry_offset)
    }
}

async fn finish_opening(opening: Opening) -> (Result<BlobStream, Error>, Duration) {
    let lost = |error| (Err(Error::Setting(format!("a request to the origin did not end: {error}"))), Duration::ZERO);
    opening.await.unwrap_or_else(lost)
}
