//! One image's origin, whichever kind it is: manifests, and streams of blob bytes.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::Stream;
use reqwest::Response;

use crate::http::{self, Http};
use crate::registry::OnNoRanges;
use crate::{BlobReader, Error, Layout, Reference, Registry, SourceOptions, Target, manifest};

/// How much of a file is read at once.
const FILE_READ_BYTES: u64 = 1 << 20;

/// Where an image is read. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Source {
    kind: Kind,
    options: SourceOptions,
    on_no_ranges: OnNoRanges,
}

#[derive(Debug, Clone)]
enum Kind {
    Registry(Registry),
    Layout(Layout),
}

/// A manifest or index whose bytes were checked against its digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// sha256 of the bytes.
    pub digest: String,
    /// The media type: what the origin says, else what the document says.
    pub media_type: String,
    /// The document, byte for byte.
    pub bytes: Bytes,
}

impl Manifest {
    pub(crate) fn new(digest: String, media_type: String, bytes: Bytes) -> Self {
        // A registry that serves from plain files says text/plain or application/octet-stream.
        let known = media_type.ends_with("+json") || media_type.ends_with("+prettyjws");
        let media_type = if known { media_type } else { manifest::own_media_type(&bytes).unwrap_or(media_type) };
        Self { digest, media_type, bytes }
    }
}

impl Source {
    /// The origin that a reference names. Connects to nothing yet, but checks that a folder is a layout.
    pub fn open(reference: &Reference, options: &SourceOptions) -> Result<Self, Error> {
        let kind = match reference {
            Reference::Registry(reference) => {
                let base_url = reference.base_url(options.plain_http);
                Kind::Registry(Registry::new(&base_url, &reference.repository, options)?)
            }
            Reference::Layout { path, .. } => Kind::Layout(Layout::open(path)?),
        };
        // A reader that knows nothing of the origin prefers reading twice to failing.
        Ok(Self { kind, options: options.clone(), on_no_ranges: OnNoRanges::Skip })
    }

    /// The origin that a descriptor names, with the default options.
    pub fn from_origin(origin: &faasnet_api::Origin) -> Result<Self, Error> {
        Self::from_origin_with(origin, &SourceOptions::default())
    }

    /// The origin that a descriptor names.
    pub fn from_origin_with(origin: &faasnet_api::Origin, options: &SourceOptions) -> Result<Self, Error> {
        let kind = match origin {
            faasnet_api::Origin::Registry { base_url, repository, .. } => {
                Kind::Registry(Registry::new(base_url, repository, options)?)
            }
            faasnet_api::Origin::Layout { path } => Kind::Layout(Layout::open(Path::new(path))?),
        };
        let on_no_ranges = if origin.ranges() { OnNoRanges::Fail } else { OnNoRanges::Skip };
        Ok(Self { kind, options: options.clone(), on_no_ranges })
    }

    /// What a descriptor says about this origin.
    pub fn to_origin(&self, ranges: bool) -> faasnet_api::Origin {
        match &self.kind {
            Kind::Registry(registry) => faasnet_api::Origin::Registry {
                base_url: registry.base_url().into(),
                repository: registry.repository().into(),
                ranges,
            },
            Kind::Layout(layout) => faasnet_api::Origin::Layout { path: layout.path().to_string_lossy().into_owned() },
        }
    }

    /// The digest that `target` stands for now; `None` means what [`Layout::find_tag`] says, or `latest`.
    pub async fn resolve(&self, target: Option<&Target>) -> Result<String, Error> {
        match &self.kind {
            Kind::Registry(registry) => registry.resolve(target.unwrap_or(&latest())).await,
            Kind::Layout(_) => Ok(self.manifest(target).await?.digest),
        }
    }

    /// A manifest or index, checked against its digest.
    pub async fn manifest(&self, target: Option<&Target>) -> Result<Manifest, Error> {
        match &self.kind {
            Kind::Registry(registry) => registry.manifest(target.unwrap_or(&latest())).await,
            Kind::Layout(layout) => {
                let (layout, target) = (layout.clone(), target.cloned());
                blocking(move || layout.manifest(target.as_ref())).await
            }
        }
    }

    /// Starts reading a blob once, without repeating; see [`Source::read_blob_range`] for a patient reader.
    pub async fn open_blob(&self, digest: &str, range: Option<Range<u64>>) -> Result<BlobStream, Error> {
        match &self.kind {
            Kind::Registry(registry) => registry.open_blob_or(digest, range, self.on_no_ranges).await,
            Kind::Layout(layout) => {
                let (layout, digest) = (layout.clone(), digest.to_owned());
                blocking(move || layout.open_blob(&digest, range)).await
            }
        }
    }

    /// Reads a part of a blob, resuming after failures that pass. Asks nothing before its first `next_bytes`.
    pub fn read_blob_range(&self, digest: &str, range: Range<u64>) -> BlobReader {
        BlobReader::new(self.clone(), digest.into(), range, self.options.retry)
    }

    /// Whether parts of blobs can be read, asked for a blob of `len` bytes.
    pub async fn probe_ranges(&self, digest: &str, len: u64) -> Result<bool, Error> {
        match &self.kind {
            Kind::Registry(registry) => registry.probe_ranges(digest, len).await,
            Kind::Layout(_) => Ok(true),
        }
    }

    /// The settings that the source was made with.
    pub fn options(&self) -> &SourceOptions {
        &self.options
    }
}

fn latest() -> Target {
    Target::Tag("latest".into())
}

/// Runs file work off the async threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::Setting(format!("a file operation did not end: {error}"))),
    }
}

/// Blob bytes as they come, from one answer or one open file.
#[derive(Debug)]
pub struct BlobStream(Reading);

#[derive(Debug)]
enum Reading {
    Http { http: Http, body: Body },
    File { file: Arc<File>, path: PathBuf, range: Range<u64> },
}

/// The body of one answer and which part of it is wanted.
#[derive(Debug)]
pub(crate) struct Body {
    pub(crate) response: Response,
    /// Bytes before the wanted part.
    pub(crate) skip: u64,
    /// Bytes of the wanted part to come; `None`: until the end.
    pub(crate) left: Option<u64>,
    pub(crate) received: u64,
}

impl BlobStream {
    pub(crate) fn http(http: Http, body: Body) -> Self {
        Self(Reading::Http { http, body })
    }

    pub(crate) fn file(file: File, path: PathBuf, range: Range<u64>) -> Self {
        Self(Reading::File { file: Arc::new(file), path, range })
    }

    /// Bytes still to come, if known.
    pub fn bytes_left(&self) -> Option<u64> {
        match &self.0 {
            Reading::Http { body, .. } => body.left,
            Reading::File { range, .. } => Some(range.end - range.start),
        }
    }

    /// The next bytes; `None` at the end. An end before everything came is [`Error::Cut`]. Dropping the future loses nothing.
    pub async fn next_bytes(&mut self) -> Result<Option<Bytes>, Error> {
        match &mut self.0 {
            Reading::Http { http, body } => body.next_bytes(http).await,
            Reading::File { file, path, range } => read_file(file, path, range).await,
        }
    }

    /// The same as a stream.
    pub fn into_stream(self) -> impl Stream<Item = Result<Bytes, Error>> + Send {
        futures_util::stream::try_unfold(self, |mut stream| async move {
            Ok(stream.next_bytes().await?.map(|bytes| (bytes, stream)))
        })
    }
}

impl Body {
    async fn next_bytes(&mut self, http: &Http) -> Result<Option<Bytes>, Error> {
        while self.left != Some(0) {
            let Some(mut bytes) = http.next_bytes(&mut self.response, self.received).await? else {
                return match self.left {
                    None => Ok(None),
                    Some(left) => Err(Error::Cut {
                        url: http::shown(self.response.url()),
                        received: self.received,
                        cause: format!("the body ended {left} bytes early"),
                    }),
                };
            };
            self.received += bytes.len() as u64;
            let skipped = self.skip.min(bytes.len() as u64);
            self.skip -= skipped;
            let _ = bytes.split_to(skipped as usize);
            if let Some(left) = &mut self.left {
                bytes.truncate((*left).min(bytes.len() as u64) as usize);
                *left -= bytes.len() as u64;
            }
            if !bytes.is_empty() {
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }
}

async fn read_file(file: &Arc<File>, path: &Path, range: &mut Range<u64>) -> Result<Option<Bytes>, Error> {
    let (start, len) = (range.start, (range.end - range.start).min(FILE_READ_BYTES));
    if len == 0 {
        return Ok(None);
    }
    let (file, path) = (file.clone(), path.to_owned());
    let bytes = blocking(move || {
        let mut bytes = vec![0; len as usize];
        match file.read_exact_at(&mut bytes, start) {
            Ok(()) => Ok(Bytes::from(bytes)),
            Err(error) => Err(Error::File { path, cause: error.to_string() }),
        }
    })
    .await?;
    // Only now: a dropped future must not lose bytes.
    range.start += len;
    Ok(Some(bytes))
}
