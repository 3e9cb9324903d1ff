use std::fs;
use std::path::Path;

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use environments::{Family, FamilyKey, Split, Verdict};
use model::{KeptTokens, RoutingTrace, SelectionTrace};
use rollout::{FinishReason, Group, Prompt, Sample, rollout_file};

use super::super::view::Wish;
use super::*;
use crate::config_file;
use crate::metrics::{MetricsWriter, StepSecs};
use crate::run_folder::{RunFolder, RunLayout};

/// A run of two stages without a step.
fn begin(root: &Path) -> RunFolder {
    let text = r#"(
        name: "whale",
        model: (source: Path("m.gguf")),
        environments: [(family: sums)],
        stages: [
            sft(steps: 2, learning_rate: (peak: 1e-5)),
            grpo(steps: 9, prompts_per_step: 4, group_size: 8, learning_rate: (peak: 1e-5)),
        ],
    )"#;
    let config = config_file::parse(text, "test").expect("a valid configuration");
    RunFolder::create(root, &config).expect("created")
}

/// Writes both steps of the first stage, `num_steps` of the second with their samples, and a log.
fn work(folder: &RunFolder, num_steps: u64) {
    let mut writer = MetricsWriter::create(&folder.metrics_path()).expect("created");
    for step in 1..=2 {
        let metrics = StepMetrics {
            stage: "sft".to_string(),
            step,
            global_step: step as u64,
            ..StepMetrics::default()
        };
        writer.write(&metrics).expect("written");
    }
    for step in 1..=num_steps {
        let metrics = StepMetrics {
            stage: "grpo".to_string(),
            stage_index: 1,
            step: step as usize,
            global_step: step + 2,
            reward_mean: Some(0.125 * step as f64),
            held_out_pass_rate: (step == 2).then_some(0.375),
            kl: Some(0.0123),
            secs: StepSecs {
                total: Some(10.0),
                ..StepSecs::default()
            },
            ..StepMetrics::default()
        };
        writer.write(&metrics).expect("written");
        let path = folder.rollout_path(step + 2);
        rollout_file::write(&path, step + 2, &groups(step), &[0.5; 4]).expect("written");
    }
    let log = "2026-01-31T12:34:56.789012Z  INFO run folder: r\n\
               2026-01-31T12:34:57.000000Z  WARN a warning\n";
    fs::write(folder.log_path(), log).expect("written");
}

/// Two prompts with two samples each.
fn groups(step: u64) -> Vec<Group> {
    let sample = |index: usize, prompt: u64| Sample {
        index,
        tokens: vec![1, 2],
        sampler_logprobs: vec![-0.5, -0.5],
        kept: KeptTokens::default(),
        routing: RoutingTrace::default(),
        selection: SelectionTrace::default(),
        policy_versions: vec![7, 7],
        given: Vec::new(),
        later: Vec::new(),
        paid: None,
        episode: None,
        finish_reason: FinishReason::Stop,
        text: format!("\x1b[31manswer {index} to {prompt} of {step}"),
        verdict: Verdict::graded(index as f64, None),
    };
    let group = |id| Group {
        prompt: Prompt {
            id,
            task: FamilyKey {
                family: Family::Sums,
                split: Split::Train,
                level: 1,
                seed: 0,
            }
            .into(),
            question: format!("question {id} of {step}"),
            tokens: vec![5],
        },
        samples: vec![sample(0, id), sample(1, id)],
    };
    vec![group(1), group(2)]
}

/// What a terminal of that size would show.
fn frame(files: &RunFiles, view: &mut View, width: u16, height: u16) -> String {
    let area = Rect::new(0, 0, width, height);
    let mut buffer = Buffer::empty(area);
    draw(&mut buffer, area, files, view);
    if width == 0 {
        return String::new();
    }
    let rows = buffer.content.chunks(usize::from(width));
    rows.map(|row| row_text(row) + "\n").collect()
}

fn press(view: &mut View, files: &mut RunFiles, code: KeyCode) -> Wish {
    let wish = view.press(KeyEvent::new(code, KeyModifiers::NONE), files);
    files.rollouts.refresh(&files.layout, view.step);
    view.fit(files);
    wish
}

#[test]
fn no_size_of_terminal_panics() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let folder = begin(dir.path());
    let mut states = vec![RunFiles::open(RunLayout::new(dir.path())).expect("a run")];
    work(&folder, 3);
    let mut files = RunFiles::open(RunLayout::new(dir.path())).expect("a run");
    files.rollouts.refresh(&files.layout, None);
    states.push(files);
    for files in &states {
        for panel in Panel::ALL {
            for is_help_open in [false, true] {
                for width in (0..100).chain([120, 200, 400]) {
                    for height in [0, 1, 2, 5, 11, 12, 13, 15, 24, 60, 200] {
                        let mut view = View {
                            panel,
                            is_help_open,
                            ..View::default()
                        };
                        frame(files, &mut view, width, height);
                    }
                }
            }
        }
    }
}

#[test]
fn at_80x24_the_overview_tells_state_stages_rewards_and_log() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let folder = begin(dir.path());
    work(&folder, 3);
    let mut files = RunFiles::open(RunLayout::new(dir.path())).expect("a run");
    let text = frame(&files, &mut View::default(), 80, 24);
    for part in [
        "whale",
        "running: process",
        "sft 2/2  grpo 3/9",
        "33 %, 1m 00s left in grpo",
        "1 Overview",
        "reward  0.3750",
        "held-out pass rate  0.3750",
        "step 5",
        "KL                0.0123",
        "12:34:56 run folder: r",
        "12:34:57 WARN a warning",
        "q quit",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    assert_eq!(text.lines().count(), 24);
    drop(folder);
    files.refresh();
    let text = frame(&files, &mut View::default(), 80, 24);
    assert!(text.contains("not running  `baleen resume"), "{text}");
}

#[test]
fn keys_page_through_samples_prompts_and_steps() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let folder = begin(dir.path());
    work(&folder, 3);
    let mut files = RunFiles::open(RunLayout::new(dir.path())).expect("a run");
    let mut view = View::default();
    let mut after = |codes: &[KeyCode], files: &mut RunFiles| {
        for code in codes {
            assert_ne!(press(&mut view, files, *code), Wish::Quit);
        }
        frame(files, &mut view, 80, 24)
    };
    let text = after(&[KeyCode::Char('3')], &mut files);
    assert!(
        text.contains("step 5 (newest, of 3)   prompt 1 of 2   sample 1 of 2"),
        "{text}"
    );
    assert!(text.contains("question 1 of 3"), "{text}");
    assert!(text.contains("␛[31manswer 0 to 1 of 3"), "{text}");
    assert!(
        text.contains("reward 0   advantage +0.500   no answer read"),
        "{text}"
    );
    let text = after(&[KeyCode::Right, KeyCode::Right, KeyCode::Down], &mut files);
    assert!(text.contains("answer 1 to 2 of 3"), "{text}");
    let text = after(
        &[KeyCode::PageUp, KeyCode::PageUp, KeyCode::PageUp],
        &mut files,
    );
    assert!(
        text.contains("step 3 (of 3)   prompt 2 of 2   sample 2 of 2"),
        "{text}"
    );
    assert!(text.contains("answer 1 to 2 of 1"), "{text}");
    let text = after(&[KeyCode::PageDown, KeyCode::Left, KeyCode::Up], &mut files);
    assert!(text.contains("answer 0 to 1 of 2"), "{text}");

    // The newest step is followed again once it is reached.
    after(&[KeyCode::PageDown], &mut files);
    work(&folder, 4);
    files.rollouts.refresh(&files.layout, None);
    let text = after(&[KeyCode::Left], &mut files);
    assert!(text.contains("step 6 (newest, of 4)"), "{text}");
}

#[test]
fn panels_change_help_opens_and_q_quits() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let folder = begin(dir.path());
    work(&folder, 2);
    let mut files = RunFiles::open(RunLayout::new(dir.path())).expect("a run");
    let mut view = View::default();
    let tab = KeyCode::Tab;
    let keys = [tab, KeyCode::Right, tab, KeyCode::Right, KeyCode::Right];
    let panels = keys.map(|code| {
        // Left and Right are of the samples there.
        press(&mut view, &mut files, code);
        view.panel
    });
    use Panel::{Curves, Health, Log, Overview, Samples};
    assert_eq!(panels, [Curves, Samples, Health, Log, Overview]);
    press(&mut view, &mut files, KeyCode::BackTab);
    assert_eq!(view.panel, Log);
    press(&mut view, &mut files, KeyCode::Char('?'));
    let text = frame(&files, &mut view, 80, 24);
    assert!(text.contains("PgUp, PgDn"), "{text}");
    press(&mut view, &mut files, KeyCode::Esc);
    assert!(!frame(&files, &mut view, 80, 24).contains("PgUp"));
    assert_eq!(press(&mut view, &mut files, KeyCode::Char('q')), Wish::Quit);
    let ctrl_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    assert_eq!(view.press(ctrl_c, &files), Wish::Quit);
}

#[test]
fn what_is_unhealthy_is_named_in_the_overview_and_explained_in_its_panel() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let folder = begin(dir.path());
    work(&folder, 1);
    let files = RunFiles::open(RunLayout::new(dir.path())).expect("a run");
    let text = frame(&files, &mut View::default(), 80, 24);
    assert!(
        text.contains("nothing is outside its healthy range"),
        "{text}"
    );

    let mut writer = MetricsWriter::create(&folder.metrics_path()).expect("created");
    for step in 1..=9 {
        let metrics = StepMetrics {
            stage: "grpo".to_string(),
            stage_index: 1,
            step,
            global_step: step as u64,
            reward_mean: Some(0.5),
            entropy: Some(0.001),
            ..StepMetrics::default()
        };
        writer.write(&metrics).expect("written");
    }
    let files = RunFiles::open(RunLayout::new(dir.path())).expect("a run");
    let mut view = View::default();
    let text = frame(&files, &mut view, 80, 24);
    assert!(text.contains(" health entropy"), "{text}");
    view.panel = Panel::Health;
    view.scroll = 100;
    let text = frame(&files, &mut view, 80, 24);
    assert!(text.contains("warning: entropy"), "{text}");
    assert!(text.contains("(healthy: "), "{text}");
    assert_eq!(view.scroll, 0, "all of it fits");
}

#[test]
fn scrolling_stops_at_the_ends_of_a_text() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let folder = begin(dir.path());
    work(&folder, 1);
    let lines: String = (0..100).map(|i| format!("line {i}\n")).collect();
    fs::write(folder.log_path(), lines).expect("written");
    let mut files = RunFiles::open(RunLayout::new(dir.path())).expect("a run");
    let mut view = View {
        panel: Panel::Log,
        ..View::default()
    };
    assert!(frame(&files, &mut view, 80, 24).contains("line 99"));
    for _ in 0..30 {
        press(&mut view, &mut files, KeyCode::PageUp);
        frame(&files, &mut view, 80, 24);
    }
    assert!(frame(&files, &mut view, 80, 24).contains("line 0 "));
    press(&mut view, &mut files, KeyCode::PageDown);
    assert!(!frame(&files, &mut view, 80, 24).contains("line 0 "));
}

#[test]
fn plain_text_holds_everything_without_escapes() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let folder = begin(dir.path());
    let files = RunFiles::open(RunLayout::new(dir.path())).expect("a run");
    let text = plain(&files, 100);
    assert!(
        text.contains("no step yet") && !text.contains("question"),
        "{text}"
    );

    work(&folder, 3);
    let mut files = RunFiles::open(RunLayout::new(dir.path())).expect("a run");
    files.rollouts.refresh(&files.layout, None);
    let text = plain(&files, 100);
    for part in [
        "whale",
        "reward  0.3750",
        "KL to the reference",
        "question 1 of 3",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    assert!(!text.contains('\x1b'), "{text}");
    assert!(
        text.lines()
            .all(|line| line.chars().count() <= 100 && line.trim_end() == line)
    );
}

#[test]
fn wide_characters_take_their_two_columns() {
    let mut buffer = Buffer::empty(Rect::new(0, 0, 6, 1));
    Line::from("鯨a").render(buffer.area, &mut buffer);
    assert_eq!(row_text(&buffer.content), "鯨a   ");
}

#[test]
fn files_that_vanish_are_a_problem_and_what_was_seen_stays() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let folder = begin(dir.path());
    work(&folder, 2);
    let mut files = RunFiles::open(RunLayout::new(dir.path())).expect("a run");
    fs::remove_file(folder.config_path()).expect("removed");
    fs::write(folder.rollout_path(4), "cut").expect("written");
    files.refresh();
    files.rollouts.refresh(&files.layout, None);
    let mut view = View::default();
    let text = frame(&files, &mut view, 80, 24);
    assert!(text.contains("config.ron is missing"), "{text}");
    assert!(text.contains("reward  0.2500"), "{text}");
    view.panel = Panel::Samples;
    let text = frame(&files, &mut view, 80, 24);
    assert!(text.contains("step-000004.parquet"), "{text}");
}
