//! Building images from folders.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use faasnet_image::{BuildError, BuildOptions, BuiltImage, Mtime, RegisterRequest, build, register};
use faasnet_origin::{Layout, Target, digest, manifest};

fn folder_with_everything(path: &Path) {
    fs::create_dir_all(path.join("bin")).unwrap();
    fs::create_dir(path.join("empty")).unwrap();
    fs::write(path.join("bin/tool"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(path.join("bin/tool"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::write(path.join("secret"), "x").unwrap();
    fs::set_permissions(path.join("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    symlink("bin/tool", path.join("link")).unwrap();
    symlink("/nowhere/at/all", path.join("dangling")).unwrap();
    fs::hard_link(path.join("secret"), path.join("zz-hard")).unwrap();
    fs::write(path.join("a".repeat(200)), "long name").unwrap();
    let deep = path.join(["d".repeat(90), "e".repeat(90), "f".repeat(90)].join("/"));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("größe"), "deep").unwrap();
    drop(std::os::unix::net::UnixListener::bind(path.join("socket")).unwrap());
}

/// Path → (type, mode, link target or content).
fn unpack(image: &BuiltImage, layer: usize) -> BTreeMap<String, (u8, u32, String)> {
    let blob = fs::read(image.layout.join("blobs/sha256").join(&image.layers[layer].digest[7..])).unwrap();
    assert_eq!(digest::of(&blob), image.layers[layer].digest);
    let mut tar = Vec::new();
    flate2::read::GzDecoder::new(&blob[..]).read_to_end(&mut tar).unwrap();
    assert_eq!(digest::of(&tar), image.layers[layer].diff_id);
    let mut archive = tar::Archive::new(&tar[..]);
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let (kind, mode) = (entry.header().entry_type().as_byte(), entry.header().mode().unwrap());
        assert_eq!((entry.header().uid().unwrap(), entry.header().gid().unwrap()), (0, 0));
        let path = entry.path().unwrap().to_str().unwrap().to_owned();
        let mut content = String::new();
        entry.read_to_string(&mut content).unwrap();
        let target = entry.link_name().unwrap().map(|target| target.to_str().unwrap().to_owned());
        (path, (kind, mode, target.unwrap_or(content)))
    });
    entries.collect()
}

/// Catches a file, mode, link or name that gets lost, and an image that differs for the same content.
#[test]
fn folders_become_the_same_layers_each_time() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    folder_with_everything(&root);
    let options = BuildOptions { mtime: Mtime::Fixed(0), ..Default::default() };
    let image = build(&[root.clone(), root.join("bin")], &folder.path().join("out"), &options).unwrap();
    let content = unpack(&image, 0);
    let deep = format!("{}/{}/{}", "d".repeat(90), "e".repeat(90), "f".repeat(90));
    for (path, kind, mode, text) in [
        ("bin", b'5', 0o755, ""),
        ("bin/tool", b'0', 0o4755, "#!/bin/sh\n"),
        ("empty", b'5', 0o755, ""),
        ("secret", b'0', 0o600, "x"),
        ("zz-hard", b'1', 0o600, "secret"),
        ("link", b'2', 0o777, "bin/tool"),
        ("dangling", b'2', 0o777, "/nowhere/at/all"),
        (&*"a".repeat(200), b'0', 0o644, "long name"),
        (&*format!("{deep}/größe"), b'0', 0o644, "deep"),
    ] {
        let got = &content[path];
        assert_eq!((got.0, &*got.2), (kind, text), "{path}");
        // What the umask leaves of the others is not ours to test.
        assert!(got.1 == mode || ![0o4755, 0o600, 0o777].contains(&mode), "{path}: {:o}", got.1);
    }
    assert!(!content.contains_key("socket"));
    assert_eq!(image.skipped, [root.join("socket")]);
    assert_eq!(unpack(&image, 1).keys().collect::<Vec<_>>(), ["tool"]);
    let again = build(&[root.clone(), root.join("bin")], &folder.path().join("again"), &options).unwrap();
    assert_eq!((again.digest, again.layers), (image.digest, image.layers));
}

/// Catches an image that registration or a container runtime would refuse, and a second image that disturbs the first.
#[tokio::test]
async fn built_images_can_be_registered() {
    let folder = tempfile::tempdir().unwrap();
    let (root, out) = (folder.path().join("root"), folder.path().join("out"));
    folder_with_everything(&root);
    let tagged = |tag: &str| BuildOptions { tag: tag.into(), ..Default::default() };
    // The same folder twice: the same blob twice in the manifest.
    let first = build(&[root.clone(), root.clone()], &out, &tagged("v1")).unwrap();
    fs::write(root.join("new"), "new").unwrap();
    let second = build(std::slice::from_ref(&root), &out, &tagged("v2")).unwrap();
    let layout = Layout::open(&out).unwrap();
    for (tag, image, layers) in [("v1", &first, 1), ("v2", &second, 1)] {
        let request = RegisterRequest::new(format!("oci:{}:{tag}", out.display()));
        let descriptor = register(request, |_, _| {}).await.unwrap();
        assert_eq!((descriptor.manifest_digest(), descriptor.entries().len()), (&*image.digest, 1 + layers));
        assert_eq!(descriptor.geometry().image_bytes(), image.bytes);
        let found = layout.manifest(Some(&Target::Tag(tag.into()))).unwrap();
        assert_eq!((&found.digest, &*found.media_type), (&image.digest, manifest::OCI_MANIFEST));
    }
    let config = &layout.manifest(Some(&Target::Tag("v1".into()))).unwrap();
    let config: serde_json::Value = serde_json::from_slice(&config.bytes).unwrap();
    let config = fs::read(layout.blob_path(config["config"]["digest"].as_str().unwrap()).unwrap()).unwrap();
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    assert_eq!(config["rootfs"]["diff_ids"], serde_json::json!([first.layers[0].diff_id, first.layers[1].diff_id]));
    // The same tag again replaces the image.
    build(std::slice::from_ref(&root), &out, &tagged("v1")).unwrap();
    assert_eq!(layout.index().unwrap().len(), 2);
    assert_eq!(layout.find_tag(Some("v1")).unwrap().digest, second.digest);
}

fn names(folder: &Path) -> Vec<PathBuf> {
    let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    names
}

/// Catches a build that overwrites somebody's folder, swallows its own output, or leaves a half image behind.
#[test]
fn failures_leave_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let (root, out) = (folder.path().join("root"), folder.path().join("new/out"));
    fs::create_dir(&root).unwrap();
    fs::write(root.join("file"), "x").unwrap();
    let options = BuildOptions::default();
    let from = [root.clone()];
    assert!(matches!(build(&[], &out, &options), Err(BuildError::NoFolder)));
    let named = BuildOptions { tag: "app:1".into(), ..BuildOptions::default() };
    assert!(matches!(build(&from, &out, &named), Err(BuildError::Tag(_))));
    assert!(matches!(build(&[root.join("file")], &out, &options), Err(BuildError::Folder { .. })));
    assert!(matches!(build(&[root.join("none")], &out, &options), Err(BuildError::Folder { .. })));
    assert!(matches!(build(&from, &root.join("sub/out"), &options), Err(BuildError::Overlap { .. })));
    let cancel = Arc::new(AtomicBool::new(true));
    let cancelled = BuildOptions { cancel: Some(cancel), ..Default::default() };
    assert!(matches!(build(&from, &out, &cancelled), Err(BuildError::Cancelled)));
    assert_eq!(names(folder.path()), from);
    // Half-way: the second file ends it.
    fs::write(root.join("zz"), "x").unwrap();
    let cancel = Arc::new(AtomicBool::new(false));
    let stop = cancel.clone();
    let progress: Arc<dyn Fn(u64) + Send + Sync> = Arc::new(move |_| stop.store(true, Ordering::Relaxed));
    let cancelled = BuildOptions { cancel: Some(cancel), progress: Some(progress), ..Default::default() };
    assert!(matches!(build(&from, &out, &cancelled), Err(BuildError::Cancelled)));
    assert_eq!(names(folder.path()), from);
    // A folder with something else in it stays as it is; an empty one stays empty.
    let mine = folder.path().join("mine");
    fs::create_dir(&mine).unwrap();
    assert!(matches!(build(&from, &mine, &cancelled), Err(BuildError::Cancelled)));
    assert!(names(&mine).is_empty());
    fs::write(mine.join("precious"), "x").unwrap();
    assert!(matches!(build(&from, &mine, &options), Err(BuildError::Output(_))));
    assert_eq!(names(&mine), [mine.join("precious")]);
    // A layout keeps what it had.
    build(&from, &out, &options).unwrap();
    let before = names(&out.join("blobs/sha256"));
    fs::write(root.join("other"), "y").unwrap();
    assert!(matches!(build(&from, &out, &cancelled), Err(BuildError::Cancelled)));
    assert_eq!(names(&out.join("blobs/sha256")), before);
    assert!(Layout::open(&out).unwrap().find_tag(None).is_ok());
}
