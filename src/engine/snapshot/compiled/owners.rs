//! The names of a compiled file's owners, by their numbers: what a row is too short for.
//!
//! They ascend, which is all it takes to know that no name has two numbers.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::record::MAX_OWNER;
use crate::snapshot::compiled::decode::has_control;
use keyward_memory::{Huge, HugeText, HugeVec, prefetch};

/// Names one after another.
pub(super) struct Owners {
    texts: HugeText,
    /// By number; 0 is nobody.
    names: HugeVec<Name>,
}

/// Rows come to owners in no order, and there are more of them than caches hold: all that a row needs is in one place.
struct Name {
    /// Where its text begins, and in the lower 8 bits how long it is.
    at: u64,
    /// The first of its rows that has been seen.
    first: AtomicU32,
}

const _: () = assert!(MAX_OWNER <= 0xff && size_of::<Name>() == 16);

/// No row has been.
const NONE: u32 = u32::MAX;

const TOO_LONG: &str = "a name is too long, or has a control character";

impl Name {
    /// Its length fits: it is no more than an owner's.
    fn new(start: usize, length: usize) -> Self {
        Self { at: (start as u64) << 8 | length as u64, first: AtomicU32::new(NONE) }
    }

    fn start(&self) -> usize {
        (self.at >> 8) as usize
    }

    fn end(&self) -> usize {
        self.start() + (self.at & 0xff) as usize
    }
}

impl Owners {
    /// Nobody, and room for so many names with so many bytes.
    pub(super) fn with_capacity(names: usize, bytes: usize) -> Self {
        let mut all = HugeVec::with_capacity_in(names.saturating_add(1), Huge);
        all.push(Name::new(0, 0));
        Self { texts: HugeText::with_capacity(bytes), names: all }
    }

    /// How many have a name.
    pub(super) fn len(&self) -> usize {
        self.names.len() - 1
    }

    /// Adds the names of a block: each a byte that is its length, and itself.
    ///
    /// # Errors
    /// What is wrong with one.
    pub(super) fn add(&mut self, mut block: &[u8], names: u32) -> Result<(), &'static str> {
        const SHORT: &str = "it is shorter than its names";
        let mut texts = Vec::with_capacity(block.len());
        let (first, from) = (self.names.len(), self.texts.as_str().len());
        // Nobody's is empty: so none is after it.
        let mut before = self.name(self.len() as u32).unwrap_or_default().as_bytes().to_vec();
        for _ in 0..names {
            let [length] = *block.split_off(..1).and_then(<[u8]>::first_chunk).ok_or(SHORT)?;
            let name = block.split_off(..usize::from(length)).ok_or(SHORT)?;
            if name.len() > MAX_OWNER {
                return Err(TOO_LONG);
            }
            if *before >= *name {
                return Err("the names do not ascend, or one is empty");
            }
            before.clear();
            before.extend_from_slice(name);
            self.names.push(Name::new(from + texts.len(), name.len()));
            texts.extend_from_slice(name);
        }
        // All at once: most names are short.
        let texts = str::from_utf8(&texts).map_err(|_| "a name is not UTF-8")?;
        if !self.names[first..].iter().all(|name| texts.is_char_boundary(name.start() - from)) {
            return Err("a name is not UTF-8");
        }
        if has_control(texts) {
            return Err(TOO_LONG);
        }
        self.texts.push_str(texts);
        if block.is_empty() { Ok(()) } else { Err("there is more in it than its names") }
    }

    /// The name of a number; empty for nobody, `None` for a number that nobody has.
    pub(super) fn name(&self, number: u32) -> Option<&str> {
        self.text(self.names.get(number as usize)?)
    }

    #[inline]
    fn text(&self, name: &Name) -> Option<&str> {
        self.texts.as_str().get(name.start()..name.end())
    }

    /// The same for a row that is theirs.
    #[inline]
    pub(super) fn name_of_row(&self, number: u32, row: u32) -> Option<&str> {
        let name = self.names.get(number as usize)?;
        // Most rows are not their owner's first, and only look.
        if name.first.load(Ordering::Relaxed) > row {
            name.first.fetch_min(row, Ordering::Relaxed);
        }
        self.text(name)
    }

    /// The first row of each number; nobody has one, whoever has none. `None`: somebody else has none.
    pub(super) fn first_rows(&self) -> Option<Vec<u32>> {
        let firsts = self.names.iter().map(|name| name.first.load(Ordering::Relaxed));
        let named = firsts.skip(1).map(|first| Some(first).filter(|first| *first != NONE));
        std::iter::once(Some(NONE)).chain(named).collect()
    }

    /// Has fetched where the name of a number is.
    #[inline]
    pub(super) fn prefetch(&self, number: u32) {
        self.names.get(number as usize).into_iter().for_each(prefetch);
    }

    /// Has the name itself fetched, which takes that.
    #[inline]
    pub(super) fn prefetch_name(&self, number: u32) {
        let Some(name) = self.names.get(number as usize) else { return };
        let bytes = self.texts.as_str().as_bytes();
        // It may lie across two cache lines, and where it ends it is looked at too.
        bytes.get(name.start()).into_iter().chain(bytes.get(name.end())).for_each(prefetch);
    }
}
