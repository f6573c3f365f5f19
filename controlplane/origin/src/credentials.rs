//! User names and passwords for registries, from Docker's configuration file and the credential helpers that it names.
//!
//! The file is read once per source; a helper is asked whenever a registry wants a new permission. The secrets stay in this process: `Debug` does not print them and no error holds them.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::helper::Helper;

/// Sources are opened again and again; one warning of a process is enough.
static WARNED: AtomicBool = AtomicBool::new(false);

/// A user name and password. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Who.
    pub username: String,
    /// The secret.
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(…)")
    }
}

impl Credentials {
    /// The value of an `Authorization` header.
    pub(crate) fn basic(&self) -> String {
        format!("Basic {}", STANDARD.encode(format!("{}:{}", self.username, self.password)))
    }
}

/// What the configuration says about one registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Lookup {
    Found(Credentials),
    /// Nothing, but the controller's secret store does.
    Given(Credentials),
    /// A program knows.
    Helper(Helper),
    /// Nothing about this registry.
    None,
    /// Something that we cannot use; the text says what.
    Unusable(String),
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ConfigFile {
    auths: HashMap<String, Auth>,
    #[serde(rename = "credHelpers")]
    cred_helpers: HashMap<String, String>,
    #[serde(rename = "credsStore")]
    creds_store: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Auth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

/// `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`.
pub(crate) fn default_path() -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os("DOCKER_CONFIG").filter(|folder| !folder.is_empty()) {
        return Some(PathBuf::from(folder).join("config.json"));
    }
    std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".docker/config.json"))
}

/// Looks up `registry` (host and port as in a reference). A file that does not exist knows nothing.
pub(crate) fn look_up(path: Option<&Path>, registry: &str) -> Lookup {
    let Some(path) = path else { return Lookup::None };
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Lookup::None,
        Err(error) => return Lookup::Unusable(format!("{} cannot be read ({error})", path.display())),
    };
    if faasnet_api::is_read_by_others(path) && !WARNED.swap(true, Ordering::Relaxed) {
        tracing::warn!(file = %path.display(), "every user of this host can read this file with registries' passwords; chmod o= it");
    }
    match serde_json::from_slice::<ConfigFile>(&bytes) {
        Ok(config) => config.look_up(path, registry),
        // The parser's message could quote a secret; its position is enough.
        Err(error) => Lookup::Unusable(format!("{} is not valid JSON (line {})", path.display(), error.line())),
    }
}

impl Lookup {
    /// The same, with a helper's answer in place of the helper, and what was given where this host knows nothing.
    pub(crate) async fn ask(&self, helper_path: Option<&OsStr>, given: Option<&Credentials>) -> Self {
        let own = match self {
            Self::Helper(helper) => helper.ask(helper_path).await,
            other => other.clone(),
        };
        match (own, given) {
            (Self::None, Some(given)) => Self::Given(given.clone()),
            (own, _) => own,
        }
    }

    /// Those to use, if there are any.
    pub(crate) fn credentials(&self) -> Option<&Credentials> {
        match self {
            Self::Found(credentials) | Self::Given(credentials) => Some(credentials),
            _ => None,
        }
    }
}

impl ConfigFile {
    fn look_up(&self, path: &Path, registry: &str) -> Lookup {
        let wanted = canonical(registry);
        let found = self.auths.iter().find(|(key, _)| canonical(key) == wanted);
        if let Some((_, auth)) = found {
            if let Some(credentials) = auth.credentials() {
                return Lookup::Found(credentials);
            }
            if auth.identitytoken.is_some() {
                return Lookup::Unusable(format!(
                    "{} holds only an identity token for it, which faasnet does not use",
                    path.display()
                ));
            }
        }
        let helper = self.cred_helpers.iter().find(|(key, _)| canonical(key) == wanted).map(|(_, helper)| helper);
        match helper.or(self.creds_store.as_ref()) {
            Some(name) => Helper::new(name, wanted).map_or_else(
                || {
                    Lookup::Unusable(format!(
                        "{} names the credential helper {name:?}, which cannot be",
                        path.display()
                    ))
                },
                Lookup::Helper,
            ),
            None => Lookup::None,
        }
    }
}

impl Auth {
    fn credentials(&self) -> Option<Credentials> {
        if let (Some(username), Some(password)) = (&self.username, &self.password) {
            return Some(Credentials { username: username.clone(), password: password.clone() });
        }
        let decoded = STANDARD.decode(self.auth.as_ref()?.trim()).ok()?;
        let text = String::from_utf8(decoded).ok()?;
        let (username, password) = text.trim_end_matches('\0').split_once(':')?;
        (!username.is_empty()).then(|| Credentials { username: username.into(), password: password.into() })
    }
}

/// The one spelling of a registry for which the controller keeps credentials: host and port, in lower case.
pub fn registry_key(registry: &str) -> String {
    canonical(&registry.to_ascii_lowercase()).to_owned()
}

/// The registry that an entry of Docker's configuration is for: host and port. Docker writes its own registry as `https://index.docker.io/v1/`, and others with or without scheme and path.
fn canonical(key: &str) -> &str {
    let host = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    match host.split('/').next().unwrap_or(host) {
        "docker.io" | "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::helper::Helper;

    fn look_up_in(json: &str, registry: &str) -> Lookup {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        std::fs::write(&path, json).unwrap();
        look_up(Some(&path), registry)
    }

    /// Catches a spelling of the registry or of the secret that `docker login` writes and we do not find.
    #[test]
    fn credentials_are_found_in_every_spelling() {
        let found = Lookup::Found(Credentials { username: "me".into(), password: "a:b".into() });
        // "me:a:b"
        let auth = r#"{"auth": "bWU6YTpi"}"#;
        for key in ["https://index.docker.io/v1/", "docker.io"] {
            assert_eq!(look_up_in(&format!(r#"{{"auths": {{"{key}": {auth}}}}}"#), "registry-1.docker.io"), found);
        }
        for key in ["r.example:5000", "http://r.example:5000", "https://r.example:5000/v2/"] {
            assert_eq!(look_up_in(&format!(r#"{{"auths": {{"{key}": {auth}}}}}"#), "r.example:5000"), found);
        }
        let plain = r#"{"auths": {"r": {"username": "me", "password": "a:b"}}, "HttpHeaders": {}}"#;
        assert_eq!(look_up_in(plain, "r"), found);
        assert_eq!(look_up_in(plain, "other"), Lookup::None);
    }

    /// Catches a host whose own configuration is overruled from afar, and one that gets nothing though it was given something.
    #[tokio::test]
    async fn what_was_given_comes_last() {
        let of = |name: &str| Credentials { username: name.into(), password: "p".into() };
        let (own, given) = (of("own"), of("given"));
        assert_eq!(Lookup::Found(own.clone()).ask(None, Some(&given)).await.credentials(), Some(&own));
        assert_eq!(Lookup::None.ask(None, Some(&given)).await, Lookup::Given(given.clone()));
        let broken = Lookup::Unusable("why".into());
        assert_eq!(broken.ask(None, Some(&given)).await, broken, "what the host says wrong is to be mended there");
        assert_eq!(Lookup::None.ask(None, None).await, Lookup::None);
    }

    /// Catches a password that is kept under one spelling of its registry and looked up under another.
    #[test]
    fn one_registry_has_one_key() {
        for spelling in ["r.example:5000", "R.Example:5000", "HTTPS://R.example:5000/", "http://r.example:5000/v2/"] {
            assert_eq!(registry_key(spelling), "r.example:5000", "{spelling}");
        }
        assert_eq!(registry_key("https://Index.Docker.io/v1/"), "docker.io");
    }

    /// Catches a secret in a message, and a configuration that fails without a word.
    #[test]
    fn unusable_configurations_say_why_and_no_secret() {
        for json in [
            r#"{"auths": {"r": {"auth": "s3cret"#,
            r#"{"auths": {"r": {"identitytoken": "s3cret"}}}"#,
            r#"{"credHelpers": {"r": "../s/x"}}"#,
            r#"{"credsStore": ""}"#,
        ] {
            match look_up_in(json, "r") {
                Lookup::Unusable(text) => assert!(!text.contains("s3cret"), "{text}"),
                other => panic!("{json}: {other:?}"),
            }
        }
        let helper = |name| Lookup::Helper(Helper::new(name, "r").unwrap());
        let stored = r#"{"auths": {"r": {}}, "credsStore": "desktop", "credHelpers": {"other": "ecr-login"}}"#;
        assert_eq!(look_up_in(stored, "r"), helper("desktop"));
        assert_eq!(
            look_up_in(r#"{"credHelpers": {"r": "ecr-login"}, "credsStore": "desktop"}"#, "r"),
            helper("ecr-login")
        );
        let found = look_up_in(r#"{"auths": {"r": {"username": "me", "password": "s3cret"}}}"#, "r");
        assert!(!format!("{found:?}").contains("s3cret"));
        assert_eq!(look_up(Some(Path::new("/nonexistent/config.json")), "r"), Lookup::None);
    }
}
