//! SHA-256 of a message that fits into one block with its padding, as a key usually does.
//!
//! This pads the message itself (FIPS 180-4) and calls the block function of `sha2`. The streaming
//! hasher of `sha2` also buffers and wipes state for the next part of the message, which takes a
//! third of its time for a key.

use std::slice;

use sha2::block_api::compress256;
use zeroize::Zeroize;

use crate::record::Digest;

const BLOCK: usize = 64;

/// The initial hash value (FIPS 180-4, 5.3.3).
const INITIAL: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

/// The digest of `message`, or `None` if it does not fit into one block with its padding.
#[inline]
pub(super) fn hash_single_block(message: &[u8]) -> Option<Digest> {
    // An array of words is wiped faster than one of bytes.
    let mut words = [0_u64; BLOCK / 8];
    let block: &mut [u8; BLOCK] = zerocopy::transmute_mut!(&mut words);
    // FIPS 180-4, 5.1.1: one set bit, zeros, and the length in bits.
    let (padded, length) = block.split_last_chunk_mut()?;
    let (start, rest) = padded.split_at_mut_checked(message.len())?;
    *rest.first_mut()? = 0x80;
    start.copy_from_slice(message);
    *length = (message.len() as u64 * 8).to_be_bytes();

    let mut state = INITIAL;
    compress256(&mut state, slice::from_ref(&*block));
    // The block held the key.
    words.zeroize();
    let mut digest = Digest::default();
    for (bytes, word) in digest.as_chunks_mut().0.iter_mut().zip(state) {
        *bytes = word.to_be_bytes();
    }
    Some(digest)
}

#[cfg(test)]
mod tests {
    use sha2::{Digest as _, Sha256};

    use super::*;

    #[test]
    fn digest_equals_that_of_the_streaming_hasher() {
        let text: Vec<u8> = (1..=BLOCK as u8).collect();
        for length in 0..=text.len() {
            let text = &text[..length];
            let expected: Digest = Sha256::digest(text).into();
            assert_eq!(hash_single_block(text), (length < 56).then_some(expected), "{length}");
        }
    }
}
