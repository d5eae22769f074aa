//! `config.json` as Hugging Face writes it.

use serde::Deserialize;
use serde_json::{Value as Json, json};

use crate::architecture::Role;

use super::{ConfigError, LlamaConfig, RopeScaling, invalid, required, shown};

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
        let quantised = self.quantization_config.as_ref().filter(|quantised| !quantised.is_null());
        if let Some(quantised) = quantised {
            let text = |key: &str| quantised.get(key).and_then(Json::as_str).unwrap_or("missing");
            let by_rows = match text("quant_method") {
                "compressed-tensors" => text("format") == "float-quantized",
                method => method == "fbgemm_fp8",
            };
            if !by_rows {
                let must = "absent, or fp8 with a scale for each row or tensor (GGUF files may be quantised)";
                return invalid("quantization_config", text("quant_method"), must.into());
            }
        }
        Ok(())
    }
}

/// A `config.json` for `config`, whose weights are stored as `torch_dtype` says, or in `fp8` where that
/// is set: then each row of a projection has a scale (the layout of compressed-tensors).
pub(super) fn to_json(config: &LlamaConfig, torch_dtype: &str, fp8: bool) -> Json {
    let scaling = match config.rope_freq_factors {
        // A table without a name is written as LongRoPE with one list for all lengths.
        Some(_) => config.named_scaling(),
        None => Some(config.rope_scaling),
    };
    let scaling = match scaling {
        None => json!({
            "rope_type": "longrope",
            "factor": 1.0,
            "original_max_position_embeddings": config.max_position_embeddings,
            "attention_factor": 1.0,
            "short_factor": config.all_factors(),
            "long_factor": config.all_factors(),
        }),
        Some(RopeScaling::None) => Json::Null,
        Some(RopeScaling::Linear { factor }) => json!({ "rope_type": "linear", "factor": factor }),
        Some(RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        }) => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_max_position_embeddings,
        }),
    };
    let mut json = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling,
        "hidden_act": "silu",
        "tie_word_embeddings": config.tie_word_embeddings,
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_ids,
        "torch_dtype": torch_dtype,
    });
    if fp8 {
        json["quantization_config"] = fp8_config();
    }
    json
}

/// The `quantization_config` of projections in fp8 with a scale for each row.
fn fp8_config() -> Json {
    json!({
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "ignore": [Role::Head.weight(None).module_name()],
        "config_groups": { "group_0": {
            "targets": ["Linear"],
            "input_activations": null,
            "weights": {
                "num_bits": 8, "type": "float", "strategy": "channel", "symmetric": true, "dynamic": false,
            },
        }},
    })
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
    pub(super) short_factor: Option<Vec<f32>>,
    pub(super) long_factor: Option<Vec<f32>>,
    pub(super) attention_factor: Option<f64>,
}

impl HfRope {
    fn kind(&self) -> &str {
        self.rope_type.as_deref().or(self.r#type.as_deref()).unwrap_or("default")
    }

    /// Divisors of the frequencies: those of a LongRoPE.
    pub(super) fn freq_factors(&self) -> Option<Vec<f32>> {
        self.long_factor.clone().filter(|_| self.kind() == "longrope")
    }

    pub(super) fn scaling(&self) -> Result<RopeScaling, ConfigError> {
        match self.kind() {
            "default" => Ok(RopeScaling::None),
            "longrope" if self.long_factor.is_some() && self.short_factor == self.long_factor => {
                match self.attention_factor {
                    Some(1.0) => Ok(RopeScaling::None),
                    other => {
                        let found = other.map_or_else(|| "missing".to_owned(), |factor| factor.to_string());
                        invalid("attention_factor", found, "1".into())
                    }
                }
            }
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
            other => {
                let must = "default, linear, llama3, or longrope with one list of factors for all lengths";
                invalid("rope_type", shown(other), must.into())
            }
        }
    }
}
