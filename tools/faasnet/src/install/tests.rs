//! Installations on whole hosts made of files: fresh, configured by somebody, edited since; and the way back.

use std::collections::BTreeMap;
use std::path::Path;

use clap::Parser;
use tempfile::TempDir;

use super::*;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: InstallArgs,
}

/// A host made of files.
struct World {
    dir: TempDir,
    host: Host,
}

impl World {
    fn with(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let world = Self { host: Host::new(dir.path()).unwrap(), dir };
        files.iter().for_each(|(path, text)| world.write(path, text));
        world
    }

    fn write(&self, path: &str, text: &str) {
        self.host.write(Path::new(path), text, None).unwrap();
    }

    fn read(&self, path: &str) -> String {
        self.host.read(Path::new(path)).unwrap().unwrap_or_else(|| panic!("there is no {path}"))
    }

    fn install(&self, line: &str) -> Result<Report> {
        let words = ["install"].into_iter().chain(line.split(' '));
        let root = ["--root", self.dir.path().to_str().unwrap()];
        set_up(&self.host, &Line::try_parse_from(words.chain(root)).unwrap().args)
    }

    fn uninstall(&self, runtime: Runtime) -> Report {
        take_down(&self.host, runtime, false).unwrap()
    }

    /// Every file with its content, and every empty folder.
    fn everything(&self) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        let mut folders = vec![self.dir.path().to_owned()];
        while let Some(folder) = folders.pop() {
            let entries: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
            if entries.is_empty() {
                found.insert(folder.display().to_string(), "an empty folder".into());
            }
            for path in entries {
                match path.is_dir() {
                    true => folders.push(path),
                    false => drop(found.insert(path.display().to_string(), std::fs::read_to_string(&path).unwrap())),
                }
            }
        }
        found
    }
}

const CONFIG: &str = "/etc/containerd/config.toml";
const DEFAULT_HOSTS: &str = "/etc/containerd/certs.d/_default/hosts.toml";
const DAEMON: &str = "/etc/docker/daemon.json";
const PODMAN: &str = "/etc/containers/registries.conf.d/50-faasnet.conf";
const DEBIANS: &str = "version = 2\n\n[plugins]\n  [plugins.\"io.containerd.grpc.v1.cri\"]\n    [plugins.\"io.containerd.grpc.v1.cri\".cni]\n      bin_dir = \"/usr/lib/cni\" # Debian's\n";

/// What people write: comments, tabs, odd places, no last line break.
const BY_HAND: [(Runtime, &str, &str, &str); 5] = [
    (
        Runtime::Containerd,
        "containerd",
        CONFIG,
        "# by hand\nversion=2 # old\n[plugins.\"io.containerd.grpc.v1.cri\"]\n\tsandbox_image = 'pause:3.9'\n\n\n[metrics]\naddress = \"\"",
    ),
    (
        Runtime::Podman,
        "podman --registry r.example",
        "/etc/containers/registries.conf",
        "# by hand\nunqualified-search-registries=['docker.io' , \"quay.io\"]\n[[registry]]\n\tprefix='q.example'\n\tlocation = 'other.example/q'",
    ),
    (
        Runtime::Podman,
        "podman",
        "/etc/containers/registries.conf.d/00-mine.conf",
        "[aliases]\n  \"x\" = \"r.example/x\" # mine",
    ),
    (Runtime::Docker, "docker", DAEMON, "{\"debug\":true ,\n\t\"registry-mirrors\":[ ]}"),
    (Runtime::Docker, "docker", DAEMON, ""),
];

/// Hosts as they are found, and how each runtime is installed on them.
fn worlds() -> Vec<(Runtime, &'static str, World)> {
    let docker = World::with(&[(DAEMON, "{\n  \"z\": 1,\n  \"registry-mirrors\": [\"https://a\"],\n  \"a\": {}\n}\n")]);
    let version3 =
        "# mine\nversion = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\n    config_path = ''  # none\n";
    let own_hosts = "server = \"https://r.example\"\n\n[host.\"https://cache\"]\n  capabilities = [\"pull\"]\n";
    let named = "containerd --registry docker.io --registry r.example";
    let by_hand = BY_HAND.map(|(runtime, line, path, text)| (runtime, line, World::with(&[(path, text)])));
    let others = vec![
        (Runtime::Containerd, "containerd", World::with(&[])),
        (
            Runtime::Containerd,
            named,
            World::with(&[(CONFIG, DEBIANS), ("/etc/containerd/certs.d/r.example/hosts.toml", own_hosts)]),
        ),
        (Runtime::Containerd, "containerd", World::with(&[(CONFIG, version3)])),
        (Runtime::Containerd, "containerd", World::with(&[(CONFIG, "disabled_plugins = [\"cri\"]\n")])),
        (Runtime::Podman, "podman", World::with(&[])),
        (Runtime::Podman, "podman --registry quay.io", World::with(&[("/etc/containers/registries.conf", "# none\n")])),
        (Runtime::Docker, "docker", World::with(&[])),
        (Runtime::Docker, "docker --registry docker.io", docker),
    ];
    others.into_iter().chain(by_hand).collect()
}

/// Catches an installation that is not idempotent, a dry run that changes something, and a removal that leaves or loses anything.
#[test]
fn what_was_installed_can_be_removed_to_the_last_byte() {
    for (runtime, line, world) in worlds() {
        let before = world.everything();
        assert!(world.install(&format!("{line} --dry-run")).unwrap().changed, "{line}");
        assert_eq!(world.everything(), before, "{line}");
        assert!(world.install(line).unwrap().changed, "{line}");
        let installed = world.everything();
        assert_ne!(installed, before, "{line}");
        assert!(!world.install(line).unwrap().changed, "{line}: twice");
        assert_eq!(world.everything(), installed, "{line}: twice");
        assert!(take_down(&world.host, runtime, true).unwrap().changed, "{line}");
        assert_eq!(world.everything(), installed, "{line}: dry");
        assert!(world.uninstall(runtime).changed, "{line}");
        assert_eq!(world.everything(), before, "{line}");
        assert!(!world.uninstall(runtime).changed, "{line}");
    }
}

/// Catches config_path at a place where this version of containerd does not look for it.
#[test]
fn containerd_finds_config_path_in_every_version() {
    let expected = [
        ("", "cri", "/etc/containerd/certs.d"),
        (DEBIANS, "io.containerd.grpc.v1.cri", "/etc/containerd/certs.d"),
        ("version = 3\n", "io.containerd.cri.v1.images", "/etc/containerd/certs.d:/etc/docker/certs.d"),
        ("version = 2\n[plugins]\n", "io.containerd.grpc.v1.cri", "/etc/containerd/certs.d"),
    ];
    for (text, plugin, path) in expected {
        let world = World::with(&[(CONFIG, text)]);
        world.install("containerd").unwrap();
        let config: toml::Table = world.read(CONFIG).parse().unwrap();
        assert_eq!(config["plugins"][plugin]["registry"]["config_path"].as_str(), Some(path), "{text}");
        assert_eq!(world.read(&format!("{CONFIG}.before-faasnet")), text);
    }
    let elsewhere = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/opt/certs.d\"\n";
    let world = World::with(&[(CONFIG, elsewhere)]);
    world.install("containerd").unwrap();
    assert_eq!(world.read(CONFIG), elsewhere);
    assert!(world.read("/opt/certs.d/_default/hosts.toml").contains("7412"));
}

/// Catches a change that containerd does not survive, or that hides a registry's settings: all are refused and nothing is touched.
#[test]
fn what_would_break_pulls_is_refused_untouched() {
    let cri = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry";
    let refused = [
        ("containerd", "version = 9\n".to_owned(), "version"),
        ("containerd", "version = 2\n[plugins".into(), "not TOML"),
        ("containerd", format!("{cri}.mirrors.\"docker.io\"]\nendpoint = [\"https://m\"]\n"), "old kind"),
        ("containerd", format!("{cri}.configs.\"r\".tls]\nca_file = \"x\"\n"), "old kind"),
        ("containerd", "version = 2\nimports = [\"conf.d/*.toml\"]\n".into(), "old kind"),
        ("containerd", "version = 3\n".into(), "--registry"),
    ];
    for (line, config, expected) in refused {
        let world = World::with(&[(CONFIG, &config)]);
        if config.contains("imports") {
            world.write(
                "/etc/containerd/conf.d/a.toml",
                &format!("{cri}.mirrors.\"docker.io\"]\nendpoint = [\"https://m\"]\n"),
            );
        }
        if config == "version = 3\n" {
            world.write("/etc/docker/certs.d/r.example/ca.crt", "a certificate");
        }
        let before = world.everything();
        let error = format!("{:#}", world.install(line).unwrap_err());
        assert!(error.contains(expected) && error.to_lowercase().contains("nothing was changed"), "{config}: {error}");
        assert_eq!(world.everything(), before, "{config}");
    }
    let unit = World::with(&[(
        "/lib/systemd/system/docker.service",
        "ExecStart=/usr/bin/dockerd --registry-mirror=https://m\n",
    )]);
    assert!(format!("{:#}", unit.install("docker").unwrap_err()).contains("refuses to start"));
    assert!(format!("{:#}", unit.install("docker --registry quay.io").unwrap_err()).contains("Docker Hub only"));
    let broken = World::with(&[(DAEMON, "{ \"a\": }")]);
    assert!(format!("{:#}", broken.install("docker").unwrap_err()).contains("not JSON"));
    assert_eq!(broken.read(DAEMON), "{ \"a\": }");
}

/// Catches a removal that goes back to an old file, over what somebody has written since, or that leaves our entry in an edited one.
#[test]
fn edits_since_are_kept_and_our_entry_goes() {
    let containerd = World::with(&[(CONFIG, DEBIANS)]);
    containerd.install("containerd").unwrap();
    containerd.write(CONFIG, &containerd.read(CONFIG).replace("/usr/lib/cni", "/opt/cni"));
    containerd.write(
        DEFAULT_HOSTS,
        &format!("{}\n[host.\"https://cache\"]\n  skip_verify = true\n", containerd.read(DEFAULT_HOSTS)),
    );
    containerd.uninstall(Runtime::Containerd);
    assert_eq!(containerd.read(CONFIG), DEBIANS.replace("/usr/lib/cni", "/opt/cni"));
    assert!(
        !containerd.read(DEFAULT_HOSTS).contains("7412") && containerd.read(DEFAULT_HOSTS).contains("https://cache")
    );
    // The backup is the only place with the old value.
    assert_eq!(containerd.read(&format!("{CONFIG}.before-faasnet")), DEBIANS);

    let docker = World::with(&[]);
    docker.install("docker").unwrap();
    docker.write(DAEMON, "{\"debug\": true, \"registry-mirrors\": [\"http://127.0.0.1:7412/\", \"https://b\"]}");
    docker.uninstall(Runtime::Docker);
    assert_eq!(docker.read(DAEMON), "{\"debug\": true, \"registry-mirrors\": [\"https://b\"]}");

    let existing = World::with(&[(DAEMON, "{\n\t\"registry-mirrors\": [\"https://a\"]\n}")]);
    existing.install("docker").unwrap();
    existing.write(DAEMON, &existing.read(DAEMON).replace("{\n", "{\n\t\"debug\": true,\n"));
    existing.uninstall(Runtime::Docker);
    assert_eq!(existing.read(DAEMON), "{\n\t\"debug\": true,\n\t\"registry-mirrors\": [\"https://a\"]\n}");

    let main = "/etc/containers/registries.conf";
    let podman = World::with(&[(main, "# none\n")]);
    podman.install("podman").unwrap();
    podman.write(main, "unqualified-search-registries = [\"quay.io\"]\n");
    let edited = podman.read(PODMAN) + "# mine\n";
    podman.write(PODMAN, &edited);
    assert!(format!("{:#}", podman.install("podman --registry quay.io").unwrap_err()).contains("edited since"));
    let report = podman.uninstall(Runtime::Podman);
    assert!(report.notes[0].contains(".bak"), "{:?}", report.notes);
    assert_eq!(podman.read(&format!("{PODMAN}.bak")), edited);
    assert!(podman.host.read(Path::new(PODMAN)).unwrap().is_none());
    assert_eq!(podman.read(main), "unqualified-search-registries = [\"quay.io\"]\n");
}

/// Catches config_path taken from registries that somebody has set up since, and a second installation that forgets the first.
#[test]
fn later_registries_keep_working() {
    let world = World::with(&[(CONFIG, DEBIANS)]);
    world.install("containerd --registry docker.io").unwrap();
    world.install("containerd --registry quay.io").unwrap();
    let theirs = "/etc/containerd/certs.d/r.example/hosts.toml";
    world.write(theirs, "server = \"https://r.example\"\n\n[host.\"https://cache\"]\n");
    let report = world.uninstall(Runtime::Containerd);
    assert!(report.notes.iter().any(|note| note.contains("config_path stays")), "{:?}", report.notes);
    assert!(world.read(CONFIG).contains("config_path") && world.read(theirs).contains("cache"));
    assert_eq!(world.host.list(Path::new("/etc/containerd/certs.d")).unwrap(), ["r.example"]);

    let podman = World::with(&[]);
    podman.install("podman").unwrap();
    podman.install("podman --registry quay.io").unwrap();
    assert!(podman.read(PODMAN).contains("\"docker.io\"") && podman.read(PODMAN).contains("\"quay.io\""));
    podman.install("docker").unwrap();
    podman.uninstall(Runtime::Podman);
    podman.uninstall(Runtime::Docker);
    assert!(podman.everything().len() == 1, "{:?}", podman.everything());
}

/// Catches a second mirror beside the first one, which nobody would remove, and a failed test pull after which the entry stays.
#[test]
fn one_mirror_at_a_time_and_back_again() {
    let world = World::with(&[(CONFIG, DEBIANS)]);
    let before = world.everything();
    let mut report = world.install("containerd").unwrap();
    let error = world.install("containerd --mirror http://127.0.0.1:9").unwrap_err().to_string();
    assert!(error.contains("uninstall"), "{error}");
    assert!(report.take_back(&world.host).unwrap());
    assert_eq!(world.everything(), before);
}
