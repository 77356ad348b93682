//! Parsed lists by their text, because an export repeats the same few in millions of rows: each text is
//! parsed once, and its rows share the result. And the last few times, which an export may repeat too.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::quality::RandomState;

/// Texts remembered: far more than an export has plans or roles. One that goes on to differ in every row is
/// parsed row by row, and only slower for it.
const MAX_TEXTS: usize = 65_536;

/// Bytes of all texts remembered, so that long lists cannot make a memo large either: what is parsed from a
/// text takes a small multiple of its length.
const MAX_BYTES: usize = 8 << 20;

/// A memo of one kind of list.
#[derive(Debug)]
pub(super) struct ListCache<T> {
    parsed: HashMap<Box<str>, Arc<[T]>, RandomState>,
    bytes: usize,
    nothing: Arc<[T]>,
}

impl<T> ListCache<T> {
    pub(super) fn new() -> Self {
        Self { parsed: HashMap::default(), bytes: 0, nothing: Arc::new([]) }
    }

    /// What `parse` makes of `text`; an empty text is an empty list. Failures are not remembered.
    pub(super) fn get<E>(
        &mut self,
        text: &str,
        parse: impl FnOnce(&str) -> Result<Vec<T>, E>,
    ) -> Result<Arc<[T]>, E> {
        if text.is_empty() {
            return Ok(Arc::clone(&self.nothing));
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

    /// The same of a list that a row may lack: an empty text is no list, which is not the same as an empty one.
    pub(super) fn get_optional<E>(
        &mut self,
        text: &str,
        parse: impl FnOnce(&str) -> Result<Vec<T>, E>,
    ) -> Result<Option<Arc<[T]>>, E> {
        if text.is_empty() { Ok(None) } else { self.get(text, parse).map(Some) }
    }
}

/// TimeCache remembered, at places that their texts decide.
const TIMES: usize = 8;

/// The last few points in time, as seconds. Where each row has one of its own, nothing is kept of them for long.
#[derive(Debug, Default)]
pub(super) struct TimeCache([(String, u32); TIMES]);

impl TimeCache {
    /// What `parse` makes of `text`. Failures are not remembered.
    pub(super) fn get<'t, E>(
        &mut self,
        text: &'t str,
        parse: impl FnOnce(&'t str) -> Result<u32, E>,
    ) -> Result<u32, E> {
        let place = text.bytes().fold(text.len(), |sum, b| sum.wrapping_mul(31).wrapping_add(b.into()));
        let (known, seconds) = &mut self.0[place % TIMES];
        if text.is_empty() || known != text {
            let parsed = parse(text)?;
            known.clear();
            known.push_str(text);
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
    fn equal_texts_are_parsed_once_and_shared() {
        let mut memo = ListCache::new();
        let first = memo.get("a b", words).expect("words");
        let again = memo.get("a b", |_| Err("parsed twice")).expect("remembered");
        assert!(Arc::ptr_eq(&first, &again));
        let nothing = memo.get("", |_| Err("parsed nothing")).expect("an empty list");
        assert!(nothing.is_empty());
        assert_eq!(memo.get("x", |_| Err("wrong")), Err("wrong"));
        assert!(memo.get("x", words).is_ok(), "a failure is not remembered");
        let optional = memo.get_optional("", |_| Err("parsed nothing")).expect("no list");
        assert!(optional.is_none());
        let empty = memo.get_optional("{}", |_| Ok::<_, ()>(Vec::new())).expect("an empty list");
        assert_eq!(empty.map(|list| list.len()), Some(0));
    }

    #[test]
    fn a_time_is_what_it_was_the_last_time() {
        let mut times = TimeCache::default();
        let texts: Vec<String> = (0..100).map(|number| (number % 13).to_string()).collect();
        for text in &texts {
            assert_eq!(times.get(text, str::parse::<u32>), text.parse());
        }
        let last = &texts[99];
        assert_eq!(times.get(last, |_| Err("parsed twice")), Ok(99 % 13));
        assert_eq!(times.get("", |_| Ok::<_, ()>(5)), Ok(5), "an empty text is asked for each time");
        assert_eq!(times.get("x", |_| Err("wrong")), Err("wrong"));
        assert_eq!(times.get("x", |_| Ok::<_, ()>(7)), Ok(7), "a failure is not remembered");
    }

    #[test]
    fn it_stops_remembering_and_goes_on_parsing() {
        let mut memo = ListCache::new();
        for n in 0..=MAX_TEXTS {
            memo.get(&n.to_string(), words).expect("words");
        }
        assert_eq!(memo.parsed.len(), MAX_TEXTS);

        let mut memo = ListCache::new();
        for n in 0..200 {
            let text = format!("{n}{}", "x".repeat(65_000));
            assert_eq!(memo.get(&text, words).map(|list| list.len()), Ok(1));
        }
        assert!(memo.bytes <= MAX_BYTES && memo.parsed.len() < 200);
    }
}
