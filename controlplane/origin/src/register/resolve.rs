//! From a reference to one image's manifest: opens the origin, reads the manifest or index, chooses the platform.
//!
//! Shared by registration and inspection. Reads documents only, no blob.

use std::future::Future;

use crate::manifest::{self, Document, ImageManifest, Link};
use crate::{Backoff, Error, Manifest, Reference, RetryPolicy, Source, SourceOptions, Target};

use super::{Platform, RegisterError, RegisterRequest, platform};

/// Failures in a row before registration gives up: about 2 s of waiting, somebody stands before the terminal.
const ATTEMPTS: u32 = 5;

/// One image, resolved.
#[derive(Debug)]
pub struct ResolvedImage {
    /// Where it was found.
    pub source: Source,
    /// Its own manifest, not the index that led there.
    pub manifest: Manifest,
    /// What that says.
    pub image: ImageManifest,
    /// What the index offers, if the reference named one.
    pub platforms: Vec<String>,
}

/// Resolves `reference`. Without `platform` an index must have an image for linux on this machine's processor.
pub async fn resolve(
    reference: &str,
    platform: Option<&Platform>,
    plain_http: bool,
) -> Result<ResolvedImage, RegisterError> {
    resolve_as(&RegisterRequest { plain_http, ..RegisterRequest::new(reference) }, platform).await
}

/// The same, for whom and by the manifest that the request names.
pub(super) async fn resolve_as(
    request: &RegisterRequest,
    platform: Option<&Platform>,
) -> Result<ResolvedImage, RegisterError> {
    let reference = request.reference.as_str();
    let parsed = Reference::parse(reference)?;
    let retry = RetryPolicy { attempts: ATTEMPTS, ..RetryPolicy::default() };
    let (plain_http, login) = (request.plain_http, request.login.clone());
    let options = SourceOptions { plain_http, retry, login, ..SourceOptions::default() };
    let source = Source::open(&parsed, &options)?;
    let target = request.manifest.clone().map(Target::Digest).or(parsed.target());
    let manifest = fetch(&source, target).await?;
    let links = match parse(reference, &manifest)? {
        Document::Image(image) => return Ok(ResolvedImage { source, manifest, image, platforms: Vec::new() }),
        Document::Index(links) => links,
    };
    let chosen = choose(reference, &links, platform)?;
    let manifest = fetch(&source, Some(Target::Digest(chosen.digest.clone()))).await?;
    let platforms = offered(&links);
    match parse(reference, &manifest)? {
        Document::Image(image) => Ok(ResolvedImage { source, manifest, image, platforms }),
        Document::Index(_) => Err(not_an_image(reference, "its index points to another index".into())),
    }
}

async fn fetch(source: &Source, target: Option<Target>) -> Result<Manifest, Error> {
    patiently(source, || source.manifest(target.as_ref())).await
}

/// Repeats a request while what hinders it passes.
pub async fn patiently<T, F>(source: &Source, mut request: impl FnMut() -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    let mut backoff = Backoff::new(source.options().retry);
    loop {
        match request().await {
            Ok(value) => return Ok(value),
            Err(error) => tokio::time::sleep(backoff.failed(error)?).await,
        }
    }
}

fn parse(reference: &str, manifest: &Manifest) -> Result<Document, RegisterError> {
    let document = Document::parse(&manifest.bytes).map_err(|reason| not_an_image(reference, reason))?;
    if let Document::Image(image) = &document {
        // Empty: old tools leave it out. Anything else is an artifact: a chart, a signature, a module.
        if !matches!(&*image.config.media_type, manifest::OCI_CONFIG | manifest::DOCKER_CONFIG | "") {
            let reason = format!("it is an artifact whose configuration has the type {:?}", image.config.media_type);
            return Err(not_an_image(reference, reason));
        }
    }
    Ok(document)
}

fn not_an_image(reference: &str, reason: String) -> RegisterError {
    RegisterError::NotAnImage { reference: reference.into(), reason }
}

fn choose<'a>(reference: &str, links: &'a [Link], platform: Option<&Platform>) -> Result<&'a Link, RegisterError> {
    let wanted = platform.cloned().unwrap_or_else(Platform::here);
    let fits = |link: &&Link| link.platform.as_ref().is_some_and(|platform| wanted.fits(platform));
    if let Some(link) = links.iter().find(fits) {
        return Ok(link);
    }
    // An index of one image without a platform says nothing against it.
    match links {
        [link] if link.platform.is_none() && platform.is_none() => Ok(link),
        _ => Err(RegisterError::UnknownPlatform {
            reference: reference.into(),
            wanted: wanted.to_string(),
            available: match offered(links) {
                list if list.is_empty() => "no image at all".into(),
                list => list.join(", "),
            },
        }),
    }
}

fn offered(links: &[Link]) -> Vec<String> {
    let mut list: Vec<String> = Vec::new();
    for platform in links.iter().filter_map(|link| link.platform.as_ref()) {
        let text = platform::show(platform);
        // Build tools file their attestations under unknown/unknown.
        if platform.os != "unknown" && !list.contains(&text) {
            list.push(text);
        }
    }
    list
}
