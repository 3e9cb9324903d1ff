//! Autograd entry points that tch lacks.

/// Whether operations on this thread are recorded.
pub fn is_enabled() -> bool {
    true
}
