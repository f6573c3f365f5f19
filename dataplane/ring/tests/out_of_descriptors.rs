//! A process that may open nothing more. In a process of its own: the limit is everybody's.

#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::os::unix::net::UnixStream;

use faasnet_ring::{Outcome, Pipe};
use rustix::process::{Resource, getrlimit, setrlimit};

/// Catches a discard that needs a descriptor when there is none left, and leaves stale bytes in a pipe that is used again.
#[test]
fn discarding_needs_no_descriptor() {
    let (near, mut far) = UnixStream::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    far.write_all(&[7; 100]).unwrap();
    let pipe = Pipe::new(4096).unwrap();
    assert!(matches!(pipe.fill_from_socket(&near, 100), Outcome::Moved(100)));
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, rustix::process::Rlimit { current: Some(0), ..limit }).unwrap();
    assert!(std::fs::File::open("/dev/null").is_err(), "the limit does not hold");
    let outcome = pipe.discard(100);
    setrlimit(Resource::Nofile, limit).unwrap();
    assert!(matches!(outcome, Outcome::Moved(100)), "{outcome:?}");
    assert_eq!(pipe.buffered(), 0);
}
