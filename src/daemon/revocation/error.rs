//! Why a command is refused, in words that never repeat a raw key.

use super::{MAX_ENTRIES, Target};
use keyward_engine::record::Quoted;

/// Why a command was refused. It has changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum RevokeError {
    /// The source has no such key or owner.
    #[error("no key {} in generation {generation}{}", condition(target), advice(target))]
    Unknown {
        /// The target of the command.
        target: Target,
        /// The current generation.
        generation: u64,
    },
    /// The name may be a raw key, which must not be written to disk. Without keys, an
    /// id cannot be distinguished from a key.
    #[error(
        "no keys are loaded, and {} may be a key itself, which is not to be written down: load the source first, then name \
         a key by its id",
        named(target)
    )]
    MayBeKey {
        /// The target of the command.
        target: Target,
    },
    /// The target is not on the list.
    #[error("{} is not on the list of revocations (keyward status --revocations shows it)", named(target))]
    NotRevoked {
        /// The target of the command.
        target: Target,
    },
    /// The list has [`MAX_ENTRIES`] entries.
    #[error(
        "{MAX_ENTRIES} revocations are on the list, and that is as many as it holds: revoke in the source, and reload"
    )]
    Full,
}

fn named(target: &Target) -> String {
    match target {
        Target::Key(key_id) => format!("key {}", Quoted(key_id)),
        Target::Owner(owner) => format!("owner {}", Quoted(owner)),
    }
}

fn condition(target: &Target) -> String {
    match target {
        Target::Key(key_id) => format!("has the id {}", Quoted(key_id)),
        Target::Owner(owner) => format!("belongs to {}", Quoted(owner)),
    }
}

pub(super) fn may_be_key(target: &Target) -> bool {
    let (Target::Key(text) | Target::Owner(text)) = target;
    Quoted(text).may_be_key()
}

fn advice(target: &Target) -> &'static str {
    if may_be_key(target) {
        "; name a key by its id, never by the key itself. If the source has it, reload first"
    } else {
        "; if the source has it, reload first"
    }
}
