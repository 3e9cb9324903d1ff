use super::*;
use crate::verdict::FaultKind;

fn facts() -> CompletionFacts<'static> {
    CompletionFacts {
        question: "How many apples are there?",
        answer: "There are twelve.",
        reasoning: "Three times four.",
        is_reasoning_open: false,
        num_tokens: 10,
        max_tokens: 1000,
        stop: Stop::Answered,
    }
}

fn weights() -> RewardWeights {
    RewardWeights {
        format_gate: true,
        length: 0.2,
        length_buffer_tokens: 100,
        language: 0.1,
        ..RewardWeights::default()
    }
}

fn config() -> RewardConfig {
    RewardConfig {
        math: weights(),
        ..RewardConfig::default()
    }
}

fn paid(graded: f64, facts: &CompletionFacts) -> Reward {
    let verdict = Verdict::graded(graded, None);
    let reward = config().reward(Domain::Math, &verdict, facts);
    reward.expect("it is graded")
}

#[test]
fn by_default_the_verdict_is_paid_as_it_stands() {
    let config = RewardConfig::default();
    let broken = CompletionFacts {
        answer: "\u{4e00}",
        num_tokens: 1000,
        stop: Stop::Length,
        ..facts()
    };
    for domain in [
        Domain::Math,
        Domain::Logic,
        Domain::Programming,
        Domain::Agent,
        Domain::General,
    ] {
        assert!(config.of(domain).is_outcome_alone());
        for graded in [0.0, 0.25, 1.0] {
            let verdict = Verdict::graded(graded, None);
            let reward = config.reward(domain, &verdict, &broken).expect("graded");
            assert_eq!(reward.reward.to_bits(), graded.to_bits());
            assert_eq!(
                reward.parts,
                BTreeMap::from([("outcome".to_string(), graded)])
            );
        }
    }
    assert!(config.problems(16).is_empty());
}

#[test]
fn an_invalid_sample_has_no_reward() {
    let verdict = Verdict::invalid(FaultKind::Infra, "down");
    assert_eq!(config().reward(Domain::Math, &verdict, &facts()), None);
}

#[test]
fn the_length_penalty_is_a_straight_line_over_the_buffer() {
    for (num_tokens, share) in [(0, 0.0), (900, 0.0), (925, 0.25), (950, 0.5), (1000, 1.0)] {
        assert_eq!(overlong_share(num_tokens, 1000, 100), share, "{num_tokens}");
    }
    // A later segment may go beyond the limit of one.
    assert_eq!(overlong_share(5000, 1000, 100), 1.0);
    assert_eq!(overlong_share(250, 1000, 1000), 0.25);
    let long = CompletionFacts {
        num_tokens: 950,
        ..facts()
    };
    // 1 - 0.2 / 2, and for a wrong answer the same less 1.
    assert_eq!(paid(1.0, &long).reward, 0.9);
    assert_eq!(paid(0.0, &long).reward, -0.1);
}

#[test]
fn the_format_gate_takes_the_outcome_and_nothing_else() {
    let sound = paid(1.0, &facts());
    assert_eq!((sound.reward, sound.parts["format"]), (1.0, 0.0));
    for (stop, answer, is_reasoning_open, problem) in [
        (Stop::Malformed, "12", false, FormatProblem::Malformed),
        (Stop::Length, "12", false, FormatProblem::Cut),
        (Stop::Turns, "12", false, FormatProblem::Limit),
        (Stop::Calls, "12", false, FormatProblem::Limit),
        (Stop::Time, "12", false, FormatProblem::Limit),
        (Stop::Answered, "12", true, FormatProblem::OpenReasoning),
        (Stop::Answered, " \n", false, FormatProblem::NoAnswer),
    ] {
        let broken = CompletionFacts {
            answer,
            is_reasoning_open,
            stop,
            ..facts()
        };
        assert_eq!(broken.format_problem(), Some(problem));
        let reward = paid(1.0, &broken);
        assert_eq!(reward.reward, 0.0, "{problem}");
        assert_eq!(
            (reward.parts["outcome"], reward.parts["format"]),
            (1.0, -1.0)
        );
        assert_eq!(paid(0.0, &broken).reward.to_bits(), 0f64.to_bits());
    }
    let submitted = CompletionFacts {
        answer: "",
        stop: Stop::Submitted,
        ..facts()
    };
    assert_eq!(paid(1.0, &submitted).reward, 1.0);
}

#[test]
fn the_language_penalty_is_the_share_of_other_letters() {
    // 14 + 14 letters in Latin, 7 in Cyrillic: a fifth.
    let mixed = CompletionFacts {
        answer: "There are twelve \u{44f}\u{431}\u{43b}\u{43e}\u{43a}\u{438}\u{442}",
        ..facts()
    };
    let reward = paid(1.0, &mixed);
    assert!(
        (reward.parts["language"] + 0.1 * 0.2).abs() < 1e-12,
        "{reward:?}"
    );
    assert!((reward.reward - 0.98).abs() < 1e-12, "{reward:?}");
}

#[test]
fn parts_sum_to_the_reward_and_a_right_answer_is_paid_more_than_any_wrong_one() {
    let worst = CompletionFacts {
        answer: "\u{4e00}\u{5171}",
        reasoning: "",
        num_tokens: 1000,
        ..facts()
    };
    let (best_wrong, worst_right) = (paid(0.0, &facts()), paid(1.0, &worst));
    assert!((worst_right.reward - 0.7).abs() < 1e-12, "{worst_right:?}");
    assert!(worst_right.reward > best_wrong.reward);
    for reward in [&best_wrong, &worst_right, &paid(0.0, &worst)] {
        let sum: f64 = reward.parts.values().sum();
        assert_eq!(sum, reward.reward);
        assert!((-0.3 - 1e-12..=1.0).contains(&reward.reward));
    }
}

#[test]
fn a_text_is_split_where_its_reasoning_ends() {
    let split = |text, begins_inside| {
        let text = ReasonedText::split(text, begins_inside);
        (text.reasoning, text.answer, text.is_open)
    };
    assert_eq!(split("<think>a</think>b", false), ("a", "b", false));
    assert_eq!(split("a</think>b", true), ("a", "b", false));
    assert_eq!(split("<think>a", false), ("a", "", true));
    assert_eq!(split("a b", true), ("a b", "", true));
    assert_eq!(split("a b", false), ("", "a b", false));
    assert_eq!(
        split("a</think>b</think>c", true),
        ("a", "b</think>c", false)
    );
}

#[test]
fn what_is_wrong_with_weights_is_said() {
    let problems = |weights: RewardWeights| {
        let config = RewardConfig {
            agent: weights,
            ..RewardConfig::default()
        };
        config.problems(512)
    };
    let default = RewardWeights::default();
    for (weights, words) in [
        (
            RewardWeights {
                outcome: 0.0,
                ..default
            },
            "agent: outcome (0)",
        ),
        (
            RewardWeights {
                length: -0.1,
                ..default
            },
            "agent: length (-0.1)",
        ),
        (
            RewardWeights {
                language: f64::NAN,
                ..default
            },
            "agent: language (NaN)",
        ),
        (
            RewardWeights {
                length: 0.6,
                language: 0.4,
                length_buffer_tokens: 9,
                ..default
            },
            "together must lie below outcome (1)",
        ),
        (
            RewardWeights {
                length: 0.1,
                ..default
            },
            "length_buffer_tokens (4096) must lie from 1 to the limit of a completion (512)",
        ),
    ] {
        let found = problems(weights);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains(words), "{found:?}");
    }
    assert!(problems(default).is_empty(), "a buffer that nothing uses");
}

#[test]
fn weights_are_read_by_domain_and_unknown_keys_refused() {
    let read = |json: &str| serde_json::from_str::<RewardConfig>(json);
    let config = read(r#"{"math": {"format_gate": true, "length": 0.2}}"#).expect("sound");
    assert_eq!(config.math.length_buffer_tokens, 4096);
    assert!(config.math.format_gate && config.logic.is_outcome_alone());
    assert!(read(r#"{"math": {"lenght": 0.2}}"#).is_err());
    assert!(read(r#"{"maths": {}}"#).is_err());
}

#[test]
fn the_weights_on_the_page_are_read() {
    let page = include_str!("../../../docs/environments.md");
    let written =
        "(math: (format_gate: true, length: 0.2, length_buffer_tokens: 2048, language: 0.1))";
    assert!(page.contains(written));
    let config: RewardConfig = ron::from_str(written).expect("sound");
    assert_eq!(config.math.length_buffer_tokens, 2048);
    assert!(config.problems(8192).is_empty());
    let again = ron::to_string(&config).expect("plain data");
    assert_eq!(
        ron::from_str::<RewardConfig>(&again).expect("sound"),
        config
    );
}
