//! The service that agents attach to: one stream each, read by one task.

use std::time::Duration;

use faasnet_api::v1::agent_session_server::AgentSession;
use faasnet_api::v1::{self, Command};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::owner::{Handle, Message, Session, stopping};
use crate::state::{Input, SessionId};

/// An agent introduces itself at once or is not one.
const INTRODUCTION: Duration = Duration::from_secs(5);

type Commands = mpsc::Sender<Result<Command, Status>>;

/// See the module's documentation.
pub(crate) struct Agents {
    pub(crate) owner: Handle,
    /// Commands that may wait for one agent.
    pub(crate) queue: usize,
    pub(crate) stop: CancellationToken,
}

#[tonic::async_trait]
impl AgentSession for Agents {
    type AttachStream = ReceiverStream<Result<Command, Status>>;

    async fn attach(&self, request: Request<Streaming<v1::Event>>) -> Result<Response<Self::AttachStream>, Status> {
        let (commands, stream) = mpsc::channel(self.queue);
        let (owner, end, events) = (self.owner.clone(), self.stop.child_token(), request.into_inner());
        tokio::spawn(serve(owner, events, commands, end));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// Reads one agent's events until either side ends the stream.
async fn serve(owner: Handle, mut events: Streaming<v1::Event>, commands: Commands, end: CancellationToken) {
    let attached = tokio::select! {
        () = end.cancelled() => Err(stopping()),
        attached = introduction(&mut events) => attached,
    };
    let attached = match attached {
        Ok(attached) => attached,
        Err(status) => {
            // Ignored: whoever does not wait for the reason does not need it.
            let _ = commands.send(Err(status)).await;
            return;
        }
    };
    let id = SessionId(owner.number());
    let session = Session { commands, _end: end.clone().drop_guard() };
    if owner.send(Message::Attach { id, attached, session }).await.is_err() {
        return;
    }
    loop {
        let event = tokio::select! {
            () = end.cancelled() => break,
            event = events.message() => event,
        };
        match event {
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
