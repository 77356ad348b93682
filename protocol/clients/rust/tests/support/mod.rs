//! A scripted daemon, and every kind of client to test against it.
#![allow(dead_code, unreachable_pub, reason = "each program uses a part of it")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use keyward_client::{Client, Debit, Decision, Error, Options, Refund, Request, blocking};
use keyward_protocol as wire;
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

/// Time limit of a test.
const TEST_LIMIT: Duration = Duration::from_secs(60);

/// A deadline that a test does not reach unless it fails.
pub const LONG: Duration = Duration::from_secs(20);

/// A deadline that a test reaches intentionally.
pub const SHORT: Duration = Duration::from_millis(100);

/// Runs a test on a thread of its own, and fails if it exceeds [`TEST_LIMIT`].
pub fn with_time_limit(test: impl FnOnce() + Send + 'static) {
    let (done, wait) = mpsc::channel();
    let thread = thread::spawn(move || {
        test();
        done.send(()).unwrap();
    });
    match wait.recv_timeout(TEST_LIMIT) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("the test exceeds its time limit"),
        _ => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
    }
}

/// Runs a test with every kind of client.
pub fn for_each_client(test: impl Fn(ClientKind) + Send + 'static) {
    with_time_limit(move || {
        for kind in CLIENT_KINDS {
            println!("{kind:?}");
            test(kind);
        }
    });
}

/// Waits until `condition` holds, without sleeping for a fixed time. Panics after [`LONG`].
pub fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let limit = Instant::now() + LONG;
    while !condition() {
        assert!(Instant::now() < limit, "{what} does not happen");
        thread::yield_now();
    }
}

/// A socket, and a thread that runs a script in the role of the daemon.
pub struct ScriptedDaemon {
    pub socket: PathBuf,
    thread: Option<JoinHandle<()>>,
    _directory: TempDir,
}

impl ScriptedDaemon {
    /// Starts `script` with a listener on a new socket.
    pub fn start(script: impl FnOnce(&UnixListener) + Send + 'static) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("keyward.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let thread = Some(thread::spawn(move || script(&listener)));
        Self { socket, thread, _directory: directory }
    }

    /// Waits for the script to end, and passes on its panic.
    pub fn finish(mut self) {
        if let Err(panic) = self.thread.take().unwrap().join() {
            std::panic::resume_unwind(panic);
        }
    }
}

/// One accepted connection.
pub struct Peer {
    pub stream: UnixStream,
    buffer: Vec<u8>,
    /// Number of reads that returned data.
    pub reads: usize,
}

/// The contents of a VERIFY, a REFUND or a DEBIT.
#[derive(Clone, Debug, PartialEq)]
pub struct ReceivedRequest {
    pub id: u32,
    pub cost: u32,
    pub digest: Option<[u8; 32]>,
    pub raw: Option<Vec<u8>>,
    pub scopes: Option<(String, wire::ScopeMode)>,
    pub ip: Option<std::net::Ipv6Addr>,
    pub origin: Option<String>,
    pub environment: Option<String>,
    pub want_metadata: bool,
    pub want_balances: bool,
    pub costs: Vec<(String, u32)>,
    pub kind: wire::FrameKind,
}

/// A WELCOME that accepts both forms of credentials and has no idle timeout.
pub fn default_welcome() -> wire::Welcome<'static> {
    wire::Welcome {
        request_id: 0,
        version: 1,
        min_version: 1,
        max_version: 1,
        credentials: wire::CREDENTIAL_DIGEST | wire::CREDENTIAL_RAW,
        max_length: wire::MAX_REQUEST_LENGTH,
        idle_timeout_ms: 0,
        generation: 1,
        server: "script",
    }
}

impl Peer {
    /// Accepts a connection and does not read HELLO.
    pub fn accept_without_hello(listener: &UnixListener) -> Self {
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        Self { stream, buffer: Vec::new(), reads: 0 }
    }

    /// Accepts a connection and responds to HELLO.
    pub fn accept(listener: &UnixListener) -> Self {
        Self::accept_with(listener, default_welcome())
    }

    /// Accepts a connection and responds to HELLO with `welcome`, whose request id is replaced.
    pub fn accept_with(listener: &UnixListener, welcome: wire::Welcome<'_>) -> Self {
        let mut peer = Self::accept_without_hello(listener);
        let request_id = peer.read_hello();
        let mut out = Vec::new();
        wire::Welcome { request_id, ..welcome }.encode(&mut out);
        peer.send(&out);
        peer.reads = 0;
        peer
    }

    /// Reads a HELLO and returns its request id.
    pub fn read_hello(&mut self) -> u32 {
        let frame = self.read_frame().expect("a frame");
        match decode(&frame) {
            wire::Request::Hello(hello) => hello.request_id,
            other => panic!("not a HELLO: {other:?}"),
        }
    }

    /// The next request; `None` at the end of the stream.
    pub fn read_request(&mut self) -> Option<ReceivedRequest> {
        let frame = self.read_frame()?;
        let (verify, kind) = match decode(&frame) {
            wire::Request::Verify(verify) => (verify, wire::FrameKind::Verify),
            wire::Request::Refund(refund) => (as_verify(refund), wire::FrameKind::Refund),
            wire::Request::Debit(debit) => (as_verify(debit), wire::FrameKind::Debit),
            wire::Request::Hello(_) => panic!("a second HELLO"),
        };
        let (digest, raw) = match verify.credential {
            wire::Credential::Digest(digest) => (Some(digest), None),
            wire::Credential::RawKey(key) => (None, Some(key.to_vec())),
        };
        Some(ReceivedRequest {
            id: verify.request_id,
            cost: verify.cost,
            digest,
            raw,
            scopes: verify.scopes.map(|scopes| (scopes.names.to_owned(), scopes.mode)),
            ip: verify.ip,
            origin: verify.origin.map(str::to_owned),
            environment: verify.environment.map(str::to_owned),
            want_metadata: verify.want_metadata,
            want_balances: verify.want_balances,
            costs: verify
                .costs
                .iter()
                .flat_map(wire::Costs::iter)
                .map(|(name, cost)| (name.to_owned(), cost))
                .collect(),
            kind,
        })
    }

    /// Responds to a malformed request as the daemon would, and returns the error.
    pub fn reject_malformed(&mut self) -> wire::ProtocolError {
        let frame = self.read_frame().expect("a request");
        let wire::ParsedFrame::Complete { header, body, .. } =
            wire::parse_frame(&frame, wire::MAX_REQUEST_LENGTH)
        else {
            panic!("not a frame")
        };
        let error = wire::Request::decode(&header, body).expect_err("a malformed request");
        self.send_error(error.code, error.detail, error.request_id);
        error
    }

    /// Responds until the client disconnects, like a daemon with a pepper. Returns the number of
    /// refused digests.
    pub fn serve_raw_keys_only(&mut self) -> usize {
        let mut refused = 0;
        while let Some(request) = self.read_request() {
            if request.digest.is_some() {
                refused += 1;
                self.send_error(
                    wire::ErrorCode::CredentialRefused,
                    u32::from(wire::CREDENTIAL_RAW),
                    request.id,
                );
            } else {
                self.allow(&request);
            }
        }
        refused
    }

    /// The next frame; `None` at the end of the stream.
    fn read_frame(&mut self) -> Option<Vec<u8>> {
        loop {
            if let wire::ParsedFrame::Complete { size, .. } =
                wire::parse_frame(&self.buffer, wire::MAX_REQUEST_LENGTH)
            {
                return Some(self.buffer.drain(..size).collect());
            }
            let mut space = [0; 16 * 1024];
            match self.stream.read(&mut space) {
                Ok(0) => return None,
                Ok(count) => self.buffer.extend_from_slice(&space[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("cannot read from the client: {error}"),
            }
            self.reads += 1;
        }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Allows a request. The key id in the answer is derived from the digest of the key.
    pub fn allow(&mut self, request: &ReceivedRequest) {
        let frame = allowed_frame(request);
        self.send(&frame);
    }

    /// Allows the next request and returns it.
    pub fn allow_next(&mut self) -> ReceivedRequest {
        let request = self.read_request().unwrap();
        self.allow(&request);
        request
    }

    /// Refuses the credential of the next request, with `accepted` as the accepted forms, and
    /// allows the request after that. Returns both.
    pub fn refuse_then_allow(&mut self, accepted: u32) -> [ReceivedRequest; 2] {
        let refused = self.read_request().unwrap();
        self.send_error(wire::ErrorCode::CredentialRefused, accepted, refused.id);
        [refused, self.allow_next()]
    }

    /// Sends an ERROR. Does not close the connection.
    pub fn send_error(&mut self, code: wire::ErrorCode, detail: u32, request_id: u32) {
        let mut out = Vec::new();
        wire::ProtocolError::new(code, detail, request_id).encode(&mut out);
        self.send(&out);
    }

    /// Allows all requests until the client disconnects.
    pub fn serve(&mut self) {
        while let Some(request) = self.read_request() {
            let frame = allowed_frame(&request);
            if self.stream.write_all(&frame).is_err() {
                return;
            }
        }
    }
}

/// The fields that a REFUND or a DEBIT has in common with VERIFY.
fn as_verify<const KIND: u8>(adjustment: wire::Adjustment<'_, KIND>) -> wire::Verify<'_> {
    let wire::Adjustment { request_id, cost, credential, costs, want_balances } = adjustment;
    wire::Verify { cost, costs, want_balances, ..wire::Verify::new(request_id, credential) }
}

fn decode(frame: &[u8]) -> wire::Request<'_> {
    let wire::ParsedFrame::Complete { header, body, .. } = wire::parse_frame(frame, wire::MAX_REQUEST_LENGTH)
    else {
        panic!("not a frame")
    };
    wire::Request::decode(&header, body).unwrap()
}

/// The key id that the script assigns to a key with this digest.
pub fn key_id_from_digest(digest: &[u8; 32]) -> String {
    digest[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The key id that the script assigns to `key`.
pub fn expected_key_id(key: &str) -> String {
    key_id_from_digest(&Sha256::digest(key.as_bytes()).into())
}

/// The ANSWER that allows `request`.
pub fn allowed_frame(request: &ReceivedRequest) -> Vec<u8> {
    let digest = request.digest.unwrap_or_else(|| Sha256::digest(request.raw.as_ref().unwrap()).into());
    let id = key_id_from_digest(&digest);
    let answer =
        wire::Answer { key_id: &id, ..wire::Answer::without_key(request.id, wire::Verdict::Allowed, 1) };
    let mut out = Vec::new();
    answer.encode(&mut out);
    out
}

/// A kind of client, with or without busy polling.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ClientKind {
    Blocking,
    CurrentThread,
    MultiThread,
    SpinningBlocking,
    SpinningCurrentThread,
    SpinningMultiThread,
}

pub const CLIENT_KINDS: [ClientKind; 6] = [
    ClientKind::Blocking,
    ClientKind::CurrentThread,
    ClientKind::MultiThread,
    ClientKind::SpinningBlocking,
    ClientKind::SpinningCurrentThread,
    ClientKind::SpinningMultiThread,
];

/// How long the spinning clients spin: the maximum, to make races more likely.
const BUSY_POLL: Duration = Duration::from_millis(1);

pub enum AnyClient {
    Blocking(Box<blocking::Client>),
    Async(Runtime, Client),
}

impl ClientKind {
    pub fn client(self, options: Options) -> AnyClient {
        let options = match self {
            Self::Blocking | Self::CurrentThread | Self::MultiThread => options,
            Self::SpinningBlocking | Self::SpinningCurrentThread | Self::SpinningMultiThread => {
                options.busy_poll(BUSY_POLL)
            }
        };
        match self {
            Self::Blocking | Self::SpinningBlocking => {
                AnyClient::Blocking(Box::new(blocking::Client::with_options(options)))
            }
            kind => AnyClient::Async(kind.runtime(), Client::with_options(options)),
        }
    }

    pub fn connect_to(self, socket: &Path) -> AnyClient {
        self.client(Options::new(socket).deadline(LONG))
    }

    pub fn runtime(self) -> Runtime {
        let mut builder = if matches!(self, Self::MultiThread | Self::SpinningMultiThread) {
            Builder::new_multi_thread()
        } else {
            Builder::new_current_thread()
        };
        builder.worker_threads(2).enable_all().build().unwrap()
    }
}

impl AnyClient {
    pub fn verify(&mut self, request: &Request<'_>) -> Result<Decision, Error> {
        match self {
            Self::Blocking(client) => client.verify(request),
            Self::Async(runtime, client) => runtime.block_on(client.verify(request)),
        }
    }

    pub fn refund(&mut self, refund: &Refund<'_>) -> Result<Decision, Error> {
        match self {
            Self::Blocking(client) => client.refund(refund),
            Self::Async(runtime, client) => runtime.block_on(client.refund(refund)),
        }
    }

    pub fn debit(&mut self, debit: &Debit<'_>) -> Result<Decision, Error> {
        match self {
            Self::Blocking(client) => client.debit(debit),
            Self::Async(runtime, client) => runtime.block_on(client.debit(debit)),
        }
    }

    pub fn verify_many(&mut self, requests: &[Request<'_>]) -> Vec<Result<Decision, Error>> {
        match self {
            Self::Blocking(client) => client.verify_many(requests),
            Self::Async(runtime, client) => runtime.block_on(client.verify_many(requests)),
        }
    }

    /// Sets the deadline of further calls, on the same connection.
    pub fn set_deadline(&mut self, deadline: Duration) {
        match self {
            Self::Blocking(client) => client.set_deadline(deadline),
            Self::Async(_, client) => *client = client.with_deadline(deadline),
        }
    }

    /// Verifies `key`, and checks that the answer is about this key.
    pub fn expect_allowed(&mut self, key: &str) {
        let decision = self.verify(&Request::new(key)).unwrap();
        assert!(decision.is_allowed());
        assert_eq!(decision.key_id(), Some(expected_key_id(key).as_str()));
    }
}
