//! Accepts client connections, checks their peers and how many are open, and assigns each to a
//! worker.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use keyward_protocol::{ErrorCode, ProtocolError};
use tracing::{info, warn};

use crate::audit::{Audit, Peer, Socket};
use crate::config::{Adjusters, Clients};
use crate::server::connection_limits::{LimitReached, OpenConnections};
use crate::server::listening_socket::ListeningSocket;
use crate::server::worker::{AssignedConnection, Worker};
use keyward_service::listener::shut_down;
use keyward_service::log_limit::LogLimit;

/// The pause after the system has run out of descriptors or memory and the reserve descriptor did
/// not help either.
const BACK_OFF: Duration = Duration::from_millis(100);

/// Accepts client connections.
pub(super) struct Acceptor {
    workers: Arc<[Worker]>,
    clients: Clients,
    adjusters: Adjusters,
    open: OpenConnections,
    refusals: Arc<RefusalCounters>,
    audit: Audit,
    log_limit: LogLimit,
}

impl Acceptor {
    /// Accepts connections of `clients`, up to the limits of `open`. `adjusters` may send more than
    /// VERIFY.
    pub(super) fn new(
        workers: Arc<[Worker]>,
        (clients, adjusters): (Clients, Adjusters),
        open: OpenConnections,
        refusals: Arc<RefusalCounters>,
        audit: Audit,
    ) -> Self {
        Self { workers, clients, adjusters, open, refusals, audit, log_limit: LogLimit::default() }
    }

    /// Accepts connections forever. When the process has no descriptor left, the next connection is
    /// accepted with a reserve descriptor and rejected at once, so that the peer does not wait. If
    /// that fails too, the acceptor backs off.
    pub(super) async fn run(&self, socket: &ListeningSocket) {
        loop {
            match socket.accept().await {
                Ok(stream) => self.admit(stream),
                Err(error) if is_connection_error(&error) => {}
                Err(error) => {
                    self.count_system_error("cannot accept connections", &error);
                    // Does not wait: the peer may be gone, and a descriptor may be free for the
                    // next one.
                    match socket.accept_with_reserve().await {
                        Some(Ok(stream)) => {
                            let limits = self.open.limits();
                            reject(stream.into_std(), too_many_connections(limits.total));
                        }
                        Some(Err(error)) if !is_connection_error(&error) => {
                            tokio::time::sleep(BACK_OFF).await;
                        }
                        Some(Err(_)) | None => {}
                    }
                }
            }
        }
    }

    /// Shuts the socket down, unless systemd owns it, and admits the connections in its backlog: the
    /// workers tell them that the daemon is shutting down. To be called when nothing else accepts
    /// from the socket.
    pub(super) fn close(&self, socket: &ListeningSocket) {
        socket.shut_down();
        let mut has_descriptors = true;
        while let Some(accepted) = socket.accept_pending() {
            match accepted {
                Ok(stream) if has_descriptors => self.admit(stream),
                Ok(stream) => reject(stream.into_std(), ProtocolError::new(ErrorCode::ShuttingDown, 0, 0)),
                Err(error) if is_connection_error(&error) => {}
                Err(error) => {
                    self.count_system_error("cannot accept the last connections", &error);
                    has_descriptors = false;
                    // The reserve is released once, and is enough for one connection at a time.
                    if !socket.release_reserve() {
                        break;
                    }
                }
            }
        }
    }

    /// Assigns a connection to the worker with the fewest connections, or rejects it.
    fn admit(&self, stream: tokio::net::UnixStream) {
        let peer = match stream.peer_cred() {
            Ok(peer) => peer,
            Err(error) => return self.count_system_error("cannot read the credentials of a peer", &error),
        };
        let stream = match stream.into_std() {
            Ok(stream) => stream,
            Err(error) => return self.count_system_error("cannot take over a connection", &error),
        };
        let (uid, gid) = (peer.uid(), peer.gid());
        if !self.clients.allows(uid, gid) {
            if self.log_limit.may_log() {
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
            return reject(Ok(stream), ProtocolError::new(ErrorCode::PeerRefused, uid, 0));
        }
        let guard = match self.open.add(uid) {
            Ok(guard) => guard,
            Err(reached) => return reject(Ok(stream), self.refuse_surplus(uid, reached)),
        };
        if let Some(worker) = self.workers.iter().min_by_key(|worker| worker.open_connections()) {
            worker.counters.count_connection();
            let permissions = self.adjusters.permissions(uid);
            worker.assign(AssignedConnection { stream, permissions, guard });
        }
    }

    /// Counts and logs a connection above a limit, and returns the error for its peer.
    fn refuse_surplus(&self, uid: u32, reached: LimitReached) -> ProtocolError {
        let limits = self.open.limits();
        let (counter, limit, setting) = match reached {
            LimitReached::Total => (&self.refusals.limit, limits.total, "server.max_connections"),
            LimitReached::PerUid => (&self.refusals.uid_limit, limits.per_uid, "uid_quotas.connections"),
        };
        if self.log_limit.may_log() {
            warn!(uid, limit, "connections refused: {setting} is reached; more of them are counted only");
        }
        counter.fetch_add(1, Ordering::Relaxed);
        too_many_connections(limit)
    }

    fn count_system_error(&self, message: &str, error: &io::Error) {
        if self.log_limit.may_log() {
            warn!(%error, "{message}");
        }
        self.refusals.system.fetch_add(1, Ordering::Relaxed);
    }
}

fn too_many_connections(limit: usize) -> ProtocolError {
    let limit = u32::try_from(limit).unwrap_or(u32::MAX);
    ProtocolError::new(ErrorCode::TooManyConnections, limit, 0)
}

/// Shuts a socket down that no connections were accepted from, and tells the clients in its backlog
/// that the daemon is shutting down.
pub(super) fn dismiss_backlog(socket: &UnixListener) {
    if socket.set_nonblocking(true).is_ok() {
        shut_down(socket);
        while let Ok((stream, _)) = socket.accept() {
            reject(Ok(stream), ProtocolError::new(ErrorCode::ShuttingDown, 0, 0));
        }
    }
}

/// Sends an ERROR as far as the socket takes it at once, and closes the connection.
fn reject(stream: io::Result<UnixStream>, error: ProtocolError) {
    let mut frame = Vec::new();
    error.encode(&mut frame);
    if let Ok(mut stream) = stream {
        // The peer may be gone.
        let _ = stream.write(&frame);
    }
}

/// Whether the error concerns one connection only, and not the listening socket or the system.
fn is_connection_error(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}

/// The number of refused connections, by reason.
#[derive(Debug, Default)]
pub(super) struct RefusalCounters {
    peer: AtomicU64,
    limit: AtomicU64,
    uid_limit: AtomicU64,
    system: AtomicU64,
}

impl RefusalCounters {
    /// The counts by the name of the reason, as `status` reports them.
    pub(super) fn by_reason(&self) -> BTreeMap<String, u64> {
        let all = [
            ("peer", &self.peer),
            ("limit", &self.limit),
            ("uid_limit", &self.uid_limit),
            ("system", &self.system),
        ];
        all.into_iter().map(|(name, count)| (name.to_owned(), count.load(Ordering::Relaxed))).collect()
    }
}
