//! The deciding half by itself: every combination of the fields of a request, for each restriction
//! and each two of them.

use keyward_engine::global_policy::GlobalPolicy;
use keyward_engine::limiter::{Limiter, SlotAllocator};
use keyward_engine::now::Now;
use keyward_engine::pepper::{Pepper, Peppers};
use keyward_engine::record::{Digest, KeyRecord, Limit, Per, Plans, parse_rate};
use keyward_engine::snapshot::{Builder, Snapshot, SnapshotMeta};
use keyward_engine::verify::{Decision, Verifier};
use keyward_protocol::{Credential, Refund, ScopeMode, Scopes, Verify};
use keyward_source::{ColumnMapping, Diagnostics, Format, read};

use super::model::{Ask, Model, PERIOD_DAYS, PLANS, Row, Seen, all_asks, export, pairs, scatter, singles};

const NOW: Now = Now { ticks: 1 << 40, unix: 1_700_000_000 };

/// How keys are listed and sent.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    Digest,
    RawKey,
    CurrentPepper,
    PreviousPepper,
}

impl Form {
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
            let rate = parse_rate(&format!("{burst}/{PERIOD_DAYS}d")).expect("a rate");
            let per = if *shared { Per::Owner } else { Per::Key };
            Limit { per, shadow: *shadow, ..Limit::new(*name, rate) }
        });
        ((*plan).into(), limits.collect())
    });
    Plans::new(plans, None).expect("plans")
}

fn snapshot(rows: &[Row], limiter: &Limiter, hash: impl Fn(&str) -> Digest) -> Snapshot {
    let text = export(rows, NOW.unix, 1, |key| const_hex::encode(hash(key)));
    let mut builder = Builder::new(7, rows.len()).with_plans(plans().into());
    let mut diagnostics = Diagnostics::new("keys.csv");
    let mut sink = |line: u64, record: &KeyRecord<'_>| builder.add(line, record).map_err(Into::into);
    read(text.as_bytes(), Format::Csv, &ColumnMapping::default(), &mut sink, &mut diagnostics)
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

fn seen(decision: &Decision<'_>) -> Seen {
    let answer = decision.answer();
    let limit = answer.limit;
    Seen {
        verdict: answer.verdict.name().into(),
        key_id: answer.key_id.into(),
        limit: (!limit.name.is_empty()).then(|| (limit.name.into(), limit.remaining)),
        shadow: answer.shadow_limit.map(str::to_owned),
        metadata: answer.metadata.map(str::to_owned),
    }
}

fn request(ask: &Ask, names: &'static str, credential: Credential<'static>) -> Verify<'static> {
    let request = Verify {
        cost: ask.cost,
        environment: ask.environment,
        scopes: ask
            .scopes
            .map(|(_, any)| Scopes { names, mode: if any { ScopeMode::Any } else { ScopeMode::All } }),
        origin: ask.origin,
        want_metadata: ask.metadata,
        ..Verify::new(1, credential)
    };
    match ask.ip {
        Some(ip) => request.with_ip(ip.parse().expect("an address")),
        None => request,
    }
}

/// Asks everything about every row, so many requests `together`, and gives something back after
/// each of these groups.
fn ask_all(rows: Vec<Row>, form: Form, together: usize) {
    let limiter = Limiter::new();
    let global_policy = form.global_policy();
    let snapshot = snapshot(&rows, &limiter, |key| form.hash(&global_policy, key));
    let verifier =
        Verifier { snapshot: Some(&snapshot), limiter: &limiter, global_policy: &global_policy, now: NOW };
    // Requests borrow their texts for as long as the test runs.
    let keys: Vec<&'static str> = rows.iter().map(|row| &*row.key.clone().leak()).collect();
    let asks: Vec<(Ask, &'static str)> = all_asks()
        .into_iter()
        .map(|ask| (ask, &*ask.scopes.map_or(String::new(), |(names, _)| names.join(" ")).leak()))
        .collect();
    let credentials: Vec<_> = keys.iter().map(|key| form.credential(&global_policy, key)).collect();
    let everything = asks.iter().flat_map(|asked| (0..rows.len()).map(move |row| (row, asked)));
    let everything = scatter(everything.collect::<Vec<_>>());
    let mut model = Model::new(rows);
    for group in everything.chunks(together) {
        let requests: Vec<_> =
            group.iter().map(|(row, (ask, names))| request(ask, names, credentials[*row])).collect();
        let mut got = Vec::with_capacity(group.len());
        assert_eq!(verifier.verify(&requests, |decision| got.push(seen(decision))), group.len());
        for ((row, (ask, _)), got) in group.iter().zip(&got) {
            model.verify(*row, ask).assert(got, || format!("{ask:?} of {:?}, {form:?}", model.rows[*row]));
        }
        for (row, _) in group.iter().step_by(5) {
            let refund = Refund { request_id: 1, cost: 2, credential: credentials[*row], limit: None };
            let got = seen(&verifier.refund(&refund).expect("no newer snapshot"));
            model.refund(*row, 2).assert(&got, || format!("refund of {:?}, {form:?}", model.rows[*row]));
        }
    }
}

#[test]
fn each_restriction_alone_is_heeded_for_every_request() {
    for form in [Form::Digest, Form::RawKey, Form::CurrentPepper, Form::PreviousPepper] {
        for together in [1, 150] {
            ask_all(singles(), form, together);
        }
    }
}

#[test]
fn any_two_restrictions_are_heeded_together_for_every_request() {
    ask_all(pairs(), Form::Digest, 150);
}
