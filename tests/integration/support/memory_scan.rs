//! Searches the memory of a process for secrets.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

/// Bytes of a fragment. Shorter ones would match by chance.
const FRAGMENT: usize = 8;

/// Bits of the hash that rules out most positions.
const FILTER_BITS: u32 = 16;

/// Granularity at which two dumps are compared.
const PAGE: usize = 4096;

/// Bytes searched on both sides of a change: the maximum length of a fragment.
const MARGIN: usize = 64;

/// The contents of a process's writable memory: regions by address, ascending.
pub(crate) struct MemoryDump(Vec<(u64, Vec<u8>)>);

impl MemoryDump {
    /// The writable memory of a process. Only root may read it.
    pub(crate) fn of(pid: u32) -> Self {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("root may read it");
        let mem = File::open(format!("/proc/{pid}/mem")).expect("root may read it");
        let is_writable =
            |line: &&str| line.split(' ').nth(1).is_some_and(|permissions| permissions.starts_with("rw"));
        let mut regions = Vec::new();
        for line in maps.lines().filter(is_writable) {
            let (start, end) =
                line.split(' ').next().and_then(|range| range.split_once('-')).expect("a range of addresses");
            let [start, end] = [start, end].map(|text| u64::from_str_radix(text, 16).expect("an address"));
            let mut bytes = vec![0; usize::try_from(end - start).expect("64 bits")];
            // Guard pages and reservations cannot be read, and hold nothing.
            if mem.read_exact_at(&mut bytes, start).is_ok() {
                regions.push((start, bytes));
            }
        }
        Self(regions)
    }

    fn page(&self, address: u64) -> Option<&[u8]> {
        let (start, bytes) =
            self.0.get(self.0.partition_point(|(start, _)| *start <= address).checked_sub(1)?)?;
        let offset = usize::try_from(address - start).ok()?;
        bytes.get(offset..offset + PAGE)
    }

    /// The pages that differ from `before`, with a margin on both sides.
    fn changed<'m>(&'m self, before: &'m Self) -> impl Iterator<Item = &'m [u8]> {
        self.0.iter().flat_map(move |(start, bytes)| {
            let has_changed = move |page: usize| {
                let offset = page * PAGE;
                before.page(start + offset as u64) != bytes.get(offset..offset + PAGE)
            };
            let pages = (0..bytes.len() / PAGE).filter(move |page| has_changed(*page)).collect::<Vec<_>>();
            // Adjacent pages are searched together.
            let runs = pages
                .chunk_by(|a, b| a + 1 == *b)
                .map(|run| (run[0], run[0] + run.len()))
                .collect::<Vec<_>>();
            runs.into_iter().map(move |(first, end)| {
                let (from, to) =
                    ((first * PAGE).saturating_sub(MARGIN), (end * PAGE + MARGIN).min(bytes.len()));
                &bytes[from..to]
            })
        })
    }
}

/// Fragments of secrets. A trace contains a whole fragment if it has at least 15 bytes, or if it
/// has at least 8 and ends with the secret.
pub(crate) struct Fragments {
    by_prefix: HashMap<u64, Vec<Vec<u8>>>,
    filter: Vec<bool>,
}

impl Fragments {
    /// Fragments of a key: its bytes, and the same bytes as the big-endian words on which SHA-256
    /// operates. A key too short for fragments is found by its `frame`.
    pub(crate) fn of_key(key: &[u8], frame: &[u8]) -> Self {
        let mut fragments: Vec<Vec<u8>> = key.chunks_exact(FRAGMENT).map(<[u8]>::to_vec).collect();
        let words = fragments
            .iter()
            .map(|fragment| fragment.chunks(4).flat_map(|word| word.iter().rev()).copied().collect());
        fragments.extend(words.collect::<Vec<_>>());
        fragments.extend(key.last_chunk::<FRAGMENT>().map(|fragment| fragment.to_vec()));
        // From the request id on, which tests choose so that nothing else resembles it.
        fragments.push(frame[FRAGMENT..].iter().copied().take(MARGIN).collect());
        // A short key is also searched for as the padded block that SHA-256 processes.
        if key.len() < 2 * FRAGMENT {
            let mut block = [0; 64];
            block[..key.len()].copy_from_slice(key);
            block[key.len()] = 0x80;
            block[63] = 8 * key.len() as u8;
            fragments.push(block.to_vec());
        }
        Self::new(fragments)
    }

    /// Fragments of a part of a key, as it is.
    pub(crate) fn of_text(text: &[u8]) -> Self {
        Self::new(text.chunks_exact(FRAGMENT).map(<[u8]>::to_vec).collect())
    }

    fn new(fragments: Vec<Vec<u8>>) -> Self {
        let mut by_prefix = HashMap::<u64, Vec<Vec<u8>>>::new();
        let mut filter = vec![false; 1 << FILTER_BITS];
        for fragment in fragments {
            let prefix = u64::from_le_bytes(*fragment.first_chunk().expect("a whole fragment"));
            filter[filter_hash(prefix)] = true;
            let same_prefix = by_prefix.entry(prefix).or_default();
            if !same_prefix.contains(&fragment) {
                same_prefix.push(fragment);
            }
        }
        Self { by_prefix, filter }
    }

    /// The fragments in `memory` and how often each occurs. Searches only what has changed since
    /// `before`, when the memory held no secret.
    pub(crate) fn find(&self, memory: &MemoryDump, before: &MemoryDump) -> HashMap<Vec<u8>, usize> {
        let mut found = HashMap::new();
        memory.changed(before).for_each(|bytes| self.find_in(bytes, &mut found));
        found
    }

    fn find_in(&self, bytes: &[u8], found: &mut HashMap<Vec<u8>, usize>) {
        let mut window = 0_u64;
        for (position, byte) in bytes.iter().enumerate() {
            window = window >> 8 | u64::from(*byte) << 56;
            if self.filter[filter_hash(window)] {
                let fragments = self.by_prefix.get(&window).map_or(&[][..], Vec::as_slice);
                let rest = &bytes[(position + 1).saturating_sub(FRAGMENT)..];
                for fragment in fragments.iter().filter(|fragment| rest.starts_with(fragment)) {
                    *found.entry(fragment.clone()).or_insert(0) += 1;
                }
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.by_prefix.values().map(Vec::len).sum()
    }
}

fn filter_hash(prefix: u64) -> usize {
    (prefix.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - FILTER_BITS)) as usize
}
