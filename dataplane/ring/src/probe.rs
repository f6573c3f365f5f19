//! What this host's kernel offers, found out by trying, for the start-up log and for `--engine auto`.

use rustix::process::{Resource, getrlimit};

use crate::{DriverOptions, Outcome, Pipe};

/// Bytes of pipe that a child of a relay wants.
const WANTED_PIPE_BYTES: usize = 1 << 20;

/// See [`probe`].
#[derive(Debug, Clone)]
pub struct Probe {
    /// Whether io_uring works; if not, why and what to do.
    pub uring: Result<(), String>,
    /// Whether splice and tee work.
    pub splice: bool,
    /// How large a pipe this user gets when asking for 1 MiB; 0 = none.
    pub pipe_bytes: usize,
    /// RLIMIT_MEMLOCK, which bounds registered buffers; `None` = no limit.
    pub memlock_bytes: Option<u64>,
    /// The kernel's release.
    pub kernel: String,
}

/// Tries what the data path needs. Makes a ring and two pipes, and gives them back.
pub fn probe() -> Probe {
    let pipe_bytes = Pipe::new(WANTED_PIPE_BYTES).map_or(0, |pipe| pipe.slots() * 4096);
    Probe {
        uring: crate::setup::setup(&DriverOptions::default(), &mut Vec::new()).map(drop),
        splice: splice_works(),
        pipe_bytes,
        memlock_bytes: getrlimit(Resource::Memlock).current,
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
    }
}

fn splice_works() -> bool {
    let (Ok(source), Ok(branch)) = (Pipe::new(4096), Pipe::new(4096)) else { return false };
    // Empty pipes: a kernel that has the calls says that they would block, one that lacks or forbids them fails.
    matches!(source.tee_to(&branch, 1), Outcome::WouldBlock)
        && matches!(source.move_to(&branch, 1), Outcome::WouldBlock)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a probe that calls a working host unfit.
    #[test]
    fn this_host_is_described() {
        let probe = probe();
        assert!(probe.splice);
        assert!(probe.pipe_bytes >= 4096);
        assert!(!probe.kernel.is_empty());
        if let Err(why) = probe.uring {
            assert!(why.contains("--engine copy"), "{why}");
        }
    }
}
