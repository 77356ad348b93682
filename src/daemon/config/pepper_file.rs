//! Reads a pepper from a file that other users cannot read.
//!
//! The rule is PostgreSQL's for private keys. A file that belongs to the daemon's own user must be
//! closed to all other users (0600 or less). A file that belongs to root may be readable by its
//! group (0640 or less), through which the user of a service gets access.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;
use zeroize::Zeroizing;

use keyward_engine::pepper::{MAX_PEPPER, Pepper, PepperError};

/// Permission bits that a file of the daemon's own user must not have.
const FORBIDDEN_IF_OWN: u32 = 0o077;
/// Permission bits that a file of root must not have.
const FORBIDDEN_IF_ROOT: u32 = 0o037;

/// Keeps `open` from waiting for the writer of a named pipe.
const O_NONBLOCK: i32 = OFlags::NONBLOCK.bits() as i32;

/// Why a pepper cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum PepperFileError {
    /// The file cannot be read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The path names a directory, a pipe or a device.
    #[error("is not a regular file")]
    NotAFile,
    /// The file belongs to another user.
    #[error("belongs to user {0}: it has to be the daemon's own or root's")]
    WrongOwner(u32),
    /// Other users can read or write the file.
    #[error("has mode {mode:04o}, so that others can read or write the secret: chmod {advice} it")]
    TooPermissive {
        /// The permission bits of the file.
        mode: u32,
        /// The permission bits that it should have.
        advice: &'static str,
    },
    /// The content is not a pepper.
    #[error(transparent)]
    Pepper(#[from] PepperError),
}

impl PepperFileError {
    /// Whether only the permissions of this user prevent reading. The daemon's user may have them.
    pub fn is_permission_denied(&self) -> bool {
        matches!(self, Self::Io(error) if error.kind() == io::ErrorKind::PermissionDenied)
    }
}

pub(super) fn read(path: &Path) -> Result<Pepper, PepperFileError> {
    let file = File::options().read(true).custom_flags(O_NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(PepperFileError::NotAFile);
    }
    check_permissions(metadata.uid(), metadata.mode() & 0o7777, rustix::process::geteuid().as_raw())?;
    // The full capacity from the start: growing would leave a copy behind that is not wiped.
    let mut secret = Zeroizing::new(Vec::with_capacity(MAX_PEPPER + 3));
    file.take(MAX_PEPPER as u64 + 3).read_to_end(&mut secret)?;
    Ok(Pepper::new(&secret)?)
}

fn check_permissions(owner: u32, mode: u32, own: u32) -> Result<(), PepperFileError> {
    let (forbidden, advice) = match owner {
        0 => (FORBIDDEN_IF_ROOT, "0640 or 0600"),
        _ if owner == own => (FORBIDDEN_IF_OWN, "0600"),
        _ => return Err(PepperFileError::WrongOwner(owner)),
    };
    match mode & forbidden {
        0 => Ok(()),
        _ => Err(PepperFileError::TooPermissive { mode, advice }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_that_other_users_can_read_is_refused() {
        const OWN: u32 = 990;
        for (owner, mode, trusted) in [
            (OWN, 0o600, true),
            (OWN, 0o400, true),
            (OWN, 0o640, false),
            (OWN, 0o604, false),
            (OWN, 0o620, false),
            (0, 0o600, true),
            (0, 0o440, true),
            (0, 0o640, true),
            (0, 0o644, false),
            (0, 0o660, false),
            (1000, 0o600, false),
        ] {
            assert_eq!(check_permissions(owner, mode, OWN).is_ok(), trusted, "{owner} {mode:o}");
        }
        let message = check_permissions(0, 0o644, OWN).expect_err("open to all").to_string();
        let expected = "has mode 0644, so that others can read or write the secret: chmod 0640 or 0600 it";
        assert_eq!(message, expected);
    }

    #[test]
    fn directory_is_refused() {
        assert!(matches!(read(Path::new("/")), Err(PepperFileError::NotAFile)));
    }
}
