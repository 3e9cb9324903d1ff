//! Episodes from prompt to graded group, with a policy that is a table: it looks at the last token alone, and draws each of
//! three turns (a call, an answer, a broken call) with the same probability.

use environments::{
    AssistantTurn, Called, Episode, EpisodeLimits, Family, FamilyKey, Fault, FaultKind, Next,
    Reply, Session, Split, Stop, ToolDef, ToolOutput, Verdict,
};
use model::chat::Thinking;
use model::{Attention, ModelConfig, Transformer, WeightError, WeightSource};
use serde_json::{Map, Value, json};
use tch::{Device, Kind, Tensor};

use super::driver::Driver;
use super::pool::{Answer, Ask, Place, Pool};
use super::*;
use crate::generation::GenerationSettings;
use crate::grading::{GradingConfig, GuardedGrader};
use crate::group::Judge;
use crate::memory::MemorySettings;
use crate::sample::{Group, Prompt};
use crate::sampler::SamplingConfig;
use crate::vocabulary::Vocabulary;

const CALL: u32 = 259;
const BROKEN: u32 = 260;
const ANSWER: u32 = 55; // '7'
const END: u32 = 257;
const VOCAB: usize = 264;
/// Samples a prompt: enough that every kind of turn is among them.
const GROUP: usize = 24;
const CALL_TEXT: &str =
    "<tool_call>{\"name\": \"lookup\", \"arguments\": {\"key\": \"zz\"}}</tool_call>";

/// Bytes, and each of the turns as one token.
fn tokenizer() -> Tokenizer {
    let folder = tempfile::tempdir().unwrap();
    Tokenizer::byte_level().save(folder.path()).unwrap();
    let path = folder.path().join("tokenizer.json");
    let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let added = json["added_tokens"].as_array_mut().unwrap();
    for (id, content) in [(CALL, CALL_TEXT), (BROKEN, "<tool_call>oh")] {
        added.push(json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        }));
    }
    std::fs::write(&path, json.to_string()).unwrap();
    Tokenizer::from_folder(folder.path()).unwrap()
}

/// Weights that make the next token depend on the last one alone: after a line break one of three turns, after each
/// turn its end.
struct Table;

impl WeightSource for Table {
    fn tensor(&mut self, name: &str, shape: &[i64]) -> Result<Tensor, WeightError> {
        let size = VOCAB as i64;
        Ok(match name {
            "model.embed_tokens.weight" => Tensor::eye(size, (Kind::Float, Device::Cpu)),
            // The norm makes of a one-hot row one of sqrt(size).
            "lm_head.weight" => {
                let low = -60.0 / f64::from(VOCAB as u32).sqrt();
                let logits = Tensor::full([size, size], low, (Kind::Float, Device::Cpu));
                for (last, next) in [
                    (10, CALL),
                    (10, BROKEN),
                    (10, ANSWER),
                    (CALL, END),
                    (BROKEN, END),
                    (ANSWER, END),
                ] {
                    let _ = logits
                        .get(i64::from(next))
                        .narrow(0, i64::from(last), 1)
                        .fill_(0.0);
                }
                logits
            }
            _ if name.ends_with("norm.weight") => Tensor::ones(shape, (Kind::Float, Device::Cpu)),
            _ => Tensor::zeros(shape, (Kind::Float, Device::Cpu)),
        })
    }
}

fn policy() -> Transformer {
    tch::set_num_threads(1);
    let config = ModelConfig {
        vocab_size: VOCAB,
        hidden_size: VOCAB,
        intermediate_size: 8,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        num_key_value_heads: 2,
        head_dim: 8,
        rms_norm_eps: 1e-6,
        rope_theta: 1e4,
        max_position_embeddings: 2048,
        tie_word_embeddings: false,
        bos_token_id: None,
        eos_token_ids: vec![END],
        ..ModelConfig::sizeless_llama()
    };
    Transformer::load(&config, &mut Table, Kind::Float, Device::Cpu).unwrap()
}

fn settings(max_new_tokens: usize) -> GenerationSettings {
    GenerationSettings {
        sampling: SamplingConfig {
            max_new_tokens,
            ..SamplingConfig::default()
        },
        attention: Attention::Dense,
        stop_tokens: vec![END],
        vocabulary: Vocabulary::all(261),
        seed: 5,
        policy_version: 3,
        max_batch_sequences: 5,
        memory: MemorySettings::default(),
        record_selection: false,
    }
}

fn host() -> EpisodeHost {
    EpisodeHost {
        tasks: Arc::new(Tasks::default()),
        tokenizer: tokenizer(),
        chat: ChatOptions::default(),
        system_prompt: None,
        config: EpisodesConfig {
            threads: 3,
            turn_timeout_secs: 2.0,
        },
    }
}

/// The look-up of level 2, whose answer is never 7: key `zz` does not exist.
fn prompt(host: &EpisodeHost, id: u64) -> Prompt {
    let key: TaskKey = FamilyKey {
        family: Family::Lookup,
        split: Split::Train,
        level: 2,
        seed: id,
    }
    .into();
    let task = host.tasks.task(&key).unwrap();
    let messages = opening(&task, None, &host.tokenizer).unwrap();
    Prompt {
        id,
        question: task.question.clone(),
        task: key,
        tokens: host.tokenizer.chat(&messages, &host.chat).unwrap(),
    }
}

/// Samples `prompts`; `make` may put an episode of its own in the place of each sample's.
fn play(
    host: &EpisodeHost,
    settings: &GenerationSettings,
    prompts: Vec<Prompt>,
    make: Option<&dyn Fn() -> Episode>,
) -> Vec<Group> {
    let model = policy();
    let grader = GuardedGrader::new(host.tasks.clone(), &GradingConfig::default());
    let decode = |tokens: &[u32]| host.tokenizer.decode(tokens);
    let judge = Judge {
        decode: &decode,
        grader: &grader,
        episodes: Some(host),
        rewards: None,
    };
    let mut driver = Driver::new(&model, settings, 5, GROUP, judge);
    let ids: Vec<u64> = prompts.iter().map(|prompt| prompt.id).collect();
    for prompt in prompts {
        driver.submit(prompt, Vec::new()).unwrap();
    }
    if let Some(make) = make {
        for id in &ids {
            driver.replace_places(*id, &|| Place::Open(Box::new(make())));
        }
    }
    let mut groups = Vec::new();
    while driver.step().unwrap().is_some() {
        groups.extend(driver.take_finished());
    }
    groups.sort_by_key(|group| group.prompt.id);
    groups
}

/// What each segment of a sample says, turn by turn, and that its records fit: every drawn token has its log-prob,
/// no given one has, and what was given is what the chat format puts between two turns.
fn turns(host: &EpisodeHost, prompt: &Prompt, sample: &crate::Sample) -> Vec<Vec<u32>> {
    let mut turns = Vec::new();
    for segment in sample.segments(prompt) {
        let mut begin = 0;
        let ends = segment.given.iter().map(|given| (given.start, given.end));
        for (end, next) in ends.chain([(segment.tokens.len(), 0)]) {
            turns.push(segment.tokens[begin..end].to_vec());
            begin = next;
        }
        for (t, &logprob) in segment.sampler_logprobs.iter().enumerate() {
            let is_choice = [CALL, BROKEN, ANSWER].contains(&segment.tokens[t]);
            let is_given = segment.given.iter().any(|given| given.contains(&t));
            let expected = if is_choice && !is_given {
                -(3f32.ln())
            } else {
                0.0
            };
            assert!((logprob - expected).abs() < 1e-3, "token {t}: {logprob}");
        }
        for given in segment.given {
            let text = host
                .tokenizer
                .decode_with_special(&segment.tokens[given.clone()]);
            let text = text.unwrap();
            assert!(text.starts_with("\n<|im_start|>tool\n"), "{text}");
            assert!(
                text.ends_with("<|im_end|>\n<|im_start|>assistant\n"),
                "{text}"
            );
        }
    }
    turns
}

#[test]
fn episodes_are_played_and_graded_as_their_turns_say() {
    let host = host();
    let prompts: Vec<Prompt> = (0..4).map(|id| prompt(&host, id)).collect();
    let groups = play(&host, &settings(600), prompts.clone(), None);
    assert_eq!(groups.len(), 4);
    let mut stops = std::collections::BTreeMap::new();
    for (group, prompt) in groups.iter().zip(&prompts) {
        assert_eq!((&group.prompt, group.samples.len()), (prompt, GROUP));
        for sample in &group.samples {
            let turns = turns(&host, prompt, sample);
            // The same turns in an episode of their own.
            let task = host.tasks.task(&prompt.task).unwrap();
            let mut episode = Episode::open(&task).unwrap();
            let mut last = None;
            for turn in &turns {
                let text = host.tokenizer.decode_with_special(turn).unwrap();
                let Ok(message) = host.tokenizer.parse_completion(&text, Thinking::Off) else {
                    assert_eq!(*turn, [BROKEN, END]);
                    episode.end(Stop::Malformed);
                    break;
                };
                let calls = message
                    .tool_calls
                    .iter()
                    .map(|call| environments::ToolCall {
                        id: String::new(),
                        name: call.name.clone(),
                        arguments: call.arguments.clone(),
                    });
                let heard = AssistantTurn {
                    content: message.content.clone(),
                    calls: calls.collect(),
                };
                last = Some(episode.step(&heard).unwrap());
            }
            assert!(!matches!(last, Some(Next::Tools(_))) || turns.last().unwrap()[0] == BROKEN);
            let record = sample.episode.unwrap();
            assert_eq!(record.stop, episode.stop());
            assert_eq!(
                (record.num_calls, record.num_bad_calls),
                episode.num_calls()
            );
            assert_eq!(sample.verdict, episode.grade());
            assert_eq!(sample.verdict.reward(), Some(0.0));
            *stops.entry(format!("{:?}", record.stop)).or_insert(0) += 1;
        }
    }
    // A third of the first turns end each way, and a third goes on.
    assert!(
        stops["Some(Answered)"] > 5 && stops["Some(Malformed)"] > 5,
        "{stops:?}"
    );
    let num_long = groups
        .iter()
        .flat_map(|g| &g.samples)
        .filter(|s| s.given.len() > 1);
    assert!(num_long.count() > 1, "some call twice");
}

#[test]
fn an_episode_without_room_ends_as_a_valid_sample() {
    let host = host();
    let prompts = vec![prompt(&host, 1)];
    // Two tokens a turn, and no room for a result.
    let groups = play(&host, &settings(20), prompts.clone(), None);
    for sample in &groups[0].samples {
        assert!(sample.given.is_empty() && sample.verdict.reward().is_some());
        let stop = sample.episode.unwrap().stop;
        let expected = match sample.tokens[0] {
            CALL => Stop::Length,
            BROKEN => Stop::Malformed,
            _ => Stop::Answered,
        };
        assert_eq!(stop, Some(expected));
    }
    assert!(
        groups[0]
            .samples
            .iter()
            .any(|sample| sample.tokens[0] == CALL)
    );
}

/// A user who speaks again after each of the first two answers; its tool hangs or panics as told.
struct Chat {
    num_heard: usize,
    trouble: Trouble,
}

#[derive(Clone, Copy, PartialEq)]
enum Trouble {
    None,
    Hang,
    Panic,
    Fault,
}

impl Session for Chat {
    fn call(&mut self, _: &str, _: &Map<String, Value>) -> Result<Called, Fault> {
        match self.trouble {
            Trouble::None => Ok(ToolOutput::ok("ok").into()),
            Trouble::Hang => {
                std::thread::sleep(std::time::Duration::from_secs(5));
                Ok(ToolOutput::ok("late").into())
            }
            Trouble::Panic => panic!("the tool broke"),
            Trouble::Fault => Err(Fault::new(FaultKind::Capacity, "no slot")),
        }
    }

    fn hear(&mut self, content: &str) -> Result<Reply, Fault> {
        assert_eq!(content, "7");
        self.num_heard += 1;
        Ok(match self.num_heard {
            1 | 2 => Reply::User(format!("and {}?", self.num_heard)),
            _ => Reply::Done,
        })
    }

    fn grade(&mut self, _: &str) -> Result<Verdict, Fault> {
        Ok(Verdict::exact(self.num_heard == 3, None))
    }
}

fn chat(trouble: Trouble) -> Episode {
    let session = Chat {
        num_heard: 0,
        trouble,
    };
    let tools = [ToolDef::new("lookup", "", &[("key", "string", "")])];
    Episode::of_session(Box::new(session), &tools, EpisodeLimits::default()).unwrap()
}

#[test]
fn a_user_who_speaks_again_begins_a_segment_that_holds_the_drawn_tokens() {
    let host = host();
    let prompts = vec![prompt(&host, 1), prompt(&host, 2)];
    let groups = play(
        &host,
        &settings(400),
        prompts.clone(),
        Some(&|| chat(Trouble::None)),
    );
    let mut most = 0;
    for (group, prompt) in groups.iter().zip(&prompts) {
        for sample in &group.samples {
            turns(&host, prompt, sample);
            most = most.max(sample.later.len());
            let mut before = [prompt.tokens.clone(), sample.tokens.clone()].concat();
            for (number, segment) in sample.later.iter().enumerate() {
                let said = format!(
                    "\n<|im_start|>user\nand {}?<|im_end|>\n<|im_start|>assistant\n",
                    number + 1
                );
                // Without reasoning nothing is dropped, so the context is all that was there, token for token.
                let expected = [before.clone(), host.tokenizer.encode(&said)].concat();
                assert_eq!(segment.prompt_tokens, expected);
                before = [expected, segment.completion.tokens.clone()].concat();
            }
            let is_won =
                sample.later.len() == 2 && sample.episode.unwrap().stop == Some(Stop::Answered);
            assert_eq!(sample.verdict.reward(), Some(f64::from(is_won)));
        }
    }
    assert_eq!(most, 2, "some sample answers three times");
}

#[test]
fn faults_of_the_service_make_samples_invalid_and_nothing_waits_for_them() {
    let host = host();
    for (trouble, kind, words) in [
        (Trouble::Hang, FaultKind::Timeout, "turn_timeout_secs"),
        (Trouble::Panic, FaultKind::Infra, "the tool broke"),
        (Trouble::Fault, FaultKind::Capacity, "no slot"),
    ] {
        let prompts = vec![prompt(&host, 1)];
        let groups = play(&host, &settings(400), prompts, Some(&|| chat(trouble)));
        let mut num_invalid = 0;
        for sample in &groups[0].samples {
            let called = sample.text.contains(CALL_TEXT);
            match &sample.verdict {
                Verdict::Invalid { fault, reason } => {
                    assert!(
                        called && *fault == kind && reason.contains(words),
                        "{reason}"
                    );
                    num_invalid += 1;
                }
                Verdict::Graded { .. } => assert!(!called, "{}", sample.text),
            }
        }
        assert!(num_invalid > 0 && num_invalid < GROUP);
    }
}

#[test]
fn an_episode_that_waits_behind_one_that_hangs_is_not_given_up_with_it() {
    let mut pool = Pool::new(1, 0.3);
    let call = |trouble| {
        let place = Place::Open(Box::new(chat(trouble)));
        let turn = AssistantTurn {
            content: String::new(),
            calls: vec![environments::ToolCall {
                id: String::new(),
                name: "lookup".to_string(),
                arguments: json!({"key": "zz"}).to_string(),
            }],
        };
        (place, Ask::Step(turn))
    };
    for (sample, trouble) in [Trouble::Hang, Trouble::Hang, Trouble::None]
        .into_iter()
        .enumerate()
    {
        let (place, ask) = call(trouble);
        pool.ask((1, sample), place, ask);
    }
    let mut answers = Vec::new();
    while pool.num_out() > 0 {
        answers.extend(pool.answers(std::time::Duration::from_millis(20)));
        answers.extend(pool.expired());
    }
    answers.sort_by_key(|(id, _)| *id);
    for (id, answer) in answers {
        let went_on = matches!(answer, Answer::Next(..));
        assert_eq!(went_on, id == (1, 2), "{id:?}: {answer:?}");
    }
}

#[test]
fn a_dropped_reasoning_leaves_the_rest_of_the_turn_as_it_was_drawn() {
    // ChatML without reasoning shows turns as they are: the drawn ids are found in the text again.
    let host = host();
    let mut talk = talk::Talk::new(vec![Message::user("hi")]);
    let drawn = [ANSWER, CALL, END];
    talk.hear(&host, &drawn).expect("it is of the format");
    let given = talk.results(
        &host,
        vec![environments::ToolMessage {
            call_id: "call_1".to_string(),
            content: "ok".to_string(),
            is_error: false,
            is_truncated: false,
        }],
    );
    given.expect("ChatML shows it");
    talk.hear(&host, &[ANSWER, END])
        .expect("it is of the format");
    let context = talk
        .user(&host, "more".to_string())
        .expect("ChatML shows it");
    let text = host.tokenizer.decode_with_special(&context).unwrap();
    assert_eq!(
        text,
        format!(
            "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n7{CALL_TEXT}<|im_end|>\n\
             <|im_start|>tool\nok<|im_end|>\n<|im_start|>assistant\n7<|im_end|>\n\
             <|im_start|>user\nmore<|im_end|>\n<|im_start|>assistant\n"
        )
    );
    assert!(context.windows(3).any(|window| window == drawn));
}
