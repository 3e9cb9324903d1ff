//! `baleen-sandbox`: the launcher of jails (its stages are started by the library), and two
//! commands for people: `doctor` and `bench`.

use std::process::ExitCode;

use sandbox::{Sandbox, SandboxError, bench, doctor, find_launcher, run_stage};

const USAGE: &str = "usage: baleen-sandbox doctor   what this machine offers and what to change
       baleen-sandbox bench    time of a jail and of Python cells, and a check that 200 at once leave nothing";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(code) = run_stage(&arguments) {
        return code;
    }
    match command(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("baleen-sandbox: error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn command(arguments: &[String]) -> Result<bool, SandboxError> {
    match arguments {
        [name] if name == "doctor" => {
            let chosen = doctor(&find_launcher()?, &mut std::io::stdout()).map_err(|error| {
                SandboxError::Infra {
                    action: "print".to_owned(),
                    cause: error.to_string(),
                }
            })?;
            Ok(chosen.is_some())
        }
        [name] if name == "bench" => bench(&Sandbox::open()?),
        _ => {
            eprintln!("{USAGE}");
            Ok(false)
        }
    }
}
