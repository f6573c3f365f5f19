//! Runs code inside a network namespace: on a thread of its own, so that no other thread ever finds itself elsewhere.
//!
//! Sockets belong to the namespace in which they were made, whoever uses them later; threads and processes started by such a thread
//! inherit it.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::LabError;
use crate::error::Result;

/// Where `ip netns` keeps namespaces.
pub const NAMESPACES: &str = "/run/netns";

/// The file that stands for a namespace.
pub fn path(namespace: &str) -> PathBuf {
    Path::new(NAMESPACES).join(namespace)
}

/// Starts a thread in `namespace`. What it returns is found by joining.
pub fn spawn<T: Send + 'static>(
    namespace: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<Result<T>>> {
    let path = path(namespace);
    let file = File::open(&path).map_err(LabError::io(format!("cannot enter {}; is the lab up?", path.display())))?;
    let body = move || {
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|cause| LabError::Io { what: format!("cannot enter {}", path.display()), cause: cause.into() })?;
        Ok(work())
    };
    std::thread::Builder::new()
        .name("lab".into())
        .spawn(body)
        .map_err(LabError::io("cannot start a thread; is the limit of processes reached?"))
}

/// Runs `work` in `namespace` and waits for it.
pub fn run<T: Send + 'static>(namespace: &str, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    match spawn(namespace, work)?.join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}
