//! containerd's `hosts.toml`: the hosts that are asked for the images of one registry, in the order of the file, the registry itself last.
//!
//! Pure: text in, text out. An existing file is changed only at the place of our entry.

use anyhow::{Context, Result, bail, ensure};
use toml_edit::{Document, DocumentMut, Item};

use super::names::Mirror;

/// Certificates that containerd takes from a registry's folder only while there is no `hosts.toml` in it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Certificates {
    /// Authorities.
    pub(super) authorities: Vec<String>,
    /// Pairs of a certificate and its key.
    pub(super) clients: Vec<[String; 2]>,
}

impl Certificates {
    /// What containerd would find in `folder`, which holds files of these names.
    pub(super) fn among(folder: &str, names: &[String]) -> Self {
        let with = |suffix: &'static str| names.iter().filter_map(move |name| name.strip_suffix(suffix));
        Self {
            authorities: with(".crt").map(|name| format!("{folder}/{name}.crt")).collect(),
            clients: with(".cert").map(|name| ["cert", "key"].map(|end| format!("{folder}/{name}.{end}"))).collect(),
        }
    }
}

/// A new file for a registry at `server`; without one containerd goes to the registry that the reference names.
pub(super) fn new_file(mirror: &Mirror, server: Option<&str>, certificates: &Certificates) -> String {
    let mut text = String::from(
        "# Written by `faasnet install containerd`; `faasnet uninstall containerd` removes it.\n\
         # The agent of this node is asked first. What it does not hold comes from the registry itself.\n",
    );
    if let Some(server) = server {
        text += &format!("server = \"{server}\"\n");
    }
    // Debug of strings is TOML's form as well: paths of configuration files have no special characters but quotes.
    if !certificates.authorities.is_empty() {
        text += &format!("ca = {:?}\n", certificates.authorities);
    }
    if !certificates.clients.is_empty() {
        text += &format!("client = {:?}\n", certificates.clients);
    }
    text + "\n" + &entry(mirror)
}

/// `text` with the mirror as the first host; `None` when it is in there already.
pub(super) fn with_mirror(text: &str, mirror: &Mirror) -> Result<Option<String>> {
    let document = Document::parse(text)?;
    let entry = entry(mirror);
    let new = match document.get("host") {
        None => format!("{}{}{entry}", text.trim_end(), if text.trim().is_empty() { "" } else { "\n\n" }),
        Some(Item::Table(hosts)) if hosts.contains_key(mirror.url()) => return Ok(None),
        Some(Item::Table(hosts)) => {
            let begins = hosts.iter().filter_map(|(_, host)| host.span()).map(|span| span.start).min();
            let begins = begins.filter(|_| hosts.iter().all(|(_, host)| host.is_table()));
            let begins = above_comments(text, begins.context("its hosts are not written as [host.\"…\"]")?);
            format!("{}{entry}\n{}", &text[..begins], &text[begins..])
        }
        Some(_) => bail!("its hosts are not written as [host.\"…\"]"),
    };
    let check: DocumentMut = new.parse()?;
    let first = check.get("host").and_then(Item::as_table_like).and_then(|hosts| hosts.iter().next());
    ensure!(first.is_some_and(|(name, _)| name == mirror.url()), "the mirror cannot be put first in it");
    Ok(Some(new))
}

/// `text` without the mirror.
pub(super) fn without_mirror(text: &str, mirror: &Mirror) -> Result<String> {
    let mut document: DocumentMut = text.parse()?;
    let Some(hosts) = document.get_mut("host").and_then(Item::as_table_like_mut) else { return Ok(text.to_owned()) };
    if hosts.remove(mirror.url()).is_none() {
        return Ok(text.to_owned());
    }
    if hosts.is_empty() {
        document.remove("host");
    }
    Ok(document.to_string())
}

/// Whether nothing is configured but, perhaps, where the registry is.
pub(super) fn says_nothing(text: &str) -> bool {
    text.parse::<toml::Table>().is_ok_and(|table| table.keys().all(|key| key == "server"))
}

fn entry(mirror: &Mirror) -> String {
    format!("[host.\"{}\"]\n  capabilities = [\"pull\", \"resolve\"]\n", mirror.url())
}

/// The begin of the line at `at`, or of the comments directly above it.
fn above_comments(text: &str, at: usize) -> usize {
    let mut begin = text[..at].rfind('\n').map_or(0, |end| end + 1);
    while begin > 0 {
        let above = text[..begin - 1].rfind('\n').map_or(0, |end| end + 1);
        if !text[above..begin].trim_start().starts_with('#') {
            break;
        }
        begin = above;
    }
    begin
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mirror() -> Mirror {
        "http://127.0.0.1:7412".parse().unwrap()
    }

    /// Catches a mirror behind another host, and a comment or a setting of the owner that is lost on the way in or out.
    #[test]
    fn an_existing_file_gets_one_more_host_in_front() {
        let text = "# ours\nserver = \"https://r.example\"\nca = \"x.crt\"\n\n# the old cache\n# of team A\n[host.\"https://cache\"]\n  capabilities = [\"pull\"] # only\n\n[host.\"https://cache\".header]\n  x = \"y\"\n";
        let new = with_mirror(text, &mirror()).unwrap().unwrap();
        let expected = "ca = \"x.crt\"\n\n[host.\"http://127.0.0.1:7412\"]\n  capabilities = [\"pull\", \"resolve\"]\n\n# the old cache\n";
        assert!(new.contains(expected), "{new}");
        assert_eq!(with_mirror(&new, &mirror()).unwrap(), None);
        assert_eq!(without_mirror(&new, &mirror()).unwrap(), text);
        let edited = new.replace("# only", "# and no more");
        assert_eq!(without_mirror(&edited, &mirror()).unwrap(), text.replace("# only", "# and no more"));
    }

    /// Catches a file of which nothing of ours remains but that is kept, and one with settings that is thrown away.
    #[test]
    fn our_own_file_says_nothing_without_the_mirror() {
        for server in [None, Some("https://r.example")] {
            let text = new_file(&mirror(), server, &Certificates::default());
            assert_eq!(with_mirror(&text, &mirror()).unwrap(), None);
            assert!(says_nothing(&without_mirror(&text, &mirror()).unwrap()));
        }
        assert!(!says_nothing("server = 'x'\nskip_verify = true"));
        assert!(with_mirror("server = 'x'\n", &mirror()).unwrap().unwrap().contains("[host"));
    }

    /// Catches a registry of a private authority that can no longer be reached: containerd does not look for certificates beside the file.
    #[test]
    fn certificates_beside_the_file_stay_in_use() {
        let names = ["a.crt", "b.cert", "b.key", "note.txt"].map(str::to_owned);
        let certificates = Certificates::among("/etc/containerd/certs.d/r", &names);
        let text = new_file(&mirror(), None, &certificates);
        let table: toml::Table = text.parse().unwrap();
        assert_eq!(table["ca"][0].as_str(), Some("/etc/containerd/certs.d/r/a.crt"));
        assert_eq!(table["client"][0][1].as_str(), Some("/etc/containerd/certs.d/r/b.key"));
    }

    /// Catches a file that is overwritten because it cannot be read or is written in another way.
    #[test]
    fn what_cannot_be_edited_is_refused() {
        for text in ["server = ", "host = { \"https://a\" = { capabilities = [\"pull\"] } }\n", "host = 1\n"] {
            assert!(with_mirror(text, &mirror()).is_err(), "{text}");
        }
    }
}
