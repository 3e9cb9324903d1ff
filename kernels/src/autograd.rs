//! Autograd entry points that tch lacks.

/// Whether operations on this thread are recorded.
pub fn is_enabled() -> bool {
    true
}
/// x
pub fn checkpoint(_i:&[tch::Tensor], _f: impl Fn(&[tch::Tensor])->Vec<tch::Tensor> + 'static)->Vec<tch::Tensor>{todo!()}
