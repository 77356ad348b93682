//! Rust client for keyward.
