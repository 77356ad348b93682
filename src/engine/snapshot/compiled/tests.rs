//! A compiled file reads back as it was written, and any other file is refused.

use std::io::Cursor;
use std::sync::Arc;

use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

use super::format::{BLOCK_BYTES, BYTE_ORDER, BlockHeader, HEADER_BYTES, Header, MAX_RUN};
use super::*;
use crate::record::{Digest, KeyRecord, Limit, LimitRef, MAX_LIMITS, MAX_NAME, MAX_OWNER, Plans, Status};
use crate::snapshot::entry::Entry;
use crate::snapshot::index::{Index, IndexHash, MIX};
use crate::snapshot::row_policy::{RowPolicy, encode};
use crate::snapshot::test_record::{SEED, builder, limits, networks, numbered, origins, record};
use crate::snapshot::{Builder, CompareOptions, KeyTable};

/// A record of which every field depends on `number`. Every tenth record shares its key id with the
/// one before.
fn row(number: usize) -> KeyRecord<'static> {
    let mut hash = Digest::default();
    let low = (number as u128 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
    hash[16..].copy_from_slice(&low.to_be_bytes());
    let key = number - usize::from(number % 10 == 9);
    let record = KeyRecord {
        owner: ["", "acme", "bölt"][key % 3],
        environment: "live",
        status: [Status::Active, Status::Disabled, Status::Revoked][number % 3],
        not_before: 1_000_000_000 + number as u32,
        metadata: ["", r#"{"team":"ä"}"#][number % 2],
        ..record(hash, format!("key-{key}"))
    };
    match key % 6 {
        0 => record,
        1 => KeyRecord {
            scopes: ["orders:read", "orders:*"].map(Into::into).into(),
            allowed_ips: Some(networks(&["10.0.0.0/8", "2001:db8::/32"])),
            allowed_origins: Some(origins(&["https://*.example.com", "https://a.example"])),
            limits: limits("10/s"),
            ..record
        },
        2 => KeyRecord {
            scopes: Arc::new(["a".into()]),
            limits: limits("requests=100/s burst 200; daily=7/d"),
            ..record
        },
        other => KeyRecord {
            allowed_ips: (other != 4).then(Arc::default),
            allowed_origins: (other != 5).then(Arc::default),
            limits: limits("1/s"),
            ..record
        },
    }
}

fn rows(count: usize) -> Vec<KeyRecord<'static>> {
    (0..count).map(row).collect()
}

fn compile(builder: &Builder) -> Vec<u8> {
    let mut file = Cursor::new(Vec::new());
    builder.compile(&mut file, 1_700_000_000, &mut |_| {}).expect("memory is writable");
    file.into_inner()
}

fn load(file: &[u8], plans: Plans) -> Result<KeyTable, ReadError> {
    build(file, file.len(), plans).map(Builder::finish)
}

/// Builds the table of a file that had `length` bytes when it was opened.
fn build(file: &[u8], length: usize, plans: Plans) -> Result<Builder, ReadError> {
    let read = |at: u64, bytes: &mut [u8]| {
        let from = file.get(at as usize..).and_then(|from| from.get(..bytes.len()));
        bytes.copy_from_slice(from.ok_or(std::io::ErrorKind::UnexpectedEof)?);
        Ok(())
    };
    let mut reader = Reader::open(read, length as u64)?;
    let mut builder = reader.builder().with_plans(plans.into());
    let decoder = reader.read_policies(&mut builder, |_| Ok(()))?;
    let (mut buffers, mut merge) = (reader.buffers(), reader.merge());
    let (mut partitions, mut turn) = (reader.hash_partitions(3), 0);
    let mut slots = buffers.block_slots();
    while let Some(block) = reader.next_block(&mut slots)? {
        let (at, bytes) = block.range();
        let mut payload = vec![0; bytes];
        read(at, &mut payload).map_err(|error| block.read_error(error))?;
        merge.add(decoder.decode(block, &payload, &mut partitions[turn % 3])?, &mut builder)?;
        turn += 1;
    }
    for part in buffers.id_partitions(&partitions) {
        merge.add_ids(part.fill(&partitions));
    }
    merge.finish(buffers, &decoder, &partitions, &mut builder)?;
    Ok(builder)
}

/// The error message for a file; empty if it is accepted.
fn error_of(file: &[u8]) -> String {
    load(file, Plans::default()).err().map_or_else(String::new, |error| error.to_string())
}

/// `file` with a header that is changed and has a correct checksum.
fn with_header(file: &[u8], change: impl FnOnce(&mut Header)) -> Vec<u8> {
    let (header, rest) = Header::read_from_prefix(file).expect("a header");
    let mut header = header;
    change(&mut header);
    header.crc = crc32fast::hash(&header.as_bytes()[..HEADER_BYTES - 4]).into();
    [header.as_bytes(), rest].concat()
}

/// `file` with a first block of keys that is changed (header and payload) and has a correct
/// checksum.
fn with_keys(file: &[u8], change: impl FnOnce(&mut BlockHeader, &mut [u8])) -> Vec<u8> {
    let mut file = file.to_vec();
    let (header, _) = Header::read_from_prefix(&file).expect("a header");
    let at = HEADER_BYTES + (header.policy_bytes.get() + header.owner_bytes.get()) as usize;
    let (block, payload) = file[at..].split_at_mut(size_of::<BlockHeader>());
    let mut header = BlockHeader::read_from_bytes(block).expect("a block");
    change(&mut header, payload);
    let mut crc = crc32fast::Hasher::new();
    crc.update(&header.as_bytes()[..28]);
    crc.update(payload);
    header.crc = crc.finalize().into();
    block.copy_from_slice(header.as_bytes());
    file
}

#[test]
fn compiled_file_reads_back_as_it_was_written() {
    let text = builder(&rows(40_000));
    let file = compile(&text);
    let header = Header::read_from_prefix(&file).expect("a header").0;
    assert!(header.key_bytes.get() > 2 * BLOCK_BYTES as u64, "there are several blocks");
    let (text, keys) = (text.finish(), load(&file, Plans::default()).expect("a good file"));
    let diff = keys.diff_from(Some(&text), CompareOptions { now: 1, by_key_id: false });
    assert!((diff.added, diff.removed, diff.changed, diff.deactivated) == (0, 0, 0, 0), "{diff:?}");
    assert_eq!(keys.summary(0), text.summary(0));
    assert_eq!(keys.rotated.len(), 4_000);
}

#[test]
fn recompiled_file_is_identical() {
    let file = compile(&builder(&rows(100)));
    let again = build(&file, file.len(), Plans::default()).expect("a good file");
    assert!(compile(&again) == file);
    let mut seen = 0;
    again.for_each_record(&mut |number, record| {
        seen += 1;
        assert_eq!((number, record.environment), (seen, "live"));
    });
    assert_eq!(seen, 100);
}

#[test]
fn empty_list_is_read_back_as_an_empty_list() {
    let key = |number: usize, allowed_ips: Option<_>, allowed_origins: Option<_>| KeyRecord {
        allowed_ips,
        allowed_origins,
        ..numbered(number)
    };
    let text = [
        key(1, None, None),
        key(2, Some(Arc::default()), None),
        key(3, None, Some(Arc::default())),
        key(4, Some(Arc::default()), Some(Arc::default())),
    ];
    let file = compile(&builder(&text));
    let again = build(&file, file.len(), Plans::default()).expect("a good file");
    let mut lists = std::collections::BTreeMap::new();
    again.for_each_record(&mut |_, record| {
        let lengths = [
            record.allowed_ips.as_ref().map(|list| list.len()),
            record.allowed_origins.as_ref().map(|list| list.len()),
        ];
        lists.insert(record.key_id.to_owned(), lengths);
    });
    let expected = [[None, None], [Some(0), None], [None, Some(0)], [Some(0), Some(0)]];
    assert_eq!(lists.into_values().collect::<Vec<_>>(), expected);
    let (text, keys) = (builder(&text).finish(), again.finish());
    assert_eq!(keys.policies.len(), 4);
    assert_eq!(keys.diff_from(Some(&text), CompareOptions { now: 1, by_key_id: false }).changed, 0);
}

#[test]
fn policy_with_an_invalid_list_mark_is_refused() {
    let key = row(0);
    let mut bytes = builder(std::slice::from_ref(&key)).interner.policies().get(0).to_vec();
    assert_eq!(RowPolicy::take_valid(&mut &*bytes), Some(&*bytes));
    let mark = 2 + key.environment.len() + 2 + key.plan.len() + 4;
    assert_eq!(bytes[mark], 0, "the mark of the networks");
    bytes[mark] = 2;
    assert!(RowPolicy::take_valid(&mut &*bytes).is_none());
}

/// A file could otherwise turn an enforced limit into a shadow one, or state what no source can.
#[test]
fn policy_that_no_source_can_state_is_refused() {
    let limit = || limits("1/s")[0].clone();
    let numbered_limits =
        |count: usize| (0..count).map(|at| Limit { name: format!("n{at}").into(), ..limit() });
    let longest = "e".repeat(MAX_NAME);
    let too_long = "e".repeat(MAX_NAME + 1);
    let of_limits = |list: Vec<Limit>| KeyRecord { limits: list.into(), ..row(0) };
    let of_network = |text| KeyRecord { allowed_ips: Some(networks(&[text])), ..row(0) };
    let of_scope = |text: &str| KeyRecord { scopes: [text.into()].into(), ..row(0) };
    let is_accepted = |record: &KeyRecord<'_>| {
        let mut bytes = Vec::new();
        encode(record, &mut bytes);
        RowPolicy::take_valid(&mut &*bytes).is_some()
    };
    for (name, valid, invalid) in [
        ("a shadow limit", of_limits(vec![limit()]), of_limits(vec![Limit { shadow: true, ..limit() }])),
        (
            "too many limits",
            of_limits(numbered_limits(MAX_LIMITS).collect()),
            of_limits(numbered_limits(MAX_LIMITS + 1).collect()),
        ),
        (
            "two limits of one name",
            of_limits(numbered_limits(2).collect()),
            of_limits(vec![limit(), limit()]),
        ),
        ("an address in a network", of_network("10.0.0.0/8"), of_network("10.0.0.1/8")),
        ("a scope with a space", of_scope("a:b"), of_scope("a b")),
        (
            "a long environment",
            KeyRecord { environment: &longest, ..row(0) },
            KeyRecord { environment: &too_long, ..row(0) },
        ),
    ] {
        assert!(is_accepted(&valid), "without {name}");
        assert!(!is_accepted(&invalid), "{name}");
    }
}

/// Origins are compared in lower case, and the bytes of the file are those in memory.
#[test]
fn policy_with_an_origin_in_upper_case_is_refused() {
    let key = KeyRecord { allowed_origins: Some(origins(&["https://a.example"])), ..row(0) };
    let mut bytes = builder(&[key]).interner.policies().get(0).to_vec();
    assert!(RowPolicy::take_valid(&mut &*bytes).is_some());
    let host = bytes.windows(9).position(|text| text == b"a.example").expect("the origin is there");
    bytes[host].make_ascii_uppercase();
    assert!(RowPolicy::take_valid(&mut &*bytes).is_none());
}

#[test]
fn rows_are_in_the_order_of_their_home_groups() {
    let keys = load(&compile(&builder(&rows(3_000))), Plans::default()).expect("a good file");
    let index_hash = |entry: &Entry| IndexHash::of_digest(&entry.digest, keys.seed);
    assert!(
        keys.entries.iter().map(|entry| index_hash(entry).home(Index::groups_for(keys.len()))).is_sorted()
    );
}

#[test]
fn plans_are_those_of_the_loading_configuration() {
    let file = compile(&builder(&[KeyRecord { plan: "pro", ..row(0) }]));
    let loaded_limits = |plans| -> Result<Vec<_>, _> {
        let keys = load(&file, plans)?;
        Ok::<_, ReadError>(keys.policies.at(0).limits().map(LimitRef::to_limit).collect())
    };
    assert_eq!(loaded_limits(Plans::default()).expect("any name").len(), 0);
    let pro = limits("10/s").to_vec();
    let plans = Plans::new([("pro".into(), pro.clone())], None).expect("plans");
    assert_eq!(loaded_limits(plans).expect("a plan"), pro);
    let plans = Plans::new([("free".into(), pro)], None).expect("plans");
    let error = loaded_limits(plans).expect_err("another plan").to_string();
    assert!(error.starts_with("policies, block 0: the plan \"pro\" is not in the configuration"), "{error}");
}

#[test]
fn file_of_another_format_version_or_size_is_refused() {
    let file = compile(&builder(&rows(20)));
    assert!(error_of(b"key_hash,key_id\n").starts_with("it is not a compiled snapshot"));
    assert!(error_of(b"").starts_with("it is not a compiled snapshot"));
    let changed = |change: fn(&mut Header)| error_of(&with_header(&file, change));
    assert!(changed(|header| header.magic[7] ^= 1).starts_with("it is not a compiled snapshot"));
    assert!(
        changed(|header| header.version = 1.into())
            .contains("of version 1, and this keyward reads version 4")
    );
    assert!(changed(|header| header.byte_order = BYTE_ORDER.swap_bytes().into()).contains("another order"));
    assert!(changed(|header| header.reserved[5] = 1).contains("header: reserved bytes are set"));
    assert!(changed(|header| header.keys = (1 << 32).into()).contains("too many keys"));
    assert!(changed(|header| header.keys = 1_000_000.into()).contains("longer or shorter"));
    assert!(changed(|header| header.keys = 19.into()).contains("keys: row counts or string sizes"));
    assert!(changed(|header| header.policies = 1.into()).contains("policies: there are more or fewer"));
    assert!(changed(|header| header.owners = 1.into()).contains("owners: there are more or fewer"));
    assert!(changed(|header| header.owners = 21.into()).contains("too many owners"));
    for change in [
        (|header: &mut Header| header.text_bytes = 1.into()) as fn(&mut Header),
        |header| header.text_bytes = (header.text_bytes.get() + 1).into(),
        |header| header.metadata_rows = 1.into(),
        |header| header.metadata_bytes = 0.into(),
    ] {
        assert!(changed(change).contains("keys: row counts or string sizes do not match"));
    }
    for change in [
        (|header: &mut Header| header.text_bytes = u64::MAX.into()) as fn(&mut Header),
        |header| header.metadata_rows = 21.into(),
        |header| header.metadata_bytes = u64::MAX.into(),
    ] {
        assert!(changed(change).contains("longer texts than it can have"));
    }
    assert!(changed(|header| header.key_bytes = u64::MAX.into()).contains("longer or shorter"));
    assert!(changed(|header| header.seed = 9.into()).contains("not in the order of the table"));
    assert!(error_of(&[&*file, b"x"].concat()).contains("longer or shorter"));
}

#[test]
fn block_contents_are_checked_beyond_the_checksum() {
    let file = compile(&builder(&rows(20)));
    type Change = fn(&mut BlockHeader, &mut [u8]);
    let cases: [(Change, &str); 15] = [
        (|header, _| header.kind = 1.into(), "another block"),
        (|header, _| header.number = 1.into(), "another block"),
        (|header, _| header.rows = u32::MAX.into(), "longer than it can be"),
        (|header, _| header.texts = u32::MAX.into(), "longer than it can be"),
        (|header, _| header.reserved[0] = 1, "reserved bytes"),
        (|header, _| header.table_texts = 10.into(), "its texts take more than it says"),
        (|_, payload| payload[40] = 0xff, "a policy is not there"),
        (|_, payload| payload[44] = 0xff, "an owner is not there"),
        (|_, payload| payload[50] = 65, "too long"),
        (|_, payload| payload[50] = 0, "empty or too long"),
        (|_, payload| payload[51] = 6, "a status is none"),
        (|_, payload| payload[52] = 0x80, "restrictions that no key can have had"),
        (|_, payload| payload[53] = 1, "reserved bytes"),
        (|_, payload| payload[20 * 56] = 0xff, "not UTF-8"),
        (|_, payload| payload[20 * 56] = 7, "control character"),
    ];
    for (change, message) in cases {
        let error = error_of(&with_keys(&file, change));
        assert!(error.starts_with("keys, block 0: ") && error.contains(message), "{message}: {error}");
    }
    let swapped = with_keys(&file, |_, payload| {
        let (first, rest) = payload.split_at_mut(56);
        first[..32].swap_with_slice(&mut rest[..32]);
    });
    assert!(error_of(&swapped).contains("not in the order of the table"), "{}", error_of(&swapped));
    let repeated = with_keys(&file, |_, payload| payload.copy_within(..32, 56));
    assert!(error_of(&repeated).contains("one is there twice"), "{}", error_of(&repeated));
}

#[test]
fn owners_must_ascend_and_have_keys() {
    let names = |names: &[&[u8]]| {
        let mut owners = owners::Owners::with_capacity(0, 0);
        let block: Vec<u8> = names.iter().flat_map(|name| [&[name.len() as u8], *name].concat()).collect();
        owners.add(&block, names.len() as u32).map(|()| owners)
    };
    let owners = names(&[b"acme", "bölt".as_bytes()]).expect("valid names");
    let all = [0, 1, 2, 3, u32::MAX].map(|number| owners.name(number));
    assert_eq!((owners.len(), all), (2, [Some(""), Some("acme"), Some("bölt"), None, None]));
    for wrong in [&[&b"b"[..], b"a"][..], &[b"a", b"a"], &[b""]] {
        assert!(names(wrong).is_err_and(|error| error.contains("ascend")), "{wrong:?}");
    }
    assert!(names(&[b"a\x07"]).is_err_and(|error| error.contains("control character")));
    assert!(names(&[&[b'a'; MAX_OWNER + 1]]).is_err_and(|error| error.contains("too long")));
    assert!(names(&[b"\xff"]).is_err_and(|error| error.contains("UTF-8")));
    assert!(
        names(&[b"a\xc3", b"\xa9"]).is_err_and(|error| error.contains("UTF-8")),
        "a character may not span two names"
    );
    assert_eq!(owners::Owners::with_capacity(0, 0).add(b"\x05acm", 1), Err("it is shorter than its names"));
    assert_eq!(
        owners::Owners::with_capacity(0, 0).add(b"\x01ab", 1),
        Err("there is more in it than its names")
    );

    // All rows of one owner lose it, and the text lengths in the headers stay correct.
    let file = compile(&builder(&rows(20)));
    let mut bytes = 0;
    let unowned = with_keys(&file, |header, payload| {
        for row in payload[..20 * 56].chunks_exact_mut(56).filter(|row| row[44] == 1) {
            row[44] = 0;
            bytes += "acme".len() as u64;
        }
        header.table_texts = (header.table_texts.get() - bytes as u32).into();
    });
    let unowned =
        with_header(&unowned, |header| header.text_bytes = (header.text_bytes.get() - bytes).into());
    assert!(error_of(&unowned).contains("owners: one of them has no key"), "{}", error_of(&unowned));
}

#[test]
fn file_truncated_at_any_byte_is_refused() {
    let file = compile(&builder(&rows(30)));
    for length in 0..file.len() {
        assert_ne!(error_of(&file[..length]), "", "{length}");
        // As if the file had been truncated while it was read.
        let read = build(&file[..length], file.len(), Plans::default());
        assert!(matches!(read, Err(ReadError::Damaged { .. })), "{length}");
    }
}

#[test]
fn every_flipped_bit_is_detected() {
    let file = compile(&builder(&rows(30)));
    for at in 0..file.len() {
        let mut damaged = file.clone();
        damaged[at] ^= 1 << (at % 8);
        assert_ne!(error_of(&damaged), "", "{at}");
    }
}

proptest! {
    /// A file with correct checksums and arbitrary contents is loaded or refused.
    #[test]
    fn arbitrary_block_contents_do_not_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        header in any::<bool>(),
    ) {
        let file = compile(&builder(&rows(30)));
        let changed = if header {
            with_header(&file, |header| {
                for (at, byte) in &changes {
                    header.as_mut_bytes()[8 + at.index(HEADER_BYTES - 12)] = *byte;
                }
            })
        } else {
            with_keys(&file, |_, payload| {
                for (at, byte) in &changes {
                    payload[at.index(payload.len())] = *byte;
                }
            })
        };
        let _ = load(&changed, Plans::default());
    }

    #[test]
    fn arbitrary_policy_contents_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut bytes = &*bytes;
        let _ = RowPolicy::take_valid(&mut bytes);
    }
}

/// Random digests never collide this often. An author of both the seed and the digests could make
/// every look-up scan the table.
#[test]
fn colliding_digests_chosen_for_the_seed_are_refused() {
    let file = |count: u64| {
        let row = |number: u64| {
            let words = [number, SEED.rotate_left(17) ^ MIX, 5, 6];
            let mut hash = Digest::default();
            for (bytes, word) in hash.as_chunks_mut().0.iter_mut().zip(words) {
                *bytes = word.to_le_bytes();
            }
            record(hash, format!("key-{number}"))
        };
        compile(&builder(&(0..count).map(row).collect::<Vec<_>>()))
    };
    assert_eq!(error_of(&file(8 * MAX_RUN as u64)), "");
    assert!(error_of(&file(2_000)).contains("too many rows share one index position"));
}

/// A run of full groups can span several blocks, with every row in its home group. A look-up of an
/// unknown key would scan the run.
#[test]
fn full_groups_chosen_for_the_seed_are_refused() {
    const COUNT: usize = 20_000;
    let groups = Index::groups_for(COUNT);
    let mut room = vec![8; COUNT / 8];
    let digests = (0_u64..).map(|number| crate::key_format::hash(&number.to_le_bytes()));
    let chosen =
        digests.filter(|digest| match room.get_mut(IndexHash::of_digest(digest, SEED).home(groups)) {
            Some(room) if *room > 0 => {
                *room -= 1;
                true
            }
            _ => false,
        });
    let row = |(digest, id): (Digest, usize)| record(digest, format!("key-{id}"));
    let rows: Vec<_> = chosen.take(COUNT).zip(0..).map(row).collect();
    assert!(error_of(&compile(&builder(&rows))).contains("too many rows share one index position"));
}

/// Rows of one key id have their hashes in any order and in several blocks.
#[test]
fn rotations_do_not_depend_on_the_threads_that_decode_their_rows() {
    for (count, of_key) in [(10, 10), (9_000, 3), (9_000, 7), (12_000, 5_000)] {
        let row = |number: usize| KeyRecord {
            owner: "acme",
            limits: limits("10/s"),
            ..record(
                crate::key_format::hash(&number.to_le_bytes()),
                format!("key-{}", number % (count / of_key)),
            )
        };
        let text = builder(&(0..count).map(row).collect::<Vec<_>>());
        let (file, text) = (compile(&text), text.finish());
        let keys = load(&file, Plans::default()).expect("a good file");
        assert_eq!((keys.summary(0), keys.rotated.len()), (text.summary(0), text.rotated.len()));
        let firsts = keys.entries.iter().zip(0..).map(|(entry, row)| {
            let first = keys.find_by_id(keys.key_id(entry)).expect("its key id is indexed");
            assert_eq!(keys.rotated.binary_search(&(first, row)).is_ok(), first < row);
            (entry.buckets, first)
        });
        assert!(
            firsts.into_iter().all(|(buckets, first)| buckets == first),
            "{count} rows, {of_key} of a key"
        );
        assert!(keys.entries.iter().all(|entry| keys.find_exactly(&entry.digest).is_some()));
    }
}

/// In every block, also if the rows overflow the block's part of the index.
#[test]
fn every_row_is_found_by_its_digest() {
    let text = builder(&rows(40_000));
    let keys = load(&compile(&text), Plans::default()).expect("a good file");
    assert_eq!(keys.digest_index.len(), 40_000);
    for row in text.keys.entries.iter() {
        let found = keys.find_exactly(&row.digest).and_then(|row| keys.entries.get(row as usize));
        assert_eq!(found.map(|found| keys.key_id(found)), Some(text.keys.key_id(row)));
    }
}
