//! What the kernel knows about files beyond reading and writing: residency, space, sharing of blocks.

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FallocateFlags, StatVfs, fallocate, fstatvfs};
use rustix::io::Errno;
use rustix::ioctl::{Setter, opcode};

/// What `st_blocks` counts in.
const SECTOR_BYTES: u64 = 512;

/// Whether all pages of a range are in the page cache (cachestat, Linux 6.5): then reading it cannot wait for a disk. `None` when the
/// kernel cannot tell. A page may leave the cache right after the answer.
pub fn resident(file: &File, offset: u64, len: u64) -> Option<bool> {
    #[repr(C)]
    struct Range {
        offset: u64,
        len: u64,
    }
    #[derive(Default)]
    #[repr(C)]
    struct Stat {
        cached: u64,
        dirty: u64,
        writeback: u64,
        evicted: u64,
        recently_evicted: u64,
    }
    /// The same number on every architecture; not in the `libc` crate for all of them.
    const SYS_CACHESTAT: libc::c_long = 451;
    if len == 0 {
        return Some(true);
    }
    let page = rustix::param::page_size() as u64;
    let pages = offset.checked_add(len - 1)? / page - offset / page + 1;
    let range = Range { offset, len };
    let mut stat = Stat::default();
    // SAFETY: the descriptor is borrowed for the call; the kernel reads the live local `range`, writes the live local `stat`, both of
    // the layout that the system call defines, and keeps no pointer.
    let result =
        unsafe { libc::syscall(SYS_CACHESTAT, file.as_raw_fd(), &raw const range, &raw mut stat, 0 as libc::c_uint) };
    (result == 0).then_some(stat.cached >= pages)
}

/// Offset, length and memory of a direct write must be multiples of this: the logical block size of every disk that is in use.
pub const DIRECT_ALIGN_BYTES: u64 = 4096;

/// Opens an existing file for writes past the page cache (O_DIRECT). Some file systems refuse that here, some at the first write.
pub fn open_direct(path: &Path) -> io::Result<File> {
    File::options().write(true).custom_flags(libc::O_DIRECT).open(path)
}

/// Has the kernel begin to write what is dirty of `range` to the disk. May wait for the disk's queue.
pub fn begin_write_back(file: &File, range: Range<u64>) -> io::Result<()> {
    sync_range(file, range, libc::SYNC_FILE_RANGE_WRITE)
}

/// Waits until `range` is written to the disk (data only, not what it takes to find it after a crash) and takes it out of the page
/// cache. An error is told once per open file: a later sync of the same `file` may not tell it again.
pub fn release(file: &File, range: Range<u64>) -> io::Result<()> {
    let Some(len) = NonZeroU64::new(range.end.saturating_sub(range.start)) else { return Ok(()) };
    let all = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    sync_range(file, range.clone(), all)?;
    Ok(rustix::fs::fadvise(file, range.start, Some(len), rustix::fs::Advice::DontNeed)?)
}

fn sync_range(file: &File, range: Range<u64>, flags: libc::c_uint) -> io::Result<()> {
    let (offset, len) = (range.start as libc::off64_t, range.end.saturating_sub(range.start) as libc::off64_t);
    // SAFETY: the descriptor is borrowed for the call, which takes no memory of ours.
    match unsafe { libc::sync_file_range(file.as_raw_fd(), offset, len, flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The id of this boot of the host: what was written under another one is only as good as the disk.
pub fn boot_id() -> io::Result<[u8; 16]> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let digits: Vec<u8> =
        text.bytes().filter_map(|digit| (digit as char).to_digit(16)).map(|digit| digit as u8).collect();
    let id: Vec<u8> = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
    id.try_into().map_err(|_| io::Error::new(io::ErrorKind::InvalidData, format!("boot_id {text:?} is not a UUID")))
}

/// Makes `file` `len` bytes long with its space reserved, so that later writes cannot fail for want of it. Where the file system
/// cannot reserve, the length is set and a later write may find the disk full.
pub fn preallocate(file: &File, len: u64) -> io::Result<()> {
    if len == 0 {
        return file.set_len(0);
    }
    let full = |error: Errno| {
        let text =
            format!("no room for {len} bytes ({error}); free space on the store's file system or lower the quota");
        Err(io::Error::new(io::ErrorKind::StorageFull, text))
    };
    // A disk that is asked for more than it has is full for everybody else until it says no. Some file systems do not count.
    let needed = len.saturating_sub(file.metadata()?.blocks() * SECTOR_BYTES);
    let lacks = |disk: StatVfs| disk.f_blocks > 0 && needed > disk.f_bavail.saturating_mul(disk.f_frsize);
    if fstatvfs(file).is_ok_and(lacks) {
        return full(Errno::NOSPC);
    }
    match rustix::io::retry_on_intr(|| fallocate(file, FallocateFlags::empty(), 0, len)) {
        Ok(()) => Ok(()),
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => file.set_len(len),
        Err(error @ (Errno::NOSPC | Errno::DQUOT)) => full(error),
        Err(error) => Err(error.into()),
    }
}

/// Brings `len` bytes of `src` at `src_offset` into `dst` at `dst_offset`: sharing the blocks where the file system can (offsets and
/// length must then be multiples of its block size), else copying inside the kernel, else through a buffer. Returns the bytes
/// brought, fewer than `len` only if `src` ends. Both files are different, or the ranges do not overlap.
pub fn reflink_or_copy(src: &File, dst: &File, src_offset: u64, dst_offset: u64, len: u64) -> io::Result<u64> {
    // The length 0 would mean "to the end" for a reflink.
    if len == 0 {
        return Ok(0);
    }
    if reflink(src, dst, src_offset, dst_offset, len).is_ok() {
        return Ok(len);
    }
    let mut done = 0;
    while done < len {
        let (mut from, mut to) = (src_offset + done, dst_offset + done);
        let step = usize::try_from(len - done).unwrap_or(usize::MAX).min(COPY_STEP_BYTES);
        match rustix::fs::copy_file_range(src, Some(&mut from), dst, Some(&mut to), step) {
            Ok(0) => break,
            Ok(copied) => done += copied as u64,
            Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL) => {
                return Ok(done + copy(src, dst, src_offset + done, dst_offset + done, len - done)?);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(done)
}

const COPY_STEP_BYTES: usize = 16 << 20;

fn reflink(src: &File, dst: &File, src_offset: u64, dst_offset: u64, len: u64) -> rustix::io::Result<()> {
    #[repr(C)]
    struct CloneRange {
        src_fd: i64,
        src_offset: u64,
        src_length: u64,
        dest_offset: u64,
    }
    const FICLONERANGE: rustix::ioctl::Opcode = opcode::write::<CloneRange>(0x94, 13);
    let range = CloneRange { src_fd: src.as_raw_fd().into(), src_offset, src_length: len, dest_offset: dst_offset };
    // SAFETY: FICLONERANGE reads one `file_clone_range`, whose layout `CloneRange` has.
    let request = unsafe { Setter::<FICLONERANGE, CloneRange>::new(range) };
    // SAFETY: both descriptors are borrowed for the call, the request lives through it, and the kernel keeps no pointer.
    unsafe { rustix::ioctl::ioctl(dst, request) }
}

fn copy(src: &File, dst: &File, src_offset: u64, dst_offset: u64, len: u64) -> io::Result<u64> {
    let mut buffer = vec![0; 1 << 20];
    let mut done = 0;
    while done < len {
        let step = usize::try_from(len - done).unwrap_or(usize::MAX).min(buffer.len());
        match src.read_at(&mut buffer[..step], src_offset + done) {
            Ok(0) => break,
            Ok(read) => {
                dst.write_all_at(&buffer[..read], dst_offset + done)?;
                done += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a copy that loses, moves or invents bytes, whichever way the file system takes.
    #[test]
    fn ranges_are_brought_exactly() {
        let (src, dst) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let bytes: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
        src.write_all_at(&bytes, 0).unwrap();
        for way in [reflink_or_copy, copy] {
            dst.set_len(0).unwrap();
            dst.set_len(4096).unwrap();
            assert_eq!(way(&src, &dst, 8192, 4096, 2_000_000).unwrap(), 2_000_000);
            let mut got = vec![1; 2_004_096];
            dst.read_exact_at(&mut got, 0).unwrap();
            assert!(got[..4096].iter().all(|&byte| byte == 0));
            assert_eq!(got[4096..], bytes[8192..2_008_192]);
            assert_eq!(way(&src, &dst, 2_999_000, 0, 5000).unwrap(), 1000, "the source ends");
            assert_eq!(way(&src, &dst, 0, 0, 0).unwrap(), 0);
        }
    }

    /// Catches a range that was just written and is called absent, or page arithmetic that is off by one.
    #[test]
    fn written_pages_are_resident() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[1; 20_000], 0).unwrap();
        for (offset, len) in [(0, 1), (4095, 2), (0, 20_000), (4096, 4096), (19_999, 1), (5, 0)] {
            assert_ne!(resident(&file, offset, len), Some(false), "{offset} {len}");
        }
        if let Some(beyond) = resident(&file, 0, 1 << 20) {
            assert!(!beyond, "pages that do not exist cannot be resident");
        }
    }

    /// Catches a boot id that is not the same twice.
    #[test]
    fn the_boot_id_is_stable() {
        assert_eq!(boot_id().unwrap(), boot_id().unwrap());
        assert_ne!(boot_id().unwrap(), [0; 16]);
    }

    /// Catches a reservation that does not set the length, or an absurd one that is taken.
    #[test]
    fn space_is_reserved_or_refused() {
        let file = tempfile::tempfile().unwrap();
        preallocate(&file, 100_000).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 100_000);
        preallocate(&file, 0).unwrap();
        assert_eq!(preallocate(&file, 1 << 60).unwrap_err().kind(), io::ErrorKind::StorageFull);
        // More than there is, not more than a file can be: nothing of it is taken.
        let free = fstatvfs(&file).unwrap();
        assert_eq!(
            preallocate(&file, free.f_bavail * free.f_frsize + (1 << 30)).unwrap_err().kind(),
            io::ErrorKind::StorageFull
        );
        assert_eq!(file.metadata().unwrap().blocks(), 0);
    }
}
