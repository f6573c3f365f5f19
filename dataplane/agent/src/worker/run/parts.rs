//! What a worker is made of that the kernel has to grant: buffers, pipes, the listener; and the lines that say what it got.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use anyhow::Context;
use faasnet_api::MAX_BLOCK_BYTES;
use faasnet_relay::wire::HEADER_BYTES;
use faasnet_ring::{Arena, Driver, Pipe, SocketOptions, socket};

use super::super::WorkerConfig;
use super::super::mover::Movers;
use super::Seat;

/// Says how this worker works, and what is not as one might expect.
pub(super) fn announce(config: &WorkerConfig, seat: &Seat, driver: &Driver, movers: &Movers) {
    driver.notes().iter().for_each(|note| tracing::warn!("{note}"));
    if let Some(warning) = config.verify.warning() {
        tracing::warn!("{warning}");
    }
    if config.forward_only {
        tracing::warn!(
            "experiment_forward_only: nothing is verified or kept; this node has no image for anybody who comes late"
        );
    }
    tracing::info!(
        worker = seat.index,
        mover = movers.first.name(),
        reason = movers.reason,
        driver = driver.kind().name(),
        buffers = config.buffers,
        core = seat.core,
        "data worker starts"
    );
}

/// The pipes for frames that pass, where the movers want them: the usual one, and the one that measures.
pub(super) fn pipes(movers: &Movers, bytes: usize) -> anyhow::Result<[Option<Pipe>; 2]> {
    let transit = movers.may_splice().then(|| Pipe::new(bytes)).transpose();
    if let Ok(Some(pipe)) = &transit
        && pipe.capacity_bytes() < bytes
    {
        tracing::warn!(
            wanted = bytes,
            granted = pipe.capacity_bytes(),
            "pipes are smaller than asked for: frames that do not fit go through buffers; raise fs.pipe-max-size and \
             fs.pipe-user-pages-soft, or give the agent CAP_SYS_RESOURCE"
        );
    }
    Ok([transit.context("cannot make a pipe")?, movers.gauge().context("cannot make a pipe")?])
}

/// Block buffers.
pub(super) fn arena(buffers: usize, huge_pages: bool) -> anyhow::Result<Arena> {
    // The next frame's header is read with the last of a block.
    let payload = MAX_BLOCK_BYTES as usize + HEADER_BYTES;
    if !huge_pages {
        return Arena::new(buffers, payload).context("cannot allocate block buffers");
    }
    let arena = Arena::on_huge_pages(buffers, payload).context("cannot allocate block buffers")?;
    let (huge, all) = (arena.huge_bytes(), arena.slots() * arena.slot_bytes());
    match huge >= all {
        true => tracing::info!(bytes = huge, "block buffers lie on huge pages"),
        false => tracing::info!(
            huge,
            all,
            "not all block buffers lie on huge pages, so writes have more parts; see /sys/kernel/mm/transparent_hugepage/enabled \
             (always or madvise)"
        ),
    }
    Ok(arena)
}

/// Where children connect to. A child begins with the whole limit, until it is divided.
pub(super) fn listen(config: &WorkerConfig) -> anyhow::Result<(OwnedFd, SocketAddr)> {
    let (address, pacing_bytes_per_second) = (config.listen, config.tuning.limit_bytes_per_second);
    let options = SocketOptions { pacing_bytes_per_second, ..config.socket_options.clone() };
    socket::listen(address, &options).with_context(|| {
        format!("cannot listen on {address} for children; is the port in use, or another agent running? choose another with --listen")
    })
}
