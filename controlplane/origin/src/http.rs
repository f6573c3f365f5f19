//! The HTTP clients and the meaning of their errors. No authentication and no redirects here.

use std::error::Error as StdError;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Certificate, Client, ClientBuilder, Method, Response, Url, redirect};
use tokio::time::timeout;

use crate::reference::is_loopback;
use crate::{Error, SourceOptions};

/// Two clients: hosts on this machine are never reached through a proxy of the environment.
#[derive(Debug, Clone)]
pub(crate) struct Http {
    direct: Client,
    proxied: Client,
    connect_timeout: Duration,
    stall_timeout: Duration,
}

impl Http {
    pub(crate) fn new(options: &SourceOptions) -> Result<Self, Error> {
        let authorities = authorities(options)?;
        Ok(Self {
            direct: client(options, &authorities, ClientBuilder::no_proxy)?,
            proxied: client(options, &authorities, |builder| builder)?,
            connect_timeout: options.connect_timeout,
            stall_timeout: options.stall_timeout,
        })
    }

    /// Sends one request and waits for the head of its answer, whatever its status.
    pub(crate) async fn send(&self, method: Method, url: &Url, headers: HeaderMap) -> Result<Response, Error> {
        let client = if url.host_str().is_some_and(is_loopback) { &self.direct } else { &self.proxied };
        let sending = client.request(method, url.clone()).headers(headers).send();
        match timeout(self.connect_timeout + self.stall_timeout, sending).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(classify(&error, url)),
            Err(_) => Err(Error::Stalled { url: shown(url), seconds: self.stall_timeout.as_secs() }),
        }
    }

    /// The next bytes of a body; `received` is how many came before, for the message.
    pub(crate) async fn next_bytes(&self, response: &mut Response, received: u64) -> Result<Option<Bytes>, Error> {
        match timeout(self.stall_timeout, response.chunk()).await {
            Ok(Ok(bytes)) => Ok(bytes),
            Ok(Err(error)) => Err(Error::Cut { url: shown(response.url()), received, cause: innermost(&error) }),
            Err(_) => Err(Error::Stalled { url: shown(response.url()), seconds: self.stall_timeout.as_secs() }),
        }
    }

    /// A whole body of at most `max` bytes.
    pub(crate) async fn read_all(&self, mut response: Response, max: u64, what: &str) -> Result<Bytes, Error> {
        let mut body = BytesMut::new();
        while let Some(bytes) = self.next_bytes(&mut response, body.len() as u64).await? {
            if (body.len() + bytes.len()) as u64 > max {
                return Err(Error::TooLarge { what: what.into() });
            }
            body.extend_from_slice(&bytes);
        }
        Ok(body.freeze())
    }
}

fn client(
    options: &SourceOptions,
    authorities: &[Certificate],
    proxy: impl Fn(ClientBuilder) -> ClientBuilder,
) -> Result<Client, Error> {
    let base = || {
        proxy(Client::builder())
            .user_agent(concat!("faasnet/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(options.connect_timeout)
            // Redirects are followed by the registry client, which knows whom the credentials are for.
            .redirect(redirect::Policy::none())
            .referer(false)
            // A connection per transfer: no shared HTTP/2 window that keeps two ranges below the line rate.
            .http1_only()
    };
    let merged = base().tls_certs_merge(authorities.iter().cloned()).build();
    // A host without any certificate authority can still read registries that speak plain HTTP.
    merged
        .or_else(|_| base().tls_certs_only(authorities.iter().cloned()).build())
        .map_err(|error| Error::Setting(format!("the HTTP client cannot be set up: {}", innermost(&error))))
}

fn authorities(options: &SourceOptions) -> Result<Vec<Certificate>, Error> {
    let Some(path) = &options.ca_file else { return Ok(Vec::new()) };
    let refuse = |cause: String| {
        Error::Setting(format!("the certificate authority file {} cannot be used: {cause}", path.display()))
    };
    let pem = std::fs::read(path).map_err(|error| refuse(error.to_string()))?;
    let certificates = Certificate::from_pem_bundle(&pem).map_err(|error| refuse(innermost(&error)))?;
    if certificates.is_empty() {
        return Err(refuse("it holds no PEM certificate".into()));
    }
    Ok(certificates)
}

/// A URL without the parts that may hold secrets.
pub(crate) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    // Ignored: it fails only for URLs that cannot have a user, which then have none to hide.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.into()
}

fn classify(error: &reqwest::Error, url: &Url) -> Error {
    let (url, cause) = (shown(url), innermost(error));
    if chain(error).any(is_tls) {
        return Error::Tls { url, cause };
    }
    if error.is_connect() || error.is_timeout() {
        return Error::Unreachable { url, cause };
    }
    Error::Cut { url, received: 0, cause }
}

fn chain<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// A TLS error hides inside an I/O error, or several, which do not name it as their source.
fn is_tls(error: &(dyn StdError + 'static)) -> bool {
    let inner = |error: &(dyn StdError + 'static)| {
        error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref).is_some_and(|inner| is_tls(inner))
    };
    error.is::<rustls::Error>() || inner(error)
}

/// The last cause of a chain says what happened; the ones before repeat the URL.
fn innermost(error: &(dyn StdError + 'static)) -> String {
    chain(error).last().map(ToString::to_string).unwrap_or_default()
}

/// `Retry-After` in seconds or as a date.
pub(crate) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = parse_http_date(text)?;
    Some((SystemTime::UNIX_EPOCH + Duration::from_secs(at)).duration_since(now).unwrap_or_default())
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` as seconds since the Unix epoch.
fn parse_http_date(text: &str) -> Option<u64> {
    const MONTHS: &str = "JanFebMarAprMayJunJulAugSepOctNovDec";
    let mut words = text.split_once(", ")?.1.split(' ');
    let day: u64 = words.next()?.parse().ok()?;
    let month = MONTHS.find(words.next()?).filter(|at| at % 3 == 0)? as u64 / 3 + 1;
    let year: u64 = words.next()?.parse().ok()?;
    let mut clock = words.next()?.split(':').map(|part| part.parse::<u64>().ok());
    let (hours, minutes, seconds) = (clock.next()??, clock.next()??, clock.next()??);
    if !(1970..10_000).contains(&year) || !(1..=31).contains(&day) || hours > 23 || minutes > 59 || seconds > 60 {
        return None;
    }
    // Days of the proleptic Gregorian calendar, counted from March so that the leap day is the last.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1;
    Some((days - 719_468) * 86_400 + hours * 3600 + minutes * 60 + seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a secret of a signed blob location in a message.
    #[test]
    fn shown_urls_hold_no_secrets() {
        let url = Url::parse("https://me:pw@cdn.example:8443/blob/x?X-Amz-Signature=s3cret#f").unwrap();
        assert_eq!(shown(&url), "https://cdn.example:8443/blob/x");
    }

    /// Catches a wait that is read wrongly from either form of the header.
    #[test]
    fn retry_after_is_read_in_both_forms() {
        let header = |text: &str| HeaderMap::from_iter([(RETRY_AFTER, text.parse().unwrap())]);
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777 - 30);
        assert_eq!(retry_after(&header("120"), now), Some(Duration::from_secs(120)));
        assert_eq!(retry_after(&header("Sun, 06 Nov 1994 08:49:37 GMT"), now), Some(Duration::from_secs(30)));
        assert_eq!(
            retry_after(&header("Thu, 29 Feb 1996 00:00:00 GMT"), SystemTime::UNIX_EPOCH),
            Some(Duration::from_secs(825_552_000))
        );
        for rubbish in ["soon", "Sun, 99 Nov 1994 08:49:37 GMT", "Sun, 06 ovD 1994 08:49:37 GMT", "-1", ""] {
            assert_eq!(retry_after(&header(rubbish), now), None, "{rubbish}");
        }
    }
}
