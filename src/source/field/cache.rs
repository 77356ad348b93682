//! Caches of parsed lists and times, by their texts.
//!
//! An export repeats a few lists in millions of rows. Each distinct text is parsed once, and the
//! rows share the result.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::quality::RandomState;

/// Maximum number of lists cached: far more than an export has plans or roles. Further lists are
/// parsed in every row.
const MAX_TEXTS: usize = 65_536;

/// Maximum number of bytes of cached texts, which bounds a cache of long lists. A parsed list takes
/// a small multiple of its text.
const MAX_BYTES: usize = 8 << 20;

/// A cache of one kind of list.
#[derive(Debug)]
pub(crate) struct ListCache<T> {
    parsed: HashMap<Box<str>, Arc<[T]>, RandomState>,
    bytes: usize,
    empty: Arc<[T]>,
}

impl<T> ListCache<T> {
    pub(crate) fn new() -> Self {
        Self { parsed: HashMap::default(), bytes: 0, empty: Arc::new([]) }
    }

    /// The result of `parse` for `text`, cached. An empty text is an empty list. Errors are not
    /// cached.
    pub(crate) fn get<E>(
        &mut self,
        text: &str,
        parse: impl FnOnce(&str) -> Result<Vec<T>, E>,
    ) -> Result<Arc<[T]>, E> {
        if text.is_empty() {
            return Ok(Arc::clone(&self.empty));
        }
        if let Some(parsed) = self.parsed.get(text) {
            return Ok(Arc::clone(parsed));
        }
        let parsed: Arc<[T]> = parse(text)?.into();
        if self.parsed.len() < MAX_TEXTS && self.bytes + text.len() <= MAX_BYTES {
            self.bytes += text.len();
            self.parsed.insert(text.into(), Arc::clone(&parsed));
        }
        Ok(parsed)
    }

    /// As [`get`](Self::get), for a list that may be absent: an empty text is no list, which
    /// differs from an empty list.
    pub(crate) fn get_optional<E>(
        &mut self,
        text: &str,
        parse: impl FnOnce(&str) -> Result<Vec<T>, E>,
    ) -> Result<Option<Arc<[T]>>, E> {
        if text.is_empty() { Ok(None) } else { self.get(text, parse).map(Some) }
    }
}

/// Slots of a [`TimeCache`].
const TIME_SLOTS: usize = 8;

/// A direct-mapped cache of the last few times, as Unix seconds.
#[derive(Debug, Default)]
pub(crate) struct TimeCache([(String, u32); TIME_SLOTS]);

impl TimeCache {
    /// The result of `parse` for `text`, cached. Errors and empty texts are not cached.
    pub(crate) fn get<'t, E>(
        &mut self,
        text: &'t str,
        parse: impl FnOnce(&'t str) -> Result<u32, E>,
    ) -> Result<u32, E> {
        let hash = text.bytes().fold(text.len(), |sum, b| sum.wrapping_mul(31).wrapping_add(b.into()));
        let (cached, seconds) = &mut self.0[hash % TIME_SLOTS];
        if text.is_empty() || cached != text {
            let parsed = parse(text)?;
            cached.clear();
            cached.push_str(text);
            *seconds = parsed;
        }
        Ok(*seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Result<Vec<String>, ()> {
        Ok(text.split(' ').map(str::to_owned).collect())
    }

    #[test]
    fn equal_texts_are_parsed_once_and_share_the_list() {
        let mut cache = ListCache::new();
        let first = cache.get("a b", words).expect("words");
        let again = cache.get("a b", |_| Err("parsed twice")).expect("cached");
        assert!(Arc::ptr_eq(&first, &again));
        let nothing = cache.get("", |_| Err("parsed nothing")).expect("an empty list");
        assert!(nothing.is_empty());
        assert_eq!(cache.get("x", |_| Err("wrong")), Err("wrong"));
        assert!(cache.get("x", words).is_ok(), "errors are not cached");
        let optional = cache.get_optional("", |_| Err("parsed nothing")).expect("no list");
        assert!(optional.is_none());
        let empty = cache.get_optional("{}", |_| Ok::<_, ()>(Vec::new())).expect("an empty list");
        assert_eq!(empty.map(|list| list.len()), Some(0));
    }

    #[test]
    fn cached_time_equals_the_parsed_time() {
        let mut times = TimeCache::default();
        let texts: Vec<String> = (0..100).map(|number| (number % 13).to_string()).collect();
        for text in &texts {
            assert_eq!(times.get(text, str::parse::<u32>), text.parse());
        }
        let last = &texts[99];
        assert_eq!(times.get(last, |_| Err("parsed twice")), Ok(99 % 13));
        assert_eq!(times.get("", |_| Ok::<_, ()>(5)), Ok(5), "an empty text is parsed each time");
        assert_eq!(times.get("x", |_| Err("wrong")), Err("wrong"));
        assert_eq!(times.get("x", |_| Ok::<_, ()>(7)), Ok(7), "errors are not cached");
    }

    #[test]
    fn full_cache_parses_without_caching() {
        let mut cache = ListCache::new();
        for n in 0..=MAX_TEXTS {
            cache.get(&n.to_string(), words).expect("words");
        }
        assert_eq!(cache.parsed.len(), MAX_TEXTS);

        let mut cache = ListCache::new();
        for n in 0..200 {
            let text = format!("{n}{}", "x".repeat(65_000));
            assert_eq!(cache.get(&text, words).map(|list| list.len()), Ok(1));
        }
        assert!(cache.bytes <= MAX_BYTES && cache.parsed.len() < 200);
    }
}
