use super::*;
use crate::off_policy::{MaskedAtAge, OffPolicy};

fn step(global_step: u64) -> StepMetrics {
    StepMetrics {
        stage: "grpo".to_string(),
        global_step,
        reward_mean: Some(0.25),
        ..StepMetrics::default()
    }
}

fn exporter() -> Exporter {
    Exporter {
        newest: Arc::new(Mutex::new(Newest::at_start("a \"b\""))),
    }
}

/// The lines of the text without comments.
fn samples(exporter: &Exporter) -> Vec<String> {
    let text = exporter.newest().text();
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples.map(str::to_string).collect()
}

#[test]
fn figures_are_gauges_with_run_stage_and_age() {
    let exporter = exporter();
    let at_age = |age, masked_sequences| MaskedAtAge {
        age,
        masked_sequences,
        ..MaskedAtAge::default()
    };
    exporter.show(&StepMetrics {
        off_policy: OffPolicy {
            masked_by_age: vec![at_age(0, 0), at_age(1, 1)],
            ..OffPolicy::default()
        },
        ..step(7)
    });
    let samples = samples(&exporter);
    let run = r#"run="a \"b\"""#;
    for expected in [
        format!("baleen_steps_total{{{run}}} 7"),
        format!(r#"baleen_reward_mean{{{run},stage="grpo"}} 0.25"#),
        format!(r#"baleen_masked_by_age_masked_sequences{{{run},stage="grpo",age="0"}} 0.0"#),
        format!(r#"baleen_masked_by_age_masked_sequences{{{run},stage="grpo",age="1"}} 1.0"#),
    ] {
        assert!(samples.contains(&expected), "{expected} in {samples:?}");
    }
    let text = exporter.newest().text();
    let help = "# HELP baleen_reward_mean reward_mean of the newest step.\n# TYPE baleen_reward_mean gauge\n";
    assert!(text.contains(help), "{text}");
    assert!(
        text.contains("# TYPE baleen_steps_total counter\n"),
        "{text}"
    );
}

#[test]
fn a_figure_that_the_newest_step_lacks_is_gone_but_the_held_out_pass_rate_stays() {
    let exporter = exporter();
    exporter.show(&StepMetrics {
        held_out_pass_rate: Some(0.5),
        kl: Some(0.1),
        ..step(1)
    });
    exporter.show(&step(2));
    exporter.show(&step(3));
    let samples = samples(&exporter);
    let of = |name: &str| samples.iter().filter(|line| line.starts_with(name)).count();
    assert_eq!(of("baleen_kl{"), 0, "{samples:?}");
    assert_eq!(of("baleen_held_out_pass_rate{"), 1, "{samples:?}");
}

#[test]
fn the_time_of_the_last_step_is_the_start_until_this_process_makes_one() {
    let exporter = exporter();
    exporter.newest().last_step_secs = 5.0;
    exporter.show_earlier(&[step(1)]);
    assert_eq!(exporter.newest().last_step_secs, 5.0);
    let before = now().as_secs_f64();
    exporter.show(&step(2));
    assert!(exporter.newest().last_step_secs >= before);
}

#[test]
fn another_path_and_another_method_are_refused() {
    let exporter = exporter();
    let status = |method: Method, path: &str| {
        let request = Request::builder().method(method).uri(path).body(());
        answer(&request.expect("a request"), &exporter).status()
    };
    assert_eq!(status(Method::GET, "/metrics"), StatusCode::OK);
    assert_eq!(status(Method::GET, "/"), StatusCode::NOT_FOUND);
    assert_eq!(
        status(Method::POST, "/metrics"),
        StatusCode::METHOD_NOT_ALLOWED
    );
}
