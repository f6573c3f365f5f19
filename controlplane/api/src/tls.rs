//! TLS of gRPC: certificate files into the transport's settings, and what its errors mean to people.
//!
//! The one place of this crate that reads files, since both planes and the command line do it alike.

use std::error::Error;
use std::path::{Path, PathBuf};

use tonic::transport::{Certificate, ClientTlsConfig, Identity, ServerTlsConfig};

/// What a caller of the controller knows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientFiles {
    /// The certificate authority that the controller's certificate is of (PEM).
    pub ca: Option<PathBuf>,
    /// The caller's own certificate (PEM), for controllers that ask for one.
    pub cert: Option<PathBuf>,
    /// Its private key (PEM).
    pub key: Option<PathBuf>,
}

/// What the controller knows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerFiles {
    /// The controller's certificate (PEM).
    pub cert: Option<PathBuf>,
    /// Its private key (PEM).
    pub key: Option<PathBuf>,
    /// The certificate authority whose certificates let callers in (PEM).
    pub client_ca: Option<PathBuf>,
}

/// Settings that cannot work.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// One without the other.
    #[error("{given} is set but {missing} is not; a certificate and its key belong together")]
    Half {
        /// Which is set.
        given: &'static str,
        /// Which is not.
        missing: &'static str,
    },
    /// A server with a client authority but no certificate of its own.
    #[error("tls_client_ca is set but tls_cert and tls_key are not; callers cannot show certificates without TLS")]
    ClientCaAlone,
    /// An encrypted connection to nobody knows whom.
    #[error(
        "{0} is https, so tls_ca has to name the authority that signed the controller's certificate (`faasnet certs init` makes ca.pem)"
    )]
    NoAuthority(String),
    /// Certificates for a connection that shows none.
    #[error("TLS files are set, but {0} is plain http; write https://")]
    Plain(String),
    /// A file that is not there or not readable.
    #[error("{path}: {source}; `faasnet certs init` makes certificates")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file without a PEM block of the kind.
    #[error("{path} holds no {kind}; it has to be PEM, as `faasnet certs init` writes it")]
    Content {
        /// Which.
        path: PathBuf,
        /// What is missing in it.
        kind: &'static str,
    },
}

impl ClientFiles {
    /// The settings for a controller at `url`; `None`: it is spoken to without TLS.
    pub fn load(&self, url: &str) -> Result<Option<ClientTlsConfig>, TlsError> {
        let identity = identity(self.cert.as_deref(), self.key.as_deref())?;
        if !url.starts_with("https://") {
            return match self == &Self::default() {
                true => Ok(None),
                false => Err(TlsError::Plain(url.into())),
            };
        }
        let ca = self.ca.as_deref().ok_or_else(|| TlsError::NoAuthority(url.into()))?;
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(ca, CERTIFICATE)?));
        Ok(Some(match identity {
            Some(identity) => tls.identity(identity),
            None => tls,
        }))
    }
}

impl ServerFiles {
    /// The settings of a controller; `None`: it speaks without TLS.
    pub fn load(&self) -> Result<Option<ServerTlsConfig>, TlsError> {
        let Some(identity) = identity(self.cert.as_deref(), self.key.as_deref())? else {
            return match &self.client_ca {
                Some(_) => Err(TlsError::ClientCaAlone),
                None => Ok(None),
            };
        };
        let tls = ServerTlsConfig::new().identity(identity);
        Ok(Some(match self.client_ca.as_deref() {
            // Optional: who shows none needs the cluster's secret.
            Some(ca) => tls.client_ca_root(Certificate::from_pem(read(ca, CERTIFICATE)?)).client_auth_optional(true),
            None => tls,
        }))
    }
}

const CERTIFICATE: &str = "CERTIFICATE";
const PRIVATE_KEY: &str = "PRIVATE KEY";

fn identity(cert: Option<&Path>, key: Option<&Path>) -> Result<Option<Identity>, TlsError> {
    match (cert, key) {
        (None, None) => Ok(None),
        (Some(cert), Some(key)) => Ok(Some(Identity::from_pem(read(cert, CERTIFICATE)?, read(key, PRIVATE_KEY)?))),
        (Some(_), None) => Err(TlsError::Half { given: "tls_cert", missing: "tls_key" }),
        (None, Some(_)) => Err(TlsError::Half { given: "tls_key", missing: "tls_cert" }),
    }
}

fn read(path: &Path, kind: &'static str) -> Result<Vec<u8>, TlsError> {
    let bytes = std::fs::read(path).map_err(|source| TlsError::File { path: path.into(), source })?;
    let text = String::from_utf8_lossy(&bytes);
    let holds =
        text.lines().any(|line| line.starts_with("-----BEGIN ") && line.trim_end().ends_with(&format!("{kind}-----")));
    if holds { Ok(bytes) } else { Err(TlsError::Content { path: path.into(), kind }) }
}

/// An error with its causes, in one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// What the error of a connection to the controller means and what to do, if TLS is behind it. `text` is the error's [`chain`].
pub fn explain(text: &str) -> Option<&'static str> {
    let text = text.to_ascii_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
    let told = has(&["received fatal alert"]);
    Some(if has(&["certificateexpired", "certificate expired", "notvalidyet", "not valid yet"]) {
        match told {
            true => {
                "the certificate of this side (--tls-cert) is not valid now; issue another with `faasnet certs issue`, or correct the clock"
            }
            false => {
                "the controller's certificate is not valid now; issue another with `faasnet certs issue` and restart it, or correct the clock"
            }
        }
    } else if has(&["not valid for name", "notvalidforname"]) {
        "the controller's certificate does not name this address; issue one that does (`faasnet certs issue controller --host NAME`) and restart it"
    } else if has(&["certificaterequired", "certificate required"]) {
        "the controller asks for a certificate; give --tls-cert and --tls-key"
    } else if has(&["unknownissuer", "unknownca", "unknown ca", "badsignature", "decrypterror", "badcertificate"]) {
        match told {
            true => {
                "the controller does not know the authority of this side's certificate (--tls-cert); issue it with the authority in the controller's --tls-client-ca"
            }
            false => {
                "the controller's certificate is not of the authority in --tls-ca; is that file the cluster's ca.pem?"
            }
        }
    } else if has(&["invalidcontenttype", "corrupt message"]) {
        "the controller speaks without TLS there; write http://, or start it with --tls-cert and --tls-key"
    } else if has(&["frame with invalid size", "frame_size_error"]) {
        "the controller speaks TLS there; write https:// and give --tls-ca"
    } else if has(&["operation was canceled"]) {
        // The transport keeps the cause to itself when the connection ends before the call is on its way.
        "the controller ended the connection at once; if it speaks TLS, write https:// with --tls-ca, and see whether it knows the authority of --tls-cert"
    } else {
        return None;
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches settings that are half or contradictory and would fail later, or leave a connection open that was to be encrypted.
    #[test]
    fn settings_that_cannot_work_are_refused() {
        let problem = |files: ClientFiles, url: &str| files.load(url).unwrap_err().to_string();
        let path = || Some(PathBuf::from("/no/such.pem"));
        assert!(ClientFiles::default().load("http://c:1").unwrap().is_none());
        assert!(problem(ClientFiles::default(), "https://c:1").contains("tls_ca"));
        assert!(problem(ClientFiles { ca: path(), ..Default::default() }, "http://c:1").contains("https://"));
        assert!(problem(ClientFiles { ca: path(), ..Default::default() }, "https://c:1").contains("/no/such.pem"));
        assert!(problem(ClientFiles { cert: path(), ..Default::default() }, "https://c:1").contains("tls_key is not"));
        let alone = ServerFiles { client_ca: path(), ..Default::default() };
        assert!(alone.load().unwrap_err().to_string().contains("tls_cert"));
        assert!(ServerFiles::default().load().unwrap().is_none());
    }
}
