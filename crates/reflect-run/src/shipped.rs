//! The checkpoints inside the program, so that it answers without a network and without any file.

use std::path::{Path, PathBuf};

use anyhow::Result;
use reflect_data::io;

use crate::input;

/// A checkpoint of `models/`.
pub struct Shipped {
    /// Its name in the catalogue.
    pub name: &'static str,
    files: [(&'static str, &'static [u8]); 4],
}

macro_rules! file_of {
    ($model:literal, $file:literal) => {
        ($file, include_bytes!(concat!("../../../models/", $model, "/", $file)))
    };
}

macro_rules! shipped {
    ($name:literal) => {
        Shipped {
            name: $name,
            files: [
                file_of!($name, "config.json"),
                file_of!($name, "tokenizer.json"),
                file_of!($name, "tokenizer_config.json"),
                file_of!($name, "model.safetensors"),
            ],
        }
    };
}

/// All of them, the default one first.
pub static ALL: [Shipped; 2] = [shipped!("reflect-tiny"), shipped!("reflect-micro")];

/// The one that `default` means.
pub const DEFAULT: &str = "reflect-tiny";

/// The one of this name.
pub fn named(name: &str) -> Option<&'static Shipped> {
    ALL.iter().find(|shipped| shipped.name == name)
}

impl Shipped {
    /// Bytes of its weights.
    pub fn bytes(&self) -> u64 {
        let weights = self.files.iter().filter(|(name, _)| name.ends_with(".safetensors"));
        weights.map(|(_, bytes)| bytes.len() as u64).sum()
    }

    /// Writes the checkpoint into `models`, where other programs can use it too, unless these very files
    /// are there. Returns its folder.
    ///
    /// # Errors
    /// If the folder can't be written.
    pub fn unpack(&self, models: &Path) -> Result<PathBuf> {
        let folder = models.join(self.name);
        for (name, bytes) in self.files {
            let path = folder.join(name);
            if std::fs::read(&path).is_ok_and(|found| found == bytes) {
                continue;
            }
            std::fs::create_dir_all(&folder).map_err(|error| {
                let folder = folder.display();
                input(format!("{folder} can't be made ({error}); set REFLECT_CACHE to a folder for models"))
            })?;
            io::write(&path, bytes)?;
        }
        Ok(folder)
    }
}
