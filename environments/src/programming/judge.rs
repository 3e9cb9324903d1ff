//! Runs a policy's function on hidden inputs in the sandbox and compares the outputs here, outside.
//!
//! ```text
//! driver: solve = solution.py's; for each line of standard input: print json(solve(json(line)))
//! reward 1 iff it exits with 0 within the limits and its lines are the expected ones, byte by byte
//! ```
//!
//! No expected output is ever inside the jail, so there is nothing to read and nothing to forge: whatever the
//! program does to the driver, it must print the right outputs, which it has to compute. A missing, wrong or
//! additional line fails. What the program prints goes to standard error and is not looked at.

use std::time::Duration;

use sandbox::{End, FileIn, JailSpec, Limits, Outcome};

use crate::programming::value::Value;
use crate::sandboxed::sandbox;
use crate::verdict::{Fault, FaultKind, Verdict};

/// Processor seconds that a program may take, the interpreter's start included.
pub(crate) const CPU_SECS: u64 = 2;
/// Seconds that a run may take: below the 10 of `grading.timeout_secs`, above [`CPU_SECS`] for a machine that is busy.
const WALL: Duration = Duration::from_secs(7);

/// Reads all input before it runs any of the policy's lines.
const DRIVER: &str = r#"import json, os, sys
results = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
lines = sys.stdin.read().splitlines()
with open("solution.py", encoding="utf-8") as file:
    source = file.read()
names = {"__name__": "solution"}
exec(compile(source, "solution.py", "exec"), names)
for line in lines:
    results.write(json.dumps(names["solve"](json.loads(line)), separators=(",", ":")) + "\n")
results.close()
"#;

/// Rules that every question states.
pub(crate) fn rules() -> String {
    format!(
        "Only Python's standard library is there. The function is called on hidden inputs, all in one run of at most {CPU_SECS} seconds of processor time and 512 MiB; every result must be equal to the right one, of the same type. Print nothing."
    )
}

/// Grades a program: its `solve` must give `expected` for `inputs`.
pub(crate) fn grade_code(code: &str, inputs: &[Value], expected: &[Value]) -> Verdict {
    let stdin: String = inputs.iter().map(|input| input.json() + "\n").collect();
    let expected: Vec<String> = expected.iter().map(Value::json).collect();
    match run(code, &stdin) {
        Ok(outcome) => verdict(code, &outcome, &expected),
        Err(fault) => fault.into(),
    }
}

/// One run of the driver.
///
/// # Errors
/// A fault of the sandbox; what the program does is no error.
pub(crate) fn run(code: &str, stdin: &str) -> Result<Outcome, Fault> {
    run_within(code, stdin, CPU_SECS, WALL)
}

/// The same within other limits.
///
/// # Errors
/// A fault of the sandbox.
pub(crate) fn run_within(
    code: &str,
    stdin: &str,
    cpu_secs: u64,
    wall: Duration,
) -> Result<Outcome, Fault> {
    let spec = JailSpec {
        limits: Limits {
            cpu_secs,
            wall,
            num_tasks: 16,
            disk_bytes: 16 << 20,
            ..Limits::default()
        },
        // Alone with the standard library: no site packages, no settings from the environment.
        ..JailSpec::new(["/usr/bin/python3", "-I", "-S", "-B", "main.py"])
    };
    let files = [
        FileIn::new("main.py", DRIVER),
        FileIn::new("solution.py", code),
    ];
    let outcome = sandbox()?.run(&spec, &files, stdin.as_bytes(), &[])?;
    match &outcome.end {
        End::NotStarted(reason) => {
            let reason = format!("/usr/bin/python3 could not be started: {reason}");
            Err(Fault::new(FaultKind::Infra, reason))
        }
        _ => Ok(outcome),
    }
}

/// The word on a run. Parts: `correct` (share of right outputs), and 1 for each way in which it failed.
fn verdict(code: &str, outcome: &Outcome, expected: &[String]) -> Verdict {
    let lines: Vec<&[u8]> = outcome.stdout.split(|&byte| byte == b'\n').collect();
    // Every line ends with a line break, so that what follows the last is empty.
    let is_complete =
        lines.len() == expected.len() + 1 && lines.last().is_some_and(|l| l.is_empty());
    let is_right = |(line, wanted): (&&[u8], &String)| **line == *wanted.as_bytes();
    let num_right = lines
        .iter()
        .zip(expected)
        .filter(|&pair| is_right(pair))
        .count();
    let flags = &outcome.flags;
    let failures = [
        ("timed_out", flags.timed_out || flags.out_of_cpu),
        ("out_of_memory", flags.out_of_memory),
        (
            "other_limit",
            flags.out_of_tasks || flags.out_of_disk || flags.output_cut,
        ),
        (
            "crashed",
            !matches!(outcome.end, End::Exited(0) | End::Killed),
        ),
        ("missing_outputs", !is_complete),
    ];
    let is_full = outcome.is_success() && is_complete && num_right == expected.len();
    let mut extracted = code.trim_end().to_string();
    if outcome.end != End::Exited(0) {
        extracted += &format!("\n# {}", last_words(outcome));
    }
    let failures = failures.into_iter().filter(|(_, is_so)| *is_so);
    let mut parts: std::collections::BTreeMap<String, f64> =
        failures.map(|(name, _)| (name.to_string(), 1.0)).collect();
    let share = num_right as f64 / expected.len().max(1) as f64;
    parts.insert("correct".to_string(), share);
    Verdict::Graded {
        reward: f64::from(is_full),
        extracted: Some(extracted),
        parts,
        tamper: Vec::new(),
    }
}

/// How a run ended that failed: the last line that it wrote to standard error, as that of an exception.
fn last_words(outcome: &Outcome) -> String {
    let stderr = String::from_utf8_lossy(&outcome.stderr);
    let line = stderr.lines().rfind(|line| !line.trim().is_empty());
    let line: String = line.unwrap_or_default().chars().take(200).collect();
    format!("{:?} {line}", outcome.end)
}

#[cfg(test)]
mod tests;
