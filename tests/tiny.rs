//! The checkpoint that ships with the program writes the tokens that transformers chooses, on every
//! device. `web/verify.mjs` asks the same of a browser.

use std::path::Path;

use pollster::block_on;
use reflect_llm::{
    Engine, Request,
    safetensors_dir::{config_of_dir, open_dir},
    sampler::SamplingParams,
};
use reflect_tests::{devices, exact, golden, load};
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
