//! Experts and gates of tokens from a router's logits.
//!
//! scores s = softmax(z) or sigmoid(z); S = recorded experts, or the K best of s + bias, ties to the lower expert;
//! gates g = scaling s_S, divided by sum_S s + 1e-20 where normalised. The gradient reaches z through s_S. All in f32.
//! T tokens, E experts.

use tch::{Kind, Tensor};

use super::{address, int, launch_kernel};
use crate::autograd::custom;
use crate::cuda::compile::DISPATCH;
use crate::cuda::{Argument, DefaultStream};
use crate::decode::experts::Gating;

const THREADS: u32 = 256;
/// Tokens of a block: a warp each.
const TOKENS: i64 = 8;
/// Experts of a token that the kernel keeps in registers.
const MOST_CHOSEN: i64 = 16;

/// Where tokens go.
#[derive(Debug)]
pub struct Routed {
    /// S, i64 `[T, K]`.
    pub experts: Tensor,
    /// f32 `[T, K]`.
    pub gates: Tensor,
    /// How many of the K best of each token are in S, i32 `[T]`.
    pub agreeing: Tensor,
}

/// Routes; `None` where there is no kernel for these tensors.
///
/// # Shapes
/// `logits` f32 `[T, E]`, `bias` f32 `[E]`, `recorded` i64 `[T, K]` of distinct experts.
pub fn route(
    logits: &Tensor,
    bias: Option<&Tensor>,
    recorded: Option<&Tensor>,
    gating: Gating,
) -> Option<Routed> {
    let (tokens, experts) = logits.size2().expect("logits are [T, E]");
    let Gating {
        top_k,
        is_sigmoid,
        normalise,
        scaling,
    } = gating;
    let fits = logits.kind() == Kind::Float && top_k <= MOST_CHOSEN.min(experts);
    let stream = DefaultStream::of(logits.device()).filter(|_| fits)?;
    let own = logits.detach().contiguous();
    let [bias, recorded] = [bias, recorded].map(|given| given.map(|x| x.detach().contiguous()));
    if let Some(recorded) = &recorded {
        assert_eq!(
            (recorded.kind(), recorded.size()),
            (Kind::Int64, vec![tokens, top_k])
        );
    }
    let empty = |size: &[i64], kind| Tensor::empty(size, (kind, logits.device()));
    let scores = own.empty_like();
    let chosen = empty(&[tokens, top_k], Kind::Int64);
    let gates = empty(&[tokens, top_k], Kind::Float);
    let agreeing = empty(&[tokens], Kind::Int);
    let optional = |given: &Option<Tensor>| given.as_ref().map_or(Argument::Pointer(0), address);
    let numbers = [
        int(tokens),
        int(experts),
        int(top_k),
        int(is_sigmoid.into()),
        int(normalise.into()),
        Argument::Float(scaling as f32),
    ];
    let inputs = [address(&own), optional(&bias), optional(&recorded)];
    let outputs = [&scores, &chosen, &gates, &agreeing].map(address);
    let arguments = [&inputs[..], &numbers, &outputs].concat();
    // SAFETY: logits and scores are [T, E], the bias [E], experts and gates [T, K]; recorded experts lie below E.
    unsafe { put(stream, "route", tokens, &arguments) };
    let experts = chosen.shallow_clone();
    let outputs = custom(vec![gates], &[logits], move |grads| {
        let grad = grads.into_iter().next().flatten().map(|grad| {
            let (grad, grad_logits) = (grad.contiguous(), scores.empty_like());
            let inputs = [&grad, &scores, &chosen].map(address);
            let arguments = [&inputs[..], &numbers, &[address(&grad_logits)]].concat();
            // SAFETY: as above.
            unsafe { put(stream, "route_backward", tokens, &arguments) };
            grad_logits
        });
        vec![grad]
    });
    Some(Routed {
        experts,
        gates: outputs
            .expect("an output in a floating type can be given a history")
            .remove(0),
        agreeing,
    })
}

/// Launches a warp for every token.
///
/// # Safety
/// As [`DefaultStream::launch`].
unsafe fn put(stream: &DefaultStream, name: &str, tokens: i64, arguments: &[Argument]) {
    let blocks = (tokens + TOKENS - 1) / TOKENS;
    // SAFETY: the caller's.
    unsafe {
        launch_kernel(
            stream,
            (&DISPATCH, &[], name),
            [blocks, 1],
            THREADS,
            arguments,
        )
    }
}

/// [`route`], the slow way.
pub fn route_reference(
    logits: &Tensor,
    bias: Option<&Tensor>,
    recorded: Option<&Tensor>,
    gating: Gating,
) -> Routed {
    let scores = match gating.is_sigmoid {
        true => logits.sigmoid(),
        false => logits.softmax(-1, Kind::Float),
    };
    let choice = bias.map_or_else(|| scores.detach(), |bias| scores.detach() + bias);
    let (_, order) = choice.sort_stable(true, -1, true);
    let best = order.narrow(-1, 0, gating.top_k).contiguous();
    let experts = recorded.map_or_else(|| best.shallow_clone(), Tensor::shallow_clone);
    let same = best
        .unsqueeze(-1)
        .eq_tensor(&experts.unsqueeze(-2))
        .any_dim(-1, false);
    let chosen = scores.gather(-1, &experts, false);
    let gates = match gating.normalise {
        true => &chosen / (chosen.sum_dim_intlist(-1, true, Kind::Float) + 1e-20),
        false => chosen,
    };
    Routed {
        experts,
        gates: gates * gating.scaling,
        agreeing: same.sum_dim_intlist(-1, false, Kind::Int),
    }
}
