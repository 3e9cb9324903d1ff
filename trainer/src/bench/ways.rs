//! The ways to attend to a document's selected keys, side by side by length: what `kernels::dsa::gpu::choice` rests on.
//!
//! All of them give the same result: the kernels for gathered keys; dense attention under a mask of the others, by libtorch's kernels or
//! by cuDNN's; and, where a document has no more tokens than keys are selected, dense causal attention. Two shapes: DeepSeek-V3.2's (the
//! kernels take the absorbed form, 128 heads of 576 that share keys; the others the expanded one, 128 heads of 192 with values of
//! 128), and grouped queries, 32 heads of 128 that share 4 heads of keys. 2,048 keys are selected. Inputs are random.

use kernels::autograd;
use kernels::dsa::Values;
use kernels::dsa::gpu::attention::SelectedAttention;
use kernels::dsa::gpu::indexer::IndexerKernels;
use kernels::dsa::gpu::masked::{Library, MaskedAttention};
use kernels::tch::{Device, Tensor};

use super::sparse::{Inputs, Measured, TOPK, backward, measure, random, wait_for};
use super::timing::{Timing, secs};
use crate::error::TrainerError;

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

const SHAPES: [Shape; 2] = [
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

    fn measure(
        &self,
        timing: Timing,
        attend: impl Fn() -> Option<Tensor>,
    ) -> Result<Option<Measured>, TrainerError> {
        let mut leaves = vec![&self.q, &self.k];
        leaves.extend(&self.v);
        // Not every library knows every shape, forward or backward.
        let Some(output) = attend() else {
            return Ok(None);
        };
        if let Err(error) = autograd::backward(&[output], &[self.grad.shallow_clone()]) {
            eprintln!("backward: {error}");
            return Ok(None);
        }
        let measured = measure(self.q.device(), timing, &leaves, || {
            let mut output = None;
            let forward = secs(|| output = attend().inspect(wait_for));
            let back = output.map_or(0.0, |output| backward(&output, &self.grad, &self.q));
            (0.0, forward, back)
        })?;
        Ok(Some(measured))
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

    fn masked(&self, selected: &Tensor, library: Library, rows_at_once: i64) -> Option<Tensor> {
        let heads = (&self.q, &self.k, self.v.as_ref()?);
        let mut attention = MaskedAttention::by(library, rows_at_once, heads, self.scale())?;
        match attention.attend(0, selected) {
            Ok(()) => Some(attention.into_output()),
            Err(error) => {
                eprintln!("{library:?}: {error}");
                None
            }
        }
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

/// Measures and prints a row for every shape, length and way.
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
            "\nways: measured on a GPU only, with the kernels' libraries in reach (docs/gpu.md)",
        );
    };
    for shape in SHAPES {
        print(&format!(
            "\n{}\n{:>6}  {:<29}{:>12}{:>13}{:>12}",
            shape.name, "tokens", "way", "forward, ms", "backward, ms", "memory, GB"
        ))?;
        for len in LENGTHS {
            let selected = Inputs::new(device, len).selected(kernels);
            let selected = selected.narrow(1, 0, TOPK.min(len)).contiguous();
            let mut show = |name: &str, measured: Option<Measured>| match measured {
                Some(measured) => print(&row(len, name, &measured)),
                None => Ok(()),
            };
            {
                let heads = Heads::new(shape.gathered, len, device);
                show(
                    "gathered",
                    heads.measure(timing, || heads.gathered(&selected))?,
                )?;
            }
            let heads = Heads::new(shape.dense, len, device);
            show("causal", heads.measure(timing, || heads.causal())?)?;
            for library in [Library::Libtorch, Library::Cudnn] {
                for rows in [len, 2048, 1024, 512] {
                    if len > 8192 || (rows != len && rows > len / 2) {
                        continue;
                    }
                    let way = || heads.masked(&selected, library, rows);
                    show(
                        &format!("masked {library:?} {rows}"),
                        heads.measure(timing, way)?,
                    )?;
                }
            }
        }
    }
    Ok(())
}

fn row(len: i64, name: &str, measured: &Measured) -> String {
    format!(
        "{len:>6}  {name:<29}{:>12.2}{:>13.2}{:>12.2}",
        measured.forward * 1e3,
        measured.backward * 1e3,
        measured.peak_bytes as f64 / 1e9
    )
}
