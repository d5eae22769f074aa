//! Every variant of every shader is valid WGSL and can be written for Vulkan, Metal, DirectX and
//! OpenGL: the proof of portability where no such GPU is at hand.

use std::path::{Path, PathBuf};

use naga::{
    Module, ShaderStage,
    back::{glsl, hlsl, msl, spv},
    proc::BoundsCheckPolicies,
    valid::{Capabilities, ModuleInfo, ValidationFlags, Validator},
};
use reflect_kernels::{
    Format, KvFormat, KvShape, PairLayout, launch_cost,
    ops::{
        adamw, attention, cross_entropy, embed, embed_backward,
        fused::{self, Around},
        matmul, matmul_dw, matmul_dx, rms_norm, rms_norm_backward, rope, rope_append, segment_attention,
        swiglu, swiglu_backward, top_k,
    },
    shader::Shader,
};

/// Every variant that a launch can ask for.
fn variants() -> Vec<Shader> {
    let mut all = vec![swiglu::shader(), attention::combine_shader(), launch_cost::copy_shader()];
    for format in Format::ALL {
        all.push(embed::shader(format));
        let rows = (1..=6).flat_map(|tokens| {
            [(16, false, false), (8, true, false), (16, true, false), (8, true, true)]
                .map(|(lanes, shuffle, longs)| matmul::Variant::Rows { tokens, lanes, shuffle, longs })
        });
        let teams = [1, 2, 4].into_iter().flat_map(|tokens| {
            [(2, 32, 8, true), (4, 32, 4, true), (4, 16, 8, true), (2, 32, 8, false), (4, 32, 4, false)].map(
                |(rows, lanes, teams, subgroups)| {
                    let chunk = if tokens == 1 { 64 } else { 28 };
                    matmul::Variant::Teams { tokens, rows, lanes, teams, chunk, subgroups }
                },
            )
        });
        let others = teams.chain([matmul::Variant::Tiles]);
        for variant in rows.chain(others) {
            for shader in [false, true].map(|tail| matmul::shader(variant, format, tail)) {
                let shuffles = matches!(variant, matmul::Variant::Rows { shuffle: true, .. });
                let fuses = shuffles || matches!(variant, matmul::Variant::Teams { .. });
                let around = [false, true].map(|gated| Around::Norm { eps: 1e-5, gated });
                if shuffles {
                    for layout in [PairLayout::HalfSplit, PairLayout::Interleaved] {
                        let kv = KvShape { kv_heads: 3, head_dim: 64, format: KvFormat::F16, layout };
                        let tail = shader.constants.contains(&("TAIL", true.to_string()));
                        all.push(fused::rotated_shader(variant, format, tail, &kv));
                    }
                }
                for around in around.into_iter().chain([Around::Add]).filter(|_| fuses) {
                    let mut fused = shader.clone();
                    fused.constants.extend(fused::constants(around));
                    all.push(fused);
                }
                all.push(shader);
            }
        }
    }
    for (residual, subgroups) in [(false, false), (false, true), (true, false), (true, true)] {
        all.extend([4, 8, 64].map(|lanes| rms_norm::shader(residual, subgroups, lanes)));
    }
    for layout in [PairLayout::HalfSplit, PairLayout::Interleaved] {
        for format in [KvFormat::F32, KvFormat::F16, KvFormat::Q8] {
            let small = if format == KvFormat::Q8 { 16 } else { 8 };
            for head_dim in [small, 64, 80, 128, 256] {
                let kv = KvShape { kv_heads: 3, head_dim, format, layout };
                all.push(rope_append::shader(&kv));
                let two = [false, true].into_iter().flat_map(|flag| {
                    [
                        attention::Variant::Rows { prefill: flag },
                        attention::Variant::Workgroup { subgroups: flag },
                    ]
                });
                let heads = (1..=4).map(|heads| attention::Variant::Shuffle { lanes: 8, heads });
                for variant in two.chain(heads) {
                    all.extend([false, true].map(|single| attention::shader(&kv, variant, single)));
                }
            }
        }
    }
    for k in [1, 2, 17, top_k::MAX_K] {
        all.extend([false, true].map(|join| top_k::shader(k, join)));
    }
    all.extend(of_training());
    all
}

fn of_training() -> Vec<Shader> {
    let mut all = vec![
        adamw::shader_squares(),
        cross_entropy::shader_backward(),
        embed_backward::shader(),
        matmul_dw::shader(),
        rms_norm_backward::shader(),
        rms_norm_backward::shader_dw(),
        swiglu_backward::shader(),
    ];
    for flag in [false, true] {
        all.extend(Format::ALL.map(|format| matmul_dx::shader(format, flag)));
        all.extend([PairLayout::HalfSplit, PairLayout::Interleaved].map(|layout| rope::shader(layout, flag)));
        all.extend([cross_entropy::shader(flag), adamw::shader(flag)]);
    }
    for pass in
        [segment_attention::Pass::Forward, segment_attention::Pass::Queries, segment_attention::Pass::Keys]
    {
        all.extend([2, 8, 64, 80, 128].map(|head_dim| segment_attention::shader(pass, head_dim)));
    }
    all
}

/// Parses and validates, or panics with the place of the fault.
fn validate(what: &str, text: &str, capabilities: Capabilities) -> (Module, ModuleInfo) {
    let module = naga::front::wgsl::parse_str(text)
        .unwrap_or_else(|error| panic!("{what}: {}", error.emit_to_string(text)));
    let mut validator = Validator::new(ValidationFlags::all(), capabilities);
    let info =
        validator.validate(&module).unwrap_or_else(|error| panic!("{what}: {}", error.emit_to_string(text)));
    (module, info)
}

fn capabilities(shader: &Shader) -> Capabilities {
    // `unpack2x16float`, which WebGPU has everywhere.
    let base = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    let subgroups = if shader.subgroups { base | Capabilities::SUBGROUP } else { base };
    if has_longs(shader) { subgroups | Capabilities::SHADER_INT64 } else { subgroups }
}

/// Whether the text uses integers of 64 bits, which OpenGL and browsers don't have.
fn has_longs(shader: &Shader) -> bool {
    shader.sources.iter().any(|source| source.contains("u64"))
}

fn name(shader: &Shader) -> String {
    format!("{} {:?}", shader.name, shader.constants)
}

#[test]
fn every_variant_can_be_written_for_every_api() {
    let variants = variants();
    assert!(variants.len() >= 200, "only {} variants", variants.len());
    for shader in &variants {
        let what = name(shader);
        let (module, info) = validate(&what, &shader.text(), capabilities(shader));
        let entry = &module.entry_points[0];
        assert_eq!((module.entry_points.len(), entry.name.as_str()), (1, "main"), "{what}");
        assert_eq!(entry.workgroup_size, [shader.workgroup_size, 1, 1], "{what}");
        spirv(&module, &info).unwrap_or_else(|error| panic!("{what} as SPIR-V: {error}"));
        metal(&module, &info).unwrap_or_else(|error| panic!("{what} as MSL: {error}"));
        directx(&module, &info).unwrap_or_else(|error| panic!("{what} as HLSL: {error}"));
        if has_longs(shader) {
            continue;
        }
        for version in [glsl::Version::new_gles(310), glsl::Version::Desktop(430)] {
            opengl(&module, &info, version)
                .unwrap_or_else(|error| panic!("{what} as GLSL {version}: {error}"));
        }
    }
    println!("{} variants", variants.len());
}

fn spirv(module: &Module, info: &ModuleInfo) -> Result<Vec<u32>, spv::Error> {
    let options = spv::Options { lang_version: (1, 3), ..spv::Options::default() };
    spv::write_vec(module, info, &options, None)
}

fn metal(module: &Module, info: &ModuleInfo) -> Result<String, msl::Error> {
    let options = msl::Options { lang_version: (2, 4), ..msl::Options::default() };
    Ok(msl::write_string(module, info, &options, &msl::PipelineOptions::default())?.0)
}

fn directx(module: &Module, info: &ModuleInfo) -> Result<String, String> {
    let options = hlsl::Options { shader_model: hlsl::ShaderModel::V6_0, ..hlsl::Options::default() };
    let pipeline = hlsl::PipelineOptions { entry_point: None };
    let mut text = String::new();
    let written = hlsl::Writer::new(&mut text, &options, &pipeline)
        .write(module, info, None)
        .map_err(|error| error.to_string())?;
    // An entry point that cannot be written is reported beside the text.
    written.entry_point_names.into_iter().try_for_each(|name| name.map(drop)).map_err(|e| e.to_string())?;
    Ok(text)
}

fn opengl(module: &Module, info: &ModuleInfo, version: glsl::Version) -> Result<String, glsl::Error> {
    let options = glsl::Options { version, ..glsl::Options::default() };
    let pipeline = glsl::PipelineOptions {
        shader_stage: ShaderStage::Compute,
        entry_point: "main".to_owned(),
        multiview: None,
    };
    let mut text = String::new();
    let policies = BoundsCheckPolicies::default();
    glsl::Writer::new(&mut text, module, info, &options, &pipeline, policies)?.write()?;
    Ok(text)
}

/// The files of `shaders/`, those of `shared/` included.
fn files() -> Vec<(PathBuf, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shaders");
    let wgsl = |folder: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).expect("the folder of shaders exists");
        let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        paths.filter(|path| path.extension().is_some_and(|kind| kind == "wgsl")).collect()
    };
    let paths = [wgsl(&folder), wgsl(&folder.join("shared"))].concat();
    let with_text = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).expect("the shader can be read");
        (path, text)
    };
    paths.into_iter().map(with_text).collect()
}

#[test]
fn files_are_valid_as_they_lie_on_disk() {
    let files = files();
    let variants = variants();
    for (path, text) in &files {
        let user = variants.iter().find(|shader| shader.sources.iter().any(|source| source == text));
        assert!(user.is_some(), "{}: no variant uses it", path.display());
    }
    for shader in &variants {
        for source in shader.sources {
            let on_disk = files.iter().any(|(_, text)| text == source);
            assert!(on_disk, "{}: a source that is no file of shaders/", shader.name);
        }
        let what = format!("{} on disk", shader.name);
        validate(&what, &shader.sources.join("\n"), capabilities(shader));
    }
}

/// A pipeline is cached by name and constants, so these must tell all texts apart.
#[test]
fn variants_with_one_identity_have_one_text() {
    let mut seen = std::collections::HashMap::new();
    for shader in variants() {
        let text = shader.text();
        let known = seen.entry(name(&shader)).or_insert_with(|| text.clone());
        assert_eq!(*known, text, "{}", name(&shader));
    }
}
