//! The fields of a model by the modules of the table, for code that treats all weights alike.

use burn::tensor::Tensor;
use reflect_kernels::PackedMatrix;

use super::{Block, Linear, Llama};
use crate::architecture::Module;

/// What a module holds.
#[derive(Clone, Copy, Debug)]
pub enum ModuleRef<'a> {
    Matrix(&'a PackedMatrix),
    Linear(&'a Linear),
    Vector(&'a Tensor<1>),
}

/// What a module holds, to be changed.
#[derive(Debug)]
pub enum ModuleMut<'a> {
    Matrix(&'a mut PackedMatrix),
    Linear(&'a mut Linear),
    Vector(&'a mut Tensor<1>),
}

impl ModuleRef<'_> {
    /// Bytes on the device, without adapters.
    fn bytes(self) -> u64 {
        let vector = |values: &Tensor<1>| 4 * values.dims()[0] as u64;
        match self {
            Self::Matrix(matrix) => matrix.bytes(),
            Self::Linear(linear) => linear.weight.bytes() + linear.bias.as_ref().map_or(0, vector),
            Self::Vector(values) => vector(values),
        }
    }
}

impl Block {
    /// Its modules, in the order of the table.
    pub fn modules(&self) -> [(Module, ModuleRef<'_>); 6] {
        use ModuleRef::{Linear, Vector};
        [
            (Module::InputNorm, Vector(&self.input_layernorm)),
            (Module::PostNorm, Vector(&self.post_attention_layernorm)),
            (Module::Qkv, Linear(&self.qkv_proj)),
            (Module::Output, Linear(&self.o_proj)),
            (Module::GateUp, Linear(&self.gate_up_proj)),
            (Module::Down, Linear(&self.down_proj)),
        ]
    }

    /// As [`modules`](Self::modules), to be changed.
    pub fn modules_mut(&mut self) -> [(Module, ModuleMut<'_>); 6] {
        use ModuleMut::{Linear, Vector};
        [
            (Module::InputNorm, Vector(&mut self.input_layernorm)),
            (Module::PostNorm, Vector(&mut self.post_attention_layernorm)),
            (Module::Qkv, Linear(&mut self.qkv_proj)),
            (Module::Output, Linear(&mut self.o_proj)),
            (Module::GateUp, Linear(&mut self.gate_up_proj)),
            (Module::Down, Linear(&mut self.down_proj)),
        ]
    }
}

impl Llama {
    /// Every module with its layer, in the order of the table. A tied head is not one.
    pub fn modules(&self) -> Vec<(Module, Option<usize>, ModuleRef<'_>)> {
        let mut all = vec![(Module::Embedding, None, ModuleRef::Matrix(&self.embed_tokens))];
        for (layer, block) in self.layers.iter().enumerate() {
            all.extend(block.modules().map(|(module, held)| (module, Some(layer), held)));
        }
        all.push((Module::FinalNorm, None, ModuleRef::Vector(&self.norm)));
        if !self.config.tie_word_embeddings {
            all.push((Module::Head, None, ModuleRef::Matrix(&self.lm_head)));
        }
        all
    }

    /// As [`modules`](Self::modules), to be changed.
    pub fn modules_mut(&mut self) -> Vec<(Module, Option<usize>, ModuleMut<'_>)> {
        let mut all = vec![(Module::Embedding, None, ModuleMut::Matrix(&mut self.embed_tokens))];
        for (layer, block) in self.layers.iter_mut().enumerate() {
            all.extend(block.modules_mut().map(|(module, held)| (module, Some(layer), held)));
        }
        all.push((Module::FinalNorm, None, ModuleMut::Vector(&mut self.norm)));
        if !self.config.tie_word_embeddings {
            all.push((Module::Head, None, ModuleMut::Matrix(&mut self.lm_head)));
        }
        all
    }

    /// Bytes of all weights on the devices; a tied head counts once where it is the embedding itself.
    pub fn weight_bytes(&self) -> u64 {
        let second = self.config.tie_word_embeddings && self.stages.len() > 1;
        let head = if second { self.lm_head.bytes() } else { 0 };
        self.modules().into_iter().map(|(.., held)| held.bytes()).sum::<u64>() + head
    }
}
