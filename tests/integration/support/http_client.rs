//! A client that sends exactly the given header lines, and reads one response.

use std::io::{Read, Write};
use std::net::TcpStream;

use super::wait::TIMEOUT;

/// A response.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    /// Names in lower case, and values.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Response {
    /// The value of a header that is there at most once.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut values =
            self.headers.iter().filter(|(found, _)| found == name).map(|(_, value)| value.as_str());
        let value = values.next();
        assert!(values.next().is_none(), "{name} is there more than once: {self:?}");
        value
    }

    fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no response: {text:?}"));
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
        let headers = lines.map(|line| line.split_once(':').expect("a header"));
        let headers = headers.map(|(name, value)| (name.to_lowercase(), value.trim().to_owned())).collect();
        let mut response = Self {
            status: status.unwrap_or_else(|| panic!("no status: {text:?}")),
            headers,
            body: body.to_owned(),
        };
        if response.header("transfer-encoding") == Some("chunked") {
            response.body = join_chunks(body);
        }
        response
    }
}

/// The text of a chunked body: each chunk follows its size in hexadecimal; the last one is empty.
fn join_chunks(mut body: &str) -> String {
    let mut text = String::new();
    loop {
        let (size, rest) = body.split_once("\r\n").expect("a chunk");
        let size = usize::from_str_radix(size, 16).expect("a size");
        if size == 0 {
            return text;
        }
        text += &rest[..size];
        body = rest[size..].strip_prefix("\r\n").expect("the end of a chunk");
    }
}

/// Sends a request to a TCP port of this host. `headers` precede `Host` and `Connection: close`.
pub(crate) fn send(port: u16, method: &str, target: &str, headers: &[&str]) -> Response {
    let stream = TcpStream::connect(("127.0.0.1", port)).expect("connects");
    stream.set_read_timeout(Some(TIMEOUT)).expect("sets");
    converse(stream, method, target, headers, "")
}

/// Sends a request on a connection, and reads until its end. `headers` have to state the length of a body.
pub(crate) fn converse(
    mut stream: impl Read + Write,
    method: &str,
    target: &str,
    headers: &[&str],
    body: &str,
) -> Response {
    let lines: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    let request = format!(
        "{method} {target} HTTP/1.1\r\n{lines}Host: api.example.com\r\nConnection: close\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).expect("writes");
    let mut bytes = Vec::new();
    // A connection that is closed before all of a request was read ends with a reset.
    let _ = stream.read_to_end(&mut bytes);
    Response::parse(&String::from_utf8_lossy(&bytes))
}
