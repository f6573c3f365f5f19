//! A process without privileges: 8 MiB of locked memory, no CAP_IPC_LOCK, no CAP_SYS_RESOURCE. In a process of its own: limits are
//! everybody's.

#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use faasnet_ring::{Arena, Completion, Driver, DriverKind, Outcome, Pipe, SetupError, Token};
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

const BLOCK: usize = 256 << 10;
const MEMLOCK: u64 = 8 << 20;

fn give_up_privileges() {
    setrlimit(Resource::Memlock, Rlimit { current: Some(MEMLOCK), maximum: Some(MEMLOCK) }).unwrap();
    let mut sets = capabilities(None).unwrap();
    let lost = CapabilitySet::IPC_LOCK | CapabilitySet::SYS_RESOURCE | CapabilitySet::SYS_ADMIN;
    sets.effective -= lost;
    sets.permitted -= lost;
    sets.inheritable -= lost;
    set_capabilities(None, sets).unwrap();
}

fn next(driver: &mut Driver) -> Completion {
    let (mut out, deadline) = (Vec::new(), Instant::now() + Duration::from_secs(5));
    while out.is_empty() {
        assert!(Instant::now() < deadline, "nothing completes");
        driver.wait(Some(Duration::from_millis(100)), &mut out).unwrap();
    }
    out.pop().unwrap()
}

/// Catches a set-up that needs privileges, degrades without a word, or works less well than it says.
#[test]
fn a_process_without_privileges_works_and_says_what_it_lacks() {
    give_up_privileges();
    let pipe = Pipe::new(4 << 20).unwrap();
    let largest: usize = std::fs::read_to_string("/proc/sys/fs/pipe-max-size").unwrap().trim().parse().unwrap();
    assert_eq!(pipe.capacity_bytes(), largest.min(4 << 20), "the real size is told");
    // As many as an agent has, and so many that they are beyond the limit on their own.
    for slots in [24, 64] {
        let arena = Arena::new(slots, BLOCK).unwrap();
        let mut driver = match Driver::new(DriverKind::Uring, &arena) {
            Ok(driver) => driver,
            Err(SetupError::Uring(why)) => return eprintln!("SKIPPED: {why}"),
            Err(other) => panic!("{other}"),
        };
        let notes = driver.notes().join("\n");
        assert!(
            notes.contains("RLIMIT_MEMLOCK") && notes.contains("unregistered") && notes.contains("ulimit -l"),
            "{notes}"
        );
        // Two small buffers fit, and are registered.
        assert_eq!(Driver::new(DriverKind::Uring, &Arena::new(2, BLOCK).unwrap()).unwrap().notes(), [""; 0]);

        let file = Arc::new(tempfile::tempfile().unwrap());
        let mut lease = arena.take().unwrap();
        lease.fill(7);
        driver.write(&file, lease.freeze(), 0..BLOCK, 0, Token(1));
        assert!(matches!(next(&mut driver), Completion::Wrote { token: Token(1), result: Ok(()) }));
        driver.read(&file, arena.take().unwrap(), 0..BLOCK, 0, Token(2));
        assert!(matches!(next(&mut driver), Completion::Read { result: Ok(bytes), .. } if bytes[BLOCK - 1] == 7));

        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        driver.receive(near.as_fd(), arena.take().unwrap(), 0..BLOCK, Token(3));
        far.write_all(b"x").unwrap();
        assert!(matches!(next(&mut driver), Completion::Received { outcome: Outcome::Moved(1), .. }));
        driver.close(OwnedFd::from(near));
    }
}
