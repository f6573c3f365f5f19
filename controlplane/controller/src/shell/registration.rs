//! Reading an image once, for a new function or for the next image of one; the client sees how far it is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use faasnet_api::{Descriptor, v1};
use faasnet_tree::Policy;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::clients::{Replies, unexpected};
use super::owner::{Handle, status, stopping};
use crate::registrar::{Registrar, Registration};
use crate::state::{Answer, Ask, NewFunction, NewImage, function_name};

/// A client sees registration move this often.
const PROGRESS_MS: u64 = 200;

type Replier = mpsc::Sender<Result<v1::CreateFunctionProgress, Status>>;

/// A registration on its way: its names are valid, its image is not read yet.
pub(super) struct Registering {
    tenant: String,
    name: String,
    purpose: Purpose,
    registration: Registration,
}

/// What the image is for.
enum Purpose {
    Create { policy: Policy, memory_mib: u32 },
    Update,
}

impl Registering {
    pub(super) fn create(request: v1::CreateFunctionRequest) -> Result<Self, Status> {
        let policy = match request.policy.as_str() {
            "" => Policy::Twin,
            policy => policy.parse().map_err(|error| Status::invalid_argument(format!("{error}")))?,
        };
        let purpose = Purpose::Create { policy, memory_mib: request.memory_mib };
        let registration = registration(request.reference, request.platform, request.plain_http)?;
        Self::new(&request.tenant, &request.function, purpose, registration)
    }

    pub(super) fn update(request: v1::UpdateFunctionRequest) -> Result<Self, Status> {
        let registration = registration(request.reference, request.platform, request.plain_http)?;
        Self::new(&request.tenant, &request.function, Purpose::Update, registration)
    }

    fn new(tenant: &str, name: &str, purpose: Purpose, registration: Registration) -> Result<Self, Status> {
        let (tenant, name) = function_name(tenant, name).map_err(|refusal| status(&refusal))?;
        Ok(Self { tenant, name, purpose, registration })
    }

    /// Registers in a task of its own, which ends early when nobody waits for it any more.
    pub(super) fn start(
        self,
        owner: Handle,
        registrar: Arc<dyn Registrar>,
        stop: CancellationToken,
    ) -> Replies<v1::CreateFunctionProgress> {
        let (replies, stream) = mpsc::channel(16);
        tokio::spawn(async move {
            let registered = tokio::select! {
                () = stop.cancelled() => Err(stopping()),
                // Nobody waits for it any more: reading the rest of the image would be for nothing.
                () = replies.closed() => return,
                registered = self.run(&owner, registrar.as_ref(), &replies) => registered,
            };
            // Ignored: the client may be gone.
            let _ = replies.send(registered).await;
        });
        ReceiverStream::new(stream)
    }

    #[tracing::instrument(name = "register", level = "debug", skip_all, fields(tenant = self.tenant, function = self.name, image = self.registration.reference))]
    async fn run(
        self,
        owner: &Handle,
        registrar: &dyn Registrar,
        replies: &Replier,
    ) -> Result<v1::CreateFunctionProgress, Status> {
        if let Purpose::Update = self.purpose {
            // Known before the image is read for nothing.
            let (tenant, function) = (self.tenant.clone(), self.name.clone());
            owner.ask(Ask::GetFunction(v1::GetFunctionRequest { tenant, function })).await?;
        }
        let (start, told_ms) = (Instant::now(), AtomicU64::new(0));
        let progress = |bytes_read, bytes_total| {
            let now_ms = start.elapsed().as_millis() as u64;
            if now_ms >= told_ms.load(Ordering::Relaxed) + PROGRESS_MS {
                told_ms.store(now_ms, Ordering::Relaxed);
                // Ignored: a client that is slow misses a number, not the result.
                let _ = replies.try_send(Ok(v1::CreateFunctionProgress { bytes_read, bytes_total, created: None }));
            }
        };
        let (tenant, reference) = (self.tenant.clone(), self.registration.reference.clone());
        let login = match owner.ask(Ask::FindLogin { tenant, reference }).await? {
            Answer::Login(login) => login,
            other => return Err(unexpected(&other)),
        };
        let registered = registrar.register(Registration { login, ..self.registration.clone() }, &progress).await;
        let descriptor = registered.map_err(Status::failed_precondition)?;
        let image_bytes = descriptor.geometry().image_bytes();
        match owner.ask(self.ask(descriptor)).await? {
            Answer::Created(created) => Ok(v1::CreateFunctionProgress {
                bytes_read: image_bytes,
                bytes_total: image_bytes,
                created: Some(created),
            }),
            other => Err(unexpected(&other)),
        }
    }

    fn ask(self, descriptor: Descriptor) -> Ask {
        let (tenant, name) = (self.tenant, self.name);
        match self.purpose {
            Purpose::Create { policy, memory_mib } => {
                Ask::Create(Box::new(NewFunction { tenant, name, policy, memory_mib, descriptor, holder: None }))
            }
            Purpose::Update => {
                Ask::Update(Box::new(NewImage { tenant, name, descriptor, at_once: false, holder: None }))
            }
        }
    }
}

fn registration(reference: String, platform: String, plain_http: bool) -> Result<Registration, Status> {
    if reference.is_empty() {
        return Err(Status::invalid_argument("say which image the function has (reference)"));
    }
    Ok(Registration {
        reference,
        platform: Some(platform).filter(|platform| !platform.is_empty()),
        plain_http,
        login: None,
    })
}
