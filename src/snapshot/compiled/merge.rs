//! Having rows found that other threads have decoded, in the order of the file.
//!
//! What is left to the one thread that owns the table is what depends on the rows before. The digest index is filled from its
//! beginning to its end, in whose order rows are. Only the look-up by key id is filled here and there; a window of it is read before
//! it is written, so that the cache misses overlap.
//!
//! Meanwhile the rows themselves belong to the threads that write them. A row that may have the key id of one before it, which is
//! told by their hashes, is therefore put off until all of them are there.

use crate::memory::{Huge, HugeText, HugeVec, populated};
use crate::record::{Digest, Status};
use crate::snapshot::build::{Builder, RowError};
use crate::snapshot::compiled::read::{ReadError, damaged};
use crate::snapshot::compiled::space::Space;
use crate::snapshot::compiled::{Header, OUT_OF_ORDER, Rank, Section};
use crate::snapshot::entry::{Entry, Identity, StatusByte};
use crate::snapshot::index::{Index, Probe};
use crate::snapshot::kept::WINDOW;

/// What the table needs to know of the rows of a block.
pub struct Decoded {
    pub(super) number: u32,
    /// Where the first and the last row stand.
    pub(super) ends: Option<[Rank; 2]>,
    pub(super) hashes: Vec<Hashed>,
    pub(super) text_bytes: usize,
    pub(super) metadata: String,
    /// The rows that have some, and where it begins.
    pub(super) metadata_at: Vec<(u32, u64)>,
}

/// What of a row its places are found by.
pub(super) struct Hashed {
    pub(super) probe: Probe,
    pub(super) id: u64,
}

/// Puts blocks together.
pub struct Merge {
    /// What there should be, and what there is.
    expected: Sizes,
    so_far: Sizes,
    /// Where the last row stands.
    last: Option<Rank>,
    /// Rows that may have the key id of one before, with its hash and their block.
    in_doubt: Vec<(u32, u64, u32)>,
}

/// How much there is of everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sizes {
    pub(super) keys: usize,
    pub(super) owners: usize,
    pub(super) text_bytes: usize,
    pub(super) metadata_rows: usize,
    pub(super) metadata_bytes: usize,
}

impl Sizes {
    /// What a header says. It has been held against the length of the file.
    pub(super) fn of(header: &Header) -> Self {
        let size = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        Self {
            keys: size(header.keys.get()),
            owners: size(header.owners.get()),
            text_bytes: size(header.text_bytes.get()),
            metadata_rows: size(header.metadata_rows.get()),
            metadata_bytes: size(header.metadata_bytes.get()),
        }
    }

    /// A table without entries in which all of it fits exactly: what is found in it is known not to grow.
    pub(super) fn table(self, seed: u64) -> Builder {
        let mut builder = Builder::new(seed, 0);
        let keys = &mut builder.keys;
        populated(|| {
            keys.index = Index::with_capacity(self.keys);
            keys.ids = Index::with_capacity(self.keys);
            keys.metadata = HugeVec::with_capacity_in(self.metadata_rows, Huge);
            keys.metadata_texts = HugeText::with_capacity(self.metadata_bytes);
        });
        keys.owners.resize(self.owners.saturating_add(1), u32::MAX);
        builder
    }

    /// The room for its entries and their texts.
    pub(super) fn space(self) -> Space {
        let (mut entries, mut texts) = populated(|| {
            (HugeVec::with_capacity_in(self.keys, Huge), HugeVec::with_capacity_in(self.text_bytes, Huge))
        });
        entries.resize_with(self.keys, nothing);
        texts.resize(self.text_bytes, 0);
        Space { entries, texts }
    }
}

/// What an entry is before it is written.
fn nothing() -> Entry {
    Entry {
        digest: Digest::default(),
        identity: Identity::default(),
        not_before: 0,
        expires_at: 0,
        owner: 0,
        policy: 0,
        buckets: 0,
        status: StatusByte::new(Status::Revoked),
        has_metadata: false,
    }
}

impl Merge {
    pub(super) fn new(expected: Sizes) -> Self {
        let so_far = Sizes { owners: expected.owners, ..Sizes::default() };
        Self { expected, so_far, last: None, in_doubt: Vec::new() }
    }

    /// Has the rows of a block found; blocks in their order.
    ///
    /// # Errors
    /// When a row is not where it should be.
    pub fn add(&mut self, decoded: &Decoded, builder: &mut Builder) -> Result<(), ReadError> {
        let number = decoded.number;
        if let Some([first, last]) = decoded.ends {
            if self.last.is_some_and(|before| before >= first) {
                return Err(damaged(Section::Keys, Some(number), OUT_OF_ORDER));
            }
            self.last = Some(last);
        }
        let keys = &mut builder.keys;
        let mut id = self.so_far.keys as u32;
        self.so_far.keys += decoded.hashes.len();
        self.so_far.text_bytes += decoded.text_bytes;
        self.so_far.metadata_rows += decoded.metadata_at.len();
        // No more texts than the header says: what is reserved for them was held against the length of the file.
        if self.so_far.keys > self.expected.keys || self.so_far.metadata_rows > self.expected.metadata_rows {
            return Err(damaged(Section::Keys, None, OTHER_SIZES));
        }
        let first_byte = self.so_far.metadata_bytes as u64;
        self.so_far.metadata_bytes += decoded.metadata.len();
        keys.metadata.extend(decoded.metadata_at.iter().map(|(row, at)| (*row, first_byte + at)));
        keys.metadata_texts.push_str(&decoded.metadata);

        for window in decoded.hashes.chunks(WINDOW) {
            window.iter().for_each(|Hashed { id: hash, .. }| keys.ids.prefetch(Probe::of_hash(*hash)));
            for Hashed { probe, id: hash } in window {
                let key_id = Probe::of_hash(*hash);
                // Neither table grows, and needs to know its numbers' hashes: it is made for all of the rows, and there are no more.
                match keys.ids.candidate(key_id) {
                    Some(_) => self.in_doubt.push((id, *hash, number)),
                    None => keys.ids.insert(key_id, id, |_| key_id),
                }
                keys.index.insert(*probe, id, |_| *probe);
                id += 1;
            }
        }
        Ok(())
    }

    /// Completes the table with the rows in `space`, if all of them have been read.
    ///
    /// # Errors
    /// When there are other keys than the header says, an owner who has none, or rows that contradict each other.
    pub fn finish(self, space: Space, builder: &mut Builder) -> Result<(), ReadError> {
        if self.so_far != self.expected {
            return Err(damaged(Section::Keys, None, OTHER_SIZES));
        }
        builder.keys.entries = space.entries;
        builder.keys.arena = HugeText::try_from(space.texts)
            .map_err(|_| damaged(Section::Keys, None, "a text is not UTF-8"))?;
        for (entry, id) in builder.keys.entries.iter().zip(0..) {
            let owner = builder.keys.owners.get_mut(entry.owner as usize).filter(|_| entry.owner != 0);
            owner.into_iter().for_each(|first| *first = id.min(*first));
        }
        if builder.keys.owners.iter().skip(1).any(|first| *first == u32::MAX) {
            return Err(damaged(Section::Owners, None, "one of them has no key"));
        }
        for (id, hash, block) in self.in_doubt {
            builder.join_row(id, hash).map_err(|error| ReadError::row(Section::Keys, block, &error))?;
        }
        Ok(())
    }
}

pub(super) const OTHER_SIZES: &str = "there are more or fewer, or other texts, than the header says";

impl Builder {
    /// Puts the row `id` to the first one with its key id, if there is one; `hash` is that of the id.
    fn join_row(&mut self, id: u32, hash: u64) -> Result<(), RowError> {
        let keys = &self.keys;
        let Some(entry) = keys.entries.get(id as usize) else { return Ok(()) };
        let first = self.first_of_key(hash, keys.key_id(entry), keys.owner(entry), entry.policy)?;
        let Some(first) = first else {
            self.insert_id(id, hash);
            return Ok(());
        };
        self.keys.rotated.push((first, id));
        if let Some(entry) = self.keys.entries.get_mut(id as usize) {
            entry.buckets = first;
        }
        Ok(())
    }
}
