//! `baleen env play`: a person in the policy's place.

use std::io::{self, BufRead, IsTerminal, StdinLock, Write};

use environments::{AssistantTurn, Episode, Family, Next, Stop, ToolCall, Verdict};

use super::super::{Failure, output};
use super::{TaskArguments, shown, title, turns};

/// Answer a task yourself at the terminal, and see the verdict
#[derive(Debug, clap::Args)]
#[command(after_help = "\
An answer is text that ends with an empty line, a line with a full stop alone, or the end of the input. Within a block
of code (```) empty lines belong to it. Where there are tools, a line calls one:

  /call NAME {\"argument\": \"value\"}

  /task shows the task again, /quit ends the episode as it stands

Examples:
  baleen env play sudoku --level 1
  echo '28 - 17 = 11' | baleen env play sums --level 2")]
pub struct Args {
    #[command(flatten)]
    task: TaskArguments,
}

/// Plays an episode and prints its verdict.
pub fn run(args: &Args) -> Result<(), Failure> {
    let key = args.task.key()?;
    let task = Family::task(&key);
    let has_tools = !task.tools.is_empty();
    let no_service = |fault: environments::Fault| {
        Failure::running(fault).hint("`baleen sandbox doctor` says what runs here")
    };
    let mut episode = Episode::open(&task).map_err(no_service)?;
    say(&format!("{}\n\n{}", title(&key), shown(&task)))?;
    say(match has_tools {
        true => "Call a tool by a line /call NAME {...}, or answer, then an empty line.\n",
        false => "Answer, then an empty line.\n",
    })?;
    let mut person = Person {
        lines: io::stdin().lock(),
        is_terminal: io::stdin().is_terminal(),
        num_calls: 0,
    };
    while episode.stop().is_none() {
        match person.next(has_tools)? {
            Said::Turn(turn) => {
                let next = episode.step(&turn).map_err(no_service)?;
                if !matches!(next, Next::Done(Stop::Answered)) {
                    say(turns::said(&next).trim_end())?;
                }
            }
            Said::Mistake(problem) => say(&problem)?,
            Said::Task => say(&shown(&task))?,
            Said::Quit => episode.end(Stop::Length),
        }
    }
    let verdict = episode.grade();
    say(&turns::verdict_text(&verdict))?;
    match verdict {
        Verdict::Graded { .. } => Ok(()),
        Verdict::Invalid { .. } => Err(Failure::running("the answer could not be graded")
            .hint("`baleen sandbox doctor` says what runs here")),
    }
}

fn say(text: &str) -> Result<(), Failure> {
    // A person who closes the terminal has ended the input, too.
    output::print_line(text).map(|_| ())
}

/// What a person wants.
#[derive(Debug, PartialEq)]
enum Said {
    Turn(AssistantTurn),
    /// A line that is no call, and why.
    Mistake(String),
    Task,
    Quit,
}

/// Reads what the person types.
struct Person<R> {
    lines: R,
    is_terminal: bool,
    num_calls: usize,
}

impl Person<StdinLock<'_>> {
    fn next(&mut self, has_tools: bool) -> Result<Said, Failure> {
        self.said(has_tools).map_err(Failure::running)
    }
}

impl<R: BufRead> Person<R> {
    fn said(&mut self, has_tools: bool) -> io::Result<Said> {
        let mut text: Vec<String> = Vec::new();
        loop {
            let Some(line) = self.line()? else {
                return Ok(match text.is_empty() {
                    true => Said::Quit,
                    false => answer(&text),
                });
            };
            let is_first = text.is_empty();
            let fences = text
                .iter()
                .filter(|line| line.trim_start().starts_with("```"));
            let is_in_code = fences.count() % 2 == 1;
            match line.trim() {
                "" if is_first => {}
                "" if !is_in_code => return Ok(answer(&text)),
                "." => return Ok(answer(&text)),
                "/quit" if is_first => return Ok(Said::Quit),
                "/task" if is_first => return Ok(Said::Task),
                call if is_first && has_tools && call.starts_with('/') => {
                    return Ok(self.call(call));
                }
                _ => text.push(line),
            }
        }
    }

    /// The next line, without its end.
    fn line(&mut self) -> io::Result<Option<String>> {
        if self.is_terminal {
            print!("> ");
            io::stdout().flush()?;
        }
        let mut line = String::new();
        match self.lines.read_line(&mut line)? {
            0 => Ok(None),
            _ => Ok(Some(line.trim_end_matches(['\n', '\r']).to_string())),
        }
    }

    /// `/call NAME {...}`.
    fn call(&mut self, line: &str) -> Said {
        let words = line
            .strip_prefix("/call")
            .map(str::trim)
            .unwrap_or_default();
        let (name, arguments) = words
            .split_once(char::is_whitespace)
            .unwrap_or((words, "{}"));
        if name.is_empty() {
            return Said::Mistake("say /call NAME {...}, /task or /quit, or answer".to_string());
        }
        self.num_calls += 1;
        Said::Turn(AssistantTurn {
            content: String::new(),
            calls: vec![ToolCall {
                id: self.num_calls.to_string(),
                name: name.to_string(),
                arguments: arguments.trim().to_string(),
            }],
        })
    }
}

fn answer(text: &[String]) -> Said {
    Said::Turn(AssistantTurn {
        content: text.join("\n"),
        calls: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(input: &str, has_tools: bool) -> Vec<Said> {
        let mut person = Person {
            lines: input.as_bytes(),
            is_terminal: false,
            num_calls: 0,
        };
        let mut all = Vec::new();
        while all.last() != Some(&Said::Quit) {
            all.push(person.said(has_tools).expect("text"));
        }
        all
    }

    fn text(content: &str) -> Said {
        answer(&[content.to_string()])
    }

    #[test]
    fn an_answer_ends_with_an_empty_line_a_full_stop_or_the_input() {
        assert_eq!(
            said("\n1\n2\n\n3\n.\n\n4", true),
            [text("1\n2"), text("3"), text("4"), Said::Quit]
        );
        assert_eq!(said(".\n", false), [answer(&[]), Said::Quit]);
        assert_eq!(
            said("```python\nx = 1\n\ny = 2\n```\n\n", false),
            [text("```python\nx = 1\n\ny = 2\n```"), Said::Quit]
        );
    }

    #[test]
    fn a_line_calls_a_tool_where_there_are_tools() {
        let all = said(
            "/call look {\"a\": 1}\n/call look\n/look\n/task\n/quit\n",
            true,
        );
        let Said::Turn(turn) = &all[0] else {
            panic!("{all:?}");
        };
        let call = &turn.calls[0];
        assert_eq!((&*call.name, &*call.arguments), ("look", "{\"a\": 1}"));
        assert!(matches!(&all[1], Said::Turn(turn) if turn.calls[0].arguments == "{}"));
        assert!(matches!(&all[2], Said::Mistake(_)));
        assert_eq!(all[3..], [Said::Task, Said::Quit]);
        assert_eq!(said("/look\n", false), [text("/look"), Said::Quit]);
    }
}
