//! A program on a terminal: a pseudo-terminal, and an interpreter that tells what is on its screen.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::num::NonZero;
use std::process::Child;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use pty_process::Size;
use pty_process::blocking::{Command, Pty, open};

use crate::program;

/// Nothing that these tests wait for takes this long.
const PATIENCE: Duration = Duration::from_secs(60);

/// A child on a terminal of its own. It is killed when dropped.
pub struct Terminal {
    child: Child,
    /// The end that a terminal's window and keyboard have.
    window: Arc<Pty>,
    screen: Arc<Mutex<vt100::Parser>>,
    reader: Option<JoinHandle<()>>,
    mode_before: String,
}

impl Terminal {
    /// Starts `program ARGS...` with the variables `env` on a terminal of that size.
    pub fn start<S: AsRef<OsStr>>(
        program: &OsStr,
        args: &[S],
        env: &[(&str, &str)],
        (columns, rows): (u16, u16),
    ) -> Terminal {
        let (window, end) = open().expect("a pseudo-terminal");
        window.resize(Size::new(rows, columns)).expect("resized");
        let mode_before = mode(&window);
        let child = Command::new(program)
            .args(args)
            .current_dir(program::workspace())
            .env("TERM", "xterm-256color")
            .env_remove("NO_COLOR")
            .envs(env.iter().copied())
            .spawn(end)
            .expect("the child starts");
        let window = Arc::new(window);
        let screen = Arc::new(Mutex::new(vt100::Parser::new(some(rows), some(columns), 0)));
        let (output, shown) = (Arc::clone(&window), Arc::clone(&screen));
        let reader = thread::spawn(move || {
            let mut bytes = [0; 4096];
            // At the child's end the system says either that or an error.
            while let Ok(count @ 1..) = (&*output).read(&mut bytes) {
                shown.lock().expect("sound").process(&bytes[..count]);
            }
        });
        Terminal {
            child,
            window,
            screen,
            reader: Some(reader),
            mode_before,
        }
    }

    /// `baleen ARGS...` on a terminal of 80x24.
    pub fn baleen<S: AsRef<OsStr>>(args: &[S]) -> Terminal {
        Terminal::start(program::path().as_os_str(), args, &[], (80, 24))
    }

    /// What is on the screen.
    pub fn text(&self) -> String {
        self.interpreter().screen().contents()
    }

    fn interpreter(&self) -> MutexGuard<'_, vt100::Parser> {
        self.screen.lock().expect("sound")
    }

    /// Waits until the screen holds all of `parts`.
    pub fn wait_for(&self, parts: &[&str]) -> String {
        let start = Instant::now();
        loop {
            let text = self.text();
            let missing = parts.iter().find(|part| !text.contains(**part));
            match missing {
                None => return text,
                Some(part) => assert!(start.elapsed() < PATIENCE, "{part} is not in\n{text}"),
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Types `keys`.
    pub fn press(&mut self, keys: &str) {
        (&*self.window).write_all(keys.as_bytes()).expect("typed");
    }

    /// Gives the window another size.
    pub fn resize(&mut self, columns: u16, rows: u16) {
        self.interpreter()
            .screen_mut()
            .set_size(some(rows), some(columns));
        self.window
            .resize(Size::new(rows, columns))
            .expect("resized");
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its end: the exit code; -1 when a signal ended it.
    pub fn end(&mut self) -> i32 {
        let status = self.child.wait().expect("it is our child");
        let code = status.code().unwrap_or(-1);
        if let Some(reader) = self.reader.take() {
            reader.join().expect("it only reads");
        }
        code
    }

    /// The terminal must be as it was before: its screen, its cursor, and how it treats keys.
    pub fn assert_restored(&self) {
        assert_eq!(mode(&self.window), self.mode_before);
        let interpreter = self.interpreter();
        let screen = interpreter.screen();
        assert!(!screen.alternate_screen(), "the alternate screen is left");
        assert!(!screen.hide_cursor(), "the cursor is shown");
    }
}

/// How the terminal treats keys: echo, line by line and so on.
fn mode(window: &Pty) -> String {
    let attributes = rustix::termios::tcgetattr(window).expect("it is a terminal");
    format!("{attributes:?}")
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Only to leave nothing behind: a child that ended already is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A number of rows or columns; no window here has none.
fn some(number: u16) -> NonZero<u16> {
    NonZero::new(number).expect("a window has rows and columns")
}
