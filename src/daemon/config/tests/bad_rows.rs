//! Settings for bad rows.

use super::*;
use crate::reload::BadRowPolicy;

#[test]
fn bad_rows_refuse_the_source_by_default() {
    let source = valid("").source;
    assert_eq!((source.on_bad_row, source.apply_takeaways_of_refused), (BadRowPolicy::Refuse, false));
    let source = valid("source.on_bad_row = 'refuse'\nsource.apply_takeaways_of_refused = true").source;
    assert_eq!((source.on_bad_row, source.apply_takeaways_of_refused), (BadRowPolicy::Refuse, true));
    let on_bad_row = |text: &str| valid(text).source.on_bad_row;
    assert_eq!(on_bad_row("source.on_bad_row = 'set-aside'"), BadRowPolicy::SetAside { max: 100 });
    let set = "source.on_bad_row = 'set-aside'\nsource.max_bad_rows = 100000";
    assert_eq!(on_bad_row(set), BadRowPolicy::SetAside { max: 100_000 });
}

#[test]
fn invalid_settings_for_bad_rows_are_refused() {
    for (text, expected) in [
        ("source.on_bad_row = 'skip'", "source.on_bad_row: \"skip\" is not an action: write \"refuse\""),
        ("source.on_bad_row = 'set-aside'\nsource.max_bad_rows = 0", "source.max_bad_rows: "),
        ("source.on_bad_row = 'set-aside'\nsource.max_bad_rows = 100001", "source.max_bad_rows: "),
        ("source.apply_takeaways_of_refused = 1", "source.apply_takeaways_of_refused: "),
        (
            "source.format = 'compiled'\nsource.on_bad_row = 'set-aside'",
            "source.on_bad_row: the source is a compiled",
        ),
        (
            "source.format = 'compiled'\nsource.apply_takeaways_of_refused = true",
            "source.apply_takeaways_of_refused: the source is a compiled",
        ),
    ] {
        let message = refused(text);
        assert!(message.contains(expected), "{text}: {message}");
    }
}
