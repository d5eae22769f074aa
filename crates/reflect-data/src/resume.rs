//! Output that grows record by record, so that a step killed at any moment goes on where it stopped.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::import::Record;

/// Why an output can't be continued.
#[derive(Debug, thiserror::Error)]
pub enum ResumeError {
    #[error("{path} can't be continued ({source}); check the folder and its rights")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{path}:{line} is not a record of this step ({source}); give another --out or delete the file")]
    Line { path: PathBuf, line: usize, source: serde_json::Error },
    #[error("a record can't be written as JSON ({0})")]
    Json(serde_json::Error),
}

/// A JSONL file of [`Record`]s to append to, and the ids that it already has.
pub struct Output {
    path: PathBuf,
    file: BufWriter<File>,
    done: HashSet<String>,
}

/// All that is needed of a line that was written before.
#[derive(Deserialize)]
struct Id {
    id: String,
}

impl Output {
    /// Opens or creates the file. A last line without its end was being written when the step was
    /// killed: it is cut off.
    ///
    /// # Errors
    /// [`ResumeError`] when the file can't be read and written, or holds something else.
    pub fn open(path: &Path) -> Result<Self, ResumeError> {
        let failed = |source| ResumeError::Io { path: path.to_owned(), source };
        // Reading and writing, and what is there stays.
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(failed)?;
        let mut done = HashSet::new();
        let mut whole = 0;
        let mut reader = BufReader::new(&file);
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            reader.read_until(b'\n', &mut line).map_err(failed)?;
            if line.last() != Some(&b'\n') {
                break;
            }
            whole += line.len() as u64;
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let Id { id } = serde_json::from_slice(&line).map_err(|source| ResumeError::Line {
                path: path.to_owned(),
                line: number,
                source,
            })?;
            done.insert(id);
        }
        file.set_len(whole).map_err(failed)?;
        file.seek(SeekFrom::Start(whole)).map_err(failed)?;
        Ok(Self { path: path.to_owned(), file: BufWriter::new(file), done })
    }

    /// Whether a record with this id was written, now or in an earlier run.
    pub fn has(&self, id: &str) -> bool {
        self.done.contains(id)
    }

    /// Records in the file.
    pub fn len(&self) -> usize {
        self.done.len()
    }

    /// Whether nothing was written yet.
    pub fn is_empty(&self) -> bool {
        self.done.is_empty()
    }

    /// Appends a record.
    ///
    /// # Errors
    /// [`ResumeError`] when it can't be written.
    pub fn push(&mut self, record: &Record) -> Result<(), ResumeError> {
        let mut line = serde_json::to_vec(record).map_err(ResumeError::Json)?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(|source| self.failed(source))?;
        self.done.insert(record.problem.id.clone());
        Ok(())
    }

    /// Hands everything so far to the system: what was pushed before survives the end of this
    /// process.
    ///
    /// # Errors
    /// [`ResumeError`] when it can't be written.
    pub fn flush(&mut self) -> Result<(), ResumeError> {
        self.file.flush().map_err(|source| self.failed(source))
    }

    fn failed(&self, source: std::io::Error) -> ResumeError {
        ResumeError::Io { path: self.path.clone(), source }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use std::path::PathBuf;

    /// A file of one test.
    pub(crate) fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("reflect-data-{name}-{}.jsonl", std::process::id()));
        let _ = std::fs::remove_file(&path);
        path
    }
}

#[cfg(test)]
mod tests {
    use super::testing::scratch;
    use super::*;
    use crate::import::import;

    fn records(count: usize) -> Vec<Record> {
        let line = r#"{"prompt": "2+2?", "response": "4"}"#;
        import(vec![line; count].join("\n").as_bytes(), "x.jsonl", None).unwrap().0
    }

    #[test]
    fn a_torn_line_is_cut_and_written_again() {
        let path = scratch("torn");
        let records = records(3);
        let mut output = Output::open(&path).unwrap();
        records.iter().take(2).for_each(|record| output.push(record).unwrap());
        output.flush().unwrap();
        drop(output);
        let whole = std::fs::read(&path).unwrap();
        // Killed in the middle of the second line.
        std::fs::write(&path, &whole[..whole.len() - 5]).unwrap();
        let mut output = Output::open(&path).unwrap();
        assert!(output.has("x/000000") && !output.has("x/000001"));
        assert_eq!((output.len(), output.is_empty()), (1, false));
        output.push(&records[1]).unwrap();
        output.flush().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), whole);
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn foreign_files_are_left_alone() {
        let path = scratch("foreign");
        std::fs::write(&path, "{\"id\": \"a\"}\nnotes\n").unwrap();
        let error = Output::open(&path).err().unwrap();
        assert!(matches!(error, ResumeError::Line { line: 2, .. }), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"id\": \"a\"}\nnotes\n");
        std::fs::remove_file(path).unwrap();
    }
}
