//! The block that tells the model which tools it has and how to call them.
//!
//! The model was trained on this wording: a changed byte is another prompt. The wording is DeepSeek's
//! (MIT licence); empty lines belong to it, and it ends with a newline.

use super::super::message::ToolDefinition;

const EXPLANATION: &str = "\
## Tools

You have access to a set of tools you can use to answer the user's question.
You can invoke functions by writing a \"<｜DSML｜function_calls>\" block like the following as part of your reply to the user:
<｜DSML｜function_calls>
<｜DSML｜invoke name=\"$FUNCTION_NAME\">
<｜DSML｜parameter name=\"$PARAMETER_NAME\" string=\"true|false\">$PARAMETER_VALUE</｜DSML｜parameter>
...
</｜DSML｜invoke>
<｜DSML｜invoke name=\"$FUNCTION_NAME2\">
...
</｜DSML｜invoke>
</｜DSML｜function_calls>

String and scalar parameters should be specified as is without any escaping or quotes, while lists and objects should use JSON format. The \"string\" attribute should be set to \"true\" for string type parameters and \"false\" for other types (numbers, booleans, arrays, objects).

If the thinking_mode is enabled, then after function results you should strongly consider outputting a thinking block. Here is an example:

<｜DSML｜function_calls>
...
</｜DSML｜function_calls>

<function_results>
...
</function_results>

<think>...thinking about results</think>

Here are the functions available in JSONSchema format:
<functions>
";

/// The block for `tools`: the explanation, then the JSON of each tool's function on a line of its own.
pub(super) fn text(tools: &[ToolDefinition]) -> String {
    let functions = tools.iter().map(|tool| format!("{}\n", tool.function));
    format!(
        "{EXPLANATION}{}</functions>\n",
        functions.collect::<String>()
    )
}
