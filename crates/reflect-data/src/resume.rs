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
    #[error("{path}:{line} has no end and is not of this step; give another --out or delete the file")]
    Foreign { path: PathBuf, line: usize },
    #[error("two records have the id `{0}`, by which a step goes on; give every record its own")]
    SameId(String),
    #[error("a record can't be written as JSON ({0})")]
    Json(serde_json::Error),
}

/// How a line of ours begins.
const START: &[u8] = br#"{"id":"#;

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
                if !line.starts_with(START) && !START.starts_with(&line) {
                    return Err(ResumeError::Foreign { path: path.to_owned(), line: number });
                }
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

    /// The records that no run has written yet.
    ///
    /// # Errors
    /// [`ResumeError::SameId`] when two records could not be told apart.
    pub fn open_of<'a>(&self, records: &'a [Record]) -> Result<Vec<&'a Record>, ResumeError> {
        let mut ids = HashSet::new();
        if let Some(record) = records.iter().find(|record| !ids.insert(record.problem.id.as_str())) {
            return Err(ResumeError::SameId(record.problem.id.clone()));
        }
        Ok(records.iter().filter(|record| !self.done.contains(&record.problem.id)).collect())
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
        let open: Vec<&str> =
            output.open_of(&records).unwrap().iter().map(|record| record.problem.id.as_str()).collect();
        assert_eq!(open, ["x/000001", "x/000002"]);
        output.push(&records[1]).unwrap();
        output.flush().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), whole);
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn records_of_one_id_are_refused() {
        let path = scratch("same");
        let mut records = records(2);
        records[1].problem.id = records[0].problem.id.clone();
        let error = Output::open(&path).unwrap().open_of(&records).unwrap_err();
        assert!(matches!(&error, ResumeError::SameId(id) if id == "x/000000"), "{error}");
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn foreign_files_are_left_alone() {
        let path = scratch("foreign");
        std::fs::write(&path, "{\"id\": \"a\"}\nnotes\n").unwrap();
        let error = Output::open(&path).err().unwrap();
        assert!(matches!(error, ResumeError::Line { line: 2, .. }), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"id\": \"a\"}\nnotes\n");
        std::fs::write(&path, "a letter to my aunt").unwrap();
        let error = Output::open(&path).err().unwrap();
        assert!(matches!(error, ResumeError::Foreign { line: 1, .. }), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "a letter to my aunt");
        std::fs::remove_file(path).unwrap();
    }
}
