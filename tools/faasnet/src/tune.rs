//! `faasnet tune show`: what the settings of this host's kernel cost the data path, and the command that changes each.
//!
//! `observe` reads, [`assess`] judges; the judgement is pure, so that every verdict has a test. Nothing is ever changed here.

use std::fs;

use anyhow::Result;
use clap::Subcommand;
use rustix::process::{Resource, getrlimit};
use rustix::thread::{CapabilitySet, capabilities};
use serde::Serialize;

use crate::cli::Global;
use crate::output;

/// `faasnet tune …`
#[derive(Debug, Subcommand)]
pub enum TuneCommand {
    /// Show what this host's kernel settings cost, and the command that changes each; run it as the agent's user
    #[command(after_help = "\
Reads only. Run it as the user that runs the agent: limits and capabilities are that user's.

Examples:
  faasnet tune show
  sudo -u faasnet faasnet tune show --json")]
    Show,
}

/// What was found on a host. `None`: this kernel does not have it, or it cannot be read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// `uname -r`.
    pub kernel: String,
    /// net.ipv4.tcp_congestion_control
    pub congestion: Option<String>,
    /// net.core.default_qdisc
    pub qdisc: Option<String>,
    /// net.ipv4.tcp_rmem, third value
    pub receive_max: Option<u64>,
    /// net.ipv4.tcp_wmem, third value
    pub send_max: Option<u64>,
    /// net.ipv4.tcp_window_scaling
    pub window_scaling: Option<u64>,
    /// fs.pipe-max-size
    pub pipe_max: Option<u64>,
    /// fs.pipe-user-pages-soft; 0 = no limit
    pub pipe_user_pages: Option<u64>,
    /// kernel.io_uring_disabled
    pub uring_disabled: Option<u64>,
    /// RLIMIT_MEMLOCK; `u64::MAX` = no limit
    pub memlock: Option<u64>,
    /// RLIMIT_NOFILE, soft
    pub open_files: Option<u64>,
    /// net.core.somaxconn
    pub somaxconn: Option<u64>,
    /// /sys/kernel/mm/transparent_hugepage/enabled, the chosen word
    pub huge_pages: Option<String>,
    /// CAP_SYS_RESOURCE: pipes of any size and number
    pub may_exceed_pipes: bool,
    /// CAP_IPC_LOCK: above RLIMIT_MEMLOCK
    pub may_lock: bool,
    /// CAP_SYS_ADMIN: io_uring though kernel.io_uring_disabled is 1, and any number of pipes
    pub is_admin: bool,
}

/// One setting, judged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Its name, as its tool knows it.
    pub setting: &'static str,
    /// What it is.
    pub value: String,
    /// Whether it costs nothing.
    pub ok: bool,
    /// What it costs, or why it is fine.
    pub cost: String,
    /// What changes it; `None` when nothing has to.
    pub command: Option<String>,
}

/// A frame of one block with its header, and as much again in flight.
const WANTED_WINDOW: u64 = 1 << 20;
/// Below this a block cannot be peeked whole: it is copied instead.
const LEAST_RECEIVE: u64 = 512 << 10;
/// A child's pipe.
const WANTED_PIPE: u64 = 1 << 20;
/// Pipes of an image on two trees: transit, and four children each.
const PIPES: u64 = 9;
const PAGE_BYTES: u64 = 4096;
/// Ring, completion queue and 24 buffers, of which an eighth of the limit may be taken.
const WANTED_MEMLOCK: u64 = 64 << 20;
/// 20 images: sockets, two pipes ends per child, files.
const WANTED_FILES: u64 = 4096;
const WANTED_BACKLOG: u64 = 1024;

/// Runs the command.
pub fn run(global: &Global, command: &TuneCommand) -> Result<()> {
    let TuneCommand::Show = command;
    let observed = observe();
    let findings = assess(&observed);
    if global.json {
        return output::json(&serde_json::json!({ "kernel": observed.kernel, "findings": findings }));
    }
    let rows = findings.iter().map(|finding| {
        let mark = if finding.ok { "" } else { "*" };
        vec![format!("{mark}{}", finding.setting), finding.value.clone(), finding.cost.clone()]
    });
    output::line(output::table(&["setting", "value", "what it costs"], rows))?;
    let commands: Vec<_> = findings.iter().filter_map(|finding| finding.command.as_deref()).collect();
    if commands.is_empty() {
        return output::line("\nnothing costs anything here");
    }
    output::line(
        "\n* costs something; these commands change it, in this order\n  (until the next boot; see sysctl.d(5) and limits.conf(5)):",
    )?;
    // Long ones are broken where a shell takes it.
    let broken = |command: &str| command.replace(" && ", " && \\\n    ").replace(" (or ", "\n    (or ");
    commands.iter().try_for_each(|command| output::line(format!("  {}", broken(command))))
}

/// Judges every setting that could be read.
pub fn assess(observed: &Observed) -> Vec<Finding> {
    [
        uring(observed),
        memlock(observed),
        pipe_size(observed),
        pipe_pages(observed),
        congestion(observed),
        receive_buffer(observed),
        send_buffer(observed),
        window_scaling(observed),
        open_files(observed),
        backlog(observed),
        huge_pages(observed),
        capability(observed),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn fine(setting: &'static str, value: impl Into<String>, why: impl Into<String>) -> Finding {
    Finding { setting, value: value.into(), ok: true, cost: why.into(), command: None }
}

fn costs(setting: &'static str, value: impl Into<String>, cost: impl Into<String>, command: String) -> Finding {
    Finding { setting, value: value.into(), ok: false, cost: cost.into(), command: Some(command) }
}

fn uring(observed: &Observed) -> Option<Finding> {
    let (setting, level) = ("kernel.io_uring_disabled", observed.uring_disabled?);
    let command = || "sysctl -w kernel.io_uring_disabled=0".to_owned();
    Some(match level {
        0 => fine(setting, "0", "io_uring for everybody"),
        1 if observed.is_admin => fine(setting, "1", "io_uring for this user, who has CAP_SYS_ADMIN"),
        1 => costs(
            setting,
            "1",
            "no io_uring for this user: blocks are copied (engine copy), about twice the CPU",
            command(),
        ),
        _ => costs(
            setting,
            level.to_string(),
            "no io_uring: blocks are copied (engine copy), about twice the CPU",
            command(),
        ),
    })
}

fn memlock(observed: &Observed) -> Option<Finding> {
    let (setting, limit) = ("RLIMIT_MEMLOCK", observed.memlock?);
    let value = if limit == u64::MAX { "unlimited".into() } else { output::bytes(limit) };
    Some(match limit {
        _ if observed.may_lock => fine(setting, value, "CAP_IPC_LOCK lifts it"),
        limit if limit >= WANTED_MEMLOCK => fine(setting, value, "rings and buffers can be locked"),
        _ => costs(
            setting,
            value,
            "block buffers are not registered with io_uring (some CPU per write); very low, the ring is small or missing",
            format!("ulimit -l {} (systemd: LimitMEMLOCK={WANTED_MEMLOCK})", WANTED_MEMLOCK >> 10),
        ),
    })
}

fn pipe_size(observed: &Observed) -> Option<Finding> {
    let (setting, bytes) = ("fs.pipe-max-size", observed.pipe_max?);
    let value = output::bytes(bytes);
    Some(match bytes {
        bytes if bytes >= WANTED_PIPE => fine(setting, value, "a child's pipe holds four blocks"),
        _ if observed.may_exceed_pipes => fine(setting, value, "CAP_SYS_RESOURCE lifts it"),
        bytes => {
            let cost = match bytes {
                // 128 slots.
                bytes if bytes < 128 * PAGE_BYTES => "children are served by copying: no pipe can hold a block",
                _ => "children fall behind sooner, and get more from the store",
            };
            costs(setting, value, cost, format!("sysctl -w fs.pipe-max-size={WANTED_PIPE}"))
        }
    })
}

fn pipe_pages(observed: &Observed) -> Option<Finding> {
    let (setting, pages) = ("fs.pipe-user-pages-soft", observed.pipe_user_pages?);
    let images = pages * PAGE_BYTES / (PIPES * WANTED_PIPE);
    let value = if pages == 0 { "0 (no limit)".into() } else { format!("{pages} pages") };
    Some(match pages {
        0 => fine(setting, value, "as many pipes as there are children"),
        _ if observed.may_exceed_pipes || observed.is_admin => fine(setting, value, "a capability lifts it"),
        _ if images >= 20 => fine(setting, value, format!("pipes for {images} images at once")),
        _ => costs(
            setting,
            value,
            format!("pipes for {images} images at once; children of more are served by copying"),
            format!("sysctl -w fs.pipe-user-pages-soft={}", 20 * PIPES * WANTED_PIPE / PAGE_BYTES),
        ),
    })
}

fn congestion(observed: &Observed) -> Option<Finding> {
    let (setting, name) = ("net.ipv4.tcp_congestion_control", observed.congestion.clone()?);
    let qdisc = observed.qdisc.as_deref().unwrap_or("unknown");
    Some(match name.starts_with("bbr") && !qdisc.starts_with("fq") {
        false => fine(setting, name, "needs no pacing qdisc, or has one"),
        true => costs(
            setting,
            format!("{name}, qdisc {qdisc}"),
            "bbr paces by timers of its own without fq: 2.5 to 4 times slower on fast local links",
            "sysctl -w net.core.default_qdisc=fq net.ipv4.tcp_congestion_control=bbr && tc qdisc replace dev DEV root fq \
             (or run agents with --congestion cubic)"
                .into(),
        ),
    })
}

fn receive_buffer(observed: &Observed) -> Option<Finding> {
    let (setting, bytes) = ("net.ipv4.tcp_rmem (max)", observed.receive_max?);
    let command = || format!("sysctl -w net.ipv4.tcp_rmem=\"4096 131072 {}\"", 6 << 20);
    let value = output::bytes(bytes);
    Some(match bytes {
        bytes if bytes >= 2 * WANTED_WINDOW => fine(setting, value, "a window of four blocks"),
        bytes if bytes >= LEAST_RECEIVE => {
            costs(setting, value, "a small window: slow over links with delay, more wake-ups per block", command())
        }
        _ => costs(setting, value, "a block does not fit: it is copied instead of passed on", command()),
    })
}

fn send_buffer(observed: &Observed) -> Option<Finding> {
    let (setting, bytes) = ("net.ipv4.tcp_wmem (max)", observed.send_max?);
    let value = output::bytes(bytes);
    Some(match bytes {
        bytes if bytes >= 2 * WANTED_WINDOW => fine(setting, value, "a connection can fill a link with delay"),
        _ => costs(
            setting,
            value,
            "a child gets little at a time: slow over links with delay",
            format!("sysctl -w net.ipv4.tcp_wmem=\"4096 16384 {}\"", 4 << 20),
        ),
    })
}

fn window_scaling(observed: &Observed) -> Option<Finding> {
    let setting = "net.ipv4.tcp_window_scaling";
    Some(match observed.window_scaling? {
        0 => costs(
            setting,
            "0",
            "windows stop at 64 KiB: no block fits, and any delay costs throughput",
            "sysctl -w net.ipv4.tcp_window_scaling=1".into(),
        ),
        _ => fine(setting, "1", "windows as large as the buffers"),
    })
}

fn open_files(observed: &Observed) -> Option<Finding> {
    let (setting, limit) = ("RLIMIT_NOFILE", observed.open_files?);
    let value = if limit == u64::MAX { "unlimited".into() } else { limit.to_string() };
    Some(match limit >= WANTED_FILES {
        true => fine(setting, value, "descriptors for 20 images and their children"),
        false => costs(
            setting,
            value,
            "with many images at once children cannot be accepted, and wait",
            format!("ulimit -n {WANTED_FILES} (systemd: LimitNOFILE={WANTED_FILES})"),
        ),
    })
}

fn backlog(observed: &Observed) -> Option<Finding> {
    let (setting, length) = ("net.core.somaxconn", observed.somaxconn?);
    Some(match length >= WANTED_BACKLOG {
        true => fine(setting, length.to_string(), "a burst of joins is accepted at once"),
        false => costs(
            setting,
            length.to_string(),
            "a burst of joins is dropped at the door and tries again after a second",
            format!("sysctl -w net.core.somaxconn={WANTED_BACKLOG}"),
        ),
    })
}

fn huge_pages(observed: &Observed) -> Option<Finding> {
    let (setting, chosen) = ("transparent_hugepage/enabled", observed.huge_pages.clone()?);
    Some(match chosen.as_str() {
        "never" => costs(
            setting,
            chosen,
            "writes of blocks have 65 parts each, so that a virtual disk takes fewer of them at once",
            "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled".into(),
        ),
        _ => fine(setting, chosen, "block buffers lie on huge pages"),
    })
}

/// Said last: it is what makes the pipe limits matter.
fn capability(observed: &Observed) -> Option<Finding> {
    let limited = pipe_size(observed).into_iter().chain(pipe_pages(observed)).any(|finding| !finding.ok);
    let setting = "CAP_SYS_RESOURCE";
    Some(match (observed.may_exceed_pipes, limited) {
        (true, _) => fine(setting, "yes", "pipes may exceed their limits"),
        (false, false) => fine(setting, "no", "not needed: the pipe limits are high enough"),
        (false, true) => Finding {
            setting,
            value: "no".into(),
            ok: false,
            cost: "the pipe limits above hold; with it they would not".into(),
            command: Some("setcap cap_sys_resource+ep $(command -v faasnet), instead of the fs.pipe-… settings".into()),
        },
    })
}

/// Reads this host as the present user.
fn observe() -> Observed {
    let held = capabilities(None).map(|sets| sets.effective).unwrap_or(CapabilitySet::empty());
    let limit = |resource| Some(getrlimit(resource).current.unwrap_or(u64::MAX));
    Observed {
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        congestion: sysctl("net/ipv4/tcp_congestion_control"),
        qdisc: sysctl("net/core/default_qdisc"),
        receive_max: word("net/ipv4/tcp_rmem", 2),
        send_max: word("net/ipv4/tcp_wmem", 2),
        window_scaling: word("net/ipv4/tcp_window_scaling", 0),
        pipe_max: word("fs/pipe-max-size", 0),
        pipe_user_pages: word("fs/pipe-user-pages-soft", 0),
        uring_disabled: word("kernel/io_uring_disabled", 0),
        memlock: limit(Resource::Memlock),
        open_files: limit(Resource::Nofile),
        somaxconn: word("net/core/somaxconn", 0),
        huge_pages: fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled")
            .ok()
            .and_then(|text| chosen(&text)),
        may_exceed_pipes: held.contains(CapabilitySet::SYS_RESOURCE),
        may_lock: held.contains(CapabilitySet::IPC_LOCK),
        is_admin: held.contains(CapabilitySet::SYS_ADMIN),
    }
}

fn sysctl(name: &str) -> Option<String> {
    Some(fs::read_to_string(format!("/proc/sys/{name}")).ok()?.trim().to_owned())
}

fn word(name: &str, index: usize) -> Option<u64> {
    sysctl(name)?.split_whitespace().nth(index)?.parse().ok()
}

/// The word in brackets.
fn chosen(text: &str) -> Option<String> {
    Some(text.split_once('[')?.1.split_once(']')?.0.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host on which nothing costs anything, for a user without capabilities.
    fn good() -> Observed {
        Observed {
            kernel: "6.18".into(),
            congestion: Some("cubic".into()),
            qdisc: Some("pfifo_fast".into()),
            receive_max: Some(6 << 20),
            send_max: Some(4 << 20),
            window_scaling: Some(1),
            pipe_max: Some(1 << 20),
            pipe_user_pages: Some(0),
            uring_disabled: Some(0),
            memlock: Some(u64::MAX),
            open_files: Some(1 << 20),
            somaxconn: Some(4096),
            huge_pages: Some("madvise".into()),
            may_exceed_pipes: false,
            may_lock: false,
            is_admin: false,
        }
    }

    fn bad(observed: &Observed) -> Vec<&'static str> {
        assess(observed).iter().filter(|finding| !finding.ok).map(|finding| finding.setting).collect()
    }

    /// Catches a warning on a host that is fine, and a setting that is never judged.
    #[test]
    fn a_good_host_has_no_costs() {
        assert_eq!(bad(&good()), [""; 0]);
        assert_eq!(assess(&good()).len(), 12);
        assert_eq!(assess(&Observed::default()).len(), 1, "what cannot be read is not judged");
    }

    /// Catches a bad setting that passes, or blames another; each must come with a command.
    #[test]
    fn every_bad_setting_is_named_with_its_command() {
        let word = |text: &str| Some(text.to_owned());
        let cases = [
            ("kernel.io_uring_disabled", Observed { uring_disabled: Some(2), is_admin: true, ..good() }),
            ("kernel.io_uring_disabled", Observed { uring_disabled: Some(1), ..good() }),
            ("RLIMIT_MEMLOCK", Observed { memlock: Some(8 << 20), ..good() }),
            ("net.ipv4.tcp_congestion_control", Observed { congestion: word("bbr"), ..good() }),
            ("net.ipv4.tcp_rmem (max)", Observed { receive_max: Some(256 << 10), ..good() }),
            ("net.ipv4.tcp_rmem (max)", Observed { receive_max: Some(1 << 20), ..good() }),
            ("net.ipv4.tcp_wmem (max)", Observed { send_max: Some(256 << 10), ..good() }),
            ("net.ipv4.tcp_window_scaling", Observed { window_scaling: Some(0), ..good() }),
            ("RLIMIT_NOFILE", Observed { open_files: Some(1024), ..good() }),
            ("net.core.somaxconn", Observed { somaxconn: Some(128), ..good() }),
            ("transparent_hugepage/enabled", Observed { huge_pages: word("never"), ..good() }),
        ];
        for (setting, observed) in cases {
            assert_eq!(bad(&observed), [setting]);
            let findings = assess(&observed);
            let found = findings.iter().find(|finding| !finding.ok).unwrap();
            assert!(!found.cost.is_empty() && found.command.as_ref().is_some_and(|command| !command.is_empty()));
        }
    }

    /// Catches limits that are blamed although a capability lifts them, and pipes that are too few for the images of a node.
    #[test]
    fn capabilities_lift_limits() {
        let poor = Observed {
            pipe_max: Some(64 << 10),
            pipe_user_pages: Some(16_384),
            memlock: Some(1 << 20),
            uring_disabled: Some(1),
            ..good()
        };
        let expected = [
            "kernel.io_uring_disabled",
            "RLIMIT_MEMLOCK",
            "fs.pipe-max-size",
            "fs.pipe-user-pages-soft",
            "CAP_SYS_RESOURCE",
        ];
        assert_eq!(bad(&poor), expected);
        let root = Observed { may_exceed_pipes: true, may_lock: true, is_admin: true, ..poor };
        assert_eq!(bad(&root), [""; 0]);
    }

    /// Catches bbr that is blamed although its qdisc paces.
    #[test]
    fn bbr_with_fq_is_fine() {
        let word = |text: &str| Some(text.to_owned());
        assert_eq!(bad(&Observed { congestion: word("bbr"), qdisc: word("fq"), ..good() }), [""; 0]);
    }

    /// Catches a reader that breaks on the host that runs this test.
    #[test]
    fn this_host_can_be_read() {
        let observed = observe();
        assert!(observed.congestion.is_some() && observed.pipe_max.is_some() && observed.open_files.is_some());
        assert_eq!(chosen("always [madvise] never\n").as_deref(), Some("madvise"));
        assert_eq!(chosen("none"), None);
    }
}
