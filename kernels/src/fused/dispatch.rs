//! A learner's rows on their way to experts and back.
//!
//! T tokens go to K of E experts each; the N = T K assignments are sorted by expert, within an expert by token.
//! Row r of the sorted ones belongs to the assignment `order[r]` = t K + j:
//!   gather:   out[r] = x[t]
//!   combine:  out[t] = sum_j gates[t, j] rows[place of t K + j], summed in f32 and rounded once.
//! Nothing here waits for a device. W is the width of a row.

use tch::{Kind, Tensor};

use super::{EIGHT, address, int, launch_kernel, stream};
use crate::autograd::custom;
use crate::cuda::compile::DISPATCH;
use crate::cuda::{Argument, DefaultStream};

const THREADS: u32 = 256;
/// Rows of a block where each has a warp.
const WARPS: i64 = 8;

/// Which rows go where.
#[derive(Debug)]
pub struct Dispatch {
    /// Assignment of each sorted row, i64 `[N]`.
    order: Tensor,
    /// Row after the last of each expert, i32 `[E]`.
    ends: Tensor,
    top_k: i64,
    on_device: Option<OnDevice>,
}

/// What the kernels read.
#[derive(Debug)]
struct OnDevice {
    /// i32 `[N]`.
    order: Tensor,
    /// Sorted row of each assignment, i32 `[N]`.
    places: Tensor,
}

impl Dispatch {
    /// Where the rows of tokens go whose experts are `experts` `[T, K]` i64, each below `num_experts`.
    ///
    /// # Panics
    /// Other shapes.
    pub fn new(experts: &Tensor, num_experts: i64) -> Dispatch {
        let (_, top_k) = experts.size2().expect("experts are [T, K]");
        let device = experts.device();
        // A GPU sorts by digits: fewer of them are faster.
        let key = match device.is_cuda() && num_experts <= i64::from(i16::MAX) {
            true => Kind::Int16,
            false => Kind::Int64,
        };
        let (sorted, order) = experts
            .flatten(0, 1)
            .to_kind(key)
            .sort_stable(true, 0, false);
        let each = Tensor::arange(num_experts, (key, device));
        let ends = each.searchsorted(&sorted, true, true, "right", None::<&Tensor>);
        let on_device = device.is_cuda().then(|| {
            let rows = Tensor::arange(order.size()[0], (Kind::Int, device));
            OnDevice {
                order: order.to_kind(Kind::Int),
                places: rows.empty_like().scatter_(0, &order, &rows),
            }
        });
        Dispatch {
            order,
            ends,
            top_k,
            on_device,
        }
    }

    /// Row after the last of each expert, i32 `[E]`.
    pub fn ends(&self) -> &Tensor {
        &self.ends
    }

    fn token_of(&self) -> Tensor {
        self.order.floor_divide_scalar(self.top_k)
    }

    fn kernels(&self, x: &Tensor) -> Option<(&'static DefaultStream, &OnDevice)> {
        let stream = stream(x).filter(|_| x.size()[1] % EIGHT == 0)?;
        Some((stream, self.on_device.as_ref()?))
    }

    /// The row of each assignment's token, in the order of the experts.
    ///
    /// # Shapes
    /// `x` `[T, W]`; result `[N, W]`.
    pub fn gather(&self, x: &Tensor) -> Tensor {
        let Some((stream, OnDevice { order, places })) = self.kernels(x) else {
            return self.gather_reference(x);
        };
        let (own, width, top_k) = (x.detach().contiguous(), x.size()[1], self.top_k);
        let out = Tensor::empty([order.size()[0], width], (x.kind(), x.device()));
        let arguments = [address(&own), address(order), int(top_k), int(width)];
        // SAFETY: `order` holds N numbers below T K; `x` is [T, W].
        unsafe { each_eight(stream, "gather_rows", &arguments, &out) };
        let (places, shape) = (places.shallow_clone(), x.size());
        let outputs = custom(vec![out], &[x], move |grads| {
            let grad = grads.into_iter().next().flatten().map(|grad| {
                let grad = grad.contiguous();
                let sum = Tensor::empty(&shape, (grad.kind(), grad.device()));
                // SAFETY: every token has K places, all below N.
                unsafe { sum_rows(stream, &grad, None, &places, top_k, &sum) };
                sum
            });
            vec![grad]
        });
        outputs.expect(ACCEPTED).remove(0)
    }

    /// [`Dispatch::gather`], the slow way.
    pub fn gather_reference(&self, x: &Tensor) -> Tensor {
        x.index_select(0, &self.token_of())
    }

    /// The sum of each token's rows, weighted by its gates.
    ///
    /// # Shapes
    /// `rows` `[N, W]` in the order of the experts, `gates` f32 `[T, K]`; result `[T, W]` in the type of `rows`.
    pub fn combine(&self, rows: &Tensor, gates: &Tensor) -> Tensor {
        let Some((stream, OnDevice { order, places })) = self.kernels(rows) else {
            return self.combine_reference(rows, gates);
        };
        let (width, top_k) = (rows.size()[1], self.top_k);
        let (own, weights) = (rows.detach().contiguous(), gates.detach().contiguous());
        assert_eq!(
            (weights.kind(), weights.numel()),
            (Kind::Float, order.numel())
        );
        let out = Tensor::empty([gates.size()[0], width], (rows.kind(), rows.device()));
        // SAFETY: every token has K places, all below N, and as many weights.
        unsafe { sum_rows(stream, &own, Some(&weights), places, top_k, &out) };
        let order = order.shallow_clone();
        let outputs = custom(vec![out], &[rows, gates], move |grads| {
            let Some(grad) = grads.into_iter().next().flatten() else {
                return vec![None, None];
            };
            let grad = grad.contiguous();
            let (grad_rows, grad_weights) = (own.empty_like(), weights.empty_like());
            let num_rows = order.size()[0];
            let arguments = [
                address(&grad),
                address(&own),
                address(&weights),
                address(&order),
                int(top_k),
                int(width),
                int(num_rows),
                address(&grad_rows),
                address(&grad_weights),
            ];
            let (kernel, blocks) = (
                (&DISPATCH, &[][..], "sum_rows_backward"),
                blocks(num_rows, WARPS),
            );
            // SAFETY: rows [N, W], a gradient [T, W], N numbers of the order below T K, T K weights.
            unsafe { launch_kernel(stream, kernel, [blocks, 1], THREADS, &arguments) };
            vec![Some(grad_rows), Some(grad_weights)]
        });
        outputs.expect(ACCEPTED).remove(0)
    }

    /// [`Dispatch::combine`], the slow way: in the order of the experts.
    pub fn combine_reference(&self, rows: &Tensor, gates: &Tensor) -> Tensor {
        let gates = gates
            .flatten(0, 1)
            .index_select(0, &self.order)
            .unsqueeze(1);
        let weighted = rows.to_kind(Kind::Float) * gates;
        let shape = [self.order.size()[0] / self.top_k, rows.size()[1]];
        Tensor::zeros(shape, (Kind::Float, rows.device()))
            .index_add(0, &self.token_of(), &weighted)
            .to_kind(rows.kind())
    }
}

const ACCEPTED: &str = "an output in a floating type can be given a history";

/// out[t] = sum_j weights[t K + j] rows[places[t K + j]].
///
/// # Safety
/// `places` holds K numbers for each row of `out`, below the number of `rows`; so many weights too.
unsafe fn sum_rows(
    stream: &DefaultStream,
    rows: &Tensor,
    weights: Option<&Tensor>,
    places: &Tensor,
    top_k: i64,
    out: &Tensor,
) {
    let arguments = [
        address(rows),
        weights.map_or(Argument::Pointer(0), address),
        address(places),
        int(top_k),
        int(out.size()[1]),
    ];
    // SAFETY: the caller's.
    unsafe { each_eight(stream, "sum_rows", &arguments, out) }
}

/// Launches a thread for every 8 numbers of `out` `[rows, W]`; the kernel takes their number and `out` behind
/// `arguments`.
///
/// # Safety
/// As [`DefaultStream::launch`].
unsafe fn each_eight(stream: &DefaultStream, name: &str, arguments: &[Argument], out: &Tensor) {
    let eights = out.numel() as i64 / EIGHT;
    let arguments = [arguments, &[Argument::Long(eights), address(out)]].concat();
    let blocks = blocks(eights, i64::from(THREADS));
    // SAFETY: the caller's.
    unsafe {
        launch_kernel(
            stream,
            (&DISPATCH, &[], name),
            [blocks, 1],
            THREADS,
            &arguments,
        )
    }
}

fn blocks(items: i64, per_block: i64) -> i64 {
    (items + per_block - 1) / per_block
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dispatch() -> Dispatch {
        Dispatch::new(&Tensor::from_slice(&[2_i64, 0, 0, 3, 2, 3]).view([3, 2]), 5)
    }

    #[test]
    fn rows_are_sorted_by_expert_and_then_by_token() {
        let dispatch = dispatch();
        assert_eq!(
            Vec::<i32>::try_from(dispatch.ends()).unwrap(),
            [2, 2, 4, 6, 6]
        );
        let x = Tensor::from_slice(&[10.0_f32, 20.0, 30.0]).view([3, 1]);
        let sorted = Vec::<f32>::try_from(dispatch.gather(&x).view([-1])).unwrap();
        assert_eq!(sorted, [10.0, 20.0, 10.0, 30.0, 20.0, 30.0]);
    }

    #[test]
    fn gates_weigh_what_comes_back() {
        // Experts 0, 0, 2, 2, 3, 3 of tokens 0, 1, 0, 2, 1, 2.
        let rows = Tensor::from_slice(&[1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0]).view([6, 1]);
        let gates = Tensor::from_slice(&[0.5_f32, 0.1, 1.0, 2.0, 3.0, 4.0]).view([3, 2]);
        let found = dispatch().combine(&rows, &gates).view([-1]);
        // 0.5 x 3 + 0.1 x 1, 1 x 2 + 2 x 5, 3 x 4 + 4 x 6.
        assert_eq!(Vec::<f32>::try_from(found).unwrap(), [1.6, 12.0, 36.0]);
    }
}
