//! Memory for large tables that are read at random: huge pages, prefaulting, prefetching, and a
//! reserve of address space.
//!
//! A table of a million keys spans tens of thousands of ordinary pages, more than the TLB covers:
//! most reads would wait for a page-table walk before they wait for the key itself. Linux provides
//! huge pages on request (its usual setting is `madvise`). If it has none left, or the setting is
//! `never`, the same memory consists of ordinary pages.
//!
//! * [`HugePages`] is the allocator, and [`HugeVec`] a vector that uses it ([`huge_pages`]). Large
//!   blocks are mapped one by one: fresh mappings are zero, so a [`zeroed`] table costs nothing
//!   until it is written, and freed memory returns to the system at once.
//! * [`with_prefault`] and [`prefault_ahead`] fault in memory with several threads before it is
//!   filled ([`prefault`]).
//! * [`HugeText`] is a string in huge pages; [`TextBuffer`] is one that several threads write
//!   ([`text`]).
//! * [`can_map`] and the reserve let a load that runs out of address space fail without aborting
//!   the process ([`reserve`]).
//! * [`prefetch()`] starts loading a cache line.
//! * [`wipe_freed_memory`] has the allocator of the process overwrite what it frees ([`allocator`]).
//!
//! This is the only crate with `unsafe` code. An allocator cannot be written without it, nor a
//! prefetch. Huge pages and the layout of texts reduced a verify from 181 and 191 ns to 136 and 151
//! ns (`benches/verify.rs`, a hit by digest, 1 M keys, batch 64, measured in turn);
//! `server.huge_pages` switches the huge pages alone. `cargo miri test -p keyward-memory` runs the
//! tests under Miri, which needs a nightly toolchain.

#![allow(
    rustdoc::private_intra_doc_links,
    reason = "the modules' pages are for readers of the source, links included"
)]
#![allow(unsafe_code, reason = "an allocator, and hints to the processor and the system")]

mod allocator;
mod huge_pages;
mod prefault;
mod prefetch;
mod reserve;
mod text;
mod vector;

#[cfg(test)]
mod tests;

pub use allocator::wipe_freed_memory;
pub use huge_pages::{HugePages, HugeVec, set_huge_pages};
pub use prefault::with_prefault;
pub use prefetch::prefetch;
pub use reserve::{can_map, ensure_reserve, has_reserve};
pub use text::{HugeText, TextBuffer, TextWriter};
pub use vector::{growth, prefault_ahead, push_bytes, reserve_if_possible, trim, zeroed};

/// The size of a huge page on x86-64, and on arm64 with pages of 4 KiB. On other systems the
/// request for huge pages has no effect.
pub const HUGE_PAGE: usize = 2 << 20;
