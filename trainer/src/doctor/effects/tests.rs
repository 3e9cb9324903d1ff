use environments::{Family, FamilyKey, Split, Verdict};
use model::{DsaConfig, KeptTokens, RoutingTrace, SelectionTrace};
use rollout::{Prompt, Sample};

use super::*;
use crate::config_file;

/// A group of a prompt of 10 tokens whose samples earn `rewards`, each of 5 tokens.
fn group(rewards: &[f64], finish_reason: FinishReason) -> Group {
    let sample = |(index, &reward): (usize, &f64)| Sample {
        index,
        tokens: vec![1; 5],
        sampler_logprobs: vec![-1.0; 5],
        kept: KeptTokens::default(),
        routing: RoutingTrace::default(),
        selection: SelectionTrace::default(),
        policy_versions: vec![0; 5],
        finish_reason,
        text: String::new(),
        verdict: Verdict::graded(reward, None),
        given: Vec::new(),
        later: Vec::new(),
        paid: None,
        episode: None,
    };
    Group {
        prompt: Prompt {
            id: 0,
            task: FamilyKey {
                family: Family::Sums,
                split: Split::Train,
                level: 1,
                seed: 0,
            }
            .into(),
            question: String::new(),
            tokens: vec![1; 10],
        },
        samples: rewards.iter().enumerate().map(sample).collect(),
    }
}

fn config() -> RunConfig {
    let text = include_str!("../../../../configs/smoke.ron");
    config_file::parse(text, "smoke").unwrap_or_else(|error| panic!("{error}"))
}

fn shape(index_topk: usize) -> ModelConfig {
    ModelConfig {
        max_position_embeddings: 512,
        dsa: Some(DsaConfig::new(2, 8, index_topk)),
        moe: Some(model::MoeConfig::mixtral(4, 2)),
        ..ModelConfig::sizeless_llama()
    }
}

fn notes(config: &RunConfig, index_topk: usize, attention: Attention, groups: &[Group]) -> String {
    let found = effect_findings(config, &shape(index_topk), attention, groups);
    assert!(!found.iter().any(Finding::has_failed));
    let lines: Vec<String> = found.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

#[test]
fn selecting_every_key_of_what_was_played_is_noted() {
    let groups = [group(&[0.0, 1.0], FinishReason::Stop)];
    let text = "index_topk (15) is not below the longest of the sequences played (15 tokens)";
    let said = |topk, attention| notes(&config(), topk, attention, &groups).contains(text);
    assert!(said(15, Attention::Sparse));
    assert!(!said(15, Attention::Dense));
    assert!(!notes(&config(), 14, Attention::Sparse, &groups).contains("sequences played"));
}

#[test]
fn groups_without_a_difference_are_noted() {
    let flat = [
        group(&[0.0, 0.0], FinishReason::Stop),
        group(&[1.0, 1.0], FinishReason::Stop),
    ];
    let text = "in no group did rewards differ";
    assert!(notes(&config(), 8, Attention::Sparse, &flat).contains(text));
    let one = [
        group(&[0.0, 0.0], FinishReason::Stop),
        group(&[0.0, 1.0], FinishReason::Stop),
    ];
    assert!(!notes(&config(), 8, Attention::Sparse, &one).contains(text));
    let mut alone = config();
    for stage in &mut alone.stages {
        if let StageConfig::Grpo(grpo) = stage {
            grpo.group_size = 1;
        }
    }
    assert!(notes(&alone, 8, Attention::Sparse, &one).contains("group_size is 1"));
}

#[test]
fn samples_that_never_end_are_explained() {
    let finding = finished_finding(&[group(&[0.0, 0.0], FinishReason::Length)], 5);
    assert!(
        finding.measured.starts_with("0.00 of the samples"),
        "{finding}"
    );
    assert!(finding.measured.contains("5 new tokens"), "{finding}");
    let groups = [
        group(&[0.0], FinishReason::Length),
        group(&[0.0], FinishReason::Stop),
    ];
    let finding = finished_finding(&groups, 5);
    assert!(
        finding
            .measured
            .ends_with("0.50 of the samples ended with a stop token")
    );
}
