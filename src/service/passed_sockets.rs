//! Socket activation: the listening sockets that systemd has opened.

use std::fmt;
use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use listenfd::ListenFd;
use rustix::net::sockopt::socket_acceptconn;
use rustix::net::{AddressFamily, SocketType};
use tracing::warn;

/// A descriptor that systemd has passed.
#[derive(Debug)]
pub struct PassedSocket {
    /// The name: `FileDescriptorName=`, or by default the name of the unit.
    pub name: String,
    /// What it is.
    pub kind: PassedKind,
}

/// What a descriptor is.
#[derive(Debug)]
pub enum PassedKind {
    /// A listening Unix stream socket.
    Unix(UnixListener),
    /// A listening TCP socket.
    Tcp(TcpListener),
    /// Anything else, which is closed.
    Other(&'static str),
}

impl fmt::Display for PassedKind {
    /// The path or the address of a socket, or what else it is.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(listener) => {
                let address = listener.local_addr().ok();
                match address.as_ref().and_then(|address| address.as_pathname()) {
                    Some(path) => path.display().fmt(f),
                    None => f.write_str("a Unix stream socket without a path"),
                }
            }
            Self::Tcp(listener) => match listener.local_addr() {
                Ok(address) => write!(f, "a TCP socket, {address}"),
                Err(_) => f.write_str("a TCP socket"),
            },
            Self::Other(kind) => f.write_str(kind),
        }
    }
}

/// Takes all sockets that systemd has passed. To be called once, at the start.
///
/// # Errors
/// When the environment variables are malformed.
pub fn take() -> io::Result<Vec<PassedSocket>> {
    let names: Vec<String> = sd_notify::listen_fds_with_names()?.map(|(_, name)| name).collect();
    if names.is_empty() {
        if let Ok(pid) = std::env::var("LISTEN_PID") {
            warn!(listen_pid = pid, "the sockets in LISTEN_FDS are for another process, and are not used");
        }
        return Ok(Vec::new());
    }
    let mut descriptors = ListenFd::from_env();
    let taken = names.into_iter().enumerate();
    Ok(taken.map(|(index, name)| PassedSocket { name, kind: take_one(&mut descriptors, index) }).collect())
}

fn take_one(descriptors: &mut ListenFd, index: usize) -> PassedKind {
    if let Ok(Some(listener)) = descriptors.take_unix_listener(index) {
        return match socket_acceptconn(&listener) {
            Ok(true) => PassedKind::Unix(listener),
            _ => PassedKind::Other("a Unix stream socket that does not listen"),
        };
    }
    if let Ok(Some(listener)) = descriptors.take_tcp_listener(index) {
        return match socket_acceptconn(&listener) {
            Ok(true) => PassedKind::Tcp(listener),
            _ => PassedKind::Other("a TCP socket that does not listen"),
        };
    }
    let is_seqpacket = descriptors.take_custom::<OwnedFd>(
        index,
        i32::from(AddressFamily::UNIX.as_raw()),
        SocketType::SEQPACKET.as_raw() as i32,
        "Unix seqpacket socket",
    );
    PassedKind::Other(if matches!(is_seqpacket, Ok(Some(_))) {
        "a Unix seqpacket socket"
    } else if matches!(descriptors.take_unix_datagram(index), Ok(Some(_))) {
        "a Unix datagram socket"
    } else if matches!(descriptors.take_udp_socket(index), Ok(Some(_))) {
        "a UDP socket"
    } else {
        "not a socket that listens"
    })
}
