//! A revoked key or owner stays revoked through every sequence of source
//! states in which no export revokes all of its rows. `tests/integration/revocation.rs` tests
//! exports that do.

use std::path::Path;
use std::thread;

use crate::support::{Daemon, Export, Row, Setup, replace_export, row};
use keyward_admin::message::{Command, Target};
use keyward_client::Request;

/// The state of a key in an export. The key is in rotation: it has two rows.
#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Absent,
    Active,
    Disabled,
    /// One row is revoked, the other active.
    HalfRevoked,
    /// One row is revoked, the other disabled, and the disabled one may become active again.
    RevokedAndDisabled,
    /// Active, but of another owner.
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

/// Exports between the revocation and the last export, in which every key is active again.
const EXPORTS: usize = 3;
const SEQUENCES: usize = STATES.len().pow(EXPORTS as u32);

const TARGET_KINDS: [TargetKind; 2] = [TargetKind::Key, TargetKind::Owner];

#[derive(Clone, Copy, Debug, PartialEq)]
enum TargetKind {
    Key,
    Owner,
}

/// A key that passes through one sequence of states.
#[derive(Debug)]
struct Subject {
    kind: TargetKind,
    states: [State; EXPORTS],
    key_id: String,
    owner: String,
}

impl Subject {
    fn all() -> Vec<Self> {
        let subject = |kind, number: usize| {
            let digit = |at| STATES[number / STATES.len().pow(at) % STATES.len()];
            let states = std::array::from_fn(|at| digit(at as u32));
            Self {
                kind,
                states,
                key_id: format!("{kind:?}-{number}"),
                owner: format!("owner-{kind:?}-{number}"),
            }
        };
        TARGET_KINDS.iter().flat_map(|kind| (0..SEQUENCES).map(|number| subject(*kind, number))).collect()
    }

    fn target(&self) -> Target {
        match self.kind {
            TargetKind::Key => Target { key_id: Some(self.key_id.clone()), owner: None },
            TargetKind::Owner => Target { key_id: None, owner: Some(self.owner.clone()) },
        }
    }

    /// The keys of its two rows.
    fn keys(&self) -> [String; 2] {
        ["old", "new"].map(|row| format!("{row}-{}", self.key_id))
    }

    fn rows(&self, state: State) -> Vec<Row> {
        let owner = if state == State::OtherOwner { "another-owner" } else { &self.owner };
        let statuses = match state {
            State::Absent => return Vec::new(),
            State::Active | State::OtherOwner => ["active", "active"],
            State::Disabled => ["disabled", "disabled"],
            State::HalfRevoked => ["revoked", "active"],
            State::RevokedAndDisabled => ["revoked", "disabled"],
        };
        let rows = self.keys().into_iter().zip(statuses);
        rows.map(|(key, status)| row(key).id(&*self.key_id).owner(owner).status(status)).collect()
    }

    /// The verdict on both of its keys, once it is revoked.
    fn expected(&self, state: State) -> &'static str {
        match state {
            State::Absent => "UNKNOWN_KEY",
            // Its new owner has not been revoked.
            State::OtherOwner if self.kind == TargetKind::Owner => "ALLOWED",
            _ => "REVOKED",
        }
    }
}

/// The export in which each subject has the state that `state` returns, and a key that is never
/// revoked.
fn export(subjects: &[Subject], state: impl Fn(&Subject) -> State) -> Export {
    let rows = subjects.iter().flat_map(|subject| subject.rows(state(subject)));
    Export::new([row("witness").owner("w").status("active")]).rows(rows)
}

/// Asserts that every key has the verdict of its state, and that every revocation is still listed.
fn assert_revoked(daemon: &Daemon, subjects: &[Subject], what: &str, state: impl Fn(&Subject) -> State) {
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
                    keyward_admin::send_command(admin, &Command::Revoke(subject.target())).expect("revoked");
                }
            });
        }
    });
}

#[test]
fn revocation_survives_every_sequence_of_disagreeing_exports() {
    let subjects = Subject::all();
    let everything_active = |_: &Subject| State::Active;
    // Half of the keys may be missing at a time. Only this test starts reloads.
    let setup = Setup::new(export(&subjects, everything_active));
    let mut daemon = setup.config("[source]\nsettle = \"0s\"\npoll = \"1h\"\nmax_shrink = 1.0").start();
    revoke_all(&daemon.admin_socket(), &subjects);
    assert_revoked(&daemon, &subjects, "revoked", everything_active);
    let publish = |daemon: &Daemon, export: Export| {
        replace_export(&daemon.setup.source(), export);
        let outcome = daemon.force_reload();
        assert!(outcome.accepted, "{:?}", outcome.error);
    };
    for at in 0..EXPORTS {
        publish(&daemon, export(&subjects, |subject| subject.states[at]));
        assert_revoked(&daemon, &subjects, &format!("export {at}"), |subject| subject.states[at]);
        if at == 1 {
            daemon = daemon.kill_and_restart();
            assert_revoked(&daemon, &subjects, "restarted", |subject| subject.states[at]);
        }
    }
    publish(&daemon, export(&subjects, everything_active));
    assert_revoked(&daemon, &subjects, "all active again", everything_active);
    let daemon = daemon.kill_and_restart();
    assert_revoked(&daemon, &subjects, "restarted at the end", everything_active);
}
