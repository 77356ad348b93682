//! The daemon's side of the admin socket: accepts connections of operators, and answers their
//! commands.

use std::io::{self, Write};
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::admin::connection_slots::{ConnectionSlots, Slot};
pub use crate::audit::Peer;
use keyward_admin::message::{Command, Reply};
use keyward_service::log_limit::LogLimit;

/// Maximum length of a command: a path in which each byte is written as `\u0041`, and some sixty
/// bytes more.
const MAX_LINE: u64 = 6 * 4096 + 256;

/// How long a peer may take to send a command, and to read the answer.
const IO_TIMEOUT: Duration = Duration::from_secs(10);

/// The pause after a connection could not be accepted.
const BACK_OFF: Duration = Duration::from_millis(100);

/// Carries out commands.
pub trait CommandHandler {
    /// Carries out a command of `peer`.
    fn handle(&self, command: Command, peer: Peer) -> impl Future<Output = Reply>;

    /// Records that `peer` was refused.
    fn on_refused(&self, peer: Peer);
}

/// Whether a command reloads, or can wait for a reload in progress.
fn waits_for_reloads(command: &Command) -> bool {
    match command {
        Command::Reload { .. }
        | Command::Check { .. }
        | Command::Balance { .. }
        | Command::ResetBalance { .. }
        | Command::ResetCalendar => true,
        Command::Status
        | Command::Metrics
        | Command::Usage { .. }
        | Command::Revoke(_)
        | Command::Unrevoke(_)
        | Command::Revocations { .. }
        | Command::Version => false,
    }
}

/// Accepts connections forever. `admins` may connect, and root and the daemon's own user. To be run
/// on a `LocalSet`.
pub async fn serve(
    accept: impl AsyncFn() -> io::Result<UnixStream>,
    admins: Box<[u32]>,
    handler: Rc<impl CommandHandler + 'static>,
) {
    let slots = Rc::new(ConnectionSlots::default());
    let (refusals, failures) = (LogLimit::default(), LogLimit::default());
    loop {
        let stream = match accept().await {
            Ok(stream) => stream,
            Err(error) => {
                if failures.may_log() {
                    warn!(%error, "cannot accept admin connections");
                }
                tokio::time::sleep(BACK_OFF).await;
                continue;
            }
        };
        let Some(peer) = authorize(&stream, &admins, &*handler, &refusals) else {
            reject(stream);
            continue;
        };
        let slot = slots.acquire(peer.uid).await;
        let (handler, slots) = (Rc::clone(&handler), Rc::clone(&slots));
        tokio::task::spawn_local(async move {
            if let Err(error) = handle_connection(stream, peer, &*handler, &slots, &slot).await {
                debug!(%error, "admin connection");
            }
        });
        // Lets a command that has arrived already mark its slot as busy, before the next connection
        // can take the slot.
        tokio::task::yield_now().await;
    }
}

/// The peer of a connection, if it may use the socket.
fn authorize(
    stream: &UnixStream,
    admins: &[u32],
    handler: &impl CommandHandler,
    refusals: &LogLimit,
) -> Option<Peer> {
    let credentials = stream.peer_cred().ok()?;
    let peer = Peer { uid: credentials.uid(), pid: credentials.pid() };
    let own_uid = rustix::process::geteuid().as_raw();
    let is_allowed = peer.uid == 0 || peer.uid == own_uid || admins.contains(&peer.uid);
    if !is_allowed {
        if refusals.may_log() {
            warn!(uid = peer.uid, pid = peer.pid, "admin connection refused; more of them are counted only");
        }
        handler.on_refused(peer);
    }
    is_allowed.then_some(peer)
}

/// Sends an error as far as the socket takes it at once, and closes the connection.
fn reject(stream: UnixStream) {
    let reply = Reply::error("only root, the daemon's own user and admin_uids may use this socket");
    if let (Ok(line), Ok(mut stream)) = (encode(&reply), stream.into_std()) {
        // The peer may be gone.
        let _ = stream.write(&line);
    }
}

/// Answers commands, one in each line, until the peer closes the connection or is evicted from its
/// slot.
async fn handle_connection(
    mut stream: UnixStream,
    peer: Peer,
    handler: &impl CommandHandler,
    slots: &ConnectionSlots,
    slot: &Slot,
) -> io::Result<()> {
    let (read, mut write) = stream.split();
    let mut lines = BufReader::new(read);
    loop {
        let mut line = Vec::new();
        let mut bounded = (&mut lines).take(MAX_LINE);
        tokio::select! {
            biased;
            read = timeout(IO_TIMEOUT, bounded.read_until(b'\n', &mut line)) => read??,
            () = slot.evicted() => {
                let reply = Reply::error("closed: too many connections, and this one was idle");
                // The peer may be gone.
                let _ = write.try_write(&encode(&reply)?);
                return Ok(());
            }
        };
        if line.is_empty() {
            return Ok(());
        }
        slot.set_busy();
        let reply = match serde_json::from_slice(&line) {
            Ok(command) if waits_for_reloads(&command) => match slots.wait_permit(peer.uid) {
                Some(_permit) => handler.handle(command, peer).await,
                None => Reply::error("too many commands are waiting for reloads; try again"),
            },
            Ok(command) => handler.handle(command, peer).await,
            Err(error) => Reply::error(format!("not a command: {error}")),
        };
        // Encoding a long answer would delay the thread that accepts connections.
        let answer =
            tokio::task::spawn_blocking(move || encode(&reply)).await.map_err(io::Error::other)??;
        slot.set_idle();
        tokio::select! {
            biased;
            sent = timeout(IO_TIMEOUT, write.write_all(&answer)) => sent??,
            () = slot.evicted() => return Ok(()),
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
