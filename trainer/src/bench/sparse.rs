//! Sparse attention at DeepSeek-V3.2's widths beside dense attention, by length: time, products a second, memory.
//!
//! One layer's attention without its projections: 128 heads of 512 + 64 that share their keys (latent attention, absorbed),
//! 64 indexer heads of 128, 2,048 selected keys; dense attention is the expanded form, 128 heads of 192 with values of 128, causal.
//! Weights are not needed: inputs are random. Kernels of `kernels::dsa::gpu` beside what libtorch's operations do in their place.

use kernels::dsa::gpu::attention::SelectedAttention;
use kernels::dsa::gpu::indexer::{IndexerKernels, IndexerTile, Visibility};
use kernels::dsa::{self, Values};
use kernels::tch::{Device, Kind, Tensor};
use kernels::{autograd, gpu_memory};

use super::timing::{Timing, median_parts, secs};
use crate::error::TrainerError;

const LENGTHS: [i64; 5] = [4096, 8192, 16_384, 32_768, 65_536];
/// The longest document that libtorch's operations are given: beyond, minutes pass.
const LONGEST_BY_LIBTORCH: i64 = 8192;
const HEADS: i64 = 128;
const LATENT: [i64; 2] = [576, 512];
/// Width of the expanded form's heads, and of their values.
const EXPANDED: [i64; 2] = [192, 128];
const INDEX_HEADS: i64 = 64;
const INDEX_DIM: i64 = 128;
pub(super) const TOPK: i64 = 2048;
/// Index scores that are alive at once.
const SCORES: i64 = 1 << 26;

/// What one way took of one document.
pub(super) struct Measured {
    pub(super) select: f64,
    pub(super) forward: f64,
    pub(super) backward: f64,
    pub(super) peak_bytes: u64,
}

/// Measures and prints a row for every length and way.
///
/// # Errors
/// No GPU, and errors of `print`.
pub(super) fn run<E: From<TrainerError>>(
    device: Device,
    timing: Timing,
    print: &mut impl FnMut(&str) -> Result<(), E>,
) -> Result<(), E> {
    let inputs = Inputs::new(device, INDEX_HEADS);
    let Some(kernels) = IndexerKernels::of(&inputs.index_q, &inputs.index_k) else {
        return print(
            "\nsparse: measured on a GPU only, with the kernels' libraries in reach (docs/gpu.md)",
        );
    };
    print(&header())?;
    for len in LENGTHS {
        let inputs = Inputs::new(device, len);
        let pairs = pairs(len, TOPK);
        let sparse = inputs.sparse(kernels, timing)?;
        print(&row(len, "sparse, kernels", &sparse, sparse_flops(pairs)))?;
        if len <= LONGEST_BY_LIBTORCH {
            let gathered = inputs.gathered(kernels, timing)?;
            print(&row(
                len,
                "sparse, gathered by libtorch",
                &gathered,
                sparse_flops(pairs),
            ))?;
        }
        let dense = inputs.dense(timing)?;
        let all = self::pairs(len, len);
        print(&row(len, "dense, flash", &dense, dense_flops(all)))?;
    }
    Ok(())
}

/// Keys that all queries of a document attend to, when each attends to at most `topk`.
fn pairs(len: i64, topk: i64) -> f64 {
    let growing = topk.min(len);
    (growing * (growing + 1) / 2 + (len - growing) * topk) as f64
}

/// Operations of the products of a pass forward and of one back, over `pairs` of a query and a key: scores and values, then
/// scores again, the gradients of probabilities, queries, keys and values.
fn sparse_flops(pairs: f64) -> [f64; 2] {
    let [dim, v_dim] = LATENT;
    let of = |width: i64| pairs * (HEADS * 2 * width) as f64;
    [of(dim + v_dim), of(3 * dim + 2 * v_dim)]
}

fn dense_flops(pairs: f64) -> [f64; 2] {
    let [dim, v_dim] = EXPANDED;
    let of = |width: i64| pairs * (HEADS * 2 * width) as f64;
    [of(dim + v_dim), of(3 * dim + 2 * v_dim)]
}

/// Random inputs of one document.
pub(super) struct Inputs {
    len: i64,
    pub(super) index_q: Tensor,
    pub(super) index_k: Tensor,
    weights: Tensor,
    branch_starts: Tensor,
}

impl Inputs {
    pub(super) fn new(device: Device, len: i64) -> Inputs {
        Inputs {
            len,
            index_q: random(&[len, INDEX_HEADS, INDEX_DIM], device),
            index_k: random(&[len, INDEX_DIM], device),
            weights: Tensor::randn([len, INDEX_HEADS], (Kind::Float, device)),
            branch_starts: Tensor::zeros([len], (Kind::Int64, device)),
        }
    }

    fn device(&self) -> Device {
        self.index_k.device()
    }

    /// Hands the selected keys of the document to `attend`, rows at a time.
    fn select(&self, kernels: IndexerKernels, mut attend: impl FnMut(i64, &Tensor)) {
        let rows_at_once = (SCORES / self.len).min(self.len);
        let mut first = 0;
        while first < self.len {
            let rows = rows_at_once.min(self.len - first);
            let of_rows = |x: &Tensor| x.narrow(0, first, rows);
            let (q, weights) = (of_rows(&self.index_q), of_rows(&self.weights));
            let tile = IndexerTile {
                q: &q,
                weights: &weights,
                k: &self.index_k.narrow(0, 0, first + rows),
            };
            let visibility = Visibility {
                first,
                trunk_len: self.len,
                branch_starts: &of_rows(&self.branch_starts),
            };
            let scores = kernels.scores(tile, visibility);
            attend(first, &kernels.select(&scores, TOPK, first));
            first += rows;
        }
    }

    pub(super) fn selected(&self, kernels: IndexerKernels) -> Tensor {
        let mut tiles = Vec::new();
        self.select(kernels, |_, selected| tiles.push(selected.shallow_clone()));
        Tensor::cat(&tiles, 0)
    }

    fn latents(&self) -> (Tensor, Tensor, Tensor) {
        let [dim, v_dim] = LATENT;
        let leaf = |x: Tensor| x.set_requires_grad(true);
        (
            leaf(random(&[self.len, HEADS, dim], self.device())),
            leaf(random(&[self.len, 1, dim], self.device())),
            random(&[self.len, HEADS, v_dim], self.device()),
        )
    }

    fn sparse(&self, kernels: IndexerKernels, timing: Timing) -> Result<Measured, TrainerError> {
        let (q, k, grad) = self.latents();
        let selected = self.selected(kernels);
        let scale = (EXPANDED[0] as f64).powf(-0.5);
        measure(self.device(), timing, &[&q, &k], || {
            let select = secs(|| {
                let mut last = None;
                self.select(kernels, |_, selected| last = Some(selected.shallow_clone()));
                last.iter().for_each(wait_for);
            });
            let mut output = None;
            let forward = secs(|| {
                let values = Values::KeyPrefix(LATENT[1]);
                let attention = SelectedAttention::new(&q, &k, values, TOPK, scale);
                let attention = attention.expect("a card for V3.2's widths");
                attention.attend(0, &selected);
                output = Some(attention.into_output()).inspect(wait_for);
            });
            (
                select,
                forward,
                output.map_or(0.0, |output| backward(&output, &grad, &q)),
            )
        })
    }

    /// Queries' keys copied, then libtorch's products in f32, some rows at a time.
    fn gathered(&self, kernels: IndexerKernels, timing: Timing) -> Result<Measured, TrainerError> {
        let (q, k, grad) = self.latents();
        let selected = self.selected(kernels).to_kind(Kind::Int64);
        let scale = (EXPANDED[0] as f64).powf(-0.5);
        measure(self.device(), timing, &[&q, &k], || {
            let mut output = None;
            let forward = secs(|| {
                let values = Values::KeyPrefix(LATENT[1]);
                let attended =
                    dsa::attend_gathered(&q, &k, values, &selected, scale, TOPK as usize);
                output = Some(attended.output).inspect(wait_for);
            });
            (
                0.0,
                forward,
                output.map_or(0.0, |output| backward(&output, &grad, &q)),
            )
        })
    }

    fn dense(&self, timing: Timing) -> Result<Measured, TrainerError> {
        let [dim, v_dim] = EXPANDED;
        let heads = |width| random(&[1, HEADS, self.len, width], self.device());
        // Values as wide as keys, which is what libtorch's flash attention takes.
        let [q, k, v] = [dim, dim, dim].map(|width| heads(width).set_requires_grad(true));
        let grad = heads(dim);
        let scale = (dim as f64).powf(-0.5);
        debug_assert!(v_dim < dim);
        measure(self.device(), timing, &[&q, &k, &v], || {
            let mut output = None;
            let forward = secs(|| {
                let none = None::<&Tensor>;
                let attended =
                    Tensor::scaled_dot_product_attention(&q, &k, &v, none, 0.0, true, scale, false);
                output = Some(attended).inspect(wait_for);
            });
            (
                0.0,
                forward,
                output.map_or(0.0, |output| backward(&output, &grad, &q)),
            )
        })
    }
}

/// The median of `work`'s times, and the most memory beyond what was held before.
pub(super) fn measure(
    device: Device,
    timing: Timing,
    leaves: &[&Tensor],
    mut work: impl FnMut() -> (f64, f64, f64),
) -> Result<Measured, TrainerError> {
    leaves.iter().for_each(|leaf| wait_for(leaf));
    gpu_memory::reset_peak(device)?;
    let peak = || -> Result<u64, TrainerError> {
        Ok(gpu_memory::peak(device)?.map_or(0, |peak| peak.allocated_bytes))
    };
    let held = peak()?;
    let [select, forward, backward] = median_parts(timing, || {
        let (select, forward, backward) = work();
        leaves
            .iter()
            .for_each(|leaf| leaf.shallow_clone().zero_grad());
        Ok::<_, TrainerError>([select, forward, backward])
    })?;
    Ok(Measured {
        select,
        forward,
        backward,
        peak_bytes: peak()?.saturating_sub(held),
    })
}

pub(super) fn backward(output: &Tensor, grad: &Tensor, leaf: &Tensor) -> f64 {
    secs(|| {
        autograd::backward(&[output.shallow_clone()], &[grad.shallow_clone()])
            .expect("the output has a history");
        wait_for(&leaf.grad());
    })
}

/// Waits until a tensor is computed.
pub(super) fn wait_for(x: &Tensor) {
    let first = x.detach().flatten(0, -1).narrow(0, 0, 1);
    let _ = first.to_kind(Kind::Double).double_value(&[0]);
}

pub(super) fn random(shape: &[i64], device: Device) -> Tensor {
    Tensor::randn(shape, (Kind::BFloat16, device))
}

fn header() -> String {
    format!(
        "\n{:>6}  {:<29}{:>11}{:>12}{:>13}{:>10}{:>10}{:>12}",
        "tokens",
        "attention of a layer",
        "select, ms",
        "forward, ms",
        "backward, ms",
        "TFLOP/s",
        "back",
        "memory, GB"
    )
}

fn row(len: i64, name: &str, measured: &Measured, [forward, backward]: [f64; 2]) -> String {
    let ms = |secs: f64| format!("{:.2}", secs * 1e3);
    let select = match measured.select {
        0.0 => "-".to_string(),
        secs => ms(secs),
    };
    format!(
        "{len:>6}  {name:<29}{select:>11}{:>12}{:>13}{:>10.0}{:>10.0}{:>12.2}",
        ms(measured.forward),
        ms(measured.backward),
        forward / measured.forward / 1e12,
        backward / measured.backward / 1e12,
        measured.peak_bytes as f64 / 1e9
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_count_what_each_query_attends_to() {
        // Queries see 1, 2, 3, 4 and 5 keys.
        assert_eq!(pairs(5, 5), 15.0);
        assert_eq!(pairs(5, 9), 15.0);
        assert_eq!(pairs(5, 2), 9.0);
    }

    #[test]
    fn a_pair_of_v32_takes_the_operations_of_the_report() {
        assert_eq!(sparse_flops(1.0), [278_528.0, 704_512.0]);
        assert_eq!(dense_flops(1.0)[0], 81_920.0);
    }
}
