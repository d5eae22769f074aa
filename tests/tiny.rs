//! The checkpoints that ship with the program write the tokens that transformers chooses, on every
//! device. `web/verify.mjs` asks the same of a browser.

use std::path::Path;

use pollster::block_on;
use reflect_kernels::device::OpenDevice;
use reflect_llm::{
    Engine, LlamaConfig, Request,
    draft::{Drafter, ModelDrafter},
    safetensors_dir::{SafetensorsFiles, config_of_dir, open_dir},
    sampler::SamplingParams,
    weights::MmapFile,
};
use reflect_tests::{as_gpus, devices, exact, golden, is_cpu, load};
use serde_json::Value;

/// Where the lead of a token is smaller, f32 may choose another.
const GAP: f64 = 1e-3;

/// A checkpoint of `models/` with what it must answer.
struct Shipped {
    config: LlamaConfig,
    weights: SafetensorsFiles<MmapFile>,
    /// The token that ends an answer.
    end: u32,
    answers: Vec<Answer>,
}

struct Answer {
    prompt: Vec<u32>,
    answer: Vec<u32>,
}

fn shipped(name: &str) -> Shipped {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models").join(name);
    let text = std::fs::read(golden::root().join(format!("tiny/{name}.json"))).expect("golden answers");
    let golden: Value = serde_json::from_slice(&text).expect("JSON");
    let ids = |value: &Value| -> Vec<u32> {
        value.as_array().expect("ids").iter().map(|id| id.as_u64().expect("an id") as u32).collect()
    };
    let answers = golden["answers"].as_array().expect("answers").iter().enumerate();
    let answers = answers.map(|(number, answer)| {
        assert!(
            answer["gap"].as_f64().expect("a gap") >= GAP,
            "{name}: prompt {number} is too close to call"
        );
        Answer { prompt: ids(&answer["prompt"]), answer: ids(&answer["answer"]) }
    });
    Shipped {
        config: config_of_dir(&folder).expect("a configuration"),
        weights: block_on(open_dir(&folder)).expect("weights"),
        end: golden["end"].as_u64().expect("an id") as u32,
        answers: answers.collect(),
    }
}

impl Shipped {
    fn engine(&self, open: &OpenDevice) -> Engine {
        Engine::new(load(&self.config, &self.weights, open), exact(1024, 64))
    }

    /// Asks for the first `count` answers on `open`.
    fn assert_answers(&self, name: &str, open: &OpenDevice, count: usize) {
        let mut engine = self.engine(open);
        for (number, Answer { prompt, answer }) in self.answers.iter().take(count).enumerate() {
            let request = Request { prompt: prompt.clone(), sampling: SamplingParams::greedy() };
            let id = engine.submit(request).expect("it fits");
            let mut written = Vec::new();
            while written.len() < answer.len() && written.last() != Some(&self.end) {
                let report = block_on(engine.step(&mut ())).expect("a step");
                written.extend(report.sampled.iter().map(|(_, sampled)| sampled.id));
            }
            engine.cancel(id);
            assert_eq!(&written, answer, "prompt {number} of {name} on {}", open.name);
        }
    }
}

#[test]
fn the_shipped_models_answer_alike_on_every_device() {
    for name in ["reflect-tiny", "reflect-micro"] {
        let shipped = shipped(name);
        for open in devices() {
            shipped.assert_answers(name, &open, shipped.answers.len());
        }
    }
}

#[test]
fn the_kernels_of_gpus_write_the_same_answer() {
    for open in as_gpus() {
        shipped("reflect-tiny").assert_answers("reflect-tiny", &open, 1);
    }
}

/// Who drafts: the text itself, the same model, or somebody who is always wrong.
enum Drafts {
    Model(Drafter),
    Wrong,
}

#[test]
fn drafts_do_not_change_the_answers() {
    let (tiny, micro) = (shipped("reflect-tiny"), shipped("reflect-micro"));
    for open in devices() {
        let model =
            |of: &Shipped| Drafts::Model(Drafter::Model(Box::new(ModelDrafter::new(of.engine(&open), 5))));
        let drafters = [
            ("ngram", Drafts::Model(Drafter::Ngram { most: 8 })),
            ("the model itself", model(&tiny)),
            ("reflect-micro", model(&micro)),
            ("always wrong", Drafts::Wrong),
        ];
        let mut engine = tiny.engine(&open);
        for (name, mut drafter) in drafters {
            let (mut steps, mut tokens) = (0, 0);
            // All of them take a minute on a software adapter.
            let answers = tiny.answers.iter().enumerate();
            for (number, Answer { prompt, answer: expected }) in
                answers.take(if is_cpu(&open) { usize::MAX } else { 3 })
            {
                let start = prompt.len();
                let request = Request { prompt: prompt.clone(), sampling: SamplingParams::greedy() };
                let id = engine.submit(request).expect("it fits");
                let mut written = Vec::new();
                while written.len() < expected.len() && written.last() != Some(&tiny.end) {
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
                assert_eq!(&written, expected, "prompt {number} on {}, drafts by {name}", open.name);
                tokens += written.len();
            }
            println!("{}: {tokens} tokens in {steps} steps, drafts by {name}", open.name);
            match name {
                "ngram" | "reflect-micro" => assert!(steps < tokens),
                "the model itself" => assert!(steps * 4 < tokens),
                _ => assert!(steps >= tokens),
            }
            assert_eq!(engine.free_positions(), 1024, "pages that nobody holds");
        }
    }
}
