//! Rotary position embedding in `config.json`: plain or YaRN, in both spellings.
//!
//! Old: `rope_theta` at the top and `rope_scaling` {type | rope_type, ...}. New (transformers 5):
//! `rope_parameters` {rope_type, rope_theta, ...}. A `rope_scaling` that is present wins, and a
//! `rope_theta` inside wins over the one at the top, as in transformers. Written is the old
//! spelling, which every version reads.

use serde_json::{Map, Value, json};

use super::keys::Keys;
use crate::config::{ModelConfig, YarnConfig};
use crate::weights::WeightError;

/// Base and stretching of RoPE.
pub(super) struct Rope {
    pub(super) theta: f64,
    pub(super) yarn: Option<YarnConfig>,
}

/// Reads RoPE from the keys of a `config.json`.
///
/// # Errors
/// A key that is missing, or a kind of RoPE that is not supported; the key is named.
pub(super) fn read(keys: &Keys) -> Result<Rope, WeightError> {
    let scaling = keys.object("rope_scaling")?;
    let parameters = keys.object("rope_parameters")?;
    let rope = scaling.as_ref().or(parameters.as_ref());
    let yarn = match rope {
        Some(rope) => stretching(rope, keys)?,
        None => None,
    };
    full_rotation(keys)?;
    let inner_theta = match rope {
        Some(rope) => rope.optional_number("rope_theta")?,
        None => None,
    };
    // transformers assumes 10000 where nothing is said; the model would run and talk nonsense.
    let theta = match inner_theta {
        Some(theta) => theta,
        None => keys.number("rope_theta")?,
    };
    Ok(Rope { theta, yarn })
}

fn stretching(rope: &Keys, top: &Keys) -> Result<Option<YarnConfig>, WeightError> {
    full_rotation(rope)?;
    let kind = match rope.text("rope_type")? {
        Some(kind) => Some(("rope_type", kind)),
        None => rope.text("type")?.map(|kind| ("type", kind)),
    };
    match kind {
        None | Some((_, "default")) => return Ok(None),
        Some((_, "yarn")) => {}
        Some((key, other)) => {
            let problem = format!("is '{other}'; RoPE of the types default and yarn is supported");
            return Err(rope.refused(key, problem));
        }
    }
    let original = "original_max_position_embeddings";
    let yarn = YarnConfig {
        factor: rope.number("factor")?,
        original_max_position_embeddings: match top.optional_size(original)? {
            Some(length) => length,
            None => rope.size(original)?,
        },
        // transformers takes 0 for absent here.
        beta_fast: rope
            .optional_number("beta_fast")?
            .filter(|&n| n != 0.0)
            .unwrap_or(32.0),
        beta_slow: rope
            .optional_number("beta_slow")?
            .filter(|&n| n != 0.0)
            .unwrap_or(1.0),
        mscale: rope.optional_number("mscale")?.unwrap_or(0.0),
        mscale_all_dim: rope.optional_number("mscale_all_dim")?.unwrap_or(0.0),
    };
    rope.only_flag("truncate", true, "only rounded YaRN ranges are supported")?;
    if let Some(factor) = rope.optional_number("attention_factor")? {
        let implied = yarn.rotation_factor();
        if (factor - implied).abs() > 1e-6 * implied.abs() {
            let problem = format!(
                "is {factor}; only the value that the other keys imply, {implied}, is supported"
            );
            return Err(rope.refused("attention_factor", problem));
        }
    }
    Ok(Some(yarn))
}

fn full_rotation(keys: &Keys) -> Result<(), WeightError> {
    match keys.optional_number("partial_rotary_factor")? {
        Some(part) if part != 1.0 => Err(keys.refused(
            "partial_rotary_factor",
            format!("is {part}; only heads that rotate as a whole are supported"),
        )),
        _ => Ok(()),
    }
}

/// Adds the keys of RoPE.
pub(super) fn write(config: &ModelConfig, keys: &mut Map<String, Value>) {
    keys.insert("rope_theta".to_string(), json!(config.rope_theta));
    let Some(yarn) = &config.yarn else { return };
    let mut scaling = json!({
        "type": "yarn",
        "rope_type": "yarn",
        "factor": yarn.factor,
        "original_max_position_embeddings": yarn.original_max_position_embeddings,
        "beta_fast": yarn.beta_fast,
        "beta_slow": yarn.beta_slow,
    });
    for (key, value) in [
        ("mscale", yarn.mscale),
        ("mscale_all_dim", yarn.mscale_all_dim),
    ] {
        if value != 0.0 {
            scaling[key] = json!(value);
        }
    }
    keys.insert("rope_scaling".to_string(), scaling);
}
