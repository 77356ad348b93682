//! What systemd is told, and the sockets it may have opened. Outside systemd all of it does nothing.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::{Mutex, PoisonError};

use rustix::net::sockopt::socket_acceptconn;
use rustix::net::{AddressFamily, SocketType};
use sd_notify::NotifyState;
use tracing::warn;

/// Longest status line: systemd's datagram is one page, and nobody reads more.
const MAX_STATUS: usize = 512;

/// The daemon answers requests, from the start or again after a reload.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// A reload begins; [`ready`] ends it. `Type=notify-reload` wants the time of it.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(time) => tell(&[NotifyState::Reloading, time]),
        Err(error) => warn!(%error, "cannot read the monotonic clock"),
    }
}

/// The status line's parts. They are set by different threads, and systemd shows the latest line only.
static STATUS: Mutex<StatusLine> = Mutex::new(StatusLine { text: String::new(), unwritten: String::new() });

struct StatusLine {
    text: String,
    unwritten: String,
}

/// What `systemctl status` shows.
pub fn status(text: &str) {
    set(|status| text.lines().next().unwrap_or_default().clone_into(&mut status.text));
}

/// What it shows before that: the names of the files that are not being written, if there are any.
pub fn unwritten(files: &str) {
    set(|status| files.clone_into(&mut status.unwritten));
}

fn set(change: impl FnOnce(&mut StatusLine)) {
    let mut status = STATUS.lock().unwrap_or_else(PoisonError::into_inner);
    let before = status.line();
    change(&mut status);
    let line = status.line();
    // Under the lock, so that the latest state is told last.
    if line != before {
        tell(&[NotifyState::Status(&line)]);
    }
}

impl StatusLine {
    /// A status is one line, and what is shown first is cut off last.
    fn line(&self) -> String {
        let unwritten = match self.unwritten.as_str() {
            "" => String::new(),
            files => format!("NOT WRITTEN: {files}; "),
        };
        unwritten.chars().chain(self.text.chars()).take(MAX_STATUS).collect()
    }
}

/// The daemon is draining.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!(%error, "cannot notify systemd");
    }
}

/// Names of the two sockets in systemd's units (`FileDescriptorName=`).
pub const VERIFY: &str = "verify";
/// See [`VERIFY`].
pub const ADMIN: &str = "admin";

/// The sockets that systemd passed.
#[derive(Debug)]
pub struct Sockets {
    /// For requests.
    pub verify: UnixListener,
    /// For operators.
    pub admin: UnixListener,
}

/// Why the sockets that systemd passed cannot be used. The daemon does not bind its own in their place: it would answer where no
/// client asks.
#[derive(Debug, thiserror::Error)]
pub enum SocketsError {
    /// There are others than the two.
    #[error(
        "systemd passed {}, and {problem}. The daemon needs two listening Unix stream sockets, named verify and admin: set \
         FileDescriptorName= in each socket unit, and list both units in Sockets= of the service; or pass no socket, and the \
         daemon binds both itself",
        listed(passed)
    )]
    Unexpected {
        /// What was passed.
        passed: Vec<Passed>,
        /// What is wrong with it.
        problem: String,
    },
    /// What the environment says of them makes no sense.
    #[error(
        "LISTEN_FDS, LISTEN_FDNAMES and LISTEN_PID do not describe sockets as systemd passes them: {0}. Start the daemon by its \
         unit, or without these variables"
    )]
    Environment(#[from] io::Error),
}

/// A descriptor that systemd passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
    /// Its name: `FileDescriptorName=`, or the unit's name without that.
    pub name: String,
    /// What it is; a listening Unix stream socket is told by its path.
    pub what: String,
}

fn listed(passed: &[Passed]) -> String {
    let all = passed.iter().map(|Passed { name, what }| format!("{name:?} ({what})"));
    all.collect::<Vec<_>>().join(", ")
}

/// Takes the sockets that systemd passed: both, or none outside systemd. To be called once, at the start.
///
/// # Errors
/// When anything else was passed than the two sockets that the daemon needs, under their names.
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

/// Takes a listening Unix stream socket, or says what it is instead.
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
    let what = |taken: &Result<UnixListener, &str>| match taken {
        Ok(listener) => path(listener),
        Err(what) => (*what).to_owned(),
    };
    let passed =
        names.iter().zip(&taken).map(|(name, taken)| Passed { name: name.clone(), what: what(taken) });
    let passed: Vec<Passed> = passed.collect();
    let (mut verify, mut admin, mut problems) = (None, None, Vec::new());
    for (Passed { name, what }, taken) in passed.iter().zip(taken) {
        let place = match name.as_str() {
            VERIFY => &mut verify,
            ADMIN => &mut admin,
            _ => {
                problems.push(format!("{name:?} is neither verify nor admin"));
                continue;
            }
        };
        match taken {
            Err(_) => {
                problems.push(format!("{name:?} is {what} (ListenStream= with a path makes the right one)"))
            }
            Ok(_) if place.is_some() => problems.push(format!("there is more than one {name:?}")),
            Ok(listener) => *place = Some(listener),
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
        for fit in [["verify", "admin"], ["admin", "verify"]] {
            assert!(matched(&fit).is_ok());
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

    #[test]
    fn status_line_begins_with_what_is_not_written() {
        let mut status = StatusLine { text: "serving 3 keys".to_owned(), unwritten: String::new() };
        assert_eq!(status.line(), "serving 3 keys");
        "balances, usage.jsonl".clone_into(&mut status.unwritten);
        assert_eq!(status.line(), "NOT WRITTEN: balances, usage.jsonl; serving 3 keys");
        status.text = "x".repeat(2 * MAX_STATUS);
        assert_eq!(status.line().chars().count(), MAX_STATUS);
    }
}
