//! One connection of a root's worker to the feed, from `Hello` to its end: the parent's side of the wire protocol.
//!
//! Owns the socket and the reader of the origin that fills it. Whatever it waits for, it says `Waiting` and listens to the child.
//!
//! LIFECYCLE: challenged and answered → greeted (`Welcome` with an empty path: the child is the root) → descriptor known (and sent, if asked for) → `Want` here →
//! blocks → idle until the child leaves. A refusal ends it from anywhere, at a frame boundary.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use faasnet_api::{BlockIndex, Descriptor};
use faasnet_relay::blocks::BlockSet;
use faasnet_relay::wire::{self, Challenge, Hello, Kind, Refusal, WaitingFor};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};

use super::Shared;
use super::frames::{self, FrameError, Word};
use super::plan::ReadPlan;
use super::reader::{Portion, Reader};
use crate::trust::Trust;
use crate::view::descriptor_of;

/// A connection that has not said `Hello` by then is closed.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// A root whose descriptor does not turn up by then is refused; the controller sends it with the assignment.
const DESCRIPTOR_TIMEOUT: Duration = Duration::from_secs(10);
/// After a refusal the child gets this long to read it and close.
const FAREWELL: Duration = Duration::from_millis(500);
/// Verified blocks between the origin's reader and the socket: what the child is slow to take.
const QUEUED_BLOCKS: usize = 2;
/// Words of the child that may wait.
const QUEUED_WORDS: usize = 16;

/// Why a connection ends.
#[derive(Debug)]
enum End {
    /// The child left or asked for the end.
    Left,
    /// It is told why.
    Refused(Refusal, String),
}

struct Edge {
    writer: OwnedWriteHalf,
    words: mpsc::Receiver<Word>,
    waiting: Interval,
    /// Blocks asked for out of turn, to the reader; nobody listens before `Want`.
    urgent: Option<(Arc<Descriptor>, mpsc::Sender<BlockIndex>)>,
}

/// Serves one connection until it ends.
pub(super) async fn serve(mut stream: TcpStream, shared: Arc<Shared>) {
    // Ignored: without it small frames are late, nothing worse.
    let _ = stream.set_nodelay(true);
    let challenge = Trust::challenge(shared.node);
    if stream.write_all(&challenge.encode()).await.is_err() {
        return;
    }
    let hello = match timeout(HELLO_TIMEOUT, frames::read_hello(&mut stream)).await {
        Ok(Ok(hello)) => hello,
        Ok(Err(FrameError::Broken(reason))) => return refuse_stranger(stream, &reason).await,
        Ok(Err(FrameError::Ended(_))) | Err(_) => return,
    };
    let (read, writer) = stream.into_split();
    let (want_sender, want) = oneshot::channel();
    let (word_sender, words) = mpsc::channel(QUEUED_WORDS);
    // Everything that this connection starts ends with it.
    let mut tasks = JoinSet::new();
    tasks.spawn(frames::read_child(read, want_sender, word_sender));
    let mut waiting = interval(shared.waiting_every);
    waiting.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut edge = Edge { writer, words, waiting, urgent: None };
    let Err(end) = edge.run(&hello, &challenge, want, &shared, &mut tasks).await;
    match end {
        End::Left => {
            tracing::debug!(function = hello.function.short(), stripe = hello.stripe.0, "the root left the feed")
        }
        End::Refused(refusal, reason) => {
            tracing::warn!(function = hello.function.short(), stripe = hello.stripe.0, reason, "the feed refuses");
            edge.refuse(refusal, &reason).await;
        }
    }
}

impl Edge {
    async fn run(
        &mut self,
        hello: &Hello,
        challenge: &Challenge,
        want: oneshot::Receiver<Vec<u8>>,
        shared: &Arc<Shared>,
        tasks: &mut JoinSet<()>,
    ) -> Result<std::convert::Infallible, End> {
        check(hello, challenge, shared)?;
        self.write(&wire::encode_path(Kind::Welcome, &[])).await?;
        let descriptor = self.descriptor(hello, shared).await?;
        if hello.wants_descriptor {
            self.write(&wire::encode_descriptor(&descriptor.encode())).await?;
        }
        let bitmap = self.wait(want).await?.map_err(|_| End::Left)?;
        let wanted = BlockSet::from_bitmap(descriptor.geometry().blocks(), &bitmap);
        let ranges = descriptor.origin().ranges();
        let plan = ReadPlan::new(descriptor.geometry().clone(), &wanted, hello.stripe, hello.stripes, ranges);

        let (out, mut portions) = mpsc::channel(QUEUED_BLOCKS);
        let (urgent, urgent_blocks) = mpsc::channel(QUEUED_WORDS);
        self.urgent = Some((descriptor.clone(), urgent));
        let reader = Reader::new(hello.function, hello.stripe, descriptor, plan, shared.clone());
        tasks.spawn(reader.run(out, urgent_blocks));
        while let Some(portion) = self.wait(portions.recv()).await? {
            match portion {
                Portion::Block(frame) => self.write(&frame).await?,
                Portion::Failed(reason) => return Err(End::Refused(Refusal::Other, reason)),
            }
        }
        // Everything wanted was sent; the child decides when it leaves.
        self.wait(std::future::pending()).await
    }

    async fn descriptor(&mut self, hello: &Hello, shared: &Shared) -> Result<Arc<Descriptor>, End> {
        let mut known = shared.descriptors.clone();
        let descriptor = timeout(DESCRIPTOR_TIMEOUT, descriptor_of(&mut known, hello.function, hello.image));
        match self.wait(descriptor).await? {
            Ok(Some(descriptor)) => Ok(descriptor),
            Ok(None) => Err(End::Refused(Refusal::Stopping, "the agent is stopping".into())),
            Err(_) => {
                let reason = format!("this agent does not know the descriptor of image {}", hello.image.short());
                Err(End::Refused(Refusal::UnknownFunction, reason))
            }
        }
    }

    /// Waits for `work`; meanwhile says `Waiting` and heeds the child.
    async fn wait<T>(&mut self, work: impl Future<Output = T>) -> Result<T, End> {
        tokio::pin!(work);
        loop {
            tokio::select! {
                biased;
                word = self.words.recv() => self.heed(word)?,
                done = &mut work => return Ok(done),
                _ = self.waiting.tick() => self.write(&wire::encode_waiting(WaitingFor::Origin)).await?,
            }
        }
    }

    fn heed(&self, word: Option<Word>) -> Result<(), End> {
        match word {
            None | Some(Word::Stop) => Err(End::Left),
            Some(Word::Broken(reason)) => Err(End::Refused(Refusal::Protocol, reason)),
            Some(Word::Request(chunk, in_chunk)) => {
                if let Some((descriptor, urgent)) = &self.urgent
                    && let Some(block) = descriptor.geometry().block_at(chunk, in_chunk)
                {
                    // Ignored: with the queue full the block comes in its turn.
                    let _ = urgent.try_send(block);
                }
                Ok(())
            }
        }
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), End> {
        self.writer.write_all(bytes).await.map_err(|_| End::Left)?;
        self.waiting.reset();
        Ok(())
    }

    /// Says why, and gives the child time to read it: closing with unread bytes would reset the connection.
    async fn refuse(&mut self, refusal: Refusal, reason: &str) {
        if self.write(&refusal.encode(reason)).await.is_err() || self.writer.shutdown().await.is_err() {
            return;
        }
        // Ignored: a child that does not leave in time is left.
        let _ = timeout(FAREWELL, async { while self.words.recv().await.is_some() {} }).await;
    }
}

/// Only this node's own worker may use the feed, and only for what the controller permitted.
fn check(hello: &Hello, challenge: &Challenge, shared: &Shared) -> Result<(), End> {
    let forbidden = |reason: String| Err(End::Refused(Refusal::Ticket, reason));
    if hello.node != shared.node {
        return forbidden("the feed serves its own node only".into());
    }
    Trust::check_claims(hello)
        .and_then(|()| shared.trust.check_signatures(hello, challenge))
        .or_else(|error| forbidden(error.to_string()))
}

async fn refuse_stranger(mut stream: TcpStream, reason: &str) {
    tracing::warn!(reason, "a connection to the feed does not speak the protocol");
    // Ignored: it is closed either way.
    let _ = stream.write_all(&Refusal::Protocol.encode(reason)).await;
}
