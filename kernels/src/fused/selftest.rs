//! A learner's kernels against their references, on this machine's card: fresh random inputs, outputs and gradients,
//! everything run twice and compared bit by bit.
//!
//! Freed memory is filled with NaN beforehand, since that is where these operations get their outputs from. The kernels
//! run in bf16, the references in f32 on the same numbers. Sums by atomic additions come in any order: the gradients of
//! flash attention, and that of hidden states of which several tokens are predicted.

use tch::{Device, Kind, Tensor};

use super::dispatch::Dispatch;
use super::logprobs::{Head, Kept, token_logprobs};
use super::rope::{RotatedHeads, rope_and_gather, rope_and_gather_reference};
use super::route::{Routed, route, route_reference};
use super::varlen::{VarlenPlan, VarlenSequence, attend, attend_reference};
use super::{norm, runs_on, swiglu};
use crate::autograd;
use crate::decode::experts::Gating;
use crate::decode::selftest::Outcome;
use crate::error::KernelError;

/// Largest difference over the largest number: some roundings of bf16.
const LIMIT: f64 = 0.02;

/// Tests every fused operation on the card behind `device`, forward and backward.
///
/// # Errors
/// Kernels can't be used there, or libtorch refuses.
pub fn run(device: Device, seed: i64) -> Result<Vec<Outcome>, KernelError> {
    if !runs_on(&Tensor::zeros([1], (Kind::BFloat16, device))) {
        return Err(KernelError::NoCuda {
            reason: format!("a learner's kernels can't be used on {device:?}"),
        });
    }
    let mut test = Test {
        device,
        seed,
        outcomes: Vec::new(),
    };
    tch::manual_seed(seed);
    for (rows, width) in [(1, 8), (37, 576), (5000, 576), (9, 2048)] {
        test.norms(rows, width)?;
    }
    for (rows, width) in [(1, 8), (300, 1536)] {
        test.swiglu(rows, width)?;
    }
    for heads in [[9, 3, 64], [4, 4, 16], [8, 1, 128]] {
        test.attention(heads)?;
    }
    // More targets than a chunk of the larger vocabularies has rows.
    for (vocab, count, temperature, is_restricted) in [
        (264, 50, 1.0, false),
        (264, 50, 0.7, true),
        (49_152, 6000, 0.7, false),
        (32_768, 9000, 1.3, true),
    ] {
        test.logprobs([vocab, count], temperature, is_restricted)?;
    }
    // An expert without rows, one token, many experts.
    for shape in [[300, 2, 4, 576], [1, 8, 64, 8], [777, 8, 256, 512]] {
        test.dispatch(shape)?;
    }
    for [tokens, top_k, experts] in [[300, 2, 4], [1, 2, 8], [100, 8, 256]] {
        test.route([tokens, top_k, experts])?;
    }
    Ok(test.outcomes)
}

struct Test {
    device: Device,
    seed: i64,
    outcomes: Vec<Outcome>,
}

/// Bits that may differ from run to run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Varies {
    Nothing,
    Gradients,
}

impl Test {
    fn random(&self, shape: &[i64]) -> Tensor {
        Tensor::randn(shape, (Kind::Float, self.device)).to_kind(Kind::BFloat16)
    }

    /// Compares outputs of `kernel` and the gradients of `inputs`, under random output gradients, with those of
    /// `reference`.
    fn check(
        &mut self,
        name: &str,
        varies: Varies,
        inputs: &[Tensor],
        kernel: impl Fn(&[Tensor]) -> Vec<Tensor>,
        reference: impl Fn(&[Tensor]) -> Vec<Tensor>,
    ) -> Result<(), KernelError> {
        let expected = self.run(inputs, Kind::Float, &reference)?;
        let [first, second] = [(); 2].map(|()| {
            poison_freed_memory(&expected);
            self.run(inputs, Kind::BFloat16, &kernel)
        });
        let (first, second) = (first?, second?);
        let num_outputs = expected.len() - inputs.len();
        for (what, places) in [
            ("forward", 0..num_outputs),
            ("backward", num_outputs..expected.len()),
        ] {
            let may_vary = varies == Varies::Gradients && what == "backward";
            let of = |all: &[Tensor]| -> Vec<Tensor> {
                all[places.clone()]
                    .iter()
                    .map(Tensor::shallow_clone)
                    .collect()
            };
            let (first, second, expected) = (of(&first), of(&second), of(&expected));
            let is_same = first.iter().zip(&second).all(|(a, b)| a.equal(b));
            let differences = first.iter().zip(&expected).map(|(a, b)| difference(a, b));
            self.outcomes.push(Outcome {
                name: format!(
                    "{name}, {what}{}",
                    if may_vary { ", in any order" } else { "" }
                ),
                difference: differences.fold(0.0, f64::max),
                limit: LIMIT,
                is_repeatable: may_vary || is_same,
            });
        }
        Ok(())
    }

    /// Outputs of `work` on `inputs` in `kind`, then the gradients of these.
    fn run(
        &self,
        inputs: &[Tensor],
        kind: Kind,
        work: &dyn Fn(&[Tensor]) -> Vec<Tensor>,
    ) -> Result<Vec<Tensor>, KernelError> {
        let leaves = inputs.iter().map(|x| x.to_kind(kind).copy());
        let leaves: Vec<Tensor> = leaves.map(|x| x.set_requires_grad(true)).collect();
        let outputs = work(&leaves);
        // The same in every run.
        tch::manual_seed(self.seed + 1);
        let gradients: Vec<Tensor> = outputs
            .iter()
            .map(|out| self.random(&out.size()).to_kind(out.kind()))
            .collect();
        autograd::backward(&outputs, &gradients)?;
        let outputs = outputs.iter().map(Tensor::detach);
        Ok(outputs.chain(leaves.iter().map(Tensor::grad)).collect())
    }

    fn norms(&mut self, rows: i64, width: i64) -> Result<(), KernelError> {
        let [x, y] = [(); 2].map(|()| self.random(&[rows, width]));
        let weight = self.random(&[width]);
        self.check(
            &format!("rms_norm {rows} x {width}"),
            Varies::Nothing,
            &[x.shallow_clone(), weight.shallow_clone()],
            |x| vec![norm::rms_norm(&x[0], &x[1], 1e-5)],
            |x| vec![norm::rms_norm_reference(&x[0], &x[1], 1e-5)],
        )?;
        let both = |(sum, h): (Tensor, Tensor)| vec![sum, h];
        self.check(
            &format!("rms_norm {rows} x {width} behind a sum"),
            Varies::Nothing,
            &[x, y, weight],
            |x| both(norm::add_rms_norm(&x[0], &x[1], &x[2], 1e-5)),
            |x| both(norm::add_rms_norm_reference(&x[0], &x[1], &x[2], 1e-5)),
        )
    }

    fn swiglu(&mut self, rows: i64, width: i64) -> Result<(), KernelError> {
        self.check(
            &format!("swiglu {rows} x {width}"),
            Varies::Nothing,
            &[self.random(&[rows, 2 * width])],
            |x| vec![swiglu::swiglu(&x[0])],
            |x| vec![swiglu::swiglu_reference(&x[0])],
        )
    }

    /// Two documents: a trunk of 70 rows with branches of 1, 130 and 20, and a plain sequence of 33.
    fn attention(&mut self, [heads, kv_heads, dim]: [i64; 3]) -> Result<(), KernelError> {
        let sequences = [
            (0..70, vec![0..70, 70..70]),
            (70..71, vec![0..70, 70..71]),
            (71..201, vec![0..70, 71..201]),
            (201..221, vec![0..70, 201..221]),
            (221..254, vec![221..240, 240..254]),
        ];
        let rows = 254;
        let sequences = sequences.map(|(queries, keys)| VarlenSequence { queries, keys });
        let plan = VarlenPlan::new(&sequences, rows, self.device);
        let angles = Tensor::rand([rows, dim], (Kind::Float, self.device)) * 6.0;
        let tables = |kind| [angles.cos(), angles.sin()].map(|x| x.to_kind(kind));
        let (narrow, wide) = (tables(Kind::BFloat16), tables(Kind::Float));
        let of = |qkv: &Tensor| {
            let [cos, sin] = match qkv.kind() {
                Kind::BFloat16 => &narrow,
                _ => &wide,
            };
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
        let shape = format!("{heads} heads of {dim} on {kv_heads}");
        let qkv = self.random(&[rows, (heads + 2 * kv_heads) * dim]);
        self.check(
            &format!("rope_and_gather, {shape}"),
            Varies::Nothing,
            &[qkv.shallow_clone()],
            |x| of(&x[0]).into(),
            |x| of(&x[0]).into(),
        )?;
        self.check(
            &format!("packed attention, {shape}"),
            Varies::Gradients,
            &[qkv],
            |x| {
                let [q, k, v] = of(&x[0]);
                vec![attend(&q, &k, &v, &plan, 0.1).expect("flash attention knows these heads")]
            },
            |x| {
                let [q, k, v] = of(&x[0]);
                vec![attend_reference(&q, &k, &v, &plan, 0.1)]
            },
        )
    }

    fn logprobs(
        &mut self,
        [vocab, count]: [i64; 2],
        temperature: f64,
        is_restricted: bool,
    ) -> Result<(), KernelError> {
        let device = self.device;
        let rows = Tensor::randint(40, [count], (Kind::Int64, device));
        let targets = Tensor::randint(vocab, [count], (Kind::Int64, device));
        let (hidden, weight) = (self.random(&[40, 64]), self.random(&[vocab, 64]) * 0.3);
        let kept = is_restricted.then(|| kept_tokens(&targets, vocab));
        let what = if is_restricted { ", some kept" } else { "" };
        self.check(
            &format!("log-probs of {count} targets among {vocab}{what}"),
            Varies::Gradients,
            &[hidden, weight],
            |x| {
                let head = Head {
                    weight: &x[1],
                    master: &x[1],
                };
                let kept = kept.as_ref().map(|(offsets, ids)| Kept { offsets, ids });
                let found = token_logprobs(&x[0], &head, &rows, &targets, temperature, kept);
                vec![found.expect("asked before")]
            },
            |x| {
                let logits = x[0].index_select(0, &rows).matmul(&x[1].tr());
                // As the contract has it: logits are kept in bf16. At 15 that is up to 0.03 nats, more than the limit.
                let logits = logits.to_kind(Kind::BFloat16).to_kind(Kind::Float) / temperature;
                let logits = match &kept {
                    Some(kept) => logits + additive_mask(kept, vocab, device),
                    None => logits,
                };
                let all = logits.log_softmax(-1, Kind::Float);
                vec![all.gather(1, &targets.unsqueeze(1), false).squeeze_dim(1)]
            },
        )
    }

    fn dispatch(&mut self, [tokens, top_k, experts, width]: [i64; 4]) -> Result<(), KernelError> {
        let scores = Tensor::rand([tokens, experts], (Kind::Float, self.device));
        let _ = scores.narrow(1, 0, 1).fill_(-1.0);
        let chosen = scores.topk(top_k, 1, true, false).1;
        let dispatch = Dispatch::new(&chosen, experts);
        let shape = format!("{tokens} x {width}, {top_k} of {experts} experts");
        self.check(
            &format!("gather {shape}"),
            Varies::Nothing,
            &[self.random(&[tokens, width])],
            |x| vec![dispatch.gather(&x[0])],
            |x| vec![dispatch.gather_reference(&x[0])],
        )?;
        let gates = Tensor::rand([tokens, top_k], (Kind::Float, self.device));
        self.check(
            &format!("combine {shape}"),
            Varies::Nothing,
            &[self.random(&[tokens * top_k, width]), gates],
            // Gates are f32 in a model.
            |x| vec![dispatch.combine(&x[0], &x[1].to_kind(Kind::Float))],
            |x| {
                let rounded = x[1].to_kind(Kind::BFloat16).to_kind(Kind::Float);
                vec![dispatch.combine_reference(&x[0], &rounded)]
            },
        )
    }

    /// Experts and how many agree must be equal; gates and gradients are f32 on both sides.
    fn route(&mut self, [tokens, top_k, experts]: [i64; 3]) -> Result<(), KernelError> {
        let options = (Kind::Float, self.device);
        let bias = Tensor::randn([experts], options) * 0.1;
        let recorded = Tensor::rand([tokens, experts], options)
            .topk(top_k, 1, true, false)
            .1;
        for (is_sigmoid, normalise, recorded) in [
            (false, true, None),
            (true, true, Some(&recorded)),
            (false, false, Some(&recorded)),
        ] {
            let gating = Gating {
                top_k,
                is_sigmoid,
                normalise,
                scaling: 1.5,
            };
            let bias = Some(&bias).filter(|_| is_sigmoid);
            let of = |routed: Routed| {
                let ids = [routed.experts, routed.agreeing].map(|ids| ids.to_kind(Kind::Float));
                let [experts, agreeing] = ids.map(|ids| ids.set_requires_grad(true));
                vec![routed.gates, experts, agreeing]
            };
            let what = if recorded.is_some() { ", recorded" } else { "" };
            self.check(
                &format!("route {tokens} to {top_k} of {experts}{what}"),
                Varies::Nothing,
                &[self.random(&[tokens, experts])],
                |x| of(route(&x[0].to_kind(Kind::Float), bias, recorded, gating).expect("a GPU")),
                |x| of(route_reference(&x[0], bias, recorded, gating)),
            )?;
        }
        Ok(())
    }
}

/// Frees memory full of NaN in the sizes of `results`, so that an allocation of such a size gets it.
pub(crate) fn poison_freed_memory(results: &[Tensor]) {
    for kind in [Kind::BFloat16, Kind::Float] {
        let poisoned = results.iter().flat_map(|result| {
            [(); 4].map(|()| Tensor::full(result.size(), f64::NAN, (kind, result.device())))
        });
        drop(poisoned.collect::<Vec<Tensor>>());
    }
}

/// The largest difference over the largest number of `expected`; infinite where something is NaN.
fn difference(found: &Tensor, expected: &Tensor) -> f64 {
    if found.size() != expected.size() {
        return f64::INFINITY;
    }
    let [found, expected] = [found, expected].map(|x| x.to_kind(Kind::Double));
    let largest = expected.abs().max().double_value(&[]).max(1e-30);
    let difference = (found - expected).abs().max().double_value(&[]) / largest;
    if difference.is_nan() {
        f64::INFINITY
    } else {
        difference
    }
}

/// Rows that keep some ascending tokens, the target among them, or all.
fn kept_tokens(targets: &Tensor, vocab: i64) -> (Vec<u32>, Vec<u32>) {
    let targets = Vec::<i64>::try_from(targets).expect("a row of i64");
    let (mut offsets, mut ids) = (vec![0_u32], Vec::new());
    for (row, target) in targets.into_iter().enumerate() {
        let stride = [0, 1, 7, 300][row % 4];
        if stride > 0 {
            let own = (row as i64 % stride..vocab).step_by(stride as usize);
            let mut own: Vec<u32> = own.map(|id| id as u32).chain([target as u32]).collect();
            own.sort_unstable();
            own.dedup();
            ids.extend(own);
        }
        offsets.push(ids.len() as u32);
    }
    (offsets, ids)
}

/// 0 where a row keeps a token, -inf elsewhere, f32 `[rows, vocab]`.
fn additive_mask((offsets, ids): &(Vec<u32>, Vec<u32>), vocab: i64, device: Device) -> Tensor {
    let mut mask = Vec::with_capacity((offsets.len() - 1) * vocab as usize);
    for ends in offsets.windows(2) {
        let own = &ids[ends[0] as usize..ends[1] as usize];
        let (start, outside) = (
            mask.len(),
            if own.is_empty() {
                0.0
            } else {
                f32::NEG_INFINITY
            },
        );
        mask.resize(start + vocab as usize, outside);
        own.iter().for_each(|&id| mask[start + id as usize] = 0.0);
    }
    Tensor::from_slice(&mask)
        .view([-1, vocab])
        .to_device(device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime;

    /// Where there is a GPU; says so and stops where there is none.
    #[test]
    fn every_fused_operation_equals_its_reference() {
        let device = runtime::start(1).device;
        if !device.is_cuda() {
            assert!(run(Device::Cpu, 5).is_err());
            eprintln!("SKIPPED: no GPU with a run-time compiler");
            return;
        }
        for outcome in run(device, 5).unwrap() {
            eprintln!("{}: {:.5}", outcome.name, outcome.difference);
            assert!(outcome.has_passed(), "{outcome:?}");
        }
    }

    #[test]
    fn a_difference_is_relative_to_the_largest_number_and_never_nan() {
        let expected = Tensor::from_slice(&[1.0_f32, -4.0]);
        assert_eq!(
            difference(&Tensor::from_slice(&[2.0_f32, -4.0]), &expected),
            0.25
        );
        let unwritten = Tensor::from_slice(&[1.0, f32::NAN]);
        assert_eq!(difference(&unwritten, &expected), f64::INFINITY);
    }

    #[test]
    fn kept_tokens_hold_the_target_and_masks_follow_them() {
        let kept = kept_tokens(&Tensor::from_slice(&[3_i64, 3, 3, 3]), 8);
        assert_eq!(kept.0, [0, 0, 8, 10, 11]);
        assert_eq!(kept.1[8..], [2, 3, 3]);
        let mask = additive_mask(&kept, 8, Device::Cpu);
        assert_eq!(mask.size(), [4, 8]);
        assert_eq!(mask.get(0).sum(Kind::Float).double_value(&[]), 0.0);
        assert_eq!(mask.get(2).double_value(&[3]), 0.0);
        assert_eq!(mask.get(2).double_value(&[4]), f64::NEG_INFINITY);
    }
}
