//! The configurations in a page of `systemd/gateways`.

use std::fs;
use std::path::Path;

/// The block of `language` in the page of a gateway, with every text in `replaced` replaced. Each has
/// to be there, so that a page that changes is noticed.
pub(super) fn block(gateway: &str, language: &str, replaced: &[(&str, &str)]) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("systemd/gateways/{gateway}.md"));
    let page = fs::read_to_string(&path).expect("the page");
    let fence = format!("```{language}\n");
    let (_, rest) = page.split_once(&fence).unwrap_or_else(|| panic!("no {language} in {}", path.display()));
    let (mut text, _) =
        rest.split_once("\n```\n").map(|(text, rest)| (text.to_owned(), rest)).expect("an end");
    assert!(!rest.contains(&fence), "more than one block of {language} in {}", path.display());
    for (old, new) in replaced {
        assert!(text.contains(old), "{old:?} is not in {}", path.display());
        text = text.replace(old, new);
    }
    text
}
