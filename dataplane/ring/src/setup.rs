//! Making a ring in the best way that this kernel and this user's limits allow, and saying what is missing and what is used instead.
//!
//! Decides once, at start; the driver only learns what it got.

use std::io;

use io_uring::types::Napi;
use io_uring::{IoUring, Probe, opcode};
use rustix::process::{Resource, getrlimit};
use rustix::thread::{CapabilitySet, capabilities};

use crate::{Arena, DriverOptions};

/// Entries of the submission queue: a tick rarely starts more; a full queue is submitted early.
const SUBMISSIONS: u32 = 256;
/// Entries of the completion queue: more in flight than this makes the kernel keep the rest for the next wait.
pub(crate) const COMPLETIONS: u32 = 1024;
/// What is tried where locked memory is scarce: two pages.
const SMALL_SUBMISSIONS: u32 = 32;
/// See [`SMALL_SUBMISSIONS`].
const SMALL_COMPLETIONS: u32 = 128;
/// The kernel's limit for one registered buffer.
const MAX_REGISTERED_BYTES: usize = 1 << 30;
/// Buffers of one worker may take this part of the memory that a user may lock.
const LOCKED_SHARE: u64 = 8;

/// Lets the kernel's own threads of this ring run only where this thread may run. They ignore its affinity otherwise, so a worker that is
/// pinned to a core would write files on somebody else's (IORING_REGISTER_IOWQ_AFF, Linux 5.14).
pub(crate) fn keep_together(ring: &IoUring) {
    // SAFETY: an all-zero `cpu_set_t` is an empty set.
    let mut cores: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: asks about the calling thread; the kernel writes at most the given size into the live local `cores`.
    let known = unsafe { libc::sched_getaffinity(0, size_of_val(&cores), &raw mut cores) };
    if known == 0 {
        // Ignored: an older kernel has its threads run anywhere, which is a matter of speed only.
        let _ = ring.submitter().register_iowq_aff(&cores);
    }
}

/// Makes the ring in the best way that this kernel and this user's limits allow; the error is a sentence.
pub(crate) fn setup(options: &DriverOptions, notes: &mut Vec<String>) -> Result<IoUring, String> {
    match build(options, SUBMISSIONS, COMPLETIONS, notes) {
        // Rings count against RLIMIT_MEMLOCK, over all processes of an unprivileged user.
        Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => {
            let small = build(options, SMALL_SUBMISSIONS, SMALL_COMPLETIONS, notes);
            notes.push(
                "RLIMIT_MEMLOCK leaves room for a small io_uring only; raise ulimit -l to save system calls".into(),
            );
            small
        }
        other => other,
    }
    .map_err(|error| explain(&error))
    .and_then(usable)
}

fn build(options: &DriverOptions, submissions: u32, completions: u32, notes: &mut Vec<String>) -> io::Result<IoUring> {
    if let Some(idle_ms) = options.sqpoll_idle_ms {
        let mut polled = IoUring::builder();
        // Deferred task running needs the worker to submit by itself, so the two exclude each other.
        polled.setup_single_issuer().setup_submit_all().setup_sqpoll(idle_ms);
        match polled.setup_cqsize(completions).setup_clamp().dontfork().build(submissions) {
            Ok(ring) => return Ok(ring),
            Err(error) => notes.push(format!(
                "no kernel thread for submissions (SQPOLL): {error}; the worker submits by itself (Linux 6.0 or later \
                 is needed, and a user who may start threads)"
            )),
        }
    }
    let mut deferred = IoUring::builder();
    // Completions are run by our own wait instead of interrupting us (Linux 6.1).
    deferred.setup_single_issuer().setup_defer_taskrun().setup_submit_all();
    let mut cooperative = IoUring::builder();
    cooperative.setup_coop_taskrun();
    let ways =
        [(deferred, None), (cooperative, Some("deferred")), (IoUring::builder(), Some("deferred or cooperative"))];
    for (mut builder, lacks) in ways {
        match builder.setup_cqsize(completions).setup_clamp().dontfork().build(submissions) {
            // A flag that this kernel does not know.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            result => {
                if let Some(lacks) = lacks {
                    let cost = "it interrupts the worker more often";
                    notes.push(format!("this kernel's io_uring has no {lacks} task running (Linux 6.1 has); {cost}"));
                }
                return result;
            }
        }
    }
    Err(io::Error::from_raw_os_error(libc::EINVAL))
}

/// Has waits poll the network cards, where the kernel can.
pub(crate) fn poll_cards(ring: &IoUring, options: &DriverOptions, notes: &mut Vec<String>) {
    let Some(micros) = options.busy_poll_us else { return };
    let mut napi = Napi::new().set_busy_poll_timeout(micros).set_prefer_busy_poll(true);
    if let Err(error) = ring.submitter().register_napi(&mut napi) {
        notes.push(format!(
            "io_uring cannot poll network cards ({error}; Linux 6.9 or later can); SO_BUSY_POLL of the sockets is left"
        ));
    }
}

fn usable(ring: IoUring) -> Result<IoUring, String> {
    let parameters = ring.params();
    if !parameters.is_feature_ext_arg() || !parameters.is_feature_nodrop() {
        return Err(
            "this kernel's io_uring lacks timed waits (Linux 5.11 or later has them); run with --engine copy".into()
        );
    }
    let mut probe = Probe::new();
    let asked = ring.submitter().register_probe(&mut probe);
    // Who does not answer may still do the operations.
    match asked.ok().and_then(|()| lacking(|code| probe.is_supported(code))) {
        None => Ok(ring),
        Some(name) => Err(format!(
            "this kernel's io_uring has no {name} operation, though all kernels since 5.11 have (a sandbox, perhaps); run with --engine copy"
        )),
    }
}

/// What the driver submits.
const OPERATIONS: [(u8, &str); 8] = [
    (opcode::PollAdd::CODE, "poll"),
    (opcode::AsyncCancel::CODE, "cancel"),
    (opcode::Recv::CODE, "recv"),
    (opcode::Send::CODE, "send"),
    (opcode::Read::CODE, "read"),
    (opcode::Write::CODE, "write"),
    (opcode::ReadFixed::CODE, "read-fixed"),
    (opcode::WriteFixed::CODE, "write-fixed"),
];

/// The first operation of ours that is not supported.
fn lacking(is_supported: impl Fn(u8) -> bool) -> Option<&'static str> {
    OPERATIONS.into_iter().find(|(code, _)| !is_supported(*code)).map(|(_, name)| name)
}

pub(crate) fn explain(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOSYS) => {
            "this kernel or container has no io_uring; allow the io_uring system calls or run with --engine copy".into()
        }
        Some(libc::EPERM) => {
            let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
            match disabled.trim() {
                "" | "0" => {
                    "io_uring is forbidden here (seccomp or a security module); allow it or run with --engine copy"
                        .into()
                }
                level => format!(
                    "io_uring is disabled on this host (kernel.io_uring_disabled={level}); set it to 0 or run with --engine copy"
                ),
            }
        }
        Some(libc::EINVAL) => {
            "this kernel's io_uring is too old (Linux 5.11 or later is needed); run with --engine copy".into()
        }
        Some(libc::ENOMEM) => {
            "no memory for an io_uring; raise RLIMIT_MEMLOCK (ulimit -l) or run with --engine copy".into()
        }
        _ => format!("io_uring cannot be set up: {error}; run with --engine copy"),
    }
}

/// Registers the arena, so that the kernel need not look its pages up for every transfer.
pub(crate) fn register(ring: &IoUring, arena: &Arena, notes: &mut Vec<String>) -> bool {
    let (start, len) = arena.mapping();
    if len > MAX_REGISTERED_BYTES {
        notes.push(format!("{len} bytes of buffers are more than io_uring can register; they are used unregistered"));
        return false;
    }
    let limit = lockable_bytes();
    // Greed would leave no room for the rings of this user's other agents, which fail altogether without it.
    if limit.is_some_and(|limit| len as u64 > limit / LOCKED_SHARE) {
        notes.push(format!(
            "RLIMIT_MEMLOCK ({} bytes for all processes of this user) is too low to register {len} bytes of buffers with io_uring; \
             they are used unregistered (raise ulimit -l to {} to save some CPU)",
            limit.unwrap_or(0),
            (len as u64).div_ceil(1024) * LOCKED_SHARE
        ));
        return false;
    }
    let buffer = libc::iovec { iov_base: start.cast(), iov_len: len };
    // SAFETY: the mapping is owned by the arena, of which the driver keeps a clone until after the ring is gone; the kernel pins its
    // pages itself and copies the iovec.
    match unsafe { ring.submitter().register_buffers(&[buffer]) } {
        Ok(()) => true,
        Err(error) => {
            notes.push(format!("buffers cannot be registered with io_uring ({error}); they are used unregistered"));
            false
        }
    }
}

/// How much memory this user's processes may lock; `None` = no limit, or a capability that lifts it.
fn lockable_bytes() -> Option<u64> {
    let lifted = capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK));
    if lifted { None } else { getrlimit(Resource::Memlock).current }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a sandbox without an operation of ours that is found out when the first block hangs.
    #[test]
    fn a_missing_operation_is_named() {
        assert_eq!(lacking(|_| true), None);
        assert_eq!(lacking(|code| code != opcode::Send::CODE), Some("send"));
    }
}
