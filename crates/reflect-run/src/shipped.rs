//! The checkpoint inside the program, so that it answers without a network and without any file.

use std::path::{Path, PathBuf};

use anyhow::Result;
use reflect_train::checkpoint;

use crate::input;

/// Its name in the catalogue.
pub const NAME: &str = "reflect-tiny";

const FILES: [(&str, &[u8]); 4] = [
    ("config.json", include_bytes!("../../../models/reflect-tiny/config.json")),
    ("tokenizer.json", include_bytes!("../../../models/reflect-tiny/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../../../models/reflect-tiny/tokenizer_config.json")),
    ("model.safetensors", include_bytes!("../../../models/reflect-tiny/model.safetensors")),
];

/// Bytes of its weights.
pub fn bytes() -> u64 {
    FILES.iter().filter(|(name, _)| name.ends_with(".safetensors")).map(|(_, bytes)| bytes.len() as u64).sum()
}

/// Writes the checkpoint into `models`, where other programs can use it too, unless these very files
/// are there. Returns its folder.
///
/// # Errors
/// If the folder can't be written.
pub fn unpack(models: &Path) -> Result<PathBuf> {
    let folder = models.join(NAME);
    for (name, bytes) in FILES {
        let path = folder.join(name);
        if std::fs::read(&path).is_ok_and(|found| found == bytes) {
            continue;
        }
        std::fs::create_dir_all(&folder).map_err(|error| {
            let folder = folder.display();
            input(format!("{folder} can't be made ({error}); set REFLECT_CACHE to a folder for models"))
        })?;
        checkpoint::write(&path, bytes)?;
    }
    Ok(folder)
}
