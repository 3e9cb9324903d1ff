//! Gradients of whole models on a GPU: kernels in bf16 against libtorch's operations in f32, on the same card.
//!
//! A rounding to bf16 is off by up to 2^-9 of a number. A gradient of these two layers has passed through some forty of
//! them, there and back, which add up like a random walk: to about 2^-9 sqrt(40) = 1.2 % of its norm, and to a few times
//! that where differences of large numbers are taken, in softmaxes and in the router. A part that is missing or
//! misplaced shows as tens of percent.

use super::*;
use kernels::fused;

/// Largest error of a parameter's gradient over its norm.
const LIMIT: f64 = 0.1;
/// The same of all gradients together.
const LIMIT_OF_ALL: f64 = 0.03;

fn gpu() -> Option<Device> {
    let device = kernels::runtime::start(1).device;
    if fused::runs_on(&Tensor::zeros([1], (Kind::BFloat16, device))) {
        return Some(device);
    }
    eprintln!("SKIPPED: no GPU with a run-time compiler");
    None
}

/// Sizes that the kernels know.
fn wide(config: ModelConfig) -> ModelConfig {
    ModelConfig {
        hidden_size: 64,
        intermediate_size: 96,
        ..config
    }
}

fn grouped_query() -> ModelConfig {
    let config = ModelConfig {
        head_dim: 16,
        ..dense_config()
    };
    wide(config)
}

/// A prompt of 20 tokens with completions of 40 and 33, and a plain sequence.
fn pack(device: Device) -> (PackedInput, Tensor, Tensor) {
    let parts = [20, 40, 33, 25].map(|len| sequence(len as u64, len));
    let tokens = parts.concat();
    let mut input = PackedInput::from_sequences(&[&tokens], device);
    input.documents = vec![
        Document {
            start: 0,
            trunk_len: 20,
            branch_lens: vec![40, 33],
        },
        Document {
            start: 93,
            trunk_len: 25,
            branch_lens: Vec::new(),
        },
    ];
    // The last token of the prompt predicts the first of both completions.
    let rows = [
        &[19][..],
        &Vec::from_iter(20..59),
        &[19],
        &Vec::from_iter(60..92),
    ]
    .concat();
    let rows = [rows, Vec::from_iter(93..117_i64)].concat();
    let targets = [20..93, 94..118]
        .map(|range| tokens[range].to_vec())
        .concat();
    let targets: Vec<i64> = targets.into_iter().map(i64::from).collect();
    (
        input,
        kernels::upload(&rows, device),
        kernels::upload(&targets, device),
    )
}

#[test]
fn gradients_in_bf16_are_those_in_f32() {
    let Some(device) = gpu() else { return };
    tch::set_num_threads(1);
    for (what, config) in [
        ("dense", grouped_query()),
        ("experts", with_experts(grouped_query())),
        ("V3.2", wide(latent_sparse_config(16))),
    ] {
        let (input, rows, targets) = pack(device);
        let run = |kind: Kind, routing: Routing, selection: Selection| {
            let model = Transformer::load(&config, &mut LoudSource(3), kind, device).unwrap();
            let options = ForwardOptions {
                routing,
                attention: Attention::Sparse,
                indexer_loss: config.dsa.is_some(),
                selection,
                activation_checkpointing: false,
            };
            let output = model.forward_packed(&input, &options);
            let logprobs = model.token_logprobs(&output.hidden, &rows, &targets, 0.9, None);
            // Weights of both signs, as advantages are.
            let weights = Tensor::arange(rows.size()[0], (Kind::Float, device)).cos();
            let mut loss = (logprobs * weights).sum(Kind::Float);
            for indexer_loss in &output.indexer_losses {
                loss += indexer_loss.to_kind(Kind::Float);
            }
            loss.backward();
            model.settle_gradients();
            (output.routing, output.selected, take_gradients(&model))
        };
        let (routing, selected, expected) = run(Kind::Float, Routing::Record, Selection::Record);
        let (_, _, found) = run(
            Kind::BFloat16,
            routing.map_or(Routing::Free, Routing::Replay),
            selected.map_or(Selection::Free, Selection::Replay),
        );
        let (mut squares, mut of_errors, mut worst) = (0.0, 0.0, (0.0, String::new()));
        for ((name, _, found), (_, _, expected)) in found.iter().zip(&expected) {
            let (Some(found), Some(expected)) = (found, expected) else {
                assert!(found.is_none() && expected.is_none(), "{what}: {name}");
                continue;
            };
            let norm = expected.norm().double_value(&[]);
            let error = (found - expected).norm().double_value(&[]);
            assert!(norm > 0.0, "{what}: {name} proves nothing");
            squares += norm * norm;
            of_errors += error * error;
            if error / norm > worst.0 {
                worst = (error / norm, name.clone());
            }
        }
        let of_all = (of_errors / squares).sqrt();
        eprintln!("{what}: {of_all:.4} of all, {:.4} of {}", worst.0, worst.1);
        assert!(of_all <= LIMIT_OF_ALL, "{what}: {of_all}");
        assert!(worst.0 <= LIMIT, "{what}: {worst:?}");
    }
}
