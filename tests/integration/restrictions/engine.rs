//! The engine without the daemon: every combination of the fields of a request, for each
//! restriction and each pair of restrictions.

use keyward_engine::global_policy::GlobalPolicy;
use keyward_engine::limiter::{Limiter, SlotAllocator};
use keyward_engine::now::Now;
use keyward_engine::pepper::{Pepper, Peppers};
use keyward_engine::record::{Digest, KeyRecord, Limit, Per, Plans, parse_rule};
use keyward_engine::snapshot::{Builder, Snapshot, SnapshotMeta, View};
use keyward_engine::verify::{Decision, Verifier};
use keyward_protocol::{Credential, Refund, ScopeMode, Scopes, Verify};
use keyward_source::{ColumnMapping, Diagnostics, Format, read};

use super::model::{
    Model, Outcome, PERIOD_DAYS, PLANS, RequestCase, Row, all_cases, export, rows_with_one_restriction,
    rows_with_two_restrictions, shuffle,
};

const NOW: Now = Now { nanoseconds: 1 << 40, unix: 1_700_000_000, millisecond: 0 };

/// How keys are hashed in the export and sent in requests.
#[derive(Clone, Copy, Debug, PartialEq)]
enum KeyForm {
    Digest,
    RawKey,
    CurrentPepper,
    PreviousPepper,
}

impl KeyForm {
    fn global_policy(self) -> GlobalPolicy {
        let pepper = |letter: &[u8]| Pepper::new(&letter.repeat(32)).expect("long enough");
        let peppers = match self {
            Self::Digest | Self::RawKey => None,
            Self::CurrentPepper => Some(Peppers { current: pepper(b"c"), previous: None }),
            Self::PreviousPepper => Some(Peppers { current: pepper(b"c"), previous: Some(pepper(b"p")) }),
        };
        GlobalPolicy { peppers, ..GlobalPolicy::default() }
    }

    fn hash(self, global_policy: &GlobalPolicy, key: &str) -> Digest {
        match (&global_policy.peppers, global_policy.previous_pepper()) {
            (_, Some(previous)) => previous.hash(key.as_bytes()),
            (Some(peppers), None) => peppers.current.hash(key.as_bytes()),
            (None, None) => keyward_engine::key_format::hash(key.as_bytes()),
        }
    }

    fn credential(self, global_policy: &GlobalPolicy, key: &'static str) -> Credential<'static> {
        match self {
            Self::Digest => Credential::Digest(self.hash(global_policy, key)),
            _ => Credential::RawKey(key.as_bytes()),
        }
    }
}

fn plans() -> Plans {
    let plans = PLANS.iter().map(|(plan, limits)| {
        let limits = limits.iter().map(|(name, burst, shared, shadow)| {
            let rule = parse_rule(name, &format!("{burst}/{PERIOD_DAYS}d")).expect("a limit");
            let per = if *shared { Per::Owner } else { Per::Key };
            Limit { per, shadow: *shadow, ..Limit::new(*name, rule) }
        });
        ((*plan).into(), limits.collect())
    });
    Plans::new(plans, None).expect("plans")
}

fn snapshot(rows: &[Row], limiter: &Limiter, hash: impl Fn(&str) -> Digest) -> Snapshot {
    let export = export(rows, NOW.unix, 1, |key| const_hex::encode(hash(key)));
    let mut builder = Builder::new(7, rows.len()).with_plans(plans().into());
    let mut diagnostics = Diagnostics::new("keys.csv");
    let mut sink = |line: u64, record: &KeyRecord<'_>| builder.add(line, record).map_err(Into::into);
    read(export.to_csv().as_bytes(), Format::Csv, &ColumnMapping::default(), &mut sink, &mut diagnostics)
        .expect("reads");
    assert_eq!(diagnostics.to_string(), "");
    let mut allocator = SlotAllocator::new();
    let mut allocation = allocator.begin(limiter);
    let snapshot =
        builder.finish().into_snapshot(&mut allocation, None, SnapshotMeta::default()).expect("room");
    let _ = allocation.commit();
    for row in rows.iter().filter(|row| row.revoked_by_operator) {
        snapshot.find_by_id(&row.key).expect("listed").set_revoked(true);
    }
    snapshot
}

fn outcome_of(decision: &Decision<'_>) -> Outcome {
    let answer = decision.answer();
    let limit = answer.limit;
    Outcome {
        verdict: answer.verdict.name().into(),
        key_id: answer.key_id.into(),
        limit: (!limit.name.is_empty()).then(|| (limit.name.into(), limit.remaining)),
        shadow: answer.shadow_limit.map(str::to_owned),
        metadata: answer.metadata.map(str::to_owned),
    }
}

fn request(case: &RequestCase, names: &'static str, credential: Credential<'static>) -> Verify<'static> {
    let request = Verify {
        cost: case.cost,
        environment: case.environment,
        scopes: case
            .scopes
            .map(|(_, any)| Scopes { names, mode: if any { ScopeMode::Any } else { ScopeMode::All } }),
        origin: case.origin,
        want_metadata: case.metadata,
        ..Verify::new(1, credential)
    };
    match case.ip {
        Some(ip) => request.with_ip(ip.parse().expect("an address")),
        None => request,
    }
}

/// Verifies every row with every case, `batch_size` requests at a time, and sends refunds after
/// each batch.
fn verify_all(rows: Vec<Row>, key_form: KeyForm, batch_size: usize) {
    let limiter = Limiter::new();
    let global_policy = key_form.global_policy();
    let snapshot = snapshot(&rows, &limiter, |key| key_form.hash(&global_policy, key));
    let verifier = Verifier {
        view: Some(View::of(&snapshot)),
        limiter: &limiter,
        global_policy: &global_policy,
        now: NOW,
    };
    // Requests borrow their texts until the end of the test.
    let keys: Vec<&'static str> = rows.iter().map(|row| &*row.key.clone().leak()).collect();
    let cases: Vec<(RequestCase, &'static str)> = all_cases()
        .into_iter()
        .map(|case| (case, &*case.scopes.map_or(String::new(), |(names, _)| names.join(" ")).leak()))
        .collect();
    let credentials: Vec<_> = keys.iter().map(|key| key_form.credential(&global_policy, key)).collect();
    let everything = cases.iter().flat_map(|case| (0..rows.len()).map(move |row| (row, case)));
    let everything = shuffle(everything.collect::<Vec<_>>());
    let mut model = Model::new(rows);
    for group in everything.chunks(batch_size) {
        let requests: Vec<_> =
            group.iter().map(|(row, (case, names))| request(case, names, credentials[*row])).collect();
        let mut outcomes = Vec::with_capacity(group.len());
        assert_eq!(verifier.verify(&requests, |decision| outcomes.push(outcome_of(decision))), group.len());
        for ((row, (case, _)), outcome) in group.iter().zip(&outcomes) {
            model
                .verify(*row, case)
                .assert(outcome, || format!("{case:?} of {:?}, {key_form:?}", model.rows[*row]));
        }
        for (row, _) in group.iter().step_by(5) {
            let refund = Refund::new(1, 2, credentials[*row]);
            let mut outcome = None;
            let answered = verifier.refund(&refund, |decision| outcome = Some(outcome_of(decision)));
            assert_eq!(answered, Ok(()), "no newer snapshot");
            let outcome = outcome.expect("an answer");
            model
                .refund(*row, 2)
                .assert(&outcome, || format!("refund of {:?}, {key_form:?}", model.rows[*row]));
        }
    }
}

#[test]
fn each_restriction_applies_to_every_request() {
    for key_form in [KeyForm::Digest, KeyForm::RawKey, KeyForm::CurrentPepper, KeyForm::PreviousPepper] {
        for batch_size in [1, 150] {
            verify_all(rows_with_one_restriction(), key_form, batch_size);
        }
    }
}

#[test]
fn each_pair_of_restrictions_applies_to_every_request() {
    verify_all(rows_with_two_restrictions(), KeyForm::Digest, 150);
}
