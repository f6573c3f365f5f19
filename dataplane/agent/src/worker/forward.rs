//! The live path of one block: from an upstream's socket to the children's pipes, without a copy.

use std::os::fd::BorrowedFd;

use faasnet_ring::{Lease, Outcome, Pipe, socket};

use super::child::{Child, fill_from, hand_over, tee};

/// Passes a whole, verified frame of `total` bytes that lies in `socket` and in `lease` on to `live` (indexes into `children`), and
/// consumes it from the socket. Returns how many bytes will go to children through the buffer, because a pipe ran full or a child
/// has none; an error means that the socket broke.
pub(super) fn forward(
    socket: BorrowedFd<'_>,
    transit: Option<&Pipe>,
    lease: &Lease,
    total: usize,
    children: &mut [Child],
    live: &[usize],
) -> Result<usize, String> {
    let mut copied = 0;
    // Children whose pipe cannot take it get the frame from the buffer.
    let (mut piping, rest): (Vec<usize>, Vec<usize>) =
        live.iter().partition(|index| children[**index].outbox.pipe_has_room(total));
    for index in rest {
        copied += children[index].append_rest(lease, 0, total);
    }
    let mut consumed = 0;
    match (&piping[..], transit) {
        ([only], _) => {
            consumed = fill_from(socket, &mut children[*only], total);
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
    Ok(copied)
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
