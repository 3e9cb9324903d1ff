//! `baleen env`: families listed, tasks shown, families checked, and tasks played by a person.

use std::io::Write;
use std::process::{Command, Stdio};

use environments::{Family, FamilyKey, Split, Task};
use serde_json::Value;

use crate::program::{self, Ended};
use crate::refusal::{FAILED, WRONG_INPUT, refused};
use crate::sandbox::without_launcher;

fn task(family: Family, level: u32, seed: u64) -> Task {
    Family::task(&FamilyKey {
        family,
        split: Split::Train,
        level,
        seed,
    })
}

fn json(args: &[&str]) -> Value {
    let said = program::succeed(args).stdout;
    assert_eq!(said.lines().count(), 1, "{said}");
    serde_json::from_str(&said).unwrap()
}

#[test]
fn every_family_is_listed_for_people_and_for_programs() {
    let table = program::succeed(&["env", "list"]).stdout;
    assert_eq!(table.lines().count(), 1 + Family::ALL.len(), "{table}");
    let listed = json(&["env", "list", "--json"]);
    for family in Family::ALL {
        assert!(table.contains(family.name()) && table.contains(family.summary()));
        let rows = listed.as_array().unwrap();
        let row = rows.iter().find(|row| row["family"] == family.name());
        let row = row.unwrap();
        assert_eq!(row["needs_sandbox"], family.needs_sandbox());
        assert_eq!(row["levels"][1], *family.levels().end());
        assert_eq!(row["domain"], family.domain().name());
    }
}

#[test]
fn a_task_is_shown_with_its_tools_and_its_solution_only_on_request() {
    let lookup = ["env", "show", "lookup", "--level", "3", "--seed", "4"];
    let task = task(Family::Lookup, 3, 4);
    let shown = program::succeed(&lookup).stdout;
    assert!(
        shown.starts_with("family lookup, split train, level 3, seed 4; domain agent, version 1\n"),
        "{shown}"
    );
    assert!(shown.contains(&task.question), "{shown}");
    assert!(shown.contains("\"required\": [\n"), "a schema: {shown}");
    assert!(shown.contains("limits: 8 turns"), "{shown}");
    assert!(
        !shown.contains(&task.solution) && !shown.contains("reward"),
        "{shown}"
    );
    let solved = program::succeed(&[&lookup[..], &["--witness"]].concat()).stdout;
    let (before, solution) = solved.split_once("\nworked solution:\n").unwrap();
    assert_eq!(before.trim_end(), shown.trim_end());
    let call = &task.witness[0][0];
    let called = format!(
        "assistant calls:\n{} {}\ntool:\n",
        call.name, call.arguments
    );
    assert!(solution.contains(&called), "{solution}");
    assert_eq!(
        solution.matches("assistant calls:").count(),
        2,
        "{solution}"
    );
    assert!(
        solution.contains("\nreward 1, for the answer"),
        "{solution}"
    );
}

#[test]
fn a_task_is_shown_to_programs_as_one_object() {
    let show = [
        "env",
        "show",
        "lookup",
        "--level",
        "2",
        "--held-out",
        "--json",
    ];
    let shown = json(&show);
    assert_eq!(shown["split"], "held_out");
    assert_eq!(shown["tools"][0]["parameters"]["type"], "object");
    assert!(shown.get("witness").is_none());
    let solved = json(&[&show[..], &["--witness"]].concat());
    assert_eq!(solved["question"], shown["question"]);
    assert_eq!(solved["witness"]["verdict"]["Graded"]["reward"], 1.0);
    let turns = solved["witness"]["turns"].as_array().unwrap();
    assert_eq!(turns[0]["calls"][0]["name"], "lookup");
    assert_eq!(turns[0]["results"][0]["is_error"], false);
}

#[test]
fn unknown_families_and_levels_are_refused_with_what_there_is() {
    let parts = [
        "no task family is called \"suduko\"",
        "did you mean sudoku?",
    ];
    refused(&["env", "show", "suduko"], WRONG_INPUT, &parts);
    refused(&["env", "check", "sums", "suduko"], WRONG_INPUT, &parts);
    refused(
        &["eval", "models/none", "--family", "suduko"],
        WRONG_INPUT,
        &parts,
    );
    let parts = ["gcd has levels 1 to 5, not 6"];
    refused(&["env", "show", "gcd", "--level", "6"], WRONG_INPUT, &parts);
    refused(&["env", "play", "gcd", "--level", "6"], WRONG_INPUT, &parts);
    refused(
        &["env", "check", "gcd", "--level", "6"],
        WRONG_INPUT,
        &parts,
    );
    refused(&["env", "check", "--seeds", "0"], WRONG_INPUT, &["--seeds"]);
}

#[test]
fn sound_families_pass_their_check_level_by_level() {
    let check = ["env", "check", "sums", "lookup", "knights", "--seeds", "40"];
    let table = program::succeed(&check).stdout;
    let rows: Vec<&str> = table
        .lines()
        .skip(1)
        .filter(|row| row.contains(" 40 "))
        .collect();
    assert_eq!(rows.len(), 6 + 3 + 6, "{table}");
    for row in rows {
        assert_eq!(row.matches(" ok").count(), 5, "{table}");
    }
    assert!(table.ends_with("\n15 levels, no problem\n"), "{table}");
    let row = json(&["env", "check", "compare", "--level", "2", "--json"]);
    assert_eq!(
        (&row["family"], &row["level"]),
        (&"compare".into(), &2.into())
    );
    assert_eq!(row["passed"], true);
    assert_eq!(row["num_seeds"], 100);
    let greedy = row["rewards"][3].as_f64().unwrap();
    assert!(
        (0.3..0.7).contains(&greedy),
        "either number is right half the time: {greedy}"
    );
    let printed = program::succeed(&["env", "fingerprint", "compare", "--level", "2"]).stdout;
    let sum = row["fingerprint"].as_str().unwrap();
    assert_eq!(printed, format!("compare 2 100 {sum}\n"));
}

#[test]
fn families_that_run_code_are_not_passed_where_no_sandbox_works() {
    let ended = program::finish(without_launcher(&[
        "env",
        "check",
        "sums",
        "repair_program",
    ]));
    assert_eq!(ended.code, FAILED, "{}", ended.stderr);
    for part in [
        "repair_program can't be examined",
        "no/launcher",
        "`baleen sandbox doctor`",
    ] {
        assert!(ended.stderr.contains(part), "{}", ended.stderr);
    }
    let ended = play_with(
        without_launcher(&["env", "play", "compose_function"]),
        "```python\ndef solve(x):\n\n    return x\n```\n\n",
    );
    assert_eq!(ended.code, FAILED, "{}", ended.stderr);
    assert!(
        ended.stdout.contains("not graded: infra: "),
        "{}",
        ended.stdout
    );
    assert!(
        ended.stderr.contains("`baleen sandbox doctor`"),
        "{}",
        ended.stderr
    );
}

fn play_with(mut command: Command, input: &str) -> Ended {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    Ended {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// What a person sees who plays with these lines.
fn play(args: &[&str], input: &str) -> String {
    let ended = play_with(program::command(&[&["env", "play"], args].concat()), input);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    ended.stdout
}

#[test]
fn a_person_answers_and_sees_the_verdict() {
    let task = task(Family::Sums, 2, 3);
    let args = ["sums", "--level", "2", "--seed", "3"];
    let right = play(&args, &format!("I think\n{}\n\nnot read\n", task.solution));
    assert!(
        right.contains(&format!("user:\n{}\n", task.question)),
        "{right}"
    );
    assert!(right.contains("\nreward 1, for the answer \""), "{right}");
    assert!(!right.contains("> "), "no prompt for a pipe: {right}");
    assert!(play(&args, "-12345\n.\n").contains("\nreward 0, for the answer \"-12345\""));
    assert!(play(&args, "/quit\n").ends_with("\nreward 0, no answer found\n"));
    assert!(play(&args, "").ends_with("\nreward 0, no answer found\n"));
}

#[test]
fn a_person_calls_tools_and_reads_what_they_say() {
    let task = task(Family::Lookup, 2, 1);
    let call = &task.witness[0][0];
    let input = format!(
        "/help\n/call lookup {{}}\n/call {} {}\n{}\n\n",
        call.name, call.arguments, task.solution
    );
    let said = play(&["lookup", "--level", "2", "--seed", "1"], &input);
    assert!(said.contains("say /call NAME {...}"), "{said}");
    assert!(
        said.contains("tool:\nError: wrong arguments for lookup: \"key\" is a required"),
        "{said}"
    );
    assert!(
        said.contains(&format!("tool:\n{}\n", task.solution)),
        "{said}"
    );
    assert!(said.contains("\nreward 1, for the answer"), "{said}");
    assert!(said.contains("\n  looked_up                1\n"), "{said}");
}
