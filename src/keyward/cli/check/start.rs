//! Predicts what would prevent a start of the daemon, apart from the source. No file is created or
//! changed, and no lock is taken.

use std::io;

use serde::Serialize;

use keyward_daemon::balances::{self, BalanceLoss};
use keyward_daemon::config::Config;
use keyward_daemon::revocation::{self, ListPreview, LoadedList};
use keyward_daemon::server::preview_sockets;
use keyward_engine::snapshot::KeyTable;
use keyward_state::{StateDir, StateDirError};

/// What a start of the daemon would find.
#[derive(Default, Serialize)]
pub(super) struct StartPreview {
    /// Why it would fail.
    pub(super) failures: Vec<String>,
    /// What it would report, and what this user cannot tell.
    pub(super) notes: Vec<String>,
    /// The loss of balances because of which it would not serve keys with quotas or credits.
    #[serde(skip)]
    balance_loss: Option<BalanceLoss>,
}

impl StartPreview {
    pub(super) fn is_empty(&self) -> bool {
        self.failures.is_empty() && self.notes.is_empty()
    }

    /// Looks at the sockets and the state directory. Returns the list of revocations, as
    /// [`revocations`](Self::revocations) does.
    pub(super) fn inspect(&mut self, config: &Config) -> Option<LoadedList> {
        let server = &config.server;
        for error in preview_sockets(server) {
            if error.is_permission_denied() {
                self.notes.push(format!("whether a start can make its socket is not known: {error}"));
            } else {
                self.failures.push(format!("unless systemd passes its sockets: {error}"));
            }
        }
        if server.state_dir_is_explicit {
            match StateDir::preview(&server.state_dir) {
                Ok(()) => {}
                Err(StateDirError::Unusable(error))
                    if error.error.kind() == io::ErrorKind::PermissionDenied =>
                {
                    self.notes
                        .push(format!("whether a start can use its state directory is not known: {error}"));
                }
                Err(error) => {
                    self.failures.push(error.to_string());
                    return None;
                }
            }
        }
        let revocations = self.revocations(config);
        let has_served = revocations.as_ref().is_some_and(LoadedList::has_changed);
        match balances::preview(&config.server.state_dir, has_served) {
            Ok(loss) => self.balance_loss = loss,
            Err(error) if error.error.kind() == io::ErrorKind::PermissionDenied => {
                self.notes.push(format!("whether a start has the saved balances is not known: {error}"));
            }
            Err(error) => self.failures.push(error.to_string()),
        }
        revocations
    }

    /// The loss of balances because of which a start would not serve `keys`.
    pub(super) fn balances(&mut self, keys: &KeyTable) -> Option<BalanceLoss> {
        if !keys.has_counted_limits() {
            return None;
        }
        self.notes.push(
            "calendar quotas and credits are counted on each host by itself: a key that is served on two hosts can spend both"
                .to_owned(),
        );
        self.balance_loss.clone()
    }

    /// Reads the list of revocations as a start would. `None`: it would fail, or this user may not
    /// read the list.
    fn revocations(&mut self, config: &Config) -> Option<LoadedList> {
        match revocation::preview(&config.server.state_dir) {
            Ok(ListPreview { list, accepted_loss }) => {
                if let Some(loss) = accepted_loss {
                    let remaining = list.len();
                    self.notes.push(format!(
                        "an operator has accepted the loss of revocations for the next start, which goes on with {remaining}: {loss}"
                    ));
                }
                Some(list)
            }
            Err(error) if error.is_permission_denied() => {
                self.notes.push(format!(
                    "whether a start accepts the list of revocations is not known: {error}; run the check as root or as the \
                     daemon's user"
                ));
                None
            }
            Err(error) => {
                self.failures.push(error.to_string());
                None
            }
        }
    }
}
