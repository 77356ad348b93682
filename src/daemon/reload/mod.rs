//! Reloads: new keys come into force, or are refused.
//!
//! # The order of a reload
//!
//! All of it happens on one thread, one reload at a time ([`ReloadLoop::reload`]). No request ever
//! waits for it.
//!
//! 1. The thread is triggered: by the [`watch`], the poll, a signal or a command ([`trigger`]). For
//!    a signal or a command, it reads the configuration again.
//! 2. It opens the source, waits until the file settles, reads it, and verifies that it was one
//!    file from beginning to end ([`load`], [`read`]).
//! 3. It checks the memory for a comparison. It compares the new keys with those in force, or at
//!    startup with the last good ones, and the [`guard`] and the [pepper guard](pepper_guard)
//!    decide. Keys of rows that are set aside inherit the state that they had.
//! 4. It checks the memory for a snapshot, reserves generations if few are left, allocates buckets,
//!    and marks revocations in the new snapshot ([`swap`]). Commands wait from the end of that to the
//!    swap. What they have revoked since step 3 is compared like the rest, and may still refuse the
//!    source.
//! 5. It sets the time zone of calendar windows, and swaps the snapshots in the next generation,
//!    which advances the epoch ([`publish`](crate::publish)).
//! 6. It waits until every worker has passed the epoch. From then on, no answer of an older
//!    snapshot can leave on any connection.
//! 7. Revocations that the source has confirmed for long enough leave the list, and the slots of
//!    buckets that are no longer used are reclaimed. Removing an entry waits, without a timeout,
//!    for one attempt to write the removal: a disk that hangs holds up the acknowledgement,
//!    although the new keys are in force.
//! 8. The accepted source is recorded in `accepted_source.json`, durably, and the keys are queued
//!    to be written for the next start ([`last_good`]). If the record cannot be written, the answer
//!    says that the reload is not durable. Takeaways of refused sources are forgotten.
//! 9. The settings that the source was read with come into force. If commands have arrived
//!    meanwhile, the file's state and the configuration are read again, to decide which of them
//!    share the result ([below](#shared-reloads)).
//! 10. The outcome is recorded in the audit trail, so an acknowledged outcome is always in it. Then
//!     it goes to the log, `keyward status` and systemd ([`report`]), and the watch follows the
//!     path in force.
//! 11. The waiting commands are answered.
//! 12. The old snapshot is freed. No command waits for that.
//!
//! A reload that fails before the swap grants nothing. It takes away only what
//! `source.apply_takeaways_of_refused` allows ([`apply_takeaways`]). At startup, the last good keys
//! are served instead. Steps 10 and 11 follow either way.
//!
//! # Shared reloads
//!
//! A reload requested while one is running shares its result if a second run could not differ: the
//! running one is not forced, and, observed after the request, the file and the configuration are
//! the ones that were read. All other requests that arrive meanwhile share the next reload.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::audit::Audit;
use crate::balances::{BalanceRenewal, PendingLoss};
use crate::clock::Clock;
use crate::publish::Publisher;
use crate::revocation::{Retention, Revocations};
use keyward_engine::global_policy::GlobalPolicy;
use keyward_engine::limiter::{Limiter, SlotAllocator};

mod apply_takeaways;
mod bad_rows;
mod check;
mod compare;
mod durations;
mod error;
mod file_state;
mod guard;
mod history;
pub mod last_good;
mod load;
mod memory_limits;
mod parallel;
mod pepper_guard;
mod pepper_in_use;
mod read;
mod refusal;
mod reload_loop;
mod report;
mod source_file;
mod stale;
mod swap;
#[cfg(test)]
mod tests;
mod trigger;
mod watch;

pub use apply_takeaways::TakeawayReport;
pub use bad_rows::{BadRowPolicy, SetAside};
pub use check::{CheckRequest, Evaluation, Preview};
pub use error::ReloadError;
pub use file_state::FileState;
pub use guard::{Changes, Tolerance, counts};
pub use history::{AcceptedReload, History, Outcome};
pub use last_good::LastGoodStore;
pub use load::{LoadedSource, ParsedSource};
pub use memory_limits::MemoryError;
pub use read::RowObserver;
pub use refusal::Refusal;
use reload_loop::{LoadedFrom, ReloadLoop, retry_while_changing};
pub use source_file::SourceFile;
pub use stale::Stale;
pub use trigger::{Trigger, trigger_channel};

/// Key ids in a report of takeaways or of rows that were set aside: a screenful.
const REPORTED_KEYS: usize = 20;

/// Keys that a message, the log or the audit trail names: enough to find out what they have in
/// common.
pub const NAMED_KEYS: usize = 3;

/// Everything that a reload needs. [`run`](Self::run) is the reload thread.
pub struct Reloader {
    /// The settings in force.
    pub settings: Settings,
    /// Reads the configuration again, for reloads that an operator requests.
    pub load_config: ConfigLoader,
    /// Where snapshots are published.
    pub publisher: Publisher,
    /// The list of revocations, which every snapshot is marked with.
    pub revocations: Arc<Revocations>,
    /// The token buckets.
    pub limiter: Arc<Limiter>,
    /// The allocation of buckets to keys.
    pub allocator: Arc<Mutex<SlotAllocator>>,
    /// The time source of `max_staleness` and of buckets.
    pub clock: Clock,
    /// The latest outcomes, for `keyward status`.
    pub history: History,
    /// The audit trail.
    pub audit: Audit,
    /// Where the keys in force are stored for the next start; `None`: nowhere.
    pub last_good: Option<LastGoodStore>,
    /// Balances that were lost, until an operator accepts that.
    pub pending_loss: PendingLoss,
    /// Renews balances that are not used.
    pub renewal: BalanceRenewal,
    /// The runtime to wait for the workers on.
    pub runtime: tokio::runtime::Handle,
}

/// The part of the configuration that reloads depend on.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Where keys come from.
    pub source: SourceFile,
    /// When the source is read, and which changes are accepted.
    pub policy: ReloadPolicy,
    /// What holds for every key.
    pub global_policy: Arc<GlobalPolicy>,
    /// How long a revocation stays on the list after the source confirms it.
    pub revocation_retention: Retention,
}

/// Why the configuration was refused. Reloads do not depend on the module that reads it, which
/// depends on theirs.
pub type ConfigLoadError = Box<dyn std::error::Error + Send + Sync>;

/// Reads the current settings.
pub type ConfigLoader = Box<dyn FnMut(Purpose) -> Result<Settings, ConfigLoadError> + Send>;

/// What the configuration is read for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To be in force if the reload is accepted.
    Reload,
    /// To evaluate a reload without making it.
    Check,
}

/// When a source is read, and which changes are accepted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ReloadPolicy {
    /// Interval of comparing the file's state, independent of the watch.
    pub poll: Duration,
    /// How long a file must not have been written to before it is read.
    pub settle: Duration,
    /// How far a reload may change access.
    pub tolerance: Tolerance,
    /// Whether a source that is refused for bad rows still takes access away.
    pub apply_takeaways: bool,
}
