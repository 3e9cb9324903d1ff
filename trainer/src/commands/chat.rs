//! `baleen chat`: conversations as the model sees them, and completions as messages.
//!
//! No weights are read: a folder with a tokenizer is enough. What `encode` prints is what training and
//! sampling would run on.

use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use model::Tokenizer;
use model::chat::json::Json;
use model::chat::{ChatOptions, Conversation, HistoryReasoning, Thinking};
use model::checkpoint::CheckpointError;
use model::gguf::GgufFile;
use model::tokenizer::TokenizerError;

use super::{Failure, output};
use crate::policy;
use crate::run_folder::RunLayout;

/// Show a conversation as the model sees it, or read a completion back
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    Encode(EncodeArgs),
    Parse(ParseArgs),
}

/// Print the text and the token ids of a conversation
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
FILE.json is a list of messages, or an object with messages and the tools of the request:

  {\"messages\": [{\"role\": \"user\", \"content\": \"2 + 3?\"}],
   \"tools\": [{\"type\": \"function\", \"function\": {\"name\": \"add\", \"parameters\": {}}}]}

Roles: system, developer (tools, response_format), user, assistant (reasoning_content, tool_calls),
tool. Calls are those of OpenAI's format, their arguments a string of JSON. DeepSeek-V3.2 has an
encoding of its own; other models use the chat template of their tokenizer.

Output: the text, a newline, and the ids as one line [0, 128803, ...]. With --json one line
{\"text\": ..., \"ids\": [...]} instead.

  baleen chat encode conversation.json --model models/v32 --thinking | tail -n 1")]
struct EncodeArgs {
    /// Conversation; - reads standard input
    #[arg(value_name = "FILE.json")]
    file: PathBuf,
    #[command(flatten)]
    shared: SharedArgs,
    /// Show all earlier reasoning, not only that since the last user message (not DeepSeek's rule)
    #[arg(long, requires = "thinking")]
    keep_reasoning: bool,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

/// Print the message that a completion says, as JSON
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
The completion is what was sampled after the prompt, special tokens included:

  reasoning</think>content<｜end▁of▁sentence｜>                 with --thinking
  content<｜end▁of▁sentence｜>                                  without

and tool calls between content and end: DeepSeek-V3.2's as its encoding writes them, those of a model with
a chat template of its own as JSON between <tool_call> and </tool_call>. One newline at the end of the input belongs to the file, not
to the completion. With --ids the input is token ids: a JSON list, as `baleen chat encode` prints.

Nothing is repaired: a completion that leaves the format is an error that says after how many
characters, and what was expected.

  baleen chat parse completion.txt --model models/v32 --thinking
  echo '[19923, 3, 1]' | baleen chat parse --ids --model models/v32")]
struct ParseArgs {
    /// Completion; - reads standard input
    #[arg(value_name = "FILE", default_value = "-")]
    file: PathBuf,
    #[command(flatten)]
    shared: SharedArgs,
    /// The input is token ids, [1, 2, 3]
    #[arg(long)]
    ids: bool,
}

#[derive(Debug, clap::Args)]
struct SharedArgs {
    /// Folder with a tokenizer.json (a model), .gguf file, or run folder
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Thinking mode: reasoning comes before the answer
    #[arg(long)]
    thinking: bool,
}

impl SharedArgs {
    fn thinking(&self) -> Thinking {
        match self.thinking {
            true => Thinking::On,
            false => Thinking::Off,
        }
    }
}

/// Encodes or parses.
pub fn run(args: &Args) -> Result<(), Failure> {
    let line = match &args.action {
        Action::Encode(args) => encode(args)?,
        Action::Parse(args) => parse(args)?,
    };
    output::print_line(&line)?;
    Ok(())
}

fn encode(args: &EncodeArgs) -> Result<String, Failure> {
    let in_file =
        |error: &dyn std::fmt::Display| Failure::usage(format!("{}: {error}", shown(&args.file)));
    let conversation = Conversation::parse(&read(&args.file)?).map_err(|error| in_file(&error))?;
    let tokenizer = tokenizer(&args.shared.model)?;
    let options = ChatOptions {
        thinking: args.shared.thinking(),
        history: match args.keep_reasoning {
            true => HistoryReasoning::All,
            false => HistoryReasoning::LastUserTurn,
        },
    };
    let text = tokenizer
        .render_chat(&conversation.messages, &options)
        .map_err(|error| match error {
            // Number the messages as the file does.
            TokenizerError::Chat(error) => in_file(&error.without_added(conversation.num_added)),
            other => other.into(),
        })?;
    let ids = tokenizer.encode(&text);
    Ok(match args.json {
        true => {
            let ids = ids.iter().map(|id| Json::Integer(id.to_string()));
            let entries = [
                ("text", Json::Text(text)),
                ("ids", Json::List(ids.collect())),
            ];
            Json::Object(
                entries
                    .map(|(key, value)| (key.to_string(), value))
                    .to_vec(),
            )
            .to_string()
        }
        false => format!("{text}\n{ids:?}"),
    })
}

fn parse(args: &ParseArgs) -> Result<String, Failure> {
    let input = read(&args.file)?;
    let tokenizer = tokenizer(&args.shared.model)?;
    let in_file =
        |error: &dyn std::fmt::Display| Failure::usage(format!("{}: {error}", shown(&args.file)));
    let completion = match args.ids {
        true => {
            let ids: Vec<u32> = serde_json::from_str(&input)
                .map_err(|error| in_file(&format!("not a list of ids [1, 2, 3]: {error}")))?;
            tokenizer
                .decode_with_special(&ids)
                .map_err(|error| in_file(&error))?
        }
        false => input.strip_suffix('\n').unwrap_or(&input).to_string(),
    };
    let message = tokenizer
        .parse_completion(&completion, args.shared.thinking())
        .map_err(|error| match error {
            TokenizerError::Completion(error) => in_file(&error),
            other => other.into(),
        })?;
    Ok(message.to_json().to_string())
}

fn shown(file: &Path) -> String {
    match file.as_os_str() == "-" {
        true => "standard input".to_string(),
        false => file.display().to_string(),
    }
}

fn read(file: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let result = match file.as_os_str() == "-" {
        true => std::io::stdin().read_to_string(&mut text),
        false => std::fs::File::open(file).and_then(|mut file| file.read_to_string(&mut text)),
    };
    match result {
        Ok(_) => Ok(text),
        Err(error) => Err(Failure::usage(format!(
            "can't read {}: {error}",
            shown(file)
        ))),
    }
}

/// The tokenizer alone; a run folder has that of its final policy, else of the model it started from.
fn tokenizer(path: &Path) -> Result<Tokenizer, Failure> {
    let layout = RunLayout::new(path);
    if layout.is_run() {
        return match layout.model_path() {
            model if model.exists() => Ok(Tokenizer::from_folder(&model)?),
            _ => {
                let config = layout.read_config()?;
                Ok(policy::open(&config.model, config.seed)?.tokenizer)
            }
        };
    }
    if path.is_file() && path.extension().is_some_and(|end| end == "gguf") {
        let file = GgufFile::open(path).map_err(CheckpointError::from)?;
        return Ok(file.tokenizer()?);
    }
    let path = path.to_path_buf();
    if !path.exists() {
        return Err(CheckpointError::NotFound { path }.into());
    }
    if !path.is_dir() {
        return Err(CheckpointError::NotAModel { path }.into());
    }
    if !path.join("tokenizer.json").exists() {
        let problem = format!("{} has no tokenizer.json", path.display());
        return Err(Failure::usage(problem).hint("name the folder of a model with --model"));
    }
    Ok(Tokenizer::from_folder(&path)?)
}
