//! Compiled snapshots.
//!
//! * A table that loads can be compiled, and loads again as the same table. Its rows can be added
//!   one by one: whatever the builder refuses, the loader refuses too.
//! * A file with a changed bit, and a file that ends early, are refused.
//! * A file is the same for any number of threads that load it.
//!
//! The first byte decides whether all checksums are corrected, so that inputs get behind them.

use std::io::Cursor;

use keyward_engine::record::KeyRecord;
use keyward_engine::snapshot::compiled::{ReadError, Reader};
use keyward_engine::snapshot::{Builder, CompareOptions, KeyTable, Summary};

use super::Outcome;
use crate::input::Input;
use crate::mutation::damaged;

/// The layout of a file, as far as the checksums need it (`src/engine/snapshot/compiled/format.rs`).
const HEADER_BYTES: usize = 128;
const BLOCK_HEADER_BYTES: usize = 32;
const RECORD_BYTES: usize = 56;
const KEYS: u32 = 2;

/// When the sources of the files were written.
const SOURCE_TIME: u32 = 1_700_000_000;

pub(crate) fn run(data: &[u8]) -> Outcome {
    let mut input = Input::new(data);
    let corrects = !input.one_in(2);
    let position = usize::from(input.u16());
    let mut file = input.rest().to_vec();
    if corrects {
        correct_checksums(&mut file);
    }
    let loaded = load(&file, 1);
    let in_parallel = load(&file, 3);
    assert_eq!(loaded.is_ok(), in_parallel.is_ok(), "the number of threads decides");
    let (Ok(builder), Ok(in_parallel)) = (loaded, in_parallel) else { return Outcome::Refused };
    assert!(builder.len() <= file.len() / RECORD_BYTES);
    assert_eq!(compile(&builder), compile(&in_parallel));
    check_round_trip(&builder);
    refuses_damage(&file, position);
    Outcome::accepted_if(!builder.is_empty())
}

/// Checks that a table is the same when it is compiled and loaded.
pub(crate) fn check_round_trip(builder: &Builder) {
    let file = compile(builder);
    let again = match load(&file, 2) {
        Ok(again) => again,
        Err(error) => panic!("a file that was just written: {error}"),
    };
    assert!(compile(&again) == file, "it is compiled differently");
    let records = records(builder);
    assert_eq!(records, self::records(&again));
    // The loader refuses what the builder refuses.
    let mut one_by_one = Builder::new(2, 0);
    let mut line = 0;
    again.for_each_record(&mut |_, record| {
        line += 1;
        one_by_one.add(line, record).expect("the loader accepted it");
    });
    assert_eq!(again.present_fields(), builder.present_fields());
    let (table, by_add) = (again.finish(), one_by_one.finish());
    // A file may have policies that no row uses: those of rows that the builder has refused.
    let summary = |table: &KeyTable| Summary { policies: 0, ..table.summary(SOURCE_TIME) };
    assert_eq!(summary(&table), summary(&by_add));
    // A record does not say whether its row is set aside.
    if table.set_aside().next().is_none() {
        let diff = by_add.diff_from(Some(&table), CompareOptions { now: SOURCE_TIME, by_key_id: false });
        assert!(diff.is_unchanged(), "{:?}", diff.counts());
    }
    for (digest, _) in by_add.digests() {
        let is_live = |table: &KeyTable| table.has_live_key(digest, SOURCE_TIME);
        assert_eq!(is_live(&table), is_live(&by_add), "a look-up differs");
    }
}

/// All rows, sorted: a compiled file has an order of its own.
fn records(builder: &Builder) -> Vec<String> {
    let mut records = Vec::new();
    builder.for_each_record(&mut |_, record: &KeyRecord<'_>| records.push(format!("{record:?}")));
    records.sort();
    records
}

/// Compiles a table.
pub(crate) fn compile(builder: &Builder) -> Vec<u8> {
    let mut file = Cursor::new(Vec::new());
    builder.compile(&mut file, SOURCE_TIME, &mut |_| {}).expect("memory is writable");
    file.into_inner()
}

/// Loads a file as `threads` threads do, one block after another.
fn load(file: &[u8], threads: usize) -> Result<Builder, ReadError> {
    let read = |at: u64, bytes: &mut [u8]| {
        let from = usize::try_from(at).ok().and_then(|at| file.get(at..)?.get(..bytes.len()));
        bytes.copy_from_slice(from.ok_or(std::io::ErrorKind::UnexpectedEof)?);
        Ok(())
    };
    let mut reader = Reader::open(read, file.len() as u64)?;
    let mut builder = reader.builder();
    let decoder = reader.read_policies(&mut builder, |_| Ok(()))?;
    let (mut buffers, mut merge) = (reader.buffers(), reader.merge());
    let (mut partitions, mut turn) = (reader.hash_partitions(threads), 0);
    let mut slots = buffers.block_slots();
    while let Some(block) = reader.next_block(&mut slots)? {
        let (at, bytes) = block.range();
        assert!(bytes <= file.len(), "a block is longer than its file");
        let mut payload = vec![0; bytes];
        read(at, &mut payload).map_err(|error| block.read_error(error))?;
        merge.add(decoder.decode(block, &payload, &mut partitions[turn % threads])?, &mut builder)?;
        turn += 1;
    }
    for part in buffers.id_partitions(&partitions) {
        merge.add_ids(part.fill(&partitions));
    }
    merge.finish(buffers, &decoder, &partitions, &mut builder)?;
    Ok(builder)
}

fn refuses_damage(file: &[u8], position: usize) {
    for damaged in damaged(file, position) {
        assert!(load(&damaged, 1).is_err(), "damage is accepted: {}", const_hex::encode(damaged));
    }
}

/// Writes the checksum of the header, and of each block that can be found.
fn correct_checksums(file: &mut [u8]) {
    let Some((header, mut blocks)) = file.split_at_mut_checked(HEADER_BYTES) else { return };
    correct(header, &[]);
    while let Some((header, rest)) = blocks.split_at_mut_checked(BLOCK_HEADER_BYTES) {
        let number = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
        let rows = if number(0) == KEYS { number(8) as usize } else { 0 };
        let length = rows
            .checked_mul(RECORD_BYTES)
            .and_then(|records| records.checked_add(number(12) as usize)?.checked_add(number(16) as usize));
        let Some((payload, rest)) = length.and_then(|length| rest.split_at_mut_checked(length)) else {
            return;
        };
        correct(header, payload);
        blocks = rest;
    }
}

/// Writes the checksum of a header and its payload to the end of the header.
fn correct(header: &mut [u8], payload: &[u8]) {
    let (before, checksum) = header.split_at_mut(header.len() - 4);
    let mut crc = crc32fast::Hasher::new();
    crc.update(before);
    crc.update(payload);
    checksum.copy_from_slice(&crc.finalize().to_le_bytes());
}
