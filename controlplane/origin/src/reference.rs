//! Image references as people write them: `registry/repository:tag@digest`, or the path of an OCI layout folder.
//!
//! Parsing only; whether the image exists is not asked here (but an existing folder is told from a repository name by looking).

use std::fmt;
use std::path::{Path, PathBuf};

use crate::{Error, digest};

/// What a reference names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// An image in a registry.
    Registry(RegistryReference),
    /// An image in an OCI layout folder.
    Layout {
        /// The folder.
        path: PathBuf,
        /// The `org.opencontainers.image.ref.name`, or a digest; `None`: the only image, or `latest`.
        target: Option<Target>,
    },
}

/// An image in a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryReference {
    /// Host and port as one connects to them.
    pub registry: String,
    /// The repository's name within the registry.
    pub repository: String,
    /// The tag as given, or `latest`; meaningless when there is a digest.
    pub tag: String,
    /// The digest, if given; it wins over the tag.
    pub digest: Option<String>,
}

/// What names a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A name that may be moved.
    Tag(String),
    /// `sha256:…`: exactly these bytes.
    Digest(String),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(text) | Self::Digest(text) => f.write_str(text),
        }
    }
}

impl Reference {
    /// Parses `[registry[:port]/]repository[:tag][@digest]`, `oci:PATH[:tag]`, or the path of an existing folder.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if let Some(path) = text.strip_prefix("oci:") {
            return Self::parse_layout(text, path);
        }
        let looks_like_path = text.starts_with(['/', '.']);
        if looks_like_path || Path::new(text).is_dir() {
            if Path::new(text).exists() || !text.contains(':') {
                return Ok(Self::Layout { path: text.into(), target: None });
            }
            return Self::parse_layout(text, text);
        }
        RegistryReference::parse(text).map(Self::Registry)
    }

    fn parse_layout(text: &str, path: &str) -> Result<Self, Error> {
        let refuse = |reason: &str| Error::Reference { text: text.into(), reason: reason.into() };
        // A folder whose own name holds a colon or @ exists; then the whole text is the path.
        if !Path::new(path).exists() {
            if let Some((folder, digest)) = path.rsplit_once('@').filter(|(_, digest)| digest.starts_with("sha256:")) {
                digest::hex(digest)?;
                let target = Some(Target::Digest(digest.into()));
                return Ok(Self::Layout { path: folder.into(), target });
            }
            if let Some((folder, tag)) = path.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')) {
                if folder.is_empty() || tag.is_empty() {
                    return Err(refuse("the folder or the tag is empty"));
                }
                return Ok(Self::Layout { path: folder.into(), target: Some(Target::Tag(tag.into())) });
            }
        }
        if path.is_empty() {
            return Err(refuse("the folder is empty"));
        }
        Ok(Self::Layout { path: path.into(), target: None })
    }

    /// The manifest that the reference names.
    pub fn target(&self) -> Option<Target> {
        match self {
            Self::Registry(reference) => Some(reference.target()),
            Self::Layout { target, .. } => target.clone(),
        }
    }
}

/// The one spelling by which images are told apart: `registry/repository:tag`, or with `@` and the digest if there is one.
impl fmt::Display for RegistryReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.digest.is_some() { '@' } else { ':' };
        write!(f, "{}/{}{sign}{}", self.registry, self.repository, self.target())
    }
}

impl RegistryReference {
    /// Parses `[registry[:port]/]repository[:tag][@digest]` without a look at the file system.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let refuse = |reason: &str| Error::Reference { text: text.into(), reason: reason.into() };
        if text.contains("://") {
            return Err(refuse("a scheme does not belong there (plain HTTP is an option of its own)"));
        }
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => {
                digest::hex(digest)?;
                (name, Some(digest.to_owned()))
            }
            None => (text, None),
        };
        // The tag is behind the last colon, unless that colon belongs to a port.
        let (name, tag) = match name.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')) {
            Some((name, tag)) => (name, Some(tag)),
            None => (name, None),
        };
        let (host, path) = match name.split_once('/') {
            Some((host, path)) if is_host(host) => (host, path),
            _ => ("docker.io", name),
        };
        let (registry, repository) = match host {
            "docker.io" | "index.docker.io" | "registry-1.docker.io" => {
                let library = if path.contains('/') { "" } else { "library/" };
                ("registry-1.docker.io", format!("{library}{path}"))
            }
            host => (host, path.to_owned()),
        };
        if !is_repository(&repository) {
            return Err(refuse("the repository's name has parts of a-z, 0-9, '.', '_', '-' between slashes"));
        }
        let tag = tag.unwrap_or("latest");
        if !is_tag(tag) {
            return Err(refuse("a tag has 1 to 128 of A-Z, a-z, 0-9, '_', '.', '-'"));
        }
        if !registry.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '[')
            || registry.parse::<reqwest::header::HeaderValue>().is_err()
            || reqwest::Url::parse(&format!("http://{registry}")).is_err()
        {
            return Err(refuse("the registry is not host or host:port"));
        }
        Ok(Self { registry: registry.into(), repository, tag: tag.into(), digest })
    }

    /// The digest if there is one, else the tag.
    pub fn target(&self) -> Target {
        match &self.digest {
            Some(digest) => Target::Digest(digest.clone()),
            None => Target::Tag(self.tag.clone()),
        }
    }

    /// `https://host[:port]`, or `http://` when asked for, or when the host is this machine.
    pub fn base_url(&self, plain_http: bool) -> String {
        let scheme = if plain_http || is_loopback(host_of(&self.registry)) { "http" } else { "https" };
        format!("{scheme}://{}", self.registry)
    }
}

/// The names under which container runtimes ask for an image: `registry/repository@digest`, and what it was registered by. An image that
/// comes from a layout folder has none.
pub fn image_names(descriptor: &faasnet_api::Descriptor) -> Vec<String> {
    let faasnet_api::Origin::Registry { .. } = descriptor.origin() else { return Vec::new() };
    let Ok(reference) = RegistryReference::parse(descriptor.reference()) else { return Vec::new() };
    let digest = RegistryReference { digest: Some(descriptor.manifest_digest().into()), ..reference.clone() };
    let mut names = vec![digest.to_string(), reference.to_string()];
    names.dedup();
    names
}

/// The host without its port.
fn host_of(registry: &str) -> &str {
    match registry.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => registry,
    }
}

/// Whether a host (a name, or an address with or without brackets) is this machine.
pub(crate) fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || host.to_ascii_lowercase().ends_with(".localhost")
        || address.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Whether a password that this host was given by another may go to `url` (`http[s]://host…`): with TLS, or not out of this machine.
pub fn may_carry_password(url: &str) -> bool {
    reqwest::Url::parse(url).is_ok_and(|url| url.scheme() == "https" || url.host_str().is_some_and(is_loopback))
}

/// Docker's rule: the first part is a registry if it has a dot or a port, or is `localhost`.
fn is_host(part: &str) -> bool {
    part == "localhost" || part.contains('.') || part.contains(':')
}

/// The distribution specification's rule for names, which also keeps `..` and empty parts out of URLs.
pub(crate) fn is_repository(name: &str) -> bool {
    name.len() <= 255
        && name.split('/').all(|part| {
            let edge = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
            edge(part.bytes().next())
                && edge(part.bytes().next_back())
                && !part.contains("..")
                && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte))
        })
}

/// Whether a text can be a tag.
pub fn is_tag(tag: &str) -> bool {
    (1..=128).contains(&tag.len())
        && !tag.starts_with(['.', '-'])
        && tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry(text: &str) -> RegistryReference {
        match Reference::parse(text).unwrap() {
            Reference::Registry(reference) => reference,
            other => panic!("{other:?}"),
        }
    }

    /// Catches a default (Docker Hub, library/, latest) that is missed, or a port that is taken for a tag.
    #[test]
    fn registry_references_get_dockers_defaults() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (text, host, repository, tag) in [
            ("busybox", "registry-1.docker.io", "library/busybox", "latest"),
            ("docker.io/busybox:1.36", "registry-1.docker.io", "library/busybox", "1.36"),
            ("grafana/loki", "registry-1.docker.io", "grafana/loki", "latest"),
            ("ghcr.io/a/b/c:V_1", "ghcr.io", "a/b/c", "V_1"),
            ("127.0.0.1:5000/app", "127.0.0.1:5000", "app", "latest"),
            ("localhost/app:2", "localhost", "app", "2"),
            ("[::1]:5000/app:2", "[::1]:5000", "app", "2"),
        ] {
            let got = registry(text);
            assert_eq!((&*got.registry, &*got.repository, &*got.tag), (host, repository, tag), "{text}");
            assert_eq!(got.target(), Target::Tag(tag.into()));
            assert_eq!(got.to_string(), format!("{host}/{repository}:{tag}"));
            assert_eq!(registry(&got.to_string()), got, "the one spelling means the same");
            assert_eq!(registry(&format!("{text}@{digest}")).target(), Target::Digest(digest.clone()));
        }
    }

    /// Catches TLS towards this machine's own test registry, and plain HTTP towards anybody else.
    #[test]
    fn only_this_machine_is_plain_http_by_default() {
        for (text, url) in [
            ("127.0.0.5:5000/app", "http://127.0.0.5:5000"),
            ("[::1]:5000/app", "http://[::1]:5000"),
            ("localhost:5000/app", "http://localhost:5000"),
            ("10.0.0.1:5000/app", "https://10.0.0.1:5000"),
            ("localhost.example.com/app", "https://localhost.example.com"),
        ] {
            assert_eq!(registry(text).base_url(false), url);
        }
        assert_eq!(registry("10.0.0.1:5000/app").base_url(true), "http://10.0.0.1:5000");
    }

    /// Catches a name that would leave its place in a URL or a folder.
    #[test]
    fn bad_references_are_refused() {
        for text in [
            "",
            "UPPER",
            "a//b",
            "a/../b:1",
            "x:",
            "x@sha256:12",
            "http://x.y/z",
            "x.y/z?q=1",
            "x.y/z:a b",
            "a b/c",
            "us er@h.io/x",
        ] {
            assert!(Reference::parse(text).is_err(), "{text}");
        }
    }

    /// Catches a folder that is taken for a repository, and a tag that is taken for a part of the folder.
    #[test]
    fn folders_are_layouts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_str().unwrap();
        let layout = |path: &str, target| Reference::Layout { path: path.into(), target };
        assert_eq!(Reference::parse(path).unwrap(), layout(path, None));
        assert_eq!(Reference::parse(&format!("oci:{path}")).unwrap(), layout(path, None));
        let tag = Some(Target::Tag("v1".into()));
        assert_eq!(Reference::parse(&format!("oci:{path}:v1")).unwrap(), layout(path, tag.clone()));
        assert_eq!(Reference::parse(&format!("{path}:v1")).unwrap(), layout(path, tag));
        let digest = format!("sha256:{}", "a".repeat(64));
        let target = Some(Target::Digest(digest.clone()));
        assert_eq!(Reference::parse(&format!("oci:{path}@{digest}")).unwrap(), layout(path, target));
        let odd = folder.path().join("a:b");
        std::fs::create_dir(&odd).unwrap();
        assert_eq!(Reference::parse(odd.to_str().unwrap()).unwrap(), layout(odd.to_str().unwrap(), None));
    }
}
