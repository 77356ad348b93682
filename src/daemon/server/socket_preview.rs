//! Predicts whether a start can make its sockets. Nothing is created.

use std::path::Path;

use crate::config::{DEFAULT_SOCKET, Server};
use keyward_service::listener::{ListenError, ListenerSpec};

/// What would prevent a start from making its sockets, as far as this user can see, unless systemd
/// passes them. The directory of the default socket is left out: systemd makes it.
pub fn preview_sockets(server: &Server) -> Vec<ListenError> {
    let (socket, admin_socket) = (server.socket.as_path(), server.admin_socket.as_path());
    let group = ListenerSpec::new(socket, server.socket_mode.bits(), server.socket_group.as_ref()).err();
    let mut directories: Vec<_> = [socket, admin_socket].into_iter().filter_map(Path::parent).collect();
    directories.dedup();
    let is_made = |directory: &&Path| {
        !directory.as_os_str().is_empty() && Some(*directory) != Path::new(DEFAULT_SOCKET).parent()
    };
    let missing = directories.into_iter().filter(is_made).filter_map(|path| match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => None,
        Err(source) if source.kind() == std::io::ErrorKind::PermissionDenied => Some(ListenError::Io {
            path: path.to_path_buf(),
            what: "look for the directory of the socket",
            source,
        }),
        _ => Some(ListenError::NoDirectory { path: path.to_path_buf() }),
    });
    group.into_iter().chain(missing).collect()
}
