use kernels::tch::{self, Device};

use super::*;
use crate::context::{PackContext, Rotations};
use crate::input::PackedInput;
use crate::random_model::fresh_tensor;
use crate::weights::WeightSource;

const LEN: i64 = 30;

fn config(q_lora_rank: Option<usize>) -> ModelConfig {
    ModelConfig {
        hidden_size: 16,
        num_attention_heads: 3,
        num_key_value_heads: 3,
        head_dim: 4,
        mla: Some(MlaConfig {
            q_lora_rank,
            kv_lora_rank: 10,
            qk_nope_head_dim: 6,
            qk_rope_head_dim: 4,
            v_head_dim: 7,
            rope_interleave: true,
        }),
        ..ModelConfig::sizeless_llama()
    }
}

/// Weights of order 1, norms other than 1.
struct Loud;

impl WeightSource for Loud {
    fn tensor(&mut self, name: &str, shape: &[i64]) -> Result<Tensor, WeightError> {
        Ok(fresh_tensor(1, &format!("{name}.noise"), shape, 0.4))
    }
}

fn layer(config: &ModelConfig) -> MultiHeadLatentAttention {
    tch::set_num_threads(1);
    let mut source = Loud;
    let mut loader = ParameterLoader::new(&mut source, Kind::Float, Device::Cpu);
    let mla = config.mla.as_ref().unwrap();
    MultiHeadLatentAttention::load(&mut loader, "attn", config, mla).unwrap()
}

fn hidden() -> Tensor {
    fresh_tensor(2, "hidden", &[LEN, 16], 1.0)
}

fn pack(config: &ModelConfig) -> PackContext {
    let tokens: Vec<u32> = (0..LEN as u32).collect();
    let input = PackedInput::from_sequences(&[&tokens], Device::Cpu);
    PackContext::new(config, &input, Kind::Float)
}

#[test]
fn both_forms_have_the_same_output_probabilities_and_gradients() {
    for config in [config(None), config(Some(12))] {
        let (layer, pack) = (layer(&config), pack(&config));
        let causal = Tensor::ones([LEN, LEN], (Kind::Float, Device::Cpu)).tril(0);
        let selected = kernels::dsa::select_topk(&causal.log(), LEN);
        let run = |absorbed: bool| {
            let h = hidden().set_requires_grad(true);
            let states = layer.states(&h, &pack.rotations.main);
            let heads = match absorbed {
                true => layer.absorbed_heads(&states, &pack.documents[0]),
                false => layer.dense_heads(&states, &pack.documents[0]),
            };
            let values = match &heads.v {
                HeadValues::Own(v) => Values::Own(v),
                HeadValues::KeyPrefix(columns) => Values::KeyPrefix(*columns),
            };
            let scale = layer.softmax_scale;
            let attended =
                kernels::dsa::attend_selected(&heads.q, &heads.k, values, &selected, scale, 256);
            let y = layer.output(&layer.head_outputs(&attended.output, &heads));
            assert_eq!(y.size(), [LEN, 16]);
            y.square().sum(Kind::Float).backward();
            let mut all = vec![y.detach(), attended.head_probs_sum, h.grad()];
            for parameter in layer.parameters() {
                all.push(parameter.master.grad().copy());
                parameter.clear_grad();
            }
            all
        };
        for (absorbed, expanded) in run(true).iter().zip(run(false)) {
            let size = expanded.abs().max().double_value(&[]);
            let difference = (absorbed - &expanded).abs().max().double_value(&[]);
            assert!(
                size > 0.0 && difference < 2e-5 * size,
                "{difference} of {size}"
            );
        }
    }
}

/// The formula written out for one query and head, in f64.
#[test]
fn expanded_attention_equals_the_formula() {
    let config = config(Some(12));
    let (layer, pack) = (layer(&config), pack(&config));
    let states = layer.states(&hidden(), &pack.rotations.main);
    let heads = layer.dense_heads(&states, &pack.documents[0]);
    let HeadValues::Own(v) = &heads.v else {
        panic!("expanded heads have values");
    };
    let mut source = Loud;
    let mut weight = |name: &str, shape: [i64; 2]| {
        let name = format!("attn.{name}.weight");
        source.tensor(&name, &shape).unwrap().to_kind(Kind::Double)
    };
    let norm = |x: &Tensor, weight: Tensor| {
        let size = (x * x).mean(Kind::Double) + 1e-6;
        x / size.sqrt() * weight.squeeze_dim(0)
    };
    let (query, key, head) = (20, 7, 1);
    let h = hidden().to_kind(Kind::Double);
    let times = |w: &Tensor, x: &Tensor| w.matmul(&x.unsqueeze(1)).squeeze_dim(1);
    let turned = |x: &Tensor, position: f64| {
        let x = Vec::<f64>::try_from(x).unwrap();
        let (f0, f1) = (position, position * 1e4f64.powf(-0.5));
        Tensor::from_slice(&[
            x[0] * f0.cos() - x[1] * f0.sin(),
            x[0] * f0.sin() + x[1] * f0.cos(),
            x[2] * f1.cos() - x[3] * f1.sin(),
            x[2] * f1.sin() + x[3] * f1.cos(),
        ])
    };
    let q_latent = times(&weight("q_a_proj", [12, 16]), &h.get(query));
    let q_latent = norm(&q_latent, weight("q_a_layernorm", [1, 12]));
    let q = times(&weight("q_b_proj", [30, 12]), &q_latent).narrow(0, 10 * head, 10);
    let kv = times(&weight("kv_a_proj_with_mqa", [14, 16]), &h.get(key));
    let c = norm(&kv.narrow(0, 0, 10), weight("kv_a_layernorm", [1, 10]));
    let up = times(&weight("kv_b_proj", [39, 10]), &c).narrow(0, 13 * head, 13);
    let (k_nope, expected_v) = (up.narrow(0, 0, 6), up.narrow(0, 6, 7));
    let q_pe = turned(&q.narrow(0, 6, 4), query as f64);
    let k_pe = turned(&kv.narrow(0, 10, 4), key as f64);
    let expected =
        (q.narrow(0, 0, 6) * &k_nope).sum(Kind::Double) + (q_pe * k_pe).sum(Kind::Double);

    let found = (heads.q.get(query).get(head) * heads.k.get(key).get(head)).sum(Kind::Double);
    let (found, expected) = (found.double_value(&[]), expected.double_value(&[]));
    assert!(
        (found - expected).abs() < 1e-4 * expected.abs(),
        "{found} against {expected}"
    );
    let difference = (v.get(key).get(head) - expected_v)
        .abs()
        .max()
        .double_value(&[]);
    assert!(difference < 1e-4, "{difference}");
    // 10^-0.5 without YaRN.
    assert!((layer.softmax_scale - 0.316_227_766_016_837_9).abs() < 1e-15);
}

#[test]
fn rotations_turn_the_shared_key_and_no_other_part() {
    let config = config(None);
    let layer = layer(&config);
    let at = |position: i64| {
        let positions = Tensor::full([LEN], position, (Kind::Int64, Device::Cpu));
        let rotations = Rotations::new(&config, &positions, Kind::Float);
        layer.states(&hidden(), &rotations.main)
    };
    let (here, there) = (at(0), at(5));
    assert_eq!(here.q_nope, there.q_nope);
    assert_eq!(here.latent.narrow(1, 0, 10), there.latent.narrow(1, 0, 10));
    assert_ne!(here.latent.narrow(1, 10, 4), there.latent.narrow(1, 10, 4));
    assert_ne!(here.q_pe, there.q_pe);
}
