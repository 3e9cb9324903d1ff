//! A run folder on a terminal: how the rewards go, the curves, the samples, the advice, the log.
//!
//! Only files of the run folder are read, so a run may be watched while another process works on it, from
//! another machine that sees the folder, and long after its end. They are looked at once a second;
//! the samples only while they are shown, and of their files only the text.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossterm::event::{self, Event, KeyEventKind};

mod curves;
mod draw;
mod files;
mod health;
mod rollouts;
mod samples;
pub mod screen;
mod text;
mod view;

pub use files::RunFiles;

use screen::Screen;
use view::{Panel, View, Wish};

/// Between two looks at the files.
const REFRESH: Duration = Duration::from_secs(1);
/// Longest wait for a key; a signal is seen after it.
const KEY_WAIT: Duration = Duration::from_millis(100);

/// Shows the run in `files` on the terminal until a key or `stop` ends it.
///
/// # Errors
/// The terminal can't be used or is gone.
pub fn watch(files: &mut RunFiles, stop: &AtomicBool) -> io::Result<()> {
    let mut screen = Screen::open()?;
    let mut view = View::default();
    let mut looked = Instant::now();
    let mut is_changed = true;
    while !stop.load(Ordering::SeqCst) {
        if looked.elapsed() >= REFRESH {
            files.refresh();
            refresh_samples(files, &mut view);
            looked = Instant::now();
            is_changed = true;
        }
        if is_changed {
            screen.draw(|buffer, area| draw::draw(buffer, area, files, &mut view))?;
            is_changed = false;
        }
        if !event::poll(KEY_WAIT)? {
            continue;
        }
        // Everything typed so far, then one frame.
        loop {
            match event::read()? {
                Event::Key(key) if key.kind != KeyEventKind::Release => {
                    match view.press(key, files) {
                        Wish::Quit => return Ok(()),
                        Wish::Reload => refresh_samples(files, &mut view),
                        Wish::Redraw => {}
                    }
                }
                _ => {}
            }
            if !event::poll(Duration::ZERO)? {
                break;
            }
        }
        is_changed = true;
    }
    Ok(())
}

fn refresh_samples(files: &mut RunFiles, view: &mut View) {
    if view.panel == Panel::Samples {
        files.rollouts.refresh(&files.layout, view.step);
        view.fit(files);
    }
}

/// Everything at once as plain text of `width` columns.
pub fn once(files: &mut RunFiles, width: u16) -> String {
    files.rollouts.refresh(&files.layout, None);
    draw::plain(files, width)
}
