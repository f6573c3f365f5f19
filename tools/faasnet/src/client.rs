//! The connection of a client command to the controller: address, bearer token, and errors that say what to do.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use faasnet_api::tls::{self, ClientFiles, chain};
use faasnet_api::v1::control_client::ControlClient;
use faasnet_api::{ClusterSecret, v1};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

/// Where the controller is when nobody says otherwise.
pub const DEFAULT_CONTROLLER: &str = "http://127.0.0.1:7400";
/// How long a connection attempt may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A connected client.
pub type Control = ControlClient<InterceptedService<Channel, Bearer>>;

/// Adds the cluster's bearer token to each call, when there is one.
#[derive(Clone)]
pub struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

/// Connects to the controller at `url` without TLS.
pub async fn connect(url: &str, secret: Option<&[u8]>) -> Result<Control> {
    connect_with(url, secret, &ClientFiles::default()).await
}

/// Connects to the controller at `url`, with TLS if that is `https://`.
pub async fn connect_with(url: &str, secret: Option<&[u8]>, tls: &ClientFiles) -> Result<Control> {
    let url = &with_scheme(url);
    let mut endpoint = Endpoint::from_shared(url.clone())
        .with_context(|| format!("{url:?} is not a URL; write --controller http://HOST:PORT"))?
        .connect_timeout(CONNECT_TIMEOUT);
    if let Some(tls) = tls.load(url)? {
        endpoint = endpoint.tls_config(tls).map_err(|error| {
            anyhow!(
                "--tls-ca, --tls-cert or --tls-key cannot be used ({}); is the key the certificate's?",
                chain(&error)
            )
        })?;
    }
    let channel = endpoint.connect().await.map_err(|error| match tls::explain(&chain(&error)) {
        Some(hint) => anyhow!("no connection to the controller at {url}: {hint}"),
        None => anyhow!(
            "cannot reach the controller at {url} ({}); start one with `faasnet controller`, or say where it is with --controller URL",
            innermost(&error)
        ),
    })?;
    let token = secret.map(|secret| format!("Bearer {}", ClusterSecret::new(secret).rpc_token()).parse());
    let token = token.transpose().context("the cluster's token is not a header value")?;
    Ok(ControlClient::with_interceptor(channel, Bearer(token)))
}

/// What a refused call says to people: the controller's message, and what to do about it where that is known.
pub fn explain(status: Status) -> anyhow::Error {
    let message = status.message();
    if let Some(hint) = tls::explain(&chain(&status)) {
        return anyhow!("no connection to the controller: {hint}");
    }
    match status.code() {
        Code::Unauthenticated | Code::PermissionDenied => {
            anyhow!("{message}; give the cluster's secret with --secret-file FILE (or FAASNET_SECRET_FILE)")
        }
        Code::Internal if message.contains("invalid compression flag") => {
            anyhow!(
                "what answers is no gRPC; the controller's gRPC port is 7400 by default, 7401 is its page and HTTP API"
            )
        }
        Code::Unavailable | Code::Unknown => {
            anyhow!(
                "the controller went away ({}); is `faasnet controller` still running? If it speaks TLS, write https:// and give --tls-ca",
                innermost(&status)
            )
        }
        _ => anyhow!("{message}"),
    }
}

/// The secret given as text or as a file (without its trailing line end).
pub fn read_secret(text: Option<&str>, file: Option<&Path>) -> Result<Option<Vec<u8>>> {
    if let Some(text) = text {
        return Ok(Some(text.as_bytes().to_vec()));
    }
    let Some(file) = file else { return Ok(None) };
    let bytes = std::fs::read(file)
        .with_context(|| format!("cannot read the secret from {}; is --secret-file right?", file.display()))?;
    let secret = bytes.trim_ascii();
    if secret.is_empty() {
        bail!("{} holds no secret; write at least 16 random characters into it", file.display());
    }
    Ok(Some(secret.to_vec()))
}

/// The nodes' names by id, for commands that show neighbours.
pub async fn node_names(control: &mut Control) -> Result<crate::view::Names> {
    let reply = control.list_nodes(v1::ListNodesRequest {}).await.map_err(explain)?.into_inner();
    Ok(crate::view::names(reply.nodes.iter().map(|node| (&node.node_id, &node.name))))
}

fn with_scheme(url: &str) -> String {
    if url.contains("://") { url.to_owned() } else { format!("http://{url}") }
}

/// The innermost cause: "Connection refused" rather than "transport error".
pub(crate) fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    crate::output::one_line(&error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a secret file whose trailing line end becomes part of the secret, and an empty one that is taken.
    #[test]
    fn the_secret_of_a_file_has_no_line_end() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "0123456789abcdef\n").unwrap();
        assert_eq!(read_secret(None, Some(file.path())).unwrap().unwrap(), b"0123456789abcdef");
        std::fs::write(file.path(), "\n").unwrap();
        assert!(read_secret(None, Some(file.path())).unwrap_err().to_string().contains("16 random"));
    }

    /// Catches an error for the most common mistake that does not say what to do.
    #[tokio::test]
    async fn an_unreachable_controller_says_how_to_start_one() {
        let error = connect("127.0.0.1:1", None).await.map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("127.0.0.1:1") && error.contains("faasnet controller"), "{error}");
        assert!(error.contains("refused"), "{error}");
    }
}
