//! What a reload would do, in the words of the admin socket; the command line says it in the same ones.

use crate::admin::check::{Check, Diff, Difference, Example, Examples, Finding, Findings};
use crate::admin::message::{AccessExamples, Changes};
use crate::admin::withheld::Withheld;
use crate::reload::{Evaluation, Preview, ReloadError, SetAside, TakeawayReport};
use crate::snapshot;
use crate::source::{self, Column};

/// Keys of each kind that the report of a reload names: enough to find out what they have in common.
const MAX_ACCESS_EXAMPLES: usize = 3;

impl From<&Preview> for Check {
    fn from(preview: &Preview) -> Self {
        let Preview { source, generation, serving, took, result, taken } = preview;
        let findings = result.as_ref().err().and_then(ReloadError::findings).map(Into::into);
        let set_aside = result.as_ref().ok().and_then(|judged| judged.set_aside.as_ref());
        Self {
            source: source.display().to_string(),
            error: result.as_ref().err().map(ToString::to_string),
            findings,
            withheld: withheld(set_aside, taken.as_ref()),
            diff: result.as_ref().ok().map(|judged| diff(judged, *generation, *serving)),
            took_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

/// What came, or would come, of rows that cannot be understood; `None` if there are none.
pub fn withheld(set_aside: Option<&SetAside>, taken: Option<&TakeawayReport>) -> Option<Withheld> {
    let texts = |ids: &[Box<str>]| ids.iter().map(|key_id| key_id.to_string()).collect();
    let mut withheld = Withheld::default();
    if let Some(SetAside { rows, findings, unreadable, keys, first }) = set_aside {
        let findings = findings.iter().flat_map(|findings| findings.kept());
        withheld = Withheld {
            bad_rows: *rows,
            unreadable_rows: *unreadable,
            set_aside: *keys,
            set_aside_keys: texts(first),
            findings: findings.map(Finding::from).collect(),
            ..withheld
        };
    }
    if let Some(TakeawayReport { total, first, refused, added: _ }) = taken {
        withheld.taken_away = *total;
        withheld.taken_away_keys = texts(first);
        withheld.takeaways_refused = refused.clone();
    }
    (withheld != Withheld::default()).then_some(withheld)
}

/// What putting `judged` in the place of `serving` keys would do; they are those of `generation`, or of a file.
pub fn diff(judged: &Evaluation, generation: u64, serving: usize) -> Diff {
    let Evaluation { keys, diff, refused, stale, set_aside: _ } = judged;
    Diff {
        accepted: refused.is_none(),
        refused: refused.as_ref().map(ToString::to_string),
        stale: stale.as_ref().map(ToString::to_string),
        generation,
        serving,
        keys: *keys,
        unchanged: diff.is_unchanged(),
        changes: diff.into(),
        examples: (&diff.examples).into(),
    }
}

impl From<&snapshot::Diff> for Changes {
    fn from(diff: &snapshot::Diff) -> Self {
        let snapshot::Diff { added, removed, changed, revoked, impact, .. } = diff;
        Self {
            added: *added,
            removed: *removed,
            changed: *changed,
            revoked: *revoked,
            stopping: impact.stopping(),
            starting: impact.starting(),
            loosened: impact.loosened(),
        }
    }
}

impl From<&snapshot::Examples> for Examples {
    fn from(examples: &snapshot::Examples) -> Self {
        let all = |examples: &[snapshot::Example]| examples.iter().map(Example::from).collect();
        Self {
            added: all(&examples.added),
            removed: all(&examples.removed),
            changed: all(&examples.changed),
            revoked: all(&examples.revoked),
            stopping: all(&examples.stopping),
            starting: all(&examples.starting),
            loosened: all(&examples.loosened),
        }
    }
}

impl From<&snapshot::Examples> for AccessExamples {
    fn from(examples: &snapshot::Examples) -> Self {
        let few = |examples: &[snapshot::Example]| {
            examples.iter().take(MAX_ACCESS_EXAMPLES).map(Example::from).collect()
        };
        Self {
            stopping: few(&examples.stopping),
            starting: few(&examples.starting),
            loosened: few(&examples.loosened),
        }
    }
}

impl From<&snapshot::Example> for Example {
    fn from(example: &snapshot::Example) -> Self {
        Self {
            key_id: example.key_id.to_string(),
            hash: example.hash.iter().map(|byte| format!("{byte:02x}")).collect(),
            differences: example.differences.iter().map(Difference::from).collect(),
        }
    }
}

impl From<&snapshot::Difference> for Difference {
    fn from(difference: &snapshot::Difference) -> Self {
        let (before, after) = match &difference.values {
            Some([before, after]) => (Some(before.to_string()), Some(after.to_string())),
            None => (None, None),
        };
        Self { field: difference.field.to_owned(), before, after }
    }
}

impl From<&source::Diagnostics> for Findings {
    fn from(findings: &source::Diagnostics) -> Self {
        Self { total: findings.total(), first: findings.kept().iter().map(Finding::from).collect() }
    }
}

impl From<&source::Diagnostic> for Finding {
    fn from(finding: &source::Diagnostic) -> Self {
        let place = match &finding.column {
            // Of a field that is unknown, the message says the name.
            None | Some(Column::Unknown(_)) => Self::default(),
            Some(Column::Numbered { number, name }) => {
                Self { column: Some(*number), name: name.as_deref().map(str::to_owned), ..Self::default() }
            }
            Some(Column::Named(name)) => Self { name: Some(name.to_string()), ..Self::default() },
            Some(Column::Byte(byte)) => Self { byte: Some(*byte), ..Self::default() },
        };
        let line = Some(finding.line).filter(|line| *line > 0);
        Self { line, message: finding.message.clone(), count: finding.count, ..place }
    }
}
