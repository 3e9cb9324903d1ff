//! Whether the families of a run can be graded on this machine: those that run what the policy writes need a sandbox that
//! works. Without one every sample of theirs would be invalid.

use environments::Fault;

use crate::config::{EnvironmentConfig, TaskSource};
use crate::error::TrainerError;

/// Finds out before a run. The sandbox tests itself once in a process, and only where a family needs it.
///
/// # Errors
/// [`TrainerError::NoSandbox`] with the keys of the families that need one, where none works.
pub fn check(environments: &[EnvironmentConfig]) -> Result<(), TrainerError> {
    check_with(environments, || environments::sandbox().map(|_| ()))
}

/// [`check`], where `probe` finds out whether a sandbox works.
fn check_with(
    environments: &[EnvironmentConfig],
    probe: impl FnOnce() -> Result<(), Fault>,
) -> Result<(), TrainerError> {
    let needing = environments
        .iter()
        .enumerate()
        .filter_map(|(i, environment)| match environment.source {
            TaskSource::Family { family, .. } if family.needs_sandbox() => {
                Some(format!("environments[{i}].family is {family}"))
            }
            _ => None,
        });
    let keys = needing.collect::<Vec<_>>().join(", ");
    if keys.is_empty() {
        return Ok(());
    }
    probe().map_err(|fault| TrainerError::NoSandbox {
        keys,
        reason: fault.reason,
    })
}

#[cfg(test)]
mod tests {
    use environments::{Family, FaultKind};

    use super::*;
    use crate::commands::Failure;

    fn environments(families: &[Family]) -> Vec<EnvironmentConfig> {
        let environment = |&family| EnvironmentConfig {
            source: TaskSource::Family { family, level: 1 },
            mcp: Vec::new(),
            rubric: None,
            weight: 1.0,
            kl_scale: 1.0,
        };
        families.iter().map(environment).collect()
    }

    fn no_sandbox() -> Result<(), Fault> {
        Err(Fault::new(FaultKind::Infra, "namespaces are forbidden"))
    }

    #[test]
    fn families_that_run_code_are_refused_by_key_and_name_where_no_sandbox_works() {
        let mixed = [
            Family::Sums,
            Family::RepairProgram,
            Family::InvertProgram,
            Family::ComposeFunction,
        ];
        let error = check_with(&environments(&mixed), no_sandbox).expect_err("refused");
        let text = Failure::from(error).to_string();
        for part in [
            "environments[1].family is repair_program, environments[3].family is compose_function: ",
            "namespaces are forbidden",
            "`baleen sandbox doctor`",
        ] {
            assert!(text.contains(part), "{text}");
        }
        assert!(
            !text.contains("environments[0]") && !text.contains("environments[2]"),
            "{text}"
        );
    }

    #[test]
    fn a_sandbox_that_works_and_families_that_need_none_are_passed() {
        assert!(check_with(&environments(&[Family::RepairProgram]), || Ok(())).is_ok());
        let unasked = || -> Result<(), Fault> { panic!("nothing needs it") };
        assert!(check_with(&environments(&[Family::Sums]), unasked).is_ok());
    }
}
