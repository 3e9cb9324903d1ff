//! The outcome of one check, as a line for people and as JSON.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

/// What a check came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// As it should be.
    Ok,
    /// A run would go wrong.
    Failed,
    /// Worth knowing.
    Note,
}

/// One check with what was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// Name of the check.
    pub check: &'static str,
    /// Outcome.
    pub state: State,
    /// What was measured, and against which limit.
    pub measured: String,
    /// The numbers in it.
    pub figures: BTreeMap<&'static str, f64>,
    /// Likely cause of a failure.
    pub cause: Option<String>,
    /// What to do about it.
    pub advice: Option<String>,
}

impl Finding {
    fn new(check: &'static str, state: State, measured: impl Into<String>) -> Finding {
        Finding {
            check,
            state,
            measured: measured.into(),
            figures: BTreeMap::new(),
            cause: None,
            advice: None,
        }
    }

    /// A check that passes.
    pub fn ok(check: &'static str, measured: impl Into<String>) -> Finding {
        Finding::new(check, State::Ok, measured)
    }

    /// Something worth knowing.
    pub fn note(check: &'static str, measured: impl Into<String>) -> Finding {
        Finding::new(check, State::Note, measured)
    }

    /// A check that fails.
    pub fn failed(check: &'static str, measured: impl Into<String>) -> Finding {
        Finding::new(check, State::Failed, measured)
    }

    /// Passes where `holds`, else fails.
    pub fn of(check: &'static str, holds: bool, measured: impl Into<String>) -> Finding {
        let state = if holds { State::Ok } else { State::Failed };
        Finding::new(check, state, measured)
    }

    /// Adds a number.
    pub fn figure(mut self, name: &'static str, value: f64) -> Finding {
        self.figures.insert(name, value);
        self
    }

    /// Adds the likely cause and what to do.
    pub fn because(mut self, cause: impl Into<String>, advice: impl Into<String>) -> Finding {
        self.cause = Some(cause.into());
        self.advice = Some(advice.into());
        self
    }

    /// Whether it keeps a run from being right.
    pub fn has_failed(&self) -> bool {
        self.state == State::Failed
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Ok => "ok",
            State::Failed => "FAILED",
            State::Note => "note",
        };
        write!(f, "{state:<7} {:<20} {}", self.check, self.measured)?;
        for (label, text) in [("cause:", &self.cause), ("do:", &self.advice)] {
            if let Some(text) = text {
                write!(f, "\n{:<8}{label:<7}{text}", "")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_cause_and_advice_on_lines_of_their_own() {
        let finding = Finding::failed("memory", "needs 9 GB, 4 GB left")
            .figure("left", 4e9)
            .because("it is large", "make it small");
        assert_eq!(
            finding.to_string(),
            "FAILED  memory               needs 9 GB, 4 GB left\n        cause: it is large\n        \
             do:    make it small"
        );
        let json = serde_json::to_value(&finding).unwrap();
        assert_eq!(json["state"], "failed");
        assert_eq!(json["figures"]["left"], 4e9);
    }
}
