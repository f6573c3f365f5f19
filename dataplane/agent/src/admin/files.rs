//! The verified files of a complete image, as `faasnet pull` and people fetch them: manifest, descriptor and blobs.
//!
//! Nothing of an image is given out before all of it is verified and stored.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use faasnet_store::StoredImage;
use futures_util::stream;

use super::{Path, Refused, Shared};

/// How much of a blob is read from the store at once.
const READ_BYTES: u64 = 256 << 10;

type Names = Path<(String, String)>;

/// The OCI manifest, byte for byte.
pub(super) async fn manifest(
    State(shared): State<Shared>,
    Path((tenant, function)): Names,
) -> Result<impl IntoResponse, Refused> {
    let image = complete(&shared, &tenant, &function)?;
    let descriptor = image.descriptor();
    let headers = [
        (header::CONTENT_TYPE.as_str(), descriptor.manifest_media_type().to_owned()),
        ("docker-content-digest", descriptor.manifest_digest().to_owned()),
    ];
    Ok((headers, descriptor.manifest().to_vec()))
}

/// The encoded descriptor.
pub(super) async fn descriptor(
    State(shared): State<Shared>,
    Path((tenant, function)): Names,
) -> Result<impl IntoResponse, Refused> {
    let image = complete(&shared, &tenant, &function)?;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], image.descriptor().encode()))
}

/// One blob, streamed from the image's file.
pub(super) async fn blob(
    State(shared): State<Shared>,
    Path((tenant, function, digest)): Path<(String, String, String)>,
) -> Result<impl IntoResponse, Refused> {
    let image = complete(&shared, &tenant, &function)?;
    let entries = image.descriptor().entries();
    let entry = entries.iter().position(|entry| entry.digest == digest);
    let entry = entry.ok_or_else(|| Refused(StatusCode::NOT_FOUND, format!("the image has no blob {digest}")))?;
    let len = entries[entry].len;
    let headers =
        [(header::CONTENT_TYPE, "application/octet-stream".to_owned()), (header::CONTENT_LENGTH, len.to_string())];
    let parts = stream::try_unfold(0, move |offset| read_part(image.clone(), entry, offset, len));
    Ok((headers, Body::from_stream(parts)))
}

async fn read_part(
    image: Arc<StoredImage>,
    entry: usize,
    offset: u64,
    len: u64,
) -> std::io::Result<Option<(Vec<u8>, u64)>> {
    if offset == len {
        return Ok(None);
    }
    let part = READ_BYTES.min(len - offset);
    let read = move || {
        let mut buffer = vec![0; part as usize];
        let got = image.read_at(entry, offset, &mut buffer)?;
        buffer.truncate(got);
        Ok(buffer)
    };
    let read: std::io::Result<Vec<u8>> = tokio::task::spawn_blocking(read).await.map_err(std::io::Error::other)?;
    let buffer =
        read.inspect_err(|error| tracing::error!(entry, offset, %error, "a blob cannot be read from the store"))?;
    if buffer.is_empty() {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    let next = offset + buffer.len() as u64;
    Ok(Some((buffer, next)))
}

/// The image of a function that somebody wants to have something of; that is a use of it.
fn complete(shared: &Shared, tenant: &str, function: &str) -> Result<Arc<StoredImage>, Refused> {
    let (_, row) = shared.row(tenant, function)?;
    let image = row.stored.clone().filter(|stored| stored.is_complete());
    let image = image.ok_or_else(|| {
        Refused(StatusCode::CONFLICT, format!("the image of {tenant}/{function} is not complete on this node yet"))
    })?;
    row.note_use();
    Ok(image)
}
