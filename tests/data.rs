//! `reflect-run data`: from problems to reflections and back to counts, and what it says about bad files.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::Value;

/// A folder that goes when the test ends.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("reflect-data-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a temporary folder");
        Self(path)
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("a plain path").to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn data(args: &[&str]) -> Output {
    let test = std::env::current_exe().expect("a test has a path");
    let release = test.ancestors().nth(2).expect("tests lie in a target folder");
    let program = release.join(format!("reflect-run{}", std::env::consts::EXE_SUFFIX));
    Command::new(program).arg("data").args(args).output().expect("the program starts")
}

/// The report of a step that must work.
fn report(args: &[&str]) -> Value {
    let output = data(&[args, &["--json"]].concat());
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("the report is one JSON value")
}

fn lines(path: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(Path::new(path)).expect("the file was written");
    text.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect()
}

#[test]
fn the_steps_fit_together_and_their_counts_add_up() {
    let folder = Folder::new("chain");
    let (problems, samples) = (folder.file("problems.jsonl"), folder.file("samples.jsonl"));
    let made = report(&["generate", "--out", &problems, "--seed", "7", "--count", "900"]);
    assert_eq!(made["problems"], 900);
    let by_family = made["by_family"].as_object().expect("counts by family");
    assert_eq!(by_family.len(), 9);
    assert_eq!(by_family.values().filter_map(Value::as_u64).sum::<u64>(), 900);

    let reflected = report(&["reflect", "--in", &problems, "--out", &samples, "--seed", "7"]);
    let rows = lines(&samples);
    assert_eq!((reflected["samples"].as_u64(), rows.len()), (Some(900), 900));
    let kind = |row: &Value, kind: &str| {
        let spans = row["spans"].as_array().map_or(&[][..], Vec::as_slice);
        spans.iter().filter(|span| span["kind"] == kind).count() as u64
    };
    let count = |name: &str| rows.iter().map(|row| kind(row, name)).sum::<u64>();
    assert_eq!(reflected["corrective"].as_u64(), Some(count("corrective_reflection")));
    assert_eq!(reflected["confirming"].as_u64(), Some(count("confirming_reflection")));
    // Each mistake has its reflection and its correction, and only hard problems have any.
    assert!(count("mistake") > 50);
    assert_eq!(count("mistake"), count("corrective_reflection"));
    assert_eq!(count("mistake"), count("correction"));
    for row in rows.iter().filter(|row| row["difficulty"] != "hard") {
        assert_eq!(kind(row, "corrective_reflection") + kind(row, "confirming_reflection"), 0);
    }

    let page = folder.file("stats.html");
    let stats = report(&["stats", "--in", &samples, "--out", &page]);
    assert_eq!(stats["records"], 900, "{stats}");
    assert!(std::fs::read_to_string(page).expect("the page").contains("<svg"));
    let shown = data(&["inspect", "--in", &samples, "--count", "3"]);
    assert!(shown.status.success() && !shown.stdout.is_empty());
}

#[test]
fn the_same_seed_gives_the_same_file_and_splits_share_no_template() {
    let folder = Folder::new("seed");
    let (a, b, held) = (folder.file("a.jsonl"), folder.file("b.jsonl"), folder.file("held.jsonl"));
    report(&["generate", "--out", &a, "--seed", "3", "--count", "450"]);
    report(&["generate", "--out", &b, "--seed", "3", "--count", "450"]);
    report(&["generate", "--out", &held, "--seed", "3", "--count", "450", "--split", "held-out"]);
    assert_eq!(std::fs::read(&a).expect("a"), std::fs::read(&b).expect("b"));
    let templates = |path: &str| -> std::collections::BTreeSet<String> {
        lines(path).iter().map(|row| row["template"].to_string()).collect()
    };
    assert!(templates(&a).is_disjoint(&templates(&held)));
}

#[test]
fn bad_files_are_named_with_their_line() {
    let folder = Folder::new("bad");
    let (bad, out) = (folder.file("bad.jsonl"), folder.file("out.jsonl"));
    std::fs::write(&bad, "{\"id\": 1}\n").expect("the file");
    let output = data(&["reflect", "--in", &bad, "--out", &out]);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.contains("bad.jsonl:1") && message.trim_end().lines().count() == 1, "{message}");
    assert!(!Path::new(&out).exists());

    // An import goes on without the bad lines, names them and counts them.
    let row = r#"{"question": "q?", "answer": "Half is 48/2 = <<48/2=24>>24.\n#### 24"}"#;
    std::fs::write(&bad, format!("{row}\n{{broken\n{row}\n")).expect("the file");
    let output = data(&["import", "--in", &bad, "--out", &out]);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && message.contains("bad.jsonl:2"), "{message}");
    assert_eq!(lines(&out).len(), 2);

    let output = data(&["generate", "--out", &out, "--families", "poetry"]);
    assert_eq!(output.status.code(), Some(2));
    let output = data(&["reflect", "--in", &out, "--out", &out, "--corrective-share", "2"]);
    assert_eq!(output.status.code(), Some(2));
}
