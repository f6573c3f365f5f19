//! An OCI image layout: a folder with `oci-layout`, `index.json` and `blobs/sha256/…`.
//!
//! Reads only. Names from foreign documents become file names only after the digest check, so nothing outside is reached.

use std::fs::File;
use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use crate::manifest::{Document, Link, REF_NAME};
use crate::source::{BlobStream, Manifest};
use crate::{Error, MAX_MANIFEST_BYTES, Target, digest};

/// A layout folder. Cheap to clone; holds no file open.
#[derive(Debug, Clone)]
pub struct Layout {
    path: Arc<Path>,
}

impl Layout {
    /// Checks that the folder is a layout. Blocking, but only small files.
    pub fn open(path: &Path) -> Result<Self, Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Marker {
            image_layout_version: String,
        }
        let refuse = |reason: String| Error::Layout { path: path.into(), reason };
        let absolute =
            std::fs::canonicalize(path).map_err(|error| refuse(format!("the folder cannot be opened ({error})")))?;
        let layout = Self { path: absolute.into() };
        let marker = layout.read_small(&layout.path.join("oci-layout"), "oci-layout").map_err(|error| match error {
            Error::NotFound { .. } => refuse("it has no file named oci-layout".into()),
            error => error,
        })?;
        let marker: Marker = serde_json::from_slice(&marker)
            .map_err(|error| refuse(format!("its oci-layout file is broken ({error})")))?;
        if !marker.image_layout_version.starts_with("1.") {
            return Err(refuse(format!("it has version {:?}, known is 1.0.0", marker.image_layout_version)));
        }
        Ok(layout)
    }

    /// The folder, absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file of a blob, whether it exists or not.
    pub fn blob_path(&self, digest: &str) -> Result<PathBuf, Error> {
        Ok(self.path.join("blobs/sha256").join(digest::hex(digest)?))
    }

    /// Bytes of a blob.
    pub fn blob_bytes(&self, digest: &str) -> Result<u64, Error> {
        let path = self.blob_path(digest)?;
        match std::fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() => Ok(metadata.len()),
            Ok(_) => Err(self.not_found(&format!("blob {digest}"))),
            Err(error) => Err(self.file_error(&path, &error, &format!("blob {digest}"))),
        }
    }

    /// The entries of `index.json`, read anew each time: tags may be added while we look.
    pub fn index(&self) -> Result<Vec<Link>, Error> {
        let refuse = |reason: String| Error::Layout { path: self.path.to_path_buf(), reason };
        let bytes = self.read_small(&self.path.join("index.json"), "index.json")?;
        match Document::parse(&bytes) {
            Ok(Document::Index(links)) => Ok(links),
            Ok(Document::Image(_)) => Err(refuse("its index.json is not an index".into())),
            Err(reason) => Err(refuse(format!("its index.json is not an index: {reason}"))),
        }
    }

    /// The entry of `index.json` for a tag; without one, the only entry, else the one tagged `latest`.
    pub fn find_tag(&self, tag: Option<&str>) -> Result<Link, Error> {
        let links = self.index()?;
        let name = |link: &Link| link.annotations.get(REF_NAME).cloned();
        if let ([link], None) = (&links[..], tag) {
            return Ok(link.clone());
        }
        let wanted = tag.unwrap_or("latest");
        // Some tools write the whole reference into the annotation.
        let fits = |name: &str| name == wanted || name.rsplit_once(':').is_some_and(|(_, tag)| tag == wanted);
        if let Some(link) = links.iter().find(|link| name(link).is_some_and(|name| fits(&name))) {
            return Ok(link.clone());
        }
        if let ([link], "latest") = (&links[..], wanted)
            && name(link).is_none()
        {
            return Ok(link.clone());
        }
        let names: Vec<_> = links.iter().filter_map(name).collect();
        let what = match (tag, names.is_empty()) {
            (None, _) => format!("an image tagged `latest` (there are {} images: {})", links.len(), names.join(", ")),
            (Some(tag), true) => format!("tag {tag} (the layout holds no tags)"),
            (Some(tag), false) => format!("tag {tag} (the layout holds {})", names.join(", ")),
        };
        Err(self.not_found(&what))
    }

    /// A manifest or index, checked against its digest. Blocking.
    pub fn manifest(&self, target: Option<&Target>) -> Result<Manifest, Error> {
        let (digest, media_type) = match target {
            Some(Target::Digest(digest)) => (digest.clone(), String::new()),
            Some(Target::Tag(tag)) => self.find_tag(Some(tag)).map(|link| (link.digest, link.media_type))?,
            None => self.find_tag(None).map(|link| (link.digest, link.media_type))?,
        };
        let what = format!("manifest {digest}");
        let bytes = self.read_small(&self.blob_path(&digest)?, &what)?;
        let got = digest::of(&bytes);
        if got != digest {
            return Err(Error::FalseDigest { what, expected: digest, got });
        }
        Ok(Manifest::new(digest, media_type, bytes.into()))
    }

    /// Starts reading a blob, whole or a range of it. Blocking only for the opening.
    pub fn open_blob(&self, digest: &str, range: Option<Range<u64>>) -> Result<BlobStream, Error> {
        let path = self.blob_path(digest)?;
        let what = format!("blob {digest}");
        let bytes = self.blob_bytes(digest)?;
        let range = range.unwrap_or(0..bytes);
        if range.end > bytes {
            let reason =
                format!("{what} has {bytes} bytes, its manifest says at least {}; export the image again", range.end);
            return Err(Error::Layout { path: self.path.to_path_buf(), reason });
        }
        let file = File::open(&path).map_err(|error| self.file_error(&path, &error, &what))?;
        Ok(BlobStream::file(file, path, range))
    }

    fn read_small(&self, path: &Path, what: &str) -> Result<Vec<u8>, Error> {
        let metadata = std::fs::metadata(path).map_err(|error| self.file_error(path, &error, what))?;
        if metadata.len() > MAX_MANIFEST_BYTES {
            return Err(Error::TooLarge { what: what.into() });
        }
        std::fs::read(path).map_err(|error| self.file_error(path, &error, what))
    }

    fn file_error(&self, path: &Path, error: &std::io::Error, what: &str) -> Error {
        match error.kind() {
            ErrorKind::NotFound => self.not_found(what),
            _ => Error::File { path: path.into(), cause: error.to_string() },
        }
    }

    fn not_found(&self, what: &str) -> Error {
        Error::NotFound { what: what.into(), origin: self.path.display().to_string() }
    }
}
