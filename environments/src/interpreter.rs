//! The code interpreter: a tool `python{code}` that keeps one Python session in the sandbox for an episode.
//!
//! ```text
//! a cell: 120 s   an episode: 20 cells   a turn: no cell begins once those before it took 120 s
//! ```
//!
//! What the code does is told to the policy: output, traceback, time, memory, a session that was lost. Only a fault of the
//! sandbox itself ends the episode, as an invalid sample. The jail holds the code and the files that the session is given,
//! and nothing of the task: its answer stays in this process.
//!
//! [`InterpreterSession`] is the session of a family with this tool, [`equip`] gives it to any task of one turn.

use std::fmt;
use std::time::{Duration, Instant};

use sandbox::{FileIn, PythonLimits, PythonSession};
use serde_json::{Map, Value};

use crate::session::{Called, OpenSession, Session};
use crate::task::Task;
use crate::tool::{ToolDef, ToolOutput};
use crate::verdict::{Fault, FaultKind, Verdict};

/// Name of the tool.
pub const TOOL: &str = "python";
/// A turn whose cells took longer gets no further one, so that a turn ends within twice this and what a cell may overrun:
/// below the 300 s of `episodes.turn_timeout_secs`, beyond which the sample would be invalid.
pub const TURN_TIME: Duration = Duration::from_secs(120);

/// Limits of an episode's session: 20 cells of 120 s, 512 MiB, 8 KiB of each text, half from its head and half from its tail.
#[must_use]
pub fn limits() -> PythonLimits {
    PythonLimits {
        output_bytes: 8 << 10,
        memory_bytes: 512 << 20,
        ..PythonLimits::default()
    }
}

/// The tool, as the policy is told of it.
#[must_use]
pub fn tool(limits: &PythonLimits) -> ToolDef {
    let description = format!(
        "Runs Python code in a session that keeps its variables, imports, functions and files from call to call, as a notebook does, and returns what the code prints, the value of its last line if that is an expression, and its exception. There is Python 3 with its standard library and no network. A call may take {} s and {} MiB, and there are at most {} calls.",
        limits.cell.as_secs_f64(),
        limits.memory_bytes >> 20,
        limits.max_cells
    );
    ToolDef::new(TOOL, &description, &[("code", "string", "the code to run")])
}

/// One episode's Python.
#[derive(Debug)]
pub struct Interpreter {
    python: PythonSession,
    turn_time: Duration,
    /// What the cells of this turn took.
    spent: Duration,
    num_cells: u32,
}

impl Interpreter {
    /// A session that starts with its first cell, `files` in its folder, also after a restart.
    ///
    /// # Errors
    /// No sandbox works on this machine.
    pub fn new(limits: PythonLimits, files: Vec<FileIn>) -> Result<Interpreter, Fault> {
        Ok(Interpreter {
            python: PythonSession::new(&*crate::sandbox()?, limits, files),
            turn_time: TURN_TIME,
            spent: Duration::ZERO,
            num_cells: 0,
        })
    }

    /// The cells of the turns before don't count against this one's time.
    pub fn begin_turn(&mut self) {
        self.spent = Duration::ZERO;
    }

    /// Cells that were run.
    #[must_use]
    pub fn num_cells(&self) -> u32 {
        self.num_cells
    }

    /// Answers a call of [`tool`].
    ///
    /// # Errors
    /// A fault of the sandbox; what the code does is in the output.
    pub fn call(&mut self, arguments: &Map<String, Value>) -> Result<ToolOutput, Fault> {
        let Some(code) = arguments.get("code").and_then(Value::as_str) else {
            return Ok(ToolOutput::error("Error: `code` is missing."));
        };
        if self.spent > self.turn_time {
            return Ok(ToolOutput::error(format!(
                "[not run: the calls of this turn have taken {:.0} s; no further one begins after {} s. Call again in the next turn]",
                self.spent.as_secs_f64(),
                self.turn_time.as_secs_f64()
            )));
        }
        let start = Instant::now();
        let cell = self.python.run(code)?;
        self.spent += start.elapsed();
        self.num_cells += u32::from(!cell.flags.not_run);
        let text = cell.to_tool_text();
        Ok(match cell.is_success() {
            true => ToolOutput::ok(text),
            false => ToolOutput::error(text),
        })
    }
}

/// A session with this one tool, whose answers `grade` judges. The part `cells` of the verdict says how many were run.
pub struct InterpreterSession {
    interpreter: Interpreter,
    grade: Box<dyn Fn(&str) -> Verdict + Send>,
}

impl fmt::Debug for InterpreterSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InterpreterSession")
            .field("interpreter", &self.interpreter)
            .finish_non_exhaustive()
    }
}

impl InterpreterSession {
    /// `grade` holds whatever it compares with; nothing of it enters the sandbox.
    pub fn new(
        interpreter: Interpreter,
        grade: impl Fn(&str) -> Verdict + Send + 'static,
    ) -> InterpreterSession {
        InterpreterSession {
            interpreter,
            grade: Box::new(grade),
        }
    }
}

impl Session for InterpreterSession {
    fn begin_turn(&mut self) {
        self.interpreter.begin_turn();
    }

    fn call(&mut self, name: &str, arguments: &Map<String, Value>) -> Result<Called, Fault> {
        if name != TOOL {
            let problem = format!("no session runs tool {name}");
            return Err(Fault::new(FaultKind::Protocol, problem));
        }
        Ok(self.interpreter.call(arguments)?.into())
    }

    fn grade(&mut self, answer: &str) -> Result<Verdict, Fault> {
        // Background threads of the code must not run on while the answer is judged.
        self.interpreter.python.stop()?;
        let mut verdict = (self.grade)(answer);
        if let Verdict::Graded { parts, .. } = &mut verdict {
            let num_cells = f64::from(self.interpreter.num_cells());
            parts.insert("cells".to_string(), num_cells);
        }
        Ok(verdict)
    }
}

/// `task`, a task of one turn, with the interpreter: graded as it was. Its worked solution needs no call.
///
/// # Panics
/// When the task has tools of its own.
#[must_use]
pub fn equip(task: Task, limits: PythonLimits) -> Task {
    assert!(!task.has_turns(), "{} is no task of one turn", task.key);
    let tools = vec![tool(&limits)];
    let opener = Equipped {
        task: task.clone(),
        limits,
    };
    task.with_tools(tools, std::sync::Arc::new(opener))
}

/// Opens the sessions of one task.
#[derive(Debug)]
struct Equipped {
    task: Task,
    limits: PythonLimits,
}

impl OpenSession for Equipped {
    fn open(&self) -> Result<Box<dyn Session>, Fault> {
        let interpreter = Interpreter::new(self.limits.clone(), Vec::new())?;
        let task = self.task.clone();
        let session = InterpreterSession::new(interpreter, move |answer| task.verify(answer));
        Ok(Box::new(session))
    }
}

#[cfg(test)]
mod tests;
