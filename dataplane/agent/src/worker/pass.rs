//! Forward-only: a frame from an upstream's socket to the children's pipes without being looked at, verified or kept.
//!
//! For measuring what forwarding alone costs; see `WorkerConfig::forward_only`. There is no buffer behind a frame, so what a full pipe
//! does not take is read into memory of its own.

use std::os::fd::BorrowedFd;

use faasnet_ring::{Outcome, Pipe, socket};

use super::child::{Child, hand_over, tee};

/// Passes a whole frame of `total` bytes that lies in `socket` to `live` (indexes into `children`), and consumes it. Returns how many
/// bytes were copied; an error means that the socket broke.
pub(super) fn pass(
    socket: BorrowedFd<'_>,
    transit: &Pipe,
    total: usize,
    children: &mut [Child],
    live: &[usize],
) -> Result<usize, String> {
    let (mut passed, mut copied) = (0, 0);
    let Some((last, others)) = live.split_last() else { return super::forward::discard(socket, total).map(|()| 0) };
    while passed < total {
        let Outcome::Moved(arrived @ 1..) = transit.fill_from_socket(socket, total - passed) else {
            return Err("a frame that lay in the socket vanished".into());
        };
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
    Ok(copied)
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
