//! The daemon's side of the admin socket.

use std::cell::Cell;
use std::io::{self, Write};
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::admin::message::{Command, Reply};
use crate::admin::places::{Place, Places};
pub use crate::audit::Peer;

/// Longest command: one with a path, of which each byte may be written as `\u0041`, and some sixty bytes more.
const MAX_LINE: u64 = 6 * 4096 + 256;

/// How long a peer may take to send its command, and to read its answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often refusals, and failures to accept, are logged, at most.
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
pub async fn serve(
    accept: impl AsyncFn() -> io::Result<UnixStream>,
    admins: Box<[u32]>,
    operator: Rc<impl Operate + 'static>,
) {
    let places = Rc::new(Places::default());
    let (logged, failed) = (Cell::new(None), Cell::new(None));
    loop {
        let stream = match accept().await {
            Ok(stream) => stream,
            Err(error) => {
                if may_log(&failed) {
                    warn!(%error, "cannot accept admin connections");
                }
                tokio::time::sleep(BACK_OFF).await;
                continue;
            }
        };
        let Some(peer) = peer(&stream, &admins, &*operator, &logged) else {
            refuse(stream);
            continue;
        };
        let place = places.take(peer.uid).await;
        let (operator, places) = (Rc::clone(&operator), Rc::clone(&places));
        tokio::task::spawn_local(async move {
            if let Err(error) = converse(stream, peer, &*operator, &places, &place).await {
                debug!(%error, "admin connection");
            }
        });
        // A command that has arrived already is carried out before the next connection can take its place.
        tokio::task::yield_now().await;
    }
}

/// Says why, as far as the socket takes it at once, and closes.
fn refuse(stream: UnixStream) {
    let reply = Reply::error("only root, the daemon's own user and admin_uids may use this socket");
    if let (Ok(line), Ok(mut stream)) = (encode(&reply), stream.into_std()) {
        let _peer_may_be_gone = stream.write(&line);
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
        if may_log(logged) {
            warn!(uid = peer.uid, pid = peer.pid, "admin connection refused; more of them are counted only");
        }
        operator.refused(peer);
    }
    allowed.then_some(peer)
}

/// Whether it is [`LOG_EVERY`] since the last time.
fn may_log(logged: &Cell<Option<Instant>>) -> bool {
    let due = logged.get().is_none_or(|logged| logged.elapsed() >= LOG_EVERY);
    if due {
        logged.set(Some(Instant::now()));
    }
    due
}

/// Answers commands, one a line, until the peer has no more, or another connection gets its place.
async fn converse(
    mut stream: UnixStream,
    peer: Peer,
    operator: &impl Operate,
    places: &Places,
    place: &Place,
) -> io::Result<()> {
    let (read, mut write) = stream.split();
    let mut lines = BufReader::new(read);
    loop {
        let mut line = Vec::new();
        let mut bounded = (&mut lines).take(MAX_LINE);
        tokio::select! {
            biased;
            read = timeout(PATIENCE, bounded.read_until(b'\n', &mut line)) => read??,
            () = place.lost() => {
                let reply = Reply::error("closed: other connections need the place of one that sends no command");
                let _peer_may_be_gone = write.try_write(&encode(&reply)?);
                return Ok(());
            }
        };
        if line.is_empty() {
            return Ok(());
        }
        place.set_busy();
        let reply = match serde_json::from_slice(&line) {
            Ok(command @ (Command::Reload { .. } | Command::Check { .. })) => match places.wait(peer.uid) {
                Some(_waiting) => operator.operate(command, peer).await,
                None => Reply::error("too many reloads and checks are waiting; try again"),
            },
            Ok(command) => operator.operate(command, peer).await,
            Err(error) => Reply::error(format!("not a command: {error}")),
        };
        // A long answer would hold up the thread that accepts connections.
        let answer =
            tokio::task::spawn_blocking(move || encode(&reply)).await.map_err(io::Error::other)??;
        place.set_idle();
        tokio::select! {
            biased;
            sent = timeout(PATIENCE, write.write_all(&answer)) => sent??,
            () = place.lost() => return Ok(()),
        }
        if !line.ends_with(b"\n") {
            return Ok(());
        }
    }
}

fn encode(reply: &Reply) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    Ok(line)
}
