//! Gradients of whole models in bf16 against those in f32, of the same device: libtorch's operations on a CPU, our
//! kernels on a GPU.
//!
//! The weights are loud, so that roundings to bf16 show: libtorch's operations are off by what the CPU's half of the test
//! finds. Kernels round where these do and compute between in f32, so that their error must be of that size; that it is
//! another card's sum in another order gets half as much again. A part that is missing or misplaced shows as tens of
//! percent.

use super::*;
use kernels::fused;

/// Errors of the kernels over those of libtorch's operations, at most.
const SHARE: f64 = 1.5;
/// Largest error of libtorch's own operations, of all gradients together.
const LIMIT_ON_A_CPU: f64 = 0.1;

pub(super) fn gpu() -> Option<Device> {
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

/// The same of sparse attention: grouped queries, and latents.
fn with_selection(index_topk: usize) -> [ModelConfig; 2] {
    let dsa = Some(DsaConfig::new(4, 32, index_topk));
    let mla = Some(MlaConfig {
        q_lora_rank: Some(32),
        kv_lora_rank: 32,
        qk_nope_head_dim: 32,
        qk_rope_head_dim: 16,
        v_head_dim: 16,
        rope_interleave: true,
    });
    let grouped = ModelConfig {
        dsa: dsa.clone(),
        ..grouped_query()
    };
    let latent = ModelConfig {
        head_dim: 16,
        mla,
        dsa,
        ..wide(latent_sparse_config(index_topk))
    };
    [grouped, latent]
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

/// Error in bf16 of all gradients together, and the largest of one parameter's, over their norms in f32.
fn errors(config: &ModelConfig, device: Device) -> (f64, (f64, String)) {
    let (input, rows, targets) = pack(device);
    let run = |kind: Kind, routing: Routing, selection: Selection| {
        let model = Transformer::load(config, &mut LoudSource(3), kind, device).unwrap();
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
            assert!(found.is_none() && expected.is_none(), "{name}");
            continue;
        };
        let norm = expected.norm().double_value(&[]);
        let error = (found - expected).norm().double_value(&[]);
        assert!(norm > 0.0, "{name} proves nothing");
        squares += norm * norm;
        of_errors += error * error;
        if error / norm > worst.0 {
            worst = (error / norm, name.clone());
        }
    }
    ((of_errors / squares).sqrt(), worst)
}

#[test]
fn gradients_in_bf16_are_those_in_f32() {
    tch::set_num_threads(1);
    let device = gpu();
    let mut configs = vec![
        ("dense", grouped_query()),
        ("experts", with_experts(grouped_query())),
        ("V3.2 by libtorch", wide(latent_sparse_config(16))),
    ];
    // Keys gathered, others masked, and all selected: what `kernels::dsa::gpu::choice` chooses for the pack's lengths.
    for topk in [16, 55, 200] {
        configs.extend(["sparse", "V3.2"].into_iter().zip(with_selection(topk)));
    }
    for (what, config) in configs {
        let topk = config.dsa.as_ref().map(|dsa| dsa.index_topk);
        let (eager, worst_eager) = errors(&config, Device::Cpu);
        eprintln!("{what} {topk:?}, libtorch: {eager:.4} of all, {worst_eager:.4?}");
        assert!(eager <= LIMIT_ON_A_CPU, "{what}: {eager}");
        let Some(device) = device else { continue };
        let (found, worst) = errors(&config, device);
        eprintln!("{what} {topk:?}, kernels: {found:.4} of all, {worst:.4?}");
        assert!(found <= SHARE * eager, "{what}: {found}, {eager}");
        assert!(worst.0 <= SHARE * worst_eager.0, "{what}: {worst:?}");
    }
}
