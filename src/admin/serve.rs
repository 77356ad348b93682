//! The daemon's side of the admin socket.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

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

/// How long a peer may take to send its command, and to read its answer.
const PATIENCE: Duration = Duration::from_secs(10);

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
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((mut stream, _)) => match peer(&stream, &admins, &*operator) {
                Some(peer) => {
                    let operator = Rc::clone(&operator);
                    tokio::task::spawn_local(async move {
                        let _place = place;
                        if let Err(error) = converse(stream, peer, &*operator).await {
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
fn peer(stream: &UnixStream, admins: &[u32], operator: &impl Operate) -> Option<Peer> {
    let credentials = stream.peer_cred().ok()?;
    let peer = Peer { uid: credentials.uid(), pid: credentials.pid() };
    let own = rustix::process::geteuid().as_raw();
    let allowed = peer.uid == 0 || peer.uid == own || admins.contains(&peer.uid);
    if !allowed {
        warn!(uid = peer.uid, pid = peer.pid, "admin connection refused");
        operator.refused(peer);
    }
    allowed.then_some(peer)
}

/// Answers commands, one a line, until the peer has no more.
async fn converse(mut stream: UnixStream, peer: Peer, operator: &impl Operate) -> io::Result<()> {
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
