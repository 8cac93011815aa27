//! Spill segments: files in memory that hold usage records until SQLite has them.
//!
//! ```text
//! file   spill/EPOCH-LANE-SIDE.log, SIDE a or b
//! frame  length u32 LE | check 8 bytes | counter u64 LE | record (the bytes of holm_model::chain)
//! ```
//! `length` counts what follows `check`; `check` is the start of the SHA-256 of that. Each lane (a
//! thread that meters) writes its own two segments by turns: when the current one is large and everything
//! in the other is committed, the other is written from its beginning. `counter` rises by one per record of
//! a lane and epoch; the journal notes in its commit how far it has come, so that a replay adds nothing
//! twice. The frames of a segment end where one is not whole (the mark of a kill; nobody was answered for
//! it), or where the counter no longer rises: what follows is older.
//!
//! A record is a copy into a mapping of the file. The page cache outlives the process as it does after a
//! `write`, which costs some ten times as much right after a guest has run. The disk has room for what is
//! mapped before that, so a full disk is an error here and never a signal. That holds where a file is written
//! over in place; on other file systems a record is a `write`.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use holm_model::chain::{self, MAX_RECORD_BYTES};
use holm_model::codec;
use holm_model::ids::Digest;
use holm_model::usage::UsageRecord;
use rustix::fs::FallocateFlags;
use vm_memory::{Bytes as _, FileOffset, MmapRegion, VolatileMemory as _};

use super::journal::Progress;
use crate::files::FileError;
use crate::limits::{
    COMMIT_RETRY, MAX_SPILL_FRAME_BYTES, MAX_SPILL_SEGMENT_BYTES, SPILL_SEGMENT_BYTES,
};

const CHECK_BYTES: usize = 8;
const PREFIX_BYTES: usize = 4 + CHECK_BYTES;
const COUNTER_BYTES: usize = 8;

const _: () = assert!(COUNTER_BYTES + MAX_RECORD_BYTES <= MAX_SPILL_FRAME_BYTES);

/// A record could not be made to outlive the process. The node is to blame; see its disk.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpillError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("the journal is so far behind that its spill segment is full; check the node's disk")]
    Full,
}

#[derive(Debug)]
struct Segment {
    path: PathBuf,
    file: Arc<File>,
    /// As much of the file as the disk has room for, if it is to be mapped.
    mapping: Option<MmapRegion>,
    reserved_bytes: u64,
    in_place: bool,
    /// Bytes of frames.
    bytes: u64,
    last_counter: u64,
}

impl Segment {
    fn create(path: PathBuf) -> Result<Self, FileError> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).open(&path);
        let file = file.map_err(|error| FileError::new("make", &path, error))?;
        Ok(Segment {
            in_place: is_written_in_place(&file),
            path,
            file: Arc::new(file),
            mapping: None,
            reserved_bytes: 0,
            bytes: 0,
            last_counter: 0,
        })
    }

    /// Has room for another frame, whatever its size.
    fn make_room(&mut self) -> Result<(), FileError> {
        let needed = self.bytes + MAX_SPILL_FRAME_BYTES as u64 + PREFIX_BYTES as u64;
        match needed <= self.reserved_bytes {
            true => Ok(()),
            false => self.reserve(needed.next_multiple_of(SPILL_SEGMENT_BYTES)),
        }
    }

    fn reserve(&mut self, bytes: u64) -> Result<(), FileError> {
        let error = |error: io::Error| FileError::new("reserve room in", &self.path, error);
        reserve(&self.file, self.reserved_bytes, bytes).map_err(error)?;
        if self.in_place {
            let from = FileOffset::from_arc(self.file.clone(), 0);
            let mapping = MmapRegion::from_file(from, bytes as usize);
            self.mapping = Some(mapping.map_err(|problem| error(io::Error::other(problem)))?);
        }
        self.reserved_bytes = bytes;
        Ok(())
    }

    /// Behind the last frame, for which there is room.
    fn append(&mut self, frame: &[u8]) -> Result<(), FileError> {
        let written = match &self.mapping {
            Some(mapping) => mapping
                .as_volatile_slice()
                .write_slice(frame, self.bytes as usize)
                .map_err(io::Error::other),
            None => self.file.write_all_at(frame, self.bytes),
        };
        written.map_err(|error| FileError::new("write to", &self.path, error))?;
        self.bytes += frame.len() as u64;
        Ok(())
    }

    /// What it holds is no longer needed. Gives back what it has more than usual.
    fn empty(&mut self) -> Result<(), FileError> {
        (self.bytes, self.last_counter) = (0, 0);
        if self.reserved_bytes <= SPILL_SEGMENT_BYTES {
            return Ok(());
        }
        (self.mapping, self.reserved_bytes) = (None, 0);
        let emptied = self.file.set_len(0);
        emptied.map_err(|error| FileError::new("empty", &self.path, error))
    }
}

/// Whether what is reserved is there for all that is written later, as it is not where each write takes a new
/// block (btrfs, ZFS).
fn is_written_in_place(file: &File) -> bool {
    const EXT4: i64 = 0xEF53;
    const XFS: i64 = 0x5846_5342;
    const TMPFS: i64 = 0x0102_1994;
    rustix::fs::fstatfs(file).is_ok_and(|found| [EXT4, XFS, TMPFS].contains(&found.f_type))
}

/// Has blocks for the file up to `end`, zeroes after `start`.
pub(super) fn reserve(file: &File, start: u64, end: u64) -> io::Result<()> {
    match rustix::fs::fallocate(file, FallocateFlags::empty(), start, end - start) {
        Ok(()) => Ok(()),
        // A file system without it.
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NODEV) => {
            let zeroes = vec![0; (end - start) as usize];
            file.write_all_at(&zeroes, start)
        }
        Err(error) => Err(error.into()),
    }
}

/// Writes one lane's segments.
#[derive(Debug)]
pub(crate) struct SpillWriter {
    epoch: u64,
    lane: u32,
    progress: Arc<Progress>,
    sides: [Segment; 2],
    current: usize,
    counter: u64,
    /// When it failed last, unless it has worked since.
    failed: Option<Instant>,
    segment_bytes: u64,
    frame: Vec<u8>,
}

impl SpillWriter {
    /// New, empty segments for a lane of a new epoch in `dir`.
    pub(crate) fn create(
        dir: &Path,
        epoch: u64,
        lane: u32,
        progress: Arc<Progress>,
    ) -> Result<Self, FileError> {
        let side = |side: char| Segment::create(dir.join(format!("{epoch}-{lane}-{side}.log")));
        let mut spill = SpillWriter {
            epoch,
            lane,
            progress,
            sides: [side('a')?, side('b')?],
            current: 0,
            counter: 0,
            failed: None,
            segment_bytes: SPILL_SEGMENT_BYTES,
            frame: Vec::new(),
        };
        // Without room the node starts and takes no request until there is some.
        if let Err(error) = spill.sides[0].make_room() {
            tracing::error!(%error, "usage records cannot be written; no request is taken");
            spill.failed = Some(Instant::now());
        }
        Ok(spill)
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(crate) fn lane(&self) -> u32 {
        self.lane
    }

    /// Whether the next record can be expected to get in. After a failure, that is tried from time
    /// to time without a record.
    pub(crate) fn is_sound(&mut self, now: Instant) -> bool {
        if self.failed.is_some_and(|at| now >= at + COMMIT_RETRY) {
            match self.sides[self.current].make_room() {
                Ok(()) => {
                    tracing::info!("usage records can be written again");
                    self.failed = None;
                }
                Err(_) => self.failed = Some(now),
            }
        }
        self.failed.is_none() && self.sides[self.current].bytes < MAX_SPILL_SEGMENT_BYTES / 2
    }

    /// Appends the record; returns its counter.
    pub(crate) fn append(&mut self, record: &UsageRecord) -> Result<u64, SpillError> {
        let appended = self.try_append(record);
        match &appended {
            Ok(_) => self.failed = None,
            Err(SpillError::File(_)) => self.failed = Some(Instant::now()),
            // Seen by its size.
            Err(SpillError::Full) => {}
        }
        appended
    }

    fn try_append(&mut self, record: &UsageRecord) -> Result<u64, SpillError> {
        self.turn()?;
        let counter = self.counter + 1;
        self.frame.clear();
        self.frame.extend_from_slice(&[0; PREFIX_BYTES]);
        self.frame.extend_from_slice(&counter.to_le_bytes());
        chain::encode(record, &mut self.frame);
        let length = self.frame.len() - PREFIX_BYTES;
        let check = Digest::of(&self.frame[PREFIX_BYTES..]);
        self.frame[..4].copy_from_slice(&(length as u32).to_le_bytes());
        self.frame[4..PREFIX_BYTES].copy_from_slice(&check.0[..CHECK_BYTES]);

        let segment = &mut self.sides[self.current];
        if segment.bytes + self.frame.len() as u64 > MAX_SPILL_SEGMENT_BYTES {
            return Err(SpillError::Full);
        }
        segment.make_room()?;
        segment.append(&self.frame)?;
        segment.last_counter = counter;
        self.counter = counter;
        Ok(counter)
    }

    /// Goes to the other side if this one is large and the other is committed.
    fn turn(&mut self) -> Result<(), SpillError> {
        let other = 1 - self.current;
        if self.sides[self.current].bytes < self.segment_bytes
            || self.sides[other].last_counter > self.progress.committed(self.lane)
        {
            return Ok(());
        }
        self.sides[other].empty()?;
        // Without room there, this one may still have some.
        if self.sides[other].make_room().is_ok() {
            self.current = other;
        }
        Ok(())
    }
}

/// What an earlier life of the node left of one lane.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Leftover {
    pub(crate) epoch: u64,
    pub(crate) lane: u32,
    pub(crate) path: PathBuf,
    /// With their counters, as they stand in the file.
    pub(crate) records: Vec<(u64, UsageRecord)>,
}

/// Reads every segment in `dir`.
pub(crate) fn leftovers(dir: &Path) -> Result<Vec<Leftover>, FileError> {
    let wrong = |error| FileError::new("read", dir, error);
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(wrong)? {
        let path = entry.map_err(wrong)?.path();
        let Some((epoch, lane)) = parse_name(&path) else {
            tracing::warn!(path = %path.display(), "a file that is no spill segment is left alone");
            continue;
        };
        let bytes = fs::read(&path).map_err(|error| FileError::new("read", &path, error))?;
        let records = parse(&bytes, epoch);
        found.push(Leftover {
            epoch,
            lane,
            path,
            records,
        });
    }
    found.sort_by(|a, b| (a.epoch, a.lane, &a.path).cmp(&(b.epoch, b.lane, &b.path)));
    Ok(found)
}

fn parse_name(path: &Path) -> Option<(u64, u32)> {
    let mut parts = path.file_name()?.to_str()?.strip_suffix(".log")?.split('-');
    let (epoch, lane, side) = (parts.next()?, parts.next()?, parts.next()?);
    (matches!(side, "a" | "b") && parts.next().is_none())
        .then_some((epoch.parse().ok()?, lane.parse().ok()?))
}

/// The sound frames from the start of `bytes`.
fn parse(bytes: &[u8], epoch: u64) -> Vec<(u64, UsageRecord)> {
    let mut records = Vec::new();
    let (mut rest, mut last) = (bytes, 0);
    while let Some((counter, record, after)) = parse_frame(rest) {
        if record.boot_epoch != epoch || counter <= last {
            break;
        }
        records.push((counter, record));
        (rest, last) = (after, counter);
    }
    records
}

fn parse_frame(bytes: &[u8]) -> Option<(u64, UsageRecord, &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (check, rest) = rest.split_first_chunk::<CHECK_BYTES>()?;
    let length = u32::from_le_bytes(*length) as usize;
    if length > MAX_SPILL_FRAME_BYTES {
        return None;
    }
    let (payload, after) = rest.split_at_checked(length)?;
    if Digest::of(payload).0[..CHECK_BYTES] != *check {
        return None;
    }
    let (counter, encoded) = payload.split_first_chunk::<COUNTER_BYTES>()?;
    let record = match chain::decode(encoded) {
        Some((record, [])) => record,
        // As it was written until there were chains.
        _ => codec::decode_stored(encoded).ok()?,
    };
    Some((u64::from_le_bytes(*counter), record, after))
}

/// An error of the file system as the journal reports it.
pub(crate) fn remove(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(FileError::new("remove", path, error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meter::journal::tests::record;

    fn writer(dir: &Path) -> (SpillWriter, Arc<Progress>) {
        let progress = Arc::new(Progress::new(1));
        (
            SpillWriter::create(dir, 7, 0, progress.clone()).unwrap(),
            progress,
        )
    }

    fn numbered(n: u64) -> UsageRecord {
        UsageRecord {
            boot_epoch: 7,
            accepted_ms: n,
            ..record()
        }
    }

    #[test]
    fn what_was_appended_is_read_back_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let (mut spill, _) = writer(dir.path());
        for n in 1..=3 {
            assert_eq!(spill.append(&numbered(n)).unwrap(), n);
        }
        let found = leftovers(dir.path()).unwrap();
        let first = &found[0];
        assert_eq!((first.epoch, first.lane), (7, 0));
        let expected: Vec<_> = (1..=3).map(|n| (n, numbered(n))).collect();
        assert_eq!(first.records, expected);
    }

    #[test]
    fn what_a_node_left_before_it_was_updated_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let mut payload = 1_u64.to_le_bytes().to_vec();
        payload.extend(codec::encode_file(&numbered(5), 3).unwrap());
        let mut frame = (payload.len() as u32).to_le_bytes().to_vec();
        frame.extend(&Digest::of(&payload).0[..CHECK_BYTES]);
        frame.extend(payload);
        fs::write(dir.path().join("7-0-a.log"), frame).unwrap();
        let found = leftovers(dir.path()).unwrap();
        assert_eq!(found[0].records, [(1, numbered(5))]);
    }

    #[test]
    fn where_a_file_is_not_written_in_place_it_is_not_mapped() {
        let dir = tempfile::tempdir().unwrap();
        let (mut spill, _) = writer(dir.path());
        spill.sides[0].in_place = false;
        (spill.sides[0].mapping, spill.sides[0].reserved_bytes) = (None, 0);
        for n in 1..=3 {
            spill.append(&numbered(n)).unwrap();
        }
        assert!(spill.sides[0].mapping.is_none());
        let expected: Vec<_> = (1..=3).map(|n| (n, numbered(n))).collect();
        assert_eq!(leftovers(dir.path()).unwrap()[0].records, expected);
    }

    #[test]
    fn every_torn_tail_leaves_the_records_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let (mut spill, _) = writer(dir.path());
        spill.append(&numbered(1)).unwrap();
        let one = spill.sides[0].bytes as usize;
        spill.append(&numbered(2)).unwrap();
        let bytes = fs::read(dir.path().join("7-0-a.log")).unwrap();
        let two = spill.sides[0].bytes as usize;
        for cut in one..two {
            assert_eq!(parse(&bytes[..cut], 7).len(), 1, "cut at {cut}");
            // What follows a tear may be zeroes, or what was there before.
            for other in [0, 0xFF] {
                let mut torn = bytes.clone();
                torn[cut..two].fill(other);
                let whole = torn[..two] == bytes[..two];
                assert_eq!(parse(&torn, 7).len(), 1 + usize::from(whole), "{cut}");
            }
        }
        assert_eq!(parse(&bytes, 7).len(), 2);
    }

    #[test]
    fn a_flipped_bit_ends_the_reading_there() {
        let dir = tempfile::tempdir().unwrap();
        let (mut spill, _) = writer(dir.path());
        spill.append(&numbered(1)).unwrap();
        let one = spill.sides[0].bytes as usize;
        spill.append(&numbered(2)).unwrap();
        let mut bytes = fs::read(dir.path().join("7-0-a.log")).unwrap();
        bytes[one + PREFIX_BYTES + 20] ^= 1;
        assert_eq!(parse(&bytes, 7).len(), 1);
    }

    #[test]
    fn a_large_segment_is_left_only_when_the_other_is_committed() {
        let dir = tempfile::tempdir().unwrap();
        let (mut spill, progress) = writer(dir.path());
        spill.segment_bytes = 1;
        spill.append(&numbered(1)).unwrap(); // a
        spill.append(&numbered(2)).unwrap(); // b: it was empty
        spill.append(&numbered(3)).unwrap(); // still b: record 1 in a is not committed
        assert_eq!((spill.current, spill.sides[1].last_counter), (1, 3));
        progress.set_committed(0, 1);
        spill.append(&numbered(4)).unwrap(); // a, emptied
        let found = leftovers(dir.path()).unwrap();
        let counters: Vec<Vec<u64>> = found
            .iter()
            .map(|f| f.records.iter().map(|(n, _)| *n).collect())
            .collect();
        assert_eq!(counters, [vec![4], vec![2, 3]]);
    }

    #[test]
    fn of_a_segment_that_is_used_again_only_the_new_records_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let (mut spill, progress) = writer(dir.path());
        for n in 1..=3 {
            spill.append(&numbered(n)).unwrap(); // a
        }
        spill.segment_bytes = 1;
        spill.append(&numbered(4)).unwrap(); // b
        progress.set_committed(0, 4);
        spill.append(&numbered(5)).unwrap(); // a, where the old second and third follow
        let found = leftovers(dir.path()).unwrap();
        assert_eq!(found[0].records, [(5, numbered(5))]);
        assert_eq!(found[1].records, [(4, numbered(4))]);
    }

    #[test]
    fn a_segment_grows_while_the_journal_lags_and_gives_the_room_back() {
        let dir = tempfile::tempdir().unwrap();
        let (mut spill, progress) = writer(dir.path());
        let path = dir.path().join("7-0-a.log");
        spill.append(&numbered(1)).unwrap();
        spill.current = 1;
        spill.append(&numbered(2)).unwrap();
        spill.current = 0;
        let mut last = 2;
        while spill.sides[0].bytes < 2 * SPILL_SEGMENT_BYTES {
            last += 1;
            spill.append(&numbered(last)).unwrap();
        }
        assert!(fs::metadata(&path).unwrap().len() > 2 * SPILL_SEGMENT_BYTES);
        let read = &leftovers(dir.path()).unwrap()[0].records;
        let expected: Vec<u64> = (1..=last).filter(|n| *n != 2).collect();
        assert_eq!(read.iter().map(|(n, _)| *n).collect::<Vec<_>>(), expected);
        progress.set_committed(0, last);
        spill.segment_bytes = 1;
        spill.append(&numbered(last + 1)).unwrap(); // b
        progress.set_committed(0, last + 1);
        spill.append(&numbered(last + 2)).unwrap(); // a
        assert_eq!(fs::metadata(&path).unwrap().len(), SPILL_SEGMENT_BYTES);
        let read = &leftovers(dir.path()).unwrap()[0].records;
        assert_eq!(read[..], [(last + 2, numbered(last + 2))]);
    }

    #[test]
    fn a_full_disk_stops_the_spill_until_there_is_room_and_loses_nothing_before_or_after() {
        let dir = tempfile::tempdir().unwrap();
        let (mut spill, _) = writer(dir.path());
        spill.append(&numbered(1)).unwrap();
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let roomy = std::mem::replace(&mut spill.sides[0].file, Arc::new(full));
        let mapping = spill.sides[0].mapping.take();
        let reserved = std::mem::take(&mut spill.sides[0].reserved_bytes);
        assert!(matches!(
            spill.append(&numbered(2)),
            Err(SpillError::File(_))
        ));
        let later = |n: u32| Instant::now() + n * COMMIT_RETRY;
        assert!(!spill.is_sound(Instant::now()));
        assert!(!spill.is_sound(later(1)), "still no room");
        (spill.sides[0].file, spill.sides[0].mapping) = (roomy, mapping);
        spill.sides[0].reserved_bytes = reserved;
        assert!(!spill.is_sound(later(1)), "tried only from time to time");
        assert!(spill.is_sound(later(3)));
        spill.append(&numbered(3)).unwrap();
        let found = leftovers(dir.path()).unwrap();
        assert_eq!(found[0].records, [(1, numbered(1)), (2, numbered(3))]);
    }

    #[test]
    fn foreign_files_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["x.log", "1-2.log", "1-2-c.log", "1-2-a-b.log", "notes"] {
            fs::write(dir.path().join(name), b"x").unwrap();
        }
        assert_eq!(leftovers(dir.path()).unwrap(), []);
    }
}
