//! `config.json` as Hugging Face writes it.

use serde::Deserialize;
use serde_json::Value as Json;

use super::{ConfigError, RopeScaling, invalid, required, shown};

/// The fields of `config.json` that matter here.
#[derive(Deserialize)]
pub(super) struct HfConfig {
    pub(super) architectures: Option<Vec<String>>,
    pub(super) model_type: Option<String>,
    pub(super) hidden_act: Option<String>,
    pub(super) quantization_config: Option<Json>,
    pub(super) hidden_size: Option<usize>,
    pub(super) intermediate_size: Option<usize>,
    pub(super) num_hidden_layers: Option<usize>,
    pub(super) num_attention_heads: Option<usize>,
    pub(super) num_key_value_heads: Option<usize>,
    pub(super) head_dim: Option<usize>,
    pub(super) vocab_size: Option<usize>,
    pub(super) max_position_embeddings: Option<usize>,
    pub(super) rms_norm_eps: Option<f64>,
    pub(super) rope_theta: Option<f64>,
    pub(super) rope_scaling: Option<HfRope>,
    pub(super) rope_parameters: Option<HfRope>,
    pub(super) tie_word_embeddings: Option<bool>,
    pub(super) attention_bias: Option<bool>,
    pub(super) mlp_bias: Option<bool>,
    #[serde(default)]
    pub(super) bos_token_id: Json,
    #[serde(default)]
    pub(super) eos_token_id: Json,
}

impl HfConfig {
    pub(super) fn check_architecture(&self) -> Result<(), ConfigError> {
        let llama = match &self.architectures {
            Some(names) => names.iter().any(|name| name.eq_ignore_ascii_case("LlamaForCausalLM")),
            None => self.model_type.as_deref() == Some("llama"),
        };
        if !llama {
            let named = self.architectures.iter().flatten().next().or(self.model_type.as_ref());
            return Err(ConfigError::Architecture(shown(named.map_or("missing", String::as_str))));
        }
        if let Some(act) = self.hidden_act.as_ref().filter(|act| *act != "silu") {
            return invalid("hidden_act", shown(act), "silu".into());
        }
        if self.quantization_config.as_ref().is_some_and(|q| !q.is_null()) {
            return invalid("quantization_config", "present", "absent (GGUF files may be quantised)".into());
        }
        Ok(())
    }
}

/// `rope_scaling` and `rope_parameters`, which name the kind by `type` or `rope_type` or both.
#[derive(Deserialize)]
pub(super) struct HfRope {
    pub(super) rope_type: Option<String>,
    pub(super) r#type: Option<String>,
    pub(super) rope_theta: Option<f64>,
    pub(super) factor: Option<f64>,
    pub(super) low_freq_factor: Option<f64>,
    pub(super) high_freq_factor: Option<f64>,
    pub(super) original_max_position_embeddings: Option<usize>,
}

impl HfRope {
    pub(super) fn scaling(&self) -> Result<RopeScaling, ConfigError> {
        let kind = self.rope_type.as_deref().or(self.r#type.as_deref()).unwrap_or("default");
        match kind {
            "default" => Ok(RopeScaling::None),
            "linear" => Ok(RopeScaling::Linear { factor: required(self.factor, "rope factor")? }),
            "llama3" => Ok(RopeScaling::Llama3 {
                factor: required(self.factor, "rope factor")?,
                low_freq_factor: required(self.low_freq_factor, "low_freq_factor")?,
                high_freq_factor: required(self.high_freq_factor, "high_freq_factor")?,
                original_max_position_embeddings: required(
                    self.original_max_position_embeddings,
                    "original_max_position_embeddings",
                )?,
            }),
            other => invalid("rope_type", shown(other), "default, linear or llama3".into()),
        }
    }
}
