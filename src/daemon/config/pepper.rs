//! Reading a pepper: from a file that nobody else can read.
//!
//! The rule is PostgreSQL's for private keys: a file of the daemon's own user is closed to everyone else (0600 or less); one of
//! root's may be readable by its group (0640 or less), which is how a service's user gets it.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;
use zeroize::Zeroizing;

use keyward_engine::pepper::{MAX_PEPPER, Pepper, PepperError};

/// Permission bits that a file of the daemon's own user must not have.
const CLOSED: u32 = 0o077;
/// The same for a file of root's.
const CLOSED_BUT_GROUP: u32 = 0o037;

/// Without it, opening a named pipe would wait for its writer.
const O_NONBLOCK: i32 = OFlags::NONBLOCK.bits() as i32;

/// Why there is no pepper.
#[derive(Debug, thiserror::Error)]
pub(super) enum PepperFileError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("is not a regular file")]
    NotAFile,
    #[error("belongs to user {0}: it has to be the daemon's own or root's")]
    Foreign(u32),
    #[error("has mode {mode:04o}, so that others can read or write the secret: chmod {advice} it")]
    Open { mode: u32, advice: &'static str },
    #[error(transparent)]
    Pepper(#[from] PepperError),
}

impl PepperFileError {
    pub(super) fn is_forbidden(&self) -> bool {
        matches!(self, Self::Io(error) if error.kind() == io::ErrorKind::PermissionDenied)
    }
}

pub(super) fn read(path: &Path) -> Result<Pepper, PepperFileError> {
    let file = File::options().read(true).custom_flags(O_NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(PepperFileError::NotAFile);
    }
    may_be_trusted(metadata.uid(), metadata.mode() & 0o7777, rustix::process::geteuid().as_raw())?;
    // Of the final size from the start, so that no part of it is left behind unwiped.
    let mut secret = Zeroizing::new(Vec::with_capacity(MAX_PEPPER + 3));
    file.take(MAX_PEPPER as u64 + 3).read_to_end(&mut secret)?;
    Ok(Pepper::new(&secret)?)
}

fn may_be_trusted(owner: u32, mode: u32, own: u32) -> Result<(), PepperFileError> {
    let (forbidden, advice) = match owner {
        0 => (CLOSED_BUT_GROUP, "0640 or 0600"),
        _ if owner == own => (CLOSED, "0600"),
        _ => return Err(PepperFileError::Foreign(owner)),
    };
    match mode & forbidden {
        0 => Ok(()),
        _ => Err(PepperFileError::Open { mode, advice }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_needs_it_may_read_it() {
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
            assert_eq!(may_be_trusted(owner, mode, OWN).is_ok(), trusted, "{owner} {mode:o}");
        }
        let message = may_be_trusted(0, 0o644, OWN).expect_err("open to all").to_string();
        let expected = "has mode 0644, so that others can read or write the secret: chmod 0640 or 0600 it";
        assert_eq!(message, expected);
    }

    #[test]
    fn a_directory_is_none() {
        assert!(matches!(read(Path::new("/")), Err(PepperFileError::NotAFile)));
    }
}
