//! What no policy that works would write: it must be graded all the same, and earn nothing.

use serde_json::{Map, Value, json};

use crate::task::Task;
use crate::tool::{ToolCall, ToolDef};

/// Characters of a text that is long.
const LONG: usize = 100_000;

/// Episodes of `task`: what is wrong with each, its calls turn by turn, and its answer.
pub(super) fn garbage(task: &Task) -> Vec<(String, Vec<Vec<ToolCall>>, String)> {
    let texts = texts().into_iter();
    let mut episodes: Vec<_> = texts
        .map(|(name, text)| (name.to_string(), Vec::new(), text))
        .collect();
    if task.tools.is_empty() {
        return episodes;
    }
    episodes.push((
        "a call of a tool that is not there".to_string(),
        vec![vec![call("no_such_tool", "{}")]],
        String::new(),
    ));
    for tool in &task.tools {
        let broken =
            ["", "{", "null", "[]", "{\"\\u0000\": 1e999}"].map(|text| call(&tool.name, text));
        let hostile = (0..NUM_VARIANTS).map(|variant| {
            let arguments = arguments(tool, variant).to_string();
            call(&tool.name, &arguments)
        });
        let turns = vec![broken.into_iter().collect(), hostile.collect()];
        let name = format!("hostile calls of {}", tool.name);
        episodes.push((name, turns, String::new()));
    }
    episodes
}

fn texts() -> [(&'static str, String); 10] {
    [
        ("a flood of opening brackets", "(".repeat(LONG)),
        ("a flood of closing brackets", ")".repeat(LONG)),
        ("a flood of minus signs", "-".repeat(LONG)),
        ("a flood of digits", "9".repeat(LONG)),
        ("a flood of divisions", "7777777/".repeat(LONG / 8)),
        ("a flood of boxes", "\\boxed{".repeat(LONG / 7)),
        ("a flood of code blocks", "```python\n".repeat(LONG / 10)),
        (
            "deep JSON",
            format!("\\boxed{{{}", "[{\"a\":".repeat(LONG / 6)),
        ),
        (
            "odd characters",
            "\u{2212}\u{d7}\u{0}\u{feff}\u{1f600}\u{202e}\\boxed{\u{0}}".repeat(1000),
        ),
        (
            "numbers that are none",
            "\\boxed{NaN inf 1e999 0/0}".to_string(),
        ),
    ]
}

fn call(name: &str, arguments: &str) -> ToolCall {
    ToolCall {
        id: "1".to_string(),
        name: name.to_string(),
        arguments: arguments.to_string(),
    }
}

const NUM_VARIANTS: usize = 4;

/// Arguments that the schema of `tool` may allow and that make no sense.
fn arguments(tool: &ToolDef, variant: usize) -> Value {
    let empty = Map::new();
    let properties = tool.parameters.get("properties").and_then(Value::as_object);
    let arguments = properties
        .unwrap_or(&empty)
        .iter()
        .map(|(name, schema)| (name.clone(), value(schema, variant, 0)));
    Value::Object(arguments.collect())
}

/// A value that is odd for what `schema` describes.
fn value(schema: &Value, variant: usize, depth: usize) -> Value {
    if let Some(allowed) = schema.get("enum").and_then(Value::as_array) {
        return allowed[variant % allowed.len().max(1)].clone();
    }
    let pick = |values: [Value; NUM_VARIANTS]| values[variant % NUM_VARIANTS].clone();
    match schema.get("type").and_then(Value::as_str) {
        Some("integer") => pick([json!(i64::MIN), json!(i64::MAX), json!(-1), json!(0)]),
        Some("number") => pick([json!(-1e308), json!(1e308), json!(5e-324), json!(0)]),
        Some("boolean") => json!(variant.is_multiple_of(2)),
        Some("array") if variant > 0 && depth < 3 => match schema.get("items") {
            Some(items) => json!([value(items, variant, depth + 1), value(items, 0, depth + 1)]),
            None => json!([null]),
        },
        Some("array") => json!([]),
        Some("object") => json!({}),
        _ => pick([
            json!(""),
            json!("../../../etc/passwd\u{0}\u{202e}"),
            json!("x".repeat(LONG / 10)),
            json!("' OR 1=1; --"),
        ]),
    }
}
