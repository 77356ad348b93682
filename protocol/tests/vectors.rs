//! Tests the codec against `vectors/vectors.json`, and the completeness of that file against the
//! protocol.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

mod support;

use keyward_protocol::{
    Adjustment, Answer, BalancesBuf, CostsBuf, Credential, Debit, ErrorCode, ErrorFrame, FrameKind, Hello,
    LimitBalance, LimitKind, LimitState, MAX_COSTS, MAX_KEY, MAX_KEY_ID, MAX_KEY_LIMITS, MAX_METADATA,
    MAX_NAME, MAX_ORIGIN, MAX_OWNER, MAX_SCOPES, ParsedFrame, ProtocolError, Refund, Request, Response,
    ScopeMode, Scopes, Verdict, Verify, Welcome, adjustment_flag, answer_flag, error_flag, parse_frame,
    truncated_frame, verify_flag,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use std::collections::HashSet;
use std::net::Ipv6Addr;
use support::{Fields, Frame, NameOrNumber, Sender, Vector, all_vectors, decode, valid_vectors};

#[test]
fn valid_vectors_encode_to_their_bytes() {
    for (vector, fields) in valid_vectors(&all_vectors()) {
        assert_eq!(const_hex::encode(fields.to_frame().to_bytes()), hex(vector), "{}", vector.name);
    }
}

#[test]
fn valid_vectors_decode_to_their_fields() {
    for (vector, fields) in valid_vectors(&all_vectors()) {
        let decoded = decode(vector.sender, &vector.bytes.0);
        assert_eq!(decoded, Ok((fields.to_frame(), vector.bytes.0.len())), "{}", vector.name);
        if vector.sender == Sender::Client {
            assert_fast_path(&vector.bytes.0);
        }
    }
}

#[test]
fn malformed_vectors_have_their_error() {
    for vector in &all_vectors() {
        let Some(expected) = &vector.error else { continue };
        let error = decode_error(vector);
        assert_eq!(error.code.name(), expected.code, "{}", vector.name);
        assert_eq!(error.detail, expected.detail, "{}", vector.name);
        assert_eq!(error.request_id, expected.request_id, "{}", vector.name);
        let closes = (vector.sender == Sender::Client).then(|| error.code.closes());
        assert_eq!(closes, expected.closes, "{}", vector.name);
    }
}

#[test]
fn protocol_errors_encode_to_error_frames() {
    for vector in all_vectors().iter().filter(|vector| vector.error.is_some()) {
        let error = decode_error(vector);
        let mut bytes = Vec::new();
        error.encode(&mut bytes);
        let message = error.message();
        let expected = Frame::Response(Response::Error(ErrorFrame {
            request_id: error.request_id,
            code: error.code as u8,
            detail: error.detail,
            closing: error.code.closes(),
            message: &message,
        }));
        assert_eq!(decode(Sender::Daemon, &bytes), Ok((expected, bytes.len())), "{}", vector.name);
    }
}

#[test]
fn consecutive_frames_of_a_stream_decode() {
    let vectors = all_vectors();
    for sender in [Sender::Client, Sender::Daemon] {
        let frames = || valid_vectors(&vectors).filter(|(vector, _)| vector.sender == sender);
        let mut stream = Vec::new();
        frames().for_each(|(_, fields)| fields.to_frame().encode(&mut stream));
        let mut rest = stream.as_slice();
        for (vector, fields) in frames() {
            let (frame, size) = decode(sender, rest).unwrap();
            assert_eq!(frame, fields.to_frame(), "{}", vector.name);
            rest = &rest[size..];
        }
        assert!(rest.is_empty());
    }
}

#[test]
fn frame_is_incomplete_until_its_last_byte() {
    for (vector, fields) in valid_vectors(&all_vectors()) {
        let frame = &vector.bytes.0;
        for size in 0..frame.len() {
            let part = &frame[..size];
            assert_eq!(
                parse_frame(part, vector.sender.max_length()),
                ParsedFrame::Incomplete,
                "{}[..{size}]",
                vector.name
            );
            let request_id = if size < 12 { 0 } else { request_id(fields) };
            assert_eq!(
                truncated_frame(part),
                ProtocolError::new(ErrorCode::TruncatedFrame, size as u32, request_id)
            );
        }
    }
}

/// Here `length` agrees with the bytes that are present, so the body ends inside a field.
#[test]
fn body_is_too_short_until_its_last_byte() {
    for (vector, fields) in valid_vectors(&all_vectors()) {
        for size in 12..vector.bytes.0.len() {
            let mut frame = vector.bytes.0[..size].to_vec();
            frame[..4].copy_from_slice(&(size as u32 - 4).to_le_bytes());
            let expected = ProtocolError::new(ErrorCode::BodyTooShort, size as u32 - 12, request_id(fields));
            assert_eq!(decode(vector.sender, &frame), Err(expected), "{}[..{size}]", vector.name);
        }
    }
}

/// The encoding is canonical: encoding a decoded frame yields the same bytes.
#[test]
fn flipped_bit_is_an_error_or_another_canonical_frame() {
    for (vector, _) in valid_vectors(&all_vectors()) {
        let mut frame = vector.bytes.0.clone();
        for bit in 0..frame.len() * 8 {
            frame[bit / 8] ^= 1 << (bit % 8);
            for sender in [Sender::Client, Sender::Daemon] {
                assert_canonical(sender, &frame);
            }
            frame[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

#[test]
fn prefixes_of_malformed_vectors_do_not_panic() {
    for vector in all_vectors().iter().filter(|vector| vector.error.is_some()) {
        for size in 0..=vector.bytes.0.len() {
            let _ = decode(vector.sender, &vector.bytes.0[..size]);
        }
    }
}

/// The vectors contain each field at its limit. One byte more is an error that leaves the buffer
/// unchanged.
#[test]
fn verify_over_its_limits_is_not_encoded() {
    let long = "x".repeat(MAX_KEY + 1);
    let plain = Verify::new(1, Credential::Digest([0; 32]));
    let scopes = Scopes { names: &long[..=MAX_SCOPES], mode: ScopeMode::All };
    for (verify, field, max) in [
        (Verify { credential: Credential::RawKey(long.as_bytes()), ..plain }, "key", MAX_KEY),
        (Verify { scopes: Some(scopes), ..plain }, "scopes", MAX_SCOPES),
        (Verify { origin: Some(&long[..=MAX_ORIGIN]), ..plain }, "origin", MAX_ORIGIN),
        (Verify { environment: Some(&long[..=MAX_NAME]), ..plain }, "environment", MAX_NAME),
    ] {
        let mut out = b"before".to_vec();
        let error = verify.encode(&mut out).unwrap_err();
        assert_eq!((error.field, error.length, error.max), (field, max + 1, max));
        assert_eq!(out, b"before");
    }
}

#[test]
fn adjustment_over_its_limits_is_not_encoded() {
    let long = "x".repeat(MAX_KEY + 1);
    let credential = Credential::RawKey(long.as_bytes());
    let mut out = b"before".to_vec();
    for result in
        [Refund::new(1, 1, credential).encode(&mut out), Debit::new(1, 1, credential).encode(&mut out)]
    {
        let error = result.unwrap_err();
        assert_eq!((error.field, error.length, error.max), ("key", MAX_KEY + 1, MAX_KEY));
        assert_eq!(out, b"before");
    }
}

/// Decoding yields a view of the frame: the same names and amounts, found by name.
#[test]
fn costs_and_balances_are_found_by_name() {
    let costs = costs(&[("tokens", 5), ("größe", u32::MAX)]);
    let verify = Verify { costs: costs.as_costs(), ..Verify::new(1, Credential::Digest([0; 32])) };
    let bytes = Frame::Request(Request::Verify(verify)).to_bytes();
    let Ok((Frame::Request(Request::Verify(decoded)), _)) = decode(Sender::Client, &bytes) else {
        panic!("not a VERIFY");
    };
    let decoded = decoded.costs.unwrap();
    assert_eq!(decoded.iter().collect::<Vec<_>>(), [("tokens", 5), ("größe", u32::MAX)]);
    assert_eq!(["tokens", "größe", "token"].map(|name| decoded.get(name)), [Some(5), Some(u32::MAX), None]);

    let limit = |name, balance| LimitBalance {
        name,
        kind: LimitKind::Window,
        limit: u64::MAX,
        charged: 7,
        balance,
        reset_ms: 9,
    };
    let mut balances = BalancesBuf::new();
    [("a", -1), ("b", i64::MAX)].into_iter().for_each(|(name, balance)| balances.push(&limit(name, balance)));
    let answer = Answer::without_key(1, Verdict::Allowed, 7);
    let answer = Answer { balances: Some(balances.as_balances()), ..answer };
    let bytes = Frame::Response(Response::Answer(answer)).to_bytes();
    let Ok((Frame::Response(Response::Answer(decoded)), _)) = decode(Sender::Daemon, &bytes) else {
        panic!("not an ANSWER");
    };
    let decoded = decoded.balances.unwrap();
    assert_eq!(decoded.iter().collect::<Vec<_>>(), [limit("a", -1), limit("b", i64::MAX)]);
    assert_eq!(["b", "c"].map(|name| decoded.get(name)), [Some(limit("b", i64::MAX)), None]);
}

fn costs(list: &[(&str, u32)]) -> CostsBuf {
    let mut costs = CostsBuf::new();
    list.iter().for_each(|(name, cost)| costs.push(name, *cost).unwrap());
    costs
}

/// A text that is cut within a character cannot be decoded.
#[test]
fn texts_over_their_limits_are_truncated_at_a_character() {
    let two_bytes_each = "é".repeat(MAX_METADATA);
    // Even limits are within a character of this text, odd ones within one of the other.
    let shifted = format!("a{two_bytes_each}");
    let up_to = |max: usize| if max.is_multiple_of(2) { &shifted[..max - 1] } else { &shifted[..max] };
    let limit = LimitState { name: &shifted, ..LimitState::default() };
    let blank = Answer::without_key(1, Verdict::Allowed, 7);
    let answer = Answer {
        limit,
        key_id: &shifted,
        owner: &shifted,
        environment: &shifted,
        plan: &shifted,
        metadata: Some(&shifted),
        shadow_limit: Some(&shifted),
        ..blank
    };
    let truncated = Answer {
        limit: LimitState { name: up_to(MAX_NAME), ..limit },
        key_id: up_to(MAX_KEY_ID),
        owner: up_to(MAX_OWNER),
        environment: up_to(MAX_NAME),
        plan: up_to(MAX_NAME),
        metadata: Some(up_to(MAX_METADATA)),
        shadow_limit: Some(up_to(MAX_NAME)),
        ..blank
    };
    let error = ErrorFrame { request_id: 1, code: 1, detail: 0, closing: false, message: &two_bytes_each };
    let shorter = ErrorFrame { message: &two_bytes_each[..254], ..error };
    for (long, expected) in [
        (Response::Answer(answer), Response::Answer(truncated)),
        (Response::Error(error), Response::Error(shorter)),
    ] {
        let bytes = Frame::Response(long).to_bytes();
        assert_eq!(decode(Sender::Daemon, &bytes), Ok((Frame::Response(expected), bytes.len())));
    }
}

mod coverage {
    use super::*;

    #[test]
    fn names_are_unique_and_groups_are_contiguous() {
        let vectors = all_vectors();
        let names: HashSet<_> = vectors.iter().map(|vector| &vector.name).collect();
        assert_eq!(names.len(), vectors.len());
        let mut groups: Vec<_> = vectors.iter().map(|vector| &vector.group).collect();
        groups.dedup();
        let distinct: HashSet<_> = groups.iter().collect();
        assert_eq!(distinct.len(), groups.len());
    }

    #[test]
    fn every_vector_has_either_fields_or_an_error() {
        for vector in all_vectors() {
            assert!(vector.fields.is_some() != vector.error.is_some(), "{}", vector.name);
        }
    }

    #[test]
    fn the_readme_lists_every_group_with_its_size() {
        let readme = include_str!("../vectors/README.md");
        let listed: HashSet<(&str, usize)> = readme
            .lines()
            .filter_map(|line| {
                let mut cells = line.split('|').skip(1).map(|cell| cell.trim().trim_matches('`'));
                Some((cells.next()?, cells.next()?.parse().ok()?))
            })
            .collect();
        let vectors = all_vectors();
        let size = |group| vectors.iter().filter(|vector| vector.group == group).count();
        let groups = vectors.iter().map(|vector| vector.group.as_str());
        assert_eq!(listed, groups.map(|group| (group, size(group))).collect());
    }

    #[test]
    fn every_kind_has_a_valid_vector() {
        for kind in [
            FrameKind::Hello,
            FrameKind::Verify,
            FrameKind::Refund,
            FrameKind::Debit,
            FrameKind::Welcome,
            FrameKind::Answer,
            FrameKind::Error,
        ] {
            assert!(valid_vectors(&all_vectors()).any(|(_, fields)| kind_of(fields) == kind), "{kind:?}");
        }
    }

    /// The second match is exhaustive, so that a new kind does not compile until the tests include
    /// it.
    fn kind_of(fields: &Fields) -> FrameKind {
        let kind = match fields {
            Fields::Hello { .. } => FrameKind::Hello,
            Fields::Verify { .. } => FrameKind::Verify,
            Fields::Refund(_) => FrameKind::Refund,
            Fields::Debit(_) => FrameKind::Debit,
            Fields::Welcome { .. } => FrameKind::Welcome,
            Fields::Answer { .. } => FrameKind::Answer,
            Fields::Error { .. } => FrameKind::Error,
        };
        match kind {
            FrameKind::Hello
            | FrameKind::Verify
            | FrameKind::Refund
            | FrameKind::Debit
            | FrameKind::Welcome
            | FrameKind::Answer
            | FrameKind::Error => kind,
        }
    }

    #[test]
    fn every_verdict_and_an_unknown_one_have_a_vector() {
        let vectors = all_vectors();
        let covered: HashSet<_> = valid_vectors(&vectors)
            .filter_map(|(_, fields)| match fields.to_frame() {
                Frame::Response(Response::Answer(answer)) => Some(answer.verdict),
                _ => None,
            })
            .collect();
        for verdict in Verdict::all() {
            assert!(covered.contains(&verdict), "{}", verdict.name());
        }
        assert!(covered.iter().any(|verdict| matches!(verdict, Verdict::Other(_))));
    }

    #[test]
    fn every_error_code_has_an_error_frame() {
        let vectors = all_vectors();
        for code in ErrorCode::ALL {
            let is = |fields: &Fields| {
                matches!(fields, Fields::Error { code: NameOrNumber::Name(name), .. } if name == code.name())
                    && fields.has_flag("CLOSING") == code.closes()
            };
            assert!(valid_vectors(&vectors).any(|(_, fields)| is(fields)), "{}", code.name());
        }
    }

    #[test]
    fn every_error_code_caused_by_bytes_has_a_malformed_vector() {
        let vectors = all_vectors();
        for code in ErrorCode::ALL {
            let needs_a_daemon = matches!(
                code,
                ErrorCode::CredentialRefused
                    | ErrorCode::PeerRefused
                    | ErrorCode::TooManyConnections
                    | ErrorCode::IdleTimeout
                    | ErrorCode::ShuttingDown
                    | ErrorCode::QuotaExceeded
                    | ErrorCode::RequestRefused
            );
            let covered = vectors.iter().any(|vector| {
                vector.sender == Sender::Client
                    && vector.error.as_ref().is_some_and(|error| error.code == code.name())
            });
            assert_eq!(covered, !needs_a_daemon, "{}", code.name());
        }
    }

    #[test]
    fn verify_vectors_have_every_flag_alone_and_all_together() {
        let covered = flags_of(FrameKind::Verify);
        for flag in (0..16).map(|bit| 1 << bit).filter(|flag| verify_flag::ALL & flag != 0) {
            let alone = if flag == verify_flag::ANY_SCOPE { flag | verify_flag::SCOPES } else { flag };
            assert!(covered.contains(&alone), "{flag:#06x}");
        }
        assert!(covered.contains(&0));
        assert!(covered.contains(&verify_flag::ALL));
    }

    #[test]
    fn refund_debit_and_answer_vectors_have_every_combination_of_flags() {
        for (kind, all) in [
            (FrameKind::Refund, adjustment_flag::ALL),
            (FrameKind::Debit, adjustment_flag::ALL),
            (FrameKind::Answer, answer_flag::ALL),
        ] {
            let combinations = (0..=all).filter(|flags| flags & !all == 0).collect();
            assert_eq!(flags_of(kind), combinations, "{kind:?}");
        }
    }

    /// The combinations of flags that the valid vectors of this kind have.
    fn flags_of(kind: FrameKind) -> HashSet<u16> {
        valid_vectors(&all_vectors())
            .filter(|(_, fields)| kind_of(fields) == kind)
            .map(|(vector, _)| flags(vector))
            .collect()
    }

    #[test]
    fn every_undefined_flag_of_a_request_has_a_malformed_vector() {
        let vectors = all_vectors();
        for (kind, known) in [
            (FrameKind::Verify, verify_flag::ALL),
            (FrameKind::Refund, adjustment_flag::ALL),
            (FrameKind::Debit, adjustment_flag::ALL),
        ] {
            let covered = vectors
                .iter()
                .filter(|vector| vector.error.as_ref().is_some_and(|error| error.code == "UNKNOWN_FLAG"))
                .filter(|vector| vector.sender == Sender::Client && vector.bytes.0[5] == kind as u8)
                .map(flags)
                .filter(|flags| flags.is_power_of_two())
                .fold(0, |all, flags| all | flags);
            assert_eq!(covered, !known, "{kind:?}");
        }
    }

    #[test]
    fn flag_names_match_the_bits() {
        for (vector, fields) in valid_vectors(&all_vectors()) {
            let value = |name: &String| match (fields, name.as_str()) {
                (Fields::Verify { .. }, "RAW_KEY") => verify_flag::RAW_KEY,
                (Fields::Verify { .. }, "SCOPES") => verify_flag::SCOPES,
                (Fields::Verify { .. }, "ANY_SCOPE") => verify_flag::ANY_SCOPE,
                (Fields::Verify { .. }, "IP") => verify_flag::IP,
                (Fields::Verify { .. }, "ORIGIN") => verify_flag::ORIGIN,
                (Fields::Verify { .. }, "ENVIRONMENT") => verify_flag::ENVIRONMENT,
                (Fields::Verify { .. }, "METADATA") => verify_flag::METADATA,
                (Fields::Verify { .. }, "COSTS") => verify_flag::COSTS,
                (Fields::Verify { .. }, "BALANCES") => verify_flag::BALANCES,
                (Fields::Refund(_) | Fields::Debit(_), "RAW_KEY") => adjustment_flag::RAW_KEY,
                (Fields::Refund(_) | Fields::Debit(_), "COSTS") => adjustment_flag::COSTS,
                (Fields::Refund(_) | Fields::Debit(_), "BALANCES") => adjustment_flag::BALANCES,
                (Fields::Answer { .. }, "BALANCES") => answer_flag::BALANCES,
                (Fields::Answer { .. }, "SHADOW") => answer_flag::SHADOW,
                (Fields::Answer { .. }, "METADATA") => answer_flag::METADATA,
                (Fields::Error { .. }, "CLOSING") => error_flag::CLOSING,
                _ => panic!("{}: {name}", vector.name),
            };
            let named = fields.flags().iter().map(value).fold(0, |all, flag| all | flag);
            assert_eq!(named, flags(vector), "{}", vector.name);
        }
    }

    fn flags(vector: &Vector) -> u16 {
        u16::from_le_bytes([vector.bytes.0[6], vector.bytes.0[7]])
    }
}

proptest! {
    #[test]
    fn random_bytes_do_not_panic(bytes in vec(any::<u8>(), 0..256)) {
        assert_canonical(Sender::Client, &bytes);
        assert_canonical(Sender::Daemon, &bytes);
    }

    /// Random bytes hardly ever begin with a valid header; these always do.
    #[test]
    fn random_bodies_do_not_panic(
        kind in prop_oneof![Just(0x01_u8), Just(0x02), Just(0x03), Just(0x04), Just(0x81), Just(0x82), Just(0xff)],
        flags in 0..0x200_u16,
        request_id in any::<u32>(),
        body in vec(prop_oneof![0..4_u8, any::<u8>()], 0..256),
    ) {
        let mut frame = (8 + body.len() as u32).to_le_bytes().to_vec();
        frame.extend([1, kind]);
        frame.extend(flags.to_le_bytes());
        frame.extend(request_id.to_le_bytes());
        frame.extend(&body);
        assert_canonical(Sender::Client, &frame);
        assert_canonical(Sender::Daemon, &frame);
    }

    #[test]
    fn hello_round_trips(request_id in any::<u32>(), min_version in 1..=255_u8, more in any::<u8>()) {
        let max_version = min_version.saturating_add(more);
        assert_round_trip(Frame::Request(Request::Hello(Hello { request_id, min_version, max_version })));
    }

    #[test]
    fn verify_round_trips(
        request_id in any::<u32>(),
        cost in any::<u32>(),
        digest in any::<[u8; 32]>(),
        key in option::of(vec(any::<u8>(), 0..=MAX_KEY)),
        scopes in option::of("[^ ]{1,9}( [^ ]{1,9}){0,20}"),
        any_scope in any::<bool>(),
        ip in option::of(any::<u128>()),
        origin in option::of(text(MAX_ORIGIN)),
        environment in option::of(text(MAX_NAME)),
        costs in any_costs(),
        [want_metadata, want_balances] in any::<[bool; 2]>(),
    ) {
        let mode = if any_scope { ScopeMode::Any } else { ScopeMode::All };
        assert_round_trip(Frame::Request(Request::Verify(Verify {
            request_id,
            cost,
            credential: key.as_deref().map_or(Credential::Digest(digest), Credential::RawKey),
            scopes: scopes.as_deref().map(|names| Scopes { names, mode }),
            ip: ip.map(Ipv6Addr::from),
            origin: origin.as_deref(),
            environment: environment.as_deref(),
            costs: costs.as_costs(),
            want_metadata,
            want_balances,
        })));
    }

    #[test]
    fn refund_and_debit_round_trip(
        request_id in any::<u32>(),
        cost in any::<u32>(),
        digest in any::<[u8; 32]>(),
        key in option::of(vec(any::<u8>(), 0..=MAX_KEY)),
        costs in any_costs(),
        want_balances in any::<bool>(),
    ) {
        let costs = costs.as_costs();
        let cost = if costs.is_none() { cost.max(1) } else { cost };
        let credential = key.as_deref().map_or(Credential::Digest(digest), Credential::RawKey);
        let refund = Adjustment { request_id, cost, credential, costs, want_balances };
        let debit = Adjustment { request_id, cost, credential, costs, want_balances };
        assert_round_trip(Frame::Request(Request::Refund(refund)));
        assert_round_trip(Frame::Request(Request::Debit(debit)));
    }

    #[test]
    fn welcome_round_trips(
        request_id in any::<u32>(),
        [version, min_version, max_version, credentials] in any::<[u8; 4]>(),
        [max_length, idle_timeout_ms] in any::<[u32; 2]>(),
        generation in any::<u64>(),
        server in text(255),
    ) {
        assert_round_trip(Frame::Response(Response::Welcome(Welcome {
            request_id,
            version,
            min_version,
            max_version,
            credentials,
            max_length,
            idle_timeout_ms,
            generation,
            server: &server,
        })));
    }

    #[test]
    fn answer_round_trips(
        request_id in any::<u32>(),
        verdict in any::<u8>().prop_map(Verdict::from_value),
        generation in any::<u64>(),
        [limit, remaining, retry_after_ms, reset_ms] in any::<[u32; 4]>(),
        key_id in text(MAX_KEY_ID),
        owner in text(MAX_OWNER),
        [environment, plan, name] in [text(MAX_NAME), text(MAX_NAME), text(MAX_NAME)],
        metadata in option::of(text(1000)),
        shadow_limit in option::of(text(MAX_NAME)),
        balances in option::of(any_balances()),
    ) {
        assert_round_trip(Frame::Response(Response::Answer(Answer {
            request_id,
            verdict,
            generation,
            limit: LimitState { name: &name, limit, remaining, retry_after_ms, reset_ms },
            key_id: &key_id,
            owner: &owner,
            environment: &environment,
            plan: &plan,
            metadata: metadata.as_deref(),
            shadow_limit: shadow_limit.as_deref(),
            balances: balances.as_ref().map(BalancesBuf::as_balances),
        })));
    }

    #[test]
    fn error_round_trips(
        request_id in any::<u32>(),
        code in any::<u8>(),
        detail in any::<u32>(),
        closing in any::<bool>(),
        message in text(255),
    ) {
        let error = ErrorFrame { request_id, code, detail, closing, message: &message };
        assert_round_trip(Frame::Response(Response::Error(error)));
    }
}

/// No costs, or some with distinct names.
fn any_costs() -> impl Strategy<Value = CostsBuf> {
    let cost = (text(MAX_NAME), any::<u32>());
    vec(cost, 0..=MAX_COSTS).prop_map(|list| {
        let mut costs = CostsBuf::new();
        // A name that is empty or has occurred before is left out.
        list.iter().for_each(|(name, cost)| _ = costs.push(name, *cost));
        costs
    })
}

fn any_balances() -> impl Strategy<Value = BalancesBuf> {
    let limit = (text(MAX_NAME), any::<u8>(), any::<u64>(), any::<u32>(), any::<i64>(), any::<u32>());
    vec(limit, 0..=MAX_KEY_LIMITS).prop_map(|list| {
        let mut balances = BalancesBuf::new();
        for (name, kind, limit, charged, balance, reset_ms) in &list {
            let (limit, charged, balance, reset_ms) = (*limit, *charged, *balance, *reset_ms);
            let kind = LimitKind::from_value(*kind);
            balances.push(&LimitBalance { name, kind, limit, charged, balance, reset_ms });
        }
        balances
    })
}

/// A text of at most `max` bytes.
fn text(max: usize) -> impl Strategy<Value = String> {
    vec(any::<char>(), 0..=max).prop_map(move |chars| {
        let mut size = 0;
        let fits = |c: &char| {
            size += c.len_utf8();
            size <= max
        };
        chars.into_iter().take_while(fits).collect()
    })
}

/// The codec's error for a malformed vector.
fn decode_error(vector: &Vector) -> ProtocolError {
    match decode(vector.sender, &vector.bytes.0) {
        Err(error) => error,
        Ok((Frame::Request(Request::Hello(hello)), _)) => hello.version().unwrap_err(),
        Ok((frame, _)) => panic!("{} is {frame:?}", vector.name),
    }
}

fn assert_canonical(sender: Sender, bytes: &[u8]) {
    if sender == Sender::Client {
        assert_fast_path(bytes);
    }
    if let Ok((frame, size)) = decode(sender, bytes) {
        assert_eq!(frame.to_bytes(), bytes[..size], "{frame:?}");
    }
}

/// The fast path accepts exactly the requests of its form, and decodes them as the general path
/// does.
fn assert_fast_path(bytes: &[u8]) {
    let decoded = decode(Sender::Client, bytes);
    let expected = match decoded {
        Ok((Frame::Request(Request::Verify(verify)), _)) => {
            let plain = Verify { cost: verify.cost, ..Verify::new(verify.request_id, verify.credential) };
            (verify == plain && matches!(verify.credential, Credential::Digest(_))).then_some(verify)
        }
        _ => None,
    };
    assert_eq!(Verify::parse_fast_path(bytes), expected);
}

fn assert_round_trip(frame: Frame<'_>) {
    let bytes = frame.to_bytes();
    let sender = if matches!(frame, Frame::Request(_)) { Sender::Client } else { Sender::Daemon };
    assert_eq!(decode(sender, &bytes), Ok((frame, bytes.len())));
}

fn request_id(fields: &Fields) -> u32 {
    match fields.to_frame() {
        Frame::Request(Request::Hello(hello)) => hello.request_id,
        Frame::Request(Request::Verify(verify)) => verify.request_id,
        Frame::Request(Request::Refund(refund)) => refund.request_id,
        Frame::Request(Request::Debit(debit)) => debit.request_id,
        Frame::Response(response) => response.request_id(),
    }
}

fn hex(vector: &Vector) -> String {
    const_hex::encode(&vector.bytes.0)
}
