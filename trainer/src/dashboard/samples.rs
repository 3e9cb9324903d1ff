//! The panel of samples: a question, one of its answers, and how the answers of the same prompt did.

use environments::Verdict;
use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Widget, Wrap};
use rollout::FinishReason;
use rollout::rollout_file::Answer;

use super::draw::block;
use super::files::RunFiles;
use super::text::{number, printable};
use super::view::View;

/// Rows of the question with its border, at most.
const QUESTION_ROWS: u16 = 6;

/// Draws the sample that `view` has chosen; its scroll is kept within the text.
pub fn draw_samples(buffer: &mut Buffer, area: Rect, files: &RunFiles, view: &mut View) {
    let rollouts = &files.rollouts;
    let (Some(step), Some((answer, group))) = (rollouts.step, view.chosen(files)) else {
        let text = match &rollouts.problem {
            Some(problem) => problem.clone(),
            None => "no samples yet: they come with the first grpo step".to_string(),
        };
        Paragraph::new(text)
            .wrap(Wrap { trim: false })
            .render(area, buffer);
        return;
    };
    let question = Paragraph::new(printable(&answer.question))
        .wrap(Wrap { trim: false })
        .block(block("question"));
    let text_width = area.width.saturating_sub(2);
    let question_rows = question
        .line_count(text_width)
        .min(usize::from(QUESTION_ROWS)) as u16;
    let [head, question_area, completion_area] = Layout::vertical([
        Constraint::Length(3),
        Constraint::Length(question_rows),
        Constraint::Fill(1),
    ])
    .areas(area);

    let newest = match view.step {
        None => "newest, ",
        Some(_) => "",
    };
    let place = Line::from(vec![
        format!("step {step}").bold(),
        format!(
            " ({newest}of {})   prompt {} of {}   sample {} of {}",
            rollouts.steps.len(),
            view.group + 1,
            rollouts.groups.len(),
            view.sample + 1,
            group.len()
        )
        .into(),
    ]);
    Paragraph::new(vec![place, judgement(answer), rewards(group, view.sample)])
        .render(head, buffer);
    question.render(question_area, buffer);

    let completion = Paragraph::new(printable(&answer.completion))
        .wrap(Wrap { trim: false })
        .block(block("completion"));
    let num_lines = completion.line_count(text_width);
    let hidden = num_lines.saturating_sub(usize::from(completion_area.height));
    view.scroll = view.scroll.min(hidden);
    let scroll = u16::try_from(view.scroll).unwrap_or(u16::MAX);
    completion
        .scroll((scroll, 0))
        .render(completion_area, buffer);
}

/// Reward, advantage and the rest of what is known of an answer.
fn judgement(answer: &Answer) -> Line<'_> {
    let mut spans: Vec<Span> = match &answer.verdict {
        Verdict::Graded {
            reward, extracted, ..
        } => {
            let read = match extracted {
                Some(text) => format!("answer read: {}", printable(text)),
                None => "no answer read".to_string(),
            };
            vec![
                format!("reward {}", number(*reward)).fg(reward_color(*reward)),
                format!("   advantage {:+.3}   {read}", answer.advantage).into(),
            ]
        }
        Verdict::Invalid { reason, .. } => {
            vec![format!("invalid: {}", printable(reason)).fg(Color::Magenta)]
        }
    };
    let end = match answer.finish_reason {
        FinishReason::Stop => "finished",
        FinishReason::Length => "cut at max_new_tokens",
        FinishReason::Unfinished => "unfinished",
    };
    spans.push(format!("   {end}").dark_gray());
    Line::from(spans)
}

/// The rewards of all answers to the prompt, the one shown in reverse.
fn rewards(group: &[Answer], shown: usize) -> Line<'_> {
    let mut spans: Vec<Span> = vec!["rewards of the prompt: ".into()];
    for (index, answer) in group.iter().enumerate() {
        let span = match answer.verdict.reward() {
            Some(reward) => number(reward).fg(reward_color(reward)),
            None => "invalid".fg(Color::Magenta),
        };
        spans.push(if index == shown {
            span.reversed()
        } else {
            span
        });
        spans.push(" ".into());
    }
    Line::from(spans)
}

fn reward_color(reward: f64) -> Color {
    match reward {
        _ if reward >= 1.0 => Color::Green,
        _ if reward > 0.0 => Color::Yellow,
        _ => Color::Red,
    }
}
