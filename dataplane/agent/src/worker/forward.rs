//! The live path of one block: from an upstream's socket to the children's pipes, without a copy.

use std::os::fd::BorrowedFd;

use faasnet_ring::{Lease, Outcome, Pipe, socket};

use super::child::{Child, fill_from, hand_over, tee};

/// The pipes of a worker through which frames pass; empty outside of one call.
pub(super) struct Transit<'a> {
    /// Between an upstream's socket and its children's pipes.
    pub(super) pipe: Option<&'a Pipe>,
    /// Measures fragments: with so few slots that a frame of small ones fills it.
    pub(super) gauge: Option<&'a Pipe>,
}

/// What forwarding a frame came to.
#[derive(Default)]
pub(super) struct Forwarded {
    /// Bytes that will go to children through the buffer, because a pipe ran full or a child has none.
    pub(super) copied: usize,
    /// The size of its fragments in the socket, if it was measured; of large ones a lower bound.
    pub(super) fragment_bytes: Option<usize>,
}

/// Passes a whole, verified frame of `total` bytes that lies in `socket` and in `lease` on to `live` (indexes into `children`), and
/// consumes it from the socket. An error means that the socket broke.
pub(super) fn forward(
    socket: BorrowedFd<'_>,
    transit: &Transit<'_>,
    lease: &Lease,
    total: usize,
    children: &mut [Child],
    live: &[usize],
) -> Result<Forwarded, String> {
    let (mut copied, mut fragment_bytes) = (0, None);
    // Children whose pipe cannot take it get the frame from the buffer.
    let (mut piping, rest): (Vec<usize>, Vec<usize>) =
        live.iter().partition(|index| children[**index].outbox.pipe_has_room(total));
    for index in rest {
        copied += children[index].append_rest(lease, 0, total);
    }
    let mut consumed = 0;
    if let ([_, ..], Some(gauge)) = (&piping[..], transit.gauge) {
        consumed = fill_up(gauge, socket, total);
        fragment_bytes = fragment(gauge, consumed, total);
        copied += spread(gauge, lease, 0, consumed, total, children, &mut piping)?;
    }
    match (&piping[..], transit.pipe) {
        ([only], _) => {
            let got = fill_from(socket, &mut children[*only], total - consumed);
            consumed += got;
            copied += children[*only].append_rest(lease, consumed, total);
            piping.clear();
        }
        ([_, _, ..], Some(transit)) => {
            while consumed < total && !piping.is_empty() {
                let Outcome::Moved(arrived @ 1..) = transit.fill_from_socket(socket, total - consumed) else { break };
                copied += spread(transit, lease, consumed, arrived, total, children, &mut piping)?;
                consumed += arrived;
            }
        }
        _ => {}
    }
    for index in piping {
        copied += children[index].append_rest(lease, consumed, total);
    }
    discard(socket, total - consumed)?;
    Ok(Forwarded { copied, fragment_bytes })
}

/// A frame that fits the gauge with fragments of this size says that they are large.
const LARGE_FRAGMENT: usize = 8 << 10;

/// The size of the fragments of which `filled` bytes, of a frame of `total`, went into the gauge; of large ones a lower bound.
pub(super) fn fragment(gauge: &Pipe, filled: usize, total: usize) -> Option<usize> {
    let is_telling = filled < total || total >= gauge.slots() * LARGE_FRAGMENT;
    is_telling.then_some(filled / gauge.slots())
}

/// Fills `pipe` from the socket, in which `len` bytes lie, until either is done: one call may stop short of both.
pub(super) fn fill_up(pipe: &Pipe, socket: BorrowedFd<'_>, len: usize) -> usize {
    let mut filled = 0;
    while filled < len {
        match pipe.fill_from_socket(socket, len - filled) {
            Outcome::Moved(moved @ 1..) => filled += moved,
            _ => break,
        }
    }
    filled
}

/// Gives the `arrived` bytes in `transit` to every child that is still served by pipe. `tee` has no offset, so each child must get all of
/// them before they are consumed: one that gets fewer receives the rest of the frame from the buffer.
fn spread(
    transit: &Pipe,
    lease: &Lease,
    consumed: usize,
    arrived: usize,
    total: usize,
    children: &mut [Child],
    piping: &mut Vec<usize>,
) -> Result<usize, String> {
    let mut copied = 0;
    let last = piping.last().copied();
    piping.retain(|&index| {
        let got = match Some(index) == last {
            true => hand_over(transit, &mut children[index], arrived),
            false => tee(transit, &mut children[index], arrived),
        };
        if got < arrived {
            copied += children[index].append_rest(lease, consumed + got, total);
        }
        got == arrived
    });
    while transit.buffered() > 0 {
        match transit.discard(transit.buffered()) {
            Outcome::Moved(1..) => {}
            other => return Err(format!("bytes stay in the transit pipe: {other:?}")),
        }
    }
    Ok(copied)
}

/// Consumes `len` bytes that are known to lie in the socket.
pub(super) fn discard(socket: BorrowedFd<'_>, mut len: usize) -> Result<(), String> {
    let mut scratch = [0; 16 << 10];
    while len > 0 {
        let part = len.min(scratch.len());
        match socket::recv(socket, &mut scratch[..part]) {
            Outcome::Moved(moved) => len -= moved,
            other => return Err(format!("a peeked frame vanished: {other:?}")),
        }
    }
    Ok(())
}
