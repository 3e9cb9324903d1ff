//! Rows, files and configs that can't be used: each is named, or left out where that is asked for.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use super::*;

#[test]
fn contradictory_splits_are_refused() {
    let refusal = Files::of(&[split_row("a", "train"), sums(0..1).remove(0)]).refusal();
    assert!(
        refusal.contains("a.jsonl, line 2 (id \"0\"): `split` is missing, though"),
        "{refusal}"
    );
    let refusal = Files::of(&[sums(0..1).remove(0), split_row("a", "train")]).refusal();
    assert!(
        refusal.contains("line 2: `split` is given, though rows before"),
        "{refusal}"
    );
    let mut files = Files::of(&[split_row("a", "train")]);
    files.write("test.jsonl", &sums(5..8));
    files.config.held_out = Some(files.path("test.jsonl").display().to_string());
    assert!(files.refusal().contains("names a file: use one of both"));
}

#[test]
fn the_first_bad_row_is_named_or_all_are_left_out_and_counted() {
    let long = format!(
        r#"{{"prompt": "{}", "answer": 1, "id": "big"}}"#,
        "x".repeat(10 << 20)
    );
    let bad = [
        (r#"{"answer": 3}"#, "line 3: `prompt` is missing"),
        (
            r#"{"prompt": "a", "id": "q7"}"#,
            "line 3 (id \"q7\"): `answer` is missing",
        ),
        (
            r#"{"prompt": "a", "answer": 1"#,
            "line 3: not a JSON object on one line: EOF",
        ),
        (
            long.as_str(),
            "line 3 (id \"big\"): `prompt` has 10485760 bytes; no more than 1000",
        ),
    ];
    for (line, problem) in bad {
        let mut lines = sums(0..40);
        lines[1] = String::new();
        lines[2] = line.to_string();
        lines[20] = "nonsense".to_string();
        let files = Files::of(&lines);
        let refusal = files.refusal();
        assert!(refusal.contains(problem), "{problem} in {refusal}");
        assert!(refusal.contains("a.jsonl, line") && refusal.contains("on_bad_row: skip"));
        let dataset = files.skipping().open();
        let left = dataset.num_rows(Split::Train) + dataset.num_rows(Split::HeldOut);
        assert_eq!(left, 37);
        let summary = dataset.summary();
        assert!(summary.contains("; 2 of 39 rows of "), "{summary}");
        assert!(summary.contains(problem), "{problem} in {summary}");
    }
}

#[test]
fn broken_utf8_is_named_by_line_and_byte() {
    let files = Files::of(&sums(0..40));
    let mut bytes = fs::read(files.path("a.jsonl")).unwrap();
    let start = bytes.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    bytes[start + 13] = 0xc3;
    fs::write(files.path("a.jsonl"), &bytes).unwrap();
    let refusal = files.refusal();
    let problem = "line 2: not UTF-8: byte 14 of the line is 0xc3; save the file as UTF-8";
    assert!(refusal.contains(problem), "{refusal}");
    assert!(files.skipping().open().summary().contains("1 of 40 rows"));
}

#[test]
fn an_id_that_comes_twice_is_refused_with_both_rows_or_left_out() {
    let mut lines = sums(0..200);
    lines[150] = lines[150].replace("\"id\": 150", "\"id\": \"7\"");
    lines[160] = lines[160].replace("\"id\": 160", "\"id\": 9");
    let files = Files::of(&lines);
    let refusal = files.refusal();
    assert!(
        refusal.contains("line 151 (id \"7\"): `id` is also that of line 8;"),
        "{refusal}"
    );
    let dataset = files.skipping().open();
    let summary = dataset.summary();
    assert!(
        summary.contains("2 of 200 rows") && summary.contains("line 151"),
        "{summary}"
    );
    let mut rows = draws(&dataset, Split::Train, 0, 0..dataset.num_rows(Split::Train));
    rows.extend(draws(
        &dataset,
        Split::HeldOut,
        0,
        0..dataset.num_rows(Split::HeldOut),
    ));
    let expected: BTreeSet<u64> = (1..=200).filter(|row| ![151, 161].contains(row)).collect();
    assert_eq!(rows.into_iter().collect::<BTreeSet<_>>(), expected);
}

#[test]
fn a_prompt_in_both_splits_is_refused_or_no_longer_trained_on() {
    let lines = [
        split_row("a", "train"),
        split_row("b", "train"),
        split_row("a", "held_out"),
        split_row("c", "train"),
    ];
    let files = Files::of(&lines);
    let refusal = files.refusal();
    assert!(
        refusal.contains("line 1: `prompt` is held out as well, in line 3 of "),
        "{refusal}"
    );
    let dataset = files.skipping().open();
    let rows: BTreeSet<u64> = draws(&dataset, Split::Train, 0, 0..2).into_iter().collect();
    assert_eq!(rows, BTreeSet::from([2, 4]));
    assert_eq!(draws(&dataset, Split::HeldOut, 0, 0..1), [3]);

    let mut files = Files::of(&sums(0..9));
    files.write("test.jsonl", &sums(8..12));
    files.config.held_out = Some(files.path("test.jsonl").display().to_string());
    let refusal = files.refusal();
    assert!(
        refusal.contains("line 9 (id \"8\"): `prompt` is held out as well, in line 1 of "),
        "{refusal}"
    );
    assert!(refusal.contains("test.jsonl"), "{refusal}");
}

#[test]
fn a_dataset_without_rows_to_draw_is_refused() {
    assert!(
        Files::of(&[""; 3])
            .refusal()
            .contains("no row to train on (0 rows, 0 of them skipped)")
    );
    let all_bad = Files::of(&["nonsense"; 3]).skipping();
    assert!(all_bad.refusal().contains("(3 rows, 3 of them skipped)"));
    let dataset = Files::of(&[split_row("a", "train")]).open();
    let error = dataset
        .draw(Split::HeldOut, 0, 0, 0)
        .unwrap_err()
        .to_string();
    assert!(error.contains("no row that is held out"), "{error}");
}

#[test]
fn files_that_are_none_are_named() {
    let mut files = Files::of(&sums(0..3));
    let refusal_of = |files: &mut Files, path: PathBuf| {
        files.config.path = path.display().to_string();
        files.refusal()
    };
    let absent = files.path("absent.jsonl");
    let refusal = refusal_of(&mut files, absent);
    assert!(refusal.contains("absent.jsonl: No such file"), "{refusal}");
    let csv = files.path("a.csv");
    assert!(refusal_of(&mut files, csv).contains("from .jsonl and .parquet"));
    let folder = files.path("b.jsonl");
    fs::create_dir(&folder).unwrap();
    assert!(refusal_of(&mut files, folder).contains("b.jsonl: is a directory"));
    let parquet = files.path("a.parquet");
    fs::write(&parquet, "PAR1 or not").unwrap();
    assert!(refusal_of(&mut files, parquet).contains("can't be read as parquet"));
}

#[test]
fn senseless_configs_are_named() {
    let problems = |change: fn(&mut DatasetConfig)| {
        let mut config = Files::of(&sums(0..1)).config;
        change(&mut config);
        config.problems()
    };
    assert!(problems(|_| ()).is_empty());
    assert!(problems(|config| config.path.clear())[0].starts_with("path is empty"));
    assert!(problems(|config| config.name = Some(String::new()))[0].starts_with("name is empty"));
    let same = problems(|config| config.held_out = Some(config.path.clone()));
    assert!(same[0].contains("the same file as path"), "{same:?}");
}
