//! What `config.json` says about the files rather than about the network: FP8 blocks, and layers
//! behind the last one.

use std::path::Path;

use serde_json::Value;

use super::keys::Keys;
use crate::weights::WeightError;

/// How the weights lie on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct WeightFormat {
    /// Rows and columns of a block of an FP8 weight, where there are any.
    pub(crate) weight_block_size: Option<[usize; 2]>,
    /// Multi-token prediction layers behind the last decoder layer.
    pub(crate) num_nextn_predict_layers: usize,
}

/// Reads `dir/config.json`; where it is missing nothing is said.
///
/// # Errors
/// A damaged file, or weights quantised otherwise than in FP8 blocks.
pub(crate) fn read_weight_format(dir: &Path) -> Result<WeightFormat, WeightError> {
    let path = dir.join("config.json");
    match path.exists() {
        true => parse(&Keys::read(&path)?),
        false => Ok(WeightFormat::default()),
    }
}

/// The same of the keys of a `config.json`.
///
/// # Errors
/// As above.
pub(super) fn parse(keys: &Keys) -> Result<WeightFormat, WeightError> {
    let names = ["num_nextn_predict_layers", "num_mtp_layers"];
    let name = names.into_iter().find(|name| keys.has(name));
    Ok(WeightFormat {
        weight_block_size: match keys.object("quantization_config")? {
            Some(quantization) => fp8_blocks(&quantization)?,
            None => None,
        },
        num_nextn_predict_layers: match name {
            Some(name) => keys.size(name)?,
            // DeepSeek's and GLM's families have one unless they say otherwise.
            None => usize::from(keys.has("kv_lora_rank")),
        },
    })
}

fn fp8_blocks(keys: &Keys) -> Result<Option<[usize; 2]>, WeightError> {
    let method = keys.text("quant_method")?;
    match method {
        Some("fp8") => {}
        Some(other) => {
            let problem = format!(
                "is '{other}'; weights in FP8 blocks ('fp8') can be read, others must be converted \
                 to bf16 first"
            );
            return Err(keys.refused("quant_method", problem));
        }
        None => return Err(keys.missing("quant_method")),
    }
    keys.only("fmt", &["e4m3"])?;
    keys.only("activation_scheme", &["dynamic"])?;
    keys.optional("weight_block_size", |value| {
        let size = |value: &Value| value.as_u64().filter(|&n| n > 0 && n <= u32::MAX.into());
        match value.as_array()?.as_slice() {
            [rows, columns] => Some([size(rows)? as usize, size(columns)? as usize]),
            _ => None,
        }
    })
}
