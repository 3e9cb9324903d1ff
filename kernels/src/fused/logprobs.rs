//! Log-probs of targets straight from hidden states: z = W h / temperature, out = z_target - log sum_v exp z_v.
//!
//! Logits exist for a chunk of rows at a time, in bf16, and are computed again in the backward pass; kept are one sum
//! a row. dz = ([v = target] - softmax(z)_v) dout / temperature, rounded to bf16 for the two products with it; the
//! gradient of W adds up in f32. T rows, N targets, V vocabulary.

use tch::{Kind, Tensor};

use super::{EIGHT, address, int, launch, launch_grid, stream};
use crate::autograd::custom;
use crate::cuda::{Argument, DefaultStream};

/// Logits alive at once: half a gigabyte.
const CHUNK_LOGITS: i64 = 1 << 28;
const FORWARD_THREADS: u32 = 512;
const BACKWARD_THREADS: u32 = 256;

/// The output head: what multiplies, and what gets the gradient.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// `[V, width]` in the compute type.
    pub weight: &'a Tensor,
    /// The f32 leaf that `weight` was rounded from.
    pub master: &'a Tensor,
}

/// Log-probs of `targets`, `[N]` f32; `None` where there is no kernel for these tensors.
///
/// # Shapes
/// `hidden` `[T, width]`; row `rows[i]` (i64 `[N]`) predicts `targets[i]` (i64 `[N]`).
pub fn token_logprobs(
    hidden: &Tensor,
    head: &Head,
    rows: &Tensor,
    targets: &Tensor,
    temperature: f64,
) -> Option<Tensor> {
    let vocab = head.weight.size()[0];
    let fits = vocab % EIGHT == 0 && head.weight.kind() == hidden.kind();
    let stream = stream(hidden).filter(|_| fits)?;
    let count = targets.size()[0];
    let logits = Chunks {
        stream,
        hidden: hidden.detach(),
        weight: head.weight.detach(),
        rows: rows.shallow_clone(),
        targets: targets.contiguous(),
        temperature: temperature as f32,
        vocab,
    };
    let options = (Kind::Float, hidden.device());
    let [sums, logprobs] = [(); 2].map(|()| Tensor::empty([count], options));
    for (first, len) in logits.chunks() {
        logits.forward(first, len, &sums, &logprobs);
    }
    let needs_hidden = hidden.requires_grad();
    let needs_weight = head.master.requires_grad();
    let outputs = custom(vec![logprobs], &[hidden, head.master], move |grads| {
        let Some(grads) = grads.into_iter().next().flatten() else {
            return vec![None, None];
        };
        let grads = grads.to_kind(Kind::Float).contiguous();
        let [mut grad_hidden, mut grad_weight] = [None, None];
        for (first, len) in logits.chunks() {
            let (x, dz) = logits.backward(first, len, &sums, &grads);
            if needs_hidden {
                // Rows may repeat: a prompt's last predicts the first token of every sample.
                let grad = dz.matmul(&logits.weight).to_kind(Kind::Float);
                let sum: &mut Tensor =
                    grad_hidden.get_or_insert_with(|| Tensor::zeros(logits.hidden.size(), options));
                let _ = sum.index_add_(0, &logits.rows.narrow(0, first, len), &grad);
            }
            if needs_weight {
                let dz = dz.tr();
                grad_weight = Some(match grad_weight.take() {
                    None => dz.mm_dtype(&x, Kind::Float),
                    Some(sum) => Tensor::addmm_dtype(&sum, &dz, &x, Kind::Float),
                });
            }
        }
        let kind = logits.hidden.kind();
        vec![grad_hidden.map(|grad| grad.to_kind(kind)), grad_weight]
    });
    Some(
        outputs
            .expect("an output in a floating type can be given a history")
            .remove(0),
    )
}

/// The logits, chunk by chunk.
struct Chunks {
    stream: &'static DefaultStream,
    hidden: Tensor,
    weight: Tensor,
    rows: Tensor,
    targets: Tensor,
    temperature: f32,
    vocab: i64,
}

impl Chunks {
    /// First row and number of rows of each chunk.
    fn chunks(&self) -> impl Iterator<Item = (i64, i64)> + use<> {
        let count = self.targets.size()[0];
        // Multiples of 64 suit the products.
        let rows = (CHUNK_LOGITS / self.vocab / 64 * 64).max(64);
        (0..count)
            .step_by(rows as usize)
            .map(move |first| (first, rows.min(count - first)))
    }

    /// Hidden states of a chunk, and its logits.
    fn of(&self, first: i64, len: i64) -> (Tensor, Tensor) {
        let x = self
            .hidden
            .index_select(0, &self.rows.narrow(0, first, len));
        let logits = x.linear(&self.weight, None::<&Tensor>);
        (x, logits)
    }

    /// Fills the chunk's part of `sums` and `logprobs`.
    fn forward(&self, first: i64, len: i64, sums: &Tensor, logprobs: &Tensor) {
        let (_, logits) = tch::no_grad(|| self.of(first, len));
        let arguments = [
            address(&logits),
            address(&self.targets.narrow(0, first, len)),
            Argument::Float(self.temperature),
            int(self.vocab),
            address(&sums.narrow(0, first, len)),
            address(&logprobs.narrow(0, first, len)),
        ];
        let kernel = ("token_logprobs", &[][..]);
        // SAFETY: logits [len, V]; the others have len entries from `first` on.
        unsafe { launch(self.stream, kernel, [len, 1], FORWARD_THREADS, &arguments) };
    }

    /// Hidden states of a chunk, and the gradient of its logits.
    fn backward(&self, first: i64, len: i64, sums: &Tensor, grads: &Tensor) -> (Tensor, Tensor) {
        let (x, logits) = self.of(first, len);
        let arguments = [
            address(&logits),
            address(&self.targets.narrow(0, first, len)),
            address(&sums.narrow(0, first, len)),
            address(&grads.narrow(0, first, len)),
            Argument::Float(self.temperature),
            int(self.vocab),
        ];
        let kernel = ("token_logprobs_backward", &[][..]);
        let per_block = i64::from(BACKWARD_THREADS) * EIGHT;
        let grid = [len, (self.vocab + per_block - 1) / per_block];
        // SAFETY: as above; every logit is read and written by one thread.
        unsafe { launch_grid(self.stream, kernel, grid, BACKWARD_THREADS, &arguments) };
        (x, logits)
    }
}
