//! FP8 weights in blocks, against numbers that follow from the format's definition.

use super::families::small_config;
use super::*;
use crate::config::ModelType;

/// A tensor as it lies in a file.
struct Stored {
    name: &'static str,
    dtype: &'static str,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

fn fp8(name: &'static str, shape: [usize; 2], codes: Vec<u8>) -> Stored {
    Stored {
        name,
        dtype: "F8_E4M3",
        shape: shape.to_vec(),
        bytes: codes,
    }
}

fn f32s(name: &'static str, shape: [usize; 2], values: &[f32]) -> Stored {
    Stored {
        name,
        dtype: "F32",
        shape: shape.to_vec(),
        bytes: values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect(),
    }
}

/// A folder with these tensors and blocks of that size.
fn folder(
    tensors: &[Stored],
    block: Option<[usize; 2]>,
) -> (TempDir, Result<HfFolder, WeightError>) {
    let dir = TempDir::new().unwrap();
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for tensor in tensors {
        let start = data.len();
        data.extend(&tensor.bytes);
        let offsets = [start, data.len()];
        let entry = json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": offsets});
        header.insert(tensor.name.to_string(), entry);
    }
    let header = Value::Object(header).to_string();
    let length = (header.len() as u64).to_le_bytes();
    let bytes = [length.as_slice(), header.as_bytes(), &data].concat();
    fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
    let mut quantization = json!({"quant_method": "fp8", "fmt": "e4m3"});
    quantization["weight_block_size"] = json!(block);
    let config = json!({"quantization_config": quantization});
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let opened = HfFolder::open(dir.path());
    (dir, opened)
}

/// The tensor "w" of such a folder.
fn read(tensors: &[Stored], block: Option<[usize; 2]>) -> Result<Vec<f32>, String> {
    let (_dir, opened) = folder(tensors, block);
    let shape: Vec<i64> = tensors[0].shape.iter().map(|&n| n as i64).collect();
    let tensor = opened.unwrap().tensor(tensors[0].name, &shape);
    let tensor = tensor.map_err(|error| error.to_string())?;
    assert_eq!(tensor.size(), shape);
    Ok(Vec::try_from(tensor.flatten(0, -1)).unwrap())
}

/// e4m3: sign, 4 bits of exponent with bias 7, 3 bits of mantissa; no infinities, and NaN only
/// where all bits but the sign are set.
fn e4m3(code: u8) -> f64 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f64::from(code & 7));
    let size = match (exponent, code & 7) {
        (15, 7) => f64::NAN,
        (0, _) => mantissa / 8.0 * 2f64.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2f64.powi(exponent - 7),
    };
    if code >= 128 { -size } else { size }
}

#[test]
fn all_256_codes_mean_what_the_format_says() {
    assert_eq!(
        [e4m3(0x38), e4m3(0x7e), e4m3(0x01), e4m3(0xc0)],
        [1.0, 448.0, 2f64.powi(-9), -2.0]
    );
    let codes: Vec<u8> = (0..=255).collect();
    let scale = f32s("w_scale_inv", [1, 1], &[0.5]);
    let values = read(&[fp8("w", [2, 128], codes), scale], Some([128, 128])).unwrap();
    for (code, value) in (0..=255u8).zip(values) {
        let expected = (0.5 * e4m3(code)) as f32;
        let is_nan = expected.is_nan() && value.is_nan();
        assert!(
            is_nan || value.to_bits() == expected.to_bits(),
            "{code:#04x}: {value}"
        );
        assert_eq!(is_nan, code & 0x7f == 0x7f);
    }
}

/// Rows in blocks of 2, columns in blocks of 3, the last block of each partial.
#[test]
fn the_scale_of_a_block_multiplies_its_values() {
    // 1, 2, -2, 0.5 and 3 in e4m3.
    let (one, two, minus_two, half, three) = (0x38, 0x40, 0xc0, 0x30, 0x44);
    let codes = vec![
        one, two, one, two, //
        half, half, minus_two, half, //
        three, one, one, three,
    ];
    let scales = f32s("w_scale_inv", [2, 2], &[10.0, 0.25, -1.0, 1000.0]);
    let values = read(&[fp8("w", [3, 4], codes), scales], Some([2, 3])).unwrap();
    let expected = [
        10.0, 20.0, 10.0, 0.5, //
        5.0, 5.0, -20.0, 0.125, //
        -3.0, -1.0, -1.0, 3000.0,
    ];
    assert_eq!(values, expected);
}

/// As in DeepSeek's `kv_a_proj_with_mqa`, whose 576 rows are no multiple of 128.
#[test]
fn blocks_at_the_edge_may_be_partial() {
    let (rows, columns) = (300, 200);
    let codes: Vec<u8> = (0..rows * columns)
        .map(|i| (i * 37 % 251) as u8 & 0x77)
        .collect();
    let scales: Vec<f32> = (0..6).map(|i| 2f32.powi(i - 3)).collect();
    let weight = fp8("w", [rows, columns], codes.clone());
    let values = read(
        &[weight, f32s("w_scale_inv", [3, 2], &scales)],
        Some([128, 128]),
    )
    .unwrap();
    for (i, value) in values.into_iter().enumerate() {
        let scale = scales[i / columns / 128 * 2 + i % columns / 128];
        assert_eq!(value, e4m3(codes[i]) as f32 * scale, "{i}");
    }
}

#[test]
fn the_type_decides_and_the_name_does_not() {
    let scale = f32s("w_scale_inv", [1, 1], &[3.0]);
    // A weight that is not in FP8 has no use for scales.
    let plain = read(&[f32s("w", [1, 2], &[1.0, 2.0]), scale], Some([128, 128]));
    assert_eq!(plain, Ok(vec![1.0, 2.0]));
    let name = "model.layers.0.self_attn.indexer.weights_proj.weight";
    let scale_name = "model.layers.0.self_attn.indexer.weights_proj.weight_scale_inv";
    let tensors = [
        fp8(name, [1, 1], vec![0x38]),
        f32s(scale_name, [1, 1], &[3.0]),
    ];
    assert_eq!(read(&tensors, Some([128, 128])), Ok(vec![3.0]));
}

#[test]
fn an_fp8_weight_without_fitting_scales_is_an_error_that_names_both() {
    let weight = || fp8("w", [3, 4], vec![0x38; 12]);
    let error = |tensors: &[Stored], block| read(tensors, block).unwrap_err();
    let missing = error(&[weight()], Some([2, 3]));
    assert!(
        missing.contains("model.safetensors: tensor 'w' is in FP8"),
        "{missing}"
    );
    assert!(
        missing.contains("its scales 'w_scale_inv' are missing"),
        "{missing}"
    );

    let misshapen = error(
        &[weight(), f32s("w_scale_inv", [1, 2], &[1.0; 2])],
        Some([2, 3]),
    );
    assert!(
        misshapen.contains("'w_scale_inv' has shape [1, 2]"),
        "{misshapen}"
    );
    assert!(
        misshapen.contains("of 'w' [3, 4] in blocks of 2 x 3"),
        "{misshapen}"
    );
    assert!(misshapen.contains("[2, 2]"), "{misshapen}");

    let coarse = error(
        &[weight(), fp8("w_scale_inv", [2, 2], vec![0x38; 4])],
        Some([2, 3]),
    );
    assert!(
        coarse.contains("'w_scale_inv'") && coarse.contains("are F32"),
        "{coarse}"
    );

    let unsaid = error(&[weight(), f32s("w_scale_inv", [2, 2], &[1.0; 4])], None);
    assert!(unsaid.contains("config.json: the key 'quantization_config.weight_block_size'"));
    assert!(unsaid.contains("tensor 'w'"), "{unsaid}");

    let mut vector = weight();
    vector.shape = vec![12];
    let vector = error(
        &[vector, f32s("w_scale_inv", [2, 2], &[1.0; 4])],
        Some([2, 3]),
    );
    assert!(
        vector.contains("'w' is in FP8 and has shape [12]"),
        "{vector}"
    );
}

/// Codes and scales as a quantiser would choose them, in files of their own: what is read is within
/// e4m3's rounding (2^-4) of what was quantised, and the model is complete.
#[test]
fn a_model_with_fp8_weights_is_read_and_lacks_every_scale_it_lacks() {
    let config = small_config(ModelType::DeepseekV32);
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("model");
    let tensors = random_tensors(&config);
    super::families::save_small(&path, &config, &tensors);
    // Re-written in FP8 by hand: attention and experts, as DeepSeek does.
    let is_quantised = |name: &str| {
        (name.contains("_proj.") || name.contains(".wq_b.") || name.contains(".kv_"))
            && !name.contains("norm")
            && !name.contains("weights_proj")
    };
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    let mut add = |name: &str, dtype: &str, shape: Vec<i64>, bytes: &[u8]| {
        let offsets = [data.len(), data.len() + bytes.len()];
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": offsets});
        header.insert(name.to_string(), entry);
        data.extend(bytes);
    };
    for (name, tensor) in &tensors {
        let values = Vec::<f32>::try_from(tensor.flatten(0, -1)).unwrap();
        if !is_quantised(name) {
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            add(name, "F32", tensor.size(), &bytes);
            continue;
        }
        let amax = values.iter().fold(0f32, |max, v| max.max(v.abs()));
        let scale = amax / 448.0;
        let nearest = |value: f32| {
            let distance = |code: &u8| (e4m3(*code) - f64::from(value / scale)).abs();
            let codes = (0..=255u8).filter(|code| !e4m3(*code).is_nan());
            codes
                .min_by(|a, b| distance(a).total_cmp(&distance(b)))
                .unwrap()
        };
        let codes: Vec<u8> = values.iter().map(|&value| nearest(value)).collect();
        add(name, "F8_E4M3", tensor.size(), &codes);
        add(
            &format!("{name}_scale_inv"),
            "F32",
            vec![1, 1],
            &scale.to_le_bytes(),
        );
    }
    let write = |header: &serde_json::Map<String, Value>| {
        let header = Value::Object(header.clone()).to_string();
        let length = (header.len() as u64).to_le_bytes();
        let bytes = [length.as_slice(), header.as_bytes(), &data].concat();
        fs::write(path.join("model.safetensors"), bytes).unwrap();
    };
    write(&header);
    let config_path = path.join("config.json");
    let mut json: Value = serde_json::from_slice(&fs::read(&config_path).unwrap()).unwrap();
    json["quantization_config"] =
        json!({"quant_method": "fp8", "weight_block_size": [128, 128], "scale_fmt": "ue8m0"});
    fs::write(&config_path, json.to_string()).unwrap();

    let (_, mut source, _) = open(&path).unwrap();
    let mut num_quantised = 0;
    for (name, tensor) in &tensors {
        let found = source.tensor(name, &tensor.size()).unwrap();
        if !is_quantised(name) {
            assert_eq!(&found, tensor, "{name}");
            continue;
        }
        num_quantised += 1;
        let amax = tensor.abs().max().double_value(&[]);
        // Half a step of 2^-3, and of the smallest numbers.
        let allowed = tensor.abs() / 16.0 + amax / 448.0 * 2f64.powi(-10);
        let excess = ((&found - tensor).abs() - allowed).max().double_value(&[]);
        assert!(excess <= 1e-9, "{name}: {excess}");
    }
    assert!(num_quantised > 30, "{num_quantised}");

    // Scales of another shape are found before a weight is read.
    let weight = "model.layers.1.self_attn.indexer.wq_b.weight";
    let mut flat = header.clone();
    flat[&format!("{weight}_scale_inv")]["shape"] = json!([1]);
    write(&flat);
    let error = open(&path).map(|_| ()).unwrap_err().to_string();
    let found = format!("tensor '{weight}_scale_inv' has shape [1]");
    assert!(error.contains(&found), "{error}");

    // Scales under other names: the weights lack theirs, and nobody knows these.
    let renamed =
        header
            .into_iter()
            .map(|(name, entry)| match name.contains(".wq_b.weight_scale") {
                true => (name.replace("_scale_inv", "_scale"), entry),
                false => (name, entry),
            });
    write(&renamed.collect());
    let error = open(&path).map(|_| ()).unwrap_err().to_string();
    for layer in 0..2 {
        let weight = format!("model.layers.{layer}.self_attn.indexer.wq_b.weight");
        let unscaled = format!("'{weight}' without '{weight}_scale_inv'");
        assert!(error.contains(&unscaled), "{error}");
        assert!(error.contains(&format!("'{weight}_scale'")), "{error}");
    }
}
