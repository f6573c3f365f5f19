//! The service that agents attach to: one stream each, read by one task.
//!
//! Whoever attaches proves here that it holds the key that it names: the state machine then only has to know whose key that is.

use std::sync::Arc;
use std::time::Duration;

use faasnet_api::keys::random_bytes;
use faasnet_api::v1::agent_session_server::AgentSession;
use faasnet_api::v1::{self, Command};
use faasnet_api::{Introduction, NodeId, PublicKey};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::owner::{Handle, Message, Session, stopping};
use super::wishes::{Wisher, Wishes};
use crate::state::{Input, SessionId};

/// An agent introduces itself at once or is not one.
const INTRODUCTION: Duration = Duration::from_secs(5);

/// What an agent has to sign is never said twice.
const NONCE_BYTES: usize = 32;
/// Images that one agent may wait for; more are not answered.
const MAX_WISHES: usize = 64;

type Commands = mpsc::Sender<Result<Command, Status>>;

/// See the module's documentation.
pub(crate) struct Agents {
    pub(crate) owner: Handle,
    /// Commands that may wait for one agent.
    pub(crate) queue: usize,
    pub(crate) wishes: Wishes,
    pub(crate) stop: CancellationToken,
}

#[tonic::async_trait]
impl AgentSession for Agents {
    type AttachStream = ReceiverStream<Result<Command, Status>>;

    async fn attach(&self, request: Request<Streaming<v1::Event>>) -> Result<Response<Self::AttachStream>, Status> {
        let (commands, stream) = mpsc::channel(self.queue);
        let (owner, end, events) = (self.owner.clone(), self.stop.child_token(), request.into_inner());
        tokio::spawn(serve(owner, events, commands, self.wishes.clone(), end));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// Reads one agent's events until either side ends the stream.
async fn serve(
    owner: Handle,
    mut events: Streaming<v1::Event>,
    commands: Commands,
    wishes: Wishes,
    end: CancellationToken,
) {
    let nonce: [u8; NONCE_BYTES] = random_bytes();
    let challenge = v1::Challenge { nonce: nonce.to_vec() };
    let challenge = Command { command: Some(v1::command::Command::Challenge(challenge)) };
    if commands.send(Ok(challenge)).await.is_err() {
        return;
    }
    let attached = tokio::select! {
        () = end.cancelled() => Err(stopping()),
        attached = introduction(&mut events) => attached,
    };
    let attached = attached.and_then(|attached| prove(&attached, &nonce).map(|()| attached));
    let attached = match attached {
        Ok(attached) => attached,
        Err(status) => {
            tracing::warn!("an agent is turned away: {}", status.message());
            // Ignored: whoever does not wait for the reason does not need it.
            let _ = commands.send(Err(status)).await;
            return;
        }
    };
    let id = SessionId(owner.number());
    let wisher = Arc::new(Wisher { session: id, commands: commands.downgrade(), ended: end.clone() });
    let session = Session { commands, _end: end.clone().drop_guard() };
    if owner.send(Message::Attach { id, attached, session }).await.is_err() {
        return;
    }
    let pending = Arc::new(Semaphore::new(MAX_WISHES));
    loop {
        let event = tokio::select! {
            () = end.cancelled() => break,
            event = events.message() => event,
        };
        match event {
            // Takes its time: other events of the agent go on meanwhile.
            Ok(Some(v1::Event { event: Some(v1::event::Event::ImageWanted(wanted)) })) if wanted.register => {
                let Ok(place) = pending.clone().try_acquire_owned() else {
                    // Too many at once: answered, by what is known without the registry. The next pull asks again.
                    wishes.have_answered(&wisher, wanted).await;
                    continue;
                };
                let (wishes, wisher) = (wishes.clone(), wisher.clone());
                tokio::spawn(async move {
                    wishes.fulfil(&wisher, wanted).await;
                    drop(place);
                });
            }
            Ok(Some(v1::Event { event: Some(v1::event::Event::ImageRead(read)) })) => {
                wishes.readings().heard(id, read).await;
            }
            Ok(Some(v1::Event { event: Some(event) })) => {
                if owner.send(Message::Input(Input::Heard { session: id, event })).await.is_err() {
                    return;
                }
            }
            // A kind of event that only a later version knows.
            Ok(Some(v1::Event { event: None })) => {}
            Ok(None) | Err(_) => break,
        }
    }
    wishes.readings().ended(id);
    // Ignored: without an owner nobody wants to know.
    let _ = owner.send(Message::Input(Input::Detached { session: id })).await;
}

async fn introduction(events: &mut Streaming<v1::Event>) -> Result<Box<v1::Attached>, Status> {
    let first = timeout(INTRODUCTION, events.message())
        .await
        .map_err(|_| Status::deadline_exceeded("the first event, Attached, did not come"))??;
    match first.and_then(|event| event.event) {
        Some(v1::event::Event::Attached(attached)) => Ok(Box::new(attached)),
        _ => Err(Status::invalid_argument("the first event of a stream is Attached")),
    }
}

/// Whether the agent holds the key that it names.
fn prove(attached: &v1::Attached, nonce: &[u8]) -> Result<(), Status> {
    let node = NodeId::try_from(&attached.node_id[..]).map_err(|error| Status::invalid_argument(error.to_string()))?;
    let key = PublicKey::try_from(&attached.public_key[..]).map_err(|error| {
        Status::invalid_argument(format!("{error}; tickets are bound to an agent's key: upgrade the agent"))
    })?;
    if attached.proof.is_empty() {
        return Err(Status::failed_precondition(format!(
            "the agent of node {node} does not prove that it holds the node's key; upgrade the agent"
        )));
    }
    let (incarnation, data_address) = (attached.incarnation, attached.data_address.as_str());
    let said = Introduction { nonce, node, incarnation, data_address };
    match key.verifies(&said.message(), &attached.proof) {
        true => Ok(()),
        false => Err(Status::failed_precondition(format!(
            "whoever attaches as node {node} does not hold that node's key; if its store was copied from another host, empty it so \
             that the agent makes an id and a key of its own"
        ))),
    }
}
