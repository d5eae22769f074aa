//! Other people's data as [`Record`]s: GSM8K, solutions that models wrote for it, chats, and the
//! columns system / prompt / response.
//!
//! A line either becomes a record or is named in the [`ImportReport`] with the reason: nothing is
//! dropped silently, and `read` is `kept` plus every kind of dropped line. Empty lines don't count.

mod chat;
mod gsm8k;
mod solutions;

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, BufRead};

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use self::chat::{ReflectionCounts, spans_of};
pub use self::solutions::SolutionCounts;
use crate::sample::{Problem, Span};

/// A line of any data file: a problem, with the spans of its answer where one has been written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    #[serde(flatten)]
    pub problem: Problem,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub spans: Vec<Span>,
}

/// What a file holds, told by the fields of its lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// `question` and `answer`, the answer with `<<a*b=c>>` and `#### N`.
    Gsm8k,
    /// `question`, `ground_truth` and solutions of several models with `is_correct`.
    Solutions,
    /// `messages`, the last one by the assistant.
    Chat,
    /// `prompt`, `response` and perhaps `system`.
    Columns,
}

impl Format {
    /// Every format, in the order in which they are tried.
    pub const ALL: [Self; 4] = [Self::Gsm8k, Self::Solutions, Self::Chat, Self::Columns];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gsm8k => "gsm8k",
            Self::Solutions => "solutions",
            Self::Chat => "chat",
            Self::Columns => "columns",
        }
    }

    fn fits(self, row: &Value) -> bool {
        let fields: &[&str] = match self {
            Self::Gsm8k => &["question", "answer"],
            Self::Solutions => &["question", "ground_truth"],
            Self::Chat => &["messages"],
            Self::Columns => &["prompt", "response"],
        };
        fields.iter().all(|field| row.get(field).is_some())
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a line was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DropReason {
    /// Not a line of UTF-8 with one JSON object.
    BrokenJson,
    /// A field is missing or of another type than its format wants.
    WrongShape,
    /// A tag without its partner.
    UnbalancedTags,
    /// Nothing to learn or to compare with.
    EmptyAnswer,
}

/// A dropped line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Complaint {
    /// Counted from 1.
    pub line: usize,
    pub reason: DropReason,
    /// What is wrong, as the end of a sentence.
    pub detail: String,
}

/// What became of the lines of a file.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ImportReport {
    pub file: String,
    /// `None` when no line said what the file is.
    pub format: Option<Format>,
    pub read: usize,
    pub kept: usize,
    pub dropped: BTreeMap<DropReason, usize>,
    /// Every dropped line, in order.
    pub complaints: Vec<Complaint>,
    /// Reflections in the answers by what they did; zeros for formats without any.
    pub reflections: ReflectionCounts,
    /// What the solutions of models were; zeros for other formats.
    pub solutions: SolutionCounts,
}

impl ImportReport {
    /// One line for each dropped line: file, line and reason.
    pub fn complaint_lines(&self) -> impl Iterator<Item = String> + '_ {
        self.complaints.iter().map(|complaint| {
            format!("{}:{}: {}, so it was dropped", self.file, complaint.line, complaint.detail)
        })
    }
}

/// A dropped line before its number is known.
type Refusal = (DropReason, String);

/// Reads a file in the format its lines show, or in the one that is given. `file` is its name, for
/// messages and ids; a GSM8K file with the word `test` in its name is held out.
///
/// # Errors
/// Only those of reading: what is wrong with a line is in the report.
pub fn import(
    mut reader: impl BufRead,
    file: &str,
    format: Option<Format>,
) -> io::Result<(Vec<Record>, ImportReport)> {
    let mut report = ImportReport {
        file: file.to_owned(),
        format,
        read: 0,
        kept: 0,
        dropped: BTreeMap::new(),
        complaints: Vec::new(),
        reflections: ReflectionCounts::default(),
        solutions: SolutionCounts::default(),
    };
    let mut records = Vec::new();
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        if reader.read_until(b'\n', &mut line)? == 0 {
            break;
        }
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        report.read += 1;
        // The place among the rows names the problem: it doesn't move when a row before is mended.
        let row_number = report.read - 1;
        match parse_row(&line).and_then(|row| record(&row, row_number, &mut report)) {
            Ok(record) => records.push(record),
            Err((reason, detail)) => {
                *report.dropped.entry(reason).or_default() += 1;
                report.complaints.push(Complaint { line: number, reason, detail });
            }
        }
    }
    if report.format == Some(Format::Solutions) {
        solutions::hold_out_twins(&mut records);
    }
    report.kept = records.len();
    Ok((records, report))
}

fn parse_row(line: &[u8]) -> Result<Value, Refusal> {
    let text = std::str::from_utf8(line)
        .map_err(|error| (DropReason::BrokenJson, format!("the line is not UTF-8 ({error})")))?;
    let row: Value = serde_json::from_str(text)
        .map_err(|error| (DropReason::BrokenJson, format!("the line is not JSON ({error})")))?;
    if row.is_object() {
        Ok(row)
    } else {
        Err((DropReason::BrokenJson, "the line is not a JSON object".to_owned()))
    }
}

fn record(row: &Value, number: usize, report: &mut ImportReport) -> Result<Record, Refusal> {
    let format = match report.format {
        Some(format) => format,
        None => Format::ALL.into_iter().find(|format| format.fits(row)).ok_or_else(|| {
            let detail = "the line has none of question/answer, messages, prompt/response";
            (DropReason::WrongShape, detail.to_owned())
        })?,
    };
    report.format = Some(format);
    match format {
        Format::Gsm8k => gsm8k::record(row, number, &report.file),
        Format::Solutions => solutions::record(row, number, &mut report.solutions),
        Format::Chat => chat::from_messages(row, number, &report.file, &mut report.reflections),
        Format::Columns => chat::from_columns(row, number, &report.file, &mut report.reflections),
    }
}

/// The text of a field that must be there.
fn text_field<'a>(row: &'a Value, field: &str) -> Result<&'a str, Refusal> {
    row.get(field)
        .and_then(Value::as_str)
        .ok_or_else(|| (DropReason::WrongShape, format!("`{field}` is not a string")))
}

/// The name of a file without its folder.
fn name(file: &str) -> &str {
    file.rsplit(['/', '\\']).next().unwrap_or(file)
}

/// The name of a file without folder and ending, for ids.
fn stem(file: &str) -> &str {
    let name = name(file);
    name.split_once('.').map_or(name, |(stem, _)| stem)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn adds_up(report: &ImportReport) -> bool {
        let dropped: usize = report.dropped.values().sum();
        report.read == report.kept + dropped && dropped == report.complaints.len()
    }

    #[test]
    fn bad_lines_are_named_and_counted() {
        let good = r#"{"prompt": "2+2?", "response": "4"}"#;
        let lines = [
            good,
            "{broken",
            "",
            r#"{"prompt": "a", "response": "<thinking>no end"}"#,
            r#"{"prompt": "a", "response": "  "}"#,
            r#"{"prompt": "a", "response": 4}"#,
            "[1]",
            good,
        ];
        let (records, report) = import(lines.join("\n").as_bytes(), "d/mixed.jsonl", None).unwrap();
        assert_eq!((report.read, report.kept, records.len()), (7, 2, 2));
        assert!(adds_up(&report), "{report:?}");
        assert_eq!(report.format, Some(Format::Columns));
        let reasons: Vec<_> = report.complaints.iter().map(|c| (c.line, c.reason)).collect();
        let expected = [
            (2, DropReason::BrokenJson),
            (4, DropReason::UnbalancedTags),
            (5, DropReason::EmptyAnswer),
            (6, DropReason::WrongShape),
            (7, DropReason::BrokenJson),
        ];
        assert_eq!(reasons, expected);
        assert!(report.complaint_lines().next().unwrap().starts_with("d/mixed.jsonl:2: "));
    }

    #[test]
    fn bytes_that_are_no_text_are_reported() {
        let (records, report) = import(&b"\xff\xfe\n"[..], "x", None).unwrap();
        assert!(records.is_empty() && report.dropped[&DropReason::BrokenJson] == 1);
        assert_eq!(report.format, None);
    }

    #[test]
    fn records_come_back_from_their_lines() {
        let line = r#"{"prompt": "2+2?", "response": "<thinking>2+2=4</thinking><output>4</output>"}"#;
        let (records, _) = import(line.as_bytes(), "x.jsonl", None).unwrap();
        let written = serde_json::to_string(&records[0]).unwrap();
        assert_eq!(serde_json::from_str::<Record>(&written).unwrap(), records[0]);
    }

    fn rows() -> impl Strategy<Value = String> {
        let text = prop_oneof![
            "(<<|>>|=|[0-9]{1,4}|[-+*/]| |\n|#### [0-9]+|A: [0-9]+|[a-z]{1,4}){0,30}",
            "(</?(thinking|reflection|output)>|[a-z =0-9]{1,6}|\n|`|\"){0,20}",
            ".{0,40}",
        ];
        (0..5usize, text.clone(), text).prop_map(|(kind, a, b)| match kind {
            0 => serde_json::json!({"question": a, "answer": b}).to_string(),
            1 => {
                let solution = serde_json::json!({"is_correct": false, "solution": b});
                serde_json::json!({"question": a, "ground_truth": b, "m": solution}).to_string()
            }
            2 => {
                let messages =
                    serde_json::json!([{"role": "user", "content": a}, {"role": "assistant", "content": b}]);
                serde_json::json!({ "messages": messages }).to_string()
            }
            3 => serde_json::json!({"system": b, "prompt": a, "response": b}).to_string(),
            _ => a,
        })
    }

    proptest! {
        #[test]
        fn no_input_panics_and_counts_add_up(
            rows in proptest::collection::vec(rows(), 0..6),
            format in 0..5usize,
        ) {
            let format = Format::ALL.get(format).copied();
            let (records, report) = import(rows.join("\n").as_bytes(), "a/test.jsonl", format).unwrap();
            prop_assert!(adds_up(&report));
            prop_assert_eq!(records.len(), report.kept);
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let (_, report) = import(&bytes[..], "x", None).unwrap();
            prop_assert!(adds_up(&report));
        }
    }
}
