//! Socket activation: the listening sockets that systemd passed.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use rustix::net::sockopt::socket_acceptconn;
use rustix::net::{AddressFamily, SocketType};
use tracing::warn;

/// The name of the verify socket in systemd's units (`FileDescriptorName=`).
pub const VERIFY: &str = "verify";
/// The name of the admin socket.
pub const ADMIN: &str = "admin";

/// The sockets that systemd passed.
#[derive(Debug)]
pub struct Sockets {
    /// The verify socket.
    pub verify: UnixListener,
    /// The admin socket.
    pub admin: UnixListener,
}

/// Why the sockets that systemd passed cannot be used. The daemon does not bind its own instead,
/// because clients would not find them.
#[derive(Debug, thiserror::Error)]
pub enum SocketsError {
    /// The sockets are not the two that the daemon needs.
    #[error(
        "systemd passed {}, and {problem}. The daemon needs two listening Unix stream sockets, named verify and admin: set \
         FileDescriptorName= in each socket unit, and list both units in Sockets= of the service; or pass no socket, and the \
         daemon binds both itself",
        list(passed)
    )]
    Unexpected {
        /// The descriptors that were passed.
        passed: Vec<Passed>,
        /// What is wrong with them.
        problem: String,
    },
    /// The environment variables are malformed.
    #[error(
        "LISTEN_FDS, LISTEN_FDNAMES and LISTEN_PID do not describe sockets as systemd passes them: {0}. Start the daemon by its \
         unit, or without these variables"
    )]
    Environment(#[from] io::Error),
}

/// A descriptor that systemd passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
    /// The name: `FileDescriptorName=`, or by default the name of the unit.
    pub name: String,
    /// The kind of descriptor, or the path of a listening Unix stream socket.
    pub kind: String,
}

fn list(passed: &[Passed]) -> String {
    let all = passed.iter().map(|Passed { name, kind }| format!("{name:?} ({kind})"));
    all.collect::<Vec<_>>().join(", ")
}

/// Takes the sockets that systemd passed. `None`: systemd passed no sockets. To be called once, at
/// the start.
///
/// # Errors
/// When systemd passed anything but the two sockets that the daemon needs, with their names.
pub fn take_sockets() -> Result<Option<Sockets>, SocketsError> {
    let names: Vec<String> = sd_notify::listen_fds_with_names()?.map(|(_, name)| name).collect();
    if names.is_empty() {
        if let Ok(pid) = std::env::var("LISTEN_PID") {
            warn!(listen_pid = pid, "the sockets in LISTEN_FDS are for another process, and are not used");
        }
        return Ok(None);
    }
    let mut descriptors = listenfd::ListenFd::from_env();
    let taken: Vec<_> = (0..names.len()).map(|index| take(&mut descriptors, index)).collect();
    match_names(names, taken).map(Some)
}

/// Takes a listening Unix stream socket. The error is the kind of another descriptor.
fn take(descriptors: &mut listenfd::ListenFd, index: usize) -> Result<UnixListener, &'static str> {
    if let Ok(Some(listener)) = descriptors.take_unix_listener(index) {
        return match socket_acceptconn(&listener) {
            Ok(true) => Ok(listener),
            _ => Err("a Unix stream socket that does not listen"),
        };
    }
    let is_seqpacket = descriptors.take_custom::<OwnedFd>(
        index,
        i32::from(AddressFamily::UNIX.as_raw()),
        SocketType::SEQPACKET.as_raw() as i32,
        "Unix seqpacket socket",
    );
    Err(if matches!(is_seqpacket, Ok(Some(_))) {
        "a Unix seqpacket socket"
    } else if matches!(descriptors.take_unix_datagram(index), Ok(Some(_))) {
        "a Unix datagram socket"
    } else if matches!(descriptors.take_tcp_listener(index), Ok(Some(_))) {
        "a TCP socket"
    } else if matches!(descriptors.take_udp_socket(index), Ok(Some(_))) {
        "a UDP socket"
    } else {
        "not a Unix socket"
    })
}

fn match_names(
    names: Vec<String>,
    taken: Vec<Result<UnixListener, &'static str>>,
) -> Result<Sockets, SocketsError> {
    let kind = |taken: &Result<UnixListener, &str>| match taken {
        Ok(listener) => path(listener),
        Err(kind) => (*kind).to_owned(),
    };
    let passed =
        names.iter().zip(&taken).map(|(name, taken)| Passed { name: name.clone(), kind: kind(taken) });
    let passed: Vec<Passed> = passed.collect();
    let (mut verify, mut admin, mut problems) = (None, None, Vec::new());
    for (Passed { name, kind }, taken) in passed.iter().zip(taken) {
        let slot = match name.as_str() {
            VERIFY => &mut verify,
            ADMIN => &mut admin,
            _ => {
                problems.push(format!("{name:?} is neither verify nor admin"));
                continue;
            }
        };
        match taken {
            Err(_) => {
                problems.push(format!("{name:?} is {kind} (ListenStream= with a path makes the right one)"))
            }
            Ok(_) if slot.is_some() => problems.push(format!("there is more than one {name:?}")),
            Ok(listener) => *slot = Some(listener),
        }
    }
    for expected in [VERIFY, ADMIN] {
        if !names.iter().any(|name| name == expected) {
            problems.push(format!("none is named {expected}"));
        }
    }
    match (verify, admin) {
        (Some(verify), Some(admin)) if problems.is_empty() => Ok(Sockets { verify, admin }),
        _ => Err(SocketsError::Unexpected { passed, problem: problems.join(", ") }),
    }
}

fn path(listener: &UnixListener) -> String {
    let address = listener.local_addr().ok();
    let path = address.as_ref().and_then(|address| address.as_pathname());
    path.map_or_else(|| "a Unix stream socket without a path".to_owned(), |path| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    type Taken = Result<UnixListener, &'static str>;

    fn listener(directory: &tempfile::TempDir, name: &str) -> Taken {
        Ok(UnixListener::bind(directory.path().join(name)).expect("binds"))
    }

    #[test]
    fn only_one_socket_of_each_name_is_accepted() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut count = 0;
        let mut matched = |names: &[&str]| {
            let taken = names.iter().map(|_| {
                count += 1;
                listener(&directory, &count.to_string())
            });
            match_names(names.iter().map(|name| (*name).to_owned()).collect(), taken.collect())
        };
        for names in [["verify", "admin"], ["admin", "verify"]] {
            assert!(matched(&names).is_ok());
        }
        for (names, problem) in [
            (&["verify"][..], "none is named admin"),
            (&["admin"], "none is named verify"),
            (
                &["keyward.socket", "admin"],
                "\"keyward.socket\" is neither verify nor admin, none is named verify",
            ),
            (&["unknown"], "none is named verify, none is named admin"),
            (&["verify", "admin", "http"], "\"http\" is neither verify nor admin"),
            (&["verify", "admin", "verify"], "there is more than one \"verify\""),
            (&["", "admin"], "\"\" is neither verify nor admin"),
        ] {
            let error = matched(names).expect_err(problem).to_string();
            assert!(error.contains(problem) && error.contains("FileDescriptorName="), "{error}");
            assert!(names.iter().all(|name| error.contains(&format!("{name:?} (/"))), "{error}");
        }
    }

    #[test]
    fn socket_of_another_kind_is_refused_by_name_and_kind() {
        let directory = tempfile::tempdir().expect("a directory");
        let names = ["verify", "admin"].map(str::to_owned).to_vec();
        let taken = vec![Err("a Unix datagram socket"), listener(&directory, "admin")];
        let error = match_names(names, taken).expect_err("no stream socket").to_string();
        assert!(error.contains("\"verify\" is a Unix datagram socket (ListenStream="), "{error}");
        assert!(!error.contains("none is named"), "{error}");
    }
}
