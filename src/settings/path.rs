//! Paths of sockets, files and directories.
//!
//! Paths in the configuration file must be absolute, because the working directory of a service is
//! arbitrary. On the command line a path may be relative, as for any other command.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::deserialize_text;
use crate::text::Text;

/// Maximum length of the path of a Unix socket in bytes: `sun_path` has 108, and the last is a NUL.
pub const MAX_SOCKET_PATH: usize = 107;

/// The default name of the admin socket, in the directory of the verify socket.
const ADMIN_SOCKET: &str = "admin.sock";

/// A path that a Unix socket can be bound to: 1..=[`MAX_SOCKET_PATH`] bytes that name a file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SocketPath(PathBuf);

/// Why a path cannot name a socket.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SocketPathError {
    /// The path is empty.
    #[error("the path is empty: write one such as /run/keyward/keyward.sock")]
    Empty,
    /// The path has more than [`MAX_SOCKET_PATH`] bytes.
    #[error("the path has {0} bytes and a Unix socket's has at most {MAX_SOCKET_PATH}: choose a shorter one")]
    TooLong(usize),
    /// The path contains a NUL byte.
    #[error("the path has a NUL byte in it")]
    Nul,
    /// The path begins with `@`, which by convention means an abstract socket.
    #[error("abstract sockets have no permissions: write a path such as /run/keyward/keyward.sock")]
    Abstract,
    /// The path ends in `/`, `.` or `..`.
    #[error("the path names a directory: add a file name, as in /run/keyward/keyward.sock")]
    Directory,
}

impl SocketPath {
    /// Checks a path, which may be relative.
    ///
    /// # Errors
    /// See [`SocketPathError`]. Does not check whether the directory exists.
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

    /// A valid path from a constant.
    pub fn from_static(path: &'static str) -> Self {
        debug_assert!(Self::new(path).is_ok());
        Self(path.into())
    }

    /// The default admin socket: `admin.sock` in the directory of this socket.
    ///
    /// # Errors
    /// [`SocketPathError::TooLong`] if the path would be too long.
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
        check_absolute(path.as_path())?;
        Ok(path)
    }
}

/// An absolute path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AbsolutePath(pub PathBuf);

impl Text for AbsolutePath {
    const EXPECTED: &'static str = "a path such as \"/var/lib/keyward\"";

    fn parse(text: &str) -> Result<Self, String> {
        check_usable(Path::new(text))?;
        check_absolute(Path::new(text))?;
        Ok(Self(text.into()))
    }
}

deserialize_text!(SocketPath, AbsolutePath);

/// Refuses paths that cannot be opened. The message about a URL does not quote it, because it may
/// contain a password.
pub fn check_usable(path: &Path) -> Result<(), String> {
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

fn check_absolute(path: &Path) -> Result<(), String> {
    if path.is_absolute() {
        Ok(())
    } else {
        Err(format!("{path:?} is relative: write the whole path, from / on"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_path_has_at_most_107_bytes() {
        let fits = format!("/{}", "s".repeat(106));
        assert_eq!(SocketPath::new(&fits).expect("107 bytes").as_path(), Path::new(&fits));
        let long = format!("/{}", "s".repeat(107));
        assert_eq!(SocketPath::new(long), Err(SocketPathError::TooLong(108)));
        let umlauts = "ü".repeat(54);
        assert_eq!(SocketPath::new(umlauts), Err(SocketPathError::TooLong(108)), "bytes, not characters");
    }

    #[test]
    fn socket_path_names_a_file() {
        assert_eq!(SocketPath::new(""), Err(SocketPathError::Empty));
        assert_eq!(SocketPath::new("a\0b"), Err(SocketPathError::Nul));
        assert_eq!(SocketPath::new("@keyward"), Err(SocketPathError::Abstract));
        for path in ["/", "/run/", "/run/.", "/run/..", ".", ".."] {
            assert_eq!(SocketPath::new(path), Err(SocketPathError::Directory), "{path}");
        }
        assert!(SocketPath::new("k.sock").is_ok());
    }

    #[test]
    fn default_admin_socket_is_beside_the_verify_socket() {
        let beside = |path: &str| SocketPath::new(path).expect("a socket").admin_beside();
        assert_eq!(beside("/run/k/k.sock"), SocketPath::new("/run/k/admin.sock"));
        assert_eq!(beside("k.sock"), SocketPath::new("admin.sock"));
        let deep = format!("/{}/k", "d".repeat(104));
        assert_eq!(beside(&deep), Err(SocketPathError::TooLong(116)));
    }
}
