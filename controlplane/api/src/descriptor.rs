//! The image descriptor: everything that a node must know to receive, verify and serve an image, in one value of known size.
//!
//! Its encoding is postcard, whose bytes are canonical for a given value; other bytes that would mean the same are refused. `ImageId` is
//! BLAKE3 over them, so a descriptor from an untrusted neighbour is accepted only if it is the one that the controller named. Parsed
//! descriptors are valid: every count and length in them has been checked.

use std::collections::HashSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::geometry::{BlockIndex, Geometry, GeometryError};
use crate::ids::ImageId;
use crate::verify::{BlockDigest, Verify};

/// The largest encoded descriptor that is accepted: a block takes 48 bytes of it, so images of 256 GiB fit.
pub const MAX_DESCRIPTOR_BYTES: usize = 64 << 20;

/// The version of the encoding; the first byte, so that a later reader can tell. 1 had no XXH3 digests.
const FORMAT_OCI_2: u8 = 2;

/// One blob of the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The OCI digest, `sha256:` and 64 hexadecimal digits.
    pub digest: String,
    /// The OCI media type.
    pub media_type: String,
    /// Bytes; may be 0.
    pub len: u64,
}

/// Where roots read the blobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    /// An OCI registry.
    Registry {
        /// `https://host[:port]` or `http://host[:port]`, without a path.
        base_url: String,
        /// The repository's name, without registry and tag.
        repository: String,
        /// Whether blob requests with `Range` are honoured; without it one root reads the whole image in order.
        ranges: bool,
    },
    /// An OCI image layout folder on every root's own file system.
    Layout {
        /// Absolute path.
        path: String,
    },
}

impl Origin {
    /// Whether a part of a blob can be read without reading what lies before it.
    pub fn ranges(&self) -> bool {
        match self {
            Self::Registry { ranges, .. } => *ranges,
            Self::Layout { .. } => true,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Body {
    format: u8,
    chunk_bytes: u32,
    block_bytes: u32,
    reference: String,
    origin: Origin,
    manifest_media_type: String,
    manifest_digest: String,
    manifest: Vec<u8>,
    entries: Vec<Entry>,
    blocks: Vec<BlockDigest>,
}

/// What an image is made of. See the module's documentation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    body: Body,
    geometry: Arc<Geometry>,
    id: ImageId,
}

/// The parts of a new descriptor; see [`Descriptor`]'s methods of the same names.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct DescriptorParts {
    pub block_bytes: u32,
    pub reference: String,
    pub origin: Origin,
    pub manifest_media_type: String,
    pub manifest_digest: String,
    pub manifest: Vec<u8>,
    /// Config first, then the layers in order; each digest once.
    pub entries: Vec<Entry>,
    /// One per block of the geometry that the entries' lengths give.
    pub blocks: Vec<BlockDigest>,
}

/// Why bytes are not a descriptor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DescriptorError {
    /// Longer than [`MAX_DESCRIPTOR_BYTES`].
    #[error("a descriptor of {0} bytes is larger than {MAX_DESCRIPTOR_BYTES}")]
    TooLong(usize),
    /// The bytes hash to another id than was asked for.
    #[error("the descriptor's bytes belong to image {got}, not to {expected}")]
    WrongImage {
        /// The id that was asked for.
        expected: ImageId,
        /// The id of the bytes.
        got: ImageId,
    },
    /// Not the encoding of a descriptor.
    #[error("the descriptor cannot be decoded: {0}")]
    Encoding(String),
    /// Another format than this program knows.
    #[error(
        "descriptor format {0} is not that of this version ({FORMAT_OCI_2}); upgrade this node, or create the function again"
    )]
    Format(u8),
    /// Lengths that cannot be.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// The number of digests does not fit the lengths.
    #[error("{got} block digests for {expected} blocks")]
    BlockCount {
        /// What the lengths give.
        expected: u32,
        /// What the descriptor holds.
        got: usize,
    },
    /// Not `sha256:` and 64 lower-case hexadecimal digits.
    #[error("{0:?} is not a sha256 digest")]
    Digest(String),
    /// A blob is listed twice.
    #[error("blob {0} is listed twice")]
    Duplicate(String),
}

impl Descriptor {
    /// Makes a descriptor; fails when the parts contradict each other.
    pub fn new(parts: DescriptorParts) -> Result<Self, DescriptorError> {
        let body = Body {
            format: FORMAT_OCI_2,
            chunk_bytes: crate::geometry::CHUNK_BYTES,
            block_bytes: parts.block_bytes,
            reference: parts.reference,
            origin: parts.origin,
            manifest_media_type: parts.manifest_media_type,
            manifest_digest: parts.manifest_digest,
            manifest: parts.manifest,
            entries: parts.entries,
            blocks: parts.blocks,
        };
        let bytes = encode(&body);
        Self::validate(body, &bytes)
    }

    /// Reads an encoded descriptor, checking that it is the one named `expected`.
    pub fn decode(bytes: &[u8], expected: ImageId) -> Result<Self, DescriptorError> {
        if bytes.len() > MAX_DESCRIPTOR_BYTES {
            return Err(DescriptorError::TooLong(bytes.len()));
        }
        let got = ImageId(*blake3::hash(bytes).as_bytes());
        if got != expected {
            return Err(DescriptorError::WrongImage { expected, got });
        }
        Self::parse(bytes)
    }

    /// Reads an encoded descriptor of any image; for fuzzing and inspection. Nodes use [`Descriptor::decode`].
    pub fn parse(bytes: &[u8]) -> Result<Self, DescriptorError> {
        if bytes.len() > MAX_DESCRIPTOR_BYTES {
            return Err(DescriptorError::TooLong(bytes.len()));
        }
        // Before the rest, which another format encodes in another way.
        if let Some(&format) = bytes.first().filter(|&&format| format != FORMAT_OCI_2) {
            return Err(DescriptorError::Format(format));
        }
        let (body, rest): (Body, &[u8]) =
            postcard::take_from_bytes(bytes).map_err(|error| DescriptorError::Encoding(error.to_string()))?;
        if !rest.is_empty() {
            return Err(DescriptorError::Encoding(format!("{} bytes follow the end", rest.len())));
        }
        // Postcard also reads numbers that are longer than need be: the id would be that of bytes that nobody can encode again.
        if encode(&body) != bytes {
            return Err(DescriptorError::Encoding("its bytes are not the only ones that mean it".into()));
        }
        Self::validate(body, bytes)
    }

    fn validate(body: Body, bytes: &[u8]) -> Result<Self, DescriptorError> {
        if bytes.len() > MAX_DESCRIPTOR_BYTES {
            return Err(DescriptorError::TooLong(bytes.len()));
        }
        let geometry = Geometry::new(body.chunk_bytes, body.block_bytes, body.entries.iter().map(|entry| entry.len))?;
        if geometry.blocks() as usize != body.blocks.len() {
            return Err(DescriptorError::BlockCount { expected: geometry.blocks(), got: body.blocks.len() });
        }
        let mut digests = HashSet::new();
        for digest in body.entries.iter().map(|entry| &entry.digest) {
            check_digest(digest)?;
            if !digests.insert(digest) {
                return Err(DescriptorError::Duplicate(digest.clone()));
            }
        }
        check_digest(&body.manifest_digest)?;
        let id = ImageId(*blake3::hash(bytes).as_bytes());
        Ok(Self { geometry: Arc::new(geometry), id, body })
    }

    /// The bytes that travel and are hashed.
    pub fn encode(&self) -> Vec<u8> {
        encode(&self.body)
    }

    /// BLAKE3 of the encoding.
    pub fn id(&self) -> ImageId {
        self.id
    }

    /// How the image is cut.
    pub fn geometry(&self) -> &Arc<Geometry> {
        &self.geometry
    }

    /// The reference as the user gave it.
    pub fn reference(&self) -> &str {
        &self.body.reference
    }

    /// Where roots read.
    pub fn origin(&self) -> &Origin {
        &self.body.origin
    }

    /// The OCI manifest, byte for byte.
    pub fn manifest(&self) -> &[u8] {
        &self.body.manifest
    }

    /// The manifest's media type.
    pub fn manifest_media_type(&self) -> &str {
        &self.body.manifest_media_type
    }

    /// The manifest's sha256 digest.
    pub fn manifest_digest(&self) -> &str {
        &self.body.manifest_digest
    }

    /// The blobs in stream order: config first, then layers; each digest once. The config's bytes are the first entry's.
    pub fn entries(&self) -> &[Entry] {
        &self.body.entries
    }

    /// The digests of a block; `None` when the image has no such block.
    pub fn block_digest(&self, block: BlockIndex) -> Option<&BlockDigest> {
        self.body.blocks.get(block.0 as usize)
    }

    /// Whether `payload` is the block `block`, as far as `mode` tells.
    pub fn verify(&self, block: BlockIndex, payload: &[u8], mode: Verify) -> bool {
        self.block_digest(block).is_some_and(|digest| digest.matches(payload, mode))
    }
}

fn encode(body: &Body) -> Vec<u8> {
    // A body has no maps, floats or skipped fields, and a Vec grows: postcard has no way to fail here.
    postcard::to_stdvec(body).unwrap_or_else(|error| unreachable!("encoding a descriptor cannot fail: {error}"))
}

fn check_digest(digest: &str) -> Result<(), DescriptorError> {
    let valid = digest
        .strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')));
    if valid { Ok(()) } else { Err(DescriptorError::Digest(digest.into())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Descriptor {
        let payload = [7u8; 10];
        Descriptor::new(DescriptorParts {
            block_bytes: crate::BLOCK_BYTES,
            reference: "example/app:1".into(),
            origin: Origin::Layout { path: "/tmp/x".into() },
            manifest_media_type: "application/vnd.oci.image.manifest.v1+json".into(),
            manifest_digest: format!("sha256:{}", "0".repeat(64)),
            manifest: b"{}".to_vec(),
            entries: vec![Entry { digest: format!("sha256:{}", "a".repeat(64)), media_type: "m".into(), len: 10 }],
            blocks: vec![BlockDigest::of(&payload)],
        })
        .unwrap()
    }

    /// Catches an encoding that is not canonical: the id must survive a round trip.
    #[test]
    fn round_trip_keeps_the_id() {
        let descriptor = sample();
        assert_eq!(Descriptor::decode(&descriptor.encode(), descriptor.id()).unwrap(), descriptor);
        assert!(descriptor.verify(BlockIndex(0), &[7; 10], Verify::Blake3));
        assert!(!descriptor.verify(BlockIndex(0), &[7; 9], Verify::Xxh3));
        assert!(!descriptor.verify(BlockIndex(1), &[7; 10], Verify::Off), "there is no such block");
    }

    /// Catches a flipped bit or a missing tail that is taken for a descriptor.
    #[test]
    fn damaged_bytes_are_refused() {
        let descriptor = sample();
        let bytes = descriptor.encode();
        for index in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[index] ^= 0x10;
            assert!(Descriptor::decode(&damaged, descriptor.id()).is_err());
            // Ignored: a damaged body may still parse; it must only not panic.
            let _ = Descriptor::parse(&damaged);
            assert!(Descriptor::parse(&bytes[..index]).is_err());
        }
    }

    /// Catches a descriptor of another version that is reported as damage, or read in the wrong way.
    #[test]
    fn other_formats_are_named() {
        for format in [1, 3] {
            let mut bytes = sample().encode();
            bytes[0] = format;
            assert_eq!(Descriptor::parse(&bytes), Err(DescriptorError::Format(format)));
        }
    }

    /// Catches bytes that parse, but whose id is not that of the encoding that is stored for them.
    #[test]
    fn a_padded_number_is_refused() {
        let descriptor = sample();
        let mut bytes = descriptor.encode();
        // Format and chunk length, then the block length: a varint, whose last byte gets a continuation to nothing.
        let start = 1 + postcard::to_stdvec(&crate::geometry::CHUNK_BYTES).unwrap().len();
        let len = postcard::to_stdvec(&crate::BLOCK_BYTES).unwrap().len();
        bytes[start + len - 1] |= 0x80;
        bytes.insert(start + len, 0);
        let (body, rest): (Body, &[u8]) = postcard::take_from_bytes(&bytes).unwrap();
        assert!(rest.is_empty() && body == descriptor.body, "the padding means the same");
        assert!(matches!(Descriptor::parse(&bytes), Err(DescriptorError::Encoding(_))));
        assert!(Descriptor::decode(&bytes, ImageId(*blake3::hash(&bytes).as_bytes())).is_err());
    }

    /// Catches an absurd length that would make a node allocate or overflow.
    #[test]
    fn absurd_lengths_are_refused() {
        let entry = |len| Entry { digest: format!("sha256:{}", "a".repeat(64)), media_type: "m".into(), len };
        for len in [u64::MAX, u64::MAX - 4095, 1 << 50] {
            let parts = DescriptorParts {
                block_bytes: crate::BLOCK_BYTES,
                reference: String::new(),
                origin: Origin::Layout { path: String::new() },
                manifest_media_type: String::new(),
                manifest_digest: format!("sha256:{}", "0".repeat(64)),
                manifest: Vec::new(),
                entries: vec![entry(len)],
                blocks: Vec::new(),
            };
            assert_eq!(Descriptor::new(parts), Err(GeometryError::TooManyBlocks.into()));
        }
    }
}
