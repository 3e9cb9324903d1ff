//! What a grader says of a sample, and whose fault it is where nothing can be said.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// The word on a sample.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Verdict {
    /// Graded: reward in [0, 1].
    Graded {
        /// 1 is a full solution.
        reward: f64,
        /// The answer found in the completion, if any.
        extracted: Option<String>,
        /// Measures by name, such as the clauses of a task that are met. They are shown and never summed into the
        /// reward behind its back.
        #[serde(default)]
        parts: BTreeMap<String, f64>,
        /// Attempts to change the grading itself, in words; a sample with one has reward 0.
        #[serde(default)]
        tamper: Vec<String>,
    },
    /// The sample failed through no fault of the policy; it carries no loss and no vote.
    Invalid {
        /// What kind of service failed.
        #[serde(default)]
        fault: FaultKind,
        /// Why.
        reason: String,
    },
}

impl Verdict {
    /// Graded by an exact checker: 1 where it is right, else 0.
    pub fn exact(is_right: bool, extracted: Option<String>) -> Verdict {
        Verdict::graded(f64::from(is_right), extracted)
    }

    /// Graded, without parts.
    pub fn graded(reward: f64, extracted: Option<String>) -> Verdict {
        Verdict::Graded {
            reward,
            extracted,
            parts: BTreeMap::new(),
            tamper: Vec::new(),
        }
    }

    /// Graded by clauses, each met or not: reward 1 where all are.
    pub fn of_clauses(
        extracted: Option<String>,
        clauses: impl IntoIterator<Item = (String, bool)>,
    ) -> Verdict {
        let parts: BTreeMap<String, f64> = clauses
            .into_iter()
            .map(|(name, is_met)| (name, f64::from(is_met)))
            .collect();
        let are_all_met = !parts.is_empty() && parts.values().all(|&met| met == 1.0);
        Verdict::Graded {
            reward: f64::from(are_all_met),
            extracted,
            parts,
            tamper: Vec::new(),
        }
    }

    /// Not graded.
    pub fn invalid(fault: FaultKind, reason: impl Into<String>) -> Verdict {
        Verdict::Invalid {
            fault,
            reason: reason.into(),
        }
    }

    /// Reward of a graded sample.
    pub fn reward(&self) -> Option<f64> {
        match self {
            Verdict::Graded { reward, .. } => Some(*reward),
            Verdict::Invalid { .. } => None,
        }
    }
}

/// What failed, where it was not the policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// A process, socket, file or sandbox of ours.
    Infra,
    /// A service did not answer in time. (A *program of the policy* that takes too long is told so as a tool's result.)
    Timeout,
    /// No room for another session now.
    Capacity,
    /// The grader panicked, hung or gave nonsense.
    #[default]
    Grader,
    /// A service answered something that its protocol does not know.
    Protocol,
    /// The run ended it.
    Cancelled,
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FaultKind::Infra => "infra",
            FaultKind::Timeout => "timeout",
            FaultKind::Capacity => "capacity",
            FaultKind::Grader => "grader",
            FaultKind::Protocol => "protocol",
            FaultKind::Cancelled => "cancelled",
        })
    }
}

/// A fault of the service: the sample becomes [`Verdict::Invalid`], never reward 0.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind}: {reason}")]
pub struct Fault {
    /// What failed.
    pub kind: FaultKind,
    /// How, in words without the gold answer: they reach rollout files and logs.
    pub reason: String,
}

impl Fault {
    /// A fault.
    pub fn new(kind: FaultKind, reason: impl Into<String>) -> Fault {
        Fault {
            kind,
            reason: reason.into(),
        }
    }
}

impl From<Fault> for Verdict {
    fn from(fault: Fault) -> Verdict {
        Verdict::invalid(fault.kind, fault.reason)
    }
}

impl From<sandbox::SandboxError> for Fault {
    fn from(error: sandbox::SandboxError) -> Fault {
        use sandbox::SandboxError;
        let kind = match &error {
            SandboxError::Capacity { .. } => FaultKind::Capacity,
            SandboxError::Timeout { .. } => FaultKind::Timeout,
            _ => FaultKind::Infra,
        };
        Fault::new(kind, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_of_clauses_pays_only_where_all_are_met() {
        let verdict = |met: &[bool]| {
            let clauses = met
                .iter()
                .enumerate()
                .map(|(i, &met)| (format!("clause {i}"), met));
            Verdict::of_clauses(None, clauses).reward()
        };
        assert_eq!(verdict(&[true, true]), Some(1.0));
        assert_eq!(verdict(&[true, false]), Some(0.0));
        assert_eq!(verdict(&[]), Some(0.0), "nothing was checked");
    }

    #[test]
    fn verdicts_of_older_checkpoints_are_read() {
        let read = |json: &str| serde_json::from_str::<Verdict>(json).expect("a verdict");
        assert_eq!(
            read(r#"{"Graded":{"reward":1.0,"extracted":"7"}}"#),
            Verdict::exact(true, Some("7".to_string()))
        );
        assert_eq!(
            read(r#"{"Invalid":{"reason":"it panicked"}}"#),
            Verdict::invalid(FaultKind::Grader, "it panicked")
        );
    }
}
