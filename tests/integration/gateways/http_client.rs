//! A client that sends exactly the given header lines, and reads one response.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::support::TIMEOUT;

/// A response.
#[derive(Debug)]
pub(super) struct Response {
    pub(super) status: u16,
    /// Names in lower case, and values.
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: String,
}

impl Response {
    /// The value of a header that is there at most once.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
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
        Self {
            status: status.unwrap_or_else(|| panic!("no status: {text:?}")),
            headers,
            body: body.to_owned(),
        }
    }
}

/// Sends a request to a TCP port of this host. `headers` precede `Host` and `Connection: close`.
pub(super) fn send(port: u16, method: &str, target: &str, headers: &[&str]) -> Response {
    let stream = TcpStream::connect(("127.0.0.1", port)).expect("connects");
    stream.set_read_timeout(Some(TIMEOUT)).expect("sets");
    converse(stream, method, target, headers)
}

fn converse(mut stream: impl Read + Write, method: &str, target: &str, headers: &[&str]) -> Response {
    let lines: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    let request =
        format!("{method} {target} HTTP/1.1\r\n{lines}Host: api.example.com\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("writes");
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("reads");
    Response::parse(&String::from_utf8_lossy(&bytes))
}
