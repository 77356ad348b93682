//! `keyward compile`: converts a source into a snapshot file that a daemon loads without parsing.

use std::fs::{File, Permissions};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::exit::{CliError, Exit};
use super::streams::Streams;
use keyward_daemon::config::{Config, Overrides};
use keyward_daemon::reload::{self, BadRowPolicy, ParsedSource, SourceFile};
use keyward_source::Format;

const HELP: &str = "\
The file is written beside FILE and renamed over it, so that a daemon that serves FILE never reads a part of it. FILE has
the permissions of SOURCE. Rows contain the names of plans; their limits come from the configuration of the daemon that
loads FILE.

The command needs as much memory as a daemon that serves the keys (128 bytes for each key, and its texts).

The exit code is 78 if the configuration or the source is invalid. FILE is then unchanged.

Example:
  keyward compile keys.csv --output /etc/keyward/keys.kwc";

/// Size of the write buffer.
const BUFFER: usize = 1 << 20;

/// Turn a source into a compiled snapshot, which loads at the speed of the disk
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct Compile {
    /// Export with the keys, .csv or .jsonl, or a compiled snapshot
    #[arg(value_name = "SOURCE")]
    source: PathBuf,

    /// File to write, .kwc
    #[arg(long, value_name = "FILE")]
    output: PathBuf,

    /// Configuration file, for the source's columns and the plans [default:
    /// /etc/keyward/keyward.toml, if it exists]
    #[arg(long, value_name = "FILE", env = "KEYWARD_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,

    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
}

/// The result.
#[derive(Serialize)]
struct Written<'a> {
    output: &'a Path,
    keys: usize,
    bytes: u64,
}

impl Compile {
    pub(super) fn run(&self, streams: &mut Streams<'_>) -> Result<Exit, CliError> {
        let overrides = Overrides { source: Some(self.source.clone()), ..Overrides::default() };
        let config = Config::load(self.config.as_deref(), overrides)?;
        self.check_output()?;
        let built = self.read(&config)?;
        let keys = built.builder.len();
        let bytes = self.write(&built).map_err(|error| {
            CliError::new(Exit::Denied, format_args!("{}: cannot write it: {error}", self.output.display()))
        })?;
        if Format::from_path(&self.output) != Ok(Format::Compiled) {
            let output = self.output.display();
            streams.note(format_args!(
                "{output}: its name does not end in .kwc: set source.format = \"compiled\""
            ));
        }
        if self.json {
            streams.print_json(&Written { output: &self.output, keys, bytes })?;
        } else {
            streams.print(format_args!("{}: {keys} keys, {bytes} bytes", self.output.display()))?;
        }
        Ok(Exit::Done)
    }

    /// Refuses an output that is the source, which must survive to be compiled again.
    fn check_output(&self) -> Result<(), CliError> {
        let [source, output] = [&self.source, &self.output].map(|path| path.metadata().ok());
        let file_id = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
        match source.map(file_id).zip(output.map(file_id)) {
            Some((source, output)) if source == output => {
                let output = self.output.display();
                Err(CliError::new(
                    Exit::Usage,
                    format_args!("--output {output} is the source: name another file"),
                ))
            }
            _ => Ok(()),
        }
    }

    fn read(&self, config: &Config) -> Result<ParsedSource, CliError> {
        let refused = |failure: reload::ReloadError| CliError::new(Exit::BadInput, failure);
        let bar = progress_bar("reading", self.source.metadata().map_or(0, |metadata| metadata.len()));
        let seed = getrandom::u64().map_err(|error| refused(reload::ReloadError::Random(error)))?;
        // A compiled snapshot has no diagnostics of its rows.
        let source = SourceFile { on_bad_row: BadRowPolicy::Refuse, ..config.source_file() };
        let built = source.parse(seed, None, &mut |read| bar.set_position(read));
        bar.finish_and_clear();
        let built = built.map_err(refused)?;
        if built.builder.is_empty() {
            return Err(refused(reload::ReloadError::Empty { path: self.source.clone() }));
        }
        Ok(built)
    }

    /// Writes the new file and renames it over the output. Returns its size in bytes.
    fn write(&self, built: &ParsedSource) -> io::Result<u64> {
        let directory = self.output.parent().filter(|directory| !directory.as_os_str().is_empty());
        let directory = directory.unwrap_or(Path::new("."));
        let mode = self.source.metadata()?.permissions().mode() & 0o666;
        let new = tempfile::Builder::new()
            .prefix(".keyward-compile-")
            .permissions(Permissions::from_mode(mode))
            .tempfile_in(directory)?;
        let bar = progress_bar("writing", built.builder.len() as u64);
        let mut writer = BufWriter::with_capacity(BUFFER, new.as_file());
        let written =
            built.builder.compile(&mut writer, built.written_at, &mut |rows| bar.set_position(rows));
        bar.finish_and_clear();
        written?;
        writer.flush()?;
        drop(writer);
        // Again, because the mode at creation is subject to the umask.
        new.as_file().set_permissions(Permissions::from_mode(mode))?;
        new.as_file().sync_all()?;
        let file = new.persist(&self.output).map_err(|error| error.error)?;
        File::open(directory)?.sync_all()?;
        Ok(file.metadata()?.len())
    }
}

/// A progress bar that is shown only on a terminal.
fn progress_bar(what: &'static str, length: u64) -> ProgressBar {
    let bar = if io::stderr().is_terminal() { ProgressBar::new(length) } else { ProgressBar::hidden() };
    let style = ProgressStyle::with_template("{msg} {wide_bar} {percent:>3} %, {eta} left");
    style.into_iter().for_each(|style| bar.set_style(style));
    bar.with_message(what)
}

#[cfg(test)]
mod tests {
    use super::super::tests::run_with;
    use super::*;

    const HASH: &str = "6bb7e067447fa2f1d1b9c6ea2b5c1f4a1ff1a2f8cb2b1de0a0d32a6a87f1b9a1";

    #[test]
    fn compiled_file_has_the_keys_of_the_source() {
        let directory = tempfile::tempdir().expect("a directory");
        let [source, output, text] =
            ["keys.csv", "keys.kwc", "text.kwc"].map(|name| directory.path().join(name));
        std::fs::write(&source, format!("key_hash,key_id,owner,limits\n{HASH},k1,acme,10/s\n"))
            .expect("writes");
        std::fs::set_permissions(&source, Permissions::from_mode(0o640)).expect("sets");
        let path = |path: &Path| path.to_str().expect("UTF-8").to_owned();
        let (from, to) = (path(&source), path(&output));

        let (exit, said, messages) = run_with(&["compile", &from, "--output", &to], b"");
        assert_eq!((exit, messages.as_str()), (Exit::Done, ""));
        assert!(said.starts_with(&format!("{to}: 1 keys, ")), "{said}");
        assert_eq!(output.metadata().expect("is there").permissions().mode() & 0o777, 0o640);
        let (exit, said, _) = run_with(&["check", "--source", &to, "--against", &from], b"");
        assert_eq!(exit, Exit::Done);
        assert!(said.contains("1 key: nothing would change"), "{said}");

        std::fs::copy(&source, &text).expect("copies");
        let (exit, _, messages) = run_with(&["check", "--source", &path(&text)], b"");
        assert_eq!(exit, Exit::BadInput);
        assert!(messages.contains("text.kwc: it is not a compiled snapshot"), "{messages}");
        assert_eq!(directory.path().read_dir().expect("lists").count(), 3, "nothing is left behind");
    }

    #[test]
    fn refused_source_leaves_the_output_unchanged() {
        let directory = tempfile::tempdir().expect("a directory");
        let [source, output] = ["keys.csv", "keys.kwc"].map(|name| directory.path().join(name));
        std::fs::write(&source, "key_hash,key_id\nx,k1\n").expect("writes");
        std::fs::write(&output, "old").expect("writes");
        let [from, to] = [&source, &output].map(|path| path.to_str().expect("UTF-8"));
        let (exit, _, messages) = run_with(&["compile", from, "--output", to], b"");
        assert_eq!(exit, Exit::BadInput);
        assert!(messages.contains("keys.csv:2: column 1 (key_hash)"), "{messages}");
        let (exit, _, messages) = run_with(&["compile", from, "--output", from], b"");
        assert_eq!(exit, Exit::Usage);
        assert!(messages.contains("is the source"), "{messages}");
        assert_eq!(std::fs::read(&output).expect("reads"), b"old");
    }
}
