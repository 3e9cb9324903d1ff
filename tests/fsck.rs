//! `baleen fsck` on a sound run, and on the same run with each part damaged.

use std::fs;
use std::path::Path;

use crate::program;
use crate::run_files::{checkpoints, copy, names, text, train_tiny};

/// Exit code and output of a check of `run`.
fn fsck(run: &Path) -> (i32, String) {
    let ended = program::finish(program::command(&["fsck", text(run)]));
    (ended.code, ended.stdout + &ended.stderr)
}

/// What is damaged, what must be said of it, and how it is done.
type Damage = (&'static str, String, Box<dyn Fn(&Path)>);

/// Changes one byte in the middle of `path`.
fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_sound_run_passes_and_every_damage_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let sound = dir.path().join("sound");
    train_tiny(&sound);
    let (code, said) = fsck(&sound);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("ok       config.ron"), "{said}");
    assert!(said.contains("all finite"), "{said}");
    assert!(!said.contains("damaged"), "{said}");

    let newest = checkpoints(&sound).pop().unwrap();
    let rollout = names(&sound.join("rollouts")).pop().unwrap();
    let damages: [Damage; 11] = [
        (
            "a bit of a rollout",
            format!("damaged  rollouts/{rollout}"),
            {
                let file = format!("rollouts/{rollout}");
                Box::new(move |run| flip(&run.join(&file)))
            },
        ),
        (
            "a bit of what the learner saw",
            format!("damaged  learned/{rollout}"),
            {
                let file = format!("learned/{rollout}");
                Box::new(move |run| flip(&run.join(&file)))
            },
        ),
        (
            "a bit of the model",
            "damaged  model: ".to_string(),
            Box::new(|run| flip(&run.join("model/model.safetensors"))),
        ),
        (
            "all that the learner saw lost",
            format!("damaged  learned/{rollout}"),
            Box::new(|run| fs::remove_dir_all(run.join("learned")).unwrap()),
        ),
        ("weights", format!("damaged  checkpoints/{newest}"), {
            let weights = format!("checkpoints/{newest}/weights.safetensors");
            Box::new(move |run| flip(&run.join(&weights)))
        }),
        (
            "rollout cut short",
            format!("damaged  rollouts/{rollout}"),
            {
                let file = format!("rollouts/{rollout}");
                Box::new(move |run| {
                    let bytes = fs::read(run.join(&file)).unwrap();
                    fs::write(run.join(&file), &bytes[..bytes.len() / 2]).unwrap();
                })
            },
        ),
        ("rollout lost", format!("damaged  rollouts/{rollout}"), {
            let file = format!("rollouts/{rollout}");
            Box::new(move |run| fs::remove_file(run.join(&file)).unwrap())
        }),
        (
            "what the learner saw lost",
            format!("damaged  learned/{rollout}"),
            {
                let file = format!("learned/{rollout}");
                Box::new(move |run| fs::remove_file(run.join(&file)).unwrap())
            },
        ),
        (
            "a line lost",
            "damaged  metrics.jsonl: the line of step 0 is followed by that of step 2".to_string(),
            Box::new(|run| {
                let path = run.join("metrics.jsonl");
                let lines = fs::read_to_string(&path).unwrap();
                let mut lines: Vec<&str> = lines.lines().collect();
                lines.remove(1);
                fs::write(&path, lines.join("\n") + "\n").unwrap();
            }),
        ),
        (
            "config edited",
            "was made with another configuration than config.ron".to_string(),
            Box::new(|run| {
                let path = run.join("config.ron");
                let config = fs::read_to_string(&path).unwrap();
                let edited = config.replace("clip_epsilon: 0.2", "clip_epsilon: 0.3");
                assert_ne!(config, edited);
                fs::write(&path, edited).unwrap();
            }),
        ),
        (
            "model without its weights",
            "damaged  model: ".to_string(),
            Box::new(|run| fs::remove_file(run.join("model/model.safetensors")).unwrap()),
        ),
    ];
    for (index, (what, expected, damage)) in damages.iter().enumerate() {
        let run = dir.path().join(index.to_string());
        copy(&sound, &run);
        damage(&run);
        let (code, said) = fsck(&run);
        assert_eq!(code, 1, "{what}: {said}");
        assert!(said.contains(expected), "{what}: {said}");
        assert!(said.contains("hint: `baleen resume`"), "{what}: {said}");
    }
}

#[test]
fn what_is_no_run_is_said_so() {
    let dir = tempfile::tempdir().unwrap();
    let (code, said) = fsck(dir.path());
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("config.ron is missing"), "{said}");
}
