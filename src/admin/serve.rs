//! The daemon's side of the admin socket.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::admin::message::{Command, Reply};
pub use crate::audit::Peer;

/// Longest command: one with a path, of which each byte may be written as `\u0041`, and some sixty bytes more.
const MAX_LINE: u64 = 6 * 4096 + 256;

/// Connections at once: operators and their scripts, not applications.
const MAX_CONNECTIONS: usize = 32;

/// Those of them that may wait for a reload or a check, which can take long: a revocation must find a place.
const MAX_WAITING: usize = MAX_CONNECTIONS / 2;

/// How long a peer may take to send its command, and to read its answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often refusals are logged, at most.
const LOG_EVERY: Duration = Duration::from_secs(1);

/// How long nothing is accepted after the system has run out of something.
const BACK_OFF: Duration = Duration::from_millis(100);

/// Carries commands out.
pub trait Operate {
    /// Answers one command of `peer`.
    fn operate(&self, command: Command, peer: Peer) -> impl Future<Output = Reply>;

    /// `peer` was turned away.
    fn refused(&self, peer: Peer);
}

/// Accepts for ever. `admins` may connect, beside root and the daemon's own user. To be run on a `LocalSet`.
pub async fn serve(listener: UnixListener, admins: Box<[u32]>, operator: Rc<impl Operate + 'static>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let waiting = Rc::new(Semaphore::new(MAX_WAITING));
    let logged = Cell::new(None);
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((mut stream, _)) => match peer(&stream, &admins, &*operator, &logged) {
                Some(peer) => {
                    let (operator, waiting) = (Rc::clone(&operator), Rc::clone(&waiting));
                    tokio::task::spawn_local(async move {
                        let _place = place;
                        if let Err(error) = converse(stream, peer, &*operator, &waiting).await {
                            debug!(%error, "admin connection");
                        }
                    });
                }
                None => {
                    let reply =
                        Reply::error("only root, the daemon's own user and admin_uids may use this socket");
                    let _peer_may_be_gone = timeout(PATIENCE, send(&mut stream, &reply)).await;
                }
            },
            Err(error) => {
                warn!(%error, "cannot accept admin connections");
                tokio::time::sleep(BACK_OFF).await;
            }
        }
    }
}

/// Who is there, if they may be.
fn peer(
    stream: &UnixStream,
    admins: &[u32],
    operator: &impl Operate,
    logged: &Cell<Option<Instant>>,
) -> Option<Peer> {
    let credentials = stream.peer_cred().ok()?;
    let peer = Peer { uid: credentials.uid(), pid: credentials.pid() };
    let own = rustix::process::geteuid().as_raw();
    let allowed = peer.uid == 0 || peer.uid == own || admins.contains(&peer.uid);
    if !allowed {
        if logged.get().is_none_or(|logged: Instant| logged.elapsed() >= LOG_EVERY) {
            logged.set(Some(Instant::now()));
            warn!(uid = peer.uid, pid = peer.pid, "admin connection refused; more of them are counted only");
        }
        operator.refused(peer);
    }
    allowed.then_some(peer)
}

/// Answers commands, one a line, until the peer has no more.
async fn converse(
    mut stream: UnixStream,
    peer: Peer,
    operator: &impl Operate,
    waiting: &Semaphore,
) -> io::Result<()> {
    let (read, mut write) = stream.split();
    let mut lines = BufReader::new(read);
    loop {
        let mut line = Vec::new();
        let mut bounded = (&mut lines).take(MAX_LINE);
        timeout(PATIENCE, bounded.read_until(b'\n', &mut line)).await??;
        if line.is_empty() {
            return Ok(());
        }
        let whole = line.ends_with(b"\n");
        let reply = match serde_json::from_slice(&line) {
            Ok(command @ (Command::Reload { .. } | Command::Check { .. })) => match waiting.try_acquire() {
                Ok(_place) => operator.operate(command, peer).await,
                Err(_) => Reply::error("too many reloads and checks are waiting; try again"),
            },
            Ok(command) => operator.operate(command, peer).await,
            Err(error) => Reply::error(format!("not a command: {error}")),
        };
        timeout(PATIENCE, send(&mut write, &reply)).await??;
        if !whole {
            return Ok(());
        }
    }
}

async fn send(stream: &mut (impl AsyncWriteExt + Unpin), reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    stream.write_all(&line).await
}
