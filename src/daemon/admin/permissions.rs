//! Which users may use the admin socket, and for which commands.

use keyward_admin::message::Command;

/// The users that may use the admin socket, besides root and the daemon's own user. The lists are
/// sorted. A user in both lists is an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminUsers {
    /// Users that may give every command.
    pub uids: Box<[u32]>,
    /// Users that may only read the state of the daemon.
    pub read_uids: Box<[u32]>,
}

/// What a user may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Every command.
    Operator,
    /// Commands that report numbers and names, and change nothing.
    Reader,
}

impl AdminUsers {
    /// Whether there are users besides root and the daemon's own.
    pub fn has_others(&self) -> bool {
        !self.uids.is_empty() || !self.read_uids.is_empty()
    }

    /// The role of a user, if it may use the socket. `own_uid` is the daemon's own user.
    pub(super) fn role(&self, uid: u32, own_uid: u32) -> Option<Role> {
        if uid == 0 || uid == own_uid || self.uids.contains(&uid) {
            Some(Role::Operator)
        } else {
            self.read_uids.contains(&uid).then_some(Role::Reader)
        }
    }
}

impl Role {
    /// Whether it includes a command.
    pub(super) fn permits(self, command: &Command) -> bool {
        match self {
            Self::Operator => true,
            // Exhaustive, so that a new command is decided on.
            Self::Reader => match command {
                Command::Status | Command::Metrics | Command::Usage { .. } | Command::Version => true,
                Command::Reload { .. }
                | Command::Check { .. }
                | Command::Revoke(_)
                | Command::Unrevoke(_)
                | Command::Revocations { .. }
                | Command::Balance { .. }
                | Command::ResetBalance { .. }
                | Command::ResetCalendar => false,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use keyward_admin::message::Target;

    use super::*;

    #[test]
    fn user_in_both_lists_is_an_operator() {
        let users = AdminUsers { uids: [7, 8].into(), read_uids: [8, 9].into() };
        let roles = [0, 5, 7, 8, 9, 10].map(|uid| users.role(uid, 5));
        let (operator, reader) = (Some(Role::Operator), Some(Role::Reader));
        assert_eq!(roles, [operator, operator, operator, operator, reader, None]);
    }

    #[test]
    fn users_of_either_list_open_the_socket_to_others() {
        let lists: [(&[u32], &[u32], bool); 4] =
            [(&[], &[], false), (&[7], &[], true), (&[], &[7], true), (&[7], &[8], true)];
        for (uids, read_uids, expected) in lists {
            let users = AdminUsers { uids: uids.into(), read_uids: read_uids.into() };
            assert_eq!(users.has_others(), expected, "{users:?}");
        }
    }

    #[test]
    fn reader_may_read_the_state_and_nothing_else() {
        let target = || Target { key_id: Some("a".into()), ..Target::default() };
        let commands = [
            (Command::Status, true),
            (Command::Metrics, true),
            (Command::Usage { key_id: None, owner: None, top: Some(1) }, true),
            (Command::Version, true),
            (Command::Reload { force: false }, false),
            (Command::Check { source: None }, false),
            (Command::Revoke(target()), false),
            (Command::Unrevoke(target()), false),
            (Command::Revocations { after: None }, false),
            (Command::Balance { key_id: "a".into() }, false),
            (Command::ResetBalance { key_id: "a".into(), limit: None }, false),
            (Command::ResetCalendar, false),
        ];
        for (command, expected) in commands {
            assert_eq!(Role::Reader.permits(&command), expected, "{command:?}");
            assert!(Role::Operator.permits(&command), "{command:?}");
        }
    }
}
