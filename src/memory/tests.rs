//! Blocks, texts and room, as far as they can be seen from outside.

use super::*;

#[test]
fn a_large_block_begins_at_a_huge_page_and_grows() {
    let mut numbers: HugeVec<u64> = HugeVec::new_in(Huge);
    for number in 0..600_000_u64 {
        numbers.push(number);
    }
    assert!(cfg!(miri) || numbers.as_ptr().addr().is_multiple_of(HUGE_PAGE));
    numbers.truncate(1_000);
    numbers.shrink_to_fit();
    assert!(numbers.iter().copied().eq(0..1_000));
}

#[test]
fn a_text_grows_and_stays_one() {
    let mut text = HugeText::with_capacity(0);
    for _ in 0..300_000 {
        text.push_str("äöü-日本");
    }
    text.trim();
    assert_eq!(text.as_str(), "äöü-日本".repeat(300_000));
}

#[test]
fn a_text_is_written_in_parts_and_is_one_at_any_time() {
    let mut space = TextSpace::new(9);
    let mut all = space.place();
    let mut first = all.take(4).expect("room");
    assert!(all.take(6).is_none());
    assert_eq!((all.write("日"), first.write("äö"), first.write("a")), (Some(()), Some(()), None));
    assert!(first.is_full() && !all.is_full());
    assert!(space.place().is_full(), "what was written is not handed out again");
    assert_eq!(space.into_text().as_str(), "äö日\0\0");
}

#[test]
fn zeros_are_there_however_many() {
    for length in [0, 5, HUGE_PAGE / 8, HUGE_PAGE / 8 + 1, HUGE_PAGE] {
        let mut numbers: HugeVec<u64> = zeroed(length);
        assert!(numbers.len() == length && numbers.iter().all(|number| *number == 0));
        numbers.push(7);
        numbers.shrink_to_fit();
        assert_eq!((numbers.len(), numbers.last()), (length + 1, Some(&7)));
    }
}

#[test]
fn a_populated_block_is_an_ordinary_one() {
    let mut bytes: HugeVec<u8> = populated(|| HugeVec::with_capacity_in(POPULATED + 5, Huge));
    assert!(!POPULATE.get());
    bytes.resize(POPULATED + 5, 7);
    assert!(bytes.iter().all(|byte| *byte == 7));
}

#[test]
#[cfg_attr(miri, ignore = "it knows no pages")]
fn room_is_populated_as_it_is_filled() {
    let mut numbers: HugeVec<u64> = HugeVec::new_in(Huge);
    make_room(&mut numbers, STEP / 8 + 3);
    numbers.push(7);
    assert_eq!(populate_some(&mut numbers), STEP / 8 + 1);
    numbers.resize(STEP / 8 + 1, 8);
    assert_eq!(populate_some(&mut numbers), STEP / 8 + 3);
    numbers.resize(STEP / 8 + 3, 9);
    assert_eq!(populate_some(&mut numbers), numbers.capacity());
    assert_eq!((numbers.first(), numbers.last()), (Some(&7), Some(&9)));
}

#[test]
fn room_that_nobody_has_is_none() {
    let mut bytes: HugeVec<u8> = HugeVec::new_in(Huge);
    for too_many in [1 << 60, usize::MAX] {
        make_room(&mut bytes, too_many);
        assert_eq!(bytes.capacity(), 0);
    }
    bytes.push(7);
    assert_eq!((populate_some(&mut bytes), bytes.as_slice()), (bytes.capacity(), &[7][..]));
}

#[test]
fn a_small_block_is_an_ordinary_one() {
    assert_eq!(mapped(Layout::new::<[u64; 8]>()), None);
    let mut few: HugeVec<u64> = HugeVec::with_capacity_in(8, Huge);
    few.extend([1, 2, 3]);
    assert_eq!(*few, [1, 2, 3]);
}

#[test]
#[cfg_attr(miri, ignore = "it knows no mappings")]
fn room_is_told_before_it_is_taken() {
    assert!(has_room(0) && has_room(HUGE_PAGE) && has_room(HUGE_PAGE + 1));
    assert!(!has_room(1 << 60) && !has_room(usize::MAX));
}

#[test]
#[cfg_attr(miri, ignore = "it knows no mappings")]
fn reserve_is_given_up_once_and_set_aside_again() {
    let reserve = Reserve::new();
    assert!(!reserve.is_there() && reserve.set_aside() && reserve.is_there());
    assert!(reserve.set_aside(), "it is there already");
    reserve.give_up();
    assert!(!reserve.is_there());
    reserve.give_up();
    assert!(reserve.set_aside() && reserve.is_there());
    reserve.give_up();
}

#[test]
fn trimmed_vector_keeps_what_is_in_it() {
    let mut numbers: HugeVec<u64> = HugeVec::with_capacity_in(1_000, Huge);
    numbers.extend(0..100);
    trim(&mut numbers);
    assert!(numbers.capacity() < 1_000 && numbers.iter().copied().eq(0..100));
}
