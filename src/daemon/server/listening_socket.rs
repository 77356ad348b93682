//! A listening socket while the daemon serves: accepts connections, and watches the socket's file.
//!
//! Clients find a socket by its file. If the file is removed or replaced, the socket still works
//! but no client can reach it. The file is therefore checked every [`CHECK_INTERVAL`]. A socket
//! that the daemon has bound is bound again; the file of an adopted socket belongs to systemd, so
//! the daemon only reports the problem. Established connections are not affected, and connections
//! in the backlog of the old socket are accepted.

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

use keyward_admin::message::SocketStatus;
use keyward_service::listener::{ListenError, Listener, register, shut_down};
use keyward_service::socket_file::FileId;

/// How often the file is checked, and therefore how long clients cannot connect after it was
/// removed.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// A socket that connections are accepted from.
pub(super) struct ListeningSocket {
    name: &'static str,
    /// `None`: an adopted socket without a file, or with one that the daemon cannot see.
    path: Option<PathBuf>,
    listener: RefCell<Listener>,
    socket: RefCell<Rc<UnixListener>>,
    /// Connections from the backlog of a replaced socket.
    inherited: RefCell<VecDeque<UnixStream>>,
    replaced: Notify,
    /// A spare descriptor, to accept one more connection when the process has no other left.
    reserve: RefCell<Option<File>>,
    /// The file that clients connect to.
    file_id: RefCell<Option<FileId>>,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    /// Why clients cannot connect.
    problem: Option<String>,
    rebound: u64,
}

impl ListeningSocket {
    /// Registers the socket with the current runtime. `name` is systemd's name for the socket.
    ///
    /// # Errors
    /// When the socket cannot be registered.
    pub(super) fn new(name: &'static str, listener: Listener) -> Result<Rc<Self>, ListenError> {
        let socket = RefCell::new(Rc::new(register(&listener.socket)?));
        let (path, file_id) = match &listener.bound {
            Some(bound) => (Some(bound.file.path.clone()), Some(bound.file.id)),
            None => {
                let address = listener.socket.local_addr().ok();
                let path = address.and_then(|address| address.as_pathname().map(PathBuf::from));
                let file_id = path.as_deref().and_then(|path| FileId::of(path).ok().flatten());
                (path.filter(|_| file_id.is_some()), file_id)
            }
        };
        Ok(Rc::new(Self {
            name,
            path,
            listener: RefCell::new(listener),
            socket,
            inherited: RefCell::default(),
            replaced: Notify::new(),
            reserve: RefCell::default(),
            file_id: RefCell::new(file_id),
            state: RefCell::default(),
        }))
    }

    /// systemd's name for the socket.
    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// Accepts the next connection.
    ///
    /// # Errors
    /// See `accept(2)`.
    pub(super) async fn accept(&self) -> io::Result<UnixStream> {
        self.refill_reserve();
        loop {
            if let Some(stream) = self.inherited.borrow_mut().pop_front() {
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

    /// Accepts a connection with the reserve descriptor, without waiting. To be called when the
    /// process has no other descriptor left. `None`: the backlog is empty.
    pub(super) async fn accept_with_reserve(&self) -> Option<io::Result<UnixStream>> {
        self.release_reserve();
        let socket = Rc::clone(&self.socket.borrow());
        match poll_fn(|cx| Poll::Ready(socket.poll_accept(cx))).await {
            Poll::Ready(accepted) => Some(accepted.map(|(stream, _)| stream)),
            Poll::Pending => None,
        }
    }

    /// Opens the reserve descriptor again, if one is free.
    fn refill_reserve(&self) {
        let mut reserve = self.reserve.borrow_mut();
        if reserve.is_none() {
            *reserve = File::open("/dev/null").ok();
        }
    }

    /// Refuses further connections, unless systemd owns the socket.
    pub(super) fn shut_down(&self) {
        if !self.is_adopted() {
            shut_down(&self.listener.borrow().socket);
        }
    }

    /// Accepts a connection that no other process can accept, without waiting. `None`: there is
    /// none.
    pub(super) fn accept_pending(&self) -> Option<io::Result<UnixStream>> {
        if let Some(stream) = self.inherited.borrow_mut().pop_front() {
            return Some(Ok(stream));
        }
        if self.is_adopted() { None } else { self.listener.borrow().accept_pending() }
    }

    /// Closes the reserve descriptor, which is then free for a connection. Returns whether there was
    /// one.
    pub(super) fn release_reserve(&self) -> bool {
        self.reserve.take().is_some()
    }

    /// Whether systemd opened the socket, and keeps it open when the daemon ends.
    pub(super) fn is_adopted(&self) -> bool {
        self.listener.borrow().bound.is_none()
    }

    /// The state of the socket.
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

    /// Checks the socket's file forever.
    pub(super) async fn watch_file(self: Rc<Self>) {
        let Some(path) = &self.path else { return };
        loop {
            tokio::time::sleep(CHECK_INTERVAL).await;
            let found = FileId::of(path);
            match found {
                Ok(found) if found.is_some() && found == *self.file_id.borrow() => self.set_problem(None),
                Ok(found) => {
                    let what = if found.is_some() { "replaced" } else { "removed" };
                    self.rebind(path, what);
                }
                Err(error) => self.set_problem(Some(format!("cannot examine the socket's file: {error}"))),
            }
        }
    }

    /// Binds the socket again, unless systemd owns it.
    fn rebind(&self, path: &Path, what: &'static str) {
        let mut listener = self.listener.borrow_mut();
        let Some(bound) = &mut listener.bound else {
            return self.set_problem(Some(format!(
                "{}: the socket's file was {what}. systemd owns the socket: restart its unit, the one with \
                 FileDescriptorName={}",
                path.display(),
                self.name
            )));
        };
        let rebound = bound.rebind().and_then(|socket| Ok((register(&socket)?, socket)));
        let (registered, socket) = match rebound {
            Ok(sockets) => sockets,
            Err(error) => {
                return self.set_problem(Some(format!("the socket's file was {what}. {error}")));
            }
        };
        *self.file_id.borrow_mut() = Some(bound.file.id);
        shut_down(&listener.socket);
        let backlog = std::iter::from_fn(|| listener.accept_pending()).map_while(Result::ok);
        self.inherited.borrow_mut().extend(backlog);
        listener.socket = socket;
        *self.socket.borrow_mut() = Rc::new(registered);
        self.replaced.notify_one();
        let mut state = self.state.borrow_mut();
        (state.rebound, state.problem) = (state.rebound + 1, None);
        warn!(socket = self.name, path = %path.display(), "the socket's file was {what}; socket bound again");
    }

    /// Records a problem or its end, and logs each change once.
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
    use keyward_service::listener::ListenerSpec;

    /// How long an operation may take before the test fails.
    const TIMEOUT: Duration = Duration::from_secs(20);

    #[test]
    fn backlog_of_a_replaced_socket_is_accepted() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("keyward.sock");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let listener =
                Listener::bind(ListenerSpec { path: path.clone(), mode: 0o600, gid: None }).expect("binds");
            let listening = ListeningSocket::new("verify", listener).expect("registers");
            let before = [(); 3].map(|()| UnixStream::connect(&path).expect("connects"));
            std::fs::remove_file(&path).expect("removed");
            listening.rebind(&path, "removed");
            let after = UnixStream::connect(&path).expect("connects");
            for _ in 0..=before.len() {
                let accepted = tokio::time::timeout(TIMEOUT, listening.accept()).await;
                accepted.expect("in time").expect("accepted");
            }
            drop((before, after));
        });
    }
}
