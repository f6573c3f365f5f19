//! How blocks pass through this node: which mover a worker starts with, and which one each link uses.
//!
//! A worker's driver and movers are chosen once, at start. With engine `auto` each link then goes by the size of the fragments in which
//! its bytes lie in the socket: a pipe's slot holds one fragment whatever its size, so splicing wins by much where fragments are large
//! and loses where a card hands up single packets. Decides from numbers that it is told; touches no descriptor but to make the driver.

use anyhow::bail;
use faasnet_ring::{Arena, Driver, DriverKind, DriverOptions, Pipe, Probe, probe};

use crate::config::Engine;

/// How blocks pass through this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mover {
    /// Peek, verify, then splice and tee the same bytes: forwarded bytes are not copied.
    Splice,
    /// Receive into a leased buffer, verify there, send from there; receives that must wait, and sends, are the ring's.
    Registered,
    /// Read, verify, write.
    Copy,
    /// As `Registered`, on the tokio-uring runtime.
    TokioUring,
}

/// How a link takes bytes from its socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Intake {
    /// Frames stay in the socket until they are there whole, so that they can be spliced.
    Whole,
    /// Frames are read into buffers as they come; the poll tells when.
    AsItComes,
    /// As it comes; what is not there yet is received by the driver.
    Driver,
    /// All of it is received by the driver.
    DriverOnly,
}

impl Mover {
    /// The name in reports and flags.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Splice => "splice",
            Self::Registered => "registered",
            Self::Copy => "copy",
            Self::TokioUring => "tokio-uring",
        }
    }

    pub(super) fn intake(self) -> Intake {
        match self {
            Self::Splice => Intake::Whole,
            Self::Copy => Intake::AsItComes,
            Self::Registered => Intake::Driver,
            Self::TokioUring => Intake::DriverOnly,
        }
    }
}

/// What a worker's links may use, and why.
#[derive(Debug, Clone)]
pub(super) struct Movers {
    /// What a link starts with.
    pub(super) first: Mover,
    /// What it changes to where fragments are small; `None`: it never changes.
    small: Option<Mover>,
    pub(super) reason: String,
}

impl Movers {
    /// Whether children get pipes.
    pub(super) fn may_splice(&self) -> bool {
        self.first == Mover::Splice
    }

    /// Whether buffers are sent by the driver.
    pub(super) fn driver_sends(&self) -> bool {
        let by_driver = [Mover::Registered, Mover::TokioUring];
        by_driver.contains(&self.first) || self.small.is_some_and(|small| by_driver.contains(&small))
    }

    /// The pipe that measures fragments, where anything depends on it.
    pub(super) fn gauge(&self) -> std::io::Result<Option<Pipe>> {
        self.small.map(|_| Pipe::new(GAUGE_BYTES)).transpose()
    }
}

/// The driver and movers for the configured engine; `auto` takes the best that the host permits and says why not a better one. `kind`
/// overrides the driver, for comparisons.
pub(super) fn choose(
    engine: Engine,
    kind: Option<DriverKind>,
    arena: &Arena,
    options: &DriverOptions,
) -> anyhow::Result<(Driver, Movers)> {
    let host = probe();
    let mut movers = movers(engine, &host)?;
    let kind = kind.unwrap_or(match (movers.first, &host.uring) {
        (Mover::TokioUring, _) => DriverKind::TokioUring,
        // No ring at all: what this mover is for, and the honest baseline.
        (Mover::Copy, _) => DriverKind::Epoll,
        (_, Ok(())) => DriverKind::Uring,
        (_, Err(_)) => DriverKind::Epoll,
    });
    let driver = Driver::with_options(kind, arena, options)?;
    if !driver.moves_sockets() {
        if matches!(movers.first, Mover::Registered | Mover::TokioUring) {
            bail!("engine {} needs io_uring; run with --engine auto", movers.first.name());
        }
        movers.small = movers.small.map(|_| Mover::Copy);
    }
    Ok((driver, movers))
}

fn movers(engine: Engine, host: &Probe) -> anyhow::Result<Movers> {
    let asked = |first| Movers { first, small: None, reason: "asked for with --engine".into() };
    let obstacle = |what: &str| match (&host.uring, host.splice) {
        (Err(reason), _) if what != "splice" => Some(reason.clone()),
        (_, false) if what == "splice" => Some("this kernel or sandbox forbids splice and tee".to_owned()),
        _ => None,
    };
    match engine {
        Engine::Copy => Ok(asked(Mover::Copy)),
        Engine::Splice | Engine::Registered | Engine::TokioUring => {
            let mover = match engine {
                Engine::Splice => Mover::Splice,
                Engine::Registered => Mover::Registered,
                _ => Mover::TokioUring,
            };
            match obstacle(mover.name()) {
                None => Ok(asked(mover)),
                Some(reason) => bail!("engine {} is not possible: {reason}", mover.name()),
            }
        }
        Engine::Auto => {
            let uring = obstacle("registered");
            let small = if uring.is_none() { Mover::Registered } else { Mover::Copy };
            let without = uring.map(|reason| format!("; {reason}")).unwrap_or_default();
            Ok(match obstacle("splice") {
                None => {
                    let reason = format!("auto: no link has shown small fragments{without}");
                    Movers { first: Mover::Splice, small: Some(small), reason }
                }
                Some(reason) => Movers { first: small, small: None, reason: format!("auto: {reason}{without}") },
            })
        }
    }
}

/// One link's mover, and what it has seen.
#[derive(Debug)]
pub(super) struct LinkMover {
    mover: Mover,
    small: Option<Mover>,
    blocks_until_gauge: u32,
    /// Measurements in a row that speak for the other mover.
    votes: u32,
}

/// A link uses another mover from now on.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) mover: Mover,
    pub(super) reason: String,
}

/// With fragments below this a frame is cheaper copied than passed by reference. What a parent sends from a file comes as pages and a header,
/// 3.8 KiB on average, and is spliced.
const SMALL_BYTES: usize = 2 << 10;
/// With fragments from here on it is spliced again; between the two it stays as it is.
const LARGE_BYTES: usize = 3 << 10;
/// Measurements that must agree: the first fragments of a connection, and those after a loss, are smaller than usual.
const VOTES: u32 = 3;
/// Blocks before the first measurement, when a connection is out of its slow start.
const FIRST_GAUGE_BLOCKS: u32 = 8;
/// Blocks from one measurement to the next, while a change is in question; while splicing; while copying (then measuring costs most).
const GAUGE_EVERY: [u32; 3] = [2, 64, 256];
/// The pipe that measures: with few slots, so that it is full of one frame's fragments.
const GAUGE_BYTES: usize = 64 << 10;

impl LinkMover {
    pub(super) fn new(movers: &Movers) -> Self {
        Self { mover: movers.first, small: movers.small, blocks_until_gauge: FIRST_GAUGE_BLOCKS, votes: 0 }
    }

    pub(super) fn mover(&self) -> Mover {
        self.mover
    }

    /// Whether the next block that is passed on shall be measured. Asked once per block.
    pub(super) fn is_gauge_due(&self) -> bool {
        self.small.is_some() && self.blocks_until_gauge == 0
    }

    /// A block has come that was not measured.
    pub(super) fn passed(&mut self) {
        self.blocks_until_gauge = self.blocks_until_gauge.saturating_sub(1);
    }

    /// A block was measured: its bytes lie in fragments of this size.
    pub(super) fn measured(&mut self, fragment_bytes: usize) -> Option<Change> {
        let small = self.small?;
        let (other, speaks) = match self.mover {
            Mover::Splice => (small, fragment_bytes < SMALL_BYTES),
            _ => (Mover::Splice, fragment_bytes >= LARGE_BYTES),
        };
        self.votes = if speaks { self.votes + 1 } else { 0 };
        let changes = self.votes >= VOTES;
        if changes {
            (self.mover, self.votes) = (other, 0);
        }
        let pace = if self.votes > 0 { 0 } else { 1 + usize::from(self.mover != Mover::Splice) };
        self.blocks_until_gauge = GAUGE_EVERY[pace];
        changes.then(|| Change { mover: other, reason: format!("auto: fragments of {fragment_bytes} bytes") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auto() -> LinkMover {
        LinkMover::new(&Movers { first: Mover::Splice, small: Some(Mover::Registered), reason: String::new() })
    }

    /// Blocks that pass before the next measurement.
    fn until_gauge(link: &mut LinkMover) -> u32 {
        (0..)
            .find(|_| {
                link.is_gauge_due() || {
                    link.passed();
                    false
                }
            })
            .unwrap()
    }

    /// Catches a link that changes its mover for one odd measurement, flaps between two, or is measured too often to be cheap.
    #[test]
    fn a_link_changes_when_measurements_agree() {
        let mut link = auto();
        assert_eq!(until_gauge(&mut link), FIRST_GAUGE_BLOCKS);
        assert_eq!(link.measured(1448), None);
        assert_eq!(until_gauge(&mut link), 2, "a change is in question");
        assert_eq!(link.measured(1448), None);
        assert_eq!(link.measured(32 << 10), None, "one large fragment starts the count anew");
        assert_eq!(until_gauge(&mut link), 64);
        assert_eq!((link.measured(1448), link.measured(1448)), (None, None));
        let change = link.measured(1400).unwrap();
        assert_eq!((change.mover, link.mover()), (Mover::Registered, Mover::Registered));
        assert!(change.reason.contains("1400"));
        assert_eq!(until_gauge(&mut link), 256);
        for between in [SMALL_BYTES, LARGE_BYTES - 1, SMALL_BYTES, LARGE_BYTES - 1] {
            assert_eq!(link.measured(between), None, "between the two it stays");
        }
        let changes: Vec<_> = (0..3).filter_map(|_| link.measured(32 << 10)).collect();
        assert_eq!((changes.len(), link.mover()), (1, Mover::Splice));
    }

    /// Catches a mover that was asked for and is changed behind the operator's back.
    #[test]
    fn a_mover_that_was_asked_for_stays() {
        let host = probe();
        for engine in [Engine::Copy, Engine::Splice, Engine::Registered, Engine::TokioUring] {
            let Ok(movers) = movers(engine, &host) else { continue };
            let mut link = LinkMover::new(&movers);
            (0..1000).for_each(|_| link.passed());
            assert!(!link.is_gauge_due());
            assert!((0..10).all(|_| link.measured(100).is_none() && link.measured(1 << 20).is_none()));
            assert_eq!(link.mover(), movers.first);
        }
    }

    /// Catches `auto` that fails on a host that lacks something, or does not say what; and an engine that is taken though it cannot work.
    #[test]
    fn what_a_host_lacks_is_said() {
        let host = |uring: bool, splice| Probe {
            uring: if uring { Ok(()) } else { Err("no ring here".into()) },
            splice,
            ..probe()
        };
        let auto = |uring, splice| movers(Engine::Auto, &host(uring, splice)).unwrap();
        assert_eq!((auto(true, true).first, auto(true, true).small), (Mover::Splice, Some(Mover::Registered)));
        assert_eq!((auto(false, true).first, auto(false, true).small), (Mover::Splice, Some(Mover::Copy)));
        assert_eq!((auto(true, false).first, auto(false, false).first), (Mover::Registered, Mover::Copy));
        assert!(auto(false, true).reason.contains("no ring here"));
        assert!(auto(true, false).reason.contains("forbids splice"));
        for (engine, uring, splice) in
            [(Engine::Splice, true, false), (Engine::Registered, false, true), (Engine::TokioUring, false, true)]
        {
            assert!(movers(engine, &host(uring, splice)).unwrap_err().to_string().contains("not possible"));
        }
    }
}
