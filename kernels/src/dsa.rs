//! The operations of DeepSeek Sparse Attention: score, mask, select, attend.
//!
//! For query t and key s:  I[t,s] = sum_j w[t,j] relu(q_I[t,j] . k_I[s])   (DeepSeek-V3.2, eq. 1);
//! S_t = the `topk` visible keys of highest I[t,.];  o_t = softmax_{s in S_t}(scale q_t . k_s) v_s.
//! Shapes: Q queries, S keys, H indexer heads, D indexer head dim, K selected keys a query.
//! No gradient flows through the selection. Projections, norms and RoPE are the model's business,
//! as is the indexer's loss. Each operation has its slow twin in [`mod@reference`]; [`gpu`] computes them by kernels
//! where it can.

mod attention;
pub mod gpu;
mod quantization;
pub mod reference;
mod scores;
mod selection;

pub use attention::{
    Attended, Values, attend_gathered, attend_selected, attend_selected_cached, gathers,
};
pub use quantization::{ScaleFormat, fp8_round_trip, hadamard};
pub use scores::{index_scores, mask_invisible_, selected_index_scores};
pub use selection::select_topk;

use tch::{Kind, Tensor};

/// The type sums and softmaxes are computed in: f32, or f64 for f64 inputs.
pub fn accumulation_kind(tensor: &Tensor) -> Kind {
    if tensor.kind() == Kind::Double {
        Kind::Double
    } else {
        Kind::Float
    }
}

#[cfg(test)]
mod gradient_check;
