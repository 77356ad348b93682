//! Promise 2 over reloads: a revoked key or owner stays revoked through every sequence of states that the source can give it,
//! as long as no export says itself that all of its rows are revoked. What happens after such an export is in
//! `tests/integration/revocation.rs`.

use std::fmt::Write as _;
use std::path::Path;
use std::thread;

use crate::support::{Daemon, Setup, replace_export, sha256_hex};
use keyward_client::Request;
use keyward_daemon::admin::message::{Command, Target};

/// What an export says of a key, which is in rotation: it has two rows.
#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Absent,
    Active,
    Disabled,
    /// One row is revoked, and the other active.
    HalfRevoked,
    /// One row is revoked, and the other disabled: neither is in force, but one may be again.
    RevokedAndDisabled,
    /// Active, and of another owner.
    OtherOwner,
}

const STATES: [State; 6] = [
    State::Absent,
    State::Active,
    State::Disabled,
    State::HalfRevoked,
    State::RevokedAndDisabled,
    State::OtherOwner,
];

/// Exports between the revocation and the one in which everything is active again.
const EXPORTS: usize = 3;
const SEQUENCES: usize = STATES.len().pow(EXPORTS as u32);

const BY: [By; 2] = [By::Key, By::Owner];

#[derive(Clone, Copy, Debug, PartialEq)]
enum By {
    Key,
    Owner,
}

/// A key that goes through one sequence.
#[derive(Debug)]
struct Subject {
    by: By,
    states: [State; EXPORTS],
    key_id: String,
    owner: String,
}

impl Subject {
    fn all() -> Vec<Self> {
        let subject = |by, number: usize| {
            let digit = |at| STATES[number / STATES.len().pow(at) % STATES.len()];
            let states = std::array::from_fn(|at| digit(at as u32));
            Self { by, states, key_id: format!("{by:?}-{number}"), owner: format!("owner-{by:?}-{number}") }
        };
        BY.iter().flat_map(|by| (0..SEQUENCES).map(|number| subject(*by, number))).collect()
    }

    fn target(&self) -> Target {
        match self.by {
            By::Key => Target { key_id: Some(self.key_id.clone()), owner: None },
            By::Owner => Target { key_id: None, owner: Some(self.owner.clone()) },
        }
    }

    /// The keys of its two rows.
    fn keys(&self) -> [String; 2] {
        ["old", "new"].map(|row| format!("{row}-{}", self.key_id))
    }

    fn rows(&self, state: State) -> String {
        let owner = if state == State::OtherOwner { "another-owner" } else { &self.owner };
        let statuses = match state {
            State::Absent => return String::new(),
            State::Active | State::OtherOwner => ["active", "active"],
            State::Disabled => ["disabled", "disabled"],
            State::HalfRevoked => ["revoked", "active"],
            State::RevokedAndDisabled => ["revoked", "disabled"],
        };
        let rows = self.keys().into_iter().zip(statuses);
        rows.map(|(key, status)| format!("{},{},{owner},{status}\n", sha256_hex(&key), self.key_id)).collect()
    }

    /// The verdict on both of its keys, once it is revoked.
    fn expected(&self, state: State) -> &'static str {
        match state {
            State::Absent => "UNKNOWN_KEY",
            // Its new owner has not been revoked.
            State::OtherOwner if self.by == By::Owner => "ALLOWED",
            _ => "REVOKED",
        }
    }
}

/// The export in which each subject has the state that `state` says; a key beside them is never revoked.
fn export(subjects: &[Subject], state: impl Fn(&Subject) -> State) -> String {
    let mut text = format!("key_hash,key_id,owner,status\n{},witness,w,active\n", sha256_hex("witness"));
    for subject in subjects {
        write!(text, "{}", subject.rows(state(subject))).expect("a String");
    }
    text
}

/// Every key of every subject has the verdict that belongs to its state, and every revocation is still on the list.
fn check(daemon: &Daemon, subjects: &[Subject], what: &str, state: impl Fn(&Subject) -> State) {
    let keys: Vec<String> = subjects.iter().flat_map(Subject::keys).collect();
    let requests: Vec<Request<'_>> = keys.iter().map(String::as_str).map(Request::new).collect();
    let answers = daemon.client().verify_many(&requests);
    let owners = subjects.iter().flat_map(|subject| [subject; 2]);
    for (subject, answer) in owners.zip(answers) {
        let answer = answer.expect("an answer");
        assert_eq!(answer.verdict().name(), subject.expected(state(subject)), "{what}: {subject:?}");
    }
    assert_eq!(daemon.verdict("witness"), "ALLOWED", "{what}");
    assert_eq!(daemon.status().revocations_total, subjects.len(), "{what}");
}

fn revoke_all(admin: &Path, subjects: &[Subject]) {
    thread::scope(|scope| {
        for part in subjects.chunks(subjects.len().div_ceil(8)) {
            scope.spawn(move || {
                for subject in part {
                    keyward_daemon::admin::send_command(admin, &Command::Revoke(subject.target()))
                        .expect("revoked");
                }
            });
        }
    });
}

#[test]
fn revocation_outlives_every_sequence_of_exports_that_do_not_agree() {
    let subjects = Subject::all();
    let everything_active = |_: &Subject| State::Active;
    // Half of the keys may be missing at a time, and reloads are made by this test alone.
    let setup = Setup::new(&export(&subjects, everything_active));
    let mut daemon = setup.config("[source]\nsettle = \"0s\"\npoll = \"1h\"\nmax_shrink = 1.0").start();
    revoke_all(&daemon.admin_socket(), &subjects);
    check(&daemon, &subjects, "revoked", everything_active);
    let publish = |daemon: &Daemon, export: &str| {
        replace_export(&daemon.setup.source(), export);
        let outcome = daemon.force_reload();
        assert!(outcome.accepted, "{:?}", outcome.error);
    };
    for at in 0..EXPORTS {
        publish(&daemon, &export(&subjects, |subject| subject.states[at]));
        check(&daemon, &subjects, &format!("export {at}"), |subject| subject.states[at]);
        if at == 1 {
            daemon = daemon.restart();
            check(&daemon, &subjects, "restarted", |subject| subject.states[at]);
        }
    }
    publish(&daemon, &export(&subjects, everything_active));
    check(&daemon, &subjects, "all active again", everything_active);
    let daemon = daemon.restart();
    check(&daemon, &subjects, "restarted at the end", everything_active);
}
