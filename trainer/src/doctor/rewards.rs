//! Whether the graders pay for solutions and for nothing else.

use std::sync::Arc;

use environments::{DatasetError, Episode, FamilyKey, Split, Task, TaskKey, Tasks, Verdict};
use rollout::GuardedGrader;

use super::finding::Finding;
use crate::config::EnvironmentConfig;
use crate::environment_config::TaskSource;
use crate::error::TrainerError;

/// Tasks graded in each environment.
const NUM_TASKS: u64 = 32;
/// Mean reward of repeating the question, at most: now and then an instance is its own answer.
const ECHO_LIMIT: f64 = 0.05;

/// A finding for each environment: rewards of an empty answer, of the question repeated, and of the
/// worked solution.
///
/// # Errors
/// A row of a dataset that can't be read.
pub fn reward_findings(
    environments: &[EnvironmentConfig],
    tasks: &Tasks,
    grader: &GuardedGrader,
) -> Result<Vec<Finding>, TrainerError> {
    let finding = |environment: &EnvironmentConfig| {
        let name = match (&environment.source, environment.source.name_and_level()) {
            (TaskSource::Dataset(_), (name, _)) => format!("dataset {name}"),
            (_, (name, level)) => format!("{name} {}", level.unwrap_or(1)),
        };
        let tasks = tasks_of(environment, tasks)?;
        let said = |answer: fn(&Task) -> String| {
            mean_reward(&tasks, |key, task| match task.has_turns() {
                true => Ok(Episode::played(task, &[], &answer(task))),
                false => grader.verdict(key, &answer(task)),
            })
        };
        let empty = said(|_| String::new());
        let echo = said(|task| task.question.clone());
        let solution = environment.source.has_solutions().then(|| {
            mean_reward(&tasks, |key, task| match task.has_turns() {
                true => Ok(Episode::played(task, &task.witness, &task.solution)),
                false => grader.verdict(key, &task.solution),
            })
        });
        Ok(judge(&name, [empty, echo], solution))
    };
    environments.iter().map(finding).collect()
}

/// The tasks that an environment is judged by.
pub(super) fn tasks_of(
    environment: &EnvironmentConfig,
    tasks: &Tasks,
) -> Result<Vec<(TaskKey, Arc<Task>)>, TrainerError> {
    let keys = (0..NUM_TASKS).map(|seed| match &environment.source {
        TaskSource::Family { family, level } => Ok(TaskKey::from(FamilyKey {
            family: *family,
            split: Split::Train,
            level: *level,
            seed,
        })),
        TaskSource::Dataset(dataset) => {
            let rows = tasks.dataset(&dataset.name())?;
            Ok(rows.draw(Split::Train, 0, seed, 0)?.into())
        }
        TaskSource::Server { server, level } => {
            let key = tasks.external_key(&server.name, Split::Train, *level, seed)?;
            Ok(key.into())
        }
    });
    keys.map(|key: Result<_, DatasetError>| {
        let key = key?;
        let task = tasks.task(&key)?;
        Ok((key, task))
    })
    .collect()
}

/// Over the tasks that could be graded.
///
/// # Errors
/// None could; why the first could not. A grader that hung is not asked again.
fn mean_reward(
    tasks: &[(TaskKey, Arc<Task>)],
    verdict: impl Fn(&TaskKey, &Task) -> Result<Verdict, String>,
) -> Result<f64, String> {
    let (mut rewards, mut problem) = (Vec::new(), None);
    for (key, task) in tasks {
        match verdict(key, task) {
            Ok(Verdict::Graded { reward, .. }) => rewards.push(reward),
            Ok(Verdict::Invalid { reason, .. }) | Err(reason) => {
                problem.get_or_insert(reason);
            }
        }
    }
    match problem {
        Some(problem) if rewards.is_empty() => Err(problem),
        _ => Ok(rewards.iter().sum::<f64>() / rewards.len().max(1) as f64),
    }
}

/// Of the mean rewards of nothing, of an echo, and of the solution where there is one.
fn judge(
    name: &str,
    garbage: [Result<f64, String>; 2],
    solution: Option<Result<f64, String>>,
) -> Finding {
    let (empty, echo, solution) = match (garbage, solution.transpose()) {
        ([Ok(empty), Ok(echo)], Ok(solution)) => (empty, echo, solution),
        ([Err(problem), _] | [_, Err(problem)], _) | (_, Err(problem)) => {
            let text = format!("{name}: no answer could be graded: {problem}");
            return Finding::failed("rewards", text).because(
                "the grader does not work on this machine",
                "mend what it says, or the verifier",
            );
        }
    };
    let solved = solution.map(|solution| format!(", worked solution {solution:.2}"));
    let text = format!(
        "{name}: empty answer {empty:.2}, question repeated {echo:.2}{}",
        solved.unwrap_or_default()
    );
    let (cause, advice) = if solution.is_some_and(|solution| solution < 1.0) {
        (
            "the grader refuses its own solutions: a policy that is right would not be paid",
            "mend the verifier, or the form in which solutions are written",
        )
    } else if empty > 0.0 || echo > ECHO_LIMIT {
        (
            "the grader pays for no answer, or for the question itself: a policy finds that first",
            "mend the verifier",
        )
    } else {
        return Finding::ok("rewards", text);
    };
    Finding::failed("rewards", text).because(cause, advice)
}

#[cfg(test)]
mod tests {
    use environments::Family;
    use rollout::{Grader, GradingConfig};

    use super::*;

    #[test]
    fn every_family_and_level_pays_for_solutions_alone() {
        // Those that run code are graded in their own crate, where a sandbox works.
        let environments: Vec<EnvironmentConfig> = Family::ALL
            .into_iter()
            .filter(|family| !family.needs_sandbox())
            .flat_map(|family| family.levels().map(move |level| (family, level)))
            .map(|(family, level)| EnvironmentConfig {
                source: TaskSource::Family { family, level },
                weight: 1.0,
                kl_scale: 1.0,
                mcp: Vec::new(),
                rubric: None,
            })
            .collect();
        let tasks = Arc::new(Tasks::default());
        let grader = GuardedGrader::new(tasks.clone(), &GradingConfig::default());
        let findings = reward_findings(&environments, &tasks, &grader);
        for finding in findings.expect("families need no files") {
            assert!(!finding.has_failed(), "{finding}");
            assert!(
                finding.measured.ends_with("worked solution 1.00"),
                "{finding}"
            );
        }
    }

    #[test]
    fn a_grader_that_pays_for_nothing_or_not_for_the_solution_fails() {
        let verdict = |[empty, echo, solution]: [f64; 3]| {
            judge("a", [Ok(empty), Ok(echo)], Some(Ok(solution)))
        };
        assert!(!verdict([0.0, 0.03, 1.0]).has_failed());
        for (rewards, cause) in [
            ([0.1, 0.0, 1.0], "pays for no answer"),
            ([0.0, 0.5, 1.0], "or for the question itself"),
            ([0.0, 0.0, 0.9], "refuses its own solutions"),
        ] {
            let finding = verdict(rewards);
            assert!(finding.has_failed() && finding.cause.unwrap().contains(cause));
        }
    }

    struct Broken;

    impl Grader for Broken {
        fn grade(&self, _: &TaskKey, completion: &str) -> Verdict {
            match completion {
                "" => panic!("no answer was foreseen"),
                _ => std::thread::sleep(std::time::Duration::from_secs(600)),
            }
            unreachable!("it sleeps longer than the test")
        }
    }

    #[test]
    fn a_grader_that_panics_or_hangs_fails_and_the_examination_goes_on() {
        let environment = EnvironmentConfig {
            source: TaskSource::Family {
                family: Family::Sums,
                level: 1,
            },
            weight: 1.0,
            kl_scale: 1.0,
            mcp: Vec::new(),
            rubric: None,
        };
        let config = GradingConfig {
            timeout_secs: 3.0,
            max_hung: 0,
        };
        let grader = GuardedGrader::new(Arc::new(Broken), &config);
        let findings = reward_findings(&[environment], &Tasks::default(), &grader);
        let findings = findings.expect("families need no files");
        assert!(findings[0].has_failed());
        let measured = &findings[0].measured;
        assert!(measured.contains("no answer was foreseen"), "{measured}");
    }
}
