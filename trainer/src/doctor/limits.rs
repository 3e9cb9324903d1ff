//! How far sampler and trainer may lie apart.
//!
//! They use different kernels, so that rounding parts them; where it decides a near tie between keys, a
//! single token may part far. The limits lie above what sound policies show and below what the faults do
//! that the tests plant; `docs/doctor.md` has both.

use kernels::tch::Kind;

/// Limits for one compute type.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// |trainer - sampler| log-prob, mean over tokens, nats; at most.
    pub gap_mean: f64,
    /// The same, largest; at most.
    pub gap_max: f64,
    /// Share of the recorded experts that free routing chooses; at least.
    pub routing: f64,
    /// |recorded and own| / |recorded or own| of the kept tokens, mean over tokens; at least.
    pub kept: f64,
    /// Share of the recorded keys that the trainer's indexer selects; at least.
    pub selection: f64,
}

/// In f32.
pub const F32: Limits = Limits {
    gap_mean: 1e-4,
    gap_max: 0.1,
    routing: 0.999,
    kept: 0.999,
    selection: 0.999,
};

/// In bf16.
pub const BF16: Limits = Limits {
    gap_mean: 0.1,
    gap_max: 3.0,
    routing: 0.95,
    kept: 0.85,
    selection: 0.9,
};

impl Limits {
    /// Those of computation in `kind`.
    pub fn of(kind: Kind) -> Limits {
        match kind {
            Kind::Float => F32,
            _ => BF16,
        }
    }

    /// Whether a gap lies within them.
    pub fn hold(&self, gap: &super::gap::Gap) -> bool {
        gap.mean <= self.gap_mean && gap.max <= self.gap_max
    }
}
