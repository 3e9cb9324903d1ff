//! `baleen report` on tiny runs: what the page holds, and that a browser shows it without a request or a complaint.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::program;
use crate::run_files::{TINY, text, train_tiny};

/// A browser is given up after this long.
const PATIENCE: Duration = Duration::from_secs(60);

/// Writes the page of `runs` into `out` and returns it.
fn report(runs: &[&Path], out: &Path) -> String {
    let mut args = vec!["report"];
    args.extend(runs.iter().map(|run| text(run)));
    args.extend(["--out", text(out)]);
    let said = program::succeed(&args).stdout;
    assert!(
        said.starts_with(text(out)) && said.contains(" kB; open it"),
        "{said}"
    );
    fs::read_to_string(out).expect("it was written")
}

/// Chromium under one of its names, where it is installed.
fn browser() -> Option<&'static str> {
    let names = [
        "chromium",
        "chromium-browser",
        "google-chrome",
        "google-chrome-stable",
    ];
    let is_there = |name: &&str| Command::new(name).arg("--version").output().is_ok();
    let found = names.into_iter().find(is_there);
    if found.is_none() {
        eprintln!("SKIPPED: no chromium is installed, so that no browser has opened the report");
    }
    found
}

/// The DOM that the browser makes of `page`, and what it says meanwhile.
fn opened(browser: &str, page: &Path, profile: &Path) -> (String, String) {
    let mut command = program::quiet("timeout");
    command
        .arg(PATIENCE.as_secs().to_string())
        .arg(browser)
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
        ])
        .args([
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
        ])
        .arg(format!("--user-data-dir={}", profile.display()))
        .args([
            "--enable-logging=stderr",
            "--virtual-time-budget=2000",
            "--dump-dom",
        ])
        .arg(format!("file://{}", page.display()));
    let ended = program::finish(command);
    assert_eq!(ended.code, 0, "{browser}: {}", ended.stderr);
    (ended.stdout, ended.stderr)
}

/// Nothing in the page leads outside: no address in an attribute or a style sheet.
fn assert_is_self_contained(page: &str) {
    for outside in ["http://", "https://", "src=", "url(", "@import", "//cdn"] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert!(page.contains("Content-Security-Policy\" content=\"default-src 'none'"));
}

/// Opens `page` in a browser, where there is one, and checks what stands there then.
fn assert_is_shown(page: &Path, content: &str, num_samples: usize) {
    let Some(browser) = browser() else { return };
    let profile = tempfile::tempdir().expect("a temporary folder");
    let (dom, said) = opened(browser, page, profile.path());
    let is_complaint = |line: &&str| {
        let signs = ["CONSOLE", "Uncaught", "Refused to"];
        signs.iter().any(|sign| line.contains(sign))
    };
    let complaints: Vec<&str> = said.lines().filter(is_complaint).collect();
    assert!(complaints.is_empty(), "{complaints:?}");
    let count = |text: &str, what: &str| text.matches(what).count();
    let charts = "<svg class=\"chart\"";
    assert_eq!(count(&dom, charts), count(content, charts));
    assert_eq!(count(&dom, "<article class=\"sample"), num_samples);
    // The script has run to its end: every chart has its box for values.
    assert_eq!(
        count(&dom, "<div class=\"values\" hidden"),
        count(content, charts)
    );
    // No text of a sample has become an element.
    assert_eq!(count(&dom, "<script"), 1);
}

#[test]
fn a_run_becomes_a_page_that_a_browser_shows() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    train_tiny(&run);
    let out = dir.path().join("page.html");
    let page = report(&[&run], &out);
    assert_is_self_contained(&page);
    for title in [
        "Reward",
        "Pass rate",
        "Groups without advantage",
        "KL to the reference",
        "Entropy",
        "Log-prob gap, trainer and sampler",
        "Taken by the off-policy mask",
        "Clipped tokens",
        "Length",
        "Gradient norm",
        "Indexer KL",
        "Throughput",
        "Time of a step",
    ] {
        assert!(page.contains(&format!("<h3>{title}</h3>")), "{title}");
    }
    // Nothing to show of what no step has.
    assert!(!page.contains("Invalid samples"));
    for expected in [
        "complete",
        "27 of 27",
        "indexer_warmup",
        "What is ",
        ">best</b>",
        ">worst</b>",
        "group_size: 8",
    ] {
        assert!(page.contains(expected), "{expected}");
    }
    // Healthy ranges stand beside the charts, and one is left: a policy this small rarely ends a completion.
    assert!(page.contains("<b>kl</b> healthy: slowly rising"));
    assert!(page.contains("<b>finished_share</b>"));
    assert!(page.contains("Raise sampling.max_new_tokens (24)"));
    let num_samples = page.matches("<article class=\"sample").count();
    assert!((4..=9).contains(&num_samples), "{num_samples}");
    // Tokens carry both log-probs; nothing says that any were lost.
    assert!(page.contains("title=\"id ") && page.contains(" · trainer "));
    assert!(!page.contains("learned/ is missing"));
    assert_is_shown(&out, &page, num_samples);

    // The run's own place by default; of the run nothing else is touched.
    let before = crate::run_files::files(&run);
    program::succeed(&["report", text(&run)]);
    let mut after = crate::run_files::files(&run);
    let own = after
        .remove(Path::new("report.html"))
        .expect("beside the run's files");
    assert_eq!(String::from_utf8_lossy(&own), page);
    assert!(before == after, "report changed a file of the run");
    // And again over itself, while a process works on the run.
    let folder = trainer::run_folder::RunFolder::open(&run).unwrap();
    program::succeed(&["report", text(&run)]);
    drop(folder);
    let page = fs::read_to_string(run.join("report.html")).unwrap();
    let process = format!("running: process {}, ", std::process::id());
    assert!(page.contains(&process), "{process}");
}

#[test]
fn two_runs_lie_over_one_another_with_what_differs() {
    let dir = tempfile::tempdir().unwrap();
    let [first, second] = ["first", "second"].map(|name| dir.path().join(name));
    train_tiny(&first);
    program::succeed(&[
        "train",
        TINY,
        "--run",
        text(&second),
        "--set",
        "seed=6",
        "--set",
        "sampling.top_p=0.9",
    ]);
    // A run of an older build, whose samples are an attack.
    let _ = fs::remove_dir_all(second.join("learned"));
    let out = dir.path().join("page.html");
    let page = report(&[&first, &second], &out);
    assert_is_self_contained(&page);
    let differences = page.split("class=\"differences\"").nth(1).expect("a table");
    let differences = differences.split("</table>").next().expect("its end");
    assert_eq!(differences.matches("<tr>").count(), 3, "{differences}");
    assert!(
        differences.contains(">seed</td><td class=\"value\">5</td><td class=\"value\">6</td>"),
        "{differences}"
    );
    assert!(
        differences.contains(">sampling.top_p</td>"),
        "{differences}"
    );
    // Both are called tiny: their folders tell them apart, in every chart.
    let reward = page.split("<h3>Reward</h3>").nth(1).expect("a chart");
    let reward = reward.split("</figure>").next().expect("its end");
    for (color, run) in [&first, &second].into_iter().enumerate() {
        let curve = format!(
            "<g class=\"curve c{color}\" data-label=\"{}, reward\"",
            run.display()
        );
        assert!(reward.contains(&curve), "{reward}");
    }
    assert!(page.contains("learned/ is missing for steps"));
    let num_samples = page.matches("<article class=\"sample").count();
    assert_is_shown(&out, &page, num_samples);
}

#[test]
fn samples_that_are_markup_stay_text() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    train_tiny(&run);
    let newest = run.join("rollouts/step-000027.parquet");
    let mut rollout = rollout::rollout_file::read(&newest).unwrap();
    let attack =
        "</p></article><script>document.title = 'taken'</script><img src=x onerror=alert(1)>";
    for group in &mut rollout.groups {
        group.prompt.question = attack.to_string();
        for sample in &mut group.samples {
            sample.tokens = attack.bytes().map(u32::from).collect();
            sample.sampler_logprobs = vec![-0.5; sample.tokens.len()];
        }
    }
    rollout::rollout_file::write(&newest, rollout.step, &rollout.groups, &rollout.advantages)
        .unwrap();
    let out = dir.path().join("page.html");
    let page = report(&[&run], &out);
    assert!(page.contains("&lt;script&gt;document.title = &#39;taken&#39;&lt;/script&gt;"));
    assert_eq!(page.matches("<script").count(), 1);
    assert!(!page.contains("<img"));
    let num_samples = page.matches("<article class=\"sample").count();
    assert_is_shown(&out, &page, num_samples);
}

#[test]
fn a_long_run_stays_a_small_page() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    train_tiny(&run);
    let path = run.join("metrics.jsonl");
    let mut steps = trainer::metrics::read(&path).unwrap();
    let last = steps.last().unwrap().clone();
    for i in 1..=5000 {
        let mut step = last.clone();
        step.step += i;
        step.global_step += i as u64;
        step.reward_mean = Some(if i == 2500 {
            1.0
        } else {
            0.001 * (i % 300) as f64
        });
        steps.push(step);
    }
    let lines: String = steps
        .iter()
        .map(|step| serde_json::to_string(step).unwrap() + "\n")
        .collect();
    fs::write(&path, lines).unwrap();
    let page = report(&[&run], &dir.path().join("page.html"));
    assert!(page.len() < 2_000_000, "{} bytes", page.len());
    // The one extreme is still there.
    let reward = page.split("data-label=\"reward\"").nth(1).unwrap();
    let values = reward
        .split("data-y=\"")
        .nth(1)
        .and_then(|rest| rest.split('"').next())
        .unwrap();
    assert!(values.split(' ').any(|value| value == "1"), "{values}");
}

#[test]
fn what_is_no_run_and_what_is_no_report_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let fails = |args: &[&str]| {
        let ended = program::finish(program::command(args));
        (ended.code, ended.stderr)
    };
    let (code, said) = fails(&["report", text(dir.path())]);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("config.ron is missing"), "{said}");

    let run = dir.path().join("run");
    fs::create_dir(&run).unwrap();
    let config = fs::read_to_string(program::workspace().join(TINY)).unwrap();
    fs::write(run.join("config.ron"), config).unwrap();
    let thesis = dir.path().join("thesis.html");
    for precious in [
        "short",
        "<!doctype html><p>longer than the first line of a report",
    ] {
        fs::write(&thesis, precious).unwrap();
        let (code, said) = fails(&["report", text(&run), "--out", text(&thesis)]);
        assert_eq!(code, 2, "{said}");
        assert!(said.contains("is no report of baleen"), "{said}");
        assert_eq!(fs::read_to_string(&thesis).unwrap(), precious);
    }
    let (code, said) = fails(&["report", text(&run), text(&run)]);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("named twice"), "{said}");

    // Not begun yet: a page without figures.
    let page = report(&[&run], &dir.path().join("page.html"));
    assert!(page.contains("No step is done yet") && page.contains("No rollout yet"));

    fs::write(run.join("metrics.jsonl"), "{\"stage\"\n{}\n").unwrap();
    let (code, said) = fails(&["report", text(&run)]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("not a metrics line"), "{said}");
}
