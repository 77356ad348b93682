//! Visits the directories along a path.

use std::ffi::{OsStr, OsString};
use std::path::{Component, Path, PathBuf};

/// Maximum number of symbolic links along a path: as many as the kernel follows.
pub(super) const MAX_LINKS: usize = 40;

/// Resolves `path` as the kernel does. Calls `visit` with each directory and the name that is
/// looked up in it, before the look-up. Returns what the path leads to; `None` if there is nothing,
/// or a look-up is not permitted.
pub(super) fn walk(path: &Path, mut visit: impl FnMut(&Path, &OsStr)) -> Option<PathBuf> {
    // Never contains symbolic links, so its parent is the directory above it.
    let mut directory = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("."));
    let mut rest: Vec<OsString> = Vec::new();
    let push = |rest: &mut Vec<OsString>, path: &Path| {
        rest.extend(path.components().rev().map(|part| part.as_os_str().to_os_string()));
    };
    push(&mut rest, path);
    let mut links = 0;
    let mut found = None;
    while let Some(name) = rest.pop() {
        match Path::new(&name).components().next() {
            Some(Component::RootDir) => directory = PathBuf::from("/"),
            Some(Component::ParentDir) => _ = directory.pop(),
            Some(Component::Normal(_)) => {
                visit(&directory, &name);
                let next = directory.join(&name);
                if std::fs::symlink_metadata(&next).ok()?.is_symlink() {
                    links += 1;
                    if links > MAX_LINKS {
                        return None;
                    }
                    push(&mut rest, &std::fs::read_link(&next).ok()?);
                    continue;
                }
                found = Some(next.clone());
                directory = next;
            }
            _ => {}
        }
    }
    found
}
