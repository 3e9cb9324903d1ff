//! Kernels against references on a GPU, forward and backward; every test says so and stops where there is none.

use tch::{Device, Kind, Tensor};

use super::logprobs::{Head, token_logprobs};
use super::rope::{RotatedHeads, rope_and_gather, rope_and_gather_reference};
use super::varlen::{VarlenPlan, VarlenSequence, attend, attend_reference};
use super::{norm, runs_on, swiglu};
use crate::{autograd, runtime};

/// Largest difference over the largest number: some roundings of bf16.
const LIMIT: f64 = 0.02;

fn gpu() -> Option<Device> {
    let device = runtime::start(1).device;
    let probe = Tensor::zeros([1], (Kind::Float, device)).to_kind(Kind::BFloat16);
    if !runs_on(&probe) {
        eprintln!("SKIPPED: no GPU with a run-time compiler");
        return None;
    }
    tch::manual_seed(5);
    Some(device)
}

fn random(shape: &[i64], device: Device) -> Tensor {
    Tensor::randn(shape, (Kind::Float, device)).to_kind(Kind::BFloat16)
}

/// Outputs of `work` and the gradients of `inputs` under fixed random output gradients: of the kernel in bf16, then of
/// the reference in f32.
fn compare(
    inputs: &[Tensor],
    kernel: impl Fn(&[Tensor]) -> Vec<Tensor>,
    reference: impl Fn(&[Tensor]) -> Vec<Tensor>,
) {
    let run = |work: &dyn Fn(&[Tensor]) -> Vec<Tensor>, kind: Kind| {
        let leaves = inputs.iter().map(|x| x.to_kind(kind).copy());
        let leaves: Vec<Tensor> = leaves.map(|x| x.set_requires_grad(true)).collect();
        tch::manual_seed(6);
        let outputs = work(&leaves);
        let grads: Vec<Tensor> = outputs
            .iter()
            .map(|out| random(&out.size(), out.device()).to_kind(out.kind()))
            .collect();
        autograd::backward(&outputs, &grads).unwrap();
        let outputs = outputs.iter().map(Tensor::detach);
        outputs
            .chain(leaves.iter().map(Tensor::grad))
            .collect::<Vec<Tensor>>()
    };
    let found = run(&kernel, Kind::BFloat16);
    let expected = run(&reference, Kind::Float);
    assert_eq!(found.len(), expected.len());
    for (place, (a, b)) in found.iter().zip(&expected).enumerate() {
        assert_eq!(a.size(), b.size(), "{place}");
        let difference = (a.to_kind(Kind::Float) - b).abs().max().double_value(&[]);
        let largest = b.abs().max().double_value(&[]);
        let share = difference / largest;
        eprintln!("{place}: {share:.5}");
        assert!(share <= LIMIT, "{place}: {difference} of {largest}");
    }
}

#[test]
fn fused_norms_equal_their_references() {
    let Some(device) = gpu() else { return };
    for (rows, width) in [(1, 8), (37, 576), (5000, 576), (9, 2048)] {
        let x = random(&[rows, width], device);
        let y = random(&[rows, width], device);
        let weight = random(&[width], device);
        compare(
            &[x.shallow_clone(), weight.shallow_clone()],
            |x| vec![norm::rms_norm(&x[0], &x[1], 1e-5)],
            |x| vec![norm::rms_norm_reference(&x[0], &x[1], 1e-5)],
        );
        let both = |(sum, h): (Tensor, Tensor)| vec![sum, h];
        compare(
            &[x, y, weight],
            |x| both(norm::add_rms_norm(&x[0], &x[1], &x[2], 1e-5)),
            |x| both(norm::add_rms_norm_reference(&x[0], &x[1], &x[2], 1e-5)),
        );
    }
}

#[test]
fn fused_swiglu_equals_its_reference() {
    let Some(device) = gpu() else { return };
    for (rows, width) in [(1, 8), (300, 1536)] {
        compare(
            &[random(&[rows, 2 * width], device)],
            |x| vec![swiglu::swiglu(&x[0])],
            |x| vec![swiglu::swiglu_reference(&x[0])],
        );
    }
}

/// Two documents: a trunk of 70 rows with branches of 1, 130 and 20, and a plain sequence of 33.
fn plan(device: Device) -> (VarlenPlan, i64) {
    let sequences = [
        (0..70, vec![0..70, 70..70]),
        (70..71, vec![0..70, 70..71]),
        (71..201, vec![0..70, 71..201]),
        (201..221, vec![0..70, 201..221]),
        (221..254, vec![221..240, 240..254]),
    ];
    let sequences = sequences.map(|(queries, keys)| VarlenSequence { queries, keys });
    (VarlenPlan::new(&sequences, 254, device), 254)
}

#[test]
fn fused_rope_and_packed_attention_equal_their_references() {
    let Some(device) = gpu() else { return };
    let (plan, rows) = plan(device);
    for (heads, kv_heads, dim) in [(9, 3, 64), (4, 4, 16), (8, 1, 128)] {
        let angles = Tensor::rand([rows, dim], (Kind::Float, device)) * 6.0;
        let tables = |kind| [angles.cos(), angles.sin()].map(|x| x.to_kind(kind));
        let (narrow, wide) = (tables(Kind::BFloat16), tables(Kind::Float));
        let of = |[cos, sin]: &[Tensor; 2], qkv: &Tensor| {
            let heads = RotatedHeads {
                heads,
                kv_heads,
                cos,
                sin,
            };
            match qkv.kind() {
                Kind::BFloat16 => rope_and_gather(qkv, &heads, &plan),
                _ => rope_and_gather_reference(qkv, &heads, &plan),
            }
        };
        let qkv = random(&[rows, (heads + 2 * kv_heads) * dim], device);
        compare(
            &[qkv.shallow_clone()],
            |x| of(&narrow, &x[0]).into(),
            |x| of(&wide, &x[0]).into(),
        );
        compare(
            &[qkv],
            |x| {
                let [q, k, v] = of(&narrow, &x[0]);
                vec![attend(&q, &k, &v, &plan, 0.1).unwrap()]
            },
            |x| {
                let [q, k, v] = of(&wide, &x[0]);
                vec![attend_reference(&q, &k, &v, &plan, 0.1)]
            },
        );
    }
}

#[test]
fn fused_logprobs_equal_log_softmax() {
    let Some(device) = gpu() else { return };
    // More targets than a chunk of the larger vocabulary has rows.
    for (vocab, count, temperature) in [(264, 50, 1.0), (49_152, 6000, 0.7)] {
        let rows = Tensor::randint(40, [count], (Kind::Int64, device));
        let targets = Tensor::randint(vocab, [count], (Kind::Int64, device));
        let hidden = random(&[40, 64], device);
        let weight = random(&[vocab, 64], device) * 0.3;
        compare(
            &[hidden, weight],
            |x| {
                let head = Head {
                    weight: &x[1],
                    master: &x[1],
                };
                vec![token_logprobs(&x[0], &head, &rows, &targets, temperature).unwrap()]
            },
            |x| {
                let logits = x[0].index_select(0, &rows).matmul(&x[1].tr()) / temperature;
                let all = logits.log_softmax(-1, Kind::Float);
                vec![all.gather(1, &targets.unsqueeze(1), false).squeeze_dim(1)]
            },
        );
    }
}
