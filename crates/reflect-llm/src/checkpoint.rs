//! A checkpoint of any kind, from any kind of files: what it says about itself, and its weights.

use std::borrow::Cow;
use std::ops::Range;

use reflect_text::{ChatTemplate, Tokenizer};

use crate::{
    config::LlamaConfig,
    gguf::GgufFile,
    safetensors_dir::SafetensorsFiles,
    weights::{ByteSource, ExtendedVocabulary, LoadError, TensorInfo, TensorSource},
};

/// What a checkpoint says about itself beside its weights.
pub struct Texts {
    pub config: LlamaConfig,
    pub tokenizer: Tokenizer,
    pub template: Option<ChatTemplate>,
}

/// The files of a Hugging Face folder that tell how to read and write text.
#[derive(Clone, Debug, Default)]
pub struct TokenizerFiles {
    /// `tokenizer.json`
    pub tokenizer: Vec<u8>,
    /// `tokenizer_config.json`, where there is one
    pub config: Option<Vec<u8>>,
    /// `chat_template.jinja`, where there is one
    pub chat_template: Option<Vec<u8>>,
}

impl Texts {
    /// Those of a Hugging Face folder with this configuration.
    ///
    /// # Errors
    /// If a file is damaged or asks for what is not supported.
    pub fn new(config: LlamaConfig, files: &TokenizerFiles) -> Result<Self, LoadError> {
        let tokenizer = Tokenizer::from_json(&files.tokenizer, files.config.as_deref())?;
        let own = files.chat_template.as_deref().map(std::str::from_utf8).transpose();
        let own = own.map_err(|error| LoadError::Damaged {
            file: "chat_template.jinja".to_owned(),
            problem: error.to_string(),
        })?;
        let template = ChatTemplate::of_checkpoint(&tokenizer, own)?;
        Ok(Self { config, tokenizer, template })
    }

    /// Reads them from a Hugging Face folder.
    ///
    /// # Errors
    /// If a file is missing or damaged.
    #[cfg(not(target_family = "wasm"))]
    pub fn open(folder: &std::path::Path) -> Result<Self, LoadError> {
        use crate::safetensors_dir::{config_of_dir, read_file};

        let optional = |name: &str| {
            let file = folder.join(name);
            file.exists().then(|| read_file(&file)).transpose()
        };
        let files = TokenizerFiles {
            tokenizer: read_file(&folder.join("tokenizer.json"))?,
            config: optional("tokenizer_config.json")?,
            chat_template: optional("chat_template.jinja")?,
        };
        Self::new(config_of_dir(folder)?, &files)
    }

    /// Those that a GGUF file holds.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub async fn of_gguf<S: ByteSource>(file: &GgufFile<S>) -> Result<Self, LoadError> {
        let config = file.config().await?;
        let tokenizer = Tokenizer::from_gguf(file.vocab()?)?;
        let template = ChatTemplate::of_checkpoint(&tokenizer, None)?;
        Ok(Self { config, tokenizer, template })
    }

    /// The tokens that end an answer.
    pub fn eos_ids(&self) -> Vec<u32> {
        let mut ids = self.config.eos_token_ids.clone();
        ids.extend(self.tokenizer.eos_ids());
        ids
    }
}

/// The weights of any kind of checkpoint.
pub enum Weights<S> {
    Gguf(GgufFile<S>),
    Folder(SafetensorsFiles<S>),
    ExtendedGguf(ExtendedVocabulary<GgufFile<S>>),
    ExtendedFolder(ExtendedVocabulary<SafetensorsFiles<S>>),
}

impl<S: ByteSource> Weights<S> {
    /// The same with an embedding of at least `rows` rows.
    ///
    /// # Errors
    /// As [`ExtendedVocabulary::new`].
    pub async fn extended(self, rows: usize) -> Result<Self, LoadError> {
        Ok(match self {
            Self::Gguf(file) => Self::ExtendedGguf(ExtendedVocabulary::new(file, rows).await?),
            Self::Folder(files) => Self::ExtendedFolder(ExtendedVocabulary::new(files, rows).await?),
            extended => extended,
        })
    }
}

/// Calls a method of whatever the weights are.
macro_rules! of_weights {
    ($weights:expr, $source:ident => $call:expr) => {
        match $weights {
            Weights::Gguf($source) => $call,
            Weights::Folder($source) => $call,
            Weights::ExtendedGguf($source) => $call,
            Weights::ExtendedFolder($source) => $call,
        }
    };
}

impl<S: ByteSource> TensorSource for Weights<S> {
    fn info(&self, name: &str) -> Option<&TensorInfo> {
        of_weights!(self, source => source.info(name))
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        of_weights!(self, source => Box::new(source.names()) as Box<dyn Iterator<Item = &str>>)
    }

    async fn read(&self, name: &str, rows: Range<usize>) -> Result<Cow<'_, [u8]>, LoadError> {
        of_weights!(self, source => source.read(name, rows).await)
    }

    fn total_bytes(&self) -> u64 {
        of_weights!(self, source => source.total_bytes())
    }

    fn release(&self, name: &str) {
        of_weights!(self, source => source.release(name));
    }
}
