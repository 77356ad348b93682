//! Reads the keys of a load: raw keys, one per line, or SHA-256 digests from a list or an export.

use std::fmt::Display;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use zeroize::Zeroizing;

use crate::exit::{Exit, Failure};
use crate::keys::Keys;
use keyward_engine::key_format;
use keyward_engine::record::{Digest, Quoted};
use keyward_engine::snapshot::compiled;
use keyward_source::{self as source, ColumnMapping, Diagnostics, Format};

/// Size of the read buffer.
const BUFFER_BYTES: usize = 1 << 20;

/// Hex digits of a SHA-256.
const DIGITS: usize = 2 * size_of::<Digest>();

/// Reads raw keys, one per line; empty lines are ignored. Without `raw`, only their digests are
/// retained.
pub(crate) fn read_keys(path: &Path, raw: bool) -> Result<Keys, Failure> {
    let mut text = Zeroizing::new(Vec::new());
    open("--keys", path)?.read_to_end(&mut text).map_err(|error| {
        Failure::new(Exit::Usage, format_args!("--keys: {}: cannot be read: {error}", path.display()))
    })?;
    let (mut keys, mut digests) = (Keys::default(), Vec::new());
    for line in text.split(|byte| *byte == b'\n') {
        let key = line.strip_suffix(b"\r").unwrap_or(line);
        if key.is_empty() {
            continue;
        }
        if raw {
            keys.add_raw(key);
        } else {
            digests.push(key_format::hash(key));
        }
    }
    let keys = if raw { keys } else { Keys::digests(digests) };
    require_keys("--keys", path, keys)
}

/// Reads digests: 64 hex digits per line, or the column `key_hash` of an export in CSV or JSON
/// Lines.
pub(crate) fn read_digests(path: &Path) -> Result<Keys, Failure> {
    let mut input = BufReader::with_capacity(BUFFER_BYTES, open("--digests", path)?);
    let unreadable = |error| digests_failure(path, format_args!("cannot be read: {error}"));
    let head = input.fill_buf().map_err(unreadable)?;
    if compiled::has_magic(head) {
        let message =
            "digests are not read from a compiled snapshot; give the export that it was compiled from";
        return Err(digests_failure(path, message));
    }
    // The content shows whether it is a list: an export begins with a header or an object. Which
    // export it is depends on the name, as for the daemon. A file with any other name is read as
    // CSV, the usual format, and its header must have the columns of an export.
    let first = head.split(|byte| *byte == b'\n').next().unwrap_or_default().trim_ascii_end();
    let digests = if parse_digest(first).is_some() {
        read_list(&mut input, path)?
    } else {
        let format = match Format::from_path(path) {
            Ok(Format::JsonLines) => Format::JsonLines,
            _ => Format::Csv,
        };
        read_export(input, format, path)?
    };
    require_keys("--digests", path, Keys::digests(digests))
}

fn read_list(input: &mut impl BufRead, path: &Path) -> Result<Vec<Digest>, Failure> {
    let (mut digests, mut line, mut number) = (Vec::new(), Vec::new(), 0_u64);
    loop {
        line.clear();
        number += 1;
        let read = input.read_until(b'\n', &mut line);
        if read.map_err(|error| digests_failure(path, format_args!("cannot be read: {error}")))? == 0 {
            return Ok(digests);
        }
        match line.trim_ascii_end() {
            [] => {}
            text => digests.push(parse_digest(text).ok_or_else(|| {
                digests_failure(path, format_args!("line {number} is not a SHA-256 in {DIGITS} hex digits"))
            })?),
        }
    }
}

/// Reads the digests of an export. The fields that keyward knows must be valid; all other columns
/// are ignored, because the daemon's configuration, which may name them, is not known here.
fn read_export(input: impl BufRead, format: Format, path: &Path) -> Result<Vec<Digest>, Failure> {
    let mapping = ColumnMapping::default().ignoring_unknown();
    let mut digests = Vec::new();
    let mut diagnostics = Diagnostics::new(path.display().to_string());
    let mut sink = |_, record: &keyward_engine::record::KeyRecord<'_>| {
        digests.push(record.hash);
        Ok(())
    };
    source::read(input, format, &mapping, &mut sink, &mut diagnostics)
        .map_err(|error| digests_failure(path, format_args!("cannot be read: {error}")))?;
    if !diagnostics.is_empty() {
        let message = format_args!(
            "--digests: this is neither a list of digests, {DIGITS} hex digits per line, nor an export:\n{diagnostics}"
        );
        return Err(Failure::new(Exit::Usage, message));
    }
    Ok(digests)
}

fn parse_digest(text: &[u8]) -> Option<Digest> {
    const_hex::decode_to_array(text).ok().filter(|_| text.len() == DIGITS)
}

fn open(option: &str, path: &Path) -> Result<File, Failure> {
    File::open(path).map_err(|error| {
        // The path may be a key, given by mistake. It must not be printed.
        let name = match path.to_str() {
            Some(name) if !Quoted(name).may_be_key() => name,
            _ => "it",
        };
        Failure::new(Exit::Usage, format_args!("{option}: cannot open {name}: {error}"))
    })
}

fn require_keys(option: &str, path: &Path, keys: Keys) -> Result<Keys, Failure> {
    if keys.is_empty() {
        return Err(Failure::new(Exit::Usage, format_args!("{option}: {}: no keys in it", path.display())));
    }
    Ok(keys)
}

fn digests_failure(path: &Path, message: impl Display) -> Failure {
    Failure::new(Exit::Usage, format_args!("--digests: {}: {message}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    fn read_file<T>(
        name: &str,
        text: &str,
        read: impl FnOnce(&Path) -> Result<T, Failure>,
    ) -> Result<T, String> {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("the file is written");
        read(&path).map_err(|failure| {
            assert_eq!(failure.exit, Exit::Usage);
            failure.message
        })
    }

    fn count(name: &str, text: &str) -> Result<usize, String> {
        read_file(name, text, read_digests).map(|keys| keys.len())
    }

    #[test]
    fn digests_are_read_from_a_list_or_an_export() {
        assert_eq!(count("list", &format!("{A}\n{B}\r\n\n")), Ok(2));
        assert_eq!(count("keys.csv", &format!("key_hash,key_id,theirs\n{A},k1,x\n{B},k2,y\n")), Ok(2));
        assert_eq!(count("no.extension", &format!("key_hash,key_id\n{A},k1\n")), Ok(1));
        let quoted = format!("key_hash,\"theirs, \"\"and\"\" ours\",key_id\n{A},x,k1\n");
        assert_eq!(count("keys.csv", &quoted), Ok(1));
        let json = format!("{{\"key_hash\":\"{A}\",\"key_id\":\"k1\",\"theirs\":7}}\n");
        assert_eq!(count("keys.jsonl", &json), Ok(1));
    }

    #[test]
    fn invalid_file_is_refused_with_the_position() {
        let error = count("list", &format!("{A}\nbb\n")).expect_err("short");
        assert!(error.ends_with("line 2 is not a SHA-256 in 64 hex digits"), "{error}");
        let error = count("keys.csv", "key_id\nk1\n").expect_err("no hashes");
        assert!(error.contains("key_hash"), "{error}");
        assert!(count("empty", "").expect_err("empty").contains("empty"));
        assert!(count("keys.csv", "key_hash,key_id\n").expect_err("none").ends_with("no keys in it"));
    }

    #[test]
    fn raw_keys_are_kept_or_hashed() {
        for raw in [false, true] {
            let keys = read_file("keys", "one\ntwo\n\nthree", |path| read_keys(path, raw)).expect("keys");
            assert_eq!(keys.len(), 3);
        }
        assert!(
            read_file("keys", "\n", |path| read_keys(path, false)).err().expect("none").contains("no keys")
        );
        let failure = read_keys(Path::new("acme_live_0123456789_secret_key"), false).err().expect("no file");
        assert!(!failure.message.contains("secret"), "{}", failure.message);
    }
}
