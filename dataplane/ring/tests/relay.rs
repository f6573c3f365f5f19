//! Sockets and pipes together, as a relay uses them, over loopback TCP.

#![allow(clippy::unwrap_used)]

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use faasnet_ring::socket::{self, Outcome, SocketOptions};
use faasnet_ring::{Arena, Completion, Driver, DriverKind, Pipe, Token};

const LOCAL: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// A non-blocking near end and a blocking far end.
fn pair() -> (OwnedFd, TcpStream) {
    let listener = TcpListener::bind(LOCAL).unwrap();
    let near = socket::connect(listener.local_addr().unwrap(), None, &SocketOptions::default()).unwrap();
    let (far, _) = listener.accept().unwrap();
    far.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    until_ready(|driver| driver.arm_write(near.as_fd(), Token(0)));
    socket::connect_result(&near).unwrap();
    (near, far)
}

fn until_ready(arm: impl Fn(&mut Driver)) {
    let arena = Arena::new(1, 4096).unwrap();
    let mut driver = Driver::new(DriverKind::Epoll, &arena).unwrap();
    arm(&mut driver);
    let mut out: Vec<Completion> = Vec::new();
    driver.wait(Some(Duration::from_secs(5)), &mut out).unwrap();
    assert_eq!(out.len(), 1, "not ready within five seconds");
}

/// Tries until something moved; five seconds.
fn moved(mut attempt: impl FnMut() -> Outcome) -> usize {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match attempt() {
            Outcome::Moved(moved) => return moved,
            Outcome::WouldBlock if Instant::now() < deadline => std::thread::yield_now(),
            other => panic!("{other:?}"),
        }
    }
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 31 % 251) as u8).collect()
}

/// Catches bytes that are lost, doubled or reordered on the way socket → pipe → tee → two sockets; and a peek that sees others.
#[test]
fn two_children_get_what_was_peeked() {
    let (upstream, mut source) = pair();
    let (one, mut first) = pair();
    let (two, mut second) = pair();
    let sent = bytes(3 << 20);
    let expected = sent.clone();
    let sender = std::thread::spawn(move || source.write_all(&sent).map(|()| source).unwrap());
    let readers = [&mut first, &mut second].map(|child| {
        let mut child = child.try_clone().unwrap();
        std::thread::spawn(move || {
            let mut got = vec![0; 3 << 20];
            child.read_exact(&mut got).unwrap();
            got
        })
    });
    let (main, branch, other) = (Pipe::new(1 << 20).unwrap(), Pipe::new(1 << 20).unwrap(), Pipe::new(1 << 20).unwrap());
    let (mut peeked, mut done) = (vec![0; 64 << 10], 0);
    while done < expected.len() {
        let seen = moved(|| socket::peek(&upstream, &mut peeked));
        assert_eq!(peeked[..seen], expected[done..done + seen]);
        let mut left = moved(|| main.fill_from_socket(&upstream, seen));
        assert_eq!(main.buffered(), left);
        done += left;
        while left > 0 {
            // A short tee would desynchronise the branches: move exactly what was teed.
            let teed = moved(|| main.tee_to(&branch, left));
            assert_eq!(moved(|| main.move_to(&other, teed)), teed);
            for (pipe, child) in [(&branch, &one), (&other, &two)] {
                while pipe.buffered() > 0 {
                    moved(|| pipe.drain_to_socket(child, pipe.buffered(), false));
                }
            }
            left -= teed;
        }
    }
    let _source = sender.join().unwrap();
    for reader in readers {
        assert!(reader.join().unwrap() == expected);
    }
    assert_eq!(socket::bytes_received(&upstream).unwrap(), expected.len() as u64);
    assert_eq!((main.buffered(), branch.buffered(), other.buffered()), (0, 0, 0));
}

/// Catches a low-water mark that the kernel does not honour, for which the worker would wake for every packet.
#[test]
fn the_low_water_mark_holds_readiness_back() {
    for kind in [DriverKind::Uring, DriverKind::Epoll] {
        match Driver::new(kind, &Arena::new(1, 4096).unwrap()) {
            Ok(driver) => low_water_mark(driver),
            Err(why) => eprintln!("SKIPPED for {kind:?}: {why}"),
        }
    }
}

fn low_water_mark(mut driver: Driver) {
    let (near, mut far) = pair();
    socket::set_rcvlowat(&near, 100_000).unwrap();
    let mut out = Vec::new();
    driver.arm_read(near.as_fd(), Token(1));
    far.write_all(&bytes(99_999)).unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    while socket::readable_bytes(&near).unwrap() < 99_999 {
        assert!(Instant::now() < deadline);
        driver.wait(Some(Duration::from_millis(1)), &mut out).unwrap();
    }
    driver.wait(Some(Duration::ZERO), &mut out).unwrap();
    assert!(out.is_empty());
    far.write_all(&[1]).unwrap();
    driver.wait(Some(Duration::from_secs(5)), &mut out).unwrap();
    assert_eq!(out.len(), 1);
}

/// Catches a file range that is sent from another place, or an end of file that looks like a blocked socket.
#[test]
fn sendfile_sends_the_range() {
    let mut file = tempfile::tempfile().unwrap();
    let content = bytes(300_000);
    file.write_all(&content).unwrap();
    let (near, mut far) = pair();
    let reader = std::thread::spawn(move || {
        let mut got = vec![0; 200_000];
        far.read_exact(&mut got).unwrap();
        (got, far)
    });
    let mut done = 0;
    while done < 200_000 {
        done += moved(|| socket::sendfile(&near, &file, 50_000 + done as u64, 200_000 - done));
    }
    let (got, _far) = reader.join().unwrap();
    assert!(got == content[50_000..250_000]);
    assert!(matches!(socket::sendfile(&near, &file, 300_000, 1), Outcome::Ended));
    assert!(matches!(socket::sendfile(&near, &file, 0, 0), Outcome::Moved(0)));
}

/// Catches an end that is taken for a failure or the other way round.
#[test]
fn ends_and_resets_are_told_apart() {
    let (near, far) = pair();
    let mut buffer = [0; 16];
    assert!(matches!(socket::recv(&near, &mut buffer), Outcome::WouldBlock));
    assert!(matches!(socket::recv(&near, &mut []), Outcome::Moved(0)));
    far.shutdown(std::net::Shutdown::Write).unwrap();
    until_ready(|driver| driver.arm_read(near.as_fd(), Token(0)));
    assert!(matches!(socket::peek(&near, &mut buffer), Outcome::Ended));
    assert!(matches!(socket::recv(&near, &mut buffer), Outcome::Ended));
    assert!(matches!(Pipe::new(4096).unwrap().fill_from_socket(&near, 1), Outcome::Ended));
    socket::shutdown_write(&near).unwrap();
    assert!(
        matches!(socket::send(&near, b"x", false), Outcome::Failed(error) if error.kind() == ErrorKind::BrokenPipe)
    );

    let (near, far) = pair();
    // Unread data at the far end makes its close a reset.
    assert!(matches!(socket::send(&near, b"x", false), Outcome::Moved(1)));
    far.peek(&mut buffer).unwrap();
    drop(far);
    until_ready(|driver| driver.arm_read(near.as_fd(), Token(0)));
    assert!(
        matches!(socket::recv(&near, &mut buffer), Outcome::Failed(error) if error.kind() == ErrorKind::ConnectionReset)
    );
}

/// Catches a pipe into a dead socket that kills the process (SIGPIPE) or says that it would block.
#[test]
fn draining_into_a_dead_socket_fails() {
    let (upstream, mut source) = pair();
    source.write_all(&bytes(1000)).unwrap();
    let pipe = Pipe::new(64 << 10).unwrap();
    assert_eq!(moved(|| pipe.fill_from_socket(&upstream, 1000)), 1000);
    let (near, far) = pair();
    socket::shutdown_write(&near).unwrap();
    drop(far);
    assert!(matches!(pipe.drain_to_socket(&near, 1000, false), Outcome::Failed(_)));
    assert_eq!(pipe.buffered(), 1000, "nothing was consumed");
    assert_eq!(moved(|| pipe.discard(400)) + moved(|| pipe.discard(600)), 1000);
    assert!(matches!(pipe.discard(1), Outcome::WouldBlock));
}

/// Catches a connection that fails silently, or options that break one.
#[test]
fn connecting_and_accepting() {
    let options = SocketOptions {
        receive_bytes: Some(512 << 10),
        send_bytes: Some(512 << 10),
        congestion: Some("reno".into()),
        ..SocketOptions::default()
    };
    let (listener, addr) = socket::listen(LOCAL, &options).unwrap();
    assert!(socket::accept(&listener).unwrap().is_none());
    let source = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 9));
    let near = socket::connect(addr, Some(source), &options).unwrap();
    until_ready(|driver| driver.arm_read(listener.as_fd(), Token(0)));
    let (far, from) = socket::accept(&listener).unwrap().unwrap();
    assert_eq!((from.ip(), socket::remote_addr(&far).unwrap()), (source, from));
    assert!(matches!(socket::recv(&far, &mut [0; 1]), Outcome::WouldBlock), "accepted sockets are non-blocking");
    socket::connect_result(&near).unwrap();
    for end in [&near, &far] {
        use rustix::net::sockopt;
        assert!(sockopt::tcp_nodelay(end).unwrap(), "both ends have the options");
        assert_eq!(sockopt::tcp_user_timeout(end).unwrap(), 10_000);
        assert_eq!(sockopt::tcp_congestion(end).unwrap(), "reno");
        assert!(sockopt::socket_recv_buffer_size(end).unwrap() >= 200 << 10);
    }
    let taken = socket::listen(addr, &options).unwrap_err();
    assert!(taken.kind() == ErrorKind::AddrInUse && taken.to_string().contains("in use by another program"));
    drop((listener, far));
    let refused = socket::connect(addr, None, &SocketOptions::default()).unwrap();
    until_ready(|driver| driver.arm_write(refused.as_fd(), Token(0)));
    assert_eq!(socket::connect_result(&refused).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    let strange = SocketOptions { congestion: Some("no-such".into()), ..SocketOptions::default() };
    assert!(socket::listen(LOCAL, &strange).unwrap_err().to_string().contains("no-such"));
}

/// Catches a pipe that claims more slots than the kernel gave.
#[test]
fn a_pipe_has_the_slots_that_it_claims() {
    for wanted in [1, 4096, 64 << 10, 1 << 20, 1 << 30] {
        let pipe = Pipe::new(wanted).unwrap();
        assert!(pipe.slots() >= 1 && pipe.slots() * 4096 <= wanted.max(64 << 10).next_power_of_two());
        assert_eq!(pipe.buffered(), 0);
    }
    let (near, mut far) = pair();
    far.write_all(&bytes(100)).unwrap();
    let (pipe, branch) = (Pipe::new(64 << 10).unwrap(), Pipe::new(4096).unwrap());
    assert_eq!(moved(|| pipe.fill_from_socket(&near, 100)), 100);
    let teed = (0..2 * branch.slots()).take_while(|_| matches!(pipe.tee_to(&branch, 100), Outcome::Moved(100))).count();
    assert_eq!(teed, branch.slots(), "tee consumes nothing, and a slot takes one fragment however small");
    assert!(matches!(pipe.tee_to(&branch, 100), Outcome::WouldBlock));
}
