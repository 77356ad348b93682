//! Reading a file into a table, by the way that suits it.
//!
//! * A text that is small is read row by row, and so is one of which something is wrong, and one whose rows somebody wants to see: only
//!   that way knows lines.
//! * A large one is cut into pieces that several threads read ([`fan`]), on the assumption that nothing is wrong. If something is,
//!   or it cannot be cut, it is read again row by row: so both ways come to the same, and the slow one only where somebody has
//!   to mend the file anyway.
//! * A compiled file is cut into blocks already.
//!
//! What is held beside the table is a few pieces for each thread, 8 MiB while a text is indexed, and of a compiled file the hashes of its
//! key ids until all are there.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::reload::bad_rows::BadRows;
use crate::reload::fan;
use crate::reload::load::{ProgressFn, RowObserver};
use crate::reload::room::{HEAP, MemoryError, MemoryLimits, THREAD};
use crate::reload::{ReloadError, SourceFile};
use keyward_engine::record::{KeyRecord, MAX_KEY_ID};
use keyward_engine::snapshot::{BatchBuilder, Builder, ParallelBuilder, RowBatch, RowError, compiled};
use keyward_source::{
    self as source, ChunkReader, ChunkSplitter, Diagnostics, Format, Location, SinkError, SplitError,
};

/// A text from this size on is read by several threads: a smaller one is read by the time that they are started.
const LARGE: u64 = 4 << 20;

/// Bytes that are looked at to learn how long rows are, in so many places.
const SAMPLE: usize = 16 << 10;
const SAMPLES: u64 = 16;

/// Bytes of the shortest row: a hash in base64, a comma, an id, and the newline. However many lines a file has that are none, no
/// more rows are made room for.
const SHORTEST_ROW: u64 = 46;

/// Most rows that room is made for in indexes before they are there. A few rows can take all of that room, because they go anywhere in
/// it: 100 MiB. For more, indexes grow.
const MAX_ROOM: usize = 4 << 20;

/// Rows, and pieces, after which it is looked again whether there is memory left: what is small in so many fits into the margin.
const ROWS_BETWEEN: u64 = 1 << 7;
const PIECES_BETWEEN: u64 = 64;

/// Growth from this size on is worth a look at the limits of memory, too, which takes a dozen system calls.
const MAPPED: usize = 1 << 20;

/// A file that is being read.
pub(super) struct Source<'s> {
    pub(super) origin: &'s SourceFile,
    pub(super) file: &'s File,
    pub(super) size: u64,
    pub(super) seed: u64,
    pub(super) room: MemoryLimits,
}

/// A file that was read.
pub(super) struct Read {
    /// Its rows, but for those that cannot be understood; if these are set aside, their keys, disabled.
    pub(super) builder: Builder,
    /// The Unix second at which it was a source, if that is in the file itself.
    pub(super) source_time: Option<u32>,
    /// What has come of rows that cannot be understood.
    pub(super) bad_rows: Option<BadRows>,
}

/// Tells how far the reading has come.
struct ProgressReader<'t, R> {
    input: R,
    read: u64,
    tell: &'t mut ProgressFn<'t>,
}

impl<R: io::Read> io::Read for ProgressReader<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.input.read(buffer)?;
        self.read += bytes as u64;
        (self.tell)(self.read);
        Ok(bytes)
    }
}

/// Why pieces are not read to the end.
enum Stop {
    /// Not enough memory, too.
    Io(io::Error),
    /// Something is wrong, or it cannot be cut.
    Wrong,
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<MemoryError> for Stop {
    fn from(shortage: MemoryError) -> Self {
        Self::Io(shortage.into())
    }
}

/// Ends the reading when there is no memory left for what is read.
struct WhileRoom<'r, R> {
    input: R,
    shortage: &'r RefCell<Option<MemoryError>>,
}

impl<R: io::Read> io::Read for WhileRoom<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &*self.shortage.borrow() {
            Some(shortage) => Err(shortage.clone().into()),
            None => self.input.read(buffer),
        }
    }
}

impl Source<'_> {
    /// Reads it to its end.
    ///
    /// # Errors
    /// When it cannot be read. Rows that cannot be understood are none.
    pub(super) fn read(
        &self,
        see: Option<&mut RowObserver<'_>>,
        progress: &mut ProgressFn<'_>,
    ) -> Result<Read, ReloadError> {
        if self.origin.format == Format::Compiled {
            let (builder, source_time) = self.compiled(progress).map_err(|error| self.damaged(error))?;
            self.require(&builder)?;
            see.into_iter().for_each(|see| builder.for_each_record(see));
            return Ok(Read { builder, source_time: Some(source_time), bad_rows: None });
        }
        // What it will take for sure: better refused now than half way.
        let table = Builder::bytes_for(self.expected());
        self.room.require(table, 0).map_err(|shortage| self.unreadable(shortage.into()))?;
        let mut input = ProgressReader { input: self.file, read: 0, tell: progress };
        let threads = if self.size >= LARGE && see.is_none() { fan::threads() } else { 1 };
        // One thread needs less. It is slower, and takes the keys.
        if threads > 1 && self.room.require(table, (threads + 1) * (THREAD + HEAP)).is_ok() {
            match self.in_pieces(&mut input, threads) {
                Ok(builder) => return Ok(Read { builder, source_time: None, bad_rows: None }),
                Err(Stop::Io(error)) => return Err(self.unreadable(error)),
                Err(Stop::Wrong) => {
                    (&*self.file).seek(SeekFrom::Start(0)).map_err(|error| self.unreadable(error))?;
                    input.read = 0;
                }
            }
        }
        let mut ignore = |_: u64, _: &KeyRecord<'_>| {};
        self.in_order(input, see.unwrap_or(&mut ignore))
    }

    /// A compiled file has no columns: what is required has to have a value in some row.
    fn require(&self, builder: &Builder) -> Result<(), ReloadError> {
        let absent = self.origin.mapping.required().difference(builder.given());
        if absent.is_empty() {
            return Ok(());
        }
        let mut findings = Diagnostics::new(self.origin.path.display().to_string());
        let message = format_args!("no row has a value for {absent}, and source.required lists it");
        findings.add(Location::File, message);
        Err(ReloadError::Findings(findings))
    }

    fn unreadable(&self, error: io::Error) -> ReloadError {
        ReloadError::io(&self.origin.path, error)
    }

    fn damaged(&self, error: compiled::ReadError) -> ReloadError {
        match error {
            compiled::ReadError::Io(error) => self.unreadable(error),
            error => ReloadError::Compiled { path: self.origin.path.to_path_buf(), error },
        }
    }

    fn builder(&self, expected: usize) -> Builder {
        Builder::new(self.seed, expected).with_plans(Arc::clone(&self.origin.plans))
    }

    /// Rows that there probably are: from the length of those in a few places, and a little more. It is a guess: a file can have rows
    /// where they are looked for, and elsewhere garbage or holes. So it must not cost memory.
    fn expected(&self) -> usize {
        let mut sample = vec![0; SAMPLE];
        let (mut bytes, mut rows) = (0, 0);
        for at in 0..SAMPLES {
            let read = self.file.read_at(&mut sample, self.size / SAMPLES * at).unwrap_or(0);
            bytes += read as u64;
            rows += memchr::memchr_iter(b'\n', &sample[..read]).count() as u64;
        }
        let expected = u128::from(self.size) * u128::from(rows) * 33 / (u128::from(bytes.max(1)) * 32);
        let expected = expected.min(u128::from(self.size / SHORTEST_ROW));
        u32::try_from(expected).unwrap_or(u32::MAX) as usize
    }

    /// Row by row.
    fn in_order(&self, input: impl io::Read, see: &mut RowObserver<'_>) -> Result<Read, ReloadError> {
        let mut builder = self.builder(self.expected().min(MAX_ROOM));
        let SourceFile { path, format, mapping, on_bad_row, .. } = self.origin;
        let mut findings = Diagnostics::new(path.display().to_string()).retaining_bad_rows(on_bad_row.kept());
        let shortage = RefCell::new(None);
        let mut rows: u64 = 0;
        // Ids whose rows contradict each other.
        let mut contradicting = BTreeSet::new();
        let mut sink = |line: u64, record: &KeyRecord<'_>| {
            let growth = builder.growth(1, record.key_id.len() + record.owner.len(), record.metadata.len());
            rows += 1;
            if growth > 0 || rows.is_multiple_of(ROWS_BETWEEN) {
                let beside = builder.heap_bytes();
                let room = if growth >= MAPPED {
                    self.room.require(growth, beside)
                } else {
                    self.room.require_mapped(growth.saturating_add(beside))
                };
                room.map_err(|short| shortage.borrow_mut().insert(short).to_string())?;
            }
            builder.add(line, record).map_err(|error| {
                let contradicts = matches!(error, RowError::OtherOwner { .. } | RowError::OtherLimits { .. });
                // With more bad rows, the source is refused.
                if contradicts && contradicting.len() < on_bad_row.kept() {
                    contradicting.insert(record.key_id.to_owned());
                }
                SinkError::from(error)
            })?;
            see(line, record);
            Ok(())
        };
        let input = WhileRoom { input, shortage: &shortage };
        let read = source::read(input, *format, mapping, &mut sink, &mut findings);
        if let Some(shortage) = shortage.take() {
            return Err(self.unreadable(shortage.into()));
        }
        read.map_err(|error| self.unreadable(error))?;
        let set_aside = findings.retained_bad_rows().len();
        let growth = builder.growth(set_aside, set_aside * MAX_KEY_ID, 0);
        let room = self.room.require(growth, builder.heap_bytes());
        room.map_err(|shortage| self.unreadable(shortage.into()))?;
        let bad_rows = on_bad_row.judge(findings, &mut builder, &contradicting)?;
        Ok(Read { builder, source_time: None, bad_rows })
    }

    /// Piece by piece, by several threads.
    fn in_pieces(&self, input: impl io::Read + Send, threads: usize) -> Result<Builder, Stop> {
        let mut builder = self.builder(0).into_parallel(self.expected());
        let mut splitter = ChunkSplitter::new(input, self.origin.format);
        let mut next = || match splitter.next_chunk() {
            Ok(piece) => Ok(piece),
            Err(SplitError::Io(error)) => Err(Stop::Io(error)),
            Err(SplitError::NoRowEnd) => Err(Stop::Wrong),
        };
        let mut first = next()?.ok_or(Stop::Wrong)?;
        let blocks = ChunkReader::new(self.origin.format, &self.origin.mapping, &first);
        let (blocks, header) = blocks.ok_or(Stop::Wrong)?;
        first.drain(..header);
        let mut first = Some(first);
        let workers: Vec<_> = (0..threads).map(|_| reader(blocks.clone(), builder.batch_builder())).collect();
        let mut pieces: u64 = 0;
        let merge = |batch: Option<RowBatch>| {
            let batch = batch.ok_or(Stop::Wrong)?;
            let (growth, beside) = (builder.growth(&batch), ParallelBuilder::heap_bytes(&batch, threads));
            pieces += 1;
            if growth >= MAPPED || pieces.is_multiple_of(PIECES_BETWEEN) {
                self.room.require(growth, beside)?;
            } else {
                self.room.require_mapped(growth.saturating_add(beside))?;
            }
            builder.add_batch(batch).map_err(|_| Stop::Wrong)
        };
        fan::in_order(workers, || first.take().map_or_else(&mut next, |first| Ok(Some(first))), merge)?;
        self.room.require(builder.indexing_bytes(), THREAD)?;
        let (by_digest, by_id) = builder.index_builders();
        let (unique, rotated) = fan::both(by_digest, by_id)?;
        unique.and_then(|unique| builder.finish(unique, rotated)).map_err(|_| Stop::Wrong)
    }

    fn compiled(&self, progress: &mut ProgressFn<'_>) -> Result<(Builder, u32), compiled::ReadError> {
        let read = |at, bytes: &mut [u8]| {
            self.room.require_mapped(0)?;
            self.file.read_exact_at(bytes, at)
        };
        // What room is made for has to be on the disk: a length alone costs nothing. Where a file system cannot tell, the
        // first hole is at the end.
        if rustix::fs::seek(self.file, rustix::fs::SeekFrom::Hole(0)).is_ok_and(|hole| hole < self.size) {
            return Err(compiled::ReadError::Holes);
        }
        let mut reader = compiled::Reader::open(read, self.size)?;
        let beside = reader.heap_bytes().saturating_add(2 * fan::threads() * THREAD);
        self.room.require(reader.memory_bytes(fan::threads()), beside).map_err(io::Error::from)?;
        let mut builder = reader.builder().with_plans(Arc::clone(&self.origin.plans));
        let decoder = reader.read_policies(&mut builder)?;
        let (mut buffers, mut merge) = (reader.buffers(), reader.merge());
        let mut partitions = reader.hash_partitions(fan::threads());
        let mut slots = buffers.block_slots();
        let next = || {
            let block = reader.next_block(&mut slots)?;
            block.iter().for_each(|block| progress(block.range().0));
            Ok(block)
        };
        let workers = partitions.iter_mut().map(|ids| {
            let (decoder, mut payload) = (decoder.clone(), Vec::new());
            move |block: compiled::Block<'_>| {
                let (start, bytes) = block.range();
                payload.resize(bytes, 0);
                self.file.read_exact_at(&mut payload, start).map_err(|error| block.read_error(error))?;
                decoder.decode(block, &payload, ids)
            }
        });
        fan::in_order(workers, next, |decoded| merge.add(decoded?, &mut builder))?;

        let mut parts = buffers.id_partitions(&partitions);
        let workers = partitions.iter().map(|_| |part: compiled::IdPartition<'_>| part.fill(&partitions));
        let add = |filled| {
            merge.add_ids(filled);
            Ok::<_, io::Error>(())
        };
        fan::in_order(workers, || Ok(parts.next()), add)?;
        drop(parts);
        merge.finish(buffers, &decoder, &partitions, &mut builder)?;
        let source_time = reader.source_time();
        Ok((builder, source_time))
    }
}

/// What a thread does with a piece; `None` if something is wrong with it.
fn reader(
    mut blocks: ChunkReader,
    mut batch_builder: BatchBuilder,
) -> impl FnMut(Vec<u8>) -> Option<RowBatch> + Send {
    move |piece| blocks.read(&piece, |record| batch_builder.add(record)).then(|| batch_builder.take())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::reload::BadRowPolicy;
    use keyward_source::ColumnMapping;

    /// Bytes of a text that takes several pieces.
    const SEVERAL: usize = 1 << 20;

    /// What comes of `text`: every row, or what is wrong.
    fn read(text: &[u8], format: Format, size: u64) -> Result<Vec<String>, String> {
        with_source(text, format, size, |source| match source.read(None, &mut |_| {}) {
            Ok(Read { bad_rows: Some(BadRows::Refuse(failure)), .. }) => Err(failure.to_string()),
            Ok(read) => Ok(rows(&read.builder)),
            Err(failure) => Err(failure.to_string()),
        })
    }

    fn with_source<T>(text: &[u8], format: Format, size: u64, then: impl FnOnce(&Source<'_>) -> T) -> T {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), text).expect("writes");
        let plans = Arc::default();
        // Messages name the path.
        let origin = SourceFile {
            path: Box::from("keys".as_ref()),
            format,
            mapping: ColumnMapping::default(),
            plans,
            on_bad_row: BadRowPolicy::Refuse,
        };
        let file = file.reopen().expect("opens");
        then(&Source { origin: &origin, file: &file, size, seed: 7, room: MemoryLimits::new() })
    }

    fn rows(builder: &Builder) -> Vec<String> {
        let mut rows = Vec::new();
        builder.for_each_record(&mut |_, record| rows.push(format!("{record:?}")));
        rows
    }

    fn csv(rows: impl Iterator<Item = String>) -> Vec<u8> {
        let rows: String = rows.collect();
        format!("\u{feff}key_hash,key_id,owner,limits,metadata\r\n{rows}").into_bytes()
    }

    /// Twelve kinds of good rows; some fields are longer than they seem, and have quotes in them.
    fn row(number: usize, kind: u8) -> String {
        let owner = ["", "acme", "\"a, \"\"b\"\"\"", "\"b\"\"c\"", "\"d\""][usize::from(kind % 5)];
        let metadata = ["", "\"{\"\"a\"\":\n\n\"\"b\"\"}\"", "{}"][usize::from(kind % 3)];
        let padding = "x".repeat(usize::from(kind) * 3);
        let end = if kind.is_multiple_of(2) { "\n" } else { "\r\n" };
        format!("{number:064x},k{number}{padding},{owner},{}/s,{metadata}{end}", kind + 1)
    }

    /// As many rows as take several pieces, of these kinds in turn.
    fn many(kinds: &[u8]) -> impl Iterator<Item = String> {
        let mut bytes = 0;
        let rows = (0..).zip(kinds.iter().copied().cycle()).map(|(number, kind)| row(number, kind));
        rows.take_while(move |row| {
            bytes += row.len();
            bytes < SEVERAL
        })
    }

    #[test]
    fn a_good_export_is_read_in_pieces() {
        let text = csv(many(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]));
        let json: String = (0..9_000)
            .map(|number| {
                format!("{{\"key_hash\":\"{number:064x}\",\"key_id\":\"k{number}\",\"limits\":\"1/s\"}}\n\n")
            })
            .collect();
        // A third of the rows have the id of an early one.
        let rotated = (0..12_000).map(|number| {
            let of = if number % 3 == 1 { number / 7 } else { number };
            row(number, 0).replacen(&format!(",k{number},"), &format!(",r{of},"), 1)
        });
        let rotated = (csv(rotated), Format::Csv);
        for (text, format) in [(text, Format::Csv), (json.into_bytes(), Format::JsonLines), rotated] {
            for threads in [1, 2, 5] {
                let pieces = with_source(&text, format, LARGE, |source| {
                    source.in_pieces(source.file, threads).ok().map(|builder| rows(&builder))
                });
                let in_order = read(&text, format, 0).expect("nothing is wrong with it");
                assert_eq!(pieces, Some(in_order), "{format}, {threads} threads");
            }
        }
    }

    #[test]
    fn a_compiled_file_of_nothing_but_length_is_refused_before_there_is_room_for_it() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), [1; 128]).expect("writes");
        file.as_file().set_len(1 << 40).expect("a length");
        let (format, mapping, plans) = (Format::Compiled, ColumnMapping::default(), Arc::default());
        let origin = SourceFile {
            path: Box::from("keys".as_ref()),
            format,
            mapping,
            plans,
            on_bad_row: BadRowPolicy::Refuse,
        };
        let file = file.reopen().expect("opens");
        let source =
            Source { origin: &origin, file: &file, size: 1 << 40, seed: 7, room: MemoryLimits::new() };
        let told = source.read(None, &mut |_| {}).err().expect("it is refused").to_string();
        assert!(told.contains("it has holes"), "{told}");
    }

    #[test]
    fn what_is_wrong_is_told_as_if_it_had_been_read_in_order() {
        let good: Vec<String> = many(&[0, 1, 2]).collect();
        let last = good.len() - 1;
        let with = |at: usize, row: String| {
            let mut rows = good.clone();
            rows[at] = row;
            csv(rows.into_iter())
        };
        let wrong = [
            (with(last, "not a row\n".to_owned()), "the row has 1 columns"),
            (with(last, good[0].clone()), "the same key_hash as in line 2"),
            (with(last, format!("{last:064x},k0,other,1/s,\n")), "the same key_id and another owner"),
            (with(last, format!("{last:064x},k0,,7/s,\n")), "the same key_id and other limits"),
            (with(last, good[last].trim_end().to_owned()), "does not end in a newline"),
            (with(3, format!("\"{}", good[3])), "keys:"),
            (with(0, good[0].replacen("1/s", "1/x", 1)), "is not a period"),
            (with(last, format!("\u{feff}{last:064x},k,a,1/s,\n")), "column 1 (key_hash)"),
            (with(last, format!("{last:064x},k,\"a\"b,1/s,\n")), "column 3 (owner): the closing quote"),
            (with(last, format!("{last:064x},k,a\"b,1/s,\n")), "column 3 (owner): there is a quote"),
            (
                with(last, format!("{last:064x},k,\"a\\\"b\",1/s,\n")),
                "column 3 (owner): a quote behind a backslash",
            ),
            (csv(std::iter::once("x".repeat(SEVERAL + 1))), "longer than"),
            (csv(good.iter().cloned()).split_off(9), "is not a field"),
        ];
        for (text, message) in wrong {
            let told = read(&text, Format::Csv, LARGE).expect_err(message);
            assert!(told.contains(message), "{message}: {told}");
            assert_eq!(Err(told), read(&text, Format::Csv, 0));
        }
        let text: Vec<u8> = csv(good.into_iter().map(|row| row.replace('\n', "\r"))).to_vec();
        let text = String::from_utf8(text).expect("UTF-8").replacen("\r\n", "\r", 1) + "\n";
        assert!(read(text.as_bytes(), Format::Csv, LARGE).is_ok(), "carriage returns alone end rows too");
        assert_eq!(read(text.as_bytes(), Format::Csv, LARGE), read(text.as_bytes(), Format::Csv, 0));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]

        #[test]
        fn both_ways_come_to_the_same(
            kinds in prop::collection::vec(0_u8..12, 1..40),
            changes in prop::collection::vec((any::<prop::sample::Index>(), "[a\u{feff}\",\n\r]"), 0..3),
        ) {
            let mut text = csv(many(&kinds));
            for (at, change) in changes {
                let at = at.index(text.len());
                text.splice(at..=at, change.bytes());
            }
            prop_assert_eq!(read(&text, Format::Csv, LARGE), read(&text, Format::Csv, 0));
        }
    }
}
