//! The walls between crates, as cargo itself sees them: what a crate must not know, and the
//! features that burn must and must not have.

use std::{collections::BTreeMap, path::Path, process::Command};

/// Package names with the features they are built with.
type Tree = BTreeMap<String, Vec<String>>;

/// All normal dependencies of a package of this workspace for a target; `None` is this machine.
fn tree(package: &str, target: Option<&str>) -> Tree {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root).args(["tree", "--offline", "--locked", "--package", package]);
    cargo.args(["--edges", "normal", "--prefix", "none", "--format", "{p}|{f}"]);
    if let Some(target) = target {
        cargo.args(["--target", target]);
    }
    let output = cargo.output().expect("cargo starts");
    assert!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("cargo writes UTF-8");
    let mut tree = Tree::new();
    for line in text.lines() {
        let (package, features) = line.split_once('|').expect("package and features");
        let name = package.split(' ').next().unwrap_or_default().to_owned();
        // A line that repeats a package ends in `(*)`.
        let features = features.trim_end_matches(" (*)").split(',').map(str::to_owned);
        tree.entry(name).or_default().extend(features);
    }
    assert!(tree.contains_key(package), "cargo tree did not list {package}");
    tree
}

const WASM: Option<&str> = Some("wasm32-unknown-unknown");

fn assert_without(package: &str, target: Option<&str>, forbidden: &[&str]) {
    let tree = tree(package, target);
    for name in forbidden {
        // A name stands for its family: `burn` for `burn-tensor` too.
        let prefix = format!("{name}-");
        let found = tree.keys().find(|known| *known == name || known.starts_with(&prefix));
        assert_eq!(found, None, "{package} must not depend on {name}");
    }
}

#[test]
fn text_knows_no_tensors() {
    for target in [None, WASM] {
        assert_without(
            "reflect-text",
            target,
            &["burn", "cubecl", "wgpu", "naga", "reflect-kernels", "tokio"],
        );
    }
}

#[test]
fn data_knows_no_tensors_and_no_command_line() {
    let forbidden =
        ["burn", "cubecl", "wgpu", "naga", "reflect-kernels", "reflect-llm", "tokio", "clap", "anyhow"];
    assert_without("reflect-data", None, &forbidden);
}

#[test]
fn training_knows_no_runtime_and_no_command_line() {
    let forbidden = ["tokio", "clap", "rustyline", "indicatif", "anyhow", "ureq", "burn-autodiff"];
    assert_without("reflect-train", None, &forbidden);
}

#[test]
fn evaluation_knows_no_training_and_no_command_line() {
    let forbidden = ["reflect-train", "tokio", "clap", "rustyline", "indicatif", "anyhow", "ureq"];
    assert_without("reflect-eval", None, &forbidden);
}

#[test]
fn the_model_knows_no_runtime_and_no_command_line() {
    for target in [None, WASM] {
        assert_without("reflect-llm", target, &["tokio", "clap", "rustyline", "indicatif", "anyhow"]);
    }
}

#[test]
fn pictures_know_no_model() {
    for target in [None, WASM] {
        assert_without(
            "reflect-picture",
            target,
            &["burn", "cubecl", "wgpu", "reflect-llm", "tokio", "clap"],
        );
    }
}

#[test]
fn kernels_know_no_text_and_no_model() {
    for target in [None, WASM] {
        assert_without(
            "reflect-kernels",
            target,
            &["reflect-text", "reflect-llm", "tokenizers", "tokio", "clap"],
        );
    }
}

#[test]
fn no_c_library_reaches_the_browser() {
    assert_without("reflect-web", WASM, &["cc", "onig", "onig_sys", "tokio", "memmap2", "clap"]);
    assert_without("reflect-llm", WASM, &["onig", "memmap2"]);
}

#[test]
fn only_kernels_touch_the_compute_runtime() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for package in ["crates/reflect-llm", "crates/reflect-run", "crates/reflect-text"] {
        let manifest = std::fs::read_to_string(root.join(package).join("Cargo.toml")).expect("a manifest");
        for name in ["cubecl", "burn-wgpu", "burn-cubecl", "wgpu", "naga"] {
            let named = manifest
                .lines()
                .any(|line| line.starts_with(&format!("{name}.")) || line.starts_with(&format!("{name} ")));
            assert!(!named, "{package} must not depend on {name}");
        }
    }
}

/// `vulkan` and `metal` would make burn refuse WGSL; `fusion` would make our operations panic;
/// `autotune` would choose kernels by the clock.
#[test]
fn burn_has_the_features_that_it_must_have() {
    for (package, target) in [("reflect-run", None), ("reflect-web", WASM), ("reflect-llm", WASM)] {
        let tree = tree(package, target);
        let burn = tree.iter().filter(|(name, _)| name.starts_with("burn"));
        for (name, features) in burn {
            for forbidden in ["fusion", "autotune", "vulkan", "metal", "cuda", "rocm", "autodiff"] {
                assert!(!features.iter().any(|f| f == forbidden), "{package}: {name} has {forbidden}");
            }
        }
        let flex = &tree["burn-flex"];
        let has = |feature: &str| flex.iter().any(|known| known == feature);
        assert!(has("simd"), "{package}: burn-flex has {flex:?}");
        assert_eq!(has("rayon"), target.is_none(), "{package}: burn-flex has {flex:?}");
        assert_eq!(tree.keys().filter(|name| *name == "burn").count(), 1);
    }
}
