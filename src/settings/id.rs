//! Users and groups by number.

use serde::Deserialize;
use serde::de::Deserializer;

use crate::text;

/// Maximum number of a user or a group. The kernel reserves the number above for "none".
pub const MAX_ID: u32 = u32::MAX - 1;

/// The number of a user or a group.
#[derive(Clone, Copy, Debug)]
pub struct Id(pub u32);

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text::integer(deserializer, 0..=MAX_ID).map(Self)
    }
}

impl Id {
    /// The numbers of a list, sorted and each once.
    pub fn sorted(ids: Vec<Self>) -> Box<[u32]> {
        let mut ids: Vec<u32> = ids.into_iter().map(|Self(id)| id).collect();
        ids.sort_unstable();
        ids.dedup();
        ids.into()
    }
}
