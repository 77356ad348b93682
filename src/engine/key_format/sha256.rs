//! SHA-256 of what fits into one block with its padding, which a key does: the crate's function for blocks, and FIPS 180-4's padding
//! around it.
//!
//! The crate's own hasher takes texts of any length piece by piece, and keeps and wipes what it would need for the next piece: that is
//! a third of its time for a key.

use std::slice;

use sha2::block_api::compress256;
use zeroize::Zeroize;

use crate::record::Digest;

const BLOCK: usize = 64;

/// FIPS 180-4, 5.3.3.
const INITIAL: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

/// `None`: it takes more than a block.
#[inline]
pub(super) fn of_one_block(text: &[u8]) -> Option<Digest> {
    // Of words, so that it is wiped by the word.
    let mut words = [0_u64; BLOCK / 8];
    let block: &mut [u8; BLOCK] = zerocopy::transmute_mut!(&mut words);
    // FIPS 180-4, 5.1.1: a bit that is set, zeros, and the length in bits.
    let (padded, length) = block.split_last_chunk_mut()?;
    let (start, rest) = padded.split_at_mut_checked(text.len())?;
    *rest.first_mut()? = 0x80;
    start.copy_from_slice(text);
    *length = (text.len() as u64 * 8).to_be_bytes();

    let mut state = INITIAL;
    compress256(&mut state, slice::from_ref(&*block));
    // It held the key.
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
    fn it_is_what_the_hasher_says() {
        let text: Vec<u8> = (1..=BLOCK as u8).collect();
        for length in 0..=text.len() {
            let text = &text[..length];
            let expected: Digest = Sha256::digest(text).into();
            assert_eq!(of_one_block(text), (length < 56).then_some(expected), "{length}");
        }
    }
}
