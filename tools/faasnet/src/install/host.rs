//! The files of one host: read, replaced in one step, removed; all below a prefix, so that images can be prepared and tests need no root.
//!
//! Paths are those of the running host (`/etc/…`); the prefix is added here and nowhere else. What a file means is its runtime's business.

use std::fs::{self, File, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// What a new configuration file may be read by.
const PUBLIC: u32 = 0o644;
/// A host's configuration files are shorter; what is longer is something else.
const LONGEST_BYTES: u64 = 4 << 20;

/// A host, running or being built.
#[derive(Debug, Clone)]
pub(super) struct Host {
    root: PathBuf,
}

impl Host {
    /// The host whose file system begins at `root`.
    pub(super) fn new(root: &Path) -> Result<Self> {
        let root = root.canonicalize().with_context(|| format!("--root {} cannot be used", root.display()))?;
        Ok(Self { root })
    }

    /// Whether it is the one that this program runs on.
    pub(super) fn is_this(&self) -> bool {
        self.root == Path::new("/")
    }

    /// Where `path` of the host is for this program. Symbolic links are followed, and must not lead out of the prefix.
    pub(super) fn place(&self, path: &Path) -> Result<PathBuf> {
        let place = self.root.join(path.strip_prefix("/").unwrap_or(path));
        match place.canonicalize() {
            Ok(real) if real.starts_with(&self.root) => Ok(real),
            Ok(real) => {
                bail!("{} leads to {}, outside of --root; change that file by hand", place.display(), real.display())
            }
            Err(error) if error.kind() == ErrorKind::NotFound && place.is_symlink() => {
                bail!("{} is a link to nothing; remove it or make what it points to", place.display())
            }
            Err(error) if matches!(error.kind(), ErrorKind::NotFound) => Ok(place),
            Err(error) => Err(error).with_context(|| format!("cannot look at {}{}", place.display(), HINT)),
        }
    }

    /// The text of a file; `None` when there is no such file.
    pub(super) fn read(&self, path: &Path) -> Result<Option<String>> {
        let place = self.place(path)?;
        let length = match fs::metadata(&place) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}{HINT}", place.display())),
        };
        if length > LONGEST_BYTES {
            bail!("{} has {length} bytes; that is no configuration file, look what it is", place.display());
        }
        let bytes = fs::read(&place).with_context(|| format!("cannot read {}{HINT}", place.display()))?;
        match String::from_utf8(bytes) {
            Ok(text) => Ok(Some(text)),
            Err(_) => bail!("{} is not UTF-8; correct it first, nothing was changed", place.display()),
        }
    }

    /// The names in a folder, sorted; none when there is no such folder.
    pub(super) fn list(&self, path: &Path) -> Result<Vec<String>> {
        let place = self.place(path)?;
        let entries = match fs::read_dir(&place) {
            Ok(entries) => entries,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Ok(Vec::new());
            }
            Err(error) => return Err(error).with_context(|| format!("cannot read {}{HINT}", place.display())),
        };
        let mut names: Vec<String> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
        names.sort();
        Ok(names)
    }

    /// Makes `text` the content of a file: complete or not at all, on disk when this returns. An existing file keeps its mode and owner;
    /// a new one takes them from `like`, or can be read by everyone. Returns the folders that had to be made.
    pub(super) fn write(&self, path: &Path, text: &str, like: Option<&Path>) -> Result<Vec<PathBuf>> {
        let folder = path.parent().context("a file has a folder")?;
        let made = self.make_folders(folder)?;
        let place = self.place(path)?;
        let model = [Some(place.clone()), like.map(|like| self.place(like)).transpose()?];
        let model = model.into_iter().flatten().find_map(|file| fs::metadata(file).ok());
        if let Err(error) = replace(&place, text, model.as_ref()) {
            self.remove_empty(&made);
            return Err(error).with_context(|| format!("cannot write {}{HINT}", place.display()));
        }
        Ok(made)
    }

    /// Removes a file; one that is not there is fine.
    pub(super) fn remove(&self, path: &Path) -> Result<()> {
        let place = self.place(path)?;
        match fs::remove_file(&place) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}{HINT}", place.display()))
            }
            _ => Ok(()),
        }
    }

    /// Removes those of `folders` that are empty, the deepest first.
    pub(super) fn remove_empty(&self, folders: &[PathBuf]) {
        let mut folders = folders.to_vec();
        folders.sort_by_key(|folder| std::cmp::Reverse(folder.components().count()));
        for place in folders.iter().filter_map(|folder| self.place(folder).ok()) {
            // Ignored: somebody has put something there since, or it is gone already.
            let _ = fs::remove_dir(place);
        }
    }

    fn make_folders(&self, folder: &Path) -> Result<Vec<PathBuf>> {
        let mut made = Vec::new();
        let mut missing: Vec<&Path> = Vec::new();
        for folder in folder.ancestors() {
            if self.place(folder)?.is_dir() {
                break;
            }
            missing.push(folder);
        }
        for folder in missing.into_iter().rev() {
            let place = self.place(folder)?;
            fs::create_dir(&place).with_context(|| format!("cannot make {}{HINT}", place.display()))?;
            made.push(folder.to_owned());
        }
        Ok(made)
    }
}

/// What to do when the system refuses.
const HINT: &str = " (a runtime's configuration belongs to root: use sudo)";

fn replace(place: &Path, text: &str, model: Option<&fs::Metadata>) -> std::io::Result<()> {
    let folder = place.parent().ok_or(ErrorKind::InvalidInput)?;
    let mut part = tempfile::Builder::new().prefix(".faasnet-").tempfile_in(folder)?;
    part.write_all(text.as_bytes())?;
    let file = part.as_file();
    file.set_permissions(Permissions::from_mode(model.map_or(PUBLIC, |model| model.mode() & 0o7777)))?;
    let ours = file.metadata()?;
    if let Some(model) = model.filter(|model| (model.uid(), model.gid()) != (ours.uid(), ours.gid())) {
        fchown(file, Some(model.uid()), Some(model.gid()))?;
    }
    file.sync_all()?;
    part.persist(place)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a file that becomes readable for others when it is replaced, and a half-written one that stays behind.
    #[test]
    fn replacing_keeps_the_mode_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path()).unwrap();
        let path = Path::new("/etc/x/y/file");
        let made = host.write(path, "one", None).unwrap();
        assert_eq!(made, ["/etc", "/etc/x", "/etc/x/y"].map(PathBuf::from));
        let place = host.place(path).unwrap();
        assert_eq!(fs::metadata(&place).unwrap().mode() & 0o777, 0o644);
        fs::set_permissions(&place, Permissions::from_mode(0o600)).unwrap();
        assert!(host.write(path, "two", None).unwrap().is_empty());
        assert_eq!(fs::metadata(&place).unwrap().mode() & 0o777, 0o600);
        assert_eq!(host.read(path).unwrap().as_deref(), Some("two"));
        assert_eq!(host.list(Path::new("/etc/x/y")).unwrap(), ["file"]);
        host.remove(path).unwrap();
        host.remove_empty(&made);
        assert!(host.list(Path::new("/")).unwrap().is_empty());
    }

    /// Catches a prefix that a link in it leads out of: an image that is being built would change its builder.
    #[test]
    fn links_do_not_lead_out_of_the_prefix() {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let host = Host::new(dir.path()).unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("etc")).unwrap();
        let error = host.write(Path::new("/etc/file"), "x", None).unwrap_err();
        assert!(format!("{error:#}").contains("outside of --root"), "{error:#}");
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }
}
