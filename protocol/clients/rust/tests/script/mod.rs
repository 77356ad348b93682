//! A daemon that does what a test tells it to, and the clients to try on it.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use keyward_client::{Client, Decision, Error, Options, Refund, Request, blocking};
use keyward_protocol as wire;
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

/// No test takes longer.
const TEST_LIMIT: Duration = Duration::from_secs(60);

/// A deadline that is never reached in a test that does not mean to.
pub const LONG: Duration = Duration::from_secs(20);

/// A deadline that tests mean to reach.
pub const SHORT: Duration = Duration::from_millis(100);

/// Runs a test on a thread of its own, and fails it when it hangs.
pub fn limited(test: impl FnOnce() + Send + 'static) {
    let (done, wait) = mpsc::channel();
    let thread = thread::spawn(move || {
        test();
        done.send(()).unwrap();
    });
    match wait.recv_timeout(TEST_LIMIT) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("the test hangs"),
        _ => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
    }
}

/// Tries a script on every form of client.
pub fn each(test: impl Fn(Form) + Send + 'static) {
    limited(move || {
        for form in FORMS {
            println!("{form:?}");
            test(form);
        }
    });
}

/// Waits until `condition` holds, without sleeping for a fixed time.
pub fn until(what: &str, condition: impl Fn() -> bool) {
    let limit = Instant::now() + LONG;
    while !condition() {
        assert!(Instant::now() < limit, "{what} does not come about");
        thread::yield_now();
    }
}

/// A socket, and a thread that plays the daemon on it.
pub struct Daemon {
    pub socket: PathBuf,
    thread: Option<JoinHandle<()>>,
    _directory: TempDir,
}

impl Daemon {
    pub fn play(script: impl FnOnce(&UnixListener) + Send + 'static) -> Self {
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
    /// How often something has been read.
    pub reads: usize,
}

/// A VERIFY, or a REFUND, as it came.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    pub id: u32,
    pub cost: u32,
    pub digest: Option<[u8; 32]>,
    pub raw: Option<Vec<u8>>,
    pub scopes: Option<(String, wire::ScopeMode)>,
    pub ip: Option<std::net::Ipv6Addr>,
    pub origin: Option<String>,
    pub environment: Option<String>,
    pub want_metadata: bool,
    /// What only a REFUND has: the limit to give back to.
    pub refund: Option<Option<String>>,
}

pub fn welcome() -> wire::Welcome<'static> {
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
    pub fn accept(listener: &UnixListener) -> Self {
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        Self { stream, buffer: Vec::new(), reads: 0 }
    }

    /// Accepts, and answers HELLO.
    pub fn greet(listener: &UnixListener) -> Self {
        Self::greet_with(listener, welcome())
    }

    pub fn greet_with(listener: &UnixListener, welcome: wire::Welcome<'_>) -> Self {
        let mut peer = Self::accept(listener);
        let request_id = peer.hello();
        let mut out = Vec::new();
        wire::Welcome { request_id, ..welcome }.encode(&mut out);
        peer.send(&out);
        peer.reads = 0;
        peer
    }

    pub fn hello(&mut self) -> u32 {
        let frame = self.frame().expect("a HELLO");
        match decode(&frame) {
            wire::Request::Hello(hello) => hello.request_id,
            other => panic!("not a HELLO: {other:?}"),
        }
    }

    /// The next request; `None` at the end of the stream.
    pub fn asked(&mut self) -> Option<Asked> {
        let frame = self.frame()?;
        let (verify, refund) = match decode(&frame) {
            wire::Request::Verify(verify) => (verify, None),
            wire::Request::Refund(wire::Refund { request_id, cost, credential, limit }) => {
                let verify = wire::Verify { cost, ..wire::Verify::new(request_id, credential) };
                (verify, Some(limit.map(str::to_owned)))
            }
            wire::Request::Hello(_) => panic!("a second HELLO"),
        };
        let (digest, raw) = match verify.credential {
            wire::Credential::Digest(digest) => (Some(digest), None),
            wire::Credential::RawKey(key) => (None, Some(key.to_vec())),
        };
        Some(Asked {
            id: verify.request_id,
            cost: verify.cost,
            digest,
            raw,
            scopes: verify.scopes.map(|scopes| (scopes.names.to_owned(), scopes.mode)),
            ip: verify.ip,
            origin: verify.origin.map(str::to_owned),
            environment: verify.environment.map(str::to_owned),
            want_metadata: verify.want_metadata,
            refund,
        })
    }

    /// Answers a request that is no legal frame, as the daemon would.
    pub fn refuse_malformed(&mut self) -> wire::ProtocolError {
        let frame = self.frame().expect("a request");
        let wire::ParsedFrame::Complete { header, body, .. } =
            wire::parse_frame(&frame, wire::MAX_REQUEST_LENGTH)
        else {
            panic!("not a frame")
        };
        let fault = wire::Request::decode(&header, body).expect_err("a malformed request");
        self.fault(fault.code, fault.detail, fault.request_id);
        fault
    }

    /// Answers until the client leaves, as a daemon with a pepper: counts the digests that it refuses.
    pub fn serve_raw(&mut self) -> usize {
        let mut refused = 0;
        while let Some(asked) = self.asked() {
            if asked.digest.is_some() {
                refused += 1;
                self.fault(wire::ErrorCode::CredentialRefused, u32::from(wire::CREDENTIAL_RAW), asked.id);
            } else {
                self.allow(&asked);
            }
        }
        refused
    }

    fn frame(&mut self) -> Option<Vec<u8>> {
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
                Err(error) => panic!("the client says nothing: {error}"),
            }
            self.reads += 1;
        }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Says yes, and names the key by its digest, whichever way the key came.
    pub fn allow(&mut self, asked: &Asked) {
        let frame = allowed(asked);
        self.send(&frame);
    }

    /// Says yes to the next request, which it returns.
    pub fn allow_next(&mut self) -> Asked {
        let asked = self.asked().unwrap();
        self.allow(&asked);
        asked
    }

    /// Refuses the next request for the form of its key, and says yes to it in one of `accepted`; returns both.
    pub fn allow_only_as(&mut self, accepted: u32) -> [Asked; 2] {
        let refused = self.asked().unwrap();
        self.fault(wire::ErrorCode::CredentialRefused, accepted, refused.id);
        [refused, self.allow_next()]
    }

    pub fn fault(&mut self, code: wire::ErrorCode, detail: u32, request_id: u32) {
        let mut out = Vec::new();
        wire::ProtocolError::new(code, detail, request_id).encode(&mut out);
        self.send(&out);
    }

    /// Answers until the client leaves.
    pub fn serve(&mut self) {
        while let Some(asked) = self.asked() {
            let frame = allowed(&asked);
            if self.stream.write_all(&frame).is_err() {
                return;
            }
        }
    }
}

fn decode(frame: &[u8]) -> wire::Request<'_> {
    let wire::ParsedFrame::Complete { header, body, .. } = wire::parse_frame(frame, wire::MAX_REQUEST_LENGTH)
    else {
        panic!("not a frame")
    };
    wire::Request::decode(&header, body).unwrap()
}

/// The id that the script gives to a key.
pub fn key_id(digest: &[u8; 32]) -> String {
    digest[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn key_id_of(key: &str) -> String {
    key_id(&Sha256::digest(key.as_bytes()).into())
}

pub fn allowed(asked: &Asked) -> Vec<u8> {
    let digest = asked.digest.unwrap_or_else(|| Sha256::digest(asked.raw.as_ref().unwrap()).into());
    let id = key_id(&digest);
    let answer =
        wire::Answer { key_id: &id, ..wire::Answer::without_key(asked.id, wire::Verdict::Allowed, 1) };
    let mut out = Vec::new();
    answer.encode(&mut out);
    out
}

/// The clients that every script is tried on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Form {
    Blocking,
    CurrentThread,
    MultiThread,
    SpinningBlocking,
    SpinningCurrentThread,
    SpinningMultiThread,
}

pub const FORMS: [Form; 6] = [
    Form::Blocking,
    Form::CurrentThread,
    Form::MultiThread,
    Form::SpinningBlocking,
    Form::SpinningCurrentThread,
    Form::SpinningMultiThread,
];

/// How long the spinning ones do: as long as is possible, so that what could go wrong goes wrong more often.
const BUSY_POLL: Duration = Duration::from_millis(1);

pub enum AnyClient {
    Blocking(Box<blocking::Client>),
    Async(Runtime, Client),
}

impl Form {
    pub fn client(self, options: Options) -> AnyClient {
        let options = match self {
            Self::Blocking | Self::CurrentThread | Self::MultiThread => options,
            _spinning => options.busy_poll(BUSY_POLL),
        };
        match self {
            Self::Blocking | Self::SpinningBlocking => {
                AnyClient::Blocking(Box::new(blocking::Client::with_options(options)))
            }
            form => AnyClient::Async(form.runtime(), Client::with_options(options)),
        }
    }

    pub fn at(self, socket: &Path) -> AnyClient {
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

    pub fn verify_many(&mut self, requests: &[Request<'_>]) -> Vec<Result<Decision, Error>> {
        match self {
            Self::Blocking(client) => client.verify_many(requests),
            Self::Async(runtime, client) => runtime.block_on(client.verify_many(requests)),
        }
    }

    /// The deadline of the calls that follow, on the same connection.
    pub fn set_deadline(&mut self, deadline: Duration) {
        match self {
            Self::Blocking(client) => client.set_deadline(deadline),
            Self::Async(_, client) => *client = client.with_deadline(deadline),
        }
    }

    /// Asks about `key`, and checks that the answer is about this key.
    pub fn expect_allowed(&mut self, key: &str) {
        let decision = self.verify(&Request::new(key)).unwrap();
        assert!(decision.is_allowed());
        assert_eq!(decision.key_id(), Some(key_id_of(key).as_str()));
    }
}
