//! The smallest HTTP client that can ask a daemon inside a namespace: one GET per connection, the whole body at once or into a file.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::error::Result;
use crate::{LabError, enter};

/// A daemon on the same machine that says nothing for this long is stopped or dead.
const PATIENCE: Duration = Duration::from_secs(2);

/// Status and body of `GET path` at `address`, asked from inside `namespace`.
pub fn get(namespace: &str, address: SocketAddr, path: &str) -> Result<(u16, Vec<u8>)> {
    let request = path.to_owned();
    enter::run(namespace, move || {
        let mut body = Vec::new();
        let status = fetch(address, &request, PATIENCE, |bytes| {
            body.extend_from_slice(bytes);
            Ok(())
        })?;
        Ok((status, body))
    })?
    .map_err(LabError::io(format!("GET http://{address}{path} in {namespace}")))
}

/// GETs `path` and gives the body to `sink` as it comes; the status. The body must have a length or end with the connection.
pub fn fetch(
    address: SocketAddr,
    path: &str,
    patience: Duration,
    mut sink: impl FnMut(&[u8]) -> std::io::Result<()>,
) -> std::io::Result<u16> {
    let mut stream = TcpStream::connect_timeout(&address, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut reader = BufReader::with_capacity(256 << 10, stream);
    let (status, length) = head(&mut reader)?;
    let mut done = 0;
    while length.is_none_or(|length| done < length) {
        let bytes = reader.fill_buf()?;
        if bytes.is_empty() {
            break;
        }
        let count = bytes.len();
        sink(bytes)?;
        reader.consume(count);
        done += count as u64;
    }
    match length {
        Some(length) if done != length => Err(std::io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(status),
    }
}

/// Status and `Content-Length`.
fn head(reader: &mut impl BufRead) -> std::io::Result<(u16, Option<u64>)> {
    const MOST_BYTES: u64 = 64 << 10;
    let mut limited = reader.take(MOST_BYTES);
    let mut line = String::new();
    limited.read_line(&mut line)?;
    let status = line.split_whitespace().nth(1).and_then(|status| status.parse().ok());
    let mut length = None;
    loop {
        line.clear();
        if limited.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let Some((name, value)) = line.split_once(':') else { break };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().ok();
        }
    }
    status.map(|status| (status, length)).ok_or_else(|| std::io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a client that takes a body which broke off for a whole one.
    #[test]
    fn a_short_body_is_an_error() {
        let serve = |answer: &'static str| {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let server = std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                stream.read_exact(&mut [0; 16]).unwrap();
                stream.write_all(answer.as_bytes()).unwrap();
                // The request is read to its end, or closing would reset the connection.
                stream.shutdown(std::net::Shutdown::Write).unwrap();
                let _ = stream.read_to_end(&mut Vec::new());
            });
            let mut body = Vec::new();
            let status = fetch(address, "/x", PATIENCE, |bytes| {
                body.extend_from_slice(bytes);
                Ok(())
            });
            server.join().unwrap();
            (status.ok(), String::from_utf8(body).unwrap())
        };
        assert_eq!(serve("HTTP/1.1 200 OK\r\ncontent-LENGTH: 3\r\n\r\nabc"), (Some(200), "abc".into()));
        assert_eq!(serve("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabc").0, None);
        assert_eq!(serve("HTTP/1.1 404 Not Found\r\n\r\nno"), (Some(404), "no".into()));
        assert_eq!(serve("HTTP/1.1 200 OK\r\n").0, None);
    }
}
