//! What an installation is checked with: a question to the mirror and, if asked for, a pull by the runtime itself. Each says what it could check.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde::Serialize;
use tokio::process::Command;

use super::Runtime;
use super::host::Host;
use super::names::Mirror;
use crate::output;

/// The mirror is on this host, or near.
const ANSWER: Duration = Duration::from_secs(3);
/// A test image is small.
const PULL: Duration = Duration::from_secs(300);
/// ctr keeps images by namespace; this one is ours, and empty again afterwards.
const NAMESPACE: &str = "faasnet-install";
/// What dockerd has loaded, whatever its file says by now.
const DOCKERS_MIRRORS: [&str; 4] = ["docker", "info", "--format", "{{json .RegistryConfig.Mirrors}}"];

/// The outcome of one check.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Check {
    /// Whether it passed; `None`: it could not be done.
    pub(super) ok: Option<bool>,
    /// What was found.
    pub(super) what: String,
}

impl Check {
    /// A check that was not done.
    pub(super) fn not_done(why: impl Into<String>) -> Self {
        Self { ok: None, what: why.into() }
    }
}

/// Asks the mirror whether it speaks the registry's protocol.
pub(super) async fn mirror(host: &Host, mirror: &Mirror) -> Check {
    if !host.is_this() {
        return Check::not_done("the files are not this host's, so no agent was asked");
    }
    let url = format!("{}/v2/", mirror.url());
    let client = reqwest::Client::builder().no_proxy().timeout(ANSWER).build();
    let answer = match client {
        Ok(client) => client.get(&url).send().await,
        Err(error) => Err(error),
    };
    match answer {
        Ok(answer) if answer.status().is_success() => {
            Check { ok: Some(true), what: format!("the mirror answers at {url}") }
        }
        Ok(answer) => Check {
            ok: Some(false),
            what: format!(
                "{url} answers {}, so the runtime goes on to the registry; is that the agent's mirror?",
                answer.status()
            ),
        },
        Err(_) => Check {
            ok: Some(false),
            what: format!(
                "nobody answers at {url}; until an agent does, the runtime pulls from the registry as before"
            ),
        },
    }
}

/// Lets the runtime pull an image through `mirror`, if it has read the new settings; containerd by the hosts in `folder`.
pub(super) async fn pull(host: &Host, runtime: Runtime, mirror: &Mirror, folder: Option<&Path>, image: &str) -> Check {
    if !host.is_this() {
        return Check::not_done("the files are not this host's, so nothing was pulled");
    }
    let folder = folder.map(|folder| folder.display().to_string()).unwrap_or_default();
    let (asked, pulled): (&[&str], Vec<&str>) = match runtime {
        Runtime::Containerd => {
            (&["ctr", "version"], vec!["ctr", "-n", NAMESPACE, "images", "pull", "--hosts-dir", &folder, image])
        }
        Runtime::Podman => (&["podman", "version"], vec!["podman", "pull", "--quiet", image]),
        Runtime::Docker => (&DOCKERS_MIRRORS, vec!["docker", "pull", "--quiet", image]),
    };
    match run(asked, ANSWER * 5).await {
        Ok(said) if runtime == Runtime::Docker && !names(&said, mirror) => {
            return Check::not_done(format!(
                "{image} was not pulled: dockerd has not read its new settings, so a pull would say nothing about them; \
                 after the reload: docker pull {image}"
            ));
        }
        Ok(_) => {}
        Err(why) => {
            return Check::not_done(format!("{image} was not pulled, since {runtime} does not answer here: {why}"));
        }
    }
    let outcome = run(&pulled, PULL).await;
    if runtime == Runtime::Containerd {
        // Ignored: what is left is an image that nothing uses, in a namespace of its own.
        let _ = run(&["ctr", "-n", NAMESPACE, "images", "rm", "--sync", image], PULL).await;
        let _ = run(&["ctr", "namespaces", "rm", NAMESPACE], ANSWER).await;
    }
    let what = match runtime {
        Runtime::Containerd => format!(
            "ctr pulled {image} by the files in {folder}; not checked: config_path in config.toml, which the CRI plugin reads when it starts"
        ),
        _ => format!("{runtime} pulled {image}"),
    };
    match outcome {
        Ok(_) => Check { ok: Some(true), what },
        Err(why) => Check { ok: Some(false), what: format!("{runtime} cannot pull {image}: {why}") },
    }
}

/// Whether `mirror` is among the mirrors that dockerd says it has.
fn names(said: &str, mirror: &Mirror) -> bool {
    let mirrors: Option<Vec<String>> = serde_json::from_str(said.trim()).unwrap_or_default();
    mirrors.into_iter().flatten().any(|url| url.trim_end_matches('/') == mirror.url())
}

/// Runs a command: what it prints, or why it failed.
async fn run(command: &[&str], patience: Duration) -> Result<String, String> {
    let (program, arguments) = command.split_first().ok_or("no command")?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let child = command.spawn().map_err(|error| format!("{program}: {error}"))?;
    match tokio::time::timeout(patience, child.wait_with_output()).await {
        Ok(Ok(output)) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Ok(Ok(output)) => {
            let errors = String::from_utf8_lossy(&output.stderr);
            Err(output::one_line(errors.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it says no reason")))
        }
        Ok(Err(error)) => Err(format!("{program}: {error}")),
        Err(_) => Err(format!("{program} takes longer than {} s", patience.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a pull that is said to prove settings which dockerd has not read.
    #[test]
    fn only_a_loaded_mirror_is_checked() {
        let mirror: Mirror = "http://127.0.0.1:7412".parse().unwrap();
        assert!(names("[\"https://a/\",\"http://127.0.0.1:7412/\"]\n", &mirror));
        for said in ["null\n", "[]", "[\"http://127.0.0.1:74120/\"]", "", "<no value>"] {
            assert!(!names(said, &mirror), "{said}");
        }
    }
}
