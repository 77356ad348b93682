//! The sockets of the daemon, if systemd has opened them.

use std::io;
use std::os::unix::net::UnixListener;

use keyward_service::passed_sockets::{self, PassedKind, PassedSocket};

/// The name of the verify socket in systemd's units (`FileDescriptorName=`).
pub(super) const VERIFY: &str = "verify";
/// The name of the admin socket.
pub(super) const ADMIN: &str = "admin";

/// The sockets that systemd passed.
#[derive(Debug)]
pub(super) struct SystemdSockets {
    /// The verify socket.
    pub(super) verify: UnixListener,
    /// The admin socket.
    pub(super) admin: UnixListener,
}

/// Why the sockets that systemd passed cannot be used. The daemon does not bind its own instead,
/// because clients would not find them.
#[derive(Debug, thiserror::Error)]
pub enum SystemdSocketsError {
    /// The sockets are not the two that the daemon needs.
    #[error(
        "systemd passed {passed}, and {problem}. The daemon needs two listening Unix stream sockets, named verify and admin: set \
         FileDescriptorName= in each socket unit, and list both units in Sockets= of the service; or pass no socket, and the \
         daemon binds both itself"
    )]
    Unexpected {
        /// The descriptors that were passed, with their names.
        passed: String,
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

/// Takes the sockets that systemd passed. `None`: systemd passed no sockets. To be called once, at
/// the start.
///
/// # Errors
/// When systemd passed anything but the two sockets that the daemon needs, with their names.
pub(super) fn take() -> Result<Option<SystemdSockets>, SystemdSocketsError> {
    let passed = passed_sockets::take()?;
    if passed.is_empty() { Ok(None) } else { match_names(passed).map(Some) }
}

fn match_names(passed: Vec<PassedSocket>) -> Result<SystemdSockets, SystemdSocketsError> {
    let all = passed.iter().map(|PassedSocket { name, kind }| format!("{name:?} ({kind})"));
    let all = all.collect::<Vec<_>>().join(", ");
    let mut problems = Vec::new();
    let is_named = |expected: &str| passed.iter().any(|PassedSocket { name, .. }| name == expected);
    let missing: Vec<&str> = [VERIFY, ADMIN].into_iter().filter(|expected| !is_named(expected)).collect();
    let (mut verify, mut admin) = (None, None);
    for PassedSocket { name, kind } in passed {
        let slot = match name.as_str() {
            VERIFY => &mut verify,
            ADMIN => &mut admin,
            _ => {
                problems.push(format!("{name:?} is neither verify nor admin"));
                continue;
            }
        };
        match kind {
            PassedKind::Unix(_) if slot.is_some() => {
                problems.push(format!("there is more than one {name:?}"))
            }
            PassedKind::Unix(listener) => *slot = Some(listener),
            kind => {
                problems.push(format!("{name:?} is {kind} (ListenStream= with a path makes the right one)"))
            }
        }
    }
    problems.extend(missing.into_iter().map(|expected| format!("none is named {expected}")));
    match (verify, admin) {
        (Some(verify), Some(admin)) if problems.is_empty() => Ok(SystemdSockets { verify, admin }),
        _ => Err(SystemdSocketsError::Unexpected { passed: all, problem: problems.join(", ") }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener(directory: &tempfile::TempDir, file: &str) -> PassedKind {
        PassedKind::Unix(UnixListener::bind(directory.path().join(file)).expect("binds"))
    }

    #[test]
    fn only_one_socket_of_each_name_is_accepted() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut count = 0;
        let mut matched = |names: &[&str]| {
            let passed = names.iter().map(|name| {
                count += 1;
                PassedSocket { name: (*name).to_owned(), kind: listener(&directory, &count.to_string()) }
            });
            match_names(passed.collect())
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
        let passed = vec![
            PassedSocket { name: "verify".to_owned(), kind: PassedKind::Other("a Unix datagram socket") },
            PassedSocket { name: "admin".to_owned(), kind: listener(&directory, "admin") },
        ];
        let error = match_names(passed).expect_err("no stream socket").to_string();
        assert!(error.contains("\"verify\" is a Unix datagram socket (ListenStream="), "{error}");
        assert!(!error.contains("none is named"), "{error}");
    }
}
