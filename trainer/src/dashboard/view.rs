//! What is looked at: the panel, the sample, how far a text is scrolled; and what each key does.

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use rollout::rollout_file::Answer;

use super::files::RunFiles;

/// The keys as the help lists them.
pub const KEYS: [(&str, &str); 8] = [
    ("Tab, 1 to 5", "panels; also Left and Right, but in samples"),
    ("Left, Right", "samples: the sample of the prompt"),
    ("Up, Down", "samples: the prompt; health, log: scroll"),
    (
        "PgUp, PgDn",
        "samples: the step before, the step after; else scroll",
    ),
    ("End", "samples: the newest step; log: its end"),
    ("j, k", "samples: scroll the completion"),
    ("?", "this help"),
    ("q, Ctrl-C", "quit; the run is not touched"),
];

/// Lines that a page key scrolls.
const PAGE: isize = 10;

/// A part of the dashboard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Panel {
    /// Rewards, the figures of the newest step, the end of the log.
    #[default]
    Overview,
    /// KL, masks, entropy, log-prob gap, throughput over the steps.
    Curves,
    /// What the policy was asked and what it answered.
    Samples,
    /// What is outside its healthy range, and what to do.
    Health,
    /// The log.
    Log,
}

impl Panel {
    /// All, in the order of their tabs.
    pub const ALL: [Panel; 5] = [
        Panel::Overview,
        Panel::Curves,
        Panel::Samples,
        Panel::Health,
        Panel::Log,
    ];

    /// On its tab.
    pub fn title(self) -> &'static str {
        match self {
            Panel::Overview => "Overview",
            Panel::Curves => "Curves",
            Panel::Samples => "Samples",
            Panel::Health => "Health",
            Panel::Log => "Log",
        }
    }

    fn after(self, places: usize) -> Panel {
        let index = Panel::ALL.iter().position(|panel| *panel == self);
        let index = index.expect("every panel is listed");
        Panel::ALL[(index + places) % Panel::ALL.len()]
    }
}

/// What is looked at.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Panel shown.
    pub panel: Panel,
    /// The list of keys is shown over it.
    pub is_help_open: bool,
    /// Step whose samples are shown; without it the newest.
    pub step: Option<u64>,
    /// Index of the prompt of that step.
    pub group: usize,
    /// Index of the sample of that prompt.
    pub sample: usize,
    /// Lines of the completion, or of the advice, above its window.
    pub scroll: usize,
    /// Lines of the log below its window.
    pub log_scroll: usize,
}

/// What a key asks of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Nothing but to be shown the changed view.
    Redraw,
    /// The samples of another step.
    Reload,
    /// To leave.
    Quit,
}

/// Lines that a key scrolls a text down.
fn lines_down(code: KeyCode) -> isize {
    match code {
        KeyCode::Up => -1,
        KeyCode::Down => 1,
        KeyCode::PageUp => -PAGE,
        KeyCode::PageDown => PAGE,
        _ => 0,
    }
}

impl View {
    /// Does what `key` stands for.
    pub fn press(&mut self, key: KeyEvent, files: &RunFiles) -> Wish {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return match key.code {
                KeyCode::Char('c') => Wish::Quit,
                _ => Wish::Redraw,
            };
        }
        let panel = self.panel;
        let show = |view: &mut View, panel: Panel| (view.panel, view.scroll) = (panel, 0);
        match key.code {
            KeyCode::Char('q') => return Wish::Quit,
            KeyCode::Char('?') => self.is_help_open = !self.is_help_open,
            KeyCode::Esc => self.is_help_open = false,
            KeyCode::Char(digit @ '1'..='5') => {
                show(self, Panel::ALL[digit as usize - '1' as usize]);
            }
            KeyCode::Tab => show(self, panel.after(1)),
            KeyCode::BackTab => show(self, panel.after(Panel::ALL.len() - 1)),
            code if panel == Panel::Samples => self.move_in_samples(code, files),
            KeyCode::Right => show(self, panel.after(1)),
            KeyCode::Left => show(self, panel.after(Panel::ALL.len() - 1)),
            KeyCode::End => self.log_scroll = 0,
            code => {
                let down = lines_down(code);
                match panel {
                    Panel::Log => self.log_scroll = self.log_scroll.saturating_add_signed(-down),
                    _ => self.scroll = self.scroll.saturating_add_signed(down),
                }
            }
        }
        self.fit(files);
        match self.panel {
            Panel::Samples => Wish::Reload,
            _ => Wish::Redraw,
        }
    }

    fn move_in_samples(&mut self, code: KeyCode, files: &RunFiles) {
        match code {
            KeyCode::Char('j') => self.scroll += 1,
            KeyCode::Char('k') => self.scroll = self.scroll.saturating_sub(1),
            KeyCode::Right => (self.sample, self.scroll) = (self.sample + 1, 0),
            KeyCode::Left => (self.sample, self.scroll) = (self.sample.saturating_sub(1), 0),
            KeyCode::Down => (self.group, self.scroll) = (self.group + 1, 0),
            KeyCode::Up => (self.group, self.scroll) = (self.group.saturating_sub(1), 0),
            KeyCode::PageUp => self.go_to_step(files, |steps, shown| {
                steps.iter().rfind(|step| **step < shown).copied()
            }),
            KeyCode::PageDown => self.go_to_step(files, |steps, shown| {
                steps.iter().find(|step| **step > shown).copied()
            }),
            KeyCode::End => (self.step, self.scroll) = (None, 0),
            _ => {}
        }
    }

    /// Shows the step that `choose` takes from all steps and the one shown; the newest is followed again.
    fn go_to_step(&mut self, files: &RunFiles, choose: impl Fn(&[u64], u64) -> Option<u64>) {
        let steps = &files.rollouts.steps;
        if let Some(shown) = files.rollouts.step
            && let Some(step) = choose(steps, shown)
        {
            self.step = Some(step).filter(|step| steps.last() != Some(step));
            self.scroll = 0;
        }
    }

    /// Stays within the samples that are there.
    pub fn fit(&mut self, files: &RunFiles) {
        let groups = &files.rollouts.groups;
        self.group = self.group.min(groups.len().saturating_sub(1));
        let num_samples = groups.get(self.group).map_or(0, Vec::len);
        self.sample = self.sample.min(num_samples.saturating_sub(1));
    }

    /// The sample that is looked at, and those of the same prompt.
    pub fn chosen<'a>(&self, files: &'a RunFiles) -> Option<(&'a Answer, &'a [Answer])> {
        let group = files.rollouts.groups.get(self.group)?;
        Some((group.get(self.sample)?, group))
    }
}
