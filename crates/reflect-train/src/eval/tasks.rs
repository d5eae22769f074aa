//! The problems of an evaluation.

use std::collections::HashSet;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use reflect_data::{
    Problem, Split,
    families::{Family, Request, generate},
    import::{Record, import},
    io::read_jsonl,
};

/// `default`: held-out problems of all default families, as many of each, and of each difficulty about
/// a third; the name of a family: held-out problems of that one; else a file of records.
///
/// # Errors
/// One sentence: an unknown name that is no file either, a file that can't be read, or one with an id
/// twice: outcomes are kept by id.
pub fn problems(tasks: &str, count: usize, seed: u64) -> Result<Vec<Problem>, String> {
    let families: Vec<Family> = match tasks {
        "default" => Family::DEFAULT.to_vec(),
        name => Family::ALL.iter().copied().filter(|family| family.name() == name).collect(),
    };
    if !families.is_empty() {
        return (0..count)
            .map(|index| {
                let family = families[index % families.len()];
                let request = Request { split: Split::HeldOut, ..Request::new(family, seed) };
                generate(&request, (index / families.len()) as u64).map_err(|error| error.to_string())
            })
            .collect();
    }
    let path = Path::new(tasks);
    if !path.is_file() {
        let names: Vec<&str> = Family::ALL.iter().map(|family| family.name()).collect();
        return Err(format!(
            "`{tasks}` is neither a task nor a file; give `default`, a file of records, or one of {}",
            names.join(", ")
        ));
    }
    let records = records(path)?;
    let mut ids = HashSet::new();
    if let Some(record) = records.iter().find(|record| !ids.insert(record.problem.id.as_str())) {
        return Err(format!("{tasks} has the id `{}` twice; give every problem its own", record.problem.id));
    }
    Ok(records.into_iter().take(count).map(|record| record.problem).collect())
}

/// The records of a file: our own, or rows as published that `import` knows, such as GSM8K's.
fn records(path: &Path) -> Result<Vec<Record>, String> {
    let ours = match read_jsonl(path) {
        Ok(records) => return Ok(records),
        Err(error) => error.to_string(),
    };
    let file = File::open(path).map_err(|error| format!("{} can't be read: {error}", path.display()))?;
    let (records, report) = import(BufReader::new(file), &path.to_string_lossy(), None)
        .map_err(|error| format!("{} can't be read: {error}", path.display()))?;
    match report.complaints.first() {
        None => Ok(records),
        // What no row could be imported from was meant as records.
        Some(_) if records.is_empty() => Err(ours),
        Some(complaint) => Err(format!(
            "{}:{}: {}; mend the {} such rows, or take them out with `reflect-run data import`",
            path.display(),
            complaint.line,
            complaint.detail,
            report.complaints.len()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_tasks_are_held_out_and_balanced() {
        let problems = problems("default", 270, 3).unwrap();
        assert_eq!(problems.len(), 270);
        assert!(problems.iter().all(|problem| problem.split == Split::HeldOut));
        for family in Family::DEFAULT {
            let of = problems.iter().filter(|problem| problem.family == family.name()).count();
            assert_eq!(of, 270 / Family::DEFAULT.len());
        }
        let ids: std::collections::HashSet<&str> = problems.iter().map(|p| p.id.as_str()).collect();
        assert_eq!(ids.len(), 270, "ids are unique: outcomes are kept by id");
    }

    #[test]
    fn an_unknown_task_is_one_sentence() {
        let error = problems("no-such-task", 1, 0).unwrap_err();
        assert!(error.contains("no-such-task") && error.contains("multiplication"), "{error}");
    }

    #[test]
    fn published_rows_need_no_import() {
        let path = std::env::temp_dir().join(format!("reflect-eval-rows-{}.jsonl", std::process::id()));
        let row = r#"{"question": "q?", "answer": "1+1 = <<1+1=2>>2\n#### 2"}"#;
        std::fs::write(&path, format!("{row}\n{row}\n")).unwrap();
        let read = problems(path.to_str().unwrap(), 9, 0).unwrap();
        assert_eq!(read.iter().map(|problem| problem.answer.as_str()).collect::<Vec<_>>(), ["2", "2"]);
        std::fs::write(&path, format!("{row}\n{{\"question\": \n")).unwrap();
        let error = problems(path.to_str().unwrap(), 9, 0).unwrap_err();
        assert!(error.contains(":2:") && error.contains("data import"), "{error}");
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn an_id_stands_for_one_problem() {
        let path = std::env::temp_dir().join(format!("reflect-eval-ids-{}.jsonl", std::process::id()));
        let problem = serde_json::to_string(&problems("state", 1, 0).unwrap()[0]).unwrap();
        std::fs::write(&path, format!("{problem}\n{problem}\n")).unwrap();
        let error = problems(path.to_str().unwrap(), 2, 0).unwrap_err();
        assert!(error.contains("twice") && error.contains("state/held-out/000000"), "{error}");
        std::fs::remove_file(path).unwrap();
    }
}
