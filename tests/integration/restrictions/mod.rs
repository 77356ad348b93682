//! Each restriction that a key can have, alone and beside every other, is heeded in every way that
//! a request can take.
//!
//! What is expected is decided by a small [model] that shares no code with the daemon. The [engine]
//! is asked for all of it, and a [daemon] through its sockets for each restriction alone.

mod daemon;
mod engine;
mod model;
