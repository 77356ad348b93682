//! A socket while the daemon serves: connections are accepted, and its file is looked after.
//!
//! Clients find a socket by its file. A file that is removed, replaced or lost with its directory leaves a socket behind
//! that works and that no client can reach. The file is therefore compared every [`CHECK_EVERY`]. A socket that the daemon
//! has bound is bound anew; one of systemd's is systemd's to make, so the daemon only reports it. Connections that exist are
//! not affected, and those that wait in the old socket are accepted.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::File;
use std::future::poll_fn;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;
use tracing::{error, warn};

use crate::admin::message::SocketStatus;
use crate::server::listener::{ListenError, Listener, register};
use crate::server::socket_file::Identity;

/// How often the file is compared, and therefore how long clients cannot connect after it was removed.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// A socket that connections are accepted from.
pub(super) struct Listening {
    name: &'static str,
    /// `None`: a socket of systemd's without a file, or with one that the daemon cannot see.
    path: Option<PathBuf>,
    listener: RefCell<Listener>,
    socket: RefCell<Rc<UnixListener>>,
    /// Connections to the socket before, which wait to be accepted.
    waiting: RefCell<VecDeque<UnixStream>>,
    replaced: Notify,
    /// For one more connection when the process has no descriptor left.
    reserve: RefCell<Option<File>>,
    /// The file that clients connect by.
    identity: RefCell<Option<Identity>>,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    /// Why clients cannot connect.
    problem: Option<String>,
    rebound: u64,
}

impl Listening {
    /// Begins to listen; `name` is systemd's name for the socket. Call it inside a runtime.
    ///
    /// # Errors
    /// When the socket cannot be registered.
    pub(super) fn new(name: &'static str, listener: Listener) -> Result<Rc<Self>, ListenError> {
        let socket = RefCell::new(Rc::new(register(&listener.socket)?));
        let (path, identity) = match &listener.own {
            Some(bound) => (Some(bound.file.path.clone()), Some(bound.file.identity)),
            None => {
                let address = listener.socket.local_addr().ok();
                let path = address.and_then(|address| address.as_pathname().map(PathBuf::from));
                let identity = path.as_deref().and_then(|path| Identity::of(path).ok().flatten());
                (path.filter(|_| identity.is_some()), identity)
            }
        };
        Ok(Rc::new(Self {
            name,
            path,
            listener: RefCell::new(listener),
            socket,
            waiting: RefCell::default(),
            replaced: Notify::new(),
            reserve: RefCell::default(),
            identity: RefCell::new(identity),
            state: RefCell::default(),
        }))
    }

    /// What systemd calls it.
    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// The next connection.
    ///
    /// # Errors
    /// As accepting has.
    pub(super) async fn accept(&self) -> io::Result<UnixStream> {
        self.keep_reserve();
        loop {
            if let Some(stream) = self.waiting.borrow_mut().pop_front() {
                return Ok(stream);
            }
            let socket = Rc::clone(&self.socket.borrow());
            tokio::select! {
                biased;
                () = self.replaced.notified() => {}
                accepted = socket.accept() => return accepted.map(|(stream, _)| stream),
            }
        }
    }

    /// Accepts with the descriptor that is kept in reserve, without waiting: to be called when the process has
    /// no other left. `None`: no connection waits.
    pub(super) async fn accept_by_reserve(&self) -> Option<io::Result<UnixStream>> {
        drop(self.reserve.take());
        let socket = Rc::clone(&self.socket.borrow());
        match poll_fn(|cx| Poll::Ready(socket.poll_accept(cx))).await {
            Poll::Ready(accepted) => Some(accepted.map(|(stream, _)| stream)),
            Poll::Pending => None,
        }
    }

    /// Keeps a descriptor in reserve, if there is one to be had.
    fn keep_reserve(&self) {
        let mut reserve = self.reserve.borrow_mut();
        if reserve.is_none() {
            *reserve = File::open("/dev/null").ok();
        }
    }

    /// The connections that wait to be accepted by this process, and by no other.
    pub(super) fn take_waiting(&self) -> Vec<UnixStream> {
        let mut waiting: Vec<_> = self.waiting.take().into();
        if !self.is_adopted() {
            waiting.extend(self.listener.borrow().waiting());
        }
        waiting
    }

    /// Whether systemd opened it, and keeps it open when the daemon ends.
    pub(super) fn is_adopted(&self) -> bool {
        self.listener.borrow().own.is_none()
    }

    /// How it is.
    pub(super) fn status(&self) -> SocketStatus {
        let state = self.state.borrow();
        SocketStatus {
            path: self.path.as_ref().map(|path| path.display().to_string()),
            adopted: self.is_adopted(),
            reachable: state.problem.is_none(),
            problem: state.problem.clone(),
            rebound: state.rebound,
        }
    }

    /// Looks after the file for ever.
    pub(super) async fn watch(self: Rc<Self>) {
        let Some(path) = &self.path else { return };
        loop {
            tokio::time::sleep(CHECK_EVERY).await;
            let found = Identity::of(path);
            match found {
                Ok(found) if found.is_some() && found == *self.identity.borrow() => self.set_problem(None),
                Ok(found) => {
                    let what = if found.is_some() { "replaced" } else { "removed" };
                    self.restore(path, what);
                }
                Err(error) => self.set_problem(Some(format!("cannot look at the socket's file: {error}"))),
            }
        }
    }

    /// Binds the socket anew, if it is the daemon's to bind.
    fn restore(&self, path: &Path, what: &'static str) {
        let mut listener = self.listener.borrow_mut();
        let Some(own) = &mut listener.own else {
            return self.set_problem(Some(format!(
                "{}: the socket's file was {what}. systemd owns the socket: restart its unit, the one with \
                 FileDescriptorName={}",
                path.display(),
                self.name
            )));
        };
        let bound = own.bind_again().and_then(|socket| Ok((register(&socket)?, socket)));
        let (registered, socket) = match bound {
            Ok(bound) => bound,
            Err(error) => {
                return self.set_problem(Some(format!("the socket's file was {what}. {error}")));
            }
        };
        *self.identity.borrow_mut() = Some(own.file.identity);
        self.waiting.borrow_mut().extend(listener.waiting());
        listener.socket = socket;
        *self.socket.borrow_mut() = Rc::new(registered);
        self.replaced.notify_one();
        let mut state = self.state.borrow_mut();
        (state.rebound, state.problem) = (state.rebound + 1, None);
        warn!(socket = self.name, path = %path.display(), "the socket's file was {what}, and was made again");
    }

    /// Notes a problem, or its end; the log has each once.
    fn set_problem(&self, problem: Option<String>) {
        let mut state = self.state.borrow_mut();
        if state.problem != problem {
            match &problem {
                Some(problem) => error!(socket = self.name, "clients cannot connect: {problem}"),
                None => warn!(socket = self.name, "clients can connect again"),
            }
            state.problem = problem;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::server::listener::Wanted;

    /// How long anything may take before a test gives up.
    const PATIENCE: Duration = Duration::from_secs(20);

    #[test]
    fn connections_that_wait_in_a_replaced_socket_are_accepted() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("keyward.sock");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let listener =
                Listener::bind(Wanted { path: path.clone(), mode: 0o600, gid: None }).expect("binds");
            let listening = Listening::new("verify", listener).expect("registers");
            let before = [(); 3].map(|()| UnixStream::connect(&path).expect("connects"));
            std::fs::remove_file(&path).expect("removed");
            listening.restore(&path, "removed");
            let after = UnixStream::connect(&path).expect("connects");
            for _ in 0..=before.len() {
                let accepted = tokio::time::timeout(PATIENCE, listening.accept()).await;
                accepted.expect("in time").expect("accepted");
            }
            drop((before, after));
        });
    }
}
