//! Images of real files that run, in every form in which registries hold them, as tags of one OCI layout.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use faasnet_image::{BuildOptions, Platform, build};
use faasnet_origin::digest;
use serde_json::{Value, json};

use crate::common::noise;
use crate::runtime_hosts::said;

/// The annotation under which a layout's index keeps tags.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// A layout in the making.
pub(crate) struct Forms {
    dir: PathBuf,
}

impl Forms {
    /// A layout at `dir/layout`; what goes into layers lies beside it.
    pub(crate) fn new(dir: &Path) -> Self {
        let root = dir.join("root/bin");
        fs::create_dir_all(&root).unwrap();
        fs::copy("/bin/busybox", root.join("busybox")).unwrap();
        for applet in ["sh", "cat", "ls", "sha256sum"] {
            symlink("busybox", root.join(applet)).unwrap();
        }
        Self { dir: dir.to_owned() }
    }

    pub(crate) fn layout(&self) -> PathBuf {
        self.dir.join("layout")
    }

    /// A folder with one file, to become a layer.
    pub(crate) fn folder(&self, name: &str, file: &str, content: &[u8]) -> PathBuf {
        let folder = self.dir.join(name);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(file), content).unwrap();
        folder
    }

    /// An image of a shell, a greeting and `bytes` bytes that no compression makes less.
    pub(crate) fn plain(&self, tag: &str, seed: u64, bytes: u64) {
        let greeting = self.folder(&format!("greeting-{tag}"), "greeting", format!("hello from {tag}\n").as_bytes());
        let big = self.folder(&format!("big-{tag}"), "big", &noise(seed, bytes));
        self.image(tag, &[self.dir.join("root"), greeting, big], Platform::here());
    }

    /// An image of those folders.
    pub(crate) fn image(&self, tag: &str, folders: &[PathBuf], platform: Platform) {
        build(folders, &self.layout(), &BuildOptions { tag: tag.into(), platform, ..BuildOptions::default() }).unwrap();
    }

    /// An image of 60 layers, one of them without any file and one of them twice.
    pub(crate) fn sixty(&self, tag: &str) {
        let empty = self.dir.join("empty");
        fs::create_dir_all(&empty).unwrap();
        let small = (0..57).map(|n| self.folder(&format!("small{n}"), &format!("file{n}"), &noise(n, 1000 * n)));
        let folders: Vec<_> = [self.dir.join("root"), empty.clone(), empty].into_iter().chain(small).collect();
        assert_eq!(folders.len(), 60);
        self.image(tag, &folders, Platform::here());
    }

    /// The image of `from`, as a Docker image manifest of schema 2.
    pub(crate) fn schema2(&self, from: &str, tag: &str) {
        let docker = |what: &str| format!("application/vnd.docker.{what}");
        let mut manifest = self.document(&self.link(from));
        manifest["mediaType"] = json!(docker("distribution.manifest.v2+json"));
        manifest["config"]["mediaType"] = json!(docker("container.image.v1+json"));
        for layer in manifest["layers"].as_array_mut().unwrap() {
            layer["mediaType"] = json!(docker("image.rootfs.diff.tar.gzip"));
        }
        self.add(tag, &manifest, &docker("distribution.manifest.v2+json"));
    }

    /// An index with the image of `from` for this machine and another for a processor that it does not have.
    pub(crate) fn index(&self, from: &str, tag: &str) {
        let other = if cfg!(target_arch = "aarch64") { "amd64" } else { "arm64" };
        let foreign = self.folder("foreign", "foreign", b"not for this machine");
        self.image("foreign", &[foreign], format!("linux/{other}").parse().unwrap());
        let entry = |from: &str, architecture: &str| {
            let mut link = self.link(from);
            link.as_object_mut().unwrap().remove("annotations");
            link["platform"] = json!({ "os": "linux", "architecture": architecture });
            link
        };
        let here = Platform::here().to_string();
        let here = here.split('/').nth(1).unwrap();
        let kind = "application/vnd.oci.image.index.v1+json";
        let manifests = [entry("foreign", other), entry(from, here)];
        self.add(tag, &json!({ "schemaVersion": 2, "mediaType": kind, "manifests": manifests }), kind);
    }

    /// The image of `from` with its layers compressed by zstd.
    pub(crate) fn zstd(&self, from: &str, tag: &str) {
        let other = self.dir.join("zstd");
        let mut skopeo = Command::new("skopeo");
        skopeo.args(["copy", "--dest-compress", "--dest-compress-format", "zstd"]);
        skopeo.arg(format!("oci:{}:{from}", self.layout().display())).arg(format!("oci:{}:{tag}", other.display()));
        said("skopeo copy to zstd", skopeo.output().unwrap());
        for blob in fs::read_dir(other.join("blobs/sha256")).unwrap().map(Result::unwrap) {
            fs::copy(blob.path(), self.layout().join("blobs/sha256").join(blob.file_name())).unwrap();
        }
        let index: Value = serde_json::from_slice(&fs::read(other.join("index.json")).unwrap()).unwrap();
        let text = fs::read_to_string(self.blob(index["manifests"][0]["digest"].as_str().unwrap())).unwrap();
        assert!(text.contains("tar+zstd"), "skopeo did not compress anew: {text}");
        self.tag(tag, index["manifests"][0].clone());
    }

    /// Lets `tag` mean what `other` means.
    pub(crate) fn move_tag(&self, tag: &str, other: &str) {
        let (link, mut index) = (self.link(other), self.index_file());
        index["manifests"].as_array_mut().unwrap().retain(|link| link["annotations"][REF_NAME] != tag);
        fs::write(self.layout().join("index.json"), index.to_string()).unwrap();
        self.tag(tag, link);
    }

    /// The manifest of `tag`, byte for byte.
    pub(crate) fn manifest(&self, tag: &str) -> Vec<u8> {
        fs::read(self.blob(self.link(tag)["digest"].as_str().unwrap())).unwrap()
    }

    /// The digest of the manifest of `tag`.
    pub(crate) fn digest(&self, tag: &str) -> String {
        self.link(tag)["digest"].as_str().unwrap().to_owned()
    }

    /// The digests of what the layers of `tag` unpack to, as Go prints a list.
    pub(crate) fn layers(&self, tag: &str) -> String {
        let manifest: Value = serde_json::from_slice(&self.manifest(tag)).unwrap();
        let config: Value = self.document(&manifest["config"]);
        let layers = config["rootfs"]["diff_ids"].as_array().unwrap().iter();
        format!("[{}]", layers.map(|layer| layer.as_str().unwrap()).collect::<Vec<_>>().join(" "))
    }

    /// The digest of the file `/big` of a plain image.
    pub(crate) fn big_digest(&self, tag: &str) -> String {
        digest::of(&fs::read(self.dir.join(format!("big-{tag}/big"))).unwrap())
    }

    /// Bytes of the blobs of `tag`, each digest once.
    pub(crate) fn blob_bytes(&self, tag: &str) -> u64 {
        let manifest: Value = serde_json::from_slice(&self.manifest(tag)).unwrap();
        let links = manifest["layers"].as_array().unwrap().iter().chain([&manifest["config"]]);
        let sizes: std::collections::BTreeMap<_, _> =
            links.map(|link| (link["digest"].as_str().unwrap(), link["size"].as_u64().unwrap())).collect();
        sizes.values().sum()
    }

    /// The file of a blob.
    pub(crate) fn blob(&self, digest: &str) -> PathBuf {
        self.layout().join("blobs/sha256").join(digest.strip_prefix("sha256:").unwrap())
    }

    fn link(&self, tag: &str) -> Value {
        let index = self.index_file();
        let found = index["manifests"].as_array().unwrap().iter().find(|link| link["annotations"][REF_NAME] == tag);
        found.unwrap_or_else(|| panic!("no {tag} in {index}")).clone()
    }

    fn document(&self, link: &Value) -> Value {
        serde_json::from_slice(&fs::read(self.blob(link["digest"].as_str().unwrap())).unwrap()).unwrap()
    }

    fn add(&self, tag: &str, document: &Value, kind: &str) {
        let bytes = serde_json::to_vec(document).unwrap();
        let digest = digest::of(&bytes);
        fs::write(self.blob(&digest), &bytes).unwrap();
        self.tag(tag, json!({ "mediaType": kind, "digest": digest, "size": bytes.len() }));
    }

    fn tag(&self, tag: &str, mut link: Value) {
        link["annotations"] = json!({ REF_NAME: tag });
        let mut index = self.index_file();
        index["manifests"].as_array_mut().unwrap().push(link);
        fs::write(self.layout().join("index.json"), index.to_string()).unwrap();
    }

    fn index_file(&self) -> Value {
        serde_json::from_slice(&fs::read(self.layout().join("index.json")).unwrap()).unwrap()
    }
}
