//! A folder's tensors against its config: missing, unknown, of another shape, idle, not finite.

use super::families::{save_small, small_config};
use super::*;
use crate::config::ModelType;

/// The model folder of `config` with tensors as `change` leaves them, and what opening it comes to.
fn opened(
    config: &ModelConfig,
    change: impl FnOnce(&mut Vec<(String, Tensor)>),
) -> (TempDir, Result<(), String>) {
    let dir = TempDir::new().unwrap();
    let mut tensors = random_tensors(config);
    change(&mut tensors);
    save_small(&dir.path().join("model"), config, &tensors);
    let result = open(&dir.path().join("model"));
    (dir, result.map(|_| ()).map_err(|error| error.to_string()))
}

fn zeros(shape: &[i64]) -> Tensor {
    Tensor::zeros(shape, (Kind::Float, Device::Cpu))
}

#[test]
fn all_missing_tensors_are_named() {
    let config = small_config(ModelType::Qwen3);
    let (_dir, result) = opened(&config, |tensors| {
        tensors.retain(|(name, _)| !name.ends_with("q_norm.weight"));
    });
    let error = result.unwrap_err();
    assert!(error.contains("/model: missing tensors: "), "{error}");
    for layer in 0..2 {
        let name = format!("'model.layers.{layer}.self_attn.q_norm.weight'");
        assert!(error.contains(&name), "{error}");
    }
    assert!(!error.contains("unknown"), "{error}");
}

#[test]
fn a_long_list_of_tensors_is_cut_and_counted() {
    let config = small_config(ModelType::DeepseekV32);
    let (_dir, result) = opened(&config, |tensors| {
        tensors.retain(|(name, _)| !name.contains(".mlp.experts."));
        tensors.push(("model.extra".to_string(), zeros(&[1])));
    });
    let error = result.unwrap_err();
    // 8 experts of 3 matrices in one layer; 8 are listed.
    assert!(
        error.contains("'model.layers.1.mlp.experts.0.gate_proj.weight', "),
        "{error}"
    );
    assert!(error.contains(" and 16 more; "), "{error}");
    assert!(
        error.contains("unknown to this model type and config: 'model.extra'"),
        "{error}"
    );
}

#[test]
fn a_tensor_of_another_shape_is_named_with_both_shapes() {
    let config = small_config(ModelType::Llama);
    let (_dir, result) = opened(&config, |tensors| tensors[1].1 = zeros(&[7]));
    let error = result.unwrap_err();
    let expected = "'model.layers.0.input_layernorm.weight' in model-00002-of-";
    assert!(error.contains(expected), "{error}");
    assert!(
        error.contains("has shape [7], the config asks for [8]"),
        "{error}"
    );
}

#[test]
fn prediction_layers_and_rope_tables_are_skipped_and_other_layers_are_not() {
    let config = small_config(ModelType::DeepseekV3);
    let with_layer = |layer: usize, num_nextn_predict_layers: usize| {
        let (dir, _) = opened(&config, |tensors| {
            for name in [
                "eh_proj.weight",
                "shared_head.head.weight",
                "mlp.gate.weight",
            ] {
                tensors.push((format!("model.layers.{layer}.{name}"), zeros(&[2, 2])));
            }
            let table = "model.layers.0.self_attn.rotary_emb.inv_freq";
            tensors.push((table.to_string(), zeros(&[2])));
        });
        let path = dir.path().join("model/config.json");
        let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        json["num_nextn_predict_layers"] = json!(num_nextn_predict_layers);
        fs::write(&path, json.to_string()).unwrap();
        let result = open(&dir.path().join("model"));
        result.map(|_| ()).map_err(|error| error.to_string())
    };
    // The model's own layers are 0 and 1.
    assert_eq!(with_layer(2, 1), Ok(()));
    assert_eq!(with_layer(3, 2), Ok(()));
    let error = with_layer(2, 0).unwrap_err();
    assert!(error.contains("unknown to this model type"), "{error}");
    assert!(error.contains("'model.layers.2.eh_proj.weight'"), "{error}");
    assert!(
        with_layer(3, 1)
            .unwrap_err()
            .contains("'model.layers.3.eh_proj.weight'")
    );
}

#[test]
fn a_tied_head_may_repeat_the_embedding_and_nothing_else() {
    let config = small_config(ModelType::Qwen2);
    assert!(config.tie_word_embeddings);
    let head = |value: Tensor| {
        let (_dir, result) = opened(&config, |tensors| {
            tensors.push(("lm_head.weight".to_string(), value));
        });
        result
    };
    let embedding = random_tensors(&config)[0].1.shallow_clone();
    assert_eq!(head(embedding.shallow_clone()), Ok(()));
    let error = head(embedding + 1.0).unwrap_err();
    assert!(error.contains("'tie_word_embeddings' is true"), "{error}");
    assert!(error.contains("'lm_head.weight' differs from 'model.embed_tokens.weight'"));
}

#[test]
fn a_shard_that_the_index_leaves_out_is_named() {
    let config = small_config(ModelType::Llama);
    let (dir, result) = opened(&config, |_| {});
    assert_eq!(result, Ok(()));
    let folder = dir.path().join("model");
    let path = folder.join("model.safetensors.index.json");
    let mut index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let map = index["weight_map"].as_object_mut().unwrap();
    let lost = map["model.norm.weight"].clone();
    map.retain(|_, file| *file != lost);
    fs::write(&path, index.to_string()).unwrap();
    let error = open(&folder).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("missing tensors: "), "{error}");
    assert!(error.contains("'model.norm.weight'"), "{error}");
    let files = format!(
        "files that the index does not name: {}",
        lost.as_str().unwrap()
    );
    assert!(error.contains(&files), "{error}");
}

#[test]
fn a_tensor_that_the_index_leaves_out_of_a_shard_it_names_is_found() {
    let dir = TempDir::new().unwrap();
    let folder = dir.path().join("model");
    save_tiny(&folder, Kind::Float, 64 * 4).unwrap();
    let path = folder.join("model.safetensors.index.json");
    let mut index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let map = index["weight_map"].as_object_mut().unwrap();
    let count = |map: &serde_json::Map<String, Value>, file: &Value| {
        map.values().filter(|other| *other == file).count()
    };
    let name = "model.norm.weight";
    let file = map[name].clone();
    assert!(
        count(map, &file) > 1,
        "its shard is named for another tensor too: {map:?}"
    );
    map.remove(name);
    fs::write(&path, index.to_string()).unwrap();
    let norm = HfFolder::open(&folder).unwrap().tensor(name, &[8]).unwrap();
    assert_eq!(norm, tiny_tensors()[3].1);
}

#[test]
fn weights_that_are_not_finite_are_found_and_named() {
    let config = small_config(ModelType::DeepseekV32);
    let gate = "model.layers.1.mlp.gate.weight";
    let norm = "model.norm.weight";
    let (dir, result) = opened(&config, |_| {});
    assert_eq!(result, Ok(()));
    check_finite(&dir.path().join("model")).unwrap();

    let (dir, result) = opened(&config, |tensors| {
        for (name, tensor) in tensors {
            if name == gate {
                let _ = tensor.get(3).narrow(0, 5, 2).fill_(f64::NAN);
            } else if name == norm {
                let _ = tensor.get(0).fill_(f64::NEG_INFINITY);
            }
        }
    });
    assert_eq!(result, Ok(()), "it takes reading every weight to find them");
    let error = check_finite(&dir.path().join("model"))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("/model: weights that are NaN or infinite: "),
        "{error}"
    );
    assert!(
        error.contains(&format!("'{gate}' (2 of 64, the first at [3, 5])")),
        "{error}"
    );
    assert!(
        error.contains(&format!("'{norm}' (1 of 8, the first at [0])")),
        "{error}"
    );
}
