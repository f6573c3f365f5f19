//! How the controller gets a descriptor: an interface in front of the image crate, so that tests need no registry.

use std::future::Future;
use std::pin::Pin;

use faasnet_api::Descriptor;
use faasnet_image::RegisterRequest;
use faasnet_origin::Credentials;

/// What a client wants registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// A registry reference or the path of an OCI layout.
    pub reference: String,
    /// `os/arch`; `None`: the controller's own.
    pub platform: Option<String>,
    /// Speak HTTP without TLS to the registry.
    pub plain_http: bool,
    /// What the controller's secret store knows of the registry; this host's own configuration goes before it.
    pub login: Option<Credentials>,
}

/// Gets (bytes read, bytes in all).
pub type Progress<'a> = &'a (dyn Fn(u64, u64) + Send + Sync);

/// A descriptor on its way, or why there is none, for people.
pub type Registered<'a> = Pin<Box<dyn Future<Output = Result<Descriptor, String>> + Send + 'a>>;

/// The digest of a manifest on its way.
pub type Resolved<'a> = Pin<Box<dyn Future<Output = Result<String, String>> + Send + 'a>>;

/// Reads images once and makes descriptors of them.
pub trait Registrar: Send + Sync + 'static {
    /// Reads an image and checks every digest.
    fn register<'a>(&'a self, registration: Registration, progress: Progress<'a>) -> Registered<'a>;

    /// The digest of the manifest that the reference stands for now, on its platform.
    fn resolve(&self, registration: Registration) -> Resolved<'_>;
}

/// The real one.
pub struct ImageRegistrar;

impl Registrar for ImageRegistrar {
    fn register<'a>(&'a self, registration: Registration, progress: Progress<'a>) -> Registered<'a> {
        let request = request(registration);
        Box::pin(async move { faasnet_image::register(request, progress).await.map_err(|error| chain(&error)) })
    }

    fn resolve(&self, registration: Registration) -> Resolved<'_> {
        let request = request(registration);
        Box::pin(async move { faasnet_image::resolve_digest(&request).await.map_err(|error| chain(&error)) })
    }
}

fn request(registration: Registration) -> RegisterRequest {
    let Registration { reference, platform, plain_http, login } = registration;
    RegisterRequest { platform, plain_http, login, ..RegisterRequest::new(reference) }
}

/// An error and its causes in one line; a cause that its error repeats is said once.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
