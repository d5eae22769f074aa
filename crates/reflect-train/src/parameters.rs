//! The tensors of a model that a run trains, in a fixed order and with fixed names.

use burn::tensor::{Int, Tensor};
use reflect_kernels::{PackedMatrix, ops::zeros};
use reflect_llm::{Llama, model::Linear};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// Every tensor of the model, which must be f32.
    Full,
    /// The adapters alone.
    Adapters,
}

/// A tensor on its way through an update.
#[derive(Clone, Debug)]
pub enum Parameter {
    /// Packed f32 rows of a matrix.
    Matrix(Tensor<1, Int>),
    Vector(Tensor<1>),
}

impl Parameter {
    /// Elements, with the padding of rows.
    pub fn len(&self) -> usize {
        match self {
            Self::Matrix(words) => words.dims()[0],
            Self::Vector(values) => values.dims()[0],
        }
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Calls `update` with each trained tensor and puts what it returns in its place. The tensor is taken
/// out of the model meanwhile, so that the update may write where it lies.
pub fn update(model: &mut Llama, scope: Scope, update: &mut dyn FnMut(&str, Parameter) -> Parameter) {
    let tied = model.config.tie_word_embeddings;
    if scope == Scope::Full {
        if tied {
            // A second owner of the embedding would make each update copy it.
            model.lm_head.parts.clear();
        }
        matrix(&mut model.embed_tokens, EMBED, update);
    }
    for (layer, block) in model.layers.iter_mut().enumerate() {
        let name = |part: &str| layer_name(layer, part);
        if scope == Scope::Full {
            vector(&mut block.input_layernorm, &name(INPUT_NORM), update);
            vector(&mut block.post_attention_layernorm, &name(POST_NORM), update);
        }
        let linears = [
            (&mut block.qkv_proj, QKV),
            (&mut block.o_proj, O),
            (&mut block.gate_up_proj, GATE_UP),
            (&mut block.down_proj, DOWN),
        ];
        for (linear, part) in linears {
            linear_parameters(linear, &name(part), scope, update);
        }
    }
    if scope == Scope::Full {
        vector(&mut model.norm, NORM, update);
        if tied {
            model.lm_head = model.embed_tokens.clone();
        } else {
            matrix(&mut model.lm_head, HEAD, update);
        }
    }
}

pub const EMBED: &str = "model.embed_tokens.weight";
pub const HEAD: &str = "lm_head.weight";
pub const NORM: &str = "model.norm.weight";
pub const INPUT_NORM: &str = "input_layernorm.weight";
pub const POST_NORM: &str = "post_attention_layernorm.weight";
pub const QKV: &str = "self_attn.qkv_proj";
pub const O: &str = "self_attn.o_proj";
pub const GATE_UP: &str = "mlp.gate_up_proj";
pub const DOWN: &str = "mlp.down_proj";

/// Name of a tensor of a layer.
pub fn layer_name(layer: usize, part: &str) -> String {
    format!("model.layers.{layer}.{part}")
}

/// Name of the weight of part `part` of a matrix.
pub fn part_name(matrix: &str, part: usize) -> String {
    format!("{matrix}.{part}")
}

/// Name of a linear's weight.
pub fn weight_name(linear: &str) -> String {
    format!("{linear}.weight")
}

/// Name of a linear's bias.
pub fn bias_name(linear: &str) -> String {
    format!("{linear}.bias")
}

/// Names of the two factors of the update of stacked matrix `stacked` of a linear.
pub fn lora_names(linear: &str, stacked: usize) -> [String; 2] {
    ["a", "b"].map(|factor| format!("{linear}.lora_{factor}.{stacked}"))
}

type Update<'a> = &'a mut dyn FnMut(&str, Parameter) -> Parameter;

fn linear_parameters(linear: &mut Linear, name: &str, scope: Scope, update: Update<'_>) {
    if scope == Scope::Full {
        matrix(&mut linear.weight, &weight_name(name), update);
        if let Some(bias) = &mut linear.bias {
            vector(bias, &bias_name(name), update);
        }
    }
    let adapter = linear.adapter.as_mut().filter(|_| scope == Scope::Adapters);
    for (stacked, part) in adapter.into_iter().flat_map(|adapter| &mut adapter.parts).enumerate() {
        let Some(low_rank) = &mut part.low_rank else { continue };
        let [a, b] = lora_names(name, stacked);
        matrix(&mut low_rank.a, &a, update);
        matrix(&mut low_rank.b, &b, update);
    }
}

fn matrix(matrix: &mut PackedMatrix, name: &str, update: Update<'_>) {
    for (at, part) in matrix.parts.iter_mut().enumerate() {
        let nothing = Tensor::empty([0], &part.words.device());
        let words = std::mem::replace(&mut part.words, nothing);
        if let Parameter::Matrix(words) = update(&part_name(name, at), Parameter::Matrix(words)) {
            part.words = words;
        }
    }
}

fn vector(values: &mut Tensor<1>, name: &str, update: Update<'_>) {
    let nothing = Tensor::empty([0], &values.device());
    let taken = std::mem::replace(values, nothing);
    if let Parameter::Vector(taken) = update(name, Parameter::Vector(taken)) {
        *values = taken;
    }
}

/// Gradients of the trained tensors by name, in the layout of their tensors.
#[derive(Clone, Debug, Default)]
pub struct Gradients(BTreeMap<String, Tensor<1>>);

impl Gradients {
    /// Zeros for each trained tensor of `model`.
    pub fn zeros(model: &mut Llama, scope: Scope) -> Self {
        let mut gradients = BTreeMap::new();
        update(model, scope, &mut |name, parameter| {
            let zeros = match &parameter {
                Parameter::Matrix(words) => zeros([parameter.len()], &words.device()),
                Parameter::Vector(values) => zeros([parameter.len()], &values.device()),
            };
            gradients.insert(name.to_owned(), zeros);
            parameter
        });
        Self(gradients)
    }

    /// Whether the tensor of that name is trained.
    pub fn wants(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Lets `add` add to the gradient of `name`; nothing happens if that tensor is not trained.
    pub fn add(&mut self, name: &str, add: impl FnOnce(Tensor<1>) -> Tensor<1>) {
        if let Some(gradient) = self.0.remove(name) {
            self.0.insert(name.to_owned(), add(gradient));
        }
    }

    /// The sums with the gradients of the same tensors.
    pub fn added_to(mut self, others: Self) -> Self {
        for (name, other) in others.0 {
            self.add(&name, |gradient| other + gradient);
        }
        self
    }

    /// Takes the gradient of `name` out.
    pub fn take(&mut self, name: &str) -> Option<Tensor<1>> {
        self.0.remove(name)
    }

    /// All gradients, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor<1>)> {
        self.0.iter().map(|(name, gradient)| (name.as_str(), gradient))
    }
}
