//! Temporary signatures.
use tch::Tensor;
/// x
pub struct Attended { /// o
 pub output: Tensor, /// h
 pub head_probs_sum: Tensor }
/// x
pub fn index_scores(_q:&Tensor,_w:&Tensor,_k:&Tensor)->Tensor{todo!()}
/// x
pub fn mask_invisible_(_s:&mut Tensor,_o:i64,_t:i64,_b:&Tensor){todo!()}
/// x
pub fn select_topk(_s:&Tensor,_k:i64)->Tensor{todo!()}
/// x
pub fn attend_selected(_q:&Tensor,_k:&Tensor,_v:&Tensor,_s:&Tensor,_sc:f64,_t:i64)->Attended{todo!()}
/// x
pub fn attend_selected_cached(_q:&Tensor,_k:&Tensor,_v:&Tensor,_s:&Tensor,_sc:f64)->Tensor{todo!()}
