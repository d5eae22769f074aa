//! The problems of an evaluation.

use std::collections::HashSet;
use std::path::Path;

use reflect_data::{
    Problem, Split,
    checker::{Checker, CheckerError, ready},
    families::{Family, Request, generate},
    import::ImportReport,
    records::{RecordsError, read_records},
    words::{fingerprint, mix},
};

/// The problems of an evaluation.
#[derive(Debug, Default)]
pub struct Tasks {
    pub problems: Vec<Problem>,
    /// How the rows of a file were read, where they were no records.
    pub imported: Option<ImportReport>,
}

/// Why there are no problems: what happened and what to do, in one sentence.
#[derive(Debug, thiserror::Error)]
pub enum TasksError {
    #[error(
        "`{tasks}` is neither a task nor a file; give `default`, a file of records, or one of {families}"
    )]
    Unknown { tasks: String, families: String },
    #[error("{tasks} has the id `{id}` twice; give every problem its own")]
    SameId { tasks: String, id: String },
    #[error("`{tasks}` is judged by its own rules; a checker is for files")]
    OwnRules { tasks: String },
    #[error(transparent)]
    Generate(#[from] reflect_data::families::GenerateError),
    #[error(transparent)]
    Records(#[from] RecordsError),
    #[error(transparent)]
    Checker(#[from] CheckerError),
}

/// `default`: held-out problems of all default families, as many of each, and of each difficulty about
/// a third; the name of a family: held-out problems of that one; else a file of records or of rows that
/// `data import` knows, of which the seed chooses `count` and which stay in their order. `checker` judges
/// the problems that name none.
///
/// # Errors
/// [`TasksError`]: an unknown name that is no file either, a file that can't be read, or one with an id
/// twice: outcomes are kept by id. Problems that their checker can't judge.
pub fn problems(tasks: &str, count: usize, seed: u64, checker: Option<Checker>) -> Result<Tasks, TasksError> {
    let families: Vec<Family> = match tasks {
        "default" => Family::DEFAULT.to_vec(),
        name => Family::ALL.iter().copied().filter(|family| family.name() == name).collect(),
    };
    if !families.is_empty() {
        if checker.is_some() {
            return Err(TasksError::OwnRules { tasks: tasks.to_owned() });
        }
        let problem = |index: usize| {
            let family = families[index % families.len()];
            let request = Request { split: Split::HeldOut, ..Request::new(family, seed) };
            generate(&request, (index / families.len()) as u64)
        };
        let problems: Result<Vec<Problem>, _> = (0..count).map(problem).collect();
        return Ok(Tasks { problems: problems?, imported: None });
    }
    let path = Path::new(tasks);
    if !path.is_file() {
        let names: Vec<&str> = Family::ALL.iter().map(|family| family.name()).collect();
        return Err(TasksError::Unknown { tasks: tasks.to_owned(), families: names.join(", ") });
    }
    let found = read_records(path)?;
    let imported = found.imported.clone();
    let mut problems: Vec<Problem> = found.whole(path)?.into_iter().map(|record| record.problem).collect();
    let mut ids = HashSet::new();
    if let Some(problem) = problems.iter().find(|problem| !ids.insert(problem.id.as_str())) {
        return Err(TasksError::SameId { tasks: tasks.to_owned(), id: problem.id.clone() });
    }
    drop(ids);
    choose(&mut problems, count, seed);
    for problem in &mut problems {
        problem.checker = problem.checker.or(checker);
    }
    ready(&problems)?;
    Ok(Tasks { problems, imported })
}

/// Keeps `count` of the problems, those that the seed ranks first by their ids: a larger count keeps the
/// ones that a smaller one has.
fn choose(problems: &mut Vec<Problem>, count: usize, seed: u64) {
    if count >= problems.len() {
        return;
    }
    let rank = |problem: &Problem| mix(mix(seed) ^ fingerprint(&problem.id));
    let mut ranks: Vec<u64> = problems.iter().map(rank).collect();
    ranks.sort_unstable();
    let last = ranks.get(count).copied().unwrap_or(u64::MAX);
    problems.retain(|problem| rank(problem) < last);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_tasks_are_held_out_and_balanced() {
        let problems = problems("default", 270, 3, None).unwrap().problems;
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
        let error = problems("no-such-task", 1, 0, None).unwrap_err().to_string();
        assert!(error.contains("no-such-task") && error.contains("multiplication"), "{error}");
    }

    #[test]
    fn published_rows_need_no_import() {
        let path = std::env::temp_dir().join(format!("reflect-eval-rows-{}.jsonl", std::process::id()));
        let row = r#"{"question": "q?", "answer": "1+1 = <<1+1=2>>2\n#### 2"}"#;
        std::fs::write(&path, format!("{row}\n{row}\n")).unwrap();
        let read = problems(path.to_str().unwrap(), 9, 0, None).unwrap();
        assert!(read.imported.unwrap().shape_sentence().contains("gsm8k"));
        let read = read.problems;
        assert_eq!(read.iter().map(|problem| problem.answer.as_str()).collect::<Vec<_>>(), ["2", "2"]);
        std::fs::write(&path, format!("{row}\n{{\"question\": \n")).unwrap();
        let error = problems(path.to_str().unwrap(), 9, 0, None).unwrap_err().to_string();
        assert!(error.contains(":2:") && error.contains("data import"), "{error}");
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn an_id_stands_for_one_problem() {
        let path = std::env::temp_dir().join(format!("reflect-eval-ids-{}.jsonl", std::process::id()));
        let problem = serde_json::to_string(&problems("state", 1, 0, None).unwrap().problems[0]).unwrap();
        std::fs::write(&path, format!("{problem}\n{problem}\n")).unwrap();
        let error = problems(path.to_str().unwrap(), 2, 0, None).unwrap_err().to_string();
        assert!(error.contains("twice") && error.contains("state/held-out/000000"), "{error}");
        std::fs::remove_file(path).unwrap();
    }

    fn file(name: &str, rows: &[serde_json::Value]) -> String {
        let path = std::env::temp_dir().join(format!("reflect-eval-{name}-{}.jsonl", std::process::id()));
        let lines: Vec<String> = rows.iter().map(ToString::to_string).collect();
        std::fs::write(&path, lines.join("\r\n")).unwrap();
        path.to_str().unwrap().to_owned()
    }

    #[test]
    fn the_seed_chooses_the_rows() {
        let rows: Vec<_> = (0..50)
            .map(|n| serde_json::json!({"question": format!("{n}?"), "answer": n.to_string()}))
            .collect();
        let path = file("seed", &rows);
        let asked = |count, seed| -> Vec<String> {
            problems(&path, count, seed, None)
                .unwrap()
                .problems
                .into_iter()
                .map(|problem| problem.id)
                .collect()
        };
        assert_eq!(asked(10, 1), asked(10, 1));
        assert_ne!(asked(10, 1), asked(10, 2));
        let (few, more) = (asked(10, 1), asked(20, 1));
        assert!(few.len() == 10 && few.iter().all(|id| more.contains(id)) && few.is_sorted());
        assert_eq!(asked(99, 1).len(), 50);
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_checker_judges_rows_that_name_none() {
        let rows = [
            serde_json::json!({"prompt": "a", "response": "Paris"}),
            serde_json::json!({"prompt": "b", "response": "B", "checker": "choice"}),
        ];
        let path = file("checker", &rows);
        let found = problems(&path, 9, 0, Some(Checker::Contains)).unwrap().problems;
        let checkers: Vec<_> = found.iter().map(|problem| problem.checker).collect();
        assert_eq!(checkers, [Some(Checker::Contains), Some(Checker::Choice)]);
        let error = problems(&path, 9, 0, Some(Checker::Number)).unwrap_err().to_string();
        assert!(error.contains("has no number"), "{error}");
        let error = problems("default", 9, 0, Some(Checker::Number)).unwrap_err().to_string();
        assert!(error.contains("own rules"), "{error}");
        std::fs::remove_file(path).unwrap();
    }
}
