use kernels::tch::Device;
use model::random_model::RandomSource;
use model::{Attention, ModelConfig, Transformer};

use super::grpo::GrpoShape;
use super::shapes::smollm2_135m;
use super::timing::Timing;
use super::*;

fn tiny() -> Transformer {
    kernels::tch::set_num_threads(1);
    let config = ModelConfig {
        vocab_size: 64,
        hidden_size: 16,
        intermediate_size: 32,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 8,
        ..smollm2_135m()
    };
    let mut source = RandomSource::new(&config, 1);
    Transformer::load(&config, &mut source, Kind::Float, Device::Cpu).expect("random weights")
}

#[test]
fn every_part_has_its_rows_within_100_columns() {
    let policy = tiny();
    let subject = Subject {
        policy: &policy,
        attention: Attention::Dense,
        timing: Timing { repeats: 1 },
        shape: GrpoShape::default(),
    };
    let mut names = Vec::new();
    let parts = [
        Part::Prefill,
        Part::Decode,
        Part::Train,
        Part::Rollout,
        Part::Step,
    ];
    run::<TrainerError>(&subject, &parts, |text| {
        for line in text.lines() {
            assert!(line.len() <= 100, "{line}");
            let name = line.trim_start().split("  ").next().unwrap_or("");
            names.push(name.to_string());
        }
        Ok(())
    })
    .expect("measured");
    for name in [
        "product 2048x2048x2048 f32",
        "memory read",
        "memory copy, read + written",
        "prefill, 512 tokens",
        "decode, batch 1",
        "decode, batch 16",
        "decode, batch 64",
        "train, 1024 tokens",
        "step, 8x8 samples",
        "rollout",
        "prefill",
        "decode",
        "learning",
        "prompt + completion",
        "peak memory",
    ] {
        assert!(names.contains(&name.to_string()), "{name} in {names:?}");
    }
}

#[test]
fn a_row_tells_speed_needs_limit_and_share() {
    let ceilings = Ceilings {
        flops_per_sec: 100e9,
        bytes_per_sec: 10e9,
    };
    let work = Work {
        flops: 50e9,
        bytes: 1e9,
    };
    assert_eq!(
        line("decode, batch 64", 1536, 2.0, work, ceilings),
        "decode, batch 64                768.0      2.000         50.0      1.00      0.500      25 %"
    );
}

#[test]
fn a_grpo_step_trains_each_prompt_once_and_no_last_token() {
    let policy = tiny();
    let subject = Subject {
        policy: &policy,
        attention: Attention::Dense,
        timing: Timing { repeats: 1 },
        shape: GrpoShape::default(),
    };
    let learning = grpo_work(&subject).learning;
    // Of a layer: 16 x 8 x 6 for attention and 3 x 16 x 32 for the feed-forward; 64 x 16 the head.
    // Tokens 8 x (30 + 8 x 23), keys 8 x (465 + 8 x (713 + 253)), 4 x 16 operations each.
    let forward = 2.0 * 1712.0 * 2.0 * 2304.0
        + 2.0 * 64.0 * 8.0 * (465.0 + 8.0 * 966.0)
        + 2.0 * 1536.0 * 1024.0;
    assert_eq!(learning.flops, 3.0 * forward);
}

#[test]
fn a_step_has_the_shape_asked_for() {
    let policy = tiny();
    let subject = Subject {
        policy: &policy,
        attention: Attention::Dense,
        timing: Timing { repeats: 1 },
        shape: GrpoShape {
            prompts: 3,
            group: 2,
            prompt_tokens: 5,
            new_tokens: 4,
            // A group: its prompt, and all but the last token of each sample.
            micro_batch_tokens: 5 + 2 * 3,
            activation_checkpointing: true,
        },
    };
    let step = subject.step().expect("measured");
    assert_eq!(step.forwarded_tokens, 3 * 11);
    let [mean, largest] = step.logprob_gap;
    assert!(mean <= largest && largest < 1e-4, "{mean} {largest}");
    assert_eq!(subject.shape.completion_tokens(), 24);
    assert_eq!(subject.shape.sequence_tokens(), 54);
    // 3 x 15 keys in the prefill, decode steps of 6 sequences that see 6, 7 and 8 keys.
    let work = grpo_work(&subject);
    let products = |tokens: f64| 2.0 * tokens * (2.0 * 2304.0 + 1024.0);
    let keys = |keys: f64| 2.0 * 64.0 * keys;
    let prefill = products(15.0) - 2.0 * 12.0 * 1024.0 + keys(45.0);
    assert_eq!(work.prefill.flops, prefill);
    assert_eq!(work.decode.flops, products(18.0) + keys(6.0 * 21.0));
}

#[test]
fn the_timeline_of_a_step_is_written() {
    let policy = tiny();
    let subject = Subject {
        policy: &policy,
        attention: Attention::Dense,
        timing: Timing { repeats: 1 },
        shape: GrpoShape::default(),
    };
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("step.json");
    subject.profiled_step(&path).expect("written");
    let text = std::fs::read_to_string(&path).expect("a file");
    let timeline: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let events = timeline["traceEvents"].as_array().expect("a list");
    for name in ["step", "rollout", "prefill", "decode", "learn", "optimizer"] {
        assert!(events.iter().any(|event| event["name"] == name), "{name}");
    }
}

/// On a CPU every row is libtorch's; experts have rows of their own.
#[test]
fn every_operation_has_its_row() {
    kernels::tch::set_num_threads(1);
    let config = ModelConfig {
        vocab_size: 64,
        hidden_size: 16,
        intermediate_size: 32,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 8,
        model_type: model::ModelType::Mixtral,
        moe: Some(model::MoeConfig::mixtral(4, 2)),
        ..smollm2_135m()
    };
    let mut source = RandomSource::new(&config, 1);
    let policy = Transformer::load(&config, &mut source, Kind::Float, Device::Cpu);
    let policy = policy.expect("random weights");
    let subject = Subject {
        policy: &policy,
        attention: Attention::Dense,
        timing: Timing { repeats: 1 },
        shape: GrpoShape {
            micro_batch_tokens: 256,
            ..GrpoShape::default()
        },
    };
    let mut rows = Vec::new();
    run::<TrainerError>(&subject, &[Part::Kernels], |text| {
        rows.extend(text.lines().map(str::to_string));
        Ok(())
    })
    .expect("measured");
    for name in [
        "product 256x16x32, forward",
        "product 256x16x64, forward",
        "sum and norm 256x16, forward",
        "swiglu 256x32, forward",
        "rope and gather 214 rows, forward",
        "packed attention 214 rows, forward",
        "log-prob head 256x16x64, forward",
        "rows to experts 256x16, 2 of 4, forward",
        "experts 512x16x64 of 4, forward",
        "experts' sum 256x16, 2 of 4, forward",
        "cached attention, 64 over 54",
        "sampling 64x64",
    ] {
        let row = rows.iter().position(|row| row.starts_with(name));
        let row = row.unwrap_or_else(|| panic!("{name} in {rows:#?}"));
        assert!(rows[row].ends_with('%'), "{}", rows[row]);
        if name.ends_with("forward") {
            assert!(rows[row + 1].starts_with("  forward and backward"));
            assert!(rows[row + 1].ends_with('%'));
        }
    }
}
