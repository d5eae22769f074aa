//! The default thresholds of decontamination on pairs that a person read and labelled; see
//! `tests/golden/decontamination/make_pairs.py`.

use reflect_data::decontaminate::{Settings, TestIndex};
use serde::Deserialize;

#[derive(Deserialize)]
struct Pair {
    source: String,
    training: String,
    test: String,
    same: bool,
}

#[test]
fn what_is_found_is_the_same_problem() {
    let text = include_str!("../../../tests/golden/decontamination/pairs.jsonl");
    let pairs: Vec<Pair> = text.lines().map(|line| serde_json::from_str(line).expect("a pair")).collect();
    assert!(pairs.len() > 100);
    let settings = Settings::default();
    let found = |pair: &&Pair| {
        let index = TestIndex::new(&[pair.test.as_str()], settings);
        index.compare(0, &pair.training).findings(&settings).any()
    };
    let hits: Vec<&Pair> = pairs.iter().filter(found).collect();
    let right = hits.iter().filter(|pair| pair.same).count();
    let precision = right as f64 / hits.len() as f64;
    println!("precision {precision:.3}: {right} of {} pairs that were found", hits.len());
    // GSM8K's own pairs alone, too: rewordings are the easy part.
    let own: Vec<&&Pair> = hits.iter().filter(|pair| pair.source == "gsm8k").collect();
    let own_right = own.iter().filter(|pair| pair.same).count();
    println!("precision among GSM8K's own pairs: {own_right} of {}", own.len());
    for source in ["rephrased", "gsm8k"] {
        let of = |pairs: &[&Pair]| pairs.iter().filter(|pair| pair.source == source && pair.same).count();
        let all: Vec<&Pair> = pairs.iter().collect();
        println!("recall of {source}: {} of {}", of(&hits), of(&all));
    }
    assert!(precision >= 0.9 && own_right as f64 >= 0.9 * own.len() as f64);
    assert!(hits.iter().filter(|pair| pair.source == "rephrased").count() >= 28);
}
