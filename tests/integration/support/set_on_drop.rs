//! A flag that ends the threads of a scope, also if the test panics.

use std::sync::atomic::{AtomicBool, Ordering};

/// Sets a flag when it is dropped. A scope waits for its threads, so a test that panics in a scope
/// would hang if they ran until the flag was set at its end.
pub(crate) struct SetOnDrop<'a>(pub(crate) &'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}
