//! Weights that a formula gives, so that no weight file is needed; `formula_weights.py` tells the
//! formula and has written the names, shapes and checksum of `families/NAME/expected.json`.
//!
//! One source for several test binaries, which include it by path.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

const FNV_START: u64 = 0xcbf2_9ce4_8422_2325;

/// Folder of a family's config and expected numbers.
pub fn family(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    root.join("tests/golden/families").join(name)
}

/// `expected.json` of a family.
pub fn expected(name: &str) -> Value {
    serde_json::from_slice(&fs::read(family(name).join("expected.json")).unwrap()).unwrap()
}

/// Writes the model folder `target`: config.json and model.safetensors of the family `name`, and, as
/// releases have it, a layer for multi-token prediction that no one reads.
pub fn write_model(name: &str, target: &Path) {
    let config = fs::read(family(name).join("config.json")).unwrap();
    fs::write(target.join("config.json"), &config).unwrap();
    let mut tensors = stored(name);
    let config: Value = serde_json::from_slice(&config).unwrap();
    if config["num_nextn_predict_layers"] == 1 {
        let layer = &config["num_hidden_layers"];
        for rest in ["enorm.weight", "eh_proj.weight", "shared_head.head.weight"] {
            let unread = Stored::new("BF16", &[2, 3], vec![0xff; 12]);
            tensors.insert(format!("model.layers.{layer}.{rest}"), unread);
        }
    }
    write_safetensors(&target.join("model.safetensors"), &tensors);
}

/// A tensor as it lies in a file.
pub struct Stored {
    pub dtype: &'static str,
    pub shape: Vec<i64>,
    pub bytes: Vec<u8>,
}

impl Stored {
    fn new(dtype: &'static str, shape: &[i64], bytes: Vec<u8>) -> Stored {
        let shape = shape.to_vec();
        Stored {
            dtype,
            shape,
            bytes,
        }
    }
}

/// Every tensor of a family, with the checksum that Python found.
pub fn stored(name: &str) -> BTreeMap<String, Stored> {
    let expected = expected(name);
    let shapes: BTreeMap<String, Vec<i64>> =
        serde_json::from_value(expected["tensors"].clone()).unwrap();
    let seed = expected["seed"].as_u64().unwrap();
    let tensors: BTreeMap<String, Stored> = shapes
        .keys()
        .map(|name| (name.clone(), tensor(seed, name, &shapes)))
        .collect();
    let bytes = tensors.values().flat_map(|tensor| &tensor.bytes);
    let checksum = format!("{:016x}", fnv(bytes));
    assert_eq!(expected["checksum"], checksum, "the weights of {name}");
    tensors
}

fn tensor(seed: u64, name: &str, shapes: &BTreeMap<String, Vec<i64>>) -> Stored {
    let shape = &shapes[name];
    let half_log2 = |columns: i64| columns.ilog2() as i32 / 2;
    let bytes = random_bytes(seed, name, shape.iter().product());
    let signed = |byte: u8| (2.0 * f32::from(byte) - 255.0) / 256.0;
    let floats = |value: &dyn Fn(u8) -> f32| bytes.iter().map(|&b| value(b)).collect::<Vec<f32>>();
    if shapes.contains_key(&format!("{name}_scale_inv")) {
        let numbers = bytes
            .iter()
            .map(|&b| if b & 0x7f == 0x7f { b ^ 1 } else { b });
        return Stored::new("F8_E4M3", shape, numbers.collect());
    }
    if let Some(matrix) = name.strip_suffix("_scale_inv") {
        let scale = 2f32.powi(-7 - half_log2(shapes[matrix][1]));
        return float32(shape, &floats(&|b| (1.0 + f32::from(b) / 256.0) * scale));
    }
    if name.ends_with("norm.weight") {
        return bfloat16(shape, &floats(&|b| 0.5 + f32::from(b / 2) / 128.0));
    }
    if name.ends_with("bias") {
        let values = floats(&|b| signed(b) / 4.0);
        return match name.contains("correction") {
            true => float32(shape, &values),
            false => bfloat16(shape, &values),
        };
    }
    if name.ends_with("embed_tokens.weight") {
        return bfloat16(shape, &floats(&signed));
    }
    let scale = 2f32.powi(1 - half_log2(shape[1]));
    bfloat16(shape, &floats(&|b| signed(b) * scale))
}

/// Top bytes of splitmix64's outputs from the state FNV-1a("seed:name").
fn random_bytes(seed: u64, name: &str, count: i64) -> Vec<u8> {
    let mut state = fnv(format!("{seed}:{name}").as_bytes());
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 56) as u8
    };
    (0..count).map(|_| next()).collect()
}

fn fnv<'a>(bytes: impl IntoIterator<Item = &'a u8>) -> u64 {
    bytes.into_iter().fold(FNV_START, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    })
}

fn float32(shape: &[i64], values: &[f32]) -> Stored {
    let bytes = values.iter().flat_map(|value| value.to_le_bytes());
    Stored::new("F32", shape, bytes.collect())
}

fn bfloat16(shape: &[i64], values: &[f32]) -> Stored {
    let upper_half = |value: &f32| {
        let [a, b, c, d] = value.to_le_bytes();
        assert_eq!([a, b], [0, 0], "{value} is a bf16 number");
        [c, d]
    };
    Stored::new("BF16", shape, values.iter().flat_map(upper_half).collect())
}

fn write_safetensors(path: &Path, tensors: &BTreeMap<String, Stored>) {
    let mut header = Map::new();
    let mut bytes = Vec::new();
    for (name, tensor) in tensors {
        let start = bytes.len();
        bytes.extend(&tensor.bytes);
        let offsets = [start, bytes.len()];
        let entry = json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": offsets});
        header.insert(name.clone(), entry);
    }
    let header = Value::Object(header).to_string();
    let length = (header.len() as u64).to_le_bytes();
    fs::write(path, [&length, header.as_bytes(), &bytes].concat()).unwrap();
}
