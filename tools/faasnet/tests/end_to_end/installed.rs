//! podman and Docker as `faasnet install` sets them up, on a host with an agent. Without one of them it says loudly what is skipped.

use std::process::Command;

use serde_json::Value;

use crate::common::said_loudly;
use crate::image_forms::Forms;
use crate::runtime_hosts::{OPEN, RuntimeHosts};

/// A host whose agent is left alone by those who disturb.
const HOST: usize = 1;
/// Waits for dockerd, which is asked by its client; then its log tells why not.
const DOCKERD: &str = "dockerd --iptables=false --ip6tables=false --bridge=none --storage-driver=vfs >/run/dockerd.log 2>&1 &\n\
    left=300; until docker version >/dev/null 2>&1; do left=$((left - 1)); [ $left -gt 0 ] || { cat /run/dockerd.log >&2; exit 1; }; sleep 0.1; done\n";

fn is_there(program: &str, package: &str) -> bool {
    let there = Command::new(program).arg("--version").output().is_ok();
    if !there {
        said_loudly(&format!(
            "{program} is not installed; get it with `sudo tools/check packages` (Debian: {package})"
        ));
    }
    there
}

/// Catches a registries.conf that podman does not read as it is meant, and an image that it gets from us with another digest or content.
pub(crate) fn podman(hosts: &RuntimeHosts, forms: &Forms) {
    if !is_there("podman", "podman") {
        return;
    }
    let (registry, image) = (hosts.registry(OPEN), hosts.image("burst"));
    // vfs and cgroupfs work wherever the tests do.
    let script = format!(
        "printf '[storage]\\ndriver = \"vfs\"\\nrunroot = \"/run/storage\"\\ngraphroot = \"/var/lib/storage\"\\n' >/etc/containers/storage.conf\n\
         printf '[engine]\\ncgroup_manager = \"cgroupfs\"\\nevents_logger = \"none\"\\n' >/etc/containers/containers.conf\n\
         $faasnet install podman --registry http://{registry} --test-image {image} --json >/run/report\n\
         podman image inspect --format '{{{{.Digest}}}} {{{{.RootFS.Layers}}}}' {image}\n\
         podman run --rm --network host {image} /bin/cat /greeting\n\
         podman run --rm --network host {image} /bin/sha256sum /big\n\
         $faasnet uninstall podman >/dev/null\n\
         ls /etc/containers/registries.conf.d | grep faasnet || cat /run/report"
    );
    let sent = hosts.metric(HOST, "faasnet_mirror_bytes_total");
    let told = hosts.script(HOST, &script);
    let sent = hosts.metric(HOST, "faasnet_mirror_bytes_total") - sent;
    assert!(sent >= forms.blob_bytes("burst"), "podman got {sent} bytes through the mirror: {told}");
    let lines: Vec<&str> = told.splitn(4, '\n').collect();
    assert_eq!(lines[0], format!("{} {}", forms.digest("burst"), forms.layers("burst")));
    assert_eq!(lines[1..3], ["hello from burst", &format!("{}  /big", &forms.big_digest("burst")["sha256:".len()..])]);
    checked(lines[3]);
}

/// Catches a daemon.json with which dockerd does not start or does not ask the mirror: nobody else here has that image of Docker Hub.
pub(crate) fn docker(hosts: &RuntimeHosts, forms: &Forms) {
    if !is_there("dockerd", "docker.io") {
        return;
    }
    hosts.create_of("hub", "docker.io/library/layout:small");
    let script = format!(
        "$faasnet install docker >/dev/null\n\
         {DOCKERD}\
         $faasnet install docker --test-image layout:small --json >/run/report\n\
         docker image inspect --format '{{{{json .RepoDigests}}}} {{{{.RootFS.Layers}}}}' layout:small\n\
         docker run --rm --network none layout:small /bin/cat /greeting\n\
         $faasnet uninstall docker >/dev/null\n\
         ls /etc/docker | grep daemon.json || cat /run/report"
    );
    let told = hosts.script(HOST, &script);
    let lines: Vec<&str> = told.splitn(3, '\n').collect();
    assert_eq!(lines[0], format!("[\"layout@{}\"] {}", forms.digest("small"), forms.layers("small")));
    assert_eq!(lines[1], "hello from small");
    checked(lines[2]);
}

/// The report says that mirror and pull were tried and are fine.
fn checked(report: &str) {
    let report: Value = serde_json::from_str(report).unwrap_or_else(|error| panic!("{error}: {report}"));
    assert!(report["check"]["ok"] == true && report["pull"]["ok"] == true, "{report}");
}
