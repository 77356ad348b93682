//! The encoded requests of a load. They are encoded before it starts, so that sending costs the
//! client one system call and nothing else, whatever the target.
//!
//! Requests are numbered 0, 1, 2, … without end: after the last one, the first follows. A connection
//! sends slices of consecutive requests, and their answers must arrive in that order.

use zeroize::Zeroizing;

/// Encoded requests, stored one after another.
pub(crate) struct EncodedRequests {
    // They may contain raw keys.
    bytes: Zeroizing<Vec<u8>>,
    count: usize,
    layout: Layout,
}

/// Where each request ends.
enum Layout {
    /// All requests have this size. This is the common case, and needs no lookup.
    Fixed(usize),
    /// The end of each request.
    Ends(Vec<usize>),
}

/// There are no requests, or one of them is empty.
#[derive(Debug, thiserror::Error)]
#[error("there is nothing to ask")]
pub(crate) struct NoRequestsError;

impl EncodedRequests {
    /// Encodes `count` requests; `encode(n, out)` appends request `n` to `out`.
    ///
    /// # Errors
    /// When `count` is 0 or a request is empty.
    pub(crate) fn new(
        count: usize,
        mut encode: impl FnMut(usize, &mut Vec<u8>),
    ) -> Result<Self, NoRequestsError> {
        let mut first = Zeroizing::new(Vec::new());
        if count > 0 {
            encode(0, &mut first);
        }
        if first.is_empty() {
            return Err(NoRequestsError);
        }
        let size = first.len();
        // This is the final size if all requests are equally long. A vector that grows would leave
        // copies of keys in memory.
        let mut bytes = Zeroizing::new(Vec::with_capacity(size * count));
        let mut ends = Vec::new();
        for number in 0..count {
            let start = bytes.len();
            encode(number, &mut bytes);
            if ends.is_empty() && bytes.len() - start != size {
                ends.extend((1..=number).map(|number| number * size));
            }
            if bytes.len() == start {
                return Err(NoRequestsError);
            }
            if bytes.len() != (number + 1) * size || !ends.is_empty() {
                ends.push(bytes.len());
            }
        }
        let layout = if ends.is_empty() { Layout::Fixed(size) } else { Layout::Ends(ends) };
        Ok(Self { bytes, count, layout })
    }

    /// The number of different requests, at least 1.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// The number of the request after `number`, both below [`len`](Self::len). This avoids a
    /// division for each of the millions of answers per second.
    pub(crate) fn following(&self, number: u64) -> u64 {
        let next = number + 1;
        if next == self.count as u64 { 0 } else { next }
    }

    /// Mean size of a request in bytes.
    pub(crate) fn mean_size(&self) -> f64 {
        self.bytes.len() as f64 / self.len() as f64
    }

    /// The bytes of request `number`.
    pub(crate) fn request(&self, number: u64) -> &[u8] {
        self.slice(number, 1).0
    }

    /// The bytes of up to `max` requests (at least 1) starting at `number`, and how many they are:
    /// fewer than `max` if the last request is reached.
    pub(crate) fn slice(&self, number: u64, max: usize) -> (&[u8], usize) {
        let first = (number % self.len() as u64) as usize;
        let count = max.min(self.len() - first);
        (&self.bytes[self.start(first)..self.start(first + count)], count)
    }

    fn start(&self, index: usize) -> usize {
        match &self.layout {
            Layout::Fixed(size) => index * size,
            Layout::Ends(ends) => index.checked_sub(1).map_or(0, |previous| ends[previous]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slice_stops_at_the_last_request() {
        let requests =
            EncodedRequests::new(3, |number, out| out.extend([number as u8; 4])).expect("three requests");
        assert_eq!((requests.len(), requests.mean_size()), (3, 4.0));
        assert_eq!(requests.slice(1, 9), (&[1, 1, 1, 1, 2, 2, 2, 2][..], 2));
        assert_eq!(requests.slice(3, 1), (&[0; 4][..], 1));
        assert_eq!(requests.request(5), [2; 4]);
    }

    #[test]
    fn requests_of_different_sizes_are_found() {
        for sizes in [[2, 2, 1, 3], [1, 2, 3, 4], [3, 1, 3, 3], [1, 1, 1, 2]] {
            let requests =
                EncodedRequests::new(4, |number, out| out.extend(vec![number as u8; sizes[number]]))
                    .expect("four requests");
            assert_eq!(requests.len(), 4);
            for (number, size) in sizes.iter().enumerate() {
                assert_eq!(requests.request(4 + number as u64), vec![number as u8; *size], "{sizes:?}");
            }
            assert_eq!(requests.slice(1, 2).0.len(), sizes[1] + sizes[2]);
        }
    }

    #[test]
    fn no_requests_and_an_empty_request_are_errors() {
        assert!(EncodedRequests::new(0, |_, out| out.push(1)).is_err());
        assert!(EncodedRequests::new(2, |_, _| ()).is_err());
        assert!(EncodedRequests::new(2, |number, out| out.extend(vec![0; 1 - number])).is_err());
    }
}
