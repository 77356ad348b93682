//! What requests are decided by: a snapshot, the changes that its entries do not have yet, and the
//! generation of the answers.

use crate::snapshot::{Key, Overlay, Snapshot};

/// A snapshot as it is published. It never changes: two requests that are decided by views of the
/// same generation get answers that differ only by time and balances.
#[derive(Clone, Copy)]
pub struct View<'s> {
    /// The table of keys.
    pub snapshot: &'s Snapshot,
    /// The number that answers carry. The first is 1.
    pub generation: u64,
    /// The changes that are not in the entries yet; usually there are none.
    pub overlay: Option<&'s Overlay>,
}

impl<'s> View<'s> {
    /// The snapshot as it came into force: in its own generation, without later changes.
    pub fn of(snapshot: &'s Snapshot) -> Self {
        Self { snapshot, generation: snapshot.table_generation(), overlay: None }
    }

    /// Whether a key of the snapshot is revoked, by its row or by a later change.
    pub fn is_revoked(self, key: Key<'_>) -> bool {
        self.overlay.map_or_else(|| key.access(), |overlay| overlay.access(key)).is_revoked()
    }
}
