//! From a `.wgsl` file to a launch: specialisation, kernel identity and bindings.
//!
//! Files under `shaders/` are valid WGSL as they lie on disk. A variant replaces the right-hand
//! side of `const` lines and nothing else, so every variant has the line numbers of its file.

use burn_wgpu::CubeTensor;
use cubecl::{
    CubeCount, CubeKernel, PrecompiledSource,
    ir::{ElemType, UIntKind, metadata::Info},
    prelude::{
        AddressType, CubeDim, ExecutionMode, KernelDefinition, KernelId, KernelMetadata, KernelSettings,
        Scope,
    },
    server::{KernelArguments, MetadataBindingInfo},
};

/// One op's WGSL together with the values of its specialisation constants.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Shader {
    /// Stem of the file in `shaders/`; with `constants` it identifies the compiled pipeline.
    pub name: &'static str,
    /// The file, and the shared helpers it calls; module scope in WGSL has no order.
    pub sources: &'static [&'static str],
    /// `(name, literal)` for each `const` line to replace.
    pub constants: Vec<(&'static str, String)>,
    /// Invocations per workgroup, as the file's `@workgroup_size` says.
    pub workgroup_size: u32,
    /// Whether the text uses subgroup built-ins, which browsers want enabled by name.
    pub subgroups: bool,
}

impl Shader {
    /// The WGSL text of this variant, as the backend of this target wants it.
    ///
    /// Inputs are declared `read` on disk. Natively several tensors share one pooled buffer, and
    /// wgpu refuses a buffer that one dispatch binds both read-only and writable, so there they
    /// become `read_write`. In a browser each tensor has a buffer of its own, and writable
    /// bindings must not alias, so there they stay `read`.
    ///
    /// # Panics
    /// If the file has no `const` line of a name in `constants`: a bug in this crate, found by
    /// the test that validates every variant.
    pub fn text(&self) -> String {
        let mut text = self.sources.join("\n");
        for (name, value) in &self.constants {
            let head = format!("const {name}: ");
            let start =
                text.find(&head).unwrap_or_else(|| panic!("shader {} has no constant {name}", self.name));
            let equals = start + text[start..].find('=').unwrap_or(0);
            let end = equals + text[equals..].find(';').unwrap_or(0);
            text.replace_range(equals..end, &format!("= {value}"));
        }
        if cfg!(target_family = "wasm") {
            if self.subgroups {
                text.insert_str(0, "enable subgroups;\n");
            }
        } else {
            text = text.replace("var<storage, read>", "var<storage, read_write>");
        }
        text
    }
}

/// burn's own wrapper for WGSL sources compiles them in its checked mode, which puts a counter into
/// each loop; ours are all bounded, and drivers unroll no loop that has one.
impl CubeKernel for Shader {
    fn define(&self) -> KernelDefinition {
        let dim = CubeDim::new_1d(self.workgroup_size);
        let settings = KernelSettings::new(dim.0, ExecutionMode::Unchecked, AddressType::U32);
        KernelDefinition { body: Scope::root(settings.clone()), settings, info: Info::default() }
    }

    fn source(&self) -> Option<PrecompiledSource> {
        Some(PrecompiledSource { source: self.text(), entrypoint_name: "main".to_owned(), lang: "wgsl" })
    }
}

impl KernelMetadata for Shader {
    fn id(&self) -> KernelId {
        // The mode of the id, not that of the definition, decides whether naga adds loop counters.
        KernelId::new::<Self>().info((self.name, self.constants.clone())).mode(ExecutionMode::Unchecked)
    }

    fn address_type(&self) -> ElemType {
        UIntKind::U32.into()
    }
}

/// Enqueues one dispatch of `shader` on the device of `buffers[0]`.
///
/// `buffers` are bound in order from binding 0; `params` (32-bit words, padded to 16 bytes) is
/// the uniform that follows them. Constant parameters cost nothing after the first launch, since
/// the runtime caches them by content; what changes each step must lie in a buffer.
///
/// # Panics
/// If a dimension of `workgroups` is over 65,535, the limit of every WebGPU device.
pub fn launch(shader: Shader, workgroups: [usize; 3], buffers: &[&CubeTensor], params: &[u32]) {
    assert!(
        workgroups.iter().all(|&n| n <= 65_535),
        "{}: {workgroups:?} workgroups are over the limit of 65,535 in a dimension",
        shader.name
    );
    if workgroups.contains(&0) {
        return;
    }
    let mut words: Vec<u64> = params
        .chunks(2)
        .map(|pair| u64::from(pair[0]) | u64::from(pair.get(1).copied().unwrap_or(0)) << 32)
        .collect();
    words.resize(words.len().next_multiple_of(2), 0);
    let client = buffers[0].client.clone();
    let count = CubeCount::Static(workgroups[0] as u32, workgroups[1] as u32, workgroups[2] as u32);
    let bindings = buffers.iter().map(|tensor| tensor.handle.clone().binding()).collect();
    client.launch(
        Box::new(shader),
        count,
        KernelArguments::new().with_buffers(bindings).with_info(MetadataBindingInfo::custom(words)),
    );
}

/// Folds a one-dimensional count of workgroups over two dimensions, since one dimension holds at
/// most 65,535. A kernel computes its index as `id.x + id.y * GRID_X` with `GRID_X = 32,768`.
pub fn grid(count: usize) -> [usize; 3] {
    if count <= GRID_X { [count, 1, 1] } else { [GRID_X, count.div_ceil(GRID_X), 1] }
}

/// Row length of [`grid`].
pub const GRID_X: usize = 32_768;

/// A literal for a `u32` constant.
pub fn u(value: usize) -> String {
    format!("{value}u")
}
