//! `baleen selftest`: every GPU kernel against its reference, on this machine.

use clap::ValueEnum;
use kernels::decode::selftest::{self, Outcome};
use kernels::runtime::{self, Cuda};
use kernels::tch::Device;
use kernels::{dsa, fused};

use super::{Failure, logging, output};

/// Compare every GPU kernel with its reference on this machine
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where the kernels run
    #[arg(long, value_enum, default_value_t = SelftestDevice::Cuda)]
    device: SelftestDevice,
    /// Of the random inputs
    #[arg(long, default_value_t = 0)]
    seed: i64,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum SelftestDevice {
    /// The first GPU
    Cuda,
}

/// Prints a line an operation; fails where one differs.
pub fn run(args: &Args) -> Result<(), Failure> {
    logging::start()?;
    let SelftestDevice::Cuda = args.device;
    let runtime = runtime::start(0);
    let Device::Cuda(_) = runtime.device else {
        let text = match runtime.cuda {
            Cuda::Unusable { reason } => reason,
            _ => "this machine has no NVIDIA driver, or torch's CUDA libraries are not installed"
                .to_string(),
        };
        return Err(Failure::running(text).hint(
            "set LD_LIBRARY_PATH to the lib folders of a torch 2.11 with CUDA (README.md, 'On a GPU')",
        ));
    };
    let decoding = selftest::run(runtime.device, args.seed);
    let learning = || fused::selftest::run(runtime.device, args.seed);
    let sparse = || dsa::gpu::selftest::run(runtime.device, args.seed);
    let outcomes = decoding
        .and_then(|decoding| Ok([decoding, learning()?, sparse()?].concat()))
        .map_err(|error| Failure::running(error.to_string()))?;
    for outcome in &outcomes {
        if !output::print_line(&line(outcome))? {
            break;
        }
    }
    let num_failed = outcomes
        .iter()
        .filter(|outcome| !outcome.has_passed())
        .count();
    match num_failed {
        0 => Ok(()),
        _ => Err(Failure::running(format!(
            "{num_failed} of {} operations differ",
            outcomes.len()
        ))
        .hint("compute on the CPU (CUDA_VISIBLE_DEVICES=), and report the card and its driver")),
    }
}

fn line(outcome: &Outcome) -> String {
    let state = if outcome.has_passed() {
        "ok     "
    } else {
        "differs"
    };
    let again = if outcome.is_repeatable {
        ""
    } else {
        ", and from run to run"
    };
    let Outcome {
        name,
        difference,
        limit,
        ..
    } = outcome;
    format!("{state}  {name}: {difference:.1e} of at most {limit:.0e}{again}")
}
