//! Vectors in huge pages.

use std::alloc::Layout;

use super::huge_pages::mapped_length;
use super::vector::PREFAULT_STEP;
use super::*;

#[test]
fn large_block_begins_at_a_huge_page_and_grows() {
    let mut numbers: HugeVec<u64> = HugeVec::new_in(HugePages);
    for number in 0..600_000_u64 {
        numbers.push(number);
    }
    assert!(cfg!(miri) || numbers.as_ptr().addr().is_multiple_of(HUGE_PAGE));
    numbers.truncate(1_000);
    numbers.shrink_to_fit();
    assert!(numbers.iter().copied().eq(0..1_000));
}

#[test]
fn small_block_comes_from_the_global_allocator() {
    assert_eq!(mapped_length(Layout::new::<[u64; 8]>()), None);
    let mut few: HugeVec<u64> = HugeVec::with_capacity_in(8, HugePages);
    few.extend([1, 2, 3]);
    assert_eq!(*few, [1, 2, 3]);
}

#[test]
fn zeroed_vector_of_any_length_is_zero_and_grows() {
    for length in [0, 5, HUGE_PAGE / 8, HUGE_PAGE / 8 + 1, HUGE_PAGE] {
        let mut numbers: HugeVec<u64> = zeroed(length);
        assert!(numbers.len() == length && numbers.iter().all(|number| *number == 0));
        numbers.push(7);
        numbers.shrink_to_fit();
        assert_eq!((numbers.len(), numbers.last()), (length + 1, Some(&7)));
    }
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no pages")]
fn reserved_capacity_is_prefaulted_step_by_step() {
    let mut numbers: HugeVec<u64> = HugeVec::new_in(HugePages);
    reserve_if_possible(&mut numbers, PREFAULT_STEP / 8 + 3);
    numbers.push(7);
    assert_eq!(prefault_ahead(&mut numbers), PREFAULT_STEP / 8 + 1);
    numbers.resize(PREFAULT_STEP / 8 + 1, 8);
    assert_eq!(prefault_ahead(&mut numbers), PREFAULT_STEP / 8 + 3);
    numbers.resize(PREFAULT_STEP / 8 + 3, 9);
    assert_eq!(prefault_ahead(&mut numbers), numbers.capacity());
    assert_eq!((numbers.first(), numbers.last()), (Some(&7), Some(&9)));
}

#[test]
fn impossible_reservation_is_ignored() {
    let mut bytes: HugeVec<u8> = HugeVec::new_in(HugePages);
    for too_many in [1 << 60, usize::MAX] {
        reserve_if_possible(&mut bytes, too_many);
        assert_eq!(bytes.capacity(), 0);
    }
    bytes.push(7);
    assert_eq!((prefault_ahead(&mut bytes), bytes.as_slice()), (bytes.capacity(), &[7][..]));
}

#[test]
fn trimmed_vector_keeps_its_values() {
    let mut numbers: HugeVec<u64> = HugeVec::with_capacity_in(1_000, HugePages);
    numbers.extend(0..100);
    trim(&mut numbers);
    assert!(numbers.capacity() < 1_000 && numbers.iter().copied().eq(0..100));
}
