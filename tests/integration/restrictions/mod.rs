//! Every restriction of a key, alone and combined with every other, applies to every request.
//!
//! A small [model] that shares no code with the daemon predicts the answers. The [engine] is tested
//! with all combinations, and a [daemon] through its clients with each restriction alone.

mod daemon;
mod engine;
mod model;
