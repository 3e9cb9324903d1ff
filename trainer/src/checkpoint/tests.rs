//! Saved, damaged, interrupted, resumed.

use kernels::tch::{Device, Kind};

use super::*;

struct Run {
    folder: tempfile::TempDir,
    checkpoints: Checkpoints,
}

impl Run {
    fn new(keep: usize) -> Run {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(&folder.path().join("checkpoints"), keep);
        Run {
            folder,
            checkpoints,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("checkpoints").join(name)
    }

    /// What the folder holds, sorted.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("")).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn save(&mut self, step: u64) {
        self.save_with(step, 0, None, step as f32);
    }

    fn save_with(&mut self, step: u64, stage: usize, reference: Option<&str>, weight: f32) {
        let state = TrainState {
            stage,
            global_step: step,
            next_prompt_id: 1000 + step,
            ..TrainState::default()
        };
        let contents = Contents {
            weights: &weights(weight),
            optimizer: &[("main.steps".to_string(), Tensor::from_slice(&[step as i64]))],
            state: &state,
            config_hash: "c0ffee",
            reference,
            in_flight: &[],
        };
        self.checkpoints.save(&contents).unwrap();
    }

    /// Step and first weight of the newest intact checkpoint, and the complaints about newer ones.
    fn latest(&mut self) -> (u64, f32, Vec<String>) {
        let latest = self.checkpoints.latest().unwrap().unwrap();
        let target = Tensor::zeros([2, 2], (Kind::Float, Device::Cpu));
        latest.checkpoint.load_weights(&[("w", &target)]).unwrap();
        let step = latest.checkpoint.state.global_step;
        let damaged = latest.damaged.iter().map(ToString::to_string).collect();
        (step, target.double_value(&[0, 0]) as f32, damaged)
    }
}

fn weights(value: f32) -> Vec<(String, Tensor)> {
    let tensor = Tensor::from_slice(&[value, 1.0, 2.0, 3.0]).view([2, 2]);
    vec![("w".to_string(), tensor)]
}

fn change(path: &Path, edit: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    edit(&mut bytes);
    fs::write(path, bytes).unwrap();
}

#[test]
fn saved_run_comes_back_as_it_was() {
    let mut run = Run::new(2);
    assert!(run.checkpoints.latest().unwrap().is_none());
    run.save_with(7, 3, None, 0.125);
    let latest = run.checkpoints.latest().unwrap().unwrap();
    assert!(latest.damaged.is_empty());
    let checkpoint = latest.checkpoint;
    assert_eq!(checkpoint.path, run.path("step-000007"));
    assert_eq!(checkpoint.config_hash, "c0ffee");
    let state = TrainState {
        stage: 3,
        global_step: 7,
        next_prompt_id: 1007,
        ..TrainState::default()
    };
    assert_eq!(checkpoint.state, state);
    let optimizer = checkpoint.optimizer_state().unwrap();
    assert_eq!(optimizer[0].0, "main.steps");
    assert_eq!(optimizer[0].1.int64_value(&[0]), 7);
    let master = Tensor::zeros([2, 2], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    checkpoint.load_weights(&[("w", &master)]).unwrap();
    assert!(master.equal(&weights(0.125)[0].1) && master.requires_grad());
    assert!(!checkpoint.load_reference(&[("w", &master)]).unwrap());
}

#[test]
fn one_flipped_bit_in_any_file_is_found_and_the_checkpoint_before_it_is_taken() {
    for file in [WEIGHTS, OPTIMIZER, STATE, "manifest.json"] {
        for place in [0.0, 0.3, 0.5, 0.99] {
            let mut run = Run::new(2);
            run.save(1);
            run.save(2);
            change(&run.path("step-000002").join(file), |bytes| {
                let at = (bytes.len() as f64 * place) as usize;
                bytes[at] ^= 1;
            });
            let (step, weight, damaged) = run.latest();
            assert_eq!((step, weight), (1, 1.0), "{file} at {place}");
            assert_eq!(damaged.len(), 1);
            assert!(damaged[0].contains("step-000002"), "{}", damaged[0]);
            assert!(damaged[0].contains(file), "{}", damaged[0]);
        }
    }
}

#[test]
fn truncated_and_missing_files_are_found() {
    for file in [WEIGHTS, OPTIMIZER, STATE, "manifest.json"] {
        let mut run = Run::new(2);
        run.save(1);
        run.save(2);
        change(&run.path("step-000002").join(file), |bytes| {
            bytes.pop();
        });
        let (step, _, damaged) = run.latest();
        assert_eq!(step, 1);
        assert!(damaged[0].contains(file), "{}", damaged[0]);
        fs::remove_file(run.path("step-000002").join(file)).unwrap();
        let (step, _, damaged) = run.latest();
        assert_eq!(step, 1);
        assert!(damaged[0].contains(file), "{}", damaged[0]);
    }
}

#[test]
fn no_intact_checkpoint_is_an_error_that_names_each() {
    let mut run = Run::new(2);
    run.save(1);
    run.save(2);
    fs::remove_file(run.path("step-000001/manifest.json")).unwrap();
    change(&run.path("step-000002/state.json"), |bytes| {
        bytes.push(b' ')
    });
    let error = run.checkpoints.latest().unwrap_err().to_string();
    assert!(error.contains("no checkpoint in"), "{error}");
    assert!(
        error.contains("step-000002/state.json is damaged: it has"),
        "{error}"
    );
    assert!(error.contains("step-000001/manifest.json"), "{error}");
}

#[test]
fn newest_checkpoints_are_kept() {
    let mut run = Run::new(2);
    for step in [5, 10, 15, 1_000_000] {
        run.save(step);
    }
    assert_eq!(run.names(), ["step-000015", "step-1000000"]);
    assert_eq!(run.latest().0, 1_000_000);
    let mut run = Run::new(0);
    run.save(1);
    run.save(2);
    assert_eq!(run.names(), ["step-000002"]);
}

#[test]
fn damaged_checkpoint_does_not_count_as_kept() {
    let mut run = Run::new(2);
    for step in [1, 2, 3] {
        run.save(step);
    }
    change(&run.path("step-000003/state.json"), |bytes| bytes[0] ^= 1);
    assert_eq!(run.latest().0, 2);
    run.save(4);
    assert_eq!(run.names(), ["step-000002", "step-000004"]);
}

#[test]
fn run_that_fell_back_does_not_delete_what_it_saves() {
    let mut run = Run::new(1);
    run.checkpoints.keep = 2;
    for step in [10, 20] {
        run.save(step);
    }
    change(&run.path("step-000020/state.json"), |bytes| bytes[0] ^= 1);
    assert_eq!(run.latest().0, 10);
    run.save(12);
    assert_eq!(run.names(), ["step-000010", "step-000012", "step-000020"]);
    // Back at step 20, the damaged one makes way.
    run.save_with(20, 0, None, 0.5);
    assert_eq!(run.names(), ["step-000012", "step-000020"]);
    assert_eq!(run.latest(), (20, 0.5, vec![]));
}

#[test]
fn leftovers_of_a_killed_run_are_ignored_then_cleared() {
    let mut run = Run::new(2);
    run.save(1);
    for name in ["step-000002.partial", "step-000000.deleting"] {
        fs::create_dir(run.path(name)).unwrap();
        fs::write(run.path(name).join(WEIGHTS), "half").unwrap();
    }
    assert_eq!(run.latest(), (1, 1.0, vec![]));
    run.save(2);
    assert_eq!(run.names(), ["step-000001", "step-000002"]);
}

#[test]
fn a_run_that_saves_no_more_still_finishes_what_its_last_save_began() {
    let mut run = Run::new(1);
    run.save(1);
    // As if killed after the new checkpoint is in place, before the older ones and the reference are gone.
    run.checkpoints.keep = 2;
    run.save_with(2, 3, None, 2.0);
    run.checkpoints.keep = 1;
    run.checkpoints.save_reference(1, &weights(0.25)).unwrap();
    fs::create_dir(run.path("step-000000.deleting")).unwrap();
    assert_eq!(run.names().len(), 4);
    let state = run.checkpoints.latest().unwrap().unwrap().checkpoint.state;
    run.checkpoints.tidy(&state).unwrap();
    assert_eq!(run.names(), ["step-000002"]);
    assert_eq!(run.latest(), (2, 2.0, vec![]));
}

#[test]
fn failed_save_leaves_nothing_behind_and_loses_nothing() {
    let mut run = Run::new(1);
    run.save(1);
    let contents = Contents {
        weights: &weights(2.0),
        // Fails after the weights were written.
        optimizer: &[("bad".to_string(), Tensor::from_slice(&[true]))],
        state: &TrainState {
            global_step: 2,
            ..TrainState::default()
        },
        config_hash: "c0ffee",
        reference: None,
        in_flight: &[],
    };
    let error = run.checkpoints.save(&contents).unwrap_err().to_string();
    assert!(
        error.contains("'bad': type Bool can't be stored"),
        "{error}"
    );
    assert_eq!(run.names(), ["step-000001"]);
    assert_eq!(run.latest(), (1, 1.0, vec![]));
}

#[test]
fn folder_that_can_not_be_made_is_an_error_that_names_it() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let checkpoints = Checkpoints::new(&file.path().join("checkpoints"), 1);
    let error = checkpoints.save_reference(0, &weights(1.0)).unwrap_err();
    let CheckpointError::Io { path, .. } = error else {
        panic!("{error}");
    };
    assert_eq!(path, file.path().join("checkpoints"));
}

#[test]
fn kill_while_a_checkpoint_is_replaced_loses_neither() {
    let mut run = Run::new(2);
    run.save(1);
    run.save(2);
    // Between the two renames: the old one stepped aside, the new one is not in place.
    fs::rename(run.path("step-000002"), run.path("step-000002.replaced")).unwrap();
    fs::create_dir(run.path("step-000002.partial")).unwrap();
    assert_eq!(run.latest(), (2, 2.0, vec![]));
    run.save_with(2, 0, None, 9.0);
    assert_eq!(run.names(), ["step-000001", "step-000002"]);
    assert_eq!(run.latest(), (2, 9.0, vec![]));
    // After both renames, before the old one is deleted.
    fs::create_dir(run.path("step-000002.replaced")).unwrap();
    assert_eq!(run.latest(), (2, 9.0, vec![]));
    run.save(3);
    assert_eq!(run.names(), ["step-000002", "step-000003"]);
}

#[test]
fn reference_is_written_once_and_read_through_its_checkpoints() {
    let mut run = Run::new(1);
    let name = run.checkpoints.save_reference(2, &weights(0.25)).unwrap();
    assert_eq!(name, "reference-stage-2");
    let written = fs::metadata(run.path("reference-stage-2/weights.safetensors")).unwrap();
    for step in [1, 2] {
        run.save_with(step, 2, Some(&name), 8.0);
    }
    assert_eq!(run.names(), ["reference-stage-2", "step-000002"]);
    let still = fs::metadata(run.path("reference-stage-2/weights.safetensors")).unwrap();
    assert_eq!(written.modified().unwrap(), still.modified().unwrap());
    let checkpoint = run.checkpoints.latest().unwrap().unwrap().checkpoint;
    assert_eq!(checkpoint.reference.as_deref(), Some("reference-stage-2"));
    let target = Tensor::zeros([2, 2], (Kind::Float, Device::Cpu));
    assert!(checkpoint.load_reference(&[("w", &target)]).unwrap());
    assert!(target.equal(&weights(0.25)[0].1));
}

#[test]
fn damaged_or_exchanged_reference_damages_its_checkpoints() {
    let mut run = Run::new(3);
    run.save(1);
    let name = run.checkpoints.save_reference(2, &weights(0.25)).unwrap();
    run.save_with(2, 2, Some(&name), 8.0);
    change(
        &run.path("reference-stage-2/weights.safetensors"),
        |bytes| {
            *bytes.last_mut().unwrap() ^= 1;
        },
    );
    let (step, _, damaged) = run.latest();
    assert_eq!(step, 1);
    assert!(
        damaged[0].contains("reference-stage-2/weights.safetensors"),
        "{}",
        damaged[0]
    );
    run.checkpoints.save_reference(2, &weights(0.5)).unwrap();
    let (step, _, damaged) = run.latest();
    assert_eq!(step, 1);
    assert!(
        damaged[0].contains("links to another one"),
        "{}",
        damaged[0]
    );
    // The same weights again give the same seal.
    run.checkpoints.save_reference(2, &weights(0.25)).unwrap();
    assert_eq!(run.latest(), (2, 8.0, vec![]));
}

#[test]
fn reference_goes_with_the_last_checkpoint_that_needs_it() {
    let mut run = Run::new(2);
    let first = run.checkpoints.save_reference(1, &weights(0.25)).unwrap();
    run.save_with(1, 1, Some(&first), 1.0);
    run.save_with(2, 1, Some(&first), 1.0);
    // A reference saved ahead of its stage's first checkpoint stays.
    let second = run.checkpoints.save_reference(4, &weights(0.5)).unwrap();
    run.save_with(3, 4, Some(&second), 1.0);
    assert!(run.path("reference-stage-1").exists());
    run.save_with(4, 4, Some(&second), 1.0);
    assert_eq!(
        run.names(),
        ["reference-stage-4", "step-000003", "step-000004"]
    );
}

#[test]
fn checkpoint_without_its_reference_is_refused_at_once() {
    let mut run = Run::new(2);
    let contents = Contents {
        weights: &weights(1.0),
        optimizer: &[],
        state: &TrainState::default(),
        config_hash: "c0ffee",
        reference: Some("reference-stage-9"),
        in_flight: &[],
    };
    let error = run.checkpoints.save(&contents).unwrap_err().to_string();
    assert!(error.contains("reference-stage-9"), "{error}");
    assert!(run.checkpoints.latest().unwrap().is_none());
}

#[test]
fn state_of_a_newer_program_is_read_as_far_as_it_is_known() {
    let state: TrainState = serde_json::from_str(r#"{"stage": 2, "novel": true}"#).unwrap();
    let expected = TrainState {
        stage: 2,
        ..TrainState::default()
    };
    assert_eq!(state, expected);
}
