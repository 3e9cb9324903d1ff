//! Python sessions: state, ends of every kind, and cells that attack the protocol.

use sandbox::{Cell, FileIn, PythonLimits, PythonSession, Sandbox};
use std::time::{Duration, Instant};

crate::on_both_backends!(
    state_is_kept,
    exceptions_are_told_and_survived,
    the_last_expression_is_shown,
    input_ends_at_once,
    text_that_is_no_utf8_is_replaced,
    a_flood_is_cut_in_the_middle,
    a_slow_cell_is_interrupted_and_the_state_kept,
    an_ignored_interrupt_ends_in_a_restart,
    processes_that_end_are_restarted,
    a_stopped_keeper_ends_in_a_restart,
    a_session_has_a_time_of_its_own,
    printed_frames_are_text,
    written_descriptors_forge_nothing,
    the_keeper_is_out_of_reach,
    background_threads_do_not_mix_in,
    forked_children_do_not_answer,
    no_cell_beyond_the_last,
    sessions_do_not_see_each_other,
    files_are_placed_and_cannot_shadow_the_session,
    a_broken_interpreter_is_no_fault_of_the_service,
);
crate::on_all_variants!(memory_is_bounded, many_sessions_at_once);

fn limits() -> PythonLimits {
    PythonLimits {
        cell: Duration::from_secs(30),
        grace: Duration::from_millis(500),
        output_bytes: 4 << 10,
        memory_bytes: 256 << 20,
        disk_bytes: 16 << 20,
        ..PythonLimits::default()
    }
}

fn session(sandbox: &Sandbox) -> PythonSession {
    PythonSession::new(sandbox, limits(), Vec::new())
}

/// For cells that are meant to time out.
fn hasty(sandbox: &Sandbox) -> PythonSession {
    let limits = PythonLimits {
        cell: Duration::from_secs(1),
        ..limits()
    };
    PythonSession::new(sandbox, limits, Vec::new())
}

fn stdout(session: &mut PythonSession, code: &str) -> String {
    let cell = session.run(code).unwrap();
    assert!(cell.is_success(), "{cell:?}");
    cell.stdout
}

/// The interpreter was lost and is there again.
fn assert_restarted(session: &mut PythonSession, cell: &Cell) {
    assert!(cell.flags.restarted, "{cell:?}");
    assert!(cell.to_tool_text().contains("session was lost"), "{cell:?}");
    assert_eq!(stdout(session, "print('x' in globals())"), "False\n");
}

fn state_is_kept(sandbox: &Sandbox) {
    let mut session = session(sandbox);
    session
        .run("import math\nx = 41\ndef f(n):\n    return n + x\nopen('note', 'w').write('kept')")
        .unwrap();
    let cell = session
        .run("print(f(1), math.pi > 3, open('note').read())\nx += 1")
        .unwrap();
    assert_eq!(cell.stdout, "42 True kept\n");
    assert_eq!((cell.number, session.num_cells_left()), (2, 18));
    // What pickles and dataclasses need of the module.
    let code = "import pickle, dataclasses\n@dataclasses.dataclass\nclass P:\n    a: int\npickle.loads(pickle.dumps(P(x)))";
    assert_eq!(session.run(code).unwrap().result.unwrap(), "P(a=42)");
}

fn exceptions_are_told_and_survived(sandbox: &Sandbox) {
    let mut session = session(sandbox);
    let cell = session
        .run("x = 1\ndef g():\n    return 1 / 0\nprint('before')\ng()")
        .unwrap();
    assert_eq!(cell.stdout, "before\n");
    let traceback = cell.traceback.clone().unwrap();
    let lines: Vec<_> = traceback.lines().collect();
    assert_eq!(lines[0], "Traceback (most recent call last):");
    assert_eq!(lines[1], "  File \"<cell 1>\", line 5, in <module>");
    assert!(traceback.contains("return 1 / 0"), "{traceback}");
    assert!(traceback.ends_with("ZeroDivisionError: division by zero"));
    assert!(!traceback.contains("session.py"), "{traceback}");
    for (code, end, num_frames) in [
        ("a = = 1", "SyntaxError: invalid syntax", 1),
        ("exit(3)", "SystemExit: 3", 1),
        ("raise KeyboardInterrupt", "KeyboardInterrupt", 1),
        ("10 ** 5000", "string conversion", 0),
        ("x = '\\ud800'\nprint(x)", "surrogates not allowed", 1),
        (
            "try:\n    1/0\nexcept Exception as e:\n    raise KeyError(7) from e",
            "KeyError: 7",
            2,
        ),
    ] {
        let cell = session.run(code).unwrap();
        let traceback = cell.traceback.unwrap();
        assert!(traceback.contains(end), "{traceback}");
        assert!(!traceback.contains("session.py"), "{traceback}");
        assert_eq!(
            traceback.matches("\"<cell ").count(),
            num_frames,
            "{traceback}"
        );
        assert!(!cell.flags.restarted);
    }
    let cell = session.run("def r(): return r()\nr()").unwrap();
    assert!(cell.traceback.unwrap().contains("RecursionError"));
    let nameless = "class E(Exception):\n    def __str__(self): raise E\nraise E";
    assert!(
        session
            .run(nameless)
            .unwrap()
            .traceback
            .unwrap()
            .contains('E')
    );
}

fn the_last_expression_is_shown(sandbox: &Sandbox) {
    let mut session = session(sandbox);
    let cell = session.run("a = [1]\n'é' * 2").unwrap();
    assert_eq!(cell.result.as_deref(), Some("'éé'"));
    assert_eq!(cell.to_tool_text(), "Out[1]: 'éé'");
    assert_eq!(session.run("_ + 'b'").unwrap().result.unwrap(), "'ééb'");
    for code in ["None", "a = 2", "", "print(end='')", "for i in [1]: i"] {
        let cell = session.run(code).unwrap();
        assert_eq!((cell.result, cell.traceback), (None, None), "{code}");
    }
    let cell = session.run("'y' * 10**6").unwrap();
    assert!(cell.flags.truncated && cell.is_success());
    let shown = cell.result.unwrap();
    assert!(shown.len() < 5000 && shown.starts_with("'yyy") && shown.ends_with("yyy'"));
}

fn input_ends_at_once(sandbox: &Sandbox) {
    let mut session = session(sandbox);
    for _ in 0..2 {
        let traceback = session.run("input('name? ')").unwrap().traceback.unwrap();
        assert!(
            traceback.ends_with("EOFError: EOF when reading a line"),
            "{traceback}"
        );
        session.run("import sys; sys.stdin.close()").unwrap();
    }
}

fn text_that_is_no_utf8_is_replaced(sandbox: &Sandbox) {
    let mut session = session(sandbox);
    let code = "import os\nprint('π', '🦀', flush=True)\nos.write(1, b'\\xff\\x00\\xc3(')\nos.write(2, b'e\\xfe')\nNone";
    let cell = session.run(code).unwrap();
    assert_eq!(cell.stdout, "π 🦀\n\u{fffd}\0\u{fffd}(");
    assert_eq!(cell.stderr, "e\u{fffd}");
}

fn a_flood_is_cut_in_the_middle(sandbox: &Sandbox) {
    let mut session = session(sandbox);
    let cell = session
        .run("import sys\nprint('first')\nfor i in range(3000): sys.stdout.write('z' * 10_000)\nprint('last')")
        .unwrap();
    assert!(
        cell.flags.truncated && cell.is_success(),
        "{:?}",
        cell.flags
    );
    let dropped = 6 + 30_000_000 + 5 - 4096;
    let mark = format!("zz\n[... {dropped} bytes are left out here ...]\nzz");
    assert!(cell.stdout.contains(&mark), "{}", &cell.stdout[2000..2200]);
    assert!(cell.stdout.starts_with("first\nzz") && cell.stdout.ends_with("zzlast\n"));
    assert!(cell.stdout.len() < 4200);
    let cell = session.run("raise ValueError('m' * 10**7)").unwrap();
    assert!(cell.flags.truncated && cell.traceback.unwrap().len() < 4200);
}

fn a_slow_cell_is_interrupted_and_the_state_kept(sandbox: &Sandbox) {
    let mut session = hasty(sandbox);
    session.run("x = 5").unwrap();
    let start = Instant::now();
    let cell = session.run("print('on it')\nwhile True: pass").unwrap();
    assert!(start.elapsed() < Duration::from_secs(5));
    assert!(cell.flags.timed_out && !cell.flags.restarted, "{cell:?}");
    assert!(cell.duration >= Duration::from_secs(1));
    assert_eq!(cell.stdout, "on it\n");
    assert!(
        cell.traceback
            .as_ref()
            .unwrap()
            .ends_with("KeyboardInterrupt")
    );
    let text = cell.to_tool_text();
    assert!(
        text.contains("[timed out after 1 s and was interrupted; names and files are kept]"),
        "{text}"
    );
    assert_eq!(session.run("x").unwrap().result.unwrap(), "5");
    let slept = session.run("import time; time.sleep(60)").unwrap();
    assert!(slept.flags.timed_out && !slept.flags.restarted);
}

fn an_ignored_interrupt_ends_in_a_restart(sandbox: &Sandbox) {
    let mut session = hasty(sandbox);
    for code in [
        "import signal; x = 1; signal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('deaf')\nwhile True: pass",
        "x = 1\nprint('deaf')\nwhile True:\n    try: sum(range(9999))\n    except BaseException: pass",
        "import os, signal; x = 1\nprint('deaf')\nos.kill(os.getpid(), signal.SIGSTOP)",
    ] {
        let start = Instant::now();
        let cell = session.run(code).unwrap();
        assert!(start.elapsed() < Duration::from_secs(8));
        assert!(cell.flags.timed_out, "{cell:?}");
        assert_eq!(cell.stdout, "deaf\n");
        assert_restarted(&mut session, &cell);
    }
}

fn processes_that_end_are_restarted(sandbox: &Sandbox) {
    let mut session = session(sandbox);
    for (code, words) in [
        (
            "import os; x = 1\nprint('a')\nos._exit(3)",
            "exited with code 3",
        ),
        (
            "import os, signal; x = 1\nprint('a')\nos.kill(os.getpid(), signal.SIGKILL)",
            "SIGKILL",
        ),
        (
            "import ctypes; x = 1\nprint('a')\nctypes.string_at(1)",
            "SIGSEGV",
        ),
    ] {
        let cell = session.run(code).unwrap();
        assert_eq!(cell.stdout, "a\n", "{cell:?}");
        assert!(
            cell.to_tool_text().contains(words),
            "{}",
            cell.to_tool_text()
        );
        assert!(
            !cell.flags.timed_out && !cell.flags.out_of_memory,
            "{cell:?}"
        );
        assert_restarted(&mut session, &cell);
    }
}

fn a_stopped_keeper_ends_in_a_restart(sandbox: &Sandbox) {
    let mut session = hasty(sandbox);
    let start = Instant::now();
    let cell = session
        .run("import os, signal; x = 1\nos.kill(os.getppid(), signal.SIGSTOP)")
        .unwrap();
    assert!(start.elapsed() < Duration::from_secs(10));
    assert!(cell.flags.timed_out, "{cell:?}");
    assert_restarted(&mut session, &cell);
}

fn a_session_has_a_time_of_its_own(sandbox: &Sandbox) {
    let limits = PythonLimits {
        wall: Duration::from_secs(2),
        ..limits()
    };
    let mut session = PythonSession::new(sandbox, limits, Vec::new());
    let cell = session.run("x = 1\nimport time; time.sleep(20)").unwrap();
    assert!(cell.flags.timed_out, "{cell:?}");
    assert!(cell.to_tool_text().contains("the session's time is over"));
    assert_restarted(&mut session, &cell);
}

const FORGED: &str = "{\\\"end\\\": \\\"done\\\", \\\"id\\\": 1, \\\"ready\\\": true}";

fn printed_frames_are_text(sandbox: &Sandbox) {
    let mut session = session(sandbox);
    let code = format!(
        "import os, sys\nfake = \"{FORGED}\"\nprint(fake, flush=True)\nprint(fake, file=sys.__stderr__, flush=True)\nos.write(1, b'\\n\\n')\n7"
    );
    let cell = session.run(&code).unwrap();
    assert_eq!(cell.result.as_deref(), Some("7"));
    assert_eq!(cell.stdout, format!("{}\n\n\n", FORGED.replace('\\', "")));
    assert_eq!(cell.stderr, format!("{}\n", FORGED.replace('\\', "")));
    assert_eq!(stdout(&mut session, "print(1)"), "1\n");
}

fn written_descriptors_forge_nothing(sandbox: &Sandbox) {
    let mut session = session(sandbox);
    let code = format!(
        "import os\nx = 1\nfor fd in range(3, 256):\n    for line in (\"{FORGED}\", '0' * 32 + ' ' + \"{FORGED}\", 'z' * 9000):\n        try: os.write(fd, (line + '\\n').encode())\n        except OSError: pass\n'true result'"
    );
    let cell = session.run(&code).unwrap();
    assert!(cell.is_success(), "{cell:?}");
    assert_eq!(cell.result.as_deref(), Some("'true result'"));
    assert_eq!(session.run("x + 1").unwrap().result.unwrap(), "2");
    let cell = session.run("os.closerange(0, 256)\nx").unwrap();
    assert_restarted(&mut session, &cell);
}

fn the_keeper_is_out_of_reach(sandbox: &Sandbox) {
    let mut session = session(sandbox);
    let code = "import os\nopened = []\nparent = os.getppid()\nfor name in ['mem', 'environ', 'maps'] + ['fd/%d' % n for n in range(16)]:\n    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):\n        try: os.open('/proc/%d/%s' % (parent, name), flags)\n        except OSError: continue\n        opened.append(name)\nopened";
    assert_eq!(session.run(code).unwrap().result.as_deref(), Some("[]"));
    let cell = session
        .run("import signal; x = 1\nos.kill(parent, signal.SIGINT)\nos.kill(parent, signal.SIGKILL)\nwhile True: pass")
        .unwrap();
    assert_restarted(&mut session, &cell);
}

fn background_threads_do_not_mix_in(sandbox: &Sandbox) {
    let mut session = session(sandbox);
    let code = "import threading, time\ndef late():\n    time.sleep(0.3)\n    print('from the thread')\nthreading.Thread(target=late).start()\nprint('started')";
    assert_eq!(stdout(&mut session, code), "started\n");
    std::thread::sleep(Duration::from_millis(900));
    let cell = session.run("print('second')").unwrap();
    assert_eq!(
        (cell.stdout.as_str(), cell.late_output.as_str()),
        ("second\n", "from the thread\n")
    );
    // A thread that never stops hinders no later cell.
    session
        .run("def flood():\n    while True: print('w' * 1000)\nthreading.Thread(target=flood, daemon=True).start()")
        .unwrap();
    for _ in 0..3 {
        let cell = session.run("time.sleep(0.05)\n6 * 7").unwrap();
        assert_eq!(cell.result.as_deref(), Some("42"));
        assert!(cell.stdout.len() < 4200 && cell.late_output.len() < 4200);
    }
}

fn forked_children_do_not_answer(sandbox: &Sandbox) {
    let mut session = session(sandbox);
    let code =
        "import os\npid = os.fork()\nif pid: os.waitpid(pid, 0)\n'child' if pid == 0 else 'parent'";
    assert_eq!(
        session.run(code).unwrap().result.as_deref(),
        Some("'parent'")
    );
    let code = "import subprocess\nsubprocess.run(['echo', 'from outside']).returncode";
    let cell = session.run(code).unwrap();
    assert_eq!(
        (cell.stdout.as_str(), cell.result.as_deref()),
        ("from outside\n", Some("0"))
    );
}

fn no_cell_beyond_the_last(sandbox: &Sandbox) {
    let mut session = session(sandbox);
    let big = "#".repeat(300 << 10);
    assert!(session.run(&big).unwrap().flags.not_run);
    for number in 1..=20 {
        let cell = session.run("n = globals().get('n', 0) + 1; n").unwrap();
        assert_eq!(
            (cell.number, cell.result),
            (number, Some(number.to_string()))
        );
    }
    let cell = session.run("print('one more')").unwrap();
    assert!(cell.flags.not_run && cell.stdout.is_empty());
    assert!(
        cell.to_tool_text()
            .contains("no code executions are left: all 20")
    );
}

fn sessions_do_not_see_each_other(sandbox: &Sandbox) {
    let (mut one, mut other) = (session(sandbox), session(sandbox));
    one.run("x = 1\nopen('mine', 'w').write('secret')").unwrap();
    assert_eq!(
        stdout(
            &mut other,
            "import os\nprint(os.listdir('.'), 'x' in globals())"
        ),
        "[] False\n"
    );
    let killed = other
        .run("import signal\nos.kill(-1, signal.SIGKILL)\nwhile True: pass")
        .unwrap();
    assert!(killed.flags.restarted, "{killed:?}");
    assert_eq!(
        stdout(&mut one, "print(x, open('mine').read())"),
        "1 secret\n"
    );
}

fn files_are_placed_and_cannot_shadow_the_session(sandbox: &Sandbox) {
    let files = vec![
        FileIn::new("data/in.txt", "12"),
        FileIn::new("own.py", "value = 3"),
        FileIn::new("traceback.py", "raise SystemExit('shadowed')"),
    ];
    let mut session = PythonSession::new(sandbox, limits(), files);
    let code = "import own\nint(open('data/in.txt').read()) * own.value";
    assert_eq!(session.run(code).unwrap().result.as_deref(), Some("36"));
    session
        .run("import os; open('data/in.txt', 'w').write('0'); os._exit(1)")
        .unwrap();
    assert_eq!(session.run(code).unwrap().result.as_deref(), Some("36"));
}

fn a_broken_interpreter_is_no_fault_of_the_service(sandbox: &Sandbox) {
    let mut session = hasty(sandbox);
    for code in [
        "import json, os; os.write = json.dumps = None",
        "import sys; sys.stdout = sys.stderr = None",
        "import sys; sys.stdout.close()",
        "import builtins; builtins.repr = builtins.open = None",
        "import traceback; traceback.TracebackException = None; 1/0",
        "import os; os.dup2(os.open('/dev/null', os.O_WRONLY), 1)",
        "import sys; sys.modules.clear()",
        "import os, signal\nos.kill(-1, signal.SIGTERM)\nwhile True: pass",
        "x = 1\ndel __builtins__",
    ] {
        session.run(code).unwrap();
        let _ = session.run("print(1)").unwrap();
    }
    session.stop().unwrap();
    assert_eq!(stdout(&mut session, "print(1)"), "1\n");
}

fn memory_is_bounded(sandbox: &Sandbox) {
    let mut session = session(sandbox);
    session.run("x = 1").unwrap();
    let cell = session
        .run("def hold():\n    held = []\n    for i in range(64): held.append(bytearray(b'x') * (16 << 20))\n    print('ESCAPED')\nhold()")
        .unwrap();
    assert!(cell.flags.out_of_memory, "{cell:?}");
    assert!(cell.to_tool_text().contains("emory"), "{cell:?}");
    assert_eq!(cell.stdout, "");
    if cell.flags.restarted {
        assert_restarted(&mut session, &cell);
    } else {
        let cell = session.run("x").unwrap();
        assert_eq!(cell.result.as_deref(), Some("1"), "{cell:?}");
    }
}

fn many_sessions_at_once(sandbox: &Sandbox) {
    let mut sessions: Vec<_> = (0..30).map(|_| session(sandbox)).collect();
    std::thread::scope(|scope| {
        for (number, session) in sessions.iter_mut().enumerate() {
            scope.spawn(move || {
                session.run(&format!("x = {number}")).unwrap();
                let cell = session.run("x * 2").unwrap();
                assert_eq!(cell.result, Some((number * 2).to_string()));
            });
        }
    });
}
