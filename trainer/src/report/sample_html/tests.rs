use super::*;
use crate::report::samples::tests::{learned, shown};

fn tokenizer() -> Tokenizer {
    Tokenizer::byte_level()
}

#[test]
fn texts_of_samples_are_never_markup() {
    let mut sample = shown(0, Some(1.0), 0.5);
    let attack = "<script>alert('x')</script>\u{0}";
    sample.prompt.question = attack.to_string();
    sample.sample.tokens = attack.bytes().map(u32::from).collect();
    sample.sample.verdict = Verdict::graded(1.0, Some(attack.to_string()));
    let html = article(&sample, Some(&tokenizer()), 100);
    assert!(!html.contains("<script"), "{html}");
    assert!(!html.contains('\0'));
    assert_eq!(
        html.matches("&lt;script&gt;alert(&#39;x&#39;)").count(),
        2,
        "{html}"
    );
    assert!(html.contains(">&lt;</i>"), "{html}");
    sample.sample.verdict = Verdict::invalid(environments::FaultKind::Grader, attack.to_string());
    assert!(!article(&sample, Some(&tokenizer()), 100).contains("<script"));
}

#[test]
fn a_token_is_coloured_by_its_gap_and_tells_its_numbers() {
    let mut sample = shown(0, Some(0.0), -0.5);
    sample.learned = Some(learned(0, 0.25, false));
    let html = article(&sample, Some(&tokenizer()), 100);
    assert!(
        html.contains("<i class=\"g4\" title=\"id 53 · sampler -0.5 · trainer -0.75 · ref -0.75 · gap 0.25\">5</i>"),
        "{html}"
    );
    assert!(
        html.contains(
            "<i class=\"special\" title=\"id 257 · sampler -0.25 · trainer -0.25 · ref -0.125 · gap 0\">&lt;|im_end|&gt;</i>"
        ),
        "{html}"
    );
    assert!(html.contains("<dd class=\"negative\">-0.5</dd>"), "{html}");
    assert!(html.contains("<dd class=\"\">1 update</dd>"), "{html}");
    assert!(!html.contains("off-policy mask"), "{html}");
}

#[test]
fn colours_begin_at_the_ends_that_the_legend_names() {
    let color_of = |gap: f32| {
        let mut sample = shown(0, Some(0.0), -0.5);
        sample.sample.sampler_logprobs[0] = 0.0;
        let mut learned = learned(0, 0.0, false);
        learned.logprobs[0] = -gap;
        sample.learned = Some(learned);
        let html = article(&sample, Some(&tokenizer()), 100);
        let before = html
            .split(" title=\"id 53")
            .next()
            .expect("split gives one")
            .to_string();
        before
            .rsplit("<i")
            .next()
            .expect("split gives one")
            .to_string()
    };
    for (gap, color) in [
        (9e-5, ""),
        (1e-4, "g1"),
        (0.001, "g2"),
        (0.05, "g3"),
        (0.1, "g4"),
        (7.0, "g5"),
    ] {
        let class = if color.is_empty() {
            String::new()
        } else {
            format!(" class=\"{color}\"")
        };
        assert_eq!(color_of(gap), class, "{gap}");
    }
    let legend = legend();
    for text in [
        "below 1e-4",
        "\"g1\">1e-4+",
        "\"g2\">0.001+",
        "\"g3\">0.01+",
        "\"g4\">0.1+",
        "\"g5\">1+",
    ] {
        assert!(legend.contains(text), "{legend}");
    }
}

#[test]
fn a_masked_sample_says_so_whatever_else_it_is_shown_for() {
    let mut sample = shown(0, Some(0.0), -0.5);
    sample.learned = Some(learned(0, 0.25, true));
    sample.reasons = vec![Reason::Worst];
    let html = article(&sample, Some(&tokenizer()), 100);
    assert!(
        html.starts_with("<article class=\"sample masked\">"),
        "{html}"
    );
    assert_eq!(html.matches("removed by the off-policy mask").count(), 1);
}

#[test]
fn tokens_of_one_character_are_coloured_together() {
    let mut sample = shown(0, Some(0.0), -0.5);
    sample.sample.tokens = "é".bytes().map(u32::from).collect();
    sample.learned = Some(learned(0, 0.25, false));
    let html = article(&sample, Some(&tokenizer()), 100);
    assert!(html.contains("<i class=\"g4\" title=\"id 195 · "), "{html}");
    assert!(html.contains("gap 0.25\nid 169 · "), "{html}");
    assert!(html.contains(">é</i></p>"), "{html}");
}

#[test]
fn long_completions_keep_both_ends_and_the_largest_gap() {
    assert_eq!(
        (
            windows(10, 10, None).len(),
            windows(10, 10, None)[0].clone()
        ),
        (1, 0..10)
    );
    assert_eq!(windows(100, 30, None), vec![0..20, 90..100]);
    assert_eq!(windows(100, 30, Some(50)), vec![0..10, 45..55, 90..100]);
    assert_eq!(windows(100, 30, Some(3)), vec![0..10, 10..20, 90..100]);
    assert_eq!(windows(100, 30, Some(99)), vec![0..10, 80..90, 90..100]);
    let mut sample = shown(0, Some(0.0), -0.5);
    sample.sample.tokens = vec![65; 100];
    sample.sample.sampler_logprobs = vec![-0.5; 100];
    let html = article(&sample, Some(&tokenizer()), 30);
    assert_eq!(html.matches(">A</i>").count(), 30);
    assert!(html.contains(" … 70 tokens left out … "), "{html}");
}

#[test]
fn a_page_has_a_bound_on_its_tokens() {
    assert_eq!(tokens_a_sample(1), 1_200);
    assert_eq!(tokens_a_sample(40), 300);
    assert_eq!(tokens_a_sample(0), 1_200);
}
