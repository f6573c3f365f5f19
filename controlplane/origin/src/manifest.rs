//! The JSON documents that describe images: OCI manifests and indexes, and Docker's schema 2 of both.
//!
//! Parsing of foreign bytes: only documents that can be one thing and not another are accepted.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// An OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// An OCI index of manifests, one per platform.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Docker's image manifest, schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker's list of manifests, one per platform.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// An OCI image configuration.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Docker's image configuration.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// A gzip layer.
pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// The annotation that holds a tag in a layout's `index.json`.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// What a request for a manifest offers to understand.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json";

/// A document's pointer to another one or to a blob (OCI calls it a content descriptor).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Link {
    /// The media type of what it points to.
    #[serde(default)]
    pub media_type: String,
    /// Its digest.
    pub digest: String,
    /// Its bytes.
    pub size: u64,
    /// For manifests in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Free text by key.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// What a manifest of an index runs on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// Go's name of the processor architecture.
    #[serde(default)]
    pub architecture: String,
    /// Go's name of the operating system.
    #[serde(default)]
    pub os: String,
    /// For example `v8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// An image: its configuration and its layers, lowest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageManifest {
    /// The configuration blob.
    pub config: Link,
    /// The layer blobs.
    pub layers: Vec<Link>,
}

/// A parsed document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// One image.
    Image(ImageManifest),
    /// Several images.
    Index(Vec<Link>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: u32,
    media_type: Option<String>,
    config: Option<Link>,
    layers: Option<Vec<Link>>,
    manifests: Option<Vec<Link>>,
}

impl Document {
    /// Parses a manifest or index. The text of an error completes "… is not an image manifest: ".
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let raw: Raw =
            serde_json::from_slice(bytes).map_err(|error| format!("it is not valid JSON for one ({error})"))?;
        if raw.schema_version == 1 {
            return Err(
                "it has Docker's schema 1, which has been retired; push the image again with a current tool".into()
            );
        }
        if raw.schema_version != 2 {
            return Err(format!("it has schema version {}", raw.schema_version));
        }
        // A document that is both would mean different images to different readers (CVE-2021-41190).
        match (raw.config, raw.layers, raw.manifests) {
            (Some(config), Some(layers), None) => Ok(Self::Image(ImageManifest { config, layers })),
            (None, None, Some(manifests)) => Ok(Self::Index(manifests)),
            (None, None, None) => Err("it has neither layers nor manifests".into()),
            (_, _, Some(_)) => Err("it is a manifest and an index at once".into()),
            (None, Some(_), None) => Err("it has no configuration".into()),
            (Some(_), None, None) => Err("it has no layers".into()),
        }
        .and_then(|document| document.agreeing_with(raw.media_type.as_deref()))
    }

    fn agreeing_with(self, media_type: Option<&str>) -> Result<Self, String> {
        let agrees = match media_type {
            None | Some("") => true,
            Some(OCI_MANIFEST | DOCKER_MANIFEST) => matches!(self, Self::Image(_)),
            Some(OCI_INDEX | DOCKER_LIST) => matches!(self, Self::Index(_)),
            Some(_) => false,
        };
        let media_type = media_type.unwrap_or_default();
        if agrees { Ok(self) } else { Err(format!("its content does not fit its media type {media_type:?}")) }
    }

    /// The media type to serve the document with when nothing else names one.
    pub fn default_media_type(&self) -> &'static str {
        match self {
            Self::Image(_) => OCI_MANIFEST,
            Self::Index(_) => OCI_INDEX,
        }
    }
}

/// The media type that a document names itself.
pub fn own_media_type(bytes: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct MediaType {
        media_type: String,
    }
    serde_json::from_slice::<MediaType>(bytes).ok().map(|document| document.media_type).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches documents that are taken for an image though they are not, or not only.
    #[test]
    fn only_unambiguous_documents_are_accepted() {
        let link = format!(r#"{{"digest": "sha256:{}", "size": 1, "mediaType": "m"}}"#, "a".repeat(64));
        let image = format!(r#"{{"schemaVersion": 2, "config": {link}, "layers": [{link}, {link}]}}"#);
        assert!(matches!(Document::parse(image.as_bytes()), Ok(Document::Image(image)) if image.layers.len() == 2));
        let index = format!(r#"{{"schemaVersion": 2, "mediaType": "{DOCKER_LIST}", "manifests": [{link}]}}"#);
        assert!(matches!(Document::parse(index.as_bytes()), Ok(Document::Index(links)) if links.len() == 1));
        for (bad, reason) in [
            ("{".to_owned(), "JSON"),
            (r#"{"schemaVersion": 1, "fsLayers": []}"#.to_owned(), "schema 1"),
            (r#"{"schemaVersion": 3}"#.to_owned(), "schema version 3"),
            (r#"{"schemaVersion": 2}"#.to_owned(), "neither"),
            (format!(r#"{{"schemaVersion": 2, "layers": [{link}]}}"#), "no configuration"),
            (format!(r#"{{"schemaVersion": 2, "config": {link}}}"#), "no layers"),
            (format!(r#"{{"schemaVersion": 2, "config": {link}, "layers": [], "manifests": []}}"#), "at once"),
            (
                format!(r#"{{"schemaVersion": 2, "mediaType": "{OCI_INDEX}", "config": {link}, "layers": []}}"#),
                "media type",
            ),
            (r#"{"schemaVersion": 2, "config": {"digest": "x", "size": -1}, "layers": []}"#.to_owned(), "JSON"),
        ] {
            let error = Document::parse(bad.as_bytes()).unwrap_err();
            assert!(error.contains(reason), "{bad}: {error}");
        }
    }
}
