//! Checking a block of keys, and writing its rows to their places: on any thread, and beside others.

use std::io;
use std::sync::Arc;

use zerocopy::FromBytes;

use crate::record::{MAX_KEY_ID, is_metadata};
use crate::snapshot::batch::Hashes;
use crate::snapshot::compiled::ids::Scatter;
use crate::snapshot::compiled::owners::Owners;
use crate::snapshot::compiled::read::{ReadError, cut_short, damaged};
use crate::snapshot::compiled::space::Place;
use crate::snapshot::compiled::{BlockHeader, OUT_OF_ORDER, Rank, Record, Section};
use crate::snapshot::entry::Entry;
use crate::snapshot::index::Probe;
use crate::snapshot::peppers::PepperByte;
use crate::snapshot::set_aside::Had;
use crate::snapshot::status::{End, StatusByte};

/// Rows ahead at which is fetched what says where an owner's name is, and at which the name itself is. A row takes some thirty
/// nanoseconds, and memory a few hundred at most.
const FAR: usize = 24;
const NEAR: usize = 12;

/// A block of keys that is to be read, and its place.
pub struct Block<'t> {
    pub(super) header: BlockHeader,
    pub(super) at: u64,
    pub(super) place: Place<'t>,
}

/// What makes rows of a block.
#[derive(Clone)]
pub struct Decode {
    pub(super) hashes: Hashes,
    /// The table's own numbers of the file's policies.
    pub(super) policies: Arc<[u32]>,
    pub(super) owners: Arc<Owners>,
}

/// What is left to be done about the rows of a block.
pub struct Decoded {
    pub(super) number: u32,
    pub(super) rows: usize,
    /// Where the first and the last row stand.
    pub(super) ends: Option<[Rank; 2]>,
    /// Rows that belong in lines that others fill.
    pub(super) astray: Vec<(Probe, u32)>,
    pub(super) text_bytes: usize,
    pub(super) metadata: String,
    /// The rows that have some, and where it begins.
    pub(super) metadata_at: Vec<(u32, u64)>,
}

impl Block<'_> {
    /// Where in the file it is, without its header, and how many bytes of it there are.
    pub fn range(&self) -> (u64, usize) {
        // It was none that has too many.
        (self.at, self.header.payload_bytes().unwrap_or(0))
    }

    /// That it cannot be read.
    pub fn unreadable(&self, error: io::Error) -> ReadError {
        cut_short(error, Section::Keys, Some(self.header.number.get()))
    }
}

impl Decode {
    /// Checks a block, of which `payload` was read, and everything in it that is not about other blocks. Key ids are put down in
    /// `ids`, which is the thread's own.
    ///
    /// # Errors
    /// When anything of it is not as it was written, or none that a row can have.
    pub fn decode(&self, block: Block<'_>, payload: &[u8], ids: &mut Scatter) -> Result<Decoded, ReadError> {
        block.header.check(Section::Keys, payload)?;
        let number = block.header.number.get();
        self.rows(block, payload, ids).map_err(|problem| damaged(Section::Keys, Some(number), problem))
    }

    fn rows(&self, block: Block<'_>, payload: &[u8], ids: &mut Scatter) -> Result<Decoded, &'static str> {
        const SHORT: &str = "it is shorter than its rows";
        let BlockHeader { number, rows, texts, metadata, table_texts, .. } = &block.header;
        let (records, rest) =
            <[Record]>::ref_from_prefix_with_elems(payload, rows.get() as usize).map_err(|_| SHORT)?;
        let (texts, rest) = rest.split_at_checked(texts.get() as usize).ok_or(SHORT)?;
        let metadata = rest.get(..metadata.get() as usize).ok_or(SHORT)?;
        let texts = str::from_utf8(texts).map_err(|_| "a text is not UTF-8")?;
        let metadata = str::from_utf8(metadata).map_err(|_| "a text is not UTF-8")?;
        if has_control(texts) {
            return Err("there is a control character in a text");
        }
        let mut rows =
            Rows { place: block.place, texts, metadata, metadata_at: Vec::new(), astray: Vec::new(), ids };
        let mut first = None;
        let mut last: Option<(Probe, &Record)> = None;
        for (at, record) in records.iter().enumerate() {
            if let Some(ahead) = records.get(at + FAR) {
                self.owners.prefetch(ahead.owner.get());
            }
            if let Some(ahead) = records.get(at + NEAR) {
                self.owners.prefetch_name(ahead.owner.get());
            }
            let probe = self.hashes.probe(&record.digest);
            // The usual case on its own: hashes differ.
            let is_after = |(before, other): (Probe, &Record)| {
                before < probe || (before == probe && other.digest < record.digest)
            };
            if !last.is_none_or(is_after) {
                return Err(OUT_OF_ORDER);
            }
            last = Some((probe, record));
            first.get_or_insert(probe);
            self.row(record, probe, metadata.len(), &mut rows)?;
        }
        if !(rows.texts.is_empty() && rows.metadata.is_empty() && rows.place.is_full()) {
            return Err("there is more or less text in it than its rows have");
        }
        let ends = first
            .zip(records.first())
            .zip(last)
            .map(|((first, record), (last, other))| [(first, record.digest), (last, other.digest)]);
        Ok(Decoded {
            number: number.get(),
            rows: records.len(),
            ends,
            astray: rows.astray,
            text_bytes: table_texts.get() as usize,
            metadata: metadata.to_owned(),
            metadata_at: rows.metadata_at,
        })
    }

    /// Takes the texts of a row, and puts it into its place.
    #[inline]
    fn row(
        &self,
        record: &Record,
        probe: Probe,
        all_metadata: usize,
        rows: &mut Rows<'_, '_>,
    ) -> Result<(), &'static str> {
        const WITHIN: &str = "a text ends within a character";
        let key_id = split_off(&mut rows.texts, record.key_id.into()).ok_or(WITHIN)?;
        if key_id.is_empty() || key_id.len() > MAX_KEY_ID {
            return Err("a key id is empty or too long");
        }
        let row = rows.place.row();
        let has_metadata = record.metadata.get() > 0;
        if has_metadata {
            let at = all_metadata - rows.metadata.len();
            let own = split_off(&mut rows.metadata, record.metadata.get().into()).ok_or(WITHIN)?;
            if !is_metadata(own) {
                return Err("metadata is not a JSON object");
            }
            rows.metadata_at.push((row, at as u64));
        }
        let had = Had::from_bits(record.had).ok_or("it has restrictions that no key can have had")?;
        if record.reserved != [0; 3] {
            return Err("reserved bytes are set");
        }
        let policy = *self.policies.get(record.policy.get() as usize).ok_or("a policy is not there")?;
        let owner = self.owners.name_of_row(record.owner.get(), row).ok_or("an owner is not there")?;
        let status = StatusByte::from_code(record.status).ok_or("a status is none")?;
        if rows.place.index(probe).is_none() {
            rows.astray.push((probe, row));
        }
        rows.ids.put(self.hashes.text(key_id), row);
        let written = rows.place.write(key_id, owner, |identity, buckets| Entry {
            digest: record.digest,
            identity,
            not_before: record.not_before.get(),
            expires_at: End::new(record.expires_at.get()),
            owner: record.owner.get(),
            policy,
            buckets,
            status,
            has_metadata,
            had,
            pepper: PepperByte::default(),
        });
        written.ok_or("its texts take more than it says")
    }
}

/// Where a block's rows go, and what is left of their texts.
struct Rows<'b, 't> {
    place: Place<'t>,
    texts: &'b str,
    metadata: &'b str,
    metadata_at: Vec<(u32, u64)>,
    astray: Vec<(Probe, u32)>,
    ids: &'b mut Scatter,
}

fn split_off<'t>(text: &mut &'t str, at: usize) -> Option<&'t str> {
    let (first, rest) = text.split_at_checked(at)?;
    *text = rest;
    Some(first)
}

/// The common text is ASCII, and all of it is looked at without a branch.
pub(super) fn has_control(text: &str) -> bool {
    let seen = text
        .bytes()
        .fold(0_u8, |seen, b| seen | u8::from(b < b' ') | u8::from(b == 0x7f) | (u8::from(b >= 0x80) << 1));
    seen & 1 != 0 || (seen & 2 != 0 && text.chars().any(char::is_control))
}
