//! Reads a file into a table, in the way that suits it.
//!
//! * A large text is split into chunks that several threads parse ([`parallel`]), on the assumption
//!   that it has no errors.
//! * If it has one, or cannot be split, it is read again row by row: only that way knows line
//!   numbers. Both ways give the same table, and only a file that needs correction is read twice.
//! * A small text is read row by row, and so is one whose rows are observed.
//! * A compiled file consists of blocks, which several threads decode.
//!
//! Beside the table, memory holds a few chunks for each thread, 8 MiB while a text is indexed, and
//! the hashes of all key ids while a compiled file is read.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::reload::bad_rows::BadRowOutcome;
use crate::reload::memory_limits::{ARENA_BYTES, MemoryError, MemoryLimits, THREAD_BYTES};
use crate::reload::parallel;
use crate::reload::{ReloadError, SourceFile};
use keyward_engine::record::{KeyRecord, MAX_KEY_ID};
use keyward_engine::snapshot::{BatchBuilder, Builder, ParallelBuilder, RowBatch, RowError, compiled};
use keyward_source::{
    self as source, ChunkReader, ChunkSplitter, Diagnostics, Format, Location, SinkError, SplitError,
};

#[cfg(test)]
mod tests;

/// Bytes of a text from which on several threads read it. A smaller one is read by the time that
/// they have started.
const PARALLEL_BYTES: u64 = 4 << 20;

/// Bytes of a sample from which the length of rows is estimated, and the number of samples.
const SAMPLE_BYTES: usize = 16 << 10;
const SAMPLES: u64 = 16;

/// Bytes of the shortest row: a hash in base64, a comma, an id, and the newline. It limits the
/// estimate of rows in a file with many lines that are not rows.
const MIN_ROW_BYTES: u64 = 46;

/// Maximum number of rows that indexes are allocated for in advance, which takes 100 MiB. Even a
/// few rows can touch all of that, because they are scattered by hash. For more rows, indexes grow.
const MAX_PREALLOCATED_ROWS: usize = 4 << 20;

/// Rows and chunks between two checks of memory. The margin of a check covers the small allocations
/// of so many.
const ROWS_PER_CHECK: u64 = 1 << 7;
const CHUNKS_PER_CHECK: u64 = 64;

/// Bytes of growth from which on the limits of control groups are checked as well, which takes a
/// dozen system calls.
const LARGE_GROWTH: usize = 1 << 20;

/// Called with each accepted row and its line.
pub type RowObserver<'o> = dyn FnMut(u64, &KeyRecord<'_>) + 'o;

/// Called with the number of bytes that have been read.
pub(crate) type ProgressFn<'p> = dyn FnMut(u64) + Send + 'p;

/// An open file, ready to be read.
pub(super) struct SourceReader<'s> {
    pub(super) origin: &'s SourceFile,
    pub(super) file: &'s File,
    pub(super) size: u64,
    pub(super) seed: u64,
    pub(super) limits: MemoryLimits,
}

/// The rows of a file.
pub(super) struct ParsedRows {
    /// All good rows, and the disabled keys of those that are set aside.
    pub(super) builder: Builder,
    /// The Unix second at which the content was written, if the file itself records it.
    pub(super) source_time: Option<u32>,
    /// The effect of bad rows.
    pub(super) bad_rows: Option<BadRowOutcome>,
}

/// Reports the progress of the reading.
struct ProgressReader<'p, R> {
    input: R,
    read: u64,
    progress: &'p mut ProgressFn<'p>,
}

impl<R: io::Read> io::Read for ProgressReader<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.input.read(buffer)?;
        self.read += bytes as u64;
        (self.progress)(self.read);
        Ok(bytes)
    }
}

/// Why a text is not read in parallel to its end.
enum ParallelError {
    /// The reading failed. This includes a lack of memory.
    Io(io::Error),
    /// The text has an error or cannot be split: it has to be read row by row.
    NeedsSequential,
}

impl From<io::Error> for ParallelError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<MemoryError> for ParallelError {
    fn from(error: MemoryError) -> Self {
        Self::Io(error.into())
    }
}

/// Ends the reading once the parser has run out of memory.
struct MemoryCheckedReader<'r, R> {
    input: R,
    exceeded: &'r RefCell<Option<MemoryError>>,
}

impl<R: io::Read> io::Read for MemoryCheckedReader<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &*self.exceeded.borrow() {
            Some(limit) => Err(limit.clone().into()),
            None => self.input.read(buffer),
        }
    }
}

impl SourceReader<'_> {
    /// Reads the file to its end. Bad rows are part of the result, not an error.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(super) fn read(
        &self,
        observer: Option<&mut RowObserver<'_>>,
        progress: &mut ProgressFn<'_>,
    ) -> Result<ParsedRows, ReloadError> {
        if self.origin.format == Format::Compiled {
            let (builder, source_time) =
                self.read_compiled(progress).map_err(|error| self.compiled_error(error))?;
            self.check_required_fields(&builder)?;
            observer.into_iter().for_each(|observer| builder.for_each_record(observer));
            return Ok(ParsedRows { builder, source_time: Some(source_time), bad_rows: None });
        }
        // The table is needed in any case: refuse early rather than half-way.
        let table = Builder::bytes_for(self.estimated_rows());
        self.limits.require(table, 0).map_err(|limit| self.io_error(limit.into()))?;
        let mut input = ProgressReader { input: self.file, read: 0, progress };
        let threads =
            if self.size >= PARALLEL_BYTES && observer.is_none() { parallel::worker_count() } else { 1 };
        // A single thread is slower, but needs less memory.
        if threads > 1 && self.limits.require(table, (threads + 1) * (THREAD_BYTES + ARENA_BYTES)).is_ok() {
            match self.read_parallel(&mut input, threads) {
                Ok(builder) => return Ok(ParsedRows { builder, source_time: None, bad_rows: None }),
                Err(ParallelError::Io(error)) => return Err(self.io_error(error)),
                Err(ParallelError::NeedsSequential) => {
                    (&*self.file).seek(SeekFrom::Start(0)).map_err(|error| self.io_error(error))?;
                    input.read = 0;
                }
            }
        }
        let mut ignore = |_: u64, _: &KeyRecord<'_>| {};
        self.read_sequential(input, observer.unwrap_or(&mut ignore))
    }

    /// A compiled file has no columns: a required field must have a value in some row.
    fn check_required_fields(&self, builder: &Builder) -> Result<(), ReloadError> {
        let absent = self.origin.mapping.required().difference(builder.present_fields());
        if absent.is_empty() {
            return Ok(());
        }
        let mut diagnostics = Diagnostics::new(self.origin.path.display().to_string());
        let message = format_args!("no row has a value for {absent}, and source.required lists it");
        diagnostics.add(Location::File, message);
        Err(ReloadError::Diagnostics(diagnostics))
    }

    fn io_error(&self, error: io::Error) -> ReloadError {
        ReloadError::from_io(&self.origin.path, error)
    }

    fn compiled_error(&self, error: compiled::ReadError) -> ReloadError {
        match error {
            compiled::ReadError::Io(error) => self.io_error(error),
            error => ReloadError::Compiled { path: self.origin.path.to_path_buf(), error },
        }
    }

    fn builder(&self, expected: usize) -> Builder {
        Builder::new(self.seed, expected).with_plans(Arc::clone(&self.origin.plans))
    }

    /// The estimated number of rows, from the length of rows in a few samples and a little more.
    /// The estimate can be far off: the samples may have rows, and the rest of the file garbage or
    /// holes. So memory must not be committed for it.
    fn estimated_rows(&self) -> usize {
        let mut sample = vec![0; SAMPLE_BYTES];
        let (mut bytes, mut rows) = (0, 0);
        for at in 0..SAMPLES {
            let read = self.file.read_at(&mut sample, self.size / SAMPLES * at).unwrap_or(0);
            bytes += read as u64;
            rows += memchr::memchr_iter(b'\n', &sample[..read]).count() as u64;
        }
        let expected = u128::from(self.size) * u128::from(rows) * 33 / (u128::from(bytes.max(1)) * 32);
        let expected = expected.min(u128::from(self.size / MIN_ROW_BYTES));
        u32::try_from(expected).unwrap_or(u32::MAX) as usize
    }

    /// Reads a text row by row.
    fn read_sequential(
        &self,
        input: impl io::Read,
        observer: &mut RowObserver<'_>,
    ) -> Result<ParsedRows, ReloadError> {
        let mut builder = self.builder(self.estimated_rows().min(MAX_PREALLOCATED_ROWS));
        let SourceFile { path, format, mapping, on_bad_row, .. } = self.origin;
        let mut diagnostics =
            Diagnostics::new(path.display().to_string()).retaining_bad_rows(on_bad_row.retained_rows());
        let exceeded = RefCell::new(None);
        let mut rows: u64 = 0;
        // Ids whose rows contradict each other.
        let mut contradicting = BTreeSet::new();
        let mut sink = |line: u64, record: &KeyRecord<'_>| {
            let growth = builder.growth(record);
            rows += 1;
            if growth > 0 || rows.is_multiple_of(ROWS_PER_CHECK) {
                let heap_bytes = builder.heap_bytes();
                let checked = if growth >= LARGE_GROWTH {
                    self.limits.require(growth, heap_bytes)
                } else {
                    self.limits.require_mapped(growth.saturating_add(heap_bytes))
                };
                checked.map_err(|limit| exceeded.borrow_mut().insert(limit).to_string())?;
            }
            builder.add(line, record).map_err(|error| {
                let contradicts = matches!(error, RowError::OtherOwner { .. } | RowError::OtherLimits { .. });
                // With more bad rows than are retained, the source is refused.
                if contradicts && contradicting.len() < on_bad_row.retained_rows() {
                    contradicting.insert(record.key_id.to_owned());
                }
                SinkError::from(error)
            })?;
            observer(line, record);
            Ok(())
        };
        let input = MemoryCheckedReader { input, exceeded: &exceeded };
        let read = source::read(input, *format, mapping, &mut sink, &mut diagnostics);
        if let Some(limit) = exceeded.take() {
            return Err(self.io_error(limit.into()));
        }
        read.map_err(|error| self.io_error(error))?;
        let set_aside = diagnostics.retained_bad_rows().len();
        let growth = builder.set_aside_growth(set_aside, set_aside * MAX_KEY_ID);
        self.limits.require(growth, builder.heap_bytes()).map_err(|limit| self.io_error(limit.into()))?;
        let bad_rows = on_bad_row.apply(diagnostics, &mut builder, &contradicting)?;
        Ok(ParsedRows { builder, source_time: None, bad_rows })
    }

    /// Reads a text in chunks, with several threads.
    fn read_parallel(&self, input: impl io::Read + Send, threads: usize) -> Result<Builder, ParallelError> {
        let mut builder = self.builder(0).into_parallel(self.estimated_rows());
        let mut splitter = ChunkSplitter::new(input, self.origin.format);
        let mut next = || match splitter.next_chunk() {
            Ok(chunk) => Ok(chunk),
            Err(SplitError::Io(error)) => Err(ParallelError::Io(error)),
            Err(SplitError::NoRowEnd) => Err(ParallelError::NeedsSequential),
        };
        let mut first = next()?.ok_or(ParallelError::NeedsSequential)?;
        let chunk_reader = ChunkReader::new(self.origin.format, &self.origin.mapping, &first);
        let (chunk_reader, header) = chunk_reader.ok_or(ParallelError::NeedsSequential)?;
        first.drain(..header);
        let mut first = Some(first);
        let workers: Vec<_> =
            (0..threads).map(|_| parse_chunks(chunk_reader.clone(), builder.batch_builder())).collect();
        let mut chunks: u64 = 0;
        let merge = |batch: Option<RowBatch>| {
            let batch = batch.ok_or(ParallelError::NeedsSequential)?;
            let (growth, heap_bytes) = (builder.growth(&batch), ParallelBuilder::heap_bytes(&batch, threads));
            chunks += 1;
            if growth >= LARGE_GROWTH || chunks.is_multiple_of(CHUNKS_PER_CHECK) {
                self.limits.require(growth, heap_bytes)?;
            } else {
                self.limits.require_mapped(growth.saturating_add(heap_bytes))?;
            }
            builder.add_batch(batch).map_err(|_| ParallelError::NeedsSequential)
        };
        let next = || first.take().map_or_else(&mut next, |first| Ok(Some(first)));
        parallel::map_ordered(workers, next, merge)?;
        self.limits.require(builder.indexing_bytes(), THREAD_BYTES)?;
        let (by_digest, by_id) = builder.index_builders();
        let (unique, rotated) = parallel::join(by_digest, by_id)?;
        unique.and_then(|unique| builder.finish(unique, rotated)).map_err(|_| ParallelError::NeedsSequential)
    }

    /// Reads a compiled file. Also returns the Unix second at which its source was written.
    fn read_compiled(&self, progress: &mut ProgressFn<'_>) -> Result<(Builder, u32), compiled::ReadError> {
        let read = |at, bytes: &mut [u8]| {
            self.limits.require_mapped(0)?;
            self.file.read_exact_at(bytes, at)
        };
        // Memory is allocated by the file's length, so that must be on disk: a length alone costs
        // an attacker nothing. A file system that cannot report holes reports one at the end.
        if rustix::fs::seek(self.file, rustix::fs::SeekFrom::Hole(0)).is_ok_and(|hole| hole < self.size) {
            return Err(compiled::ReadError::Holes);
        }
        let mut reader = compiled::Reader::open(read, self.size)?;
        let stacks = 2 * parallel::worker_count() * THREAD_BYTES;
        self.limits
            .require(reader.memory_bytes(parallel::worker_count()), stacks)
            .map_err(io::Error::from)?;
        let mut builder = reader.builder().with_plans(Arc::clone(&self.origin.plans));
        let require = |bytes| self.limits.require(bytes, 0).map_err(io::Error::from);
        let decoder = reader.read_policies(&mut builder, require)?;
        let (mut buffers, mut merge) = (reader.buffers(), reader.merge());
        let mut partitions = reader.hash_partitions(parallel::worker_count());
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
        parallel::map_ordered(workers, next, |decoded| merge.add(decoded?, &mut builder))?;

        let mut parts = buffers.id_partitions(&partitions);
        let workers = partitions.iter().map(|_| |part: compiled::IdPartition<'_>| part.fill(&partitions));
        let add = |filled| {
            merge.add_ids(filled);
            Ok::<_, io::Error>(())
        };
        parallel::map_ordered(workers, || Ok(parts.next()), add)?;
        drop(parts);
        merge.finish(buffers, &decoder, &partitions, &mut builder)?;
        let source_time = reader.source_time();
        Ok((builder, source_time))
    }
}

/// What a worker does with a chunk. It returns `None` if the chunk has an error.
fn parse_chunks(
    mut chunk_reader: ChunkReader,
    mut batch_builder: BatchBuilder,
) -> impl FnMut(Vec<u8>) -> Option<RowBatch> + Send {
    move |chunk| chunk_reader.read(&chunk, |record| batch_builder.add(record)).then(|| batch_builder.take())
}
