//! The checkpoint that ships with the program writes the tokens that transformers chooses, on every
//! device. `web/verify.mjs` asks the same of a browser.

use std::path::Path;

use pollster::block_on;
use reflect_llm::{
    Engine, Request,
    draft::{Drafter, ModelDrafter},
    safetensors_dir::{config_of_dir, open_dir},
    sampler::SamplingParams,
};
use reflect_tests::{devices, exact, golden, is_cpu, load};
use serde_json::Value;

/// Where the lead of a token is smaller, f32 may choose another.
const GAP: f64 = 1e-3;

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().expect("ids").iter().map(|id| id.as_u64().expect("an id") as u32).collect()
}

#[test]
fn the_shipped_model_answers_alike_on_every_device() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/reflect-tiny");
    let config = config_of_dir(&folder).expect("a configuration");
    let weights = block_on(open_dir(&folder)).expect("weights");
    let text = std::fs::read(golden::root().join("tiny/greedy.json")).expect("golden answers");
    let golden: Value = serde_json::from_slice(&text).expect("JSON");
    let end = golden["end"].as_u64().expect("an id") as u32;
    for open in devices() {
        let model = load(&config, &weights, &open);
        let mut engine = Engine::new(model, exact(1024, 64));
        for (number, answer) in golden["answers"].as_array().expect("answers").iter().enumerate() {
            assert!(answer["gap"].as_f64().expect("a gap") >= GAP, "prompt {number} is too close to call");
            let expected = ids(&answer["answer"]);
            let prompt = ids(&answer["prompt"]);
            let id = engine.submit(Request { prompt, sampling: SamplingParams::greedy() }).expect("it fits");
            let mut written = Vec::new();
            while written.len() < expected.len() && written.last() != Some(&end) {
                let report = block_on(engine.step(&mut ())).expect("a step");
                written.extend(report.sampled.iter().map(|(_, sampled)| sampled.id));
            }
            engine.cancel(id);
            assert_eq!(written, expected, "prompt {number} on {}", open.name);
        }
    }
}

/// Who drafts: the text itself, the same model, or somebody who is always wrong.
enum Drafts {
    Model(Drafter),
    Wrong,
}

#[test]
fn drafts_do_not_change_the_answers() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/reflect-tiny");
    let config = config_of_dir(&folder).expect("a configuration");
    let weights = block_on(open_dir(&folder)).expect("weights");
    let text = std::fs::read(golden::root().join("tiny/greedy.json")).expect("golden answers");
    let golden: Value = serde_json::from_slice(&text).expect("JSON");
    let end = golden["end"].as_u64().expect("an id") as u32;
    for open in devices() {
        let engine = || Engine::new(load(&config, &weights, &open), exact(1024, 64));
        let own = ModelDrafter::new(engine(), 5);
        let drafters = [
            ("ngram", Drafts::Model(Drafter::Ngram { most: 8 })),
            ("the model itself", Drafts::Model(Drafter::Model(Box::new(own)))),
            ("always wrong", Drafts::Wrong),
        ];
        let mut engine = engine();
        for (name, mut drafter) in drafters {
            let (mut steps, mut tokens) = (0, 0);
            // All of them take a minute on a software adapter.
            let answers = golden["answers"].as_array().expect("answers").iter().enumerate();
            for (number, answer) in answers.take(if is_cpu(&open) { usize::MAX } else { 3 }) {
                let (prompt, expected) = (ids(&answer["prompt"]), ids(&answer["answer"]));
                let start = prompt.len();
                let id =
                    engine.submit(Request { prompt, sampling: SamplingParams::greedy() }).expect("it fits");
                let mut written = Vec::new();
                while written.len() < expected.len() && written.last() != Some(&end) {
                    let known = engine.tokens(id).expect("the sequence is there");
                    let draft = match &mut drafter {
                        Drafts::Model(drafter) => block_on(drafter.draft(known)).expect("a draft"),
                        // What comes next is known here, and so is what does not.
                        Drafts::Wrong => vec![(expected[known.len() - start] + 1) % 700; 3],
                    };
                    let report = block_on(engine.step_drafted(id, &draft, &mut ())).expect("a step");
                    written.extend(report.sampled.iter().map(|(_, sampled)| sampled.id));
                    steps += 1;
                }
                engine.cancel(id);
                // The last step may have written past the golden answer's end.
                written.truncate(expected.len());
                assert_eq!(written, expected, "prompt {number} on {}, drafts by {name}", open.name);
                tokens += written.len();
            }
            println!("{}: {tokens} tokens in {steps} steps, drafts by {name}", open.name);
            match name {
                "ngram" => assert!(steps < tokens),
                "the model itself" => assert!(steps * 4 < tokens),
                _ => assert!(steps >= tokens),
            }
            assert_eq!(engine.free_positions(), 1024, "pages that nobody holds");
        }
    }
}
