//! All drivers against real sockets and files. A host without io_uring runs the epoll part and says so.

#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use faasnet_ring::{Arena, Completion, Driver, DriverKind, HEADROOM_BYTES, SetupError, Token, Waker};

const PAYLOAD: usize = 256 << 10;

/// Runs `check` with every driver that this host has.
fn each_driver(check: impl Fn(DriverKind, &Arena, &mut Driver)) {
    for kind in [DriverKind::Uring, DriverKind::Epoll, DriverKind::TokioUring] {
        let arena = Arena::new(8, PAYLOAD).unwrap();
        let Some(mut driver) = new_driver(kind, &arena) else { continue };
        assert_eq!(driver.kind(), kind);
        check(kind, &arena, &mut driver);
        drop(driver);
        assert_eq!(arena.free(), arena.slots(), "{kind:?} keeps a buffer");
    }
}

fn new_driver(kind: DriverKind, arena: &Arena) -> Option<Driver> {
    match Driver::new(kind, arena) {
        Ok(driver) => {
            driver.notes().iter().for_each(|note| eprintln!("NOTE: {note}"));
            Some(driver)
        }
        Err(SetupError::Uring(why)) => {
            eprintln!("SKIPPED for io_uring: {why}");
            None
        }
        Err(other) => panic!("{other}"),
    }
}

/// Completions within five seconds, until `count` have come.
fn wait_for(driver: &mut Driver, count: usize) -> Vec<Completion> {
    let (mut out, deadline) = (Vec::new(), Instant::now() + Duration::from_secs(5));
    while out.len() < count {
        assert!(Instant::now() < deadline, "{} of {count} completions", out.len());
        driver.wait(Some(Duration::from_millis(100)), &mut out).unwrap();
    }
    out
}

fn ready(completions: &[Completion]) -> Vec<u64> {
    let mut tokens: Vec<u64> = completions
        .iter()
        .map(|completion| match completion {
            Completion::Ready { token } => token.0,
            _ => panic!("not a readiness"),
        })
        .collect();
    tokens.sort_unstable();
    tokens
}

/// What comes without waiting; twice, because a cancellation is submitted by one call and may be answered in the next.
fn now(driver: &mut Driver) -> Vec<Completion> {
    let mut out = Vec::new();
    driver.wait(Some(Duration::ZERO), &mut out).unwrap();
    driver.wait(Some(Duration::ZERO), &mut out).unwrap();
    out
}

/// Catches readiness that is told twice, not told, or told under an old token.
#[test]
fn readiness_is_told_once_per_arm() {
    each_driver(|_, _, driver| {
        let (near, mut far) = UnixStream::pair().unwrap();
        driver.arm_read(near.as_fd(), Token(1));
        driver.arm_read(near.as_fd(), Token(2));
        assert!(now(driver).is_empty());
        far.write_all(b"x").unwrap();
        assert_eq!(ready(&wait_for(driver, 1)), [2]);
        assert!(now(driver).is_empty(), "one shot, although the byte is still there");
        driver.arm_read(near.as_fd(), Token(3));
        assert_eq!(ready(&wait_for(driver, 1)), [3]);
        driver.arm_write(near.as_fd(), Token(4));
        assert_eq!(ready(&wait_for(driver, 1)), [4]);
        driver.disarm(near.as_fd());
    });
}

/// Catches one direction that swallows or disarms the other.
#[test]
fn directions_are_independent() {
    each_driver(|_, _, driver| {
        let (near, mut far) = UnixStream::pair().unwrap();
        driver.arm_read(near.as_fd(), Token(1));
        driver.arm_write(near.as_fd(), Token(2));
        assert_eq!(ready(&wait_for(driver, 1)), [2]);
        assert!(now(driver).is_empty());
        far.write_all(b"x").unwrap();
        assert_eq!(ready(&wait_for(driver, 1)), [1]);
        driver.arm_read(near.as_fd(), Token(3));
        driver.arm_write(near.as_fd(), Token(4));
        assert_eq!(ready(&wait_for(driver, 2)), [3, 4]);
    });
}

/// Catches a neighbour's end that wakes nobody.
#[test]
fn the_end_of_a_stream_is_readiness() {
    each_driver(|_, _, driver| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (far, _) = listener.accept().unwrap();
        // With a low-water mark that the end does not reach.
        faasnet_ring::socket::set_rcvlowat(&near, 100_000).unwrap();
        driver.arm_read(near.as_fd(), Token(1));
        assert!(now(driver).is_empty());
        drop(far);
        assert_eq!(ready(&wait_for(driver, 1)), [1]);
        driver.close(OwnedFd::from(near));
    });
}

/// Catches a wait that ends too early, too late, or as an error.
#[test]
fn a_wait_ends_with_its_time_or_a_ring_of_the_bell() {
    each_driver(|_, _, driver| {
        let mut out = Vec::new();
        let started = Instant::now();
        driver.wait(Some(Duration::from_millis(30)), &mut out).unwrap();
        assert!(out.is_empty() && started.elapsed() >= Duration::from_millis(30));
        let waker = Waker::new().unwrap();
        driver.arm_read(waker.as_fd(), Token(7));
        let remote = waker.clone();
        let thread = std::thread::spawn(move || remote.wake());
        driver.wait(None, &mut out).unwrap();
        assert_eq!(ready(&out), [7]);
        assert!(waker.drain());
        thread.join().unwrap();
    });
}

/// Catches a descriptor that is closed under an arm, leaks, or whose late completion reaches the caller or its number's next owner.
#[test]
fn closing_swallows_what_was_armed() {
    each_driver(|kind, _, driver| {
        let (near, mut far) = UnixStream::pair().unwrap();
        let number = near.as_raw_fd();
        driver.arm_read(near.as_fd(), Token(1));
        assert!(now(driver).is_empty());
        driver.close(OwnedFd::from(near));
        let (other, mut other_far) = UnixStream::pair().unwrap();
        driver.arm_read(other.as_fd(), Token(2));
        assert!(now(driver).is_empty(), "the cancelled arm of descriptor {number} stays silent");
        if kind == DriverKind::Uring {
            assert_eq!(driver.stale_completions(), 1);
        }
        assert_eq!(far.read(&mut [0; 1]).unwrap(), 0, "the descriptor was closed");
        other_far.write_all(b"x").unwrap();
        assert_eq!(ready(&wait_for(driver, 1)), [2]);
        // Both directions armed and one already fired, but not collected.
        driver.arm_read(other.as_fd(), Token(3));
        driver.arm_write(other.as_fd(), Token(4));
        driver.close(OwnedFd::from(other));
        assert!(now(driver).is_empty());
        if kind == DriverKind::Uring {
            assert_eq!(driver.stale_completions(), 3);
        }
    });
}

/// Catches bytes that arrive at another place of the file than asked for, or a buffer that is not given back.
#[test]
fn what_is_written_is_read() {
    each_driver(|kind, arena, driver| {
        let file = Arc::new(tempfile::tempfile().unwrap());
        for block in 0..4u8 {
            let mut lease = arena.take().unwrap();
            lease[HEADROOM_BYTES..].fill(block + 1);
            let range = HEADROOM_BYTES..HEADROOM_BYTES + PAYLOAD;
            let offset = u64::from(block) * PAYLOAD as u64;
            driver.write(&file, lease.freeze(), range, offset, Token(block.into()));
        }
        for completion in wait_for(driver, 4) {
            assert!(matches!(completion, Completion::Wrote { token: Token(0..4), result: Ok(()) }));
        }
        assert_eq!(arena.free(), arena.slots(), "{kind:?}");
        let mut lease = arena.take().unwrap();
        lease.fill(9);
        driver.read(&file, lease, 10..10 + PAYLOAD, PAYLOAD as u64 - 7, Token(50));
        let [Completion::Read { token: Token(50), result: Ok(got) }] = &wait_for(driver, 1)[..] else {
            panic!("the read failed")
        };
        assert!(got[..10].iter().all(|&byte| byte == 9) && got[10..17].iter().all(|&byte| byte == 1));
        assert!(
            got[17..10 + PAYLOAD].iter().all(|&byte| byte == 2) && got[10 + PAYLOAD..].iter().all(|&byte| byte == 9)
        );
    });
}

/// Catches an error that is lost, a short read that passes for a whole one, or an empty transfer that never completes.
#[test]
fn failures_and_empty_transfers_complete() {
    each_driver(|_, arena, driver| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, [1; 100]).unwrap();
        let file = Arc::new(File::open(&path).unwrap());
        driver.read(&file, arena.take().unwrap(), 0..101, 0, Token(1));
        driver.write(&file, arena.take().unwrap().freeze(), 0..10, 0, Token(2));
        driver.write(&file, arena.take().unwrap().freeze(), 5..5, 0, Token(3));
        driver.read(&file, arena.take().unwrap(), 5..5, 1000, Token(4));
        let mut seen = Vec::new();
        for completion in wait_for(driver, 4) {
            seen.push(match completion {
                Completion::Read { token, result: Err(error) } if error.kind() == ErrorKind::UnexpectedEof => token.0,
                Completion::Wrote { token: Token(2), result: Err(_) } => 2,
                Completion::Wrote { token: Token(3), result: Ok(()) } => 3,
                Completion::Read { token: Token(4), result: Ok(_) } => 4,
                _ => panic!("an unexpected completion after {seen:?}"),
            });
        }
        seen.sort_unstable();
        assert_eq!(seen, [1, 2, 3, 4]);
    });
}

/// Catches a driver that is dropped while the kernel or the disk thread still uses its buffers.
#[test]
fn dropping_waits_for_what_is_in_flight() {
    each_driver(|kind, arena, _| {
        let Some(mut driver) = new_driver(kind, arena) else { return };
        let (near, _far) = UnixStream::pair().unwrap();
        driver.arm_read(near.as_fd(), Token(1));
        let file = Arc::new(tempfile::tempfile().unwrap());
        let mut lease = arena.take().unwrap();
        lease.fill(5);
        let lease = lease.freeze();
        for block in 0..64u64 {
            driver.write(&file, lease.clone(), 0..PAYLOAD, block * PAYLOAD as u64, Token(block));
        }
        // Submitted, and surely not all done.
        driver.wait(Some(Duration::ZERO), &mut Vec::new()).unwrap();
        driver.read(&file, arena.take().unwrap(), 0..10, 0, Token(99));
        drop((driver, lease));
        assert_eq!(arena.free(), arena.slots());
        assert_eq!(Arc::strong_count(&file), 1, "{kind:?} still has the file");
        let mut byte = [0];
        // Whatever was written is right; nothing is promised about what was cancelled.
        if file.read_at(&mut byte, 0).unwrap() == 1 {
            assert!([0, 5].contains(&byte[0]));
        }
    });
}

/// Catches entries that are lost when the submission or completion queue overflows (256 and 1024 entries).
#[test]
fn more_than_the_queues_hold_is_not_lost() {
    each_driver(|_, arena, driver| {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let lease = arena.take().unwrap().freeze();
        for n in 0..9000u64 {
            driver.write(&file, lease.clone(), 0..64, n * 64, Token(n));
        }
        let done = wait_for(driver, 9000);
        assert!(done.iter().all(|completion| matches!(completion, Completion::Wrote { result: Ok(()), .. })));
        assert_eq!(done.len(), 9000);
        assert_eq!(file.metadata().unwrap().len(), 9000 * 64);
    });
}

/// Catches writes that are all kept for the end of a long turn: the disk is idle until then, and gives every buffer back at once.
#[test]
fn a_long_turn_does_not_hold_its_writes_back() {
    let arena = Arena::new(8, PAYLOAD).unwrap();
    let Some(mut driver) = new_driver(DriverKind::Uring, &arena) else { return };
    let file = Arc::new(tempfile::tempfile().unwrap());
    for index in 0..4 {
        let mut lease = arena.take().unwrap();
        lease.fill(index as u8 + 1);
        let range = HEADROOM_BYTES..HEADROOM_BYTES + PAYLOAD;
        driver.write(&file, lease.freeze(), range, index * PAYLOAD as u64, Token(index));
    }
    // The file is asked and not the driver, whose wait would submit them.
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut last = [0];
    while file.read_at(&mut last, 4 * PAYLOAD as u64 - 1).unwrap() == 0 || last != [4] {
        assert!(Instant::now() < deadline, "nothing is written before the wait");
        std::thread::yield_now();
    }
    assert_eq!(wait_for(&mut driver, 4).len(), 4);
}
