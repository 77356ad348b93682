//! Appends rows to an export for `key new --append-to`. The export is replaced as a whole, or left
//! unchanged.
//!
//! The daemon watches the name of the export, so the new file is written beside the old one and
//! renamed over it. Concurrent commands are serialized by a lock on the directory, because the file
//! itself is replaced.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Gid, OFlags, Uid, fchown, flock};

use super::header::Header;
use super::row::Row;
use crate::cli::exit::{CliError, Exit};
use keyward_engine::record::{KeyRecord, Quoted};
use keyward_engine::snapshot::Builder;
use keyward_source::{self as source, ColumnMapping, Diagnostics, Field, Format};

const OPTION: &str = "--append-to";

/// Permissions of a new file before the umask. The file contains hashes but no keys.
const NEW_MODE: u32 = 0o644;

/// An export to which rows are appended.
pub(super) struct Export {
    /// The path with symbolic links resolved.
    path: PathBuf,
    /// The directory of the file, locked.
    directory: File,
    /// The name of the file in messages.
    name: String,
    /// The existing file. `None`: it will be created.
    old: Option<File>,
    /// The header of a CSV file. `None`: the format is JSON Lines.
    header: Option<Header>,
    is_empty: bool,
}

impl Export {
    /// Opens the file at `path`. Waits for other commands that append to it.
    pub(super) fn open(path: &Path) -> Result<Self, CliError> {
        let name = display_name(path);
        let format = match Format::from_path(path) {
            Ok(format @ (Format::Csv | Format::JsonLines)) => format,
            Ok(Format::Compiled) => {
                return Err(refused("a compiled snapshot has no rows to append to: name the export"));
            }
            Err(_) => return Err(refused(format_args!("{name}: the name must end in .csv or .jsonl"))),
        };
        let unopened = |error: io::Error| refused(format_args!("cannot open {name}: {error}"));
        let real = match path.canonicalize() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => std::path::absolute(path),
            found => found,
        };
        let real = real.map_err(unopened)?;
        let directory = File::open(real.parent().unwrap_or(Path::new("/"))).map_err(unopened)?;
        flock(&directory, FlockOperation::LockExclusive).map_err(|error| unopened(error.into()))?;
        let old = open_existing(&real).map_err(unopened)?;
        let is_empty = match &old {
            None => true,
            Some(file) => {
                let metadata = file.metadata().map_err(|error| failed(&name, error))?;
                if !metadata.is_file() {
                    return Err(refused(format_args!("{name} is not a regular file")));
                }
                metadata.len() == 0
            }
        };
        let header = match format {
            Format::JsonLines | Format::Compiled => None,
            Format::Csv if is_empty => Some(Header::of_all_fields(name.clone(), OPTION)),
            Format::Csv => Some(Header::read(path, OPTION)?),
        };
        Ok(Self { path: real, directory, name, old, header, is_empty })
    }

    /// Checks that there is a column for each field of the row.
    pub(super) fn check_fields(&self, row: &Row<'_>) -> Result<(), CliError> {
        match &self.header {
            Some(header) => header.check_fields(row.fields().map(|(field, _)| field)),
            None => Ok(()),
        }
    }

    /// The row as a line of the file.
    pub(super) fn line(&self, row: &Row<'_>) -> Result<String, CliError> {
        Ok(match &self.header {
            Some(header) => row.csv_under(header),
            None => row.json()?,
        } + "\n")
    }

    /// Replaces the file by one with `rows`, which are `count` lines, appended.
    pub(super) fn append(mut self, rows: &str, count: u32) -> Result<(), CliError> {
        let new = tempfile::Builder::new()
            .prefix(".keyward-")
            .permissions(Permissions::from_mode(NEW_MODE))
            .tempfile_in(self.path.parent().unwrap_or(Path::new("/")))
            .map_err(|error| failed(&self.name, error))?;
        self.write(&mut new.as_file(), rows).map_err(|error| failed(&self.name, error))?;
        self.check(new.as_file(), count)?;
        self.copy_owner_and_mode(new.as_file())?;
        new.as_file().sync_all().map_err(|error| failed(&self.name, error))?;
        if let Some(old) = &self.old {
            if !is_at(old, &self.path) {
                return Err(refused(format_args!("{} was replaced by another file meanwhile", self.name)));
            }
            new.persist(&self.path).map_err(|error| failed(&self.name, error.error))?;
        } else {
            new.persist_noclobber(&self.path).map_err(|error| failed(&self.name, error.error))?;
        }
        // The rename must be durable before the key is printed.
        self.directory.sync_all().map_err(|error| {
            let rest = "the rows are in it and their keys are not printed: remove them";
            CliError::new(Exit::Denied, format_args!("{OPTION}: {}: {error}; {rest}", self.name))
        })
    }

    fn write(&mut self, new: &mut &File, rows: &str) -> io::Result<()> {
        if let Some(old) = &mut self.old {
            io::copy(old, new)?;
        }
        if self.is_empty && self.header.is_some() {
            writeln!(new, "{}", Field::ALL.map(Field::name).join(","))?;
        }
        new.write_all(rows.as_bytes())
    }

    /// Reads the new file as a daemon would. Unknown columns are ignored, because the configuration
    /// of the daemon may map them.
    fn check(&self, mut new: &File, count: u32) -> Result<(), CliError> {
        if let Some(mut old) = self.old.as_ref().filter(|_| !self.is_empty) {
            let mut last = [0];
            old.seek(SeekFrom::End(-1))
                .and_then(|_| old.read_exact(&mut last))
                .map_err(|error| failed(&self.name, error))?;
            if last != *b"\n" {
                let message = "does not end in a newline: it may be cut short, and a row would be appended to its last line";
                return Err(refused(format_args!("{} {message}", self.name)));
            }
        }
        new.seek(SeekFrom::Start(0)).map_err(|error| failed(&self.name, error))?;
        let format = if self.header.is_some() { Format::Csv } else { Format::JsonLines };
        let mapping = ColumnMapping::default().ignoring_unknown();
        let mut diagnostics = Diagnostics::new(self.name.clone());
        let mut builder = Builder::new(0, 0);
        let sink: &mut source::RecordSink<'_> =
            &mut |line, record: &KeyRecord<'_>| builder.add(line, record).map_err(Into::into);
        let read = source::read(new, format, &mapping, sink, &mut diagnostics);
        read.map_err(|error| failed(&self.name, error))?;
        // An open quote before the new rows would swallow them.
        let has_rows = builder.len() >= count as usize;
        if !(diagnostics.is_empty() && has_rows) {
            return Err(refused(format_args!(
                "a daemon would refuse {} with the new rows:\n{diagnostics}",
                self.name
            )));
        }
        Ok(())
    }

    fn copy_owner_and_mode(&self, new: &File) -> Result<(), CliError> {
        let Some(old) = &self.old else { return Ok(()) };
        let copy = || -> io::Result<()> {
            let (before, after) = (old.metadata()?, new.metadata()?);
            if (before.uid(), before.gid()) != (after.uid(), after.gid()) {
                let (uid, gid) = (Uid::from_raw(before.uid()), Gid::from_raw(before.gid()));
                fchown(new, Some(uid), Some(gid))?;
            }
            // After the owner, because a change of owner can clear bits of the mode.
            new.set_permissions(Permissions::from_mode(before.mode() & 0o7777))
        };
        copy().map_err(|error| {
            refused(format_args!(
                "cannot keep the owner and the mode of {}: {error}; run it as the file's owner or as root",
                self.name
            ))
        })
    }
}

/// Opens the file at `path`, if it exists. Does not wait for the writer of a FIFO.
fn open_existing(path: &Path) -> io::Result<Option<File>> {
    match OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether `path` still names the file.
fn is_at(file: &File, path: &Path) -> bool {
    let [here, there] = [file.metadata(), path.metadata()];
    let file_id =
        |metadata: io::Result<std::fs::Metadata>| metadata.ok().map(|found| (found.dev(), found.ino()));
    file_id(here).is_some_and(|here| file_id(there) == Some(here))
}

/// The name of the file in messages. A path that looks like a key was probably given by mistake,
/// and is not repeated.
fn display_name(path: &Path) -> String {
    match path.to_str() {
        Some(name) if !Quoted(name).may_be_key() => name.to_owned(),
        _ => "it".to_owned(),
    }
}

fn refused(message: impl std::fmt::Display) -> CliError {
    CliError::new(Exit::Usage, format_args!("{OPTION}: {message}"))
}

fn failed(name: &str, error: impl std::fmt::Display) -> CliError {
    CliError::new(
        Exit::Denied,
        format_args!("{OPTION}: {name}: {error}; the file is as it was, and no key was made"),
    )
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::cli::tests::run_with;
    use keyward_engine::key_format;

    const HEADER: &str = "key_hash,key_id,owner,environment,plan,status,not_before,expires_at,scopes,allowed_ips,\
                          allowed_origins,limits,metadata";

    fn append(path: &Path, arguments: &[&str]) -> (Exit, String, String) {
        let path = path.to_str().expect("UTF-8");
        run_with(&[&["key", "new", "--append-to", path], arguments].concat(), b"")
    }

    fn hash(key: &str) -> String {
        const_hex::encode(key_format::hash(key.trim_end().as_bytes()))
    }

    #[test]
    fn missing_file_is_created_and_only_the_key_is_printed() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("keys.csv");
        let (exit, key, messages) =
            append(&path, &["--key-id", "a", "--owner", "Acme, Inc.", "--limits", "1/s"]);
        assert_eq!((exit, key.lines().count()), (Exit::Done, 1), "{messages}");
        assert_eq!(messages, format!("1 row appended to {}\n", path.display()));
        let first = format!("{HEADER}\n{},a,\"Acme, Inc.\",,,,,,,,,1/s,\n", hash(&key));
        assert_eq!(fs::read_to_string(&path).expect("a file"), first);
        let (exit, keys, _) = append(&path, &["--key-id", "b", "--count", "2", "--scopes", "x y"]);
        assert_eq!(exit, Exit::Done);
        let keys: Vec<&str> = keys.lines().collect();
        let rows: String =
            (1..).zip(&keys).map(|(n, key)| format!("{},b-{n},,,,,,,x y,,,,\n", hash(key))).collect();
        assert_eq!(fs::read_to_string(&path).expect("a file"), first + &rows);
        assert_eq!(fs::read_dir(dir.path()).expect("a directory").count(), 1, "no other file is left");
    }

    #[test]
    fn existing_file_keeps_its_columns_and_mode() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("keys.csv");
        let old = format!("note,key_id,key_hash,owner\nx,old,{},acme\n", "a".repeat(64));
        fs::write(&path, &old).expect("writes");
        fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("chmod");
        let link = dir.path().join("link.csv");
        std::os::unix::fs::symlink("keys.csv", &link).expect("a link");
        let (exit, key, _) = append(&link, &["--key-id", "new"]);
        assert_eq!(exit, Exit::Done);
        assert_eq!(fs::read_to_string(&path).expect("a file"), format!("{old},new,{},\n", hash(&key)));
        assert_eq!(fs::metadata(&path).expect("a file").mode() & 0o7777, 0o600);
        assert!(link.is_symlink());
    }

    #[test]
    fn rows_are_appended_to_json_lines() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("keys.jsonl");
        let (exit, first, _) = append(&path, &["--key-id", "a"]);
        assert_eq!(exit, Exit::Done);
        let (_, second, _) = append(&path, &["--key-id", "b", "--plan", "pro"]);
        let expected = format!(
            "{{\"key_hash\":\"{}\",\"key_id\":\"a\"}}\n{{\"key_hash\":\"{}\",\"key_id\":\"b\",\"plan\":\"pro\"}}\n",
            hash(&first),
            hash(&second)
        );
        assert_eq!(fs::read_to_string(&path).expect("a file"), expected);
    }

    #[test]
    fn refused_row_leaves_the_file_unchanged_and_prints_no_key() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("keys.csv");
        let row = format!("{},old,acme,1/s\n", "a".repeat(64));
        let good = format!("key_hash,key_id,owner,limits\n{row}");
        for (content, arguments, message) in [
            (good.trim_end(), &[][..], "does not end in a newline"),
            (&good, &["--plan", "pro"], "has no column plan in its header"),
            (&good, &["--limits", "fast"], "the row would be refused"),
            (
                &good,
                &["--key-id", "old", "--owner", "acme", "--limits", "2/s"],
                "the same key_id and other limits",
            ),
            (
                &good,
                &["--key-id", "old", "--owner", "other", "--limits", "1/s"],
                "the same key_id and another owner",
            ),
            (&format!("{good}x,k,,\n"), &[], "column 1 (key_hash)"),
            (&format!("{good}{},\"k,,\n", "b".repeat(64)), &[], "with the new rows:\n"),
            ("key_id\n", &[], "has no column key_hash"),
            ("\n", &[], "has no header"),
            ("{}\n", &[], "looks like JSON Lines"),
        ] {
            fs::write(&path, content).expect("writes");
            let inode = fs::metadata(&path).expect("a file").ino();
            let (exit, output, messages) = append(&path, arguments);
            assert_eq!((exit, output.as_str()), (Exit::Usage, ""), "{message}");
            assert!(messages.contains(message), "{message}: {messages}");
            assert_eq!(fs::read_to_string(&path).expect("a file"), content);
            assert_eq!(fs::metadata(&path).expect("a file").ino(), inode, "{message}");
            assert_eq!(fs::read_dir(dir.path()).expect("a directory").count(), 1, "no other file is left");
        }
        rustix::fs::mkfifoat(rustix::fs::CWD, dir.path().join("fifo.csv"), 0o600.into()).expect("a FIFO");
        for name in ["keys.kwc", "keys", "missing/keys.csv", ".", "fifo.csv"] {
            let (exit, output, _) = append(&dir.path().join(name), &[]);
            assert!(exit != Exit::Done && output.is_empty(), "{name}");
        }
        let json = dir.path().join("keys.jsonl");
        fs::write(&json, "{\"key_id\":1}\n").expect("writes");
        let (exit, output, messages) = append(&json, &[]);
        assert_eq!((exit, output.as_str()), (Exit::Usage, ""));
        assert!(messages.contains("keys.jsonl:1: key_hash"), "{messages}");
    }

    #[test]
    fn commands_that_append_at_the_same_time_lose_no_row() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("keys.csv");
        assert_eq!(append(&path, &[]).0, Exit::Done);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..5).for_each(|_| assert_eq!(append(&path, &[]).0, Exit::Done)));
            }
        });
        assert_eq!(fs::read_to_string(&path).expect("a file").lines().count(), 2 + 20);
    }
}
