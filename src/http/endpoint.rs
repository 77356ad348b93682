//! Listening sockets: those that systemd has opened, and those that the companion opens itself.

use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;

use keyward_service::listener::{BoundSocket, ListenError, Listener as UnixSocket, ListenerSpec};
use keyward_service::passed_sockets::{PassedKind, PassedSocket};

use crate::config::{ListenAddress, ListenSettings};
use crate::server::Listener;

/// Why a socket cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// A Unix socket cannot be listened on.
    #[error(transparent)]
    Unix(#[from] ListenError),
    /// A TCP port cannot be listened on.
    #[error("{address}: cannot listen: {source}")]
    Tcp {
        /// The address and the port.
        address: std::net::SocketAddr,
        /// The error of the system call.
        source: io::Error,
    },
    /// systemd passed a socket that is not needed.
    #[error(
        "systemd passed {name:?} ({kind}), and {problem}. FileDescriptorName= of a socket unit has to be the name of a gateway \
         in the configuration, \"settlement\" or \"metrics\", with ListenStream="
    )]
    Passed {
        /// Its name.
        name: String,
        /// What it is.
        kind: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// A listening socket, before a thread registers it with its runtime.
pub(crate) enum Socket {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// A listening socket that is needed.
pub(crate) struct Wanted<'s> {
    /// Its name, which systemd gives to it as well.
    pub(crate) name: &'s str,
    pub(crate) settings: &'s ListenSettings,
    /// Whether it has to be a Unix socket, which states the user of each process that connects.
    pub(crate) unix_only: bool,
}

/// A listening socket, and the file that is removed with it.
pub(crate) struct Endpoint {
    pub(crate) socket: Socket,
    /// The file of a socket that this process has bound. It is removed on drop.
    pub(crate) file: Option<BoundSocket>,
}

/// Takes the sockets from systemd, and opens the others. The result has the order of `wanted`.
pub(crate) fn open(wanted: &[Wanted<'_>], passed: Vec<PassedSocket>) -> Result<Vec<Endpoint>, EndpointError> {
    let mut sockets: Vec<(String, Socket)> = Vec::new();
    for PassedSocket { name, kind } in passed {
        let refused = |kind: &PassedKind, problem| EndpointError::Passed {
            name: name.clone(),
            kind: kind.to_string(),
            problem,
        };
        let Some(Wanted { unix_only, .. }) = wanted.iter().find(|wanted| wanted.name == name) else {
            return Err(refused(&kind, "no listener has this name"));
        };
        if sockets.iter().any(|(taken, _)| *taken == name) {
            return Err(refused(&kind, "there is another of this name"));
        }
        let socket = match kind {
            PassedKind::Unix(listener) => Socket::Unix(listener),
            kind @ PassedKind::Tcp(_) if *unix_only => {
                return Err(refused(
                    &kind,
                    "it does not state which user has connected: it has to be a Unix socket",
                ));
            }
            PassedKind::Tcp(listener) => match listener.local_addr() {
                Ok(address) if address.ip().is_loopback() => Socket::Tcp(listener),
                _ => return Err(refused(&PassedKind::Tcp(listener), "it is not on the loopback interface")),
            },
            kind @ PassedKind::Other(_) => return Err(refused(&kind, "it is not a listening stream socket")),
        };
        sockets.push((name, socket));
    }
    let endpoints = wanted.iter().map(|Wanted { name, settings, .. }| {
        match sockets.iter().position(|(passed, _)| passed == name) {
            Some(index) => {
                let (_, socket) = sockets.swap_remove(index);
                Ok(Endpoint { socket, file: None })
            }
            None => bind(settings),
        }
    });
    endpoints.collect()
}

fn bind(settings: &ListenSettings) -> Result<Endpoint, EndpointError> {
    let (socket, file) = match &settings.address {
        ListenAddress::Unix(path) => {
            let mode = settings.socket_mode.bits();
            let spec = ListenerSpec::new(path.as_path(), mode, settings.socket_group.as_ref())?;
            let UnixSocket { socket, bound } = UnixSocket::bind(spec)?;
            (Socket::Unix(socket), bound)
        }
        ListenAddress::Tcp(address) => {
            let bound = TcpListener::bind(address);
            (Socket::Tcp(bound.map_err(|source| EndpointError::Tcp { address: *address, source })?), None)
        }
    };
    Ok(Endpoint { socket, file })
}

impl Socket {
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        match self {
            Self::Unix(socket) => socket.try_clone().map(Self::Unix),
            Self::Tcp(socket) => socket.try_clone().map(Self::Tcp),
        }
    }

    /// Registers the socket with the current runtime.
    pub(crate) fn register(self) -> io::Result<Listener> {
        match self {
            Self::Unix(socket) => {
                socket.set_nonblocking(true)?;
                tokio::net::UnixListener::from_std(socket).map(Listener::Unix)
            }
            Self::Tcp(socket) => {
                socket.set_nonblocking(true)?;
                tokio::net::TcpListener::from_std(socket).map(Listener::Tcp)
            }
        }
    }
}
