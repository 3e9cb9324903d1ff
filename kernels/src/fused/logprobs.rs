//! Log-probs of targets straight from hidden states: z = W h / temperature, out = z_target - log sum_v exp z_v, where v
//! runs over the tokens that a row keeps.
//!
//! Logits exist for a chunk of rows at a time, in bf16, and are computed again in the backward pass; kept are one sum
//! a row. dz = ([v = target] - softmax(z)_v) dout / temperature, 0 outside of what is kept, rounded to bf16 for the two
//! products with it; the gradient of W adds up in f32. T rows, N targets, V vocabulary.

use tch::{Device, Kind, Tensor};

use super::{EIGHT, address, int, launch, launch_grid, stream};
use crate::autograd::custom;
use crate::cuda::{Argument, DefaultStream};
use crate::upload;

/// Logits alive at once: half a gigabyte.
pub const CHUNK_LOGITS: i64 = 1 << 28;
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

/// Tokens that each row keeps, as CSR rows: row i is `ids[offsets[i]..offsets[i + 1]]`, ascending; an empty one keeps the
/// whole vocabulary.
#[derive(Clone, Copy, Debug)]
pub struct Kept<'a> {
    /// `N + 1` of them, from 0.
    pub offsets: &'a [u32],
    /// Token ids.
    pub ids: &'a [u32],
}

/// Log-probs of `targets`, `[N]` f32; `None` where there is no kernel for these tensors.
///
/// # Shapes
/// `hidden` `[T, width]`; row `rows[i]` (i64 `[N]`) predicts `targets[i]` (i64 `[N]`), which is one of the N rows of `kept`.
pub fn token_logprobs(
    hidden: &Tensor,
    head: &Head,
    rows: &Tensor,
    targets: &Tensor,
    temperature: f64,
    kept: Option<Kept>,
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
        kept: kept.filter(|kept| !kept.ids.is_empty()).map(|kept| {
            assert_eq!(
                kept.offsets.len() as i64,
                count + 1,
                "kept tokens: one row a target"
            );
            [kept.offsets, kept.ids].map(|numbers| upload_i32(numbers, hidden.device()))
        }),
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
    /// Offsets and ids.
    kept: Option<[Tensor; 2]>,
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

    /// Addresses of the offsets of a chunk's rows, and of all ids.
    fn kept(&self, first: i64, len: i64) -> [Argument; 2] {
        match &self.kept {
            Some([offsets, ids]) => [address(&offsets.narrow(0, first, len + 1)), address(ids)],
            None => [Argument::Pointer(0); 2],
        }
    }

    /// Fills the chunk's part of `sums` and `logprobs`.
    fn forward(&self, first: i64, len: i64, sums: &Tensor, logprobs: &Tensor) {
        let (_, logits) = tch::no_grad(|| self.of(first, len));
        let [offsets, ids] = self.kept(first, len);
        let arguments = [
            address(&logits),
            address(&self.targets.narrow(0, first, len)),
            offsets,
            ids,
            Argument::Float(self.temperature),
            int(self.vocab),
            address(&sums.narrow(0, first, len)),
            address(&logprobs.narrow(0, first, len)),
        ];
        let kernel = ("token_logprobs", &[][..]);
        // SAFETY: logits [len, V]; the others have len entries from `first` on, offsets one more; ids lie below V.
        unsafe { launch(self.stream, kernel, [len, 1], FORWARD_THREADS, &arguments) };
    }

    /// Hidden states of a chunk, and the gradient of its logits.
    fn backward(&self, first: i64, len: i64, sums: &Tensor, grads: &Tensor) -> (Tensor, Tensor) {
        let (x, logits) = self.of(first, len);
        let [offsets, ids] = self.kept(first, len);
        let arguments = [
            address(&logits),
            address(&self.targets.narrow(0, first, len)),
            offsets,
            ids,
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

/// `numbers`, all below 2^31, as i32 on `device`.
fn upload_i32(numbers: &[u32], device: Device) -> Tensor {
    let narrow = |&number: &u32| {
        i32::try_from(number).expect("fewer than 2^31 kept tokens in a micro-batch")
    };
    upload(&numbers.iter().map(narrow).collect::<Vec<i32>>(), device)
}
