//! The WebAssembly build and the page that checks it in a browser.

use crate::process::{command, output, root, run, step, target};
use crate::setup;
use anyhow::{Context, Result};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

pub const TARGET: &str = "wasm32-unknown-unknown";

/// What compiles for wasm32.
pub enum Toolchain {
    /// The toolchain of rust-toolchain.toml, with the target installed.
    Pinned,
    /// Debian's `rustc-web`, which has no compiled standard library for wasm32, with the linker of the pinned toolchain.
    Debian { linker: PathBuf },
}

/// The toolchain that this machine can use, the pinned one first.
pub fn toolchain() -> Option<Toolchain> {
    let library = PathBuf::from(output("rustc", &["--print", "sysroot"])?).join("lib").join("rustlib");
    if library.join(TARGET).join("lib").is_dir() {
        return Some(Toolchain::Pinned);
    }
    let parts =
        ["/usr/bin/cargo", "/usr/bin/rustc", "/usr/bin/cargo-clippy", "/usr/lib/rustlib/src/rust/library"];
    let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let linker = library.join(host).join("bin").join("rust-lld");
    let complete = parts.iter().all(|part| Path::new(part).exists()) && linker.is_file();
    complete.then_some(Toolchain::Debian { linker })
}

/// `cargo <subcommand>` for wasm32, in the release profile.
pub fn cargo(subcommand: &str) -> Result<Command> {
    let toolchain =
        toolchain().context("No compiler for wasm32-unknown-unknown: run `cargo xtask setup`.")?;
    let mut cargo = match toolchain {
        Toolchain::Pinned => command("cargo", [subcommand]),
        Toolchain::Debian { linker } => {
            let mut cargo = command("/usr/bin/cargo", [subcommand, "-Zbuild-std=std,panic_abort"]);
            let mut path = OsString::from("/usr/bin:");
            path.push(std::env::var_os("PATH").unwrap_or_default());
            cargo
                .env("PATH", path)
                .env("RUSTC_BOOTSTRAP", "1")
                .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker);
            // Left by the pinned toolchain's cargo, which started us.
            for variable in ["RUSTUP_TOOLCHAIN", "LD_LIBRARY_PATH", "CARGO", "RUSTC"] {
                cargo.env_remove(variable);
            }
            cargo
        }
    };
    cargo.env("CARGO_TARGET_DIR", target_folder()?).args(["--release", "--target", TARGET]);
    Ok(cargo)
}

/// Compiles the crate in web/ and writes the package web/dist, unless it is newer than the code.
pub fn build() -> Result<()> {
    step("wasm build", cargo("build")?.args(["--package", "reflect-web"]))?;
    let compiled = target_folder()?.join(TARGET).join("release").join("reflect_web.wasm");
    let dist = root().join("web").join("dist");
    let module = "reflect_web_bg.wasm";
    let age = |file: &Path| fs::metadata(file).and_then(|found| found.modified());
    let built = age(&compiled)?;
    if age(&dist.join(module)).is_ok_and(|packed| packed >= built) {
        return copy_checkpoint(&dist);
    }
    let fresh = dist.with_extension("partial");
    let _ = fs::remove_dir_all(&fresh);
    let bindgen = ["--target", "web", "--no-typescript", "--out-name", "reflect_web", "--out-dir"];
    run(command(setup::wasm_bindgen()?, bindgen).arg(&fresh).arg(&compiled))?;
    if optimiser_works() {
        let packed = fresh.join(module);
        let smaller = fresh.join("smaller.wasm");
        step("wasm-opt", command("wasm-opt", OPTIMISER).arg(&packed).arg("-o").arg(&smaller))?;
        fs::rename(smaller, packed)?;
    } else {
        println!("Left as compiled: wasm-opt {OPTIMISER_SINCE} or newer (binaryen) would make it smaller.");
    }
    let _ = fs::remove_dir_all(&dist);
    fs::rename(fresh, &dist)?;
    copy_checkpoint(&dist)
}

/// Puts the shipped checkpoint, and the answers that it must give, beside the module.
fn copy_checkpoint(dist: &Path) -> Result<()> {
    let to = dist.join("reflect-tiny");
    fs::create_dir_all(&to)?;
    let model = root().join("models").join("reflect-tiny");
    let golden = root().join("tests").join("golden").join("tiny").join("greedy.json");
    for file in [model.join("config.json"), model.join("model.safetensors"), golden] {
        let name = file.file_name().context("a file has a name")?;
        fs::copy(&file, to.join(name)).with_context(|| format!("{} could not be copied.", file.display()))?;
    }
    Ok(())
}

/// Older ones mix up the tables of functions and of JavaScript values, and the module no longer loads.
const OPTIMISER_SINCE: u32 = 112;

/// What the compiler's wasm32 target uses, named one by one: `--all-features` would let it write what browsers do not read yet.
const OPTIMISER: [&str; 8] = [
    "-O2",
    "--enable-simd",
    "--enable-bulk-memory",
    "--enable-nontrapping-float-to-int",
    "--enable-sign-ext",
    "--enable-mutable-globals",
    "--enable-reference-types",
    "--enable-multivalue",
];

fn optimiser_works() -> bool {
    // "wasm-opt version 120 (version_120)"
    let version = output("wasm-opt", &["--version"]);
    let number = version.and_then(|text| text.split(' ').nth(2)?.parse::<u32>().ok());
    number.is_some_and(|number| number >= OPTIMISER_SINCE)
}

/// Runs every kernel in a headless browser.
pub fn verify() -> Result<()> {
    let mut node = command("node", ["web/verify.mjs"]);
    if let Some(browser) = setup::browser() {
        node.env("CHROMIUM", browser);
    }
    step("browser verify", &mut node)
}

/// Another compiler's files would take turns with ours in one folder, so Debian's has its own.
fn target_folder() -> Result<PathBuf> {
    let folder = target()?;
    Ok(match toolchain() {
        Some(Toolchain::Debian { .. }) => folder.join("web"),
        _ => folder,
    })
}
