//! Lists in an encoded row policy, and their items.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{PER_OWNER, SHADOW};
use crate::limiter::Rule;
use crate::record::{LimitRef, Per};

/// The items of a list, one after another.
#[derive(Clone, Copy)]
pub(super) struct List<'b>(&'b [u8]);

impl<'b> List<'b> {
    pub(super) const EMPTY: Self = List(&[]);

    /// Takes a list from the front of `bytes`; `item` takes an item. The count is not trusted: each
    /// item takes at least a byte of the input.
    pub(super) fn take<T>(
        bytes: &mut &'b [u8],
        mut item: impl FnMut(&mut &'b [u8]) -> Option<T>,
    ) -> Option<Self> {
        let count = u32::from_le_bytes(take(bytes)?);
        let start = *bytes;
        (0..count).try_for_each(|_| item(bytes).map(drop))?;
        start.get(..start.len() - bytes.len()).map(Self)
    }

    /// The items; `item` is the function that the list was taken with.
    pub(super) fn items<T>(
        self,
        item: impl Fn(&mut &'b [u8]) -> Option<T> + Clone,
    ) -> impl Iterator<Item = T> + Clone {
        let mut rest = self.0;
        std::iter::repeat_with(move || item(&mut rest)).map_while(|item| item)
    }
}

pub(super) fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    bytes.split_off(..N)?.first_chunk().copied()
}

pub(super) fn take_text<'b>(bytes: &mut &'b [u8]) -> Option<&'b str> {
    let length = u16::from_le_bytes(take(bytes)?);
    str::from_utf8(bytes.split_off(..usize::from(length))?).ok()
}

pub(super) fn take_network(bytes: &mut &[u8]) -> Option<IpNet> {
    let [family, prefix] = take(bytes)?;
    Some(match family {
        4 => Ipv4Net::new(Ipv4Addr::from(take::<4>(bytes)?), prefix).ok()?.into(),
        6 => Ipv6Net::new(Ipv6Addr::from(take::<16>(bytes)?), prefix).ok()?.into(),
        _ => return None,
    })
}

pub(super) fn take_limit<'b>(bytes: &mut &'b [u8]) -> Option<LimitRef<'b>> {
    let name = take_text(bytes)?;
    let [marks] = take(bytes)?;
    if marks & !(SHADOW | PER_OWNER) != 0 {
        return None;
    }
    let rule = Rule::from_bytes(take(bytes)?)?;
    let per = if marks & PER_OWNER == 0 { Per::Key } else { Per::Owner };
    Some(LimitRef { name, rule, per, shadow: marks & SHADOW != 0 })
}
