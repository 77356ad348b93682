//! The configurations in a page of `systemd/gateways`.

use std::fs;
use std::path::Path;

/// The gateway's table of http.toml, the first that its page has, with a Unix socket in `directory` that
/// every user may connect to: the gateway's group need not exist.
pub(super) fn unix_listener(gateway: &str, group: &str, directory: &Path) -> String {
    let socket = directory.join(format!("{gateway}.sock")).display().to_string();
    let mut tables = blocks(
        gateway,
        "toml",
        &[
            (&format!("/run/keyward-http/{gateway}.sock"), &socket),
            (&format!("socket_group = \"{group}\""), "socket_mode = \"0666\""),
        ],
    );
    tables.swap_remove(0)
}

/// The only block of `language` in the page of a gateway, with every text in `replaced` replaced. Each has
/// to be there, so that a page that changes is noticed.
pub(super) fn block(gateway: &str, language: &str, replaced: &[(&str, &str)]) -> String {
    let [block] = blocks(gateway, language, replaced).try_into().expect("one block");
    block
}

/// All blocks of `language`, as [`block`].
pub(super) fn blocks(gateway: &str, language: &str, replaced: &[(&str, &str)]) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("systemd/gateways/{gateway}.md"));
    let page = fs::read_to_string(&path).expect("the page");
    for (old, _) in replaced {
        assert!(page.contains(old), "{old:?} is not in {}", path.display());
    }
    let replace =
        |text: &str| replaced.iter().fold(text.to_owned(), |text, (old, new)| text.replace(old, new));
    let begin = format!("```{language}\n");
    let blocks = page.split(&begin).skip(1).map(|rest| rest.split_once("```\n").expect("an end").0);
    blocks.map(replace).collect()
}
