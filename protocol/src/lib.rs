//! keyward's wire protocol, and nothing else: see `SPEC.md` beside this crate, which is normative.

mod limits;

pub use limits::*;
