//! Files as sources of bytes: in memory, and mapped.

use std::borrow::Cow;
use std::ops::Range;

use super::{ByteSource, LoadError, slice};

/// A file that is wholly in memory: a fetched small checkpoint, or a test's.
#[derive(Debug, Clone)]
pub struct MemoryFile {
    name: String,
    bytes: Vec<u8>,
}

impl MemoryFile {
    pub fn new(name: impl Into<String>, bytes: Vec<u8>) -> Self {
        MemoryFile { name: name.into(), bytes }
    }
}

impl ByteSource for MemoryFile {
    fn name(&self) -> &str {
        &self.name
    }

    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    async fn read(&self, range: Range<u64>) -> Result<Cow<'_, [u8]>, LoadError> {
        slice(&self.name, &self.bytes, range)
    }
}

/// A memory-mapped file.
#[cfg(not(target_family = "wasm"))]
#[derive(Debug)]
pub struct MmapFile {
    name: String,
    map: memmap2::Mmap,
}

#[cfg(not(target_family = "wasm"))]
impl MmapFile {
    /// Maps the file at `path` for reading.
    ///
    /// # Errors
    /// [`LoadError::Read`] if it cannot be opened or mapped.
    pub fn open(path: &std::path::Path) -> Result<Self, LoadError> {
        let name = path.display().to_string();
        let read_error = |e: std::io::Error| LoadError::Read { file: name.clone(), problem: e.to_string() };
        let file = std::fs::File::open(path).map_err(read_error)?;
        // A directory opens like a file on Unix; mapping it would give a puzzling message.
        if !file.metadata().map_err(read_error)?.is_file() {
            return Err(LoadError::Read { file: name, problem: "it is not a file".into() });
        }
        // SAFETY: the map is private to this process and only read. Checkpoints are not written
        // while they are in use; a program that truncates one under us gets the same bus error
        // that any memory-mapped reader gets.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(read_error)?;
        Ok(MmapFile { name, map })
    }
}

#[cfg(not(target_family = "wasm"))]
impl ByteSource for MmapFile {
    fn name(&self) -> &str {
        &self.name
    }

    fn size(&self) -> u64 {
        self.map.len() as u64
    }

    async fn read(&self, range: Range<u64>) -> Result<Cow<'_, [u8]>, LoadError> {
        slice(&self.name, &self.map, range)
    }

    /// Gives the pages back: otherwise a load counts every weight twice in resident memory.
    #[cfg(unix)]
    fn release(&self, range: Range<u64>) {
        let (start, end) = (range.start.min(self.size()), range.end.min(self.size()));
        if start < end {
            // SAFETY: the map is file-backed and never written, so dropped pages come back from
            // the file with the same content. A refused hint changes nothing.
            let _ = unsafe {
                self.map.unchecked_advise_range(
                    memmap2::UncheckedAdvice::DontNeed,
                    start as usize,
                    (end - start) as usize,
                )
            };
        }
    }
}
