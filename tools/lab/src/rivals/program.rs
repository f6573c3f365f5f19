//! The programs of other systems: where they are, what version they have, which Debian package brings them.

use std::path::PathBuf;
use std::process::{Command, Stdio};

/// A program that a system needs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Program {
    /// What it is called in tables.
    pub(super) label: &'static str,
    /// Who brings it.
    pub(super) package: &'static str,
    file: &'static str,
    /// Makes it print its version, on either output.
    arguments: &'static [&'static str],
}

pub(super) const NGINX: Program = Program { label: "nginx", package: "nginx-light", file: "nginx", arguments: &["-v"] };
pub(super) const CURL: Program = Program { label: "curl", package: "curl", file: "curl", arguments: &["--version"] };
pub(super) const VARNISH: Program =
    Program { label: "varnish", package: "varnish", file: "varnishd", arguments: &["-V"] };
pub(super) const ARIA2: Program =
    Program { label: "aria2", package: "aria2", file: "aria2c", arguments: &["--version"] };
/// Has no version of its own: the package's counts.
pub(super) const OPENTRACKER: Program = Program {
    label: "opentracker",
    package: "opentracker",
    file: "dpkg-query",
    arguments: &["--show", "--showformat=${Version}", "opentracker"],
};
/// A module of Debian's Python; another Python on the path would not find it.
pub(super) const LIBTORRENT: Program = Program {
    label: "libtorrent",
    package: "python3-libtorrent",
    file: PYTHON,
    arguments: &["-c", "import libtorrent; print(libtorrent.__version__)"],
};
pub(super) const PYTHON: &str = "/usr/bin/python3";

impl Program {
    /// Its version; `None` when it cannot be run.
    pub(super) fn version(&self) -> Option<String> {
        let output = Command::new(path(self.file)?).args(self.arguments).stdin(Stdio::null()).output().ok()?;
        let text = [output.stdout, output.stderr].concat();
        if output.status.success() { version_in(&String::from_utf8_lossy(&text)) } else { None }
    }
}

/// Where a program is. Daemons are often in a folder that is not on a user's path.
pub(super) fn path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")]);
    folders.map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// The only word of `text`, or the first thing in it that looks like `1.2` or `1.2.3`.
fn version_in(text: &str) -> Option<String> {
    if let [word] = text.split_whitespace().collect::<Vec<_>>()[..] {
        return Some(word.to_owned());
    }
    let is_part = |c: char| c.is_ascii_digit() || c == '.';
    let mut words = text.split(|c: char| !is_part(c)).map(|word| word.trim_matches('.'));
    words.find(|word| word.contains('.')).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches versions that are not found in what the programs really print.
    #[test]
    fn versions_are_found() {
        for (text, version) in [
            ("nginx version: nginx/1.22.1\n", "1.22.1"),
            ("varnishd (varnish-7.1.1 revision 7cee1c581bead20e88d101ab3d72afb29f14d87a)", "7.1.1"),
            ("curl 7.88.1 (x86_64-pc-linux-gnu) libcurl/7.88.1", "7.88.1"),
            ("2.0.8.0\n", "2.0.8.0"),
            ("0.0~git20210823.110868e-3", "0.0~git20210823.110868e-3"),
        ] {
            assert_eq!(version_in(text).as_deref(), Some(version), "{text}");
        }
        assert_eq!(version_in("no such package..."), None);
    }

    /// Catches a missing program that is taken for an installed one.
    #[test]
    fn what_is_not_there_has_no_version() {
        let program = Program { label: "x", package: "x", file: "no-such-program", arguments: &[] };
        assert_eq!(program.version(), None);
        assert_eq!(Program { file: "false", ..program }.version(), None);
    }
}
