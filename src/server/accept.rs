//! Accepting: who may connect, how many, and which worker gets them.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use keyward_protocol::{ErrorCode, ProtocolError};
use tracing::{info, warn};

use crate::audit::{Audit, Peer, Socket};
use crate::config::Clients;
use crate::server::listening::Listening;
use crate::server::worker::Worker;

/// How long nothing is accepted after the system has run out of descriptors or memory, the reserve included: neither spinning
/// nor ending helps.
const BACK_OFF: Duration = Duration::from_millis(100);

/// How often a refusal is logged, at most: whoever is refused can come back thousands of times a second.
const LOG_EVERY: Duration = Duration::from_secs(1);

/// Connections that were turned away, by reason.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    peer: AtomicU64,
    limit: AtomicU64,
    system: AtomicU64,
}

impl Refusals {
    /// Reason and number.
    pub(super) fn by_reason(&self) -> BTreeMap<String, u64> {
        let all = [("peer", &self.peer), ("limit", &self.limit), ("system", &self.system)];
        all.into_iter().map(|(name, count)| (name.to_owned(), count.load(Ordering::Relaxed))).collect()
    }
}

/// One daemon's acceptor.
pub(super) struct Acceptor {
    /// Whom connections are handed to.
    pub(super) workers: Arc<[Worker]>,
    /// Who may connect.
    pub(super) clients: Clients,
    /// How many at once.
    pub(super) max_connections: usize,
    /// Who could not.
    pub(super) refusals: Arc<Refusals>,
    /// Where it is written down.
    pub(super) audit: Audit,
    /// When a refusal was last logged.
    pub(super) logged: Cell<Option<Instant>>,
}

impl Acceptor {
    /// Accepts for ever. A descriptor is kept in reserve: when the system has no other left, the next peer is accepted with
    /// it, to be turned away instead of left waiting. Only where that fails too, the acceptor waits.
    pub(super) async fn run(&self, listening: &Listening) {
        loop {
            match listening.accept().await {
                Ok(stream) => self.admit(stream),
                Err(error) if is_the_peers(&error) => {}
                Err(error) => {
                    self.give_up("cannot accept connections", &error);
                    // Without waiting: the peer may have gone, and the next one may find a descriptor again.
                    match listening.accept_by_reserve().await {
                        Some(Ok(stream)) => {
                            let fault = ProtocolError::new(ErrorCode::TooManyConnections, self.limit(), 0);
                            self.refuse(stream.into_std(), fault);
                        }
                        Some(Err(error)) if !is_the_peers(&error) => tokio::time::sleep(BACK_OFF).await,
                        Some(Err(_)) | None => {}
                    }
                }
            }
        }
    }

    /// Hands a connection to the worker that has the fewest, if it may be served.
    pub(super) fn admit(&self, stream: tokio::net::UnixStream) {
        let peer = match stream.peer_cred() {
            Ok(peer) => peer,
            Err(error) => return self.give_up("cannot tell who connects", &error),
        };
        let stream = match stream.into_std() {
            Ok(stream) => stream,
            Err(error) => return self.give_up("cannot take a connection over", &error),
        };
        let (uid, gid) = (peer.uid(), peer.gid());
        if !self.clients.admit(uid, gid) {
            if self.may_log() {
                let pid = peer.pid();
                info!(
                    uid,
                    gid,
                    pid,
                    "connections refused: not an allowed user or group; more of them are counted only"
                );
            }
            self.refusals.peer.fetch_add(1, Ordering::Relaxed);
            self.audit.refuse_peer(Socket::Verify, Peer { uid, pid: peer.pid() });
            return self.refuse(Ok(stream), ProtocolError::new(ErrorCode::PeerRefused, uid, 0));
        }
        let open: usize = self.workers.iter().map(Worker::open).sum();
        if open >= self.max_connections {
            if self.may_log() {
                warn!(open, "connections refused: max_connections is reached; more of them are counted only");
            }
            self.refusals.limit.fetch_add(1, Ordering::Relaxed);
            return self
                .refuse(Ok(stream), ProtocolError::new(ErrorCode::TooManyConnections, self.limit(), 0));
        }
        if let Some(worker) = self.workers.iter().min_by_key(|worker| worker.open()) {
            worker.counters.connection();
            worker.hand(stream);
        }
    }

    fn may_log(&self) -> bool {
        let due = self.logged.get().is_none_or(|logged| logged.elapsed() >= LOG_EVERY);
        if due {
            self.logged.set(Some(Instant::now()));
        }
        due
    }

    fn limit(&self) -> u32 {
        u32::try_from(self.max_connections).unwrap_or(u32::MAX)
    }

    /// Says why, as far as the socket takes it at once, and closes.
    fn refuse(&self, stream: io::Result<UnixStream>, fault: ProtocolError) {
        let mut frame = Vec::new();
        fault.encode(&mut frame);
        if let Ok(mut stream) = stream {
            let _peer_may_be_gone = stream.write(&frame);
        }
    }

    fn give_up(&self, what: &str, error: &io::Error) {
        if self.may_log() {
            warn!(%error, "{what}");
        }
        self.refusals.system.fetch_add(1, Ordering::Relaxed);
    }
}

/// Whether the connection failed, and not the system.
fn is_the_peers(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}
