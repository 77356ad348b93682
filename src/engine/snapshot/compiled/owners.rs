//! The names of the owners in a compiled file, by number. Rows refer to them, because a row has a
//! fixed size.
//!
//! The names ascend, which rules out that one name has two numbers.

use std::sync::atomic::{AtomicU32, Ordering};

use keyward_memory::{HugePages, HugeText, HugeVec, prefetch};

use crate::record::MAX_OWNER;
use crate::snapshot::compiled::format::has_control;

/// All names, one after another.
pub(super) struct Owners {
    texts: HugeText,
    /// By number. Number 0 stands for no owner.
    names: HugeVec<Name>,
}

/// Rows refer to owners in random order, and there are more owners than fit in a cache. Everything
/// that a row needs is therefore in one place.
struct Name {
    /// The start of the text, and in the lower 8 bits its length.
    span: u64,
    /// The lowest row of the owner so far.
    first_row: AtomicU32,
}

const _: () = assert!(MAX_OWNER <= 0xff && size_of::<Name>() == 16);

/// No row of the owner has been decoded.
const NONE: u32 = u32::MAX;

const TOO_LONG: &str = "a name is too long, or has a control character";

impl Name {
    /// The length must be at most [`MAX_OWNER`].
    fn new(start: usize, length: usize) -> Self {
        Self { span: (start as u64) << 8 | length as u64, first_row: AtomicU32::new(NONE) }
    }

    fn start(&self) -> usize {
        (self.span >> 8) as usize
    }

    fn end(&self) -> usize {
        self.start() + (self.span & 0xff) as usize
    }
}

impl Owners {
    /// Number 0, and room for `names` names with `bytes` bytes in all.
    pub(super) fn with_capacity(names: usize, bytes: usize) -> Self {
        let mut all = HugeVec::with_capacity_in(names.saturating_add(1), HugePages);
        all.push(Name::new(0, 0));
        Self { texts: HugeText::with_capacity(bytes), names: all }
    }

    /// The number of names.
    pub(super) fn len(&self) -> usize {
        self.names.len() - 1
    }

    /// Adds the names of a block. Each is a length byte followed by the name.
    ///
    /// # Errors
    /// What is wrong with the block.
    pub(super) fn add(&mut self, mut block: &[u8], names: u32) -> Result<(), &'static str> {
        const SHORT: &str = "it is shorter than its names";
        let mut texts = Vec::with_capacity(block.len());
        let (first, start) = (self.names.len(), self.texts.as_str().len());
        // The name of number 0 is empty, and so no empty name can follow.
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
            self.names.push(Name::new(start + texts.len(), name.len()));
            texts.extend_from_slice(name);
        }
        // All names at once, because most are short.
        let texts = str::from_utf8(&texts).map_err(|_| "a name is not UTF-8")?;
        if !self.names[first..].iter().all(|name| texts.is_char_boundary(name.start() - start)) {
            return Err("a name is not UTF-8");
        }
        if has_control(texts) {
            return Err(TOO_LONG);
        }
        self.texts.push_str(texts);
        if block.is_empty() { Ok(()) } else { Err("there is more in it than its names") }
    }

    /// The name of a number; empty for number 0, `None` if the number is not assigned.
    pub(super) fn name(&self, number: u32) -> Option<&str> {
        self.text(self.names.get(number as usize)?)
    }

    #[inline]
    fn text(&self, name: &Name) -> Option<&str> {
        self.texts.as_str().get(name.start()..name.end())
    }

    /// The owner's name for the row `row`, which is recorded as one of the owner's rows.
    #[inline]
    pub(super) fn name_of_row(&self, number: u32, row: u32) -> Option<&str> {
        let name = self.names.get(number as usize)?;
        // Most rows are not their owner's first. A load avoids the write for them.
        if name.first_row.load(Ordering::Relaxed) > row {
            name.first_row.fetch_min(row, Ordering::Relaxed);
        }
        self.text(name)
    }

    /// The first row of each number, where number 0 has none. `None` if any other number has none.
    pub(super) fn first_rows(&self) -> Option<Vec<u32>> {
        let firsts = self.names.iter().map(|name| name.first_row.load(Ordering::Relaxed));
        let named = firsts.skip(1).map(|first| Some(first).filter(|first| *first != NONE));
        std::iter::once(Some(NONE)).chain(named).collect()
    }

    /// Prefetches the position of a name.
    #[inline]
    pub(super) fn prefetch(&self, number: u32) {
        self.names.get(number as usize).into_iter().for_each(prefetch);
    }

    /// Prefetches a name, whose position has been prefetched before.
    #[inline]
    pub(super) fn prefetch_name(&self, number: u32) {
        let Some(name) = self.names.get(number as usize) else { return };
        let bytes = self.texts.as_str().as_bytes();
        // The name may span two cache lines, and its end is checked to be a character boundary.
        bytes.get(name.start()).into_iter().chain(bytes.get(name.end())).for_each(prefetch);
    }
}
