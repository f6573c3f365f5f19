//! One connection of a runtime: its requests one after another, each answered before the next is read.

use std::sync::Arc;
use std::time::Duration;

use faasnet_origin::RegistryReference;
use faasnet_origin::range::{self, Wanted};
use tokio::time::timeout;

use super::body::{Cut, Part};
use super::catalogue::{Blob, Image};
use super::early::EarlyPart;
use super::places::Place;
use super::reply::{Head, Refusal, refuse};
use super::request::{End, Reader, Request, Wish};
use super::socket::Socket;
use super::{Mirror, is_on_its_way};

const DOCUMENT: &str = "application/json";
const BYTES: &str = "application/octet-stream";

/// How long a client for which there is no place may take to ask, so as to hear the answer.
const TURN_AWAY: Duration = Duration::from_secs(1);

/// What to send after a head.
enum Body {
    Document(Vec<u8>),
    Blob(Part),
    Early(EarlyPart),
}

impl Body {
    /// Waits until its first byte is here.
    async fn begin(&self, socket: &Socket, mirror: &Mirror) -> Result<(), Cut> {
        match self {
            Self::Document(_) => Ok(()),
            Self::Blob(part) => part.begin(socket, mirror).await,
            Self::Early(part) => part.begin(socket, mirror).await,
        }
    }
}

/// Answers until the client ends, does not want more, or must not get more.
pub(super) async fn serve(socket: Socket, mirror: Mirror, place: Arc<Place>) {
    let mut reader = Reader::new(mirror.limits.head);
    loop {
        let request = match reader.next(&socket).await {
            Ok(request) => request,
            Err(End::Gone) => return,
            Err(End::Malformed(refusal)) => return tell(&socket, &refusal).await,
        };
        if !place.answers() {
            return;
        }
        mirror.counters.asked();
        let keep_alive = request.keep_alive;
        if let Err(cut) = answer(request, &socket, &mirror).await {
            match cut {
                Cut::Client(error) => tracing::debug!(%error, "a client of the mirror is gone"),
                Cut::Stalled(_) | Cut::Dropped | Cut::NotRegistered(_) | Cut::Damaged(_) => {
                    mirror.counters.cut();
                    tracing::warn!(reason = %cut, "a pull through the mirror is cut; the runtime goes on at the registry");
                }
            }
            // Closed in the middle of a body: the runtime sees that it is short.
            return;
        }
        if !keep_alive {
            return;
        }
        place.waits_for_request();
    }
}

/// Answers that there is no place: the runtime goes to the registry.
pub(super) async fn turn_away(socket: Socket, mirror: Mirror) {
    mirror.counters.refused();
    // Ignored: what it asks for makes no difference. Closed before it is read, the answer might be lost.
    let _ = timeout(TURN_AWAY, Reader::new(TURN_AWAY).next(&socket)).await;
    let reason = format!("the mirror answers {} connections already; try again later", mirror.limits.connections);
    tell(&socket, &refuse(503, "TOOMANYREQUESTS", reason)).await;
}

/// The last word of a connection.
async fn tell(socket: &Socket, refusal: &Refusal) {
    let (head, document) = refused(refusal);
    let bytes = [head.finish(false).into_bytes(), document].concat();
    // Ignored: a client that does not listen need not be told.
    let _ = socket.send_all(&bytes).await;
}

#[tracing::instrument(name = "mirror", level = "debug", skip_all, fields(wish = ?request.wish, range = request.range))]
async fn answer(request: Request, socket: &Socket, mirror: &Mirror) -> Result<(), Cut> {
    let Request { head_only, range, if_range, keep_alive, wish } = request;
    let mut answered = match wish {
        Ok(Wish::Version) => Ok((Head::new(200, DOCUMENT, 2), Body::Document(b"{}".to_vec()))),
        Ok(Wish::Manifest(reference)) => manifest(&reference, mirror).await,
        Ok(Wish::Blob(repository, digest)) => {
            // A range of what the client has an older version of is of no use to it.
            let range = range.filter(|_| if_range.is_none_or(|tag| tag == format!("\"{digest}\"")));
            blob(&repository, &digest, range.as_deref(), mirror).await
        }
        Err(refusal) => Err(refusal),
    };
    // Nothing is promised before its first byte is here: after a 404 a runtime goes to the registry, where one that has been promised a blob
    // asks here again when the answer breaks off, and may tell of no more than an unexpected end.
    if let (Ok((_, body)), false) = (&answered, head_only)
        && let Err(cut) = body.begin(socket, mirror).await
    {
        match cut {
            Cut::Client(_) => return Err(cut),
            _ => answered = Err(refuse(404, "BLOB_UNKNOWN", cut.to_string())),
        }
    }
    let (head, body) = answered.unwrap_or_else(|refusal| {
        let (head, document) = refused(&refusal);
        mirror.counters.refused();
        tracing::debug!(status = refusal.status, reason = refusal.message, "refused by the mirror");
        (head, Body::Document(document))
    });
    let mut bytes = head.finish(keep_alive).into_bytes();
    if head_only {
        return Ok(socket.send_all(&bytes).await?);
    }
    match body {
        Body::Document(document) => {
            bytes.extend_from_slice(&document);
            Ok(socket.send_all(&bytes).await?)
        }
        Body::Blob(part) => {
            socket.send_all(&bytes).await?;
            part.send(socket, mirror).await
        }
        Body::Early(part) => {
            socket.send_all(&bytes).await?;
            part.send(socket, mirror).await
        }
    }
}

fn refused(refusal: &Refusal) -> (Head, Vec<u8>) {
    let document = refusal.document();
    let head = Head::new(refusal.status, DOCUMENT, document.len() as u64);
    let head = if refusal.status == 405 { head.with("Allow", "GET, HEAD") } else { head };
    (head, document)
}

async fn manifest(reference: &RegistryReference, mirror: &Mirror) -> Result<(Head, Body), Refusal> {
    let unknown = |reason: String| refuse(404, "MANIFEST_UNKNOWN", reason);
    let image = mirror.catalogue.image(reference).await.map_err(unknown)?;
    let (document, media_type, digest) = match &image {
        Image::Held(found) => {
            let descriptor = found.stored.descriptor();
            (descriptor.manifest(), descriptor.manifest_media_type(), descriptor.manifest_digest())
        }
        Image::Arriving(arriving) => {
            let known = arriving.known().ok_or_else(|| unknown("what it is made of is not known yet".into()))?;
            let outline = &known.outline;
            (&outline.manifest[..], &outline.manifest_media_type[..], &outline.manifest_digest[..])
        }
    };
    if reference.digest.as_deref().is_some_and(|wanted| wanted != digest) {
        // An image that was registered by the digest of an index: the index is the registry's to give.
        return Err(unknown(format!("of {reference} only the image {digest} is known here")));
    }
    let head = Head::new(200, media_type, document.len() as u64).of(digest);
    Ok((head, Body::Document(document.to_vec())))
}

async fn blob(
    repository: &RegistryReference,
    digest: &str,
    range: Option<&str>,
    mirror: &Mirror,
) -> Result<(Head, Body), Refusal> {
    let unknown = |reason: &str| refuse(404, "BLOB_UNKNOWN", format!("{digest}: {reason}"));
    let held = mirror.catalogue.blob(repository, digest).await;
    let held = held.ok_or_else(|| unknown("no image with this blob is held here"))?;
    let len = held.len();
    let head = |status, len| Head::new(status, BYTES, len).of(digest).with("Accept-Ranges", "bytes");
    let (head, bytes) = match range::parse(range, len) {
        Wanted::Whole => (head(200, len), 0..len),
        Wanted::Part(part) => {
            let shown = format!("bytes {}-{}/{len}", part.start, part.end - 1);
            (head(206, part.end - part.start).with("Content-Range", &shown), part)
        }
        Wanted::Unsatisfiable => {
            let head = head(416, 0).with("Content-Range", &format!("bytes */{len}"));
            return Ok((head, Body::Document(Vec::new())));
        }
    };
    let part = match held {
        Blob::Held(found, entry) => Part { found, entry, bytes },
        Blob::Arriving(arriving, entry) => return Ok((head, Body::Early(EarlyPart { arriving, entry, bytes }))),
    };
    if !part.has_begun() {
        let (stored, waits) = (&part.found.stored, is_on_its_way(&mirror.catalogue, &part.found));
        if waits.is_none() || mirror.stalled.is(stored.descriptor().id(), stored.present().count()) {
            return Err(unknown("it does not arrive at present"));
        }
    }
    Ok((head, Body::Blob(part)))
}
