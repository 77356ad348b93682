//! Malformed requests to `keyward http`: it refuses them, lets nothing through, and stands.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use tempfile::TempDir;

use crate::support::http_client::send;
use crate::support::{Daemon, Export, Process, Random, dose, free_port, row, start_companion};

/// A key in force, which malformed requests carry as well.
const KEY: &str = "canary-key-0123456789";

/// Malformed requests that are sent.
const REQUESTS: usize = 10_000;

/// Growth of memory that malformed requests may cause, in bytes. Some hundred buffers are 64 KiB.
const MAX_GROWTH: f64 = 16.0 * 1024.0 * 1024.0;

struct Stack {
    daemon: Daemon,
    _companion: Process,
    gateway: u16,
    grpc: u16,
    metrics: u16,
    directory: TempDir,
}

impl Stack {
    fn start() -> Self {
        let directory = TempDir::new().expect("a directory");
        let [gateway, grpc, metrics] = [free_port(), free_port(), free_port()];
        let daemon = Daemon::serving(Export::new([row(KEY).id("canary")]));
        let config = format!(
            "server = {{ keyward = {:?}, deadline = \"5s\", idle_timeout = \"1s\" }}\n\
             metrics = {{ listen = \"127.0.0.1:{metrics}\", admin = {:?} }}\n\
             [[gateways]]\nname = \"g\"\nkind = \"traefik\"\nlisten = \"127.0.0.1:{gateway}\"\n\
             [[gateways]]\nname = \"h\"\nkind = \"envoy-grpc\"\nlisten = \"127.0.0.1:{grpc}\"\n",
            daemon.socket(),
            daemon.admin_socket(),
        );
        fs::write(directory.path().join("http.toml"), config).expect("writes");
        let companion = start_companion(directory.path());
        Self { daemon, _companion: companion, gateway, grpc, metrics, directory }
    }

    /// Whether a well-formed check is answered as ever.
    fn assert_stands(&self) {
        let key = format!("X-API-Key: {KEY}");
        let headers = ["X-Forwarded-Method: GET", "X-Forwarded-Uri: /", &key];
        assert_eq!(send(self.gateway, "GET", "/", &headers).status, 200);
        assert_eq!(send(self.gateway, "GET", "/", &headers[..2]).status, 401);
        assert!(self.daemon.status().ready);
    }

    /// Resident memory of `keyward http` in bytes.
    fn memory(&self) -> f64 {
        let exposition = send(self.metrics, "GET", "/metrics", &[]).body;
        let value = exposition.lines().find_map(|line| line.strip_prefix("process_resident_memory_bytes "));
        value.expect("a metric").parse().expect("a number")
    }

    /// Sends bytes in two parts to a port, and returns all that comes back until the end of the
    /// connection.
    fn converse(&self, port: u16, bytes: &[u8], random: &mut Random) -> Vec<u8> {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("connects");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("sets");
        let (first, second) = bytes.split_at(random.below(bytes.len() + 1));
        // It may refuse the request before it has all of it.
        let _ = stream.write_all(first).and_then(|()| stream.write_all(second));
        // A connection that is closed on one side may get no reply. After what is whole, the server ends it:
        // it refuses what is malformed, and the rest asks for it.
        let is_whole = match port {
            port if port == self.grpc => bytes.ends_with(&GOAWAY),
            _ => bytes.windows(END.len()).any(|window| window == END),
        };
        if !is_whole {
            let _ = stream.shutdown(Shutdown::Write);
        }
        let mut reply = Vec::new();
        match stream.read_to_end(&mut reply) {
            Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("hangs: {error}"),
            _ => reply,
        }
    }

    /// Sends many malformed requests to a port. `check` gets each with its reply.
    fn withstand(&self, port: u16, malformed: fn(&mut Random) -> Vec<u8>, check: impl Fn(&[u8], &[u8])) {
        let mut random = Random::new(1);
        // The first ones fill the buffers and the allocator's caches.
        for _ in 0..REQUESTS / 4 {
            self.converse(port, &malformed(&mut random), &mut random);
        }
        let before = self.memory();
        for number in 0..REQUESTS {
            let request = malformed(&mut random);
            check(&request, &self.converse(port, &request, &mut random));
            if number % 100 == 0 {
                self.assert_stands();
            }
        }
        self.assert_stands();
        let growth = self.memory() - before;
        assert!(growth < MAX_GROWTH, "memory grew by {growth} bytes");
        let log = fs::read_to_string(self.directory.path().join("http.log")).expect("a log");
        assert!(!log.contains(KEY) && !log.contains("panicked"), "{log}");
    }
}

/// The end of the headers of a request.
const END: &[u8] = b"\r\n\r\n";

/// Headers of a check that would be let through.
fn valid_headers() -> String {
    format!("Connection: close\r\nX-Forwarded-Method: GET\r\nX-Forwarded-Uri: /\r\nX-API-Key: {KEY}\r\n")
}

/// A malformed request.
fn malformed(random: &mut Random) -> Vec<u8> {
    let valid = valid_headers();
    let length = 1 + random.below(100_000);
    let text = match random.below(22) {
        // What proxies read in different ways: request smuggling.
        0 => format!("POST / HTTP/1.1\r\n{valid}Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcde"),
        1 => format!("POST / HTTP/1.1\r\n{valid}Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"),
        2 => format!("POST / HTTP/1.1\r\n{valid}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
        3 => format!("POST / HTTP/1.1\r\n{valid}Content-Length: +4\r\n\r\nabcd"),
        4 => format!("POST / HTTP/1.1\r\n{valid}Content-Length: 99999999999999999999999\r\n\r\n"),
        5 => format!("GET / HTTP/1.1\r\nX : y\r\n{valid}\r\n"),
        6 => format!("GET / HTTP/1.1\r\n {valid}\r\n"),
        7 => format!("GET / HTTP/1.1\r\n{valid}X: a\0b\r\n\r\n"),
        8 => format!("GET  / HTTP/1.1\r\n{valid}\r\n"),
        9 => format!("GET / HTTP/1.1 extra\r\n{valid}\r\n"),
        10 => format!("GET /\u{1} HTTP/1.1\r\n{valid}\r\n"),
        11 => format!("GET / HTTP/3.7\r\n{valid}\r\n"),
        12 => format!("G\u{fc}T / HTTP/1.1\r\n{valid}\r\n"),
        // More than the limits.
        13 => format!("GET /{} HTTP/1.1\r\n{valid}\r\n", "a".repeat(70_000 + length)),
        14 => format!("GET / HTTP/1.1\r\nX: {}\r\n{valid}\r\n", "a".repeat(70_000 + length)),
        15 => format!("GET / HTTP/1.1\r\n{}{valid}\r\n", "X: y\r\n".repeat(200)),
        // Several keys, or one that is not whole.
        16 => format!("GET / HTTP/1.1\r\n{valid}X-API-Key: other\r\n\r\n"),
        17 => format!("GET / HTTP/1.1\r\n{valid}Authorization: Bearer {KEY},{KEY}\r\n\r\n"),
        // Other protocols.
        18 => "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_owned(),
        19 => return [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], &noise(random, 500)].concat(),
        20 => return noise(random, length),
        // Not whole.
        _ => {
            let request = format!("GET / HTTP/1.1\r\n{valid}\r\n");
            let end = 1 + random.below(request.len() - 2);
            request[..end].to_owned()
        }
    };
    text.into_bytes()
}

fn noise(random: &mut Random, length: usize) -> Vec<u8> {
    (0..length).map(|_| random.number() as u8).collect()
}

/// The frame GOAWAY of HTTP/2: no calls follow.
const GOAWAY: [u8; 17] = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A field of a message: bytes, or another message.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut length = bytes.len();
    let mut field = vec![number << 3 | 2];
    while length > 0x7f {
        field.push(length as u8 | 0x80);
        length >>= 7;
    }
    field.push(length as u8);
    [field, bytes.to_vec()].concat()
}

/// Headers of a call to this path, without a table and without Huffman coding (RFC 7541, section 6.2.2).
fn call_headers(path: &str) -> Vec<u8> {
    let headers =
        [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "h"), ("te", "trailers")];
    let literal = |text: &str| [&[text.len() as u8], text.as_bytes()].concat();
    headers.iter().flat_map(|(name, value)| [vec![0], literal(name), literal(value)].concat()).collect()
}

/// All of a connection of HTTP/2 with one call, which has this body.
fn call(path: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(4, 0, 0, &[]));
    bytes.extend(frame(1, 4, 1, &call_headers(path)));
    for chunk in body.chunks(16_384) {
        bytes.extend(frame(0, 0, 1, chunk));
    }
    bytes.extend(frame(0, 1, 1, &[]));
    bytes.extend(GOAWAY);
    bytes
}

const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";

/// A message with its prefix (gRPC over HTTP/2, "Length-Prefixed-Message").
fn prefixed(message: &[u8]) -> Vec<u8> {
    [&[0], &(message.len() as u32).to_be_bytes()[..], message].concat()
}

/// A message about a request with these further fields of `HttpRequest`.
fn message(further: &[u8]) -> Vec<u8> {
    let key = field(3, &[field(1, b"x-api-key"), field(2, KEY.as_bytes())].concat());
    let http = [&key[..], &field(2, b"GET"), &field(4, b"/"), &field(5, b"h"), further].concat();
    field(1, &field(4, &field(2, &http)))
}

/// A malformed call of gRPC.
fn malformed_call(random: &mut Random) -> Vec<u8> {
    let valid = message(&[]);
    let length = 1 + random.below(100_000);
    let header = |name: &[u8], value: &[u8]| field(3, &[field(1, name), field(2, value)].concat());
    match random.below(17) {
        0 => call("/envoy.service.auth.v2.Authorization/Check", &prefixed(&valid)),
        1 => call("*", &prefixed(&valid)),
        // The prefix states more than follows, less, more than is allowed, and a compressed message.
        2 => call(CHECK, &[&[0, 0, 1, 0, 0], &valid[..]].concat()),
        3 => call(CHECK, &[&[0, 0, 0, 0, 3], &valid[..]].concat()),
        4 => call(CHECK, &[&[0, 255, 255, 255, 255], &valid[..]].concat()),
        5 => call(CHECK, &[&[1, 0, 0, 0, valid.len() as u8], &valid[..]].concat()),
        6 => call(CHECK, &prefixed(&noise(random, length))),
        7 => call(CHECK, &prefixed(&message(&header(b"x-api-key", b"other")))),
        8 => call(CHECK, &prefixed(&message(&header(b"a b", b"c")))),
        9 => call(CHECK, &prefixed(&message(&header(b"a", b"b\r\nc")))),
        10 => call(CHECK, &prefixed(&message(&header(b"a", b"b").repeat(200)))),
        11 => call(CHECK, &prefixed(&message(&field(4, b"/a/../b")))),
        12 => call(CHECK, &[]),
        // Frames that HTTP/2 does not allow, other protocols, and what is not whole.
        13 => {
            let (kind, flags, stream) =
                (random.number() as u8, random.number() as u8, random.below(4) as u32);
            let payload = random.below(100);
            [call(CHECK, &prefixed(&noise(random, 10))), frame(kind, flags, stream, &noise(random, payload))]
                .concat()
        }
        14 => malformed(random),
        15 => call(CHECK, &prefixed(&message(&header(b"a", &vec![b'b'; 66_000 + length / 2])))),
        _ => {
            let call = call(CHECK, &prefixed(&valid));
            let end = 1 + random.below(call.len() - GOAWAY.len() - 10);
            call[..end].to_vec()
        }
    }
}

#[test]
fn malformed_requests_are_refused_and_leave_nothing_behind() {
    let stack = Stack::start();
    stack.withstand(stack.gateway, malformed, |request, reply| {
        let reply = String::from_utf8_lossy(reply);
        let status = reply.split(' ').nth(1).unwrap_or("none");
        assert!(
            ["none", "400", "401", "403", "405", "411", "413", "414", "431", "501", "505"].contains(&status),
            "{:?}: {reply}",
            String::from_utf8_lossy(request)
        );
    });
}

/// A response that lets a request through names the verdict.
#[test]
fn malformed_calls_are_refused_and_leave_nothing_behind() {
    let stack = Stack::start();
    let names = |reply: &[u8], verdict: &[u8]| reply.windows(verdict.len()).any(|window| window == verdict);
    let mut random = Random::new(1);
    let well_formed = stack.converse(stack.grpc, &call(CHECK, &prefixed(&message(&[]))), &mut random);
    assert!(names(&well_formed, b"ALLOWED") && names(&well_formed, b"canary"));
    stack.withstand(stack.grpc, malformed_call, |request, reply| {
        assert!(
            !names(reply, b"ALLOWED") && !names(reply, b"canary"),
            "{:?}",
            String::from_utf8_lossy(request)
        );
    });
    let again = stack.converse(stack.grpc, &call(CHECK, &prefixed(&message(&[]))), &mut random);
    assert!(names(&again, b"ALLOWED"));
}

/// Each connection sends a byte now and then. They end, and others are served beside them.
#[test]
fn slow_requests_end_and_keep_nothing_from_others() {
    let stack = Stack::start();
    let mut slow: Vec<TcpStream> = (0..dose(100, 500))
        .map(|_| {
            let mut stream = TcpStream::connect(("127.0.0.1", stack.gateway)).expect("connects");
            stream.write_all(b"GET / HTTP/1.1\r\nX: ").expect("writes");
            stream
        })
        .collect();
    for _ in 0..5 {
        stack.assert_stands();
        // A peer that was closed cannot be written to.
        slow.retain_mut(|stream| stream.write_all(b"a").is_ok());
        std::thread::sleep(Duration::from_millis(400));
    }
    for mut stream in slow {
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("sets");
        let mut reply = Vec::new();
        let end = stream.read_to_end(&mut reply);
        assert!(!matches!(end, Err(error) if error.kind() == ErrorKind::WouldBlock), "it is still open");
        assert!(!reply.starts_with(b"HTTP/1.1 200"));
    }
    stack.assert_stands();
}
