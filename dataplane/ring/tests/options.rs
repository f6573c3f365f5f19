//! What sockets and drivers can be tuned with: each option does what it says or says why not.

#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use faasnet_ring::socket::{self, SocketOptions};
use faasnet_ring::{Arena, Completion, Driver, DriverKind, DriverOptions, HEADROOM_BYTES, SetupError, Token};

const DEADLINE: Duration = Duration::from_secs(10);

fn next(driver: &mut Driver) -> Completion {
    let (mut out, deadline) = (Vec::new(), Instant::now() + DEADLINE);
    while out.is_empty() {
        assert!(Instant::now() < deadline, "no completion");
        driver.wait(Some(Duration::from_millis(50)), &mut out).unwrap();
    }
    assert_eq!(out.len(), 1);
    out.remove(0)
}

/// Catches a driver whose submissions wait for a kernel thread that sleeps, and one that closes what that thread has not taken yet.
#[test]
fn a_polled_ring_loses_nothing() {
    let arena = Arena::new(2, 4096).unwrap();
    let options = DriverOptions { sqpoll_idle_ms: Some(1), busy_poll_us: Some(20) };
    let mut driver = match Driver::with_options(DriverKind::Uring, &arena, &options) {
        Ok(driver) => driver,
        Err(SetupError::Uring(why)) => return eprintln!("SKIPPED: {why}"),
        Err(other) => panic!("{other}"),
    };
    driver.notes().iter().for_each(|note| eprintln!("NOTE: {note}"));
    let file = Arc::new(tempfile::tempfile().unwrap());
    for round in 0..50u64 {
        let (near, mut far) = UnixStream::pair().unwrap();
        driver.arm_read(near.as_fd(), Token(round));
        // Every other time the kernel's thread has fallen asleep by now.
        driver.wait(Some(Duration::from_millis(3 * (round % 2))), &mut Vec::new()).unwrap();
        far.write_all(b"x").unwrap();
        assert!(matches!(next(&mut driver), Completion::Ready { token } if token.0 == round));
        let mut lease = arena.take().unwrap();
        lease[HEADROOM_BYTES..].fill(round as u8);
        driver.write(&file, lease.freeze(), HEADROOM_BYTES..HEADROOM_BYTES + 4096, 0, Token(1));
        assert!(matches!(next(&mut driver), Completion::Wrote { result: Ok(()), .. }));
        driver.arm_read(near.as_fd(), Token(2));
        driver.close(near.into());
    }
    let lease = arena.take().unwrap();
    driver.read(&file, lease, HEADROOM_BYTES..HEADROOM_BYTES + 4096, 0, Token(3));
    let Completion::Read { result: Ok(lease), .. } = next(&mut driver) else { panic!("not read") };
    assert!(lease[HEADROOM_BYTES..].iter().all(|&byte| byte == 49));
}

/// Catches a pacing rate that does not bound what is sent, and one that cannot be lifted again.
#[test]
fn pacing_bounds_a_connection() {
    const RATE: u64 = 20 << 20;
    let options = SocketOptions { pacing_bytes_per_second: Some(RATE), ..SocketOptions::default() };
    let (listener, address) = socket::listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), &options).unwrap();
    let mut client = TcpStream::connect(address).unwrap();
    let (sender, _) = loop {
        if let Some(accepted) = socket::accept(&listener).unwrap() {
            break accepted;
        }
    };
    let mut sender = TcpStream::from(sender);
    sender.set_nonblocking(false).unwrap();
    let mut send = |bytes: usize| {
        let start = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(|| sender.write_all(&vec![1; bytes]).unwrap());
            client.read_exact(&mut vec![0; bytes]).unwrap();
        });
        start.elapsed()
    };
    // A busy machine makes it slower, never faster: inherited from the listener, two buckets of slack.
    assert!(send(8 << 20) > Duration::from_millis(200), "the rate of the listener does not hold");
    socket::set_pacing_rate(&sender, u64::MAX).unwrap();
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| sender.write_all(&vec![1; 32 << 20]).unwrap());
        client.read_exact(&mut vec![0; 32 << 20]).unwrap();
    });
    assert!(start.elapsed() < Duration::from_millis(1400), "the rate was not lifted: {:?}", start.elapsed());
}

/// Catches a congestion control that does not exist and is ignored, or an error that does not say what there is.
#[test]
fn an_unknown_congestion_control_names_the_known_ones() {
    let with = |name: &str| SocketOptions { congestion: Some(name.into()), ..SocketOptions::default() };
    let error = socket::listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), &with("warp")).unwrap_err().to_string();
    assert!(error.contains("warp") && error.contains("available: ") && error.contains("reno"), "{error}");
    socket::listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), &with("reno")).unwrap();
}

/// Catches buffer sizes that are not what the kernel gave.
#[test]
fn buffers_are_read_back() {
    let options = SocketOptions { receive_bytes: Some(64 << 10), send_bytes: Some(96 << 10), ..Default::default() };
    let granted = socket::try_options(&options).unwrap();
    assert_eq!((granted.receive_bytes, granted.send_bytes, granted.busy_poll), (64 << 10, 96 << 10, Ok(())));
    let greedy = SocketOptions { receive_bytes: Some(1 << 30), ..Default::default() };
    assert!(socket::try_options(&greedy).unwrap().receive_bytes < 1 << 30);
}
