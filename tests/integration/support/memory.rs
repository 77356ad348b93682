//! Looking for secrets in a daemon's memory.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use super::Daemon;

/// Bytes of a piece. Fewer would be found by chance.
const PIECE: usize = 8;

/// Bits of a hash of a piece by which most places are ruled out.
const FILTER_BITS: u32 = 16;

/// Bytes that are compared together.
const PAGE: usize = 4096;

/// Bytes that are searched on both sides of what has changed: no piece is longer.
const MARGIN: usize = 64;

/// What a daemon could write to at some moment: regions by their addresses, ascending.
pub(crate) struct Memory(Vec<(u64, Vec<u8>)>);

/// Everything that the daemon can write to; `None` where this user may not look.
pub(crate) fn of(daemon: &Daemon) -> Option<Memory> {
    let pid = daemon.pid();
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
    let mem = File::open(format!("/proc/{pid}/mem")).ok()?;
    let mut regions = Vec::new();
    for line in maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|mode| mode.starts_with("rw")))
    {
        let (start, end) = line.split(' ').next()?.split_once('-')?;
        let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
        let mut bytes = vec![0; usize::try_from(end - start).ok()?];
        // A guard page or a reservation cannot be read, and holds nothing.
        if mem.read_exact_at(&mut bytes, start).is_ok() {
            regions.push((start, bytes));
        }
    }
    Some(Memory(regions))
}

impl Memory {
    fn page(&self, address: u64) -> Option<&[u8]> {
        let (start, bytes) =
            self.0.get(self.0.partition_point(|(start, _)| *start <= address).checked_sub(1)?)?;
        let at = usize::try_from(address - start).ok()?;
        bytes.get(at..at + PAGE)
    }

    /// The parts that are not as they were `before`, each with a little of what is around it.
    fn changed<'m>(&'m self, before: &'m Self) -> impl Iterator<Item = &'m [u8]> {
        self.0.iter().flat_map(move |(start, bytes)| {
            let has_changed = move |page: usize| {
                let at = page * PAGE;
                before.page(start + at as u64) != bytes.get(at..at + PAGE)
            };
            let pages = (0..bytes.len() / PAGE).filter(move |page| has_changed(*page)).collect::<Vec<_>>();
            // Pages that follow each other are searched together.
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

/// Pieces of secrets. A trace of 15 bytes or more contains a whole piece, and so does one that ends
/// with the secret.
pub(crate) struct Pieces {
    /// By their first bytes.
    pieces: HashMap<u64, Vec<Vec<u8>>>,
    filter: Vec<bool>,
}

impl Pieces {
    /// Of one key: as it is, and as the words that SHA-256 calculates with, whose bytes are in the
    /// opposite order. A key that is too short to be searched for is found in its `frame`.
    pub(crate) fn of_key(key: &[u8], frame: &[u8]) -> Self {
        let mut pieces: Vec<Vec<u8>> = key.chunks_exact(PIECE).map(<[u8]>::to_vec).collect();
        let words =
            pieces.iter().map(|piece| piece.chunks(4).flat_map(|word| word.iter().rev()).copied().collect());
        pieces.extend(words.collect::<Vec<_>>());
        pieces.extend(key.last_chunk::<PIECE>().map(|piece| piece.to_vec()));
        // From the request id on, which is unlike anything else.
        pieces.push(frame[PIECE..].iter().copied().take(MARGIN).collect());
        // A short key, as the block that SHA-256 takes it in.
        if key.len() < 2 * PIECE {
            let mut block = [0; 64];
            block[..key.len()].copy_from_slice(key);
            block[key.len()] = 0x80;
            block[63] = 8 * key.len() as u8;
            pieces.push(block.to_vec());
        }
        Self::new(pieces)
    }

    /// Of a part of a key, as it is.
    pub(crate) fn of_text(text: &[u8]) -> Self {
        Self::new(text.chunks_exact(PIECE).map(<[u8]>::to_vec).collect())
    }

    fn new(all: Vec<Vec<u8>>) -> Self {
        let (mut pieces, mut filter) = (HashMap::<u64, Vec<Vec<u8>>>::new(), vec![false; 1 << FILTER_BITS]);
        for piece in all {
            let first = u64::from_le_bytes(*piece.first_chunk().expect("a whole piece"));
            filter[hash(first)] = true;
            let same = pieces.entry(first).or_default();
            if !same.contains(&piece) {
                same.push(piece);
            }
        }
        Self { pieces, filter }
    }

    /// The pieces that are in `memory`, and how often. Only what has changed since `before` is
    /// searched: there was no secret in it.
    pub(crate) fn find(&self, memory: &Memory, before: &Memory) -> HashMap<Vec<u8>, usize> {
        let mut found = HashMap::new();
        memory.changed(before).for_each(|part| self.find_in(part, &mut found));
        found
    }

    fn find_in(&self, part: &[u8], found: &mut HashMap<Vec<u8>, usize>) {
        let mut word = 0_u64;
        for (at, byte) in part.iter().enumerate() {
            word = word >> 8 | u64::from(*byte) << 56;
            if self.filter[hash(word)] {
                let pieces = self.pieces.get(&word).map_or(&[][..], Vec::as_slice);
                let from = &part[(at + 1).saturating_sub(PIECE)..];
                for piece in pieces.iter().filter(|piece| from.starts_with(piece)) {
                    *found.entry(piece.clone()).or_insert(0) += 1;
                }
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.pieces.values().map(Vec::len).sum()
    }
}

fn hash(word: u64) -> usize {
    (word.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - FILTER_BITS)) as usize
}
