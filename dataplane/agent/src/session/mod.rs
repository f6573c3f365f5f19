//! The session with the controller: one gRPC stream, opened again with back-off for as long as the agent lives.
//!
//! It carries messages and knows no state: `Control` writes the events, starting with `Attached` when the controller has said its
//! challenge, and receives the parsed orders.

pub(crate) mod commands;
pub(crate) mod events;

use std::time::Duration;

use anyhow::{Context, anyhow};
use faasnet_api::tls::{ClientFiles, chain, explain};
use faasnet_api::v1::agent_session_client::AgentSessionClient;
use faasnet_api::{ClusterSecret, FunctionId, ImageId, v1};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};

use crate::backoff::Backoff;
use crate::control::Input;
use commands::Order;

/// Events that may wait for the network; heartbeats repeat what a dropped one said.
const EVENTS: usize = 256;
/// The largest command: a descriptor and some room.
const MAX_COMMAND_BYTES: usize = faasnet_api::descriptor::MAX_DESCRIPTOR_BYTES + (1 << 20);
/// How long one try to reach the controller may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A controller that does not answer a ping for this long is gone.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// How long to wait at the end until the controller has taken the last events.
const FAREWELL: Duration = Duration::from_secs(1);

/// See the module's documentation.
pub(crate) struct Session {
    endpoint: Endpoint,
    controller: String,
    authorization: MetadataValue<Ascii>,
    inputs: mpsc::Sender<Input>,
    standing: watch::Sender<Standing>,
}

/// How the controller took this agent, as last heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// No try has ended yet.
    Unknown,
    /// It accepted the agent.
    Accepted,
    /// It cannot be reached: the agent goes on with what it last heard.
    Away,
    /// It is there and does not want this agent: a wrong secret, a wrong certificate, an id that belongs to another key.
    Refused,
}

/// Why a stream ended.
enum End {
    /// The agent stops.
    Stopped,
    /// The controller went away, or was never there.
    Lost(String),
    /// It is there and refuses this agent.
    Refused(String),
}

impl Session {
    /// A session with the controller at `controller` (`http://host:port` or `https://host:port`).
    pub(crate) fn new(
        controller: &str,
        secret: &ClusterSecret,
        tls: &ClientFiles,
        inputs: mpsc::Sender<Input>,
    ) -> anyhow::Result<Self> {
        let endpoint = Endpoint::from_shared(controller.to_owned())
            .with_context(|| format!("controller: {controller:?} is not an address of the form http://host:port"))?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true);
        let endpoint = match tls.load(controller)? {
            Some(tls) => endpoint.tls_config(tls).map_err(|error| {
                anyhow!("tls_ca, tls_cert or tls_key cannot be used ({}); is the key the certificate's?", chain(&error))
            })?,
            None => endpoint,
        };
        let mut authorization: MetadataValue<Ascii> = format!("Bearer {}", secret.rpc_token()).parse()?;
        authorization.set_sensitive(true);
        let standing = watch::channel(Standing::Unknown).0;
        Ok(Self { endpoint, controller: controller.to_owned(), authorization, inputs, standing })
    }

    /// How the controller takes this agent.
    pub(crate) fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// Keeps a stream open until `stop` is cancelled.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let mut last_reason = String::new();
        loop {
            let (standing, reason) = match self.attach(&stop, &mut backoff).await {
                End::Stopped => return,
                End::Lost(reason) => (Standing::Away, reason),
                End::Refused(reason) => (Standing::Refused, reason),
            };
            // One line per new reason: a controller that is away for an hour is said once.
            if reason != last_reason {
                let controller = &self.controller;
                match standing {
                    Standing::Refused => {
                        tracing::error!(controller, reason, "the controller refuses this agent; retrying")
                    }
                    _ => {
                        tracing::warn!(controller, reason, "no session with the controller; transfers go on, retrying")
                    }
                }
                last_reason = reason;
            }
            self.standing.send_replace(standing);
            if self.inputs.send(Input::Detached { away: standing == Standing::Away }).await.is_err() {
                return;
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(backoff.next_delay()) => {}
            }
        }
    }

    /// One stream, from connecting to its end.
    async fn attach(&self, stop: &CancellationToken, backoff: &mut Backoff) -> End {
        let (uplink, outbound) = mpsc::channel(EVENTS);
        let opened = tokio::select! {
            () = stop.cancelled() => return End::Stopped,
            opened = self.open(outbound) => opened,
        };
        let mut inbound = match opened {
            Ok(inbound) => inbound,
            Err(end) => return end,
        };
        loop {
            let message = tokio::select! {
                () = stop.cancelled() => break,
                message = inbound.message() => message,
            };
            let command = match message {
                Ok(Some(command)) => command,
                Ok(None) => return End::Lost("the controller ended the session".into()),
                Err(status) => return describe(&status),
            };
            match command.command {
                Some(v1::command::Command::Challenge(v1::Challenge { nonce })) => {
                    let attach = Input::Attach { uplink: uplink.clone(), nonce };
                    if self.inputs.send(attach).await.is_err() {
                        return End::Stopped;
                    }
                    continue;
                }
                Some(v1::command::Command::Accepted(_)) => {
                    backoff.reset();
                    self.standing.send_replace(Standing::Accepted);
                }
                _ => {}
            }
            self.deliver(command, &uplink).await;
        }
        // `Control` has let go of its end too, so the stream ends in order and the controller need not wait for a time-out.
        drop(uplink);
        let rest = async { while let Ok(Some(_)) = inbound.message().await {} };
        // Ignored: a controller that does not end its side in time is left.
        let _ = tokio::time::timeout(FAREWELL, rest).await;
        End::Stopped
    }

    async fn open(&self, outbound: mpsc::Receiver<v1::Event>) -> Result<Streaming<v1::Command>, End> {
        let channel = self.endpoint.connect().await.map_err(|error| lost(chain(&error)))?;
        let mut request = Request::new(ReceiverStream::new(outbound));
        request.metadata_mut().insert("authorization", self.authorization.clone());
        let mut client = client(channel);
        let reply = tokio::time::timeout(2 * CONNECT_TIMEOUT, client.attach(request)).await;
        let silent = || End::Lost("the controller took the connection but does not answer".into());
        Ok(reply.map_err(|_| silent())?.map_err(|status| describe(&status))?.into_inner())
    }

    /// Hands a command on; a malformed one is logged, and an assignment among them reported, so that the controller does not wait for it.
    async fn deliver(&self, command: v1::Command, uplink: &mpsc::Sender<v1::Event>) {
        let failed = match &command.command {
            Some(v1::command::Command::Assign(assign)) => {
                let function = FunctionId::try_from(&assign.function_id[..]).ok();
                function.zip(ImageId::try_from(&assign.image_id[..]).ok())
            }
            _ => None,
        };
        match Order::parse(command) {
            // Ignored: the control side ends before the session only when the agent stops.
            Ok(order) => drop(self.inputs.send(Input::Order(Box::new(order))).await),
            Err(error) => {
                tracing::error!(%error, "the controller sent a command that makes no sense");
                if let Some((function, image)) = failed {
                    let event =
                        events::image_failed(function, image, format!("the agent refused the command: {error}"));
                    // Ignored: a full or closed stream is noticed by the loop.
                    let _ = uplink.try_send(event);
                }
            }
        }
    }
}

fn client(channel: Channel) -> AgentSessionClient<Channel> {
    AgentSessionClient::new(channel).max_decoding_message_size(MAX_COMMAND_BYTES)
}

/// A status as a cause and, where there is one, a next step.
fn describe(status: &Status) -> End {
    match status.code() {
        Code::Unauthenticated | Code::PermissionDenied => End::Refused(format!(
            "the controller refused this agent ({}); check that both use the same cluster secret",
            status.message()
        )),
        Code::InvalidArgument | Code::FailedPrecondition => End::Refused(status.message().to_owned()),
        Code::Unimplemented => {
            End::Refused("the address answers, but not as a faasnet controller; check `controller`".into())
        }
        code => lost(format!("{code:?}: {}", chain(status))),
    }
}

/// The error of a connection, with what to do about it where that is known.
fn lost(text: String) -> End {
    match explain(&text) {
        Some(hint) => End::Refused(format!("{hint} ({text})")),
        None => End::Lost(text),
    }
}
