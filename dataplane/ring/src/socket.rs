//! TCP sockets as the workers use them: non-blocking, with outcomes instead of numbers.
//!
//! Every call here returns at once. Options are set before `connect` and `listen`, because a window scale and a congestion control
//! that are chosen later do not take full effect. Owns nothing: descriptors are the caller's.

use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, SocketFlags};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};

/// What a call that moves bytes did.
#[derive(Debug)]
pub enum Outcome {
    /// So many bytes, at least one unless none was asked for.
    Moved(usize),
    /// Nothing now; arm readiness and try again.
    WouldBlock,
    /// There will never be more: the other side ended the stream, or the file ends here.
    Ended,
    /// The connection or file is broken (a reset and a closed other end are here, too).
    Failed(io::Error),
}

impl Outcome {
    /// The outcome of a call for which 0 bytes mean the end.
    pub(crate) fn of_read(result: rustix::io::Result<usize>) -> Self {
        match result {
            Ok(0) => Self::Ended,
            other => Self::of_write(other),
        }
    }

    /// The outcome of a call for which 0 bytes mean nothing special.
    pub(crate) fn of_write(result: rustix::io::Result<usize>) -> Self {
        match result {
            Ok(moved) => Self::Moved(moved),
            Err(Errno::AGAIN) => Self::WouldBlock,
            Err(error) => Self::Failed(error.into()),
        }
    }
}

/// How data sockets are set up. `None` leaves the kernel's choice.
#[derive(Debug, Clone)]
pub struct SocketOptions {
    /// SO_RCVBUF; turns the kernel's own tuning off.
    pub receive_bytes: Option<usize>,
    /// SO_SNDBUF; turns the kernel's own tuning off.
    pub send_bytes: Option<usize>,
    /// TCP_NOTSENT_LOWAT: without it a demand frame would queue behind megabytes in the send buffer. 0 = off.
    pub notsent_lowat_bytes: u32,
    /// TCP_USER_TIMEOUT: how long sent bytes may stay unacknowledged, or the other side's window shut (it does not read), before the
    /// connection fails. 0 = the kernel's (many minutes).
    pub user_timeout: Duration,
    /// TCP_CONGESTION, such as `cubic`.
    pub congestion: Option<String>,
    /// SO_BUSY_POLL: reads poll the card for so many microseconds.
    pub busy_poll_us: Option<u32>,
    /// SO_MAX_PACING_RATE in bytes per second, see [`set_pacing_rate`]. Accepted connections begin with that of their listener.
    pub pacing_bytes_per_second: Option<u64>,
}

impl Default for SocketOptions {
    fn default() -> Self {
        Self {
            receive_bytes: None,
            send_bytes: None,
            notsent_lowat_bytes: 256 << 10,
            user_timeout: Duration::from_secs(10),
            congestion: None,
            busy_poll_us: None,
            pacing_bytes_per_second: None,
        }
    }
}

impl SocketOptions {
    fn apply(&self, socket: &Socket) -> io::Result<()> {
        if let Some(bytes) = self.receive_bytes {
            socket.set_recv_buffer_size(bytes)?;
        }
        if let Some(bytes) = self.send_bytes {
            socket.set_send_buffer_size(bytes)?;
        }
        if self.notsent_lowat_bytes > 0 {
            socket.set_tcp_notsent_lowat(self.notsent_lowat_bytes)?;
        }
        if !self.user_timeout.is_zero() {
            socket.set_tcp_user_timeout(Some(self.user_timeout))?;
        }
        if let Some(congestion) = &self.congestion {
            socket.set_tcp_congestion(congestion.as_bytes()).map_err(|error| explain_congestion(congestion, &error))?;
        }
        if let Some(micros) = self.busy_poll_us {
            // Ignored: a host that forbids it is only slower; `try_options` tells.
            let _ = socket.set_busy_poll(micros);
        }
        if let Some(bytes_per_second) = self.pacing_bytes_per_second {
            set_pacing_rate(socket, bytes_per_second)?;
        }
        socket.set_tcp_nodelay(true)
    }
}

fn explain_congestion(name: &str, error: &io::Error) -> io::Error {
    let list = |file: &str| std::fs::read_to_string(format!("/proc/sys/net/ipv4/{file}")).unwrap_or_default();
    let cause = match error.raw_os_error() {
        Some(libc::EPERM) => format!(
            "congestion control {name:?} is only for root here; available: {}; others are allowed by \
             sysctl net.ipv4.tcp_allowed_congestion_control",
            list("tcp_allowed_congestion_control").trim()
        ),
        _ => format!(
            "congestion control {name:?} is not available on this host ({error}); available: {}; others need their \
             kernel module (modprobe tcp_{name})",
            list("tcp_available_congestion_control").trim()
        ),
    };
    io::Error::new(error.kind(), cause)
}

/// What a host gives of [`SocketOptions`] that it may give less of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Granted {
    /// Of SO_RCVBUF, in bytes as they were asked for; net.core.rmem_max caps it.
    pub receive_bytes: usize,
    /// Of SO_SNDBUF; net.core.wmem_max caps it.
    pub send_bytes: usize,
    /// Why sockets cannot busy-poll.
    pub busy_poll: Result<(), String>,
}

/// Tries `options` on a socket that goes nowhere; an error is one that every connection would meet.
pub fn try_options(options: &SocketOptions) -> io::Result<Granted> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    options.apply(&socket)?;
    let busy_poll = options.busy_poll_us.map_or(Ok(()), |micros| {
        socket.set_busy_poll(micros).map_err(|error| match error.raw_os_error() {
            Some(libc::EPERM) => {
                format!("{error}: more than net.core.busy_read needs CAP_NET_ADMIN; raise that sysctl or run as root")
            }
            _ => format!("{error}: this kernel lacks it"),
        })
    });
    // The kernel doubles what is asked for, to account for its own bookkeeping, and tells the double.
    Ok(Granted { receive_bytes: socket.recv_buffer_size()? / 2, send_bytes: socket.send_buffer_size()? / 2, busy_poll })
}

/// Bounds what a connection sends to `bytes_per_second` (SO_MAX_PACING_RATE); the kernel paces by itself where no fq qdisc does
/// (Linux 4.13). May be changed at any time.
pub fn set_pacing_rate(fd: impl AsFd, bytes_per_second: u64) -> io::Result<()> {
    // An unsigned long: 32-bit hosts pace up to 4 GiB/s.
    let value = libc::c_ulong::try_from(bytes_per_second).unwrap_or(libc::c_ulong::MAX);
    // SAFETY: the descriptor is borrowed for the call; the kernel reads one c_ulong from the live local `value` and keeps no pointer.
    let result = unsafe {
        libc::setsockopt(
            fd.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MAX_PACING_RATE,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Receives into `buffer` without waiting.
pub fn recv(fd: impl AsFd, buffer: &mut [u8]) -> Outcome {
    receive(fd, buffer, RecvFlags::DONTWAIT)
}

/// Copies what lies in the receive queue into `buffer` and leaves it there.
pub fn peek(fd: impl AsFd, buffer: &mut [u8]) -> Outcome {
    receive(fd, buffer, RecvFlags::DONTWAIT | RecvFlags::PEEK)
}

fn receive(fd: impl AsFd, buffer: &mut [u8], flags: RecvFlags) -> Outcome {
    if buffer.is_empty() {
        // recv would say 0, which means the end everywhere else.
        return Outcome::Moved(0);
    }
    Outcome::of_read(rustix::io::retry_on_intr(|| {
        rustix::net::recv(&fd, &mut *buffer, flags).map(|(received, _)| received)
    }))
}

/// Sends from `bytes` without waiting. `more`: other bytes follow at once, so a short packet may wait for them; never set it on the
/// last bytes of a frame, the kernel would keep them for up to 200 ms.
pub fn send(fd: impl AsFd, bytes: &[u8], more: bool) -> Outcome {
    let mut flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    flags.set(SendFlags::MORE, more);
    Outcome::of_write(rustix::io::retry_on_intr(|| rustix::net::send(&fd, bytes, flags)))
}

/// Sends `len` bytes of `file` from `offset` without copying them. Waits for the disk where the range is not resident
/// ([`crate::file::resident`]); `Ended` when the file ends at `offset`.
pub fn sendfile(fd: impl AsFd, file: &File, offset: u64, len: usize) -> Outcome {
    if len == 0 {
        return Outcome::Moved(0);
    }
    Outcome::of_read(rustix::io::retry_on_intr(|| {
        let mut from = offset;
        rustix::fs::sendfile(&fd, file, Some(&mut from), len)
    }))
}

/// Bytes in the receive queue (FIONREAD).
pub fn readable_bytes(fd: impl AsFd) -> io::Result<usize> {
    Ok(rustix::io::ioctl_fionread(fd)? as usize)
}

/// Makes the socket readable only when `bytes` have arrived, the other side ended, or it broke (SO_RCVLOWAT). The kernel also widens
/// the receive buffer to hold them, as far as tcp_rmem allows.
pub fn set_rcvlowat(fd: impl AsFd, bytes: usize) -> io::Result<()> {
    let value = libc::c_int::try_from(bytes.max(1)).unwrap_or(libc::c_int::MAX);
    // SAFETY: the descriptor is borrowed for the call; the kernel reads one c_int from the live local `value` and keeps no pointer.
    let result = unsafe {
        libc::setsockopt(
            fd.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVLOWAT,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Bytes that arrived on the connection so far, read or not (TCP_INFO): tells a slow neighbour from a silent one. The end of the
/// stream counts as one.
pub fn bytes_received(fd: impl AsFd) -> io::Result<u64> {
    /// `tcpi_bytes_received` of `struct tcp_info` (Linux 4.1): after 8 bytes of small fields, 24 words of 32 bits, and pacing rate,
    /// its maximum and `bytes_acked` of 64 bits each. The `libc` crate's struct ends before it.
    const OFFSET: usize = 8 + 24 * 4 + 3 * 8;
    let mut info = [0u8; OFFSET + 8];
    let mut len = info.len() as libc::socklen_t;
    // SAFETY: the descriptor is borrowed for the call; the kernel writes at most `len` bytes into the live local `info`, the length
    // into `len`, and keeps no pointer.
    let result = unsafe {
        libc::getsockopt(
            fd.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut word = [0; 8];
    word.copy_from_slice(&info[OFFSET..]);
    Ok(u64::from_ne_bytes(word))
}

/// Begins a connection; it is writable when it stands or failed, and then [`connect_result`] tells which.
pub fn connect(addr: SocketAddr, source: Option<IpAddr>, options: &SocketOptions) -> io::Result<OwnedFd> {
    let socket = new_socket(addr)?;
    options.apply(&socket)?;
    if let Some(source) = source {
        socket.bind(&SockAddr::from(SocketAddr::new(source, 0))).map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("cannot connect from {source} ({error}); is the address on this host?"),
            )
        })?;
    }
    match socket.connect(&SockAddr::from(addr)) {
        Ok(()) => Ok(socket.into()),
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(socket.into()),
        Err(error) => Err(error),
    }
}

/// Why a connection failed (SO_ERROR); `Ok` when it stands. Clears the error.
pub fn connect_result(fd: impl AsFd) -> io::Result<()> {
    rustix::net::sockopt::socket_error(fd)?.map_err(io::Error::from)
}

/// Opens a listening socket; port 0 lets the kernel choose, and the answer says which.
pub fn listen(addr: SocketAddr, options: &SocketOptions) -> io::Result<(OwnedFd, SocketAddr)> {
    let socket = new_socket(addr)?;
    socket.set_reuse_address(true)?;
    options.apply(&socket)?;
    let explain = |error: io::Error| match error.kind() {
        io::ErrorKind::AddrInUse => io::Error::new(
            error.kind(),
            format!("{addr} is in use by another program; choose another address or stop it"),
        ),
        io::ErrorKind::AddrNotAvailable => {
            io::Error::new(error.kind(), format!("{addr} is not an address of this host"))
        }
        _ => error,
    };
    socket.bind(&SockAddr::from(addr)).map_err(explain)?;
    socket.listen(LISTEN_BACKLOG).map_err(explain)?;
    let local = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::InvalidInput)?;
    Ok((socket.into(), local))
}

/// Takes one waiting connection, non-blocking; it has inherited the listening socket's options. `None` when none waits.
pub fn accept(fd: impl AsFd) -> io::Result<Option<(OwnedFd, SocketAddr)>> {
    loop {
        match rustix::net::acceptfrom_with(&fd, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
            Ok((connection, address)) => {
                let address = address.and_then(|address| SocketAddr::try_from(address).ok());
                return Ok(Some((connection, address.ok_or(io::ErrorKind::InvalidData)?)));
            }
            Err(Errno::AGAIN) => return Ok(None),
            // The connection died while it waited; the next one may be well.
            Err(Errno::CONNABORTED | Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Says that nothing more will be sent; receiving goes on.
pub fn shutdown_write(fd: impl AsFd) -> io::Result<()> {
    Ok(rustix::net::shutdown(fd, Shutdown::Write)?)
}

/// The connection's other end.
pub fn remote_addr(fd: impl AsFd) -> io::Result<SocketAddr> {
    SockRef::from(&fd).peer_addr()?.as_socket().ok_or_else(|| io::ErrorKind::InvalidData.into())
}

const LISTEN_BACKLOG: i32 = 1024;

fn new_socket(addr: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    Ok(socket)
}
