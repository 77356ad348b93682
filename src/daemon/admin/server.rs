//! The daemon's side of the admin socket: accepts connections of operators, and answers their
//! commands.

use std::io::{self, Write};
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::admin::AdminUsers;
use crate::admin::connection_slots::{ConnectionSlots, Slot};
use crate::admin::permissions::Role;
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

const REFUSED_PEER: &str =
    "only root, the daemon's own user, admin_uids and admin_read_uids may use this socket";

const REFUSED_COMMAND: &str = "this user is in admin_read_uids, which allows status, metrics, usage and version: other \
                               commands need admin_uids";

const TOO_MANY_READERS: &str = "too many connections of admin_read_uids; try again";

/// Carries out commands.
pub trait CommandHandler {
    /// Carries out a command of `peer`.
    fn handle(&self, command: Command, peer: Peer) -> impl Future<Output = Reply>;

    /// Records that `peer`, or a command of it, was refused.
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

/// Accepts connections of `users`, root and the daemon's own user forever. To be run on a `LocalSet`.
pub async fn serve(
    accept: impl AsyncFn() -> io::Result<UnixStream>,
    users: AdminUsers,
    handler: Rc<impl CommandHandler + 'static>,
) {
    let slots = Rc::new(ConnectionSlots::default());
    let (refusals, failures) = (Rc::new(LogLimit::default()), LogLimit::default());
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
        let Some((peer, role)) = authorize(&stream, &users, &*handler, &refusals) else {
            reject(stream, REFUSED_PEER);
            continue;
        };
        let slot = match role {
            Role::Operator => slots.acquire(peer.uid).await,
            Role::Reader => match slots.acquire_for_reader(peer.uid) {
                Some(slot) => slot,
                None => {
                    reject(stream, TOO_MANY_READERS);
                    continue;
                }
            },
        };
        let connection =
            Connection { peer, role, slot, slots: Rc::clone(&slots), refusals: Rc::clone(&refusals) };
        let handler = Rc::clone(&handler);
        tokio::task::spawn_local(async move {
            if let Err(error) = connection.handle(stream, &*handler).await {
                debug!(%error, "admin connection");
            }
        });
        // Lets a command that has arrived already mark its slot as busy, before the next connection
        // can take the slot.
        tokio::task::yield_now().await;
    }
}

/// The peer of a connection and its role, if it may use the socket.
fn authorize(
    stream: &UnixStream,
    users: &AdminUsers,
    handler: &impl CommandHandler,
    refusals: &LogLimit,
) -> Option<(Peer, Role)> {
    let credentials = stream.peer_cred().ok()?;
    let peer = Peer { uid: credentials.uid(), pid: credentials.pid() };
    let own_uid = rustix::process::geteuid().as_raw();
    let role = users.role(peer.uid, own_uid);
    if role.is_none() {
        if refusals.may_log() {
            warn!(uid = peer.uid, pid = peer.pid, "admin connection refused; more of them are counted only");
        }
        handler.on_refused(peer);
    }
    role.map(|role| (peer, role))
}

/// Sends an error as far as the socket takes it at once, and closes the connection.
fn reject(stream: UnixStream, error: &str) {
    if let (Ok(line), Ok(mut stream)) = (encode(&Reply::error(error)), stream.into_std()) {
        // The peer may be gone.
        let _ = stream.write(&line);
    }
}

/// A connection of a user that may use the socket.
struct Connection {
    peer: Peer,
    role: Role,
    slot: Slot,
    slots: Rc<ConnectionSlots>,
    /// Limits what is logged about refusals.
    refusals: Rc<LogLimit>,
}

impl Connection {
    /// Answers commands, one in each line, until the peer closes the connection or is evicted from
    /// its slot.
    async fn handle(self, mut stream: UnixStream, handler: &impl CommandHandler) -> io::Result<()> {
        let (read, mut write) = stream.split();
        let mut lines = BufReader::new(read);
        loop {
            let mut line = Vec::new();
            let mut bounded = (&mut lines).take(MAX_LINE);
            tokio::select! {
                biased;
                read = timeout(IO_TIMEOUT, bounded.read_until(b'\n', &mut line)) => read??,
                () = self.slot.evicted() => {
                    let reply = Reply::error("closed: too many connections, and this one was idle");
                    // The peer may be gone.
                    let _ = write.try_write(&encode(&reply)?);
                    return Ok(());
                }
            };
            if line.is_empty() {
                return Ok(());
            }
            self.slot.set_busy();
            let reply = self.reply(&line, handler).await;
            // Encoding a long answer would delay the thread that accepts connections.
            let answer =
                tokio::task::spawn_blocking(move || encode(&reply)).await.map_err(io::Error::other)??;
            self.slot.set_idle();
            tokio::select! {
                biased;
                sent = timeout(IO_TIMEOUT, write.write_all(&answer)) => sent??,
                () = self.slot.evicted() => return Ok(()),
            }
            if !line.ends_with(b"\n") {
                return Ok(());
            }
        }
    }

    /// The answer to a line.
    async fn reply(&self, line: &[u8], handler: &impl CommandHandler) -> Reply {
        let command = match serde_json::from_slice(line) {
            Ok(command) => command,
            Err(error) => return Reply::error(format!("not a command: {error}")),
        };
        if !self.role.permits(&command) {
            self.refuse(handler);
            return Reply::error(REFUSED_COMMAND);
        }
        if waits_for_reloads(&command) {
            return match self.slots.wait_permit(self.peer.uid) {
                Some(_permit) => handler.handle(command, self.peer).await,
                None => Reply::error("too many commands are waiting for reloads; try again"),
            };
        }
        handler.handle(command, self.peer).await
    }

    /// Records that a command was refused.
    fn refuse(&self, handler: &impl CommandHandler) {
        let Peer { uid, pid } = self.peer;
        if self.refusals.may_log() {
            warn!(uid, pid, "admin command refused: the user may only read; more of them are counted only");
        }
        handler.on_refused(self.peer);
    }
}

fn encode(reply: &Reply) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    Ok(line)
}
