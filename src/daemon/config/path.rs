//! Paths that can be used: absolute where a file says them, and short enough where they name a socket.
//!
//! The file's paths are absolute, because the directory that a service is started in is an accident. On the
//! command line a relative path means what it means to every other command.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::text::{Text, deserialize_text};

/// Longest path of a Unix socket, in bytes: `sun_path` has 108, and the last is a NUL.
pub const MAX_SOCKET_PATH: usize = 107;

/// The admin socket's name, beside the verify socket.
const ADMIN_SOCKET: &str = "admin.sock";

/// A path that a Unix socket can be bound to: 1..=[`MAX_SOCKET_PATH`] bytes, naming a file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SocketPath(PathBuf);

/// Why a path cannot name a socket.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SocketPathError {
    /// No path at all.
    #[error("the path is empty: write one such as /run/keyward/keyward.sock")]
    Empty,
    /// More than [`MAX_SOCKET_PATH`] bytes.
    #[error("the path has {0} bytes and a Unix socket's has at most {MAX_SOCKET_PATH}: choose a shorter one")]
    TooLong(usize),
    /// A NUL byte.
    #[error("the path has a NUL byte in it")]
    Nul,
    /// Begins with `@`, which other programs write for an abstract socket.
    #[error("abstract sockets have no permissions: write a path such as /run/keyward/keyward.sock")]
    Abstract,
    /// Ends in `/`, `.` or `..`.
    #[error("the path names a directory: add a file name, as in /run/keyward/keyward.sock")]
    Directory,
}

impl SocketPath {
    /// Checks a path, which may be relative.
    ///
    /// # Errors
    /// See [`SocketPathError`]. Whether the directory exists is for the one who binds to find out.
    pub fn new(path: impl Into<PathBuf>) -> Result<Self, SocketPathError> {
        let path = path.into();
        let bytes = path.as_os_str().as_bytes();
        match bytes {
            [] => Err(SocketPathError::Empty),
            [b'@', ..] => Err(SocketPathError::Abstract),
            _ if bytes.contains(&0) => Err(SocketPathError::Nul),
            _ if bytes.len() > MAX_SOCKET_PATH => Err(SocketPathError::TooLong(bytes.len())),
            _ if bytes.ends_with(b"/") || bytes.ends_with(b"/.") || path.file_name().is_none() => {
                Err(SocketPathError::Directory)
            }
            _ => Ok(Self(path)),
        }
    }

    /// A path that is known to be one, because it is written in this module's constants.
    pub(super) fn known(path: &'static str) -> Self {
        debug_assert!(Self::new(path).is_ok());
        Self(path.into())
    }

    /// The admin socket's default place: `admin.sock` in this socket's directory.
    ///
    /// # Errors
    /// [`SocketPathError::TooLong`] when the directory leaves no room for the name.
    pub fn admin_beside(&self) -> Result<Self, SocketPathError> {
        Self::new(self.0.with_file_name(ADMIN_SOCKET))
    }

    /// The path.
    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

impl AsRef<Path> for SocketPath {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

impl Text for SocketPath {
    const EXPECTED: &'static str = "a path such as \"/run/keyward/keyward.sock\"";

    fn parse(text: &str) -> Result<Self, String> {
        let path = Self::new(text).map_err(|error| error.to_string())?;
        absolute(path.as_path())?;
        Ok(path)
    }
}

/// A path that begins at the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AbsolutePath(pub(super) PathBuf);

impl Text for AbsolutePath {
    const EXPECTED: &'static str = "a path such as \"/var/lib/keyward\"";

    fn parse(text: &str) -> Result<Self, String> {
        usable(Path::new(text))?;
        absolute(Path::new(text))?;
        Ok(Self(text.into()))
    }
}

deserialize_text!(SocketPath, AbsolutePath);

/// Whether the system could open the path at all. A URL is refused by name and not repeated: it may hold a
/// password.
pub(super) fn usable(path: &Path) -> Result<(), String> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.is_empty() {
        return Err("the path is empty".to_owned());
    }
    if bytes.contains(&0) {
        return Err("the path has a NUL byte in it".to_owned());
    }
    if bytes.windows(3).any(|window| window == b"://") {
        return Err("URLs are not supported: write the path of a file or directory".to_owned());
    }
    Ok(())
}

fn absolute(path: &Path) -> Result<(), String> {
    match path.is_absolute() {
        true => Ok(()),
        false => Err(format!("{path:?} is relative: write the whole path, from / on")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_path_is_at_most_107_bytes() {
        let fits = format!("/{}", "s".repeat(106));
        assert_eq!(SocketPath::new(&fits).expect("107 bytes").as_path(), Path::new(&fits));
        let long = format!("/{}", "s".repeat(107));
        assert_eq!(SocketPath::new(long), Err(SocketPathError::TooLong(108)));
        let umlauts = "ü".repeat(54);
        assert_eq!(SocketPath::new(umlauts), Err(SocketPathError::TooLong(108)), "bytes, not characters");
    }

    #[test]
    fn a_socket_path_names_a_file() {
        assert_eq!(SocketPath::new(""), Err(SocketPathError::Empty));
        assert_eq!(SocketPath::new("a\0b"), Err(SocketPathError::Nul));
        assert_eq!(SocketPath::new("@keyward"), Err(SocketPathError::Abstract));
        for path in ["/", "/run/", "/run/.", "/run/..", ".", ".."] {
            assert_eq!(SocketPath::new(path), Err(SocketPathError::Directory), "{path}");
        }
        assert!(SocketPath::new("k.sock").is_ok());
    }

    #[test]
    fn the_admin_socket_is_beside_the_verify_socket() {
        let beside = |path: &str| SocketPath::new(path).expect("a socket").admin_beside();
        assert_eq!(beside("/run/k/k.sock"), SocketPath::new("/run/k/admin.sock"));
        assert_eq!(beside("k.sock"), SocketPath::new("admin.sock"));
        let deep = format!("/{}/k", "d".repeat(104));
        assert_eq!(beside(&deep), Err(SocketPathError::TooLong(116)));
    }
}
