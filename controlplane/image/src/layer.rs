//! One layer: a folder becomes a tar stream, the same bytes for the same content.
//!
//! Names are sorted, owners are root, times are kept or set. Knows nothing of compression or images.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use tar::{EntryType, Header};

use crate::{BuildError, BuildOptions, Mtime};

/// What went into a layer.
#[derive(Debug, Default)]
pub(crate) struct LayerContent {
    pub(crate) files: u64,
    /// Sockets, devices and pipes, and unreadable files when they may be left out.
    pub(crate) skipped: Vec<PathBuf>,
}

/// Writes the content of `folder` as a tar stream into `out`.
pub(crate) fn write_tar<W: Write>(
    folder: &Path,
    out: W,
    options: &BuildOptions,
) -> Result<(W, LayerContent), BuildError> {
    let mut walk = Walk {
        root: folder,
        tar: tar::Builder::new(out),
        options,
        hard_links: HashMap::new(),
        content: LayerContent::default(),
    };
    walk.folder(Path::new(""))?;
    let out = walk.tar.into_inner().map_err(|cause| write_error(folder, cause))?;
    Ok((out, walk.content))
}

struct Walk<'a, W: Write> {
    root: &'a Path,
    tar: tar::Builder<W>,
    options: &'a BuildOptions,
    /// The first name of each file that has several, by device and inode.
    hard_links: HashMap<(u64, u64), PathBuf>,
    content: LayerContent,
}

impl<W: Write> Walk<'_, W> {
    fn folder(&mut self, relative: &Path) -> Result<(), BuildError> {
        let path = self.root.join(relative);
        let names = fs::read_dir(&path).and_then(|entries| {
            entries.map(|entry| entry.map(|entry| entry.file_name())).collect::<Result<Vec<_>, _>>()
        });
        let mut names = match names {
            Ok(names) => names,
            Err(cause) => return self.unreadable(path, cause),
        };
        names.sort();
        for name in names {
            self.entry(&relative.join(name))?;
        }
        Ok(())
    }

    fn entry(&mut self, relative: &Path) -> Result<(), BuildError> {
        if self.options.cancel.as_ref().is_some_and(|cancel| cancel.load(Ordering::Relaxed)) {
            return Err(BuildError::Cancelled);
        }
        let path = self.root.join(relative);
        let metadata = match fs::symlink_metadata(&path) {
            Ok(metadata) => metadata,
            Err(cause) => return self.unreadable(path, cause),
        };
        let kind = metadata.file_type();
        if kind.is_dir() {
            let mut header = self.header(&metadata, EntryType::Directory);
            self.tar.append_data(&mut header, relative, io::empty()).map_err(|cause| write_error(&path, cause))?;
            return self.folder(relative);
        }
        if kind.is_symlink() {
            return self.symlink(relative, &path, &metadata);
        }
        if kind.is_file() {
            return self.file(relative, &path, &metadata);
        }
        self.content.skipped.push(path);
        Ok(())
    }

    fn symlink(&mut self, relative: &Path, path: &Path, metadata: &Metadata) -> Result<(), BuildError> {
        let target = match fs::read_link(path) {
            Ok(target) => target,
            Err(cause) => return self.unreadable(path.into(), cause),
        };
        let mut header = self.header(metadata, EntryType::Symlink);
        self.content.files += 1;
        self.tar.append_link(&mut header, relative, target).map_err(|cause| write_error(path, cause))
    }

    fn file(&mut self, relative: &Path, path: &Path, metadata: &Metadata) -> Result<(), BuildError> {
        let inode = (metadata.dev(), metadata.ino());
        if let Some(first) = self.hard_links.get(&inode).cloned() {
            let mut header = self.header(metadata, EntryType::Link);
            self.content.files += 1;
            return self.tar.append_link(&mut header, relative, first).map_err(|cause| write_error(path, cause));
        }
        let file = match File::open(path) {
            Ok(file) => file,
            Err(cause) => return self.unreadable(path.into(), cause),
        };
        if metadata.nlink() > 1 {
            self.hard_links.insert(inode, relative.into());
        }
        let mut header = self.header(metadata, EntryType::Regular);
        header.set_size(metadata.len());
        let mut data = ExactFile { file, left: metadata.len(), failed: None, cancel: self.options.cancel.as_deref() };
        let written = self.tar.append_data(&mut header, relative, &mut data);
        if let Some(cause) = data.failed {
            return Err(BuildError::Read { path: path.into(), cause });
        }
        written.map_err(|cause| write_error(path, cause))?;
        self.content.files += 1;
        if let Some(progress) = &self.options.progress {
            progress(metadata.len());
        }
        Ok(())
    }

    fn header(&self, metadata: &Metadata, kind: EntryType) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(if kind == EntryType::Symlink { 0o777 } else { metadata.mode() & 0o7777 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        header.set_mtime(match self.options.mtime {
            Mtime::Keep => metadata.mtime().max(0) as u64,
            Mtime::Fixed(seconds) => seconds,
        });
        header
    }

    fn unreadable(&mut self, path: PathBuf, cause: io::Error) -> Result<(), BuildError> {
        let may_skip = matches!(cause.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::NotFound);
        if !(self.options.skip_unreadable && may_skip) {
            return Err(BuildError::Read { path, cause });
        }
        self.content.skipped.push(path);
        Ok(())
    }
}

/// Exactly the bytes that the header announced: a file that shrinks while it is read must not shift what follows.
struct ExactFile<'a> {
    file: File,
    left: u64,
    failed: Option<io::Error>,
    cancel: Option<&'a AtomicBool>,
}

impl Read for ExactFile<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancel.is_some_and(|cancel| cancel.load(Ordering::Relaxed)) {
            self.failed = Some(io::Error::other("stopped on request"));
            return Err(io::Error::other("stopped on request"));
        }
        let wanted = self.left.min(buffer.len() as u64) as usize;
        if wanted == 0 {
            return Ok(0);
        }
        let got = match self.file.read(&mut buffer[..wanted]) {
            Ok(0) => Err(io::Error::other(format!("it shrank by {} bytes while it was read", self.left))),
            other => other,
        };
        match got {
            Ok(bytes) => {
                self.left -= bytes as u64;
                Ok(bytes)
            }
            Err(error) => {
                let again = io::Error::new(error.kind(), error.to_string());
                if error.kind() != io::ErrorKind::Interrupted {
                    self.failed = Some(error);
                }
                Err(again)
            }
        }
    }
}

fn write_error(path: &Path, cause: io::Error) -> BuildError {
    BuildError::Append { path: path.into(), cause }
}
