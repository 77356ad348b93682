//! The names of a compiled file's owners, by their numbers: what a row is too short for.
//!
//! They ascend, which is all it takes to know that no name has two numbers.

use std::hint::black_box;

use crate::record::MAX_OWNER;
use crate::snapshot::compiled::read::has_control;

/// Names one after another.
#[derive(Debug)]
pub(super) struct Owners {
    texts: String,
    /// Where the name of each number ends, and that of the next begins; 0 is nobody.
    ends: Vec<usize>,
}

impl Owners {
    /// Nobody.
    pub(super) fn new() -> Self {
        Self { texts: String::new(), ends: vec![0] }
    }

    /// How many have a name.
    pub(super) fn len(&self) -> usize {
        self.ends.len() - 1
    }

    /// Adds the names of a block: each a byte that is its length, and itself.
    ///
    /// # Errors
    /// What is wrong with one.
    pub(super) fn add(&mut self, mut block: &[u8], names: u32) -> Result<(), &'static str> {
        const SHORT: &str = "it is shorter than its names";
        for _ in 0..names {
            let [length] = *block.split_off(..1).and_then(<[u8]>::first_chunk).ok_or(SHORT)?;
            let name = block.split_off(..usize::from(length)).ok_or(SHORT)?;
            let name = str::from_utf8(name).map_err(|_| "a name is not UTF-8")?;
            if name.len() > MAX_OWNER || has_control(name) {
                return Err("a name is too long, or has a control character");
            }
            // Nobody's is empty: so none is after it.
            if self.name(self.len() as u32).is_none_or(|before| before >= name) {
                return Err("the names do not ascend, or one is empty");
            }
            self.texts.push_str(name);
            self.ends.push(self.texts.len());
        }
        if block.is_empty() { Ok(()) } else { Err("there is more in it than its names") }
    }

    /// The name of a number; empty for nobody, `None` for a number that nobody has.
    pub(super) fn name(&self, number: u32) -> Option<&str> {
        let end = *self.ends.get(number as usize)?;
        let start = number.checked_sub(1).map_or(Some(&0), |before| self.ends.get(before as usize))?;
        self.texts.get(*start..end)
    }

    /// Fetches the names of several numbers, so that the cache misses overlap where there are many owners.
    pub(super) fn fetch(&self, numbers: impl Iterator<Item = u32> + Clone) {
        let ends = numbers.filter_map(|number| self.ends.get(number as usize));
        black_box(ends.clone().fold(0, |sum, end| sum ^ end));
        let bytes = ends.filter_map(|end| self.texts.as_bytes().get(end.wrapping_sub(1)));
        black_box(bytes.fold(0, |sum, byte| sum ^ byte));
    }
}
