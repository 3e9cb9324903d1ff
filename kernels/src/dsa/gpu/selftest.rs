//! The kernels of sparse attention against the operations they stand for, in f32, on this machine's card: fresh random inputs, forward and
//! backward; what is written by the kernels alone is filled with NaN beforehand, and what has a fixed order is computed twice and compared bit by bit.

use tch::{Device, Kind, Tensor};

use super::attention::SelectedAttention;
use super::dense::head_probs_sum;
use super::indexer::{IndexerGradients, IndexerKernels, IndexerTile, Visibility};
use super::masked::MaskedAttention;
use crate::autograd;
use crate::decode::selftest::Outcome;
use crate::dsa::{self, Values, reference};
use crate::error::KernelError;
use crate::fused::selftest::poison_freed_memory;

/// Largest norm of a difference over that of the reference: some roundings of bf16.
const LIMIT: f64 = 0.005;
/// Where nothing is rounded to bf16: sums in another order.
const F32_LIMIT: f64 = 1e-4;

/// Tests every kernel of sparse attention and its indexer on the card behind `device`.
///
/// # Errors
/// Kernels can't be used there, or libtorch refuses.
pub fn run(device: Device, seed: i64) -> Result<Vec<Outcome>, KernelError> {
    if super::stream(&Tensor::zeros([1], (Kind::BFloat16, device))).is_none() {
        return Err(KernelError::NoCuda {
            reason: format!("kernels of sparse attention can't be used on {device:?}"),
        });
    }
    tch::manual_seed(seed);
    let mut test = Test {
        device,
        outcomes: Vec::new(),
    };
    test.attention()?;
    test.masked()?;
    test.indexer()?;
    test.selection();
    test.dense_loss()?;
    Ok(test.outcomes)
}

struct Test {
    device: Device,
    outcomes: Vec<Outcome>,
}

impl Test {
    fn close(&mut self, name: String, found: &Tensor, expected: &Tensor, limit: f64) {
        let norm = |x: &Tensor| x.to_kind(Kind::Double).norm().double_value(&[]);
        let share = norm(&(found.to_kind(Kind::Double) - expected)) / norm(expected).max(1e-30);
        self.outcomes.push(Outcome {
            name,
            // NaN is no small difference.
            difference: if share.is_nan() { f64::INFINITY } else { share },
            limit,
            is_repeatable: true,
        });
    }

    /// `found` and `expected` are the same, bit by bit.
    fn equal(&mut self, name: String, found: &Tensor, expected: &Tensor) {
        let is_same = found.size() == expected.size() && found.equal(expected);
        self.outcomes.push(Outcome {
            name,
            difference: 0.0,
            limit: 0.0,
            is_repeatable: is_same,
        });
    }

    /// Output, head sums and gradients.
    fn attention(&mut self) -> Result<(), KernelError> {
        let device = self.device;
        // Heads, key heads, widths of keys and values, whether values are tensors of their own, queries, keys, selected.
        for (heads, kv_heads, dim, v_dim, own, rows, len, topk) in [
            (128, 1, 576, 512, false, 40, 300, 100),
            (24, 1, 576, 512, false, 33, 200, 70),
            (16, 1, 80, 64, false, 50, 200, 40),
            (9, 3, 64, 64, true, 60, 200, 33),
            (4, 4, 192, 128, true, 20, 100, 100),
        ] {
            let q = random(&[rows, heads, dim], device);
            let k = random(&[len, kv_heads, dim], device);
            let v = own.then(|| random(&[len, kv_heads, v_dim], device));
            let selected = random_selection(rows, len, topk, device);
            let grad = random(&[rows, heads, v_dim], device);
            let scale = (dim as f64).powf(-0.5);

            let leaf = |x: &Tensor| x.detach().copy().set_requires_grad(true);
            let (nq, nk, nv) = (leaf(&q), leaf(&k), v.as_ref().map(leaf));
            let values = nv.as_ref().map_or(Values::KeyPrefix(v_dim), Values::Own);
            poison_freed_memory(&[q.shallow_clone(), grad.shallow_clone()]);
            let kernels = SelectedAttention::new(&nq, &nk, values, selected.size()[1], scale);
            // The widest need more shared memory than some cards have.
            let Some(kernels) = kernels else { continue };
            // In two pieces, as a document is worked through.
            for (first, rows) in [(0, 7), (7, rows - 7)] {
                kernels.attend(first, &selected.narrow(0, first, rows));
            }
            let sums = kernels.head_probs_sum(0, rows);
            let again = kernels.head_probs_sum(0, rows);
            let output = kernels.into_output();
            autograd::backward(&[output.shallow_clone()], &[grad.shallow_clone()])?;

            let wide = |x: &Tensor| x.detach().to_kind(Kind::Float).set_requires_grad(true);
            let (wq, wk, wv) = (wide(&q), wide(&k), v.as_ref().map(wide));
            let expected = match &wv {
                Some(v) => reference::attend_selected(&wq, &wk, v, &selected, scale),
                None => {
                    reference::attend_selected(&wq, &wk, &wk.narrow(2, 0, v_dim), &selected, scale)
                }
            };
            autograd::backward(&[expected.0.shallow_clone()], &[grad.to_kind(Kind::Float)])?;
            let name = |part: &str| format!("sparse attention, {heads} heads of {dim}, {part}");
            self.equal(name("head sums again"), &again, &sums);
            self.close(name("output"), &output, &expected.0, LIMIT);
            self.close(name("head sums"), &sums, &expected.1, F32_LIMIT);
            self.close(name("dq"), &nq.grad(), &wq.grad(), LIMIT);
            self.close(name("dk"), &nk.grad(), &wk.grad(), LIMIT);
            if let (Some(narrow), Some(wide)) = (nv, wv) {
                self.close(name("dv"), &narrow.grad(), &wide.grad(), LIMIT);
            }
        }
        Ok(())
    }

    /// The second way to the same: output, head sums and gradients.
    fn masked(&mut self) -> Result<(), KernelError> {
        let device = self.device;
        for (heads, kv_heads, dim, v_dim, len, topk) in
            [(16, 16, 192, 128, 333, 100), (9, 3, 64, 64, 300, 33)]
        {
            let q = random(&[len, heads, dim], device);
            let k = random(&[len, kv_heads, dim], device);
            let v = random(&[len, kv_heads, v_dim], device);
            let selected = random_selection(len, len, topk, device);
            let grad = random(&[len, heads, v_dim], device);
            let starts = Tensor::zeros([len], (Kind::Int64, device));
            let visibility = Visibility {
                first: 0,
                trunk_len: len,
                branch_starts: &starts,
            };
            let scale = (dim as f64).powf(-0.5);
            let wide = |x: &Tensor| x.to_kind(Kind::Float).set_requires_grad(true);
            let (wq, wk, wv) = (wide(&q), wide(&k), wide(&v));
            let expected = reference::attend_selected(&wq, &wk, &wv, &selected, scale);
            autograd::backward(&[expected.0.shallow_clone()], &[grad.to_kind(Kind::Float)])?;
            let leaf = |x: &Tensor| x.detach().copy().set_requires_grad(true);
            let (nq, nk, nv) = (leaf(&q), leaf(&k), leaf(&v));
            poison_freed_memory(&[q.shallow_clone(), grad.shallow_clone()]);
            // On Hopper only.
            let Some(mut attention) = MaskedAttention::new(&nq, &nk, &nv, scale) else {
                continue;
            };
            // In two pieces, as a document is worked through.
            for (first, rows) in [(0, 256), (256, len - 256)] {
                attention.attend(first, &selected.narrow(0, first, rows))?;
            }
            let sums = attention.head_probs_sum(&selected, visibility);
            let output = attention.into_output();
            autograd::backward(&[output.shallow_clone()], &[grad.shallow_clone()])?;
            let name = |part: &str| format!("masked attention, {heads} heads of {dim}, {part}");
            self.close(name("output"), &output, &expected.0, LIMIT);
            self.close(name("head sums"), &sums, &expected.1, F32_LIMIT);
            self.close(name("dq"), &nq.grad(), &wq.grad(), LIMIT);
            self.close(name("dk"), &nk.grad(), &wk.grad(), LIMIT);
            self.close(name("dv"), &nv.grad(), &wv.grad(), LIMIT);
        }
        Ok(())
    }

    fn indexer(&mut self) -> Result<(), KernelError> {
        let device = self.device;
        for (heads, dim, rows, len, first, trunk_len, topk) in [
            (64, 128, 100, 1100, 1000, 500, 256),
            (4, 32, 70, 300, 230, 300, 16),
            (8, 32, 256, 256, 0, 100, 40),
            (32, 64, 33, 77, 44, 20, 100),
        ] {
            let (q, k) = (
                random(&[rows, heads, dim], device),
                random(&[len, dim], device),
            );
            let weights = Tensor::randn([rows, heads], (Kind::Float, device)) * 0.1;
            let starts = Tensor::arange_start(first, first + rows, (Kind::Int64, device));
            // Branches of 37 tokens behind the trunk.
            let starts: Tensor =
                (&starts - trunk_len).divide_scalar_mode(37, "floor") * 37 + trunk_len;
            let starts = starts.clamp_min(0);
            let tile = IndexerTile {
                q: &q,
                weights: &weights,
                k: &k,
            };
            let visibility = Visibility {
                first,
                trunk_len,
                branch_starts: &starts,
            };
            let kernels = IndexerKernels::of(&q, &k).expect("sizes that the kernels know");

            let name = |part: &str| {
                format!("indexer, {heads} heads of {dim}, {topk} of {len} keys, {part}")
            };
            let scores = kernels.scores(tile, visibility);
            let wide = |x: &Tensor| x.detach().to_kind(Kind::Float).set_requires_grad(true);
            let (wq, ww, wk) = (wide(&q), wide(&weights), wide(&k));
            let expected = reference::index_scores(&wq, &ww, &wk);
            let mut masked = expected.detach().copy();
            dsa::mask_invisible_(&mut masked, first, trunk_len, &starts);
            let is_seen = masked.isfinite();
            self.equal(name("visibility"), &scores.isfinite(), &is_seen);
            self.close(
                name("scores"),
                &scores.masked_select(&is_seen),
                &masked.masked_select(&is_seen),
                F32_LIMIT,
            );

            let selected = kernels.select(&scores, topk, first);
            let own = reference::select_topk(&scores, topk);
            let width = own.size()[1];
            let chosen = selected.to_kind(Kind::Int64);
            self.equal(name("selection"), &chosen.narrow(1, 0, width), &own);
            let absent = chosen.narrow(1, width, topk - width);
            self.equal(name("absent keys"), &absent, &absent.full_like(-1));

            let is_absent = selected.lt(0);
            let sums =
                Tensor::rand([rows, topk], (Kind::Float, device)).masked_fill(&is_absent, 0.0);
            let sums = &sums / sums.sum_dim_intlist(-1, true, Kind::Float) * 7.0;
            let empty = |x: &Tensor| Tensor::full(x.size(), f64::NAN, (Kind::Float, device));
            let gradients = (
                empty(&q),
                empty(&weights),
                Tensor::zeros([len, dim], (Kind::Float, device)),
            );
            let (dq, dw, dk) = &gradients;
            let losses = kernels.loss(
                (tile, first),
                Some(&selected),
                &scores,
                (&sums, 7),
                Some(IndexerGradients {
                    q: dq,
                    weights: dw,
                    k: dk,
                }),
            );
            let chosen_scores =
                expected.gather(1, &selected.to_kind(Kind::Int64).clamp_min(0), false);
            let log_q = chosen_scores
                .masked_fill(&is_absent, f64::NEG_INFINITY)
                .log_softmax(-1, Kind::Float)
                .masked_fill(&is_absent, 0.0);
            let target = &sums / 7.0;
            let kl = (&target * (target.clamp_min(1e-10).log() - log_q)).sum_dim_intlist(
                -1,
                false,
                Kind::Float,
            );
            autograd::backward(&[kl.sum(Kind::Float)], &[])?;
            self.close(name("losses"), &losses, &kl, F32_LIMIT);
            self.close(name("dq"), dq, &wq.grad(), LIMIT);
            self.close(name("dw"), dw, &ww.grad(), F32_LIMIT);
            self.close(name("dk"), dk, &wk.grad(), LIMIT);
            let again = kernels.loss((tile, first), Some(&selected), &scores, (&sums, 7), None);
            self.equal(name("losses without gradients"), &again, &losses);
        }
        Ok(())
    }

    fn selection(&mut self) {
        let device = self.device;
        let options = (Kind::Float, device);
        let smooth = Tensor::randn([50, 3000], options);
        let hidden = Tensor::rand([50, 3000], options).gt(0.02);
        let probe = random(&[1, 4, 32], device);
        let kernels = IndexerKernels::of(&probe, &probe).expect("sizes that the kernels know");
        for (kind, scores) in [
            ("coarse", (&smooth * 1.5).round()),
            ("equal", smooth.zeros_like()),
            ("zero", smooth.sign() * 0.0),
            ("rectified", smooth.relu()),
            ("hidden", smooth.masked_fill(&hidden, f64::NEG_INFINITY)),
            ("close", &smooth * 1e-6 + 1.0),
            ("smooth", smooth),
        ] {
            for topk in [1, 7, 100, 2048, 3000] {
                let found = kernels.select(&scores, topk, 3000).to_kind(Kind::Int64);
                let name = format!("selection of {topk}, {kind} scores");
                self.equal(name, &found, &reference::select_topk(&scores, topk));
            }
        }
    }

    fn dense_loss(&mut self) -> Result<(), KernelError> {
        let device = self.device;
        for (heads, kv_heads, dim, index_heads, rows, len, trunk_len) in [
            (8, 8, 192, 64, 150, 400, 150),
            (9, 3, 64, 4, 300, 300, 300),
            (4, 4, 48, 8, 70, 333, 20),
        ] {
            let name =
                |part: &str| format!("dense loss, {heads} heads of {dim}, {len} keys, {part}");
            let first = len - rows;
            let (q, k) = (
                random(&[rows, heads, dim], device),
                random(&[len, kv_heads, dim], device),
            );
            let starts = Tensor::arange_start(first, len, (Kind::Int64, device));
            let starts: Tensor =
                (&starts - trunk_len).divide_scalar_mode(37, "floor") * 37 + trunk_len;
            let starts = starts.clamp_min(0);
            let visibility = Visibility {
                first,
                trunk_len,
                branch_starts: &starts,
            };
            let scale = (dim as f64).powf(-0.5);
            let sums =
                head_probs_sum(&q, &k, visibility, scale).expect("sizes that the kernel knows");
            let mut hidden = Tensor::zeros([rows, len], (Kind::Float, device));
            dsa::mask_invisible_(&mut hidden, first, trunk_len, &starts);
            let wide = |x: &Tensor| x.to_kind(Kind::Float).transpose(0, 1);
            let keys = wide(&k).repeat_interleave_self_int(heads / kv_heads, 0, None);
            let scores = wide(&q).bmm(&keys.transpose(1, 2)) * scale + &hidden;
            let probs = scores.softmax(-1, Kind::Float);
            let expected = probs.sum_dim_intlist(0, false, Kind::Float);
            self.close(name("head sums"), &sums, &expected, F32_LIMIT);
            if let Some(again) = head_probs_sum(&q, &k, visibility, scale) {
                self.equal(name("head sums again"), &again, &sums);
            }

            let index_q = random(&[rows, index_heads, 32], device);
            let index_k = random(&[len, 32], device);
            let weights = Tensor::randn([rows, index_heads], (Kind::Float, device)) * 0.1;
            let tile = IndexerTile {
                q: &index_q,
                weights: &weights,
                k: &index_k,
            };
            let kernels =
                IndexerKernels::of(&index_q, &index_k).expect("sizes that the kernels know");
            let scores = kernels.scores(tile, visibility);
            let empty = |x: &Tensor| Tensor::full(x.size(), f64::NAN, (Kind::Float, device));
            let (dq, dw) = (empty(&index_q), empty(&weights));
            let dk = Tensor::zeros(index_k.size(), (Kind::Float, device));
            let gradients = IndexerGradients {
                q: &dq,
                weights: &dw,
                k: &dk,
            };
            let losses = kernels.loss(
                (tile, first),
                None,
                &scores,
                (&sums, heads),
                Some(gradients),
            );

            let leaf = |x: &Tensor| x.to_kind(Kind::Float).set_requires_grad(true);
            let (wq, ww, wk) = (leaf(&index_q), leaf(&weights), leaf(&index_k));
            let log_q = (reference::index_scores(&wq, &ww, &wk) + &hidden)
                .log_softmax(-1, Kind::Float)
                .masked_fill(&hidden.lt(0), 0.0);
            let target = &expected / heads as f64;
            let kl = &target * (target.clamp_min(1e-10).log() - log_q);
            let kl = kl.sum_dim_intlist(-1, false, Kind::Float);
            autograd::backward(&[kl.sum(Kind::Float)], &[])?;
            self.close(name("losses"), &losses, &kl, F32_LIMIT);
            self.close(name("dq"), &dq, &wq.grad(), LIMIT);
            self.close(name("dw"), &dw, &ww.grad(), F32_LIMIT);
            self.close(name("dk"), &dk, &wk.grad(), LIMIT);
        }
        Ok(())
    }
}

fn random(shape: &[i64], device: Device) -> Tensor {
    Tensor::randn(shape, (Kind::Float, device)).to_kind(Kind::BFloat16)
}

/// `topk` random keys of those that each of the last `rows` of `len` tokens sees, ascending, -1 last.
fn random_selection(rows: i64, len: i64, topk: i64, device: Device) -> Tensor {
    let mut scores = Tensor::rand([rows, len], (Kind::Float, device));
    let starts = Tensor::zeros([rows], (Kind::Int64, device));
    dsa::mask_invisible_(&mut scores, len - rows, len, &starts);
    dsa::select_topk(&scores, topk)
}
