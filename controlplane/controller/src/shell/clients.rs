//! The service that clients call: translates calls into asks and answers into replies.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use faasnet_api::v1;
use faasnet_api::v1::control_server::Control;
use faasnet_tree::Policy;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::owner::{Handle, Message, Reply, status, stopping};
use crate::registrar::{Registrar, Registration};
use crate::state::{Answer, Ask, Input, NewFunction, RequestId, function_name};

/// A client sees registration move this often.
const REGISTRATION_PROGRESS_MS: u64 = 200;

type Replies<T> = ReceiverStream<Result<T, Status>>;

/// See the module's documentation.
pub(crate) struct Clients {
    pub(crate) owner: Handle,
    pub(crate) registrar: Arc<dyn Registrar>,
    pub(crate) stop: CancellationToken,
}

#[tonic::async_trait]
impl Control for Clients {
    type CreateFunctionStream = Replies<v1::CreateFunctionProgress>;
    type ProvisionStream = Replies<v1::ProvisionProgress>;

    async fn create_function(
        &self,
        request: Request<v1::CreateFunctionRequest>,
    ) -> Result<Response<Self::CreateFunctionStream>, Status> {
        let creation = Creation::new(request.into_inner())?;
        let (replies, stream) = mpsc::channel(16);
        let (owner, registrar, stop) = (self.owner.clone(), self.registrar.clone(), self.stop.clone());
        tokio::spawn(async move {
            let created = tokio::select! {
                () = stop.cancelled() => Err(stopping()),
                // Nobody waits for it any more: reading the rest of the image would be for nothing.
                () = replies.closed() => return,
                created = creation.run(&owner, registrar.as_ref(), &replies) => created,
            };
            // Ignored: the client may be gone.
            let _ = replies.send(created).await;
        });
        Ok(Response::new(ReceiverStream::new(stream)))
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
        let (sender, mut progress) = watch::channel(None);
        let (id, ask) = (RequestId(self.owner.number()), Ask::Provision(request.into_inner()));
        self.owner.send(Message::Call { request: id, ask, reply: Reply::Progress(sender) }).await?;
        // The first answer tells a refusal from a provision under way.
        progress.changed().await.map_err(|_| stopping())?;
        if let Some(Err(refusal)) = &*progress.borrow() {
            return Err(status(refusal));
        }
        progress.mark_changed();
        let (replies, stream) = mpsc::channel(1);
        tokio::spawn(forward(self.owner.clone(), id, progress, replies));
        Ok(Response::new(ReceiverStream::new(stream)))
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
}

/// A function on its way: its names are valid, its image is not read yet.
struct Creation {
    tenant: String,
    name: String,
    policy: Policy,
    memory_mib: u32,
    registration: Registration,
}

impl Creation {
    fn new(request: v1::CreateFunctionRequest) -> Result<Self, Status> {
        let (tenant, name) = function_name(&request.tenant, &request.function).map_err(|refusal| status(&refusal))?;
        let policy = match request.policy.as_str() {
            "" => Policy::Twin,
            policy => policy.parse().map_err(|error| Status::invalid_argument(format!("{error}")))?,
        };
        if request.reference.is_empty() {
            return Err(Status::invalid_argument("say which image the function has (--image)"));
        }
        let registration = Registration {
            reference: request.reference,
            platform: Some(request.platform).filter(|platform| !platform.is_empty()),
            plain_http: request.plain_http,
        };
        Ok(Self { tenant, name, policy, memory_mib: request.memory_mib, registration })
    }

    async fn run(
        self,
        owner: &Handle,
        registrar: &dyn Registrar,
        replies: &mpsc::Sender<Result<v1::CreateFunctionProgress, Status>>,
    ) -> Result<v1::CreateFunctionProgress, Status> {
        let (start, told_ms) = (Instant::now(), AtomicU64::new(0));
        let progress = |bytes_read, bytes_total| {
            let now_ms = start.elapsed().as_millis() as u64;
            if now_ms >= told_ms.load(Ordering::Relaxed) + REGISTRATION_PROGRESS_MS {
                told_ms.store(now_ms, Ordering::Relaxed);
                // Ignored: a client that is slow misses a number, not the result.
                let _ = replies.try_send(Ok(v1::CreateFunctionProgress { bytes_read, bytes_total, created: None }));
            }
        };
        let descriptor = registrar.register(self.registration, &progress).await.map_err(Status::failed_precondition)?;
        let image_bytes = descriptor.geometry().image_bytes();
        let (tenant, name, policy, memory_mib) = (self.tenant, self.name, self.policy, self.memory_mib);
        let new = NewFunction { tenant, name, policy, memory_mib, descriptor };
        match owner.ask(Ask::Create(Box::new(new))).await? {
            Answer::Created(created) => Ok(v1::CreateFunctionProgress {
                bytes_read: image_bytes,
                bytes_total: image_bytes,
                created: Some(created),
            }),
            other => Err(unexpected(&other)),
        }
    }
}

/// Passes the latest progress on, as fast as the client takes it, until the last.
async fn forward(
    owner: Handle,
    request: RequestId,
    mut progress: watch::Receiver<Option<Result<v1::ProvisionProgress, crate::state::Refusal>>>,
    replies: mpsc::Sender<Result<v1::ProvisionProgress, Status>>,
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
        let last = reply.as_ref().map_or(true, |progress| progress.done);
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

fn unexpected(answer: &Answer) -> Status {
    Status::internal(format!("the controller answered something else than it was asked for: {answer:?}"))
}
