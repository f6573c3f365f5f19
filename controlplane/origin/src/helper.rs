//! Docker's credential helpers: programs called `docker-credential-NAME` that know user names and passwords.
//!
//! Protocol: `get`, the registry on standard input, JSON on standard output. Neither what it says nor what it complains is shown: both may
//! hold secrets.

use std::ffi::OsStr;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::time::timeout;

use crate::credentials::{Credentials, Lookup};

/// A helper may ask a cloud's service.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest answer that is read.
const MAX_ANSWER_BYTES: u64 = 64 << 10;
/// How Docker spells its own registry.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";
/// The user name that stands for an identity token.
const TOKEN: &str = "<token>";

/// One helper and what it is to be asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Helper {
    program: String,
    registry: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

impl Helper {
    /// The helper of that name; `None` for one that would lead out of the search path.
    pub(crate) fn new(name: &str, registry: &str) -> Option<Self> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let registry = if registry == "docker.io" { DOCKER_HUB } else { registry };
        (!name.is_empty() && name.bytes().all(plain))
            .then(|| Self { program: format!("docker-credential-{name}"), registry: registry.into() })
    }

    /// What it knows now.
    pub(crate) async fn ask(&self, search_path: Option<&OsStr>) -> Lookup {
        let unusable = |what: &str| Lookup::Unusable(format!("{} {what}", self.program));
        match timeout(PATIENCE, self.run(search_path)).await {
            Err(_) => unusable("does not answer"),
            Ok(Err(error)) => unusable(&format!("cannot be run ({error}); is it installed?")),
            Ok(Ok(None)) => Lookup::None,
            Ok(Ok(Some(bytes))) => match serde_json::from_slice::<Answer>(&bytes) {
                Ok(Answer { username, .. }) if username == TOKEN => {
                    unusable("gives an identity token, which faasnet does not use")
                }
                Ok(Answer { username, secret }) => Lookup::Found(Credentials { username, password: secret }),
                Err(_) => unusable("answers something else than credentials"),
            },
        }
    }

    /// Its answer; `None` when it knows nothing of the registry, for which its exit code is not 0.
    async fn run(&self, search_path: Option<&OsStr>) -> std::io::Result<Option<Vec<u8>>> {
        let mut command = Command::new(&self.program);
        command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        if let Some(path) = search_path {
            command.env("PATH", path);
        }
        let mut child = command.spawn()?;
        if let Some(mut input) = child.stdin.take() {
            // Ignored: a helper that does not read says what is wrong by its answer.
            let _ = input.write_all(self.registry.as_bytes()).await;
        }
        let mut answer = Vec::new();
        if let Some(output) = child.stdout.take() {
            output.take(MAX_ANSWER_BYTES).read_to_end(&mut answer).await?;
        }
        Ok(child.wait().await?.success().then_some(answer))
    }
}
