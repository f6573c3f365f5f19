//! Forward-only: a frame from an upstream's socket to the children's pipes without being looked at, verified or kept.
//!
//! For measuring what forwarding alone costs; see `WorkerConfig::forward_only`. There is no buffer behind a frame, so what a full pipe
//! does not take is read into memory of its own.

use std::os::fd::BorrowedFd;

use faasnet_ring::{Outcome, Pipe, socket};

use super::child::{Child, hand_over, tee};
use super::forward::{Forwarded, Transit, discard, fill_up, fragment};

/// Passes a whole frame of `total` bytes that lies in `socket` to `live` (indexes into `children`), and consumes it. An
/// error means that the socket broke.
pub(super) fn pass(
    socket: BorrowedFd<'_>,
    transit: &Transit<'_>,
    total: usize,
    children: &mut [Child],
    live: &[usize],
) -> Result<Forwarded, String> {
    let (mut passed, mut copied, mut fragment_bytes) = (0, 0, None);
    let Some((last, others)) = live.split_last() else {
        return discard(socket, total).map(|()| Forwarded::default());
    };
    let mut gauge = transit.gauge;
    while passed < total {
        let measures = gauge.is_some();
        let Some(transit) = gauge.take().or(transit.pipe) else { return Err("forward-only needs a pipe".into()) };
        let arrived = if measures { fill_up(transit, socket, total) } else { fill(transit, socket, total - passed) };
        if measures {
            fragment_bytes = fragment(transit, arrived, total);
        }
        if arrived == 0 {
            return Err("a frame that lay in the socket vanished".into());
        }
        passed += arrived;
        let short: Vec<(usize, usize)> = others
            .iter()
            .map(|&index| (index, tee(transit, &mut children[index], arrived)))
            .filter(|(_, got)| *got < arrived)
            .collect();
        let got = if short.is_empty() { hand_over(transit, &mut children[*last], arrived) } else { 0 };
        if got == arrived {
            continue;
        }
        // A pipe is full. Its child gets everything from here on in order, the rest of the frame included.
        let mut rest = vec![0; arrived - got + (total - passed)];
        let from_transit = arrived - got;
        read_pipe(transit, &mut rest[..from_transit])?;
        read_socket(socket, &mut rest[from_transit..])?;
        passed = total;
        for &index in live {
            let had = short.iter().find(|(other, _)| *other == index).map(|(_, had)| *had);
            let from = match had {
                Some(had) => had,
                None if index == *last => 0,
                None => from_transit,
            };
            copied += rest.len() - from;
            children[index].outbox.bytes(rest[from..].to_vec());
        }
    }
    Ok(Forwarded { copied, fragment_bytes })
}

/// Moves what one call takes of the `len` bytes in the socket.
fn fill(pipe: &Pipe, socket: BorrowedFd<'_>, len: usize) -> usize {
    match pipe.fill_from_socket(socket, len) {
        Outcome::Moved(moved) => moved,
        _ => 0,
    }
}

fn read_pipe(pipe: &Pipe, mut bytes: &mut [u8]) -> Result<(), String> {
    while !bytes.is_empty() {
        match pipe.read(bytes) {
            Outcome::Moved(moved @ 1..) => bytes = &mut bytes[moved..],
            other => return Err(format!("bytes stay in the transit pipe: {other:?}")),
        }
    }
    Ok(())
}

fn read_socket(fd: BorrowedFd<'_>, mut bytes: &mut [u8]) -> Result<(), String> {
    while !bytes.is_empty() {
        match socket::recv(fd, bytes) {
            Outcome::Moved(moved @ 1..) => bytes = &mut bytes[moved..],
            other => return Err(format!("a frame that lay in the socket vanished: {other:?}")),
        }
    }
    Ok(())
}
