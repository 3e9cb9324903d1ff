//! The terminal while the dashboard has it, and given back as it was.

use std::io;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::{DefaultTerminal, restore, try_init};

/// A terminal in raw mode, on its alternate screen. Dropped, or at a panic, it is as it was before.
#[derive(Debug)]
pub struct Screen {
    terminal: DefaultTerminal,
}

impl Screen {
    /// Takes the terminal of standard output.
    ///
    /// # Errors
    /// There is none, or it can't be changed.
    pub fn open() -> io::Result<Screen> {
        match try_init() {
            Ok(terminal) => Ok(Screen { terminal }),
            Err(error) => {
                // It may have come half way.
                restore();
                Err(error)
            }
        }
    }

    /// Shows what `frame` draws.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn draw(&mut self, frame: impl FnOnce(&mut Buffer, Rect)) -> io::Result<()> {
        self.terminal
            .draw(|shown| {
                let area = shown.area();
                frame(shown.buffer_mut(), area);
            })
            .map(|_| ())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // At a panic it was restored before the message; a second time would put the cursor before that.
        if !std::thread::panicking() {
            restore();
        }
    }
}
