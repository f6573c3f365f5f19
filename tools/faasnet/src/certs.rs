//! `faasnet certs`: a small certificate authority for one cluster: two kinds of certificates, no revocation, files in one folder.
//!
//! The authority's key stays in that folder; move it off the controller's host to keep it safe.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde::Serialize;

use crate::cli::Global;
use crate::output;

/// `faasnet certs …`
#[derive(Debug, Subcommand)]
pub enum CertsCommand {
    /// Make an authority, the controller's certificate and one for clients
    Init(InitArgs),
    /// Make another certificate with the authority that `init` made
    Issue(IssueArgs),
}

/// `faasnet certs init`
#[derive(Debug, Args)]
#[command(after_help = "\
Makes ca.pem, controller.pem and client.pem, each with its -key.pem. Then:
  faasnet controller --tls-cert certs/controller.pem --tls-key certs/controller-key.pem --tls-client-ca certs/ca.pem …
  faasnet agent --controller https://controller:7400 --tls-ca certs/ca.pem …
  faasnet nodes --controller https://controller:7400 --tls-ca certs/ca.pem --tls-cert certs/client.pem --tls-key certs/client-key.pem")]
pub struct InitArgs {
    /// Where the files go; made if it is not there
    #[arg(long, default_value = "certs")]
    pub dir: PathBuf,
    /// A name or address by which agents and clients reach the controller; may be repeated [always: localhost, 127.0.0.1, ::1]
    #[arg(long, value_name = "NAME")]
    pub host: Vec<String>,
}

/// `faasnet certs issue`
#[derive(Debug, Args)]
pub struct IssueArgs {
    /// Whom it is for: the names of its files, NAME.pem and NAME-key.pem
    pub name: String,
    /// Where `faasnet certs init` put its files
    #[arg(long, default_value = "certs")]
    pub dir: PathBuf,
    /// Names or addresses of a controller that shows it; without any it is a client's
    #[arg(long, value_name = "NAME")]
    pub host: Vec<String>,
    /// For how long it is good
    #[arg(long, value_name = "DAYS", default_value_t = CERTIFICATE_DAYS, value_parser = clap::value_parser!(u64).range(1..=36_500))]
    pub days: u64,
}

/// Certificates are replaced at least this often.
const CERTIFICATE_DAYS: u64 = 825;
const AUTHORITY_DAYS: u64 = 3650;
const DAY: Duration = Duration::from_secs(24 * 3600);
/// Clocks of hosts differ: a certificate is good from this long before it was made.
const BACKDATED: Duration = Duration::from_secs(300);
/// The same in every cluster, so that the authority can be put together again from its key alone.
const AUTHORITY: &str = "FaaSNet cluster CA";

/// Files that were made.
#[derive(Debug, Serialize)]
struct Made {
    certificate: PathBuf,
    key: PathBuf,
}

/// Runs a subcommand.
pub fn run(global: &Global, command: CertsCommand) -> Result<()> {
    let made = match command {
        CertsCommand::Init(args) => init(&args)?,
        CertsCommand::Issue(args) => vec![issue(&args)?],
    };
    if global.json {
        return output::json(&made);
    }
    for Made { certificate, key } in &made {
        output::line(format!("{}  (key: {})", certificate.display(), key.display()))?;
    }
    Ok(())
}

fn init(args: &InitArgs) -> Result<Vec<Made>> {
    check_hosts(&args.host)?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&args.dir)
        .with_context(|| format!("cannot make {}; choose another with --dir", args.dir.display()))?;
    let key = KeyPair::generate().context("cannot make a key")?;
    let certificate = authority()?.self_signed(&key).context("cannot sign the authority's certificate")?;
    let mut made = vec![write(&args.dir, "ca", &certificate.pem(), &key)?];
    let issuer = Issuer::new(authority()?, key);
    let mut hosts: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(String::from).into();
    hosts.extend(args.host.iter().cloned());
    made.push(sign(&args.dir, "controller", &hosts, CERTIFICATE_DAYS, &issuer)?);
    made.push(sign(&args.dir, "client", &[], CERTIFICATE_DAYS, &issuer)?);
    Ok(made)
}

fn issue(args: &IssueArgs) -> Result<Made> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if args.name.is_empty() || args.name == "ca" || args.name.starts_with('.') || !args.name.chars().all(fits) {
        bail!("{:?} cannot be a certificate's name; use letters, digits, '-', '_' and '.', and not \"ca\"", args.name);
    }
    check_hosts(&args.host)?;
    let path = key_path(&args.dir, "ca");
    let pem = fs::read_to_string(&path).with_context(|| {
        format!("cannot read the authority's key {}; make an authority with `faasnet certs init`", path.display())
    })?;
    let key = KeyPair::from_pem(&pem).with_context(|| format!("{} is not a private key in PEM", path.display()))?;
    sign(&args.dir, &args.name, &args.host, args.days, &Issuer::new(authority()?, key))
}

/// Before anything is written.
fn check_hosts(hosts: &[String]) -> Result<()> {
    match hosts.iter().find(|host| !is_host(host)) {
        None => Ok(()),
        Some(host) => {
            bail!("--host {host:?} is neither a name nor an address; write e.g. controller.example or 10.0.0.1")
        }
    }
}

/// An address, or a name of letters, digits and hyphens with dots between; the first part may be `*`.
fn is_host(host: &str) -> bool {
    let fits = |part: &str| {
        !part.is_empty() && part.len() < 64 && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
    };
    let name = host.strip_prefix("*.").unwrap_or(host);
    host.parse::<std::net::IpAddr>().is_ok() || (host.len() < 254 && name.split('.').all(fits))
}

fn authority() -> Result<CertificateParams> {
    let mut params = params(AUTHORITY, &[], AUTHORITY_DAYS)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// A certificate for a controller at `hosts`, or for a client if there are none.
fn sign(dir: &Path, name: &str, hosts: &[String], days: u64, issuer: &Issuer<'_, KeyPair>) -> Result<Made> {
    let mut params = params(name, hosts, days)?;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = match hosts.is_empty() {
        true => vec![ExtendedKeyUsagePurpose::ClientAuth],
        false => vec![ExtendedKeyUsagePurpose::ServerAuth],
    };
    let key = KeyPair::generate().context("cannot make a key")?;
    let certificate =
        params.signed_by(&key, issuer).with_context(|| format!("cannot sign the certificate of {name}"))?;
    write(dir, name, &certificate.pem(), &key)
}

fn params(name: &str, hosts: &[String], days: u64) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(hosts.to_vec())
        .with_context(|| format!("one of {hosts:?} is neither a name nor an address; write it as clients will"))?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = (SystemTime::now() - BACKDATED).into();
    params.not_after = (SystemTime::now() + DAY * days as u32).into();
    Ok(params)
}

fn key_path(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}-key.pem"))
}

/// Writes a certificate and its key; never over files that are there.
fn write(dir: &Path, name: &str, certificate: &str, key: &KeyPair) -> Result<Made> {
    let made = Made { certificate: dir.join(format!("{name}.pem")), key: key_path(dir, name) };
    let files = [(&made.key, key.serialize_pem(), 0o600), (&made.certificate, certificate.to_owned(), 0o644)];
    for (path, pem, mode) in files {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path).with_context(|| {
            format!(
                "cannot write {}; if it is there already, move it away or choose another --dir or name",
                path.display()
            )
        })?;
        file.write_all(pem.as_bytes()).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn init_in(dir: &Path) -> Result<Vec<Made>> {
        init(&InitArgs { dir: dir.into(), host: vec!["controller.test".into()] })
    }

    /// Catches a certificate that is good for no host, because of a slip.
    #[test]
    fn hosts_are_names_or_addresses() {
        assert!(["localhost", "::1", "10.0.0.1", "a-b.example", "*.example"].into_iter().all(is_host));
        assert!(!["bad host", "http://x", "a..b", "x:7400"].into_iter().any(is_host));
    }

    /// Catches keys that other users can read, and files of a running cluster that are overwritten.
    #[test]
    fn keys_are_private_and_nothing_is_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        for Made { key, .. } in init_in(folder.path()).unwrap() {
            assert_eq!(fs::metadata(key).unwrap().permissions().mode() & 0o777, 0o600);
        }
        let before = fs::read(folder.path().join("ca-key.pem")).unwrap();
        assert!(format!("{:#}", init_in(folder.path()).unwrap_err()).contains("ca-key.pem"));
        assert_eq!(fs::read(folder.path().join("ca-key.pem")).unwrap(), before);
        let args = |name: &str| IssueArgs { name: name.into(), dir: folder.path().into(), host: vec![], days: 1 };
        assert!(issue(&args("n1")).is_ok() && issue(&args("n1")).is_err());
        assert!(issue(&args("../n1")).is_err() && issue(&args("ca")).is_err());
        let nowhere = IssueArgs { dir: folder.path().join("other"), ..args("n2") };
        assert!(format!("{:#}", issue(&nowhere).unwrap_err()).contains("certs init"));
    }
}
