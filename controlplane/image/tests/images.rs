//! Images of awkward shapes and broken ones through registration, inspection and export. Over layouts: the faults of
//! registries are tested where the registry reader is.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::path::Path;
use std::sync::Mutex;

use faasnet_api::{BLOCK_BYTES, BlockIndex, Descriptor, Origin, Verify};
use faasnet_image::{
    BuildOptions, BuiltImage, ExportError, InspectRequest, RegisterError, RegisterRequest, build_opaque, inspect,
    register, write_layout,
};
use faasnet_origin::{Error, Source, digest, manifest};
use serde_json::{Value, json};

const MIB: usize = 1 << 20;

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|index| (index * 31 + index / 251) as u8).collect()
}

/// An image whose layers are exactly these bytes.
fn opaque(out: &Path, layers: &[Vec<u8>]) -> BuiltImage {
    let mut readers: Vec<&[u8]> = layers.iter().map(|layer| &layer[..]).collect();
    let mut readers: Vec<&mut dyn std::io::Read> = readers.iter_mut().map(|reader| reader as _).collect();
    build_opaque(&mut readers, out, &BuildOptions::default()).unwrap()
}

fn request(layout: &Path) -> RegisterRequest {
    let reference = layout.to_str().unwrap().to_owned();
    RegisterRequest::new(reference)
}

async fn register_layout(layout: &Path) -> Result<Descriptor, RegisterError> {
    register(request(layout), |_, _| {}).await
}

/// A layout by hand: blobs, and an index that points to `top`.
struct Hand<'a> {
    path: &'a Path,
}

impl<'a> Hand<'a> {
    fn new(path: &'a Path) -> Self {
        std::fs::create_dir_all(path.join("blobs/sha256")).unwrap();
        std::fs::write(path.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).unwrap();
        Self { path }
    }

    fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = digest::of(bytes);
        std::fs::write(self.path.join("blobs/sha256").join(&digest[7..]), bytes).unwrap();
        json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() })
    }

    fn json(&self, media_type: &str, value: Value) -> Value {
        self.blob(media_type, value.to_string().as_bytes())
    }

    /// An image for `architecture` with one layer that names it.
    fn image(&self, types: [&str; 3], architecture: &str) -> Value {
        let config = self.json(types[1], json!({ "os": "linux", "architecture": architecture }));
        let layer = self.blob(types[2], architecture.as_bytes());
        self.json(types[0], json!({ "schemaVersion": 2, "mediaType": types[0], "config": config, "layers": [layer] }))
    }

    fn top(&self, link: Value) {
        std::fs::write(self.path.join("index.json"), json!({ "schemaVersion": 2, "manifests": [link] }).to_string())
            .unwrap();
    }
}

const OCI: [&str; 3] = [manifest::OCI_MANIFEST, manifest::OCI_CONFIG, manifest::OCI_LAYER_GZIP];
const DOCKER: [&str; 3] =
    [manifest::DOCKER_MANIFEST, manifest::DOCKER_CONFIG, "application/vnd.docker.image.rootfs.diff.tar.gzip"];

/// Catches a block that is cut or hashed wrongly at the edges: empty blobs, one byte, around the chunk size, a last block of a
/// byte, many layers, the same blob twice.
#[tokio::test]
async fn every_shape_is_described_block_by_block() {
    let same = pattern(10);
    for layers in [
        vec![],
        vec![vec![]],
        vec![vec![], vec![7], vec![]],
        vec![pattern(4 * MIB)],
        vec![pattern(4 * MIB - 1), pattern(4 * MIB + 1)],
        vec![pattern(BLOCK_BYTES as usize + 1)],
        vec![same.clone(), pattern(11), same.clone()],
        (0..60).map(|number| pattern(number * 1000)).collect(),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let layout = folder.path().join("image");
        let built = opaque(&layout, &layers);
        let progress = Mutex::new(Vec::new());
        let descriptor =
            register(request(&layout), |read, total| progress.lock().unwrap().push((read, total))).await.unwrap();
        check_blocks(&descriptor, &layout);
        let mut distinct: Vec<String> = layers.iter().map(|layer| digest::of(layer)).collect();
        let mut seen = std::collections::HashSet::new();
        distinct.retain(|digest| seen.insert(digest.clone()));
        let entries: Vec<String> = descriptor.entries().iter().map(|entry| entry.digest.clone()).collect();
        assert_eq!(entries[1..], distinct);
        assert_eq!(descriptor.geometry().image_bytes(), built.bytes);
        assert_eq!(descriptor.manifest_digest(), built.digest);
        assert_eq!(
            descriptor.origin(),
            &Origin::Layout { path: layout.canonicalize().unwrap().to_str().unwrap().into() }
        );
        let progress = progress.into_inner().unwrap();
        assert_eq!(progress.first(), Some(&(0, built.bytes)));
        assert_eq!(progress.last(), Some(&(built.bytes, built.bytes)));
        // Registering again gives the same image.
        assert_eq!(register_layout(&layout).await.unwrap().id(), descriptor.id());
    }
}

/// Against the definition: each block's digest is that of the blob's bytes at its place.
fn check_blocks(descriptor: &Descriptor, layout: &Path) {
    let geometry = descriptor.geometry();
    for block in (0..geometry.blocks()).map(BlockIndex) {
        let place = geometry.place(block).unwrap();
        let blob =
            std::fs::read(layout.join("blobs/sha256").join(&descriptor.entries()[place.entry].digest[7..])).unwrap();
        let start = place.entry_offset as usize;
        assert!(descriptor.verify(block, &blob[start..start + place.len as usize], Verify::Blake3), "{place:?}");
    }
}

/// Catches Docker's media types that are refused or changed, and an index whose wrong image is taken.
#[tokio::test]
async fn docker_images_and_indexes_are_understood() {
    for (types, index_type) in [(OCI, manifest::OCI_INDEX), (DOCKER, manifest::DOCKER_LIST)] {
        let folder = tempfile::tempdir().unwrap();
        let hand = Hand::new(folder.path());
        let mut links = Vec::new();
        for architecture in ["amd64", "arm64", "riscv64"] {
            let mut link = hand.image(types, architecture);
            link["platform"] = json!({ "os": "linux", "architecture": architecture });
            links.push(link);
        }
        links.push(json!({
            "mediaType": types[0], "digest": digest::of(b"attestation"), "size": 1,
            "platform": { "os": "unknown", "architecture": "unknown" }
        }));
        hand.top(hand.json(index_type, json!({ "schemaVersion": 2, "mediaType": index_type, "manifests": links })));
        for (platform, architecture) in
            [("linux/amd64", "amd64"), ("linux/arm64", "arm64"), ("linux/riscv64", "riscv64")]
        {
            let request = RegisterRequest { platform: Some(platform.into()), ..request(folder.path()) };
            let descriptor = register(request, |_, _| {}).await.unwrap();
            assert_eq!(descriptor.entries()[1].digest, digest::of(architecture.as_bytes()));
            assert_eq!(descriptor.manifest_media_type(), types[0]);
            assert_eq!(descriptor.entries()[1].media_type, types[2]);
        }
        let request = RegisterRequest { platform: Some("linux/s390x".into()), ..request(folder.path()) };
        let error = register(request, |_, _| {}).await.unwrap_err();
        assert!(matches!(error, RegisterError::UnknownPlatform { .. }), "{error}");
        assert!(error.to_string().contains("linux/amd64, linux/arm64, linux/riscv64;"), "{error}");
        let platform = Some("linux/arm64".into());
        let reference = folder.path().to_str().unwrap().to_owned();
        let summary = inspect(&InspectRequest { reference, platform, plain_http: false }).await.unwrap();
        assert_eq!(summary.platforms, ["linux/amd64", "linux/arm64", "linux/riscv64"]);
        assert_eq!((summary.platform.as_deref(), summary.blobs.len()), (Some("linux/arm64"), 2));
    }
}

/// Catches a single image that is registered for a platform that it is not for.
#[tokio::test]
async fn a_single_image_must_fit_the_platform_that_was_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let hand = Hand::new(folder.path());
    hand.top(hand.image(OCI, "s390x"));
    assert!(register_layout(folder.path()).await.is_ok());
    let ask = |platform: &str| {
        register(RegisterRequest { platform: Some(platform.into()), ..request(folder.path()) }, |_, _| {})
    };
    assert!(ask("linux/s390x").await.is_ok());
    assert!(matches!(ask("linux/amd64").await, Err(RegisterError::UnknownPlatform { .. })));
    assert!(matches!(ask("amd64").await, Err(RegisterError::Platform(_))));
}

/// Catches a damaged, missing, short or long blob that is registered.
#[tokio::test]
async fn damaged_images_are_refused() {
    let layers = [pattern(3 * MIB), pattern(5)];
    for (name, damage) in [("flipped", Some(0)), ("missing", None), ("short", Some(1)), ("long", Some(2))] {
        for layer in 0..2 {
            let folder = tempfile::tempdir().unwrap();
            let layout = folder.path().join("image");
            let built = opaque(&layout, &layers);
            let path = layout.join("blobs/sha256").join(&built.layers[layer].digest[7..]);
            let mut bytes = std::fs::read(&path).unwrap();
            match damage {
                None => std::fs::remove_file(&path).unwrap(),
                Some(kind) => {
                    match kind {
                        0 => *bytes.last_mut().unwrap() ^= 1,
                        1 => drop(bytes.pop()),
                        _ => bytes.insert(0, 0),
                    }
                    std::fs::write(&path, bytes).unwrap();
                }
            }
            let error = register_layout(&layout).await.unwrap_err();
            let right = match name {
                "missing" => matches!(error, RegisterError::Origin(Error::NotFound { .. })),
                "short" => matches!(error, RegisterError::Origin(Error::Layout { .. })),
                _ => matches!(error, RegisterError::Origin(Error::FalseDigest { .. })),
            };
            assert!(right && error.to_string().contains(&built.layers[layer].digest), "{name}: {error}");
        }
    }
}

/// Catches an empty layer that is not there, or is not empty, and is taken on trust because no byte of it is needed.
#[tokio::test]
async fn empty_layers_are_checked_too() {
    let folder = tempfile::tempdir().unwrap();
    let layout = folder.path().join("image");
    let built = opaque(&layout, &[vec![]]);
    let path = layout.join("blobs/sha256").join(&built.layers[0].digest[7..]);
    std::fs::write(&path, "x").unwrap();
    assert!(matches!(register_layout(&layout).await, Err(RegisterError::Length { .. })));
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(register_layout(&layout).await, Err(RegisterError::Origin(Error::NotFound { .. }))));
}

/// Catches something that is no container image and is registered, or refused without a reason.
#[tokio::test]
async fn other_documents_are_no_images() {
    let config =
        json!({ "mediaType": "application/vnd.cncf.helm.config.v1+json", "digest": digest::of(b"c"), "size": 1 });
    let layer = |size: u64| json!({ "mediaType": "m", "digest": digest::of(b"l"), "size": size });
    let image_config = json!({ "mediaType": manifest::OCI_CONFIG, "digest": digest::of(b"c"), "size": 1 });
    for (document, reason) in [
        (json!({ "schemaVersion": 1, "fsLayers": [] }), "schema 1"),
        (json!({ "schemaVersion": 2, "config": config, "layers": [layer(1)] }), "artifact"),
        (json!({ "schemaVersion": 2, "layers": [layer(1)] }), "no configuration"),
        (json!({ "schemaVersion": 2, "config": image_config, "layers": [layer(1), layer(2)] }), "both 1 and 2 bytes"),
        (json!({ "schemaVersion": 2, "config": image_config, "layers": [layer(u64::MAX / 2)] }), "more than"),
        (
            json!({ "schemaVersion": 2, "config": image_config, "layers": [layer(u64::MAX), { "digest": digest::of(b"x"), "size": u64::MAX }] }),
            "more than",
        ),
        (
            json!({ "schemaVersion": 2, "config": image_config, "layers": [{ "digest": "sha512:00", "size": 1 }] }),
            "sha256",
        ),
        (
            json!({ "schemaVersion": 2, "config": image_config, "layers": [{ "digest": "sha256:../../x", "size": 1 }] }),
            "sha256",
        ),
        (json!({ "schemaVersion": 2, "manifests": [] }), "no image at all"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let hand = Hand::new(folder.path());
        hand.top(hand.json("", document));
        let error = register_layout(folder.path()).await.unwrap_err().to_string();
        assert!(error.contains(reason), "{reason}: {error}");
    }
}

/// Catches an export that is not byte for byte the image, keeps wrong bytes, or leaves something behind.
#[tokio::test]
async fn exports_are_the_same_image_or_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let layout = folder.path().join("image");
    let layers = [pattern(2 * MIB + 1), vec![], pattern(3)];
    opaque(&layout, &layers);
    let descriptor = register_layout(&layout).await.unwrap();
    let source = Source::from_origin(descriptor.origin()).unwrap();
    let out = folder.path().join("a/b/copy");
    let open = |digest: String| {
        let source = source.clone();
        async move { Ok::<_, Error>(source.open_blob(&digest, None).await?.into_stream()) }
    };
    write_layout(&out, &descriptor, |entry| open(entry.digest.clone()), |_, _| {}).await.unwrap();
    assert_eq!(register_layout(&out).await.unwrap().entries(), descriptor.entries());
    assert_eq!(files(&out), files(&layout));

    // Another image's bytes in the place of the last layer's.
    let out = folder.path().join("wrong");
    let (last, other) = (digest::of(&layers[2]), digest::of(&layers[0]));
    let swap = |digest: String| open(if digest == last { other.clone() } else { digest });
    let error = write_layout(&out, &descriptor, |entry| swap(entry.digest.clone()), |_, _| {}).await.unwrap_err();
    assert!(matches!(error, ExportError::WrongBytes { .. }), "{error}");
    assert!(!out.exists());

    let fail = |digest: String| open(if digest == last { digest::of(b"missing") } else { digest });
    let error = write_layout(&out, &descriptor, |entry| fail(entry.digest.clone()), |_, _| {}).await.unwrap_err();
    assert!(matches!(error, ExportError::Provider { .. }), "{error}");
    assert!(!out.exists());

    std::fs::create_dir(&out).unwrap();
    std::fs::write(out.join("mine"), "precious").unwrap();
    let error = write_layout(&out, &descriptor, |entry| open(entry.digest.clone()), |_, _| {}).await.unwrap_err();
    assert!(matches!(error, ExportError::Output(_)), "{error}");
    assert_eq!(files(&out).keys().collect::<Vec<_>>(), ["mine"]);
}

fn files(folder: &Path) -> HashMap<String, Vec<u8>> {
    let mut found = HashMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).unwrap().map(Result::unwrap) {
            match entry.file_type().unwrap().is_dir() {
                true => folders.push(entry.path()),
                false => {
                    let name = entry.path().strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
                    // The index carries notes of the writer; what it points to is compared by digest.
                    let bytes = if name == "index.json" { Vec::new() } else { std::fs::read(entry.path()).unwrap() };
                    found.insert(name, bytes);
                }
            }
        }
    }
    found
}

/// Catches a registration that cannot run on the controller's threads.
#[test]
fn registration_can_be_spawned() {
    fn assert_send<T: Send>(_: &T) {}
    assert_send(&register(request(Path::new("/nonexistent")), |_, _| {}));
    assert_send(&inspect(&InspectRequest::default()));
}
