//! Reads the program that a completion hands in: its last Python block.
//!
//! ```text
//! ```python        a line that begins with three backticks and `python` or `py`, in any letter case
//! def solve(x): ...
//! ```              a line of three backticks
//! ```
//! A block that is not closed is none, and a block in another language or none is passed over.

/// Longest program that is read, in bytes.
pub(crate) const MAX_BYTES: usize = 64 << 10;

const FENCE: &str = "```";

/// How a question says where the program goes.
pub(crate) const FORM: &str = "Answer with the whole function in a block that begins with a line ```python and ends with a line ```; of several Python blocks the last counts.";

/// The last Python block, if there is one and it is not too long.
pub(crate) fn last_block(completion: &str) -> Option<&str> {
    let mut last = None;
    // Where the block that is open now begins, and whether it is Python's.
    let mut open: Option<(usize, bool)> = None;
    let mut at = 0;
    for line in completion.split_inclusive('\n') {
        let next = at + line.len();
        if let Some(info) = line.strip_prefix(FENCE) {
            let info = info.trim();
            open = match open {
                None => Some((next, is_python(info))),
                Some((start, was_python)) if info.is_empty() => {
                    if was_python {
                        last = Some(&completion[start..at]);
                    }
                    None
                }
                // A fence with a name inside a block opens a new one: the one before was not closed.
                Some(_) => Some((next, is_python(info))),
            };
        }
        at = next;
    }
    last.filter(|code| code.len() <= MAX_BYTES)
}

fn is_python(info: &str) -> bool {
    ["python", "py", "python3"]
        .iter()
        .any(|name| info.eq_ignore_ascii_case(name))
}

/// A block around `code`.
pub(crate) fn block(code: &str) -> String {
    format!("{FENCE}python\n{code}\n{FENCE}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_closed_python_block_is_read() {
        for (completion, code) in [
            ("```python\na = 1\n```", Some("a = 1\n")),
            ("so\n```py\na\n```\nor\n```Python3 \nb\n```\n", Some("b\n")),
            ("```python\na\n```\n```python\nb", Some("a\n")),
            ("```python\na\n```\n```text\nb\n```", Some("a\n")),
            ("```\na\n```", None),
            ("a", None),
            ("", None),
            ("```python a\n```", None),
            ("x ```python\na\n```", None),
            ("```python\na\n```python\nb\n```", Some("b\n")),
            ("```python\n```", Some("")),
        ] {
            assert_eq!(last_block(completion), code, "{completion}");
        }
        assert_eq!(last_block(&block("a")), Some("a\n"));
        assert_eq!(last_block(&block(&"a".repeat(MAX_BYTES + 1))), None);
    }

    #[test]
    fn many_fences_are_read_in_bounded_time() {
        assert_eq!(last_block(&"```python\n".repeat(100_000)), None);
    }
}
