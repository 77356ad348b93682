//! Deterministic mutations of inputs, for machines without libFuzzer.

/// A random number generator with the same output on every platform (SplitMix64).
#[derive(Clone, Debug)]
pub struct Mutator(u64);

/// Most mutations of one input.
const MAX_CHANGES: u64 = 4;

/// Most bytes that are inserted, removed or repeated at once.
const MAX_RUN: u64 = 16;

/// Bits of a file that are changed one after the other.
const DAMAGED_BITS: usize = 6;

/// Values at the ends of ranges, and bytes that the text formats give a meaning.
const BYTES: [u8; 16] = *b"\x00\x01\x7f\x80\xff\n\r\",;{}[]\\0";

/// Copies of a file, each with one changed bit, and one that ends early. `file` must not be empty.
pub(crate) fn damaged(file: &[u8], seed: usize) -> impl Iterator<Item = Vec<u8>> {
    // Depends on the content too, so that each mutation of a file is damaged in other places.
    let mut random = Mutator::new(seed as u64 ^ u64::from(crc32fast::hash(file)));
    let cut_short = file[..random.below(file.len() as u64) as usize].to_vec();
    let changed = (0..DAMAGED_BITS).map(move |_| {
        let mut damaged = file.to_vec();
        damaged[random.below(file.len() as u64) as usize] ^= 1 << random.below(8);
        damaged
    });
    changed.chain([cut_short])
}

impl Mutator {
    /// A generator whose results depend on `seed` only.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A random number below `end`, which is not 0.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }

    /// A random position in `bytes`, or its end.
    pub(crate) fn position(&mut self, bytes: &[u8]) -> usize {
        self.below(bytes.len() as u64 + 1) as usize
    }

    /// A mutation of `input`, with parts of `other`.
    pub fn mutate(&mut self, input: &[u8], other: &[u8]) -> Vec<u8> {
        let mut bytes = input.to_vec();
        for _ in 0..=self.below(MAX_CHANGES) {
            let at = self.position(&bytes);
            let end = bytes.len().min(at + 1 + self.below(MAX_RUN) as usize);
            match self.below(9) {
                0 if at < end => bytes[at] ^= 1 << self.below(8),
                1 if at < end => bytes[at] = BYTES[self.below(BYTES.len() as u64) as usize],
                2 if at < end => bytes[at] = bytes[at].wrapping_add(self.below(3) as u8).wrapping_sub(1),
                3 => drop(bytes.drain(at..end)),
                4 => {
                    let run = bytes[at..end].to_vec();
                    bytes.splice(at..at, run);
                }
                5 => bytes.insert(at, BYTES[self.below(BYTES.len() as u64) as usize]),
                6 => {
                    let from = self.position(other);
                    let run = &other[from..other.len().min(from + 1 + self.below(4 * MAX_RUN) as usize)];
                    bytes.splice(at..end, run.iter().copied());
                }
                // The next number: texts are mostly letters.
                7 => {
                    if let Some(digit) = bytes[at..].iter().position(u8::is_ascii_digit) {
                        bytes[at + digit] = b'0' + self.below(10) as u8;
                    }
                }
                8 if self.below(4) == 0 => bytes.truncate(at),
                _ => {}
            }
        }
        bytes
    }
}
