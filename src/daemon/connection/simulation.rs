//! What the model test (`tests/model`) determines about the sockets of connections: how a stream is
//! divided into reads, and how many answers fit the send buffer.

use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::net::sockopt::set_socket_send_buffer_size;

static MAX_READ: AtomicUsize = AtomicUsize::new(usize::MAX);
static SEND_BUFFER: AtomicUsize = AtomicUsize::new(0);

/// Limits the bytes of one read of any connection; at least 1.
pub fn set_max_read(bytes: usize) {
    MAX_READ.store(bytes.max(1), Ordering::Relaxed);
}

/// Sets the size of the send buffers of new connections. 0: the system's default.
pub fn set_send_buffer(bytes: usize) {
    SEND_BUFFER.store(bytes, Ordering::Relaxed);
}

pub(super) fn shortened(space: &mut [u8]) -> &mut [u8] {
    let length = space.len().min(MAX_READ.load(Ordering::Relaxed));
    space.get_mut(..length).unwrap_or_default()
}

pub(super) fn shrink_send_buffer(stream: &UnixStream) {
    let bytes = SEND_BUFFER.load(Ordering::Relaxed);
    if bytes > 0 {
        // With the default size, answers are only divided less often.
        let _ = set_socket_send_buffer_size(stream, bytes);
    }
}
