//! Writing a compiled file: the rows of a table, block by block, in the order of its index.
//!
//! In addition to the table, this takes the memory of one block.

use std::io::{self, Seek, SeekFrom, Write};

use zerocopy::IntoBytes;

use crate::snapshot::compiled::format::{
    BLOCK_BYTES, BYTE_ORDER, BlockHeader, HEADER_BYTES, Header, MAGIC, Record, Section, VERSION, checksummed,
};
use crate::snapshot::entry::Entry;
use crate::snapshot::index::IndexHash;
use crate::snapshot::{Builder, KeyTable, RowPolicies};

impl Builder {
    /// Writes all rows as a compiled file whose source was written at the Unix second
    /// `source_time`. Calls `progress` with the number of rows written after each block.
    ///
    /// # Errors
    /// Those of `output`.
    pub fn compile<W: Write + Seek>(
        &self,
        output: &mut W,
        source_time: u32,
        progress: &mut dyn FnMut(u64),
    ) -> io::Result<()> {
        self.keys.write(self.interner.policies(), output, source_time, progress)
    }
}

impl KeyTable {
    /// [`Builder::compile`] for a finished table. `policies` are those that it was
    /// [finished](Builder::finish_with_policies) with.
    ///
    /// # Errors
    /// Those of `output`.
    pub fn compile<W: Write + Seek>(
        &self,
        policies: &RowPolicies,
        output: &mut W,
        source_time: u32,
        progress: &mut dyn FnMut(u64),
    ) -> io::Result<()> {
        self.write(policies, output, source_time, progress)
    }

    fn write<W: Write + Seek>(
        &self,
        policies: &RowPolicies,
        output: &mut W,
        source_time: u32,
        progress: &mut dyn FnMut(u64),
    ) -> io::Result<()> {
        output.write_all(&[0; HEADER_BYTES])?;
        let policy_bytes = write_policies(policies, output)?;
        let (owner_bytes, owners) = self.write_owners(output)?;
        let key_bytes = self.write_keys(output, &owners, progress)?;
        let lengths = self.entries.iter().map(|entry| entry.identity.length() as u64);
        let mut header = Header {
            magic: MAGIC,
            version: VERSION.into(),
            byte_order: BYTE_ORDER.into(),
            seed: self.seed.into(),
            keys: (self.len() as u64).into(),
            policies: (policies.len() as u64).into(),
            policy_bytes: policy_bytes.into(),
            owners: (self.owners.len() as u64 - 1).into(),
            owner_bytes: owner_bytes.into(),
            key_bytes: key_bytes.into(),
            text_bytes: lengths.sum::<u64>().into(),
            metadata_rows: (self.metadata.len() as u64).into(),
            metadata_bytes: (self.metadata_texts.as_str().len() as u64).into(),
            source_time: source_time.into(),
            present_fields: self.present_fields.bits().into(),
            prior_restrictions: self.prior_restrictions.bits().into(),
            reserved: [0; 20],
            crc: 0.into(),
        };
        header.crc = crc32fast::hash(checksummed(&header)).into();
        output.seek(SeekFrom::Start(0))?;
        output.write_all(header.as_bytes())
    }

    /// Returns the length of the section, and the numbers in the file by the table's owner numbers.
    fn write_owners<W: Write>(&self, output: &mut W) -> io::Result<(u64, Vec<u32>)> {
        let mut owners: Vec<u32> = (0..).take(self.owners.len()).skip(1).collect();
        owners.sort_unstable_by_key(|number| self.owner_name(*number));
        let mut numbers = vec![0; self.owners.len()];
        let mut blocks = BlockWriter::new(output, Section::Owners);
        for (number, owner) in (1..).zip(owners) {
            numbers[owner as usize] = number;
            let name = self.owner_name(owner);
            blocks.texts.push(name.len() as u8);
            blocks.texts.extend_from_slice(name.as_bytes());
            blocks.end_row()?;
        }
        Ok((blocks.finish()?, numbers))
    }

    fn write_keys<W: Write>(
        &self,
        output: &mut W,
        owners: &[u32],
        progress: &mut dyn FnMut(u64),
    ) -> io::Result<u64> {
        let entries = &self.entries;
        let entry = |number: u32| entries.get(number as usize);
        let digest = |number: u32| &entries[number as usize].digest;
        let mut blocks = BlockWriter::new(output, Section::Keys);
        let mut written = 0;
        self.digest_index.in_order(
            entry,
            |number| IndexHash::of_digest(digest(number), self.seed),
            |a, b| digest(a).cmp(digest(b)),
            |number| {
                let entry = &entries[number as usize];
                self.write_key(entry, number, owners[entry.owner as usize], &mut blocks);
                written += 1;
                if blocks.end_row()? {
                    progress(written);
                }
                Ok::<_, io::Error>(())
            },
        )?;
        blocks.finish()
    }

    fn write_key<W: Write>(&self, entry: &Entry, number: u32, owner: u32, blocks: &mut BlockWriter<'_, W>) {
        let key_id = self.key_id(entry);
        let metadata = self.metadata_of(number).unwrap_or_default();
        let record = Record {
            digest: entry.digest,
            not_before: entry.not_before.into(),
            expires_at: entry.expires_at.get().into(),
            policy: entry.policy.into(),
            owner: owner.into(),
            metadata: (metadata.len() as u16).into(),
            key_id: key_id.len() as u8,
            status: entry.status.code(),
            prior_restrictions: entry.prior_restrictions.bits(),
            reserved: [0; 3],
        };
        blocks.records.extend_from_slice(record.as_bytes());
        blocks.texts.extend_from_slice(key_id.as_bytes());
        blocks.table_texts += entry.identity.length() as u32;
        blocks.metadata.extend_from_slice(metadata.as_bytes());
    }
}

fn write_policies<W: Write>(policies: &RowPolicies, output: &mut W) -> io::Result<u64> {
    let mut blocks = BlockWriter::new(output, Section::Policies);
    for policy in policies.iter() {
        blocks.texts.extend_from_slice(policy);
        blocks.end_row()?;
    }
    blocks.finish()
}

/// Writes the blocks of a section. A block is written when it is full.
struct BlockWriter<'o, W> {
    output: &'o mut W,
    section: Section,
    number: u32,
    rows: u32,
    table_texts: u32,
    records: Vec<u8>,
    texts: Vec<u8>,
    metadata: Vec<u8>,
    written: u64,
}

impl<'o, W: Write> BlockWriter<'o, W> {
    fn new(output: &'o mut W, section: Section) -> Self {
        let (records, texts, metadata) = (Vec::new(), Vec::new(), Vec::new());
        Self { output, section, number: 0, rows: 0, table_texts: 0, records, texts, metadata, written: 0 }
    }

    /// Ends a row. Returns whether it has completed a block.
    fn end_row(&mut self) -> io::Result<bool> {
        self.rows += 1;
        let is_full = self.records.len() + self.texts.len() + self.metadata.len() >= BLOCK_BYTES;
        if is_full {
            self.write()?;
        }
        Ok(is_full)
    }

    fn write(&mut self) -> io::Result<()> {
        let mut header = BlockHeader {
            kind: self.section.kind().into(),
            number: self.number.into(),
            rows: self.rows.into(),
            texts: (self.texts.len() as u32).into(),
            metadata: (self.metadata.len() as u32).into(),
            table_texts: self.table_texts.into(),
            reserved: [0; 4],
            crc: 0.into(),
        };
        let mut crc = crc32fast::Hasher::new();
        crc.update(checksummed(&header));
        let parts = [&mut self.records, &mut self.texts, &mut self.metadata];
        parts.iter().for_each(|part| crc.update(part));
        header.crc = crc.finalize().into();
        self.output.write_all(header.as_bytes())?;
        self.written += size_of::<BlockHeader>() as u64;
        for part in parts {
            self.output.write_all(part)?;
            self.written += part.len() as u64;
            part.clear();
        }
        self.number += 1;
        self.rows = 0;
        self.table_texts = 0;
        Ok(())
    }

    /// Writes the last block and returns the length of the section.
    fn finish(mut self) -> io::Result<u64> {
        if self.rows > 0 {
            self.write()?;
        }
        Ok(self.written)
    }
}
