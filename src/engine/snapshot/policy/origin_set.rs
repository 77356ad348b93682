//! A list of origins and patterns of them.

use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::record::OriginRef;

/// Precedes the prefix and the suffix of an origin.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Lengths {
    prefix: U16,
    /// 0 if there is no wildcard: the suffix after a wildcard has at least two bytes.
    suffix: U16,
}

/// Encoded origins, in the order of the row.
#[derive(Clone, Copy, PartialEq)]
pub(in crate::snapshot) struct OriginSet<'s>(&'s [u8]);

/// Appends a list of origins.
pub(super) fn encode<'o>(origins: impl Iterator<Item = OriginRef<'o>>, out: &mut Vec<u8>) {
    for OriginRef { prefix, suffix } in origins {
        let suffix = suffix.unwrap_or_default();
        // An origin of a row policy has less than 64 KiB.
        let [prefix_length, suffix_length] = [prefix, suffix].map(|part| U16::new(part.len() as u16));
        out.extend_from_slice(Lengths { prefix: prefix_length, suffix: suffix_length }.as_bytes());
        out.extend_from_slice(prefix);
        out.extend_from_slice(suffix);
    }
}

impl<'s> OriginSet<'s> {
    /// The list that was [encoded](encode) as `bytes`.
    pub(super) fn new(bytes: &'s [u8]) -> Self {
        Self(bytes)
    }

    /// Whether any of the origins is `origin` or matches it.
    pub(super) fn matches(self, origin: &str) -> bool {
        self.iter().any(|own| own.matches(origin.as_bytes()))
    }

    /// Whether every origin of `other` is covered by one of this list.
    pub(super) fn covers(self, other: OriginSet<'_>) -> bool {
        other.iter().all(|origin| self.iter().any(|own| own.covers(origin)))
    }

    fn iter(self) -> impl Iterator<Item = OriginRef<'s>> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let (lengths, texts) = Lengths::ref_from_prefix(rest).ok()?;
            rest = texts;
            let prefix = rest.split_off(..lengths.prefix.get().into())?;
            let suffix = rest.split_off(..lengths.suffix.get().into())?;
            Some(OriginRef { prefix, suffix: (!suffix.is_empty()).then_some(suffix) })
        })
    }
}
