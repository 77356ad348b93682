//! Reports token buckets that are forgotten early, so that memory stays bounded.

use tracing::warn;

/// Logs that `evicted` retained token buckets count as full although they are not, if there are any.
pub fn report_evicted(evicted: usize) {
    if evicted > 0 {
        warn!(
            evicted,
            "token buckets of removed keys and of former rates count as full early, because too many are remembered"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("not poisoned").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(evicted: usize) -> String {
        let captured = Captured::default();
        let writer = captured.clone();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(subscriber, || report_evicted(evicted));
        let bytes = captured.0.lock().expect("not poisoned");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    #[test]
    fn evicted_buckets_are_reported_with_their_number() {
        let line = logged(7);
        assert!(line.contains("WARN") && line.contains("evicted=7"), "{line}");
        assert_eq!(logged(0), "");
    }
}
