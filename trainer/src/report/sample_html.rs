//! A sample as HTML: question, figures, and the completion token by token, coloured by the log-prob gap.

use std::fmt::Write;
use std::ops::Range;

use environments::Verdict;
use model::Tokenizer;
use rollout::FinishReason;

use super::html::{escaped, grouped, short};
use super::pieces::{Piece, pieces};
use super::samples::{Reason, ShownSample};

/// Tokens of all samples of a page; each is some 150 bytes of it.
const MAX_PAGE_TOKENS: usize = 12_000;
/// Tokens of one sample.
const MAX_SAMPLE_TOKENS: usize = 1_200;

/// Lower ends of the colours of |trainer - sampler|, nats; what lies below the first has none. Decades, since f32 disagrees by 1e-6
/// and bf16 by 1e-2.
pub(super) const GAP_COLORS: [f32; 5] = [1e-4, 1e-3, 1e-2, 0.1, 1.0];

/// How many tokens of a sample may be shown on a page with `num_samples`.
pub(super) fn tokens_a_sample(num_samples: usize) -> usize {
    (MAX_PAGE_TOKENS / num_samples.max(1)).clamp(60, MAX_SAMPLE_TOKENS)
}

/// What the colours mean.
pub(super) fn legend() -> String {
    let mut html =
        "<p class=\"gaps\">|trainer − sampler| log-prob, nats: <span>below 1e-4</span>".to_string();
    for (color, from) in GAP_COLORS.iter().enumerate() {
        let _ = write!(
            html,
            "<span class=\"g{}\">{}+</span>",
            color + 1,
            short(f64::from(*from))
        );
    }
    html.push_str("</p>");
    html
}

/// The sample, with at most `max_tokens` of its completion.
pub(super) fn article(
    shown: &ShownSample,
    tokenizer: Option<&Tokenizer>,
    max_tokens: usize,
) -> String {
    let sample = &shown.sample;
    let is_masked = shown
        .learned
        .as_ref()
        .is_some_and(|learned| learned.is_masked);
    let mut html = format!(
        "<article class=\"sample{}\"><header>",
        if is_masked { " masked" } else { "" }
    );
    for reason in &shown.reasons {
        let (class, name) = match reason {
            Reason::Best => ("best", "best"),
            Reason::Worst => ("worst", "worst"),
            Reason::LargestGap => ("gap", "largest gap"),
            Reason::Masked => ("masked", "removed by the off-policy mask"),
            Reason::Invalid => ("worst", "invalid"),
        };
        let _ = write!(html, "<b class=\"badge {class}\">{name}</b>");
    }
    if is_masked && !shown.reasons.contains(&Reason::Masked) {
        html.push_str("<b class=\"badge masked\">removed by the off-policy mask</b>");
    }
    let task = &shown.prompt.task;
    let _ = write!(
        html,
        "<span>step {}, prompt {}, sample {}, {}</span></header>",
        shown.step,
        shown.prompt.id,
        sample.index,
        escaped(&task.to_string())
    );
    html.push_str(&facts(shown));
    let _ = write!(
        html,
        "<p class=\"question\">{}</p>",
        escaped(&shown.prompt.question)
    );
    html.push_str(&completion(shown, tokenizer, max_tokens));
    html.push_str("<output></output></article>");
    html
}

/// Reward, advantage and the like, in a row.
fn facts(shown: &ShownSample) -> String {
    let sample = &shown.sample;
    let mut html = "<dl class=\"facts\">".to_string();
    let mut fact = |name: &str, class: &str, value: &str| {
        let _ = write!(
            html,
            "<div><dt>{name}</dt><dd class=\"{class}\">{}</dd></div>",
            escaped(value)
        );
    };
    match &sample.verdict {
        Verdict::Graded {
            reward, extracted, ..
        } => {
            fact("reward", "", &short(*reward));
            let sign = match shown.advantage {
                advantage if advantage > 0.0 => "positive",
                advantage if advantage < 0.0 => "negative",
                _ => "",
            };
            fact("advantage", sign, &short(shown.advantage));
            fact("answer read", "", extracted.as_deref().unwrap_or("none"));
        }
        Verdict::Invalid { reason, .. } => fact("invalid", "negative", reason),
    }
    let end = match sample.finish_reason {
        FinishReason::Stop => "finished",
        FinishReason::Length => "cut at max_new_tokens",
        FinishReason::Unfinished => "in flight",
    };
    fact(
        "tokens",
        "",
        &format!("{}, {end}", grouped(sample.tokens.len() as u64)),
    );
    let versions = &sample.policy_versions;
    if let (Some(first), Some(last)) = (versions.first(), versions.last()) {
        let versions = match first == last {
            true => format!("version {first}"),
            false => format!("versions {first} to {last}"),
        };
        fact("drawn by", "", &versions);
    }
    if let Some(learned) = &shown.learned {
        fact(
            "drift",
            "",
            &format!("{} nats a token", short(learned.drift)),
        );
        fact(
            "trained after",
            "",
            &match learned.policy_age {
                0 => "no update".to_string(),
                1 => "1 update".to_string(),
                age => format!("{age} updates"),
            },
        );
    }
    html.push_str("</dl>");
    html
}

fn completion(shown: &ShownSample, tokenizer: Option<&Tokenizer>, max_tokens: usize) -> String {
    let gaps = shown.gaps();
    let pieces = pieces(tokenizer, &shown.sample.tokens);
    let center = gaps.as_ref().and_then(|gaps| {
        let largest = (0..gaps.len()).max_by(|&a, &b| gaps[a].total_cmp(&gaps[b]))?;
        pieces
            .iter()
            .position(|piece| piece.tokens.contains(&largest))
    });
    let mut html = "<p class=\"completion\">".to_string();
    let mut next = 0;
    for range in windows(pieces.len(), max_tokens, center) {
        left_out(&mut html, &pieces[next..range.start]);
        next = range.end;
        for piece in &pieces[range] {
            let gap = gaps.as_ref().and_then(|gaps| {
                let of_piece = gaps.get(piece.tokens.clone())?;
                of_piece.iter().copied().reduce(f32::max)
            });
            let color = gap.map_or(0, |gap| {
                GAP_COLORS.iter().filter(|&&from| gap >= from).count()
            });
            let class = match (color, piece.is_special) {
                (0, false) => String::new(),
                (0, true) => " class=\"special\"".to_string(),
                (color, false) => format!(" class=\"g{color}\""),
                (color, true) => format!(" class=\"special g{color}\""),
            };
            let _ = write!(
                html,
                "<i{class} title=\"{}\">{}</i>",
                escaped(&title(shown, piece)),
                escaped(&piece.text).replace('\n', "⏎\n")
            );
        }
    }
    left_out(&mut html, &pieces[next..]);
    html.push_str("</p>");
    html
}

fn left_out(html: &mut String, pieces: &[Piece]) {
    let count: usize = pieces.iter().map(|piece| piece.tokens.len()).sum();
    if count > 0 {
        let _ = write!(
            html,
            "<em> … {} tokens left out … </em>",
            grouped(count as u64)
        );
    }
}

/// Id and log-probs of the tokens of a piece, a line each.
fn title(shown: &ShownSample, piece: &Piece) -> String {
    let mut lines = Vec::new();
    for at in piece.tokens.clone() {
        let mut line = format!("id {}", shown.sample.tokens[at]);
        let mut add = |name: &str, value: Option<f32>| {
            if let Some(value) = value {
                let _ = write!(line, " · {name} {}", short(f64::from(value)));
            }
        };
        let sampler = shown.sample.sampler_logprobs.get(at).copied();
        add("sampler", sampler);
        if let Some(learned) = &shown.learned {
            let trainer = learned.logprobs.get(at).copied();
            add("trainer", trainer);
            add(
                "ref",
                learned
                    .ref_logprobs
                    .as_ref()
                    .and_then(|ref_logprobs| ref_logprobs.get(at).copied()),
            );
            add(
                "gap",
                trainer
                    .zip(sampler)
                    .map(|(trainer, sampler)| (trainer - sampler).abs()),
            );
        }
        lines.push(line);
    }
    lines.join("\n")
}

/// Which of `len` pieces are shown where `limit` are: all, or a third each at the begin, about `center`, and at the end.
fn windows(len: usize, limit: usize, center: Option<usize>) -> Vec<Range<usize>> {
    if len <= limit {
        return std::iter::once(0..len).collect();
    }
    let third = limit / 3;
    let tail = len - third;
    let Some(center) = center else {
        return vec![0..limit - third, tail..len];
    };
    let start = center.saturating_sub(third / 2).clamp(third, tail - third);
    vec![0..third, start..start + third, tail..len]
}

#[cfg(test)]
mod tests;
