//! A client of one agent's admin endpoint (loopback HTTP).

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use reqwest::{Client, Method, Response, StatusCode};
use serde::Deserialize;

use crate::view::{NodeView, ORIGIN, UpstreamView};

/// How long a connection attempt, or a silence within an answer, may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// One agent's admin endpoint.
#[derive(Debug, Clone)]
pub struct Admin {
    base: String,
    http: Client,
}

/// A function on this node.
#[derive(Debug, Clone, Deserialize)]
pub struct Held {
    /// The image, hexadecimal.
    pub image_id: String,
    /// `waiting`, `fetching`, `complete` or `failed`.
    pub state: String,
    /// Why it failed.
    pub error: Option<String>,
    /// Length of the image.
    pub bytes_total: u64,
    /// Verified and stored.
    pub bytes_present: u64,
    bytes_received: u64,
    bytes_refetched: u64,
    bytes_reused: u64,
    bytes_live: u64,
    bytes_from_store: u64,
    bytes_copied: u64,
    mover: String,
    elapsed_us: u64,
    /// When `elapsed_us` began: microseconds since 1970; 0 while the agent does not know.
    pub assigned_at_us: u64,
    /// One per stripe.
    pub stalls: Vec<HeldStall>,
    upstreams: Vec<HeldUpstream>,
    levels: Vec<u32>,
    edges_failed: u64,
    blocks_refused: u64,
}

/// The longest time between two new blocks of one stripe.
#[derive(Debug, Clone, Deserialize)]
pub struct HeldStall {
    /// Which stripe.
    pub stripe: usize,
    /// When it began, since the assignment.
    pub from_us: u64,
    /// How long it was.
    pub longest_us: u64,
}

#[derive(Debug, Clone, Deserialize)]
struct HeldUpstream {
    stripe: u32,
    node_id: Option<String>,
    bytes: u64,
}

#[derive(Deserialize)]
struct Refusal {
    error: String,
}

impl Admin {
    /// The endpoint at `base`, such as `http://127.0.0.1:7411`.
    pub fn new(base: &str) -> Result<Self> {
        // The agent is on this host: a proxy from the environment must not get in between.
        let http = Client::builder().no_proxy().connect_timeout(PATIENCE).read_timeout(PATIENCE).build();
        Ok(Self { base: base.trim_end_matches('/').to_owned(), http: http.context("cannot make an HTTP client")? })
    }

    /// Asks the agent to get the function.
    pub async fn join(&self, tenant: &str, function: &str) -> Result<()> {
        self.send(Method::POST, &format!("{}/join", path(tenant, function))).await.map(drop)
    }

    /// The function's state here; `None` when the node does not hold it (yet).
    pub async fn held(&self, tenant: &str, function: &str) -> Result<Option<Held>> {
        let response = self.request(Method::GET, &path(tenant, function)).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let held = checked(response).await?.json().await;
        held.map(Some)
            .with_context(|| format!("the agent at {} answers in a form that this version does not know", self.base))
    }

    /// The encoded descriptor of the function's image.
    pub async fn descriptor(&self, tenant: &str, function: &str) -> Result<Vec<u8>> {
        let response = self.send(Method::GET, &format!("{}/descriptor", path(tenant, function))).await?;
        Ok(response.bytes().await.context("the descriptor broke off")?.to_vec())
    }

    /// One blob, as a stream.
    pub async fn blob(&self, tenant: &str, function: &str, digest: &str) -> Result<Response> {
        self.send(Method::GET, &format!("{}/blobs/{digest}", path(tenant, function))).await
    }

    async fn send(&self, method: Method, path: &str) -> Result<Response> {
        checked(self.request(method, path).await?).await
    }

    async fn request(&self, method: Method, path: &str) -> Result<Response> {
        self.http.request(method, format!("{}{path}", self.base)).send().await.map_err(|error| {
            let cause = crate::client::innermost(&error);
            anyhow!(
                "cannot reach the agent at {} ({cause}); is `faasnet agent` running here? Say where with --agent URL",
                self.base
            )
        })
    }
}

impl Held {
    /// Puts the agent's own counters into a row; `names` has nodes' names by hexadecimal id.
    pub fn refresh(self, node: &mut NodeView, names: &HashMap<String, String>) {
        let upstream = |upstream: HeldUpstream| UpstreamView {
            stripe: upstream.stripe,
            bytes: upstream.bytes,
            node: match upstream.node_id {
                None => ORIGIN.to_owned(),
                Some(id) => names.get(&id).cloned().unwrap_or(id),
            },
        };
        *node = NodeView {
            name: std::mem::take(&mut node.name),
            id: std::mem::take(&mut node.id),
            alive: node.alive,
            state: self.state,
            error: self.error.unwrap_or_default(),
            seconds: self.elapsed_us as f64 / 1e6,
            bytes_total: self.bytes_total,
            bytes_present: self.bytes_present,
            bytes_received: self.bytes_received,
            bytes_refetched: self.bytes_refetched,
            bytes_reused: self.bytes_reused,
            bytes_live: self.bytes_live,
            bytes_from_store: self.bytes_from_store,
            bytes_copied: self.bytes_copied,
            mover: self.mover,
            upstreams: self.upstreams.into_iter().map(upstream).collect(),
            levels: self.levels,
            edges_failed: self.edges_failed,
            blocks_refused: self.blocks_refused,
        };
    }
}

fn path(tenant: &str, function: &str) -> String {
    format!("/v1/functions/{}/{}", escape(tenant), escape(function))
}

/// Percent-encodes what may not stand in a path's segment.
fn escape(segment: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    segment
        .bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

async fn checked(response: Response) -> Result<Response> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    match response.json::<Refusal>().await {
        Ok(refusal) => bail!("{}", refusal.error),
        Err(_) => bail!("the agent answers {status}; does --agent name a FaaSNet agent's admin endpoint?"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a name that escapes from its path segment.
    #[test]
    fn names_stay_in_their_segment() {
        assert_eq!(path("default", "a/../b c"), "/v1/functions/default/a%2F..%2Fb%20c");
    }
}
