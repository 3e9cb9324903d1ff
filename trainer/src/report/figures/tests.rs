use super::*;
use crate::config_file;
use crate::metrics::StepSecs;

fn config() -> RunConfig {
    let text = r#"(
        name: "a",
        model: (source: Path("model")),
        environments: [(family: sums)],
        stages: [
            sft(steps: 2, learning_rate: (peak: 1e-3)),
            grpo(steps: 9, prompts_per_step: 4, group_size: 8, learning_rate: (peak: 1e-5)),
        ],
    )"#;
    config_file::parse(text, "test").expect("sound")
}

/// Steps 1 and 2 of sft, 3 and 4 of grpo.
fn steps() -> Vec<StepMetrics> {
    (1..=4)
        .map(|global_step| {
            let is_grpo = global_step > 2;
            StepMetrics {
                stage: if is_grpo { "grpo" } else { "sft" }.to_string(),
                stage_index: usize::from(is_grpo),
                step: global_step as usize - if is_grpo { 2 } else { 0 },
                global_step,
                loss: Some(0.5),
                reward_mean: is_grpo.then_some(0.25),
                reward_std: is_grpo.then_some(0.125),
                zero_spread_groups: is_grpo.then_some(1),
                masked_sequences: is_grpo.then_some(8),
                masked_tokens: is_grpo.then_some(32),
                completion_tokens_mean: is_grpo.then_some(2.0),
                secs: StepSecs {
                    rollout: is_grpo.then_some(2.0),
                    train: Some(1.0),
                    total: Some(if is_grpo { 3.5 } else { 1.0 }),
                    ..StepSecs::default()
                },
                ..StepMetrics::default()
            }
        })
        .collect()
}

fn run<'a>(label: &'a str, config: &'a RunConfig, steps: &'a [StepMetrics]) -> RunSteps<'a> {
    RunSteps {
        label,
        config,
        steps,
    }
}

fn find<'a>(charts: &'a [JudgedChart], title: &str) -> &'a Chart {
    let found = charts.iter().find(|judged| judged.chart.title == title);
    &found.unwrap_or_else(|| panic!("no chart {title}")).chart
}

fn values(curve: &Curve) -> Vec<(f64, f64)> {
    curve
        .points
        .iter()
        .map(|point| (point.x, point.y))
        .collect()
}

#[test]
fn figures_without_data_have_no_chart() {
    let (config, steps) = (config(), steps());
    let charts = charts(&[run("a", &config, &steps)]);
    let titles: Vec<&str> = charts
        .iter()
        .map(|judged| judged.chart.title.as_str())
        .collect();
    assert_eq!(
        titles,
        [
            "Reward",
            "Groups without advantage",
            "Taken by the off-policy mask",
            "Length",
            "Loss",
            "Time of a step"
        ]
    );
    assert!(super::charts(&[run("a", &config, &[])]).is_empty());
}

#[test]
fn counts_become_shares_of_what_there_was() {
    let (config, steps) = (config(), steps());
    let charts = charts(&[run("a", &config, &steps)]);
    let flat = find(&charts, "Groups without advantage");
    assert_eq!(values(&flat.curves()[0]), [(3.0, 0.25), (4.0, 0.25)]);
    // 8 of 32 sequences, 32 of 64 tokens.
    let masked = find(&charts, "Taken by the off-policy mask");
    assert_eq!(masked.curves()[0].label, "of the sequences");
    assert_eq!(values(&masked.curves()[0])[0], (3.0, 0.25));
    assert_eq!(values(&masked.curves()[1])[0], (3.0, 0.5));
    let reward = find(&charts, "Reward");
    assert_eq!(reward.curves()[0].points[0].spread, 0.125);
}

#[test]
fn the_time_of_a_step_is_the_sum_of_its_parts() {
    let (config, steps) = (config(), steps());
    let charts = charts(&[run("a", &config, &steps)]);
    let parts = find(&charts, "Time of a step").curves();
    let named: Vec<(&str, f64)> = parts
        .iter()
        .map(|part| (part.label.as_str(), part.points[2].y))
        .collect();
    assert_eq!(named, [("rollout", 2.0), ("train", 1.0), ("other", 0.5)]);
}

#[test]
fn several_runs_have_a_colour_each_and_their_stages_in_it_where_they_differ() {
    let (config, steps) = (config(), steps());
    let alike = charts(&[run("a", &config, &steps), run("b", &config, &steps[..3])]);
    let reward = find(&alike, "Reward");
    let drawn: Vec<(&str, usize, usize)> = reward
        .curves()
        .iter()
        .map(|c| (c.run.as_deref().unwrap_or(""), c.color, c.dash))
        .collect();
    assert_eq!(drawn, [("a", 0, 0), ("b", 1, 0)]);
    let stages: Vec<(f64, Option<usize>)> = reward
        .stages
        .iter()
        .map(|stage| (stage.x, stage.color))
        .collect();
    assert_eq!(stages, [(1.0, None), (3.0, None)]);
    let masked = find(&alike, "Taken by the off-policy mask");
    assert_eq!(masked.curves()[3].label, "of the tokens");
    assert_eq!((masked.curves()[3].color, masked.curves()[3].dash), (1, 2));
    find(&alike, "Time of a step, b");

    let later: Vec<StepMetrics> = steps
        .iter()
        .map(|step| StepMetrics {
            global_step: step.global_step + u64::from(step.stage == "grpo"),
            ..step.clone()
        })
        .collect();
    let unlike = charts(&[run("a", &config, &steps), run("b", &config, &later)]);
    let stages: Vec<(f64, Option<usize>)> = find(&unlike, "Reward")
        .stages
        .iter()
        .map(|stage| (stage.x, stage.color))
        .collect();
    assert_eq!(stages, [(1.0, None), (3.0, Some(0)), (4.0, Some(1))]);
}

#[test]
fn every_figure_that_is_judged_stands_beside_one_chart() {
    let judged = PLANS
        .iter()
        .flat_map(|plan| plan.figures)
        .chain([&Figure::Silence]);
    for figure in Figure::ALL {
        let times = judged.clone().filter(|&&other| other == figure).count();
        assert_eq!(times, 1, "{figure:?}");
    }
}
