//! Single operations of a model at its shapes: time, rates, and the share of the machine's limit, of our kernels beside
//! libtorch's operations.
//!
//! A row is an [`Operation`]: what it needs at least, and how it is run. What a row reads and writes counts once; to add
//! one, write a function that returns it and name it in [`GROUPS`]. The limit of a row is what its operations and
//! bytes take at the measured ceilings. "Forward and backward" computes the gradients of all inputs.

mod decoding;
mod learning;

use kernels::runtime::synchronize;
use kernels::tch::{Device, Kind, Tensor};
use model::ModelConfig;

use super::ceilings::Ceilings;
use super::grpo::GrpoShape;
use super::timing::{Timing, rate};
use super::work::Work;
use super::workloads::Subject;

/// One way to compute something, as often as it is called.
type Run = Box<dyn Fn()>;

/// A row of the table.
struct Operation {
    name: String,
    work: Work,
    /// By our kernel, where there is one for this device.
    fused: Option<Run>,
    /// By libtorch's operations.
    plain: Option<Run>,
}

/// What the operations are measured on.
struct Shapes<'a> {
    config: &'a ModelConfig,
    shape: GrpoShape,
    kind: Kind,
    device: Device,
}

impl Shapes<'_> {
    /// Rows of a micro-batch.
    fn rows(&self) -> i64 {
        self.shape.micro_batch_tokens as i64
    }

    fn random(&self, size: &[i64]) -> Tensor {
        Tensor::randn(size, (Kind::Float, self.device)).to_kind(self.kind)
    }

    /// A leaf that wants a gradient.
    fn leaf(&self, size: &[i64]) -> Tensor {
        (self.random(size) * 0.1).set_requires_grad(true)
    }

    /// Operations and the bytes of so many numbers in the compute type.
    fn work(&self, flops: f64, numbers: i64) -> Work {
        let bytes = numbers as f64 * self.kind.elt_size_in_bytes() as f64;
        Work { flops, bytes }
    }
}

/// All rows, in groups that are made when their turn comes: the tensors of one are gone before the next.
const GROUPS: [fn(&Shapes) -> Vec<Operation>; 7] = [
    learning::products,
    learning::norms,
    learning::swiglu,
    learning::attention,
    learning::head,
    learning::experts,
    decoding::all,
];

/// Measures every operation and hands each line of the table to `print`.
///
/// # Errors
/// Those of `print`.
pub(super) fn run<E>(
    subject: &Subject,
    ceilings: Ceilings,
    print: &mut impl FnMut(&str) -> Result<(), E>,
) -> Result<(), E> {
    let shapes = Shapes {
        config: subject.config(),
        shape: subject.shape,
        kind: subject.policy.kind(),
        device: subject.policy.device(),
    };
    print(&format!("\n{}", header()))?;
    for operation in GROUPS.iter().flat_map(|group| group(&shapes)) {
        let secs = |run: &Option<Run>| {
            let run = run.as_ref()?;
            Some(secs_of(run, shapes.device, subject.timing))
        };
        let [fused, plain] = [&operation.fused, &operation.plain].map(secs);
        print(&line(
            &operation.name,
            operation.work,
            [fused, plain],
            ceilings,
        ))?;
    }
    Ok(())
}

/// Seconds of one run among many.
fn secs_of(run: &Run, device: Device, timing: Timing) -> f64 {
    let runs_per_sec = rate(timing, 1.0, |times| {
        (0..times).for_each(|_| run());
        synchronize(device);
    });
    1.0 / runs_per_sec
}

fn header() -> String {
    format!(
        "{:<40}{:>9}{:>9}{:>9}{:>9}{:>11}{:>9}",
        "operation", "ms", "TFLOP/s", "GB/s", "reached", "libtorch ms", "reached"
    )
}

/// Time and rates of our kernel, or of libtorch where there is none; then libtorch's.
fn line(name: &str, work: Work, [fused, plain]: [Option<f64>; 2], ceilings: Ceilings) -> String {
    let reached = |secs: f64| format!("{:.0} %", 100.0 * ceilings.secs(work) / secs);
    let columns = |secs: f64| {
        let (tflops, gbytes) = (work.flops / secs / 1e12, work.bytes / secs / 1e9);
        format!(
            "{:>9.4}{tflops:>9.2}{gbytes:>9.1}{:>9}",
            1e3 * secs,
            reached(secs)
        )
    };
    let first = fused.or(plain).map_or(String::new(), columns);
    let beside = match (fused, plain) {
        (Some(_), Some(secs)) => format!("{:>11.4}{:>9}", 1e3 * secs, reached(secs)),
        _ => String::new(),
    };
    format!("{name:<40}{first}{beside}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_tells_rates_and_shares_of_both_ways() {
        let ceilings = Ceilings {
            flops_per_sec: 100e12,
            bytes_per_sec: 1000e9,
        };
        let work = Work {
            flops: 1e12,
            bytes: 20e9,
        };
        let found = line("norm, 2 rows", work, [Some(0.04), Some(0.1)], ceilings);
        let words: Vec<&str> = found.split_whitespace().collect();
        // The limit is 20 GB at 1000 GB/s.
        assert_eq!(
            words,
            [
                "norm,", "2", "rows", "40.0000", "25.00", "500.0", "50", "%", "100.0000", "20", "%"
            ]
        );
        let alone = line("norm", work, [None, Some(0.1)], ceilings);
        assert!(alone.trim_end().ends_with("20 %"), "{alone}");
        assert!(found.len() <= 100 && header().len() <= 100);
    }
}
