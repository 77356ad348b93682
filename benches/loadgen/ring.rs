//! The requests of a load, encoded before it begins: a ring that connections send slices of, so that sending costs the
//! client one system call and nothing else, whatever the target.
//!
//! Requests are numbered for good (0, 1, 2, …); number n is the ring's n modulo its length. A connection sends a run of
//! consecutive numbers, and their answers have to come in that order.

use zeroize::Zeroizing;

/// Encoded requests, one after another.
pub(crate) struct Ring {
    // Raw keys may be among them.
    bytes: Zeroizing<Vec<u8>>,
    count: usize,
    layout: Layout,
}

/// Where each request ends.
enum Layout {
    /// All have this size, which is the usual case: nothing has to be looked up.
    Fixed(usize),
    /// The ends of all.
    Ends(Vec<usize>),
}

/// A ring needs at least one request, and a request at least one byte.
#[derive(Debug, thiserror::Error)]
#[error("there is nothing to ask")]
pub(crate) struct NoRequests;

impl Ring {
    /// Encodes `count` requests; `encode(n, out)` appends request `n`.
    ///
    /// # Errors
    /// When `count` is 0 or a request is empty.
    pub(crate) fn new(count: usize, mut encode: impl FnMut(usize, &mut Vec<u8>)) -> Result<Self, NoRequests> {
        let mut first = Zeroizing::new(Vec::new());
        if count > 0 {
            encode(0, &mut first);
        }
        if first.is_empty() {
            return Err(NoRequests);
        }
        let size = first.len();
        // Of the final size where all are alike: a vector that grows leaves copies behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(size * count));
        let mut ends = Vec::new();
        for number in 0..count {
            let start = bytes.len();
            encode(number, &mut bytes);
            if ends.is_empty() && bytes.len() - start != size {
                ends.extend((1..=number).map(|number| number * size));
            }
            if bytes.len() == start {
                return Err(NoRequests);
            }
            if bytes.len() != (number + 1) * size || !ends.is_empty() {
                ends.push(bytes.len());
            }
        }
        let layout = if ends.is_empty() { Layout::Fixed(size) } else { Layout::Ends(ends) };
        Ok(Self { bytes, count, layout })
    }

    /// Requests in it, at least 1.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// The number of the request after number `number` of the ring: a client that looks at millions of answers a second
    /// does not divide for each of them.
    pub(crate) fn after(&self, number: u64) -> u64 {
        let next = number + 1;
        if next == self.count as u64 { 0 } else { next }
    }

    /// Bytes of a request, on average.
    pub(crate) fn mean_size(&self) -> f64 {
        self.bytes.len() as f64 / self.len() as f64
    }

    /// The bytes of request `number`.
    pub(crate) fn request(&self, number: u64) -> &[u8] {
        self.run(number, 1).0
    }

    /// The bytes of at most `most` requests (1 or more) from `number` on, and how many they are: fewer at the ring's end.
    pub(crate) fn run(&self, number: u64, most: usize) -> (&[u8], usize) {
        let first = (number % self.len() as u64) as usize;
        let count = most.min(self.len() - first);
        (&self.bytes[self.start(first)..self.start(first + count)], count)
    }

    fn start(&self, index: usize) -> usize {
        match &self.layout {
            Layout::Fixed(size) => index * size,
            Layout::Ends(ends) => index.checked_sub(1).map_or(0, |before| ends[before]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_ends_where_the_ring_does() {
        let ring = Ring::new(3, |number, out| out.extend([number as u8; 4])).expect("three");
        assert_eq!((ring.len(), ring.mean_size()), (3, 4.0));
        assert_eq!(ring.run(1, 9), (&[1, 1, 1, 1, 2, 2, 2, 2][..], 2));
        assert_eq!(ring.run(3, 1), (&[0; 4][..], 1));
        assert_eq!(ring.request(5), [2; 4]);
    }

    #[test]
    fn requests_of_different_sizes_are_found() {
        for sizes in [[2, 2, 1, 3], [1, 2, 3, 4], [3, 1, 3, 3], [1, 1, 1, 2]] {
            let ring = Ring::new(4, |n, out| out.extend(vec![n as u8; sizes[n]])).expect("four");
            assert_eq!(ring.len(), 4);
            for (number, size) in sizes.iter().enumerate() {
                assert_eq!(ring.request(4 + number as u64), vec![number as u8; *size], "{sizes:?}");
            }
            assert_eq!(ring.run(1, 2).0.len(), sizes[1] + sizes[2]);
        }
    }

    #[test]
    fn nothing_is_no_ring() {
        assert!(Ring::new(0, |_, out| out.push(1)).is_err());
        assert!(Ring::new(2, |_, _| ()).is_err());
        assert!(Ring::new(2, |number, out| out.extend(vec![0; 1 - number])).is_err());
    }
}
