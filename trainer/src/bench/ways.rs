//! The ways to attend to a document's selected keys, side by side by length: what `kernels::dsa::gpu::choice` rests on.
//!
//! All of them give the same result: the kernels for gathered keys; dense attention under a mask of the others;
//! and, where a document has no more tokens than keys are selected, dense causal attention. Three shapes: DeepSeek-V3.2's (the
//! kernels take the absorbed form, 128 heads of 576 that share keys; the others the expanded one, 128 heads of 192 with values of
//! 128), the same with the 16 heads of
//! DeepSeek-V2-Lite, and grouped queries, 32 heads of 128 that share 4 heads of keys. 2,048 keys are selected. Inputs are random.
//! The first pass of a size under a mask is told apart: cuDNN plans then.

use kernels::dsa::Values;
use kernels::dsa::gpu::attention::SelectedAttention;
use kernels::dsa::gpu::choice::{HeadShape, Problem, Way, choose};
use kernels::dsa::gpu::indexer::IndexerKernels;
use kernels::dsa::gpu::masked::MaskedAttention;
use kernels::tch::{Device, Tensor};

use super::sparse::{Inputs, TOPK, backward, measure, random, wait_for};
use super::timing::{Timing, secs};
use crate::error::TrainerError;

/// The longest document that dense kernels are given under a mask.
const LONGEST_MASKED: i64 = 16_384;
const LENGTHS: [i64; 7] = [1024, 2048, 3072, 4096, 6144, 8192, 16_384];

/// One form of a layer's heads.
#[derive(Clone, Copy)]
struct Form {
    heads: i64,
    kv_heads: i64,
    dim: i64,
    v_dim: i64,
    owns_values: bool,
}

/// A layer's attention: as the kernels for gathered keys take it, and as dense kernels do.
struct Shape {
    name: &'static str,
    gathered: Form,
    dense: Form,
}

impl Shape {
    fn heads(&self) -> HeadShape {
        HeadShape {
            heads: self.gathered.heads,
            gathered_kv_heads: self.gathered.kv_heads,
            gathered: [self.gathered.dim, self.gathered.v_dim],
            dense: [self.dense.dim, self.dense.v_dim],
        }
    }
}

const SHAPES: [Shape; 3] = [
    Shape {
        name: "latent, 128 heads",
        gathered: Form {
            heads: 128,
            kv_heads: 1,
            dim: 576,
            v_dim: 512,
            owns_values: false,
        },
        dense: Form {
            heads: 128,
            kv_heads: 128,
            dim: 192,
            v_dim: 128,
            owns_values: true,
        },
    },
    Shape {
        name: "latent, 16 heads",
        gathered: Form {
            heads: 16,
            kv_heads: 1,
            dim: 576,
            v_dim: 512,
            owns_values: false,
        },
        dense: Form {
            heads: 16,
            kv_heads: 16,
            dim: 192,
            v_dim: 128,
            owns_values: true,
        },
    },
    Shape {
        name: "grouped, 32 heads",
        gathered: GROUPED,
        dense: GROUPED,
    },
];

const GROUPED: Form = Form {
    heads: 32,
    kv_heads: 4,
    dim: 128,
    v_dim: 128,
    owns_values: true,
};

/// Queries, keys, values and the gradient of what they attend to.
struct Heads {
    form: Form,
    q: Tensor,
    k: Tensor,
    v: Option<Tensor>,
    grad: Tensor,
}

impl Heads {
    fn new(form: Form, len: i64, device: Device) -> Heads {
        let leaf = |heads, width| random(&[len, heads, width], device).set_requires_grad(true);
        Heads {
            form,
            q: leaf(form.heads, form.dim),
            k: leaf(form.kv_heads, form.dim),
            v: form.owns_values.then(|| leaf(form.kv_heads, form.v_dim)),
            grad: random(&[len, form.heads, form.v_dim], device),
        }
    }

    /// Of a head of the model.
    fn scale(&self) -> f64 {
        (self.form.dim.min(192) as f64).powf(-0.5)
    }

    /// `None` where `attend` gives nothing.
    fn measure(
        &self,
        timing: Timing,
        attend: impl Fn() -> Option<Tensor>,
    ) -> Result<Option<Times>, TrainerError> {
        let mut leaves = vec![&self.q, &self.k];
        leaves.extend(&self.v);
        let back = |output: &Tensor| backward(output, &self.grad, &self.q);
        let mut is_known = false;
        let first = secs(|| is_known = attend().as_ref().map(back).is_some());
        if !is_known {
            return Ok(None);
        }
        let measured = measure(self.q.device(), timing, &leaves, || {
            let mut output = None;
            let forward = secs(|| output = attend().inspect(wait_for));
            (0.0, forward, output.as_ref().map_or(0.0, back))
        })?;
        let forward = measured.forward;
        Ok(Some([forward, forward + measured.backward, first]))
    }

    fn gathered(&self, selected: &Tensor) -> Option<Tensor> {
        let values = self
            .v
            .as_ref()
            .map_or(Values::KeyPrefix(self.form.v_dim), Values::Own);
        let width = selected.size()[1];
        let attention = SelectedAttention::new(&self.q, &self.k, values, width, self.scale())?;
        attention.attend(0, selected);
        Some(attention.into_output())
    }

    fn masked(&self, selected: &Tensor) -> Option<Tensor> {
        let (q, k, v) = (&self.q, &self.k, self.v.as_ref()?);
        let mut attention = MaskedAttention::new(q, k, v, self.scale())?;
        attention.attend(0, selected).ok()?;
        Some(attention.into_output())
    }

    fn causal(&self) -> Option<Tensor> {
        let v = self.v.as_ref()?;
        let width = self.form.dim;
        let batch = |x: &Tensor| {
            let x = x.constant_pad_nd([0, width - x.size()[2]]);
            x.transpose(0, 1).unsqueeze(0)
        };
        let shares = self.form.kv_heads != self.form.heads;
        let attended = Tensor::scaled_dot_product_attention(
            &self.q.transpose(0, 1).unsqueeze(0),
            &self.k.transpose(0, 1).unsqueeze(0),
            &batch(v),
            None::<&Tensor>,
            0.0,
            true,
            self.scale(),
            shares,
        );
        let attended = attended.squeeze_dim(0).transpose(0, 1);
        Some(attended.narrow(2, 0, self.form.v_dim))
    }
}

/// Seconds of a pass forward, of one forward and back, and of the very first of those.
type Times = [f64; 3];

/// Measures and prints a row for every shape and length.
///
/// # Errors
/// No GPU, and errors of `print`.
pub(super) fn run<E: From<TrainerError>>(
    device: Device,
    timing: Timing,
    print: &mut impl FnMut(&str) -> Result<(), E>,
) -> Result<(), E> {
    let inputs = Inputs::new(device, 64);
    let Some(kernels) = IndexerKernels::of(&inputs.index_q, &inputs.index_k) else {
        return print(
            "\nsparse-ways: measured on a GPU only, with the kernels' libraries in reach (docs/gpu.md)",
        );
    };
    for shape in SHAPES {
        print(&format!("\n{}", header(shape.name)))?;
        for len in LENGTHS {
            let selected = Inputs::new(device, len).selected(kernels);
            let selected = selected.narrow(1, 0, TOPK.min(len)).contiguous();
            let gathered = {
                let heads = Heads::new(shape.gathered, len, device);
                heads.measure(timing, || heads.gathered(&selected))?
            };
            let heads = Heads::new(shape.dense, len, device);
            let causal = heads.measure(timing, || heads.causal())?;
            let masked = match len <= LONGEST_MASKED {
                true => heads.measure(timing, || heads.masked(&selected))?,
                false => None,
            };
            for line in rows(&shape, len, [gathered, masked, causal]) {
                print(&line)?;
            }
        }
    }
    Ok(())
}

/// A row forward and one forward and back: times of the ways gathered, masked and dense, the choice, and its time over the best one.
fn rows(shape: &Shape, len: i64, times: [Option<Times>; 3]) -> [String; 2] {
    [(0, "forward"), (1, "forward, backward")].map(|(part, name)| {
        let way = choose(&Problem {
            len,
            most_visible: len,
            topk: TOPK,
            learns: part == 1,
            shape: shape.heads(),
        });
        let first = times[1].filter(|_| part == 1).map(|times| times[2]);
        let times = times.map(|times| times.map(|times| times[part]));
        let ms =
            |secs: Option<f64>| secs.map_or("-".to_string(), |secs| format!("{:.2}", secs * 1e3));
        format!(
            "{len:>6}  {name:<18}{:>10}{:>10}{:>10}  {:<10}{:>6}{:>15}",
            ms(times[0]),
            ms(times[1]),
            ms(times[2]),
            format!("{way:?}").to_lowercase(),
            over_best(way, len, times).map_or("-".to_string(), |share| format!("{share:.2}")),
            ms(first)
        )
    })
}

/// The time of `way` over that of the fastest way to the same result, where `times` are those of gathered, masked and dense attention.
fn over_best(way: Way, len: i64, [gathered, masked, causal]: [Option<f64>; 3]) -> Option<f64> {
    // Where keys are left out, dense attention is another result.
    let causal = causal.filter(|_| len <= TOPK);
    let chosen = match way {
        Way::Gathered => gathered,
        Way::Masked => masked,
        Way::Dense => causal,
    };
    let best = [gathered, masked, causal]
        .into_iter()
        .flatten()
        .reduce(f64::min);
    Some(chosen? / best?)
}

fn header(name: &str) -> String {
    format!(
        "{:<26}{:>10}{:>10}{:>10}  {:<10}{:>6}{:>15}",
        format!("{name}, ms"),
        "gathered",
        "masked",
        "dense",
        "choice",
        "/ best",
        "masked, first"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_choice_is_compared_with_ways_to_the_same_result() {
        let times = [Some(3.0), Some(2.0), Some(1.0)];
        assert_eq!(over_best(Way::Gathered, TOPK, times), Some(3.0));
        assert_eq!(over_best(Way::Gathered, TOPK + 1, times), Some(1.5));
        assert_eq!(over_best(Way::Masked, TOPK + 1, times), Some(1.0));
        assert_eq!(
            over_best(Way::Gathered, TOPK + 1, [Some(3.0), None, None]),
            Some(1.0)
        );
        assert_eq!(
            over_best(Way::Masked, TOPK + 1, [Some(3.0), None, None]),
            None
        );
    }

    #[test]
    fn a_row_stands_below_its_header() {
        let [forward, _] = rows(
            &SHAPES[0],
            1024,
            [Some([3e-3, 9e-3, 1e-2]), None, Some([1e-3, 4e-3, 5e-3])],
        );
        assert_eq!(forward.len(), header("").len());
        assert!(forward.contains("dense       1.00  "), "{forward}");
    }
}
