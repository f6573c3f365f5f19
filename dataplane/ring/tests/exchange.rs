//! Receives and sends of sockets by the drivers that do them.

#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use faasnet_ring::{Arena, Completion, Driver, DriverKind, Outcome, SetupError, Token};

const PAYLOAD: usize = 256 << 10;

fn each_driver(check: impl Fn(DriverKind, &Arena, &mut Driver)) {
    for kind in [DriverKind::Uring, DriverKind::TokioUring] {
        let arena = Arena::new(4, PAYLOAD).unwrap();
        let mut driver = match Driver::new(kind, &arena) {
            Ok(driver) => driver,
            Err(SetupError::Uring(why)) => {
                eprintln!("SKIPPED for {kind:?}: {why}");
                continue;
            }
            Err(other) => panic!("{other}"),
        };
        assert!(driver.moves_sockets());
        check(kind, &arena, &mut driver);
        drop(driver);
        assert_eq!(arena.free(), arena.slots(), "{kind:?} keeps a buffer");
    }
}

/// A non-blocking near end, as the workers have, and a blocking far end.
fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    near.set_nonblocking(true).unwrap();
    let (far, _) = listener.accept().unwrap();
    far.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    (near, far)
}

fn next(driver: &mut Driver) -> Completion {
    let (mut out, deadline) = (Vec::new(), Instant::now() + Duration::from_secs(5));
    while out.is_empty() {
        assert!(Instant::now() < deadline, "nothing completes");
        driver.wait(Some(Duration::from_millis(100)), &mut out).unwrap();
    }
    assert_eq!(out.len(), 1);
    out.pop().unwrap()
}

/// What comes without waiting.
fn now(driver: &mut Driver) -> Vec<Completion> {
    let mut out = Vec::new();
    (0..3).for_each(|_| driver.wait(Some(Duration::ZERO), &mut out).unwrap());
    out
}

/// Catches a receive that does not wait for bytes (sockets are non-blocking), puts them elsewhere, or hides the end.
#[test]
fn what_is_sent_is_received_where_it_was_asked_for() {
    each_driver(|kind, arena, driver| {
        let (near, mut far) = pair();
        let mut lease = arena.take().unwrap();
        lease.fill(9);
        driver.receive(near.as_fd(), lease, 10..1000, Token(1));
        assert!(now(driver).is_empty(), "{kind:?} has nothing to receive");
        far.write_all(b"hello").unwrap();
        let Completion::Received { token: Token(1), buffer, outcome: Outcome::Moved(5) } = next(driver) else {
            panic!("{kind:?}: not five bytes")
        };
        assert_eq!(&buffer[9..16], b"\x09hello\x09");
        drop(far);
        driver.receive(near.as_fd(), buffer, 0..10, Token(2));
        assert!(matches!(next(driver), Completion::Received { token: Token(2), outcome: Outcome::Ended, .. }));
        driver.close(OwnedFd::from(near));
    });
}

/// Catches a send that ends when the socket is full, loses its place, or gives the buffer back too early.
#[test]
fn a_slow_reader_gets_every_byte() {
    each_driver(|kind, arena, driver| {
        let (near, mut far) = pair();
        rustix::net::sockopt::set_socket_send_buffer_size(&near, 16 << 10).unwrap();
        let mut lease = arena.take().unwrap();
        (0..PAYLOAD).for_each(|n| lease[n] = (n * 7 % 251) as u8);
        let lease = lease.freeze();
        driver.send(near.as_fd(), lease.clone(), 1..PAYLOAD, Token(3));
        // Readiness of the other direction is told meanwhile.
        driver.arm_read(near.as_fd(), Token(4));
        far.write_all(b"x").unwrap();
        assert!(matches!(next(driver), Completion::Ready { token: Token(4) }), "{kind:?}");
        drop(lease);
        assert_eq!(arena.free(), arena.slots() - 1, "{kind:?} gave the buffer back before it was sent");
        let reader = std::thread::spawn(move || {
            let mut got = vec![0; PAYLOAD - 1];
            far.read_exact(&mut got).unwrap();
            got
        });
        let Completion::Sent { token: Token(3), outcome: Outcome::Moved(moved) } = next(driver) else {
            panic!("{kind:?}: not sent")
        };
        assert_eq!(moved, PAYLOAD - 1);
        assert!(reader.join().unwrap().iter().enumerate().all(|(n, &byte)| byte == ((n + 1) * 7 % 251) as u8));
        driver.close(OwnedFd::from(near));
    });
}

/// Catches a descriptor that is closed under an operation, an operation that outlives its connection, or whose completion reaches the caller
/// after the close; and buffers that stay with it.
#[test]
fn closing_ends_what_is_in_flight() {
    each_driver(|kind, arena, driver| {
        let (near, mut far) = pair();
        rustix::net::sockopt::set_socket_send_buffer_size(&near, 16 << 10).unwrap();
        driver.receive(near.as_fd(), arena.take().unwrap(), 0..PAYLOAD, Token(5));
        driver.send(near.as_fd(), arena.take().unwrap().freeze(), 0..PAYLOAD, Token(6));
        assert!(now(driver).is_empty());
        driver.close(OwnedFd::from(near));
        let deadline = Instant::now() + Duration::from_secs(5);
        while arena.free() < arena.slots() {
            assert!(Instant::now() < deadline, "{kind:?} keeps the buffers");
            let mut out = Vec::new();
            driver.wait(Some(Duration::from_millis(10)), &mut out).unwrap();
            assert!(out.is_empty(), "{kind:?} tells of what is closed");
        }
        assert_eq!(driver.stale_completions(), 2, "{kind:?}");
        // The far end sees the end, after whatever was sent before.
        let ended = far.read_to_end(&mut Vec::new());
        assert!(ended.is_ok() || ended.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset));
    });
}

/// Catches a broken connection that looks like a short send, and an old completion that is taken for the next owner's of its number.
#[test]
fn a_broken_connection_fails_and_its_number_starts_anew() {
    each_driver(|kind, arena, driver| {
        let (near, far) = pair();
        drop(far);
        let lease = arena.take().unwrap().freeze();
        let deadline = Instant::now() + Duration::from_secs(5);
        // The first bytes are still taken; the answer to them breaks the connection.
        loop {
            assert!(Instant::now() < deadline, "{kind:?}: a closed connection takes bytes for ever");
            driver.send(near.as_fd(), lease.clone(), 0..1000, Token(7));
            match next(driver) {
                Completion::Sent { outcome: Outcome::Failed(_), .. } => break,
                Completion::Sent { outcome: Outcome::Moved(1000), .. } => {}
                other => panic!("{kind:?}: {other:?}"),
            }
        }
        driver.receive(near.as_fd(), arena.take().unwrap(), 0..10, Token(8));
        driver.close(OwnedFd::from(near));
        let (again, mut far) = pair();
        driver.receive(again.as_fd(), arena.take().unwrap(), 0..10, Token(9));
        far.write_all(b"y").unwrap();
        assert!(matches!(next(driver), Completion::Received { token: Token(9), outcome: Outcome::Moved(1), .. }));
        driver.close(OwnedFd::from(again));
    });
}

/// Catches a driver that waits for ever, or gives memory back that the kernel still writes to, when it is dropped in the middle.
#[test]
fn dropping_ends_what_waits() {
    each_driver(|_, arena, driver| {
        let (near, far) = pair();
        driver.receive(near.as_fd(), arena.take().unwrap(), 0..10, Token(1));
        assert!(now(driver).is_empty());
        // `each_driver` drops the driver, with both ends open, and counts the buffers.
        std::mem::forget((near, far));
    });
}
