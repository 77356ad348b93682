//! Exports as JSON Lines. [`export`](super::export) lists the properties.

use keyward_source::Format;

use super::{Outcome, export};

pub(crate) fn run(data: &[u8]) -> Outcome {
    export::check(data, Format::JsonLines)
}
