//! `baleen env show`: a task as the policy sees it.

use environments::Family;
use serde_json::{Value, json};

use super::super::{Failure, output};
use super::{TaskArguments, shown, title, turns};

/// Show a task: its prompt and tools, and on request its worked solution
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  baleen env show sums --level 5 --seed 7
  baleen env show order_desk --level 2 --witness       the solution, its calls played")]
pub struct Args {
    #[command(flatten)]
    task: TaskArguments,
    /// Also the worked solution, played: its calls, their results, and what it earns
    #[arg(long)]
    witness: bool,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

/// Prints the task.
pub fn run(args: &Args) -> Result<(), Failure> {
    let key = args.task.key()?;
    let task = Family::task(&key);
    let played = args.witness.then(|| turns::worked_solution(&task));
    let played = played.transpose().map_err(|fault| {
        Failure::running(fault).hint("`baleen sandbox doctor` says what runs here")
    })?;
    let text = match args.json {
        true => {
            let tools: Vec<Value> = task.tools.iter().map(|tool| tool.to_json()).collect();
            let mut shown = json!({
                "family": key.family,
                "version": key.family.version(),
                "domain": key.family.domain(),
                "split": key.split,
                "level": key.level,
                "seed": key.seed,
                "needs_sandbox": key.family.needs_sandbox(),
                "system": task.system,
                "question": task.question,
                "tools": tools,
                "limits": task.limits,
            });
            if let Some(played) = &played {
                shown["witness"] = played.json();
            }
            shown.to_string()
        }
        false => {
            let mut text = format!("{}\n\n{}", title(&key), shown(&task));
            if task.has_turns() {
                let limits = task.limits;
                text += &format!(
                    "\nlimits: {} turns, {} calls, {} bytes a result, {} s\n",
                    limits.max_turns, limits.max_calls, limits.max_result_bytes, limits.max_secs
                );
            }
            if let Some(played) = &played {
                text += &format!("\nworked solution:\n\n{}", played.text());
            }
            text.trim_end().to_string()
        }
    };
    output::print_line(&text).map(|_| ())
}
