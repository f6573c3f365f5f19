//! The service that clients call: translates calls into asks and answers into replies.

use std::sync::Arc;

use faasnet_api::keys::random_bytes;
use faasnet_api::v1;
use faasnet_api::v1::control_server::Control;
use faasnet_origin::Credentials;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tracing::{Instrument as _, Span, debug_span};

use super::owner::{Handle, Latest, Message, Reply, status, stopping};
use super::registration::Registering;
use super::watching;
use crate::registrar::Registrar;
use crate::state::{Answer, Ask, Input, NewSecret, RequestId, SCHEMA};

/// An answer in several messages.
pub(crate) type Replies<T> = ReceiverStream<Result<T, Status>>;

/// See the module's documentation.
#[derive(Clone)]
pub(crate) struct Clients {
    pub(crate) owner: Handle,
    pub(crate) registrar: Arc<dyn Registrar>,
    pub(crate) stop: CancellationToken,
}

#[tonic::async_trait]
impl Control for Clients {
    type CreateFunctionStream = Replies<v1::CreateFunctionProgress>;
    type UpdateFunctionStream = Replies<v1::CreateFunctionProgress>;
    type WatchStream = Replies<v1::WatchReply>;
    type ProvisionStream = Replies<v1::ProvisionProgress>;
    type ScaleStream = Replies<v1::ProvisionProgress>;
    type DrainStream = Replies<v1::DrainProgress>;

    async fn create_function(
        &self,
        request: Request<v1::CreateFunctionRequest>,
    ) -> Result<Response<Self::CreateFunctionStream>, Status> {
        Ok(Response::new(self.register(Registering::create(request.into_inner())?)))
    }

    async fn update_function(
        &self,
        request: Request<v1::UpdateFunctionRequest>,
    ) -> Result<Response<Self::UpdateFunctionStream>, Status> {
        Ok(Response::new(self.register(Registering::update(request.into_inner())?)))
    }

    async fn get_function(
        &self,
        request: Request<v1::GetFunctionRequest>,
    ) -> Result<Response<v1::FunctionInfo>, Status> {
        match self.owner.ask(Ask::GetFunction(request.into_inner())).await? {
            Answer::Function(function) => Ok(Response::new(function)),
            other => Err(unexpected(&other)),
        }
    }

    async fn remove_function(
        &self,
        request: Request<v1::RemoveFunctionRequest>,
    ) -> Result<Response<v1::RemoveFunctionReply>, Status> {
        match self.owner.ask(Ask::Remove(request.into_inner())).await? {
            Answer::Removed => Ok(Response::new(v1::RemoveFunctionReply {})),
            other => Err(unexpected(&other)),
        }
    }

    async fn list_functions(
        &self,
        _: Request<v1::ListFunctionsRequest>,
    ) -> Result<Response<v1::ListFunctionsReply>, Status> {
        match self.owner.ask(Ask::ListFunctions).await? {
            Answer::Functions(functions) => Ok(Response::new(v1::ListFunctionsReply { functions })),
            other => Err(unexpected(&other)),
        }
    }

    async fn provision(
        &self,
        request: Request<v1::ProvisionRequest>,
    ) -> Result<Response<Self::ProvisionStream>, Status> {
        let request = request.into_inner();
        let span = debug_span!("provision", tenant = request.tenant, function = request.function);
        self.follow(span, Ask::Provision(request), Reply::Progress, |progress| progress.done).await
    }

    async fn scale(&self, request: Request<v1::ScaleRequest>) -> Result<Response<Self::ScaleStream>, Status> {
        let request = request.into_inner();
        let span = debug_span!("scale", tenant = request.tenant, function = request.function);
        self.follow(span, Ask::Scale(request), Reply::Progress, |progress| progress.done).await
    }

    async fn drain(&self, request: Request<v1::DrainRequest>) -> Result<Response<Self::DrainStream>, Status> {
        let request = request.into_inner();
        let span = debug_span!("drain", node = request.node);
        self.follow(span, Ask::Drain(request), Reply::Drain, |progress| progress.done).await
    }

    async fn release(&self, request: Request<v1::ReleaseRequest>) -> Result<Response<v1::ReleaseReply>, Status> {
        match self.owner.ask(Ask::Release(request.into_inner())).await? {
            Answer::Released(released) => Ok(Response::new(v1::ReleaseReply { released })),
            other => Err(unexpected(&other)),
        }
    }

    async fn get_tree(&self, request: Request<v1::GetTreeRequest>) -> Result<Response<v1::GetTreeReply>, Status> {
        match self.owner.ask(Ask::GetTree(request.into_inner())).await? {
            Answer::Tree(tree) => Ok(Response::new(tree)),
            other => Err(unexpected(&other)),
        }
    }

    async fn list_nodes(&self, _: Request<v1::ListNodesRequest>) -> Result<Response<v1::ListNodesReply>, Status> {
        match self.owner.ask(Ask::ListNodes).await? {
            Answer::Nodes(nodes) => Ok(Response::new(nodes)),
            other => Err(unexpected(&other)),
        }
    }

    async fn list_keys(&self, _: Request<v1::ListKeysRequest>) -> Result<Response<v1::ListKeysReply>, Status> {
        self.keys(Ask::ListKeys).await
    }

    async fn rotate_keys(&self, _: Request<v1::RotateKeysRequest>) -> Result<Response<v1::ListKeysReply>, Status> {
        self.keys(Ask::RotateKeys { seed: random_bytes() }).await
    }

    async fn revoke_key(&self, request: Request<v1::RevokeKeyRequest>) -> Result<Response<v1::ListKeysReply>, Status> {
        self.keys(Ask::RevokeKey { key_id: request.into_inner().key_id, seed: random_bytes() }).await
    }

    async fn set_secret(&self, request: Request<v1::SetSecretRequest>) -> Result<Response<v1::SetSecretReply>, Status> {
        let v1::SetSecretRequest { tenant, registry, username, password } = request.into_inner();
        let credentials = Credentials { username, password };
        self.owner.ask(Ask::SetSecret(Box::new(NewSecret { tenant, registry, credentials }))).await?;
        Ok(Response::new(v1::SetSecretReply {}))
    }

    async fn list_secrets(&self, _: Request<v1::ListSecretsRequest>) -> Result<Response<v1::ListSecretsReply>, Status> {
        match self.owner.ask(Ask::ListSecrets).await? {
            Answer::Secrets(secrets) => Ok(Response::new(secrets)),
            other => Err(unexpected(&other)),
        }
    }

    async fn remove_secret(
        &self,
        request: Request<v1::RemoveSecretRequest>,
    ) -> Result<Response<v1::RemoveSecretReply>, Status> {
        let v1::RemoveSecretRequest { tenant, registry } = request.into_inner();
        self.owner.ask(Ask::RemoveSecret { tenant, registry }).await?;
        Ok(Response::new(v1::RemoveSecretReply {}))
    }

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Ok(Response::new(watching::start(self.owner.clone(), request.into_inner(), self.stop.clone())))
    }

    async fn get_version(&self, _: Request<v1::GetVersionRequest>) -> Result<Response<v1::GetVersionReply>, Status> {
        match self.owner.ask(Ask::GetTerm).await? {
            Answer::Term(term) => {
                let version = env!("CARGO_PKG_VERSION").into();
                Ok(Response::new(v1::GetVersionReply { version, term, schema: SCHEMA }))
            }
            other => Err(unexpected(&other)),
        }
    }
}

impl Clients {
    async fn keys(&self, ask: Ask) -> Result<Response<v1::ListKeysReply>, Status> {
        match self.owner.ask(ask).await? {
            Answer::Keys(keys) => Ok(Response::new(keys)),
            other => Err(unexpected(&other)),
        }
    }

    /// Asks for something that takes its time, and passes on how it stands; `span` ends with it.
    async fn follow<P: Clone + Send + Sync + 'static>(
        &self,
        span: Span,
        ask: Ask,
        reply: fn(watch::Sender<Latest<P>>) -> Reply,
        is_last: fn(&P) -> bool,
    ) -> Result<Response<Replies<P>>, Status> {
        let (sender, mut progress) = watch::channel(None);
        let id = RequestId(self.owner.number());
        self.owner.send(Message::Call { request: id, ask, reply: reply(sender) }).await?;
        // The first answer tells a refusal from something under way.
        progress.changed().await.map_err(|_| stopping())?;
        if let Some(Err(refusal)) = &*progress.borrow() {
            return Err(status(refusal));
        }
        progress.mark_changed();
        let (replies, stream) = mpsc::channel(1);
        tokio::spawn(forward(self.owner.clone(), id, progress, is_last, replies).instrument(span));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    fn register(&self, registering: Registering) -> Replies<v1::CreateFunctionProgress> {
        registering.start(self.owner.clone(), self.registrar.clone(), self.stop.clone())
    }
}

/// Passes the latest progress on, as fast as the client takes it, until the last.
async fn forward<P: Clone>(
    owner: Handle,
    request: RequestId,
    mut progress: watch::Receiver<Latest<P>>,
    is_last: fn(&P) -> bool,
    replies: mpsc::Sender<Result<P, Status>>,
) {
    loop {
        let changed = tokio::select! {
            () = replies.closed() => break,
            changed = progress.changed() => changed,
        };
        let latest = match changed {
            Ok(()) => progress.borrow_and_update().clone(),
            Err(_) => {
                // Ignored: the client may be gone.
                let _ = replies.send(Err(stopping())).await;
                return;
            }
        };
        let reply = match latest {
            Some(reply) => reply.map_err(|refusal| status(&refusal)),
            None => continue,
        };
        let last = reply.as_ref().map_or(true, is_last);
        if replies.send(reply).await.is_err() {
            break;
        }
        if last {
            return;
        }
    }
    // Ignored: without an owner nobody wants to know.
    let _ = owner.send(Message::Input(Input::Abandoned { request })).await;
}

pub(crate) fn unexpected(answer: &Answer) -> Status {
    Status::internal(format!("the controller answered something else than it was asked for: {answer:?}"))
}
