//! Texts that many records have in common, stored once each.

use std::hash::BuildHasher;
use std::num::NonZeroU32;

use hashbrown::HashTable;

/// The number of a text.
pub(super) type TextId = NonZeroU32;

/// Texts by number. One that nothing uses any more is removed.
#[derive(Default)]
pub(super) struct Texts {
    /// The text with number n is at n - 1.
    texts: Vec<Text>,
    by_text: HashTable<TextId>,
    free: Vec<TextId>,
    hasher: foldhash::fast::RandomState,
}

struct Text {
    text: Box<str>,
    users: u64,
}

impl Texts {
    /// The number of `text`, which has one more user.
    pub(super) fn retain(&mut self, text: &str) -> TextId {
        let Self { texts, by_text, free, hasher } = self;
        let hash = hasher.hash_one(text);
        if let Some(id) = by_text.find(hash, |id| *texts[index(*id)].text == *text) {
            texts[index(*id)].users += 1;
            return *id;
        }
        let new = Text { text: text.into(), users: 1 };
        let id = match free.pop() {
            Some(id) => {
                texts[index(id)] = new;
                id
            }
            None => {
                texts.push(new);
                // As many texts as records, at most: far fewer than 2^32.
                TextId::MIN.saturating_add(texts.len() as u32 - 1)
            }
        };
        by_text.insert_unique(hash, id, |id| hasher.hash_one(&*texts[index(*id)].text));
        id
    }

    /// The text with number `id` has one user less.
    pub(super) fn release(&mut self, id: TextId) {
        let text = &mut self.texts[index(id)];
        text.users -= 1;
        if text.users > 0 {
            return;
        }
        let hash = self.hasher.hash_one(&*text.text);
        text.text = Box::default();
        if let Ok(entry) = self.by_text.find_entry(hash, |other| *other == id) {
            entry.remove();
            self.free.push(id);
        }
    }

    /// The text with number `id`.
    pub(super) fn get(&self, id: TextId) -> &str {
        &self.texts[index(id)].text
    }

    /// All texts in use.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.by_text.len()
    }
}

fn index(id: TextId) -> usize {
    id.get() as usize - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_stored_while_it_is_used() {
        let mut texts = Texts::default();
        let [a, b, again] = ["a", "b", "a"].map(|text| texts.retain(text));
        assert_eq!((a, texts.get(a), texts.get(b), texts.len()), (again, "a", "b", 2));
        texts.release(a);
        assert_eq!((texts.len(), texts.get(a)), (2, "a"));
        texts.release(a);
        assert_eq!(texts.len(), 1);
        let c = texts.retain("c");
        assert_eq!((c, texts.get(c), texts.len()), (a, "c", 2), "the number is used again");
        assert_ne!(texts.retain("a"), a);
    }
}
