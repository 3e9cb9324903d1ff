use super::*;
use crate::metrics::StepSecs;

fn step(global_step: u64) -> StepMetrics {
    StepMetrics {
        stage: "grpo".to_string(),
        global_step,
        reward_mean: Some(global_step as f64 / 10.0),
        secs: StepSecs {
            total: Some(2.0),
            ..StepSecs::default()
        },
        ..StepMetrics::default()
    }
}

/// The newest event file of `folder`, the only one that is not empty.
fn only_file(folder: &Path) -> PathBuf {
    let mut files = event_files(folder).expect("readable");
    let newest = files.pop().expect("there is one");
    assert!(files.len() <= 1, "{files:?}");
    for file in files {
        assert_eq!(fs::metadata(&file).expect("there").len(), 0, "{file:?}");
    }
    newest
}

/// Step, wall time and mean reward of every event with figures.
fn written(folder: &Path) -> Vec<(i64, f64, f32)> {
    let bytes = fs::read(only_file(folder)).expect("readable");
    let with_figures = events(&bytes).into_iter().filter_map(|event| {
        let summary = event.summary?;
        let reward = summary.value.iter().find(|v| v.tag == "reward/mean")?;
        Some((event.step, event.wall_time, reward.simple_value?))
    });
    with_figures.collect()
}

#[test]
fn a_record_is_framed_as_the_format_says() {
    let bytes = record(&Event {
        wall_time: 1.5,
        step: 3,
        file_version: Some("v".to_string()),
        ..Event::default()
    });
    // double 1.5; varint 3; one byte of text.
    let event = [9, 0, 0, 0, 0, 0, 0, 0xf8, 0x3f, 16, 3, 26, 1, b'v'];
    assert_eq!(bytes[..8], [14, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(bytes[12..26], event);
    assert_eq!(bytes.len(), 30);
    // crc32c("123456789") is the sum's published check value.
    let masked = 0xe306_9283_u32.rotate_right(15).wrapping_add(0xa282_ead8);
    assert_eq!(masked_crc(b"123456789"), masked);
}

#[test]
fn a_file_begins_with_its_version_and_a_session() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut file = EventFile::open(dir.path(), &[]).expect("opened");
    file.append(&step(1)).expect("written");
    let bytes = fs::read(only_file(dir.path())).expect("readable");
    let events = events(&bytes);
    assert_eq!(events.len(), 3);
    assert_eq!(events[0].file_version.as_deref(), Some("brain.Event:2"));
    assert_eq!(events[1].session_log, Some(SessionLog { status: 1 }));
    let zero = |tag: &str| ScalarValue {
        tag: tag.to_string(),
        simple_value: Some(0.0),
    };
    let summary = events[2].summary.as_ref().expect("figures");
    assert!(summary.value.contains(&zero("progress/stage_index")));
}

#[test]
fn opening_again_holds_the_steps_given_at_their_old_times_and_nothing_else() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let steps: Vec<StepMetrics> = (0..=4).map(step).collect();
    let mut file = EventFile::open(dir.path(), &steps[..1]).expect("opened");
    for step in &steps[1..] {
        file.append(step).expect("written");
    }
    let before = written(dir.path());
    let first_name = only_file(dir.path());
    // A kill cuts the record of step 4 short; the checkpoint knows the steps up to 2.
    let bytes = fs::read(&first_name).expect("readable");
    fs::write(&first_name, &bytes[..bytes.len() - 5]).expect("written");
    fs::write(dir.path().join(PARTIAL), "half").expect("written");
    drop(EventFile::open(dir.path(), &steps[..3]).expect("opened"));
    assert_eq!(written(dir.path()), before[..3]);
    assert!(
        only_file(dir.path()) > first_name,
        "TensorBoard goes on to later names"
    );
    drop(EventFile::open(dir.path(), &steps[..3]).expect("opened"));
    assert_eq!(written(dir.path()), before[..3]);
    assert!(!first_name.exists(), "only the newest two files stay");
    assert_eq!(fs::read_dir(dir.path()).expect("readable").count(), 2);
}

#[test]
fn a_file_of_no_sense_costs_only_the_times() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join(format!("{NAME}4000000000.elsewhere"));
    fs::write(path, [0xff; 64]).expect("written");
    drop(EventFile::open(dir.path(), &[step(1), step(2)]).expect("opened"));
    let rewards: Vec<(i64, f32)> = written(dir.path())
        .into_iter()
        .map(|(step, _, reward)| (step, reward))
        .collect();
    assert_eq!(rewards, [(1, 0.1), (2, 0.2)]);
    let name = only_file(dir.path());
    assert!(
        name.ends_with("events.out.tfevents.4000000001.baleen"),
        "{name:?}"
    );
}

#[test]
fn unknown_times_are_counted_back_from_the_next_known_one() {
    let known = BTreeMap::from([(2, 100.0)]);
    let steps: Vec<StepMetrics> = (0..=4).map(step).collect();
    assert_eq!(
        wall_times(&known, &steps, 1000.0),
        [96.0, 98.0, 100.0, 998.0, 1000.0]
    );
}
