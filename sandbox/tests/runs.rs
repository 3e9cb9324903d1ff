//! What honest programs get: input, files, sessions, and errors that say whose fault it is.

use sandbox::{End, FileIn, JailSpec, Line, Sandbox, SandboxError};
use std::time::Duration;

use crate::support::{python, shell, words};

crate::on_both_backends!(
    input_files_and_outputs_pass_through,
    a_session_answers_line_by_line,
    a_missing_program_is_its_own_fault,
    common_tools_work,
    a_readable_folder_is_readable_only,
);

const TIME: Duration = Duration::from_secs(10);

fn input_files_and_outputs_pass_through(sandbox: &Sandbox) {
    let large = vec![b'z'; 1 << 20];
    let files = [
        FileIn {
            path: "bin/tool.sh".to_owned(),
            bytes: b"#!/bin/sh\ncat >out/echo; wc -c <data/large; echo oops >&2; exit 3\n".to_vec(),
            executable: true,
        },
        FileIn::new("data/large", large),
        FileIn::new("out/empty", ""),
    ];
    let mut spec = shell("");
    spec.command = vec!["bin/tool.sh".to_owned()];
    let outcome = sandbox
        .run(&spec, &files, b"hello", &["out/echo", "out/empty"])
        .unwrap();
    assert_eq!(outcome.end, End::Exited(3), "{}", words(&outcome));
    assert_eq!(outcome.stdout, b"1048576\n");
    assert_eq!(outcome.stderr, b"oops\n");
    assert_eq!(outcome.files[0].bytes, Ok(b"hello".to_vec()));
    assert_eq!(outcome.files[1].bytes, Ok(vec![]));
    assert!(!outcome.flags.any());
}

fn a_session_answers_line_by_line(sandbox: &Sandbox) {
    let (spec, files) = python("for line in sys.stdin:\n    print(eval(line), flush=True)");
    let mut jail = sandbox.spawn(&spec, &files).unwrap();
    for (question, answer) in [("6 * 7\n", "42"), ("len('abc')\n", "3")] {
        jail.write(question.as_bytes(), TIME).unwrap();
        assert_eq!(jail.read_line(TIME).unwrap(), Line::Bytes(answer.into()));
    }
    assert_eq!(
        jail.read_line(Duration::from_millis(50)).unwrap(),
        Line::NotYet
    );
    jail.close_stdin();
    assert_eq!(jail.read_line(TIME).unwrap(), Line::Ended);
    jail.wait(&[]).unwrap();
    assert_eq!(jail.end(), Some(&End::Exited(0)));
}

fn a_missing_program_is_its_own_fault(sandbox: &Sandbox) {
    let outcome = sandbox
        .run(&JailSpec::new(["no-such-program"]), &[], &[], &[])
        .unwrap();
    assert!(matches!(outcome.end, End::NotStarted(_)), "{outcome:?}");
    let bad = sandbox.run(&shell("true"), &[FileIn::new("../x", "")], &[], &[]);
    assert!(matches!(bad, Err(SandboxError::BadSpec(_))));
    let mut huge = shell("true");
    huge.command.push("x".repeat(1 << 20));
    let bad = sandbox.run(&huge, &[], &[], &[]);
    assert!(matches!(bad, Err(SandboxError::BadSpec(_))), "{bad:?}");
}

fn common_tools_work(sandbox: &Sandbox) {
    let (spec, files) = python(
        "import subprocess, threading, tempfile, sqlite3\n\
         print(subprocess.run(['/bin/sh', '-c', 'seq 3 | sort -r | tr \"\\n\" \" \"'], capture_output=True).stdout)\n\
         worker = threading.Thread(target=lambda: print('thread')); worker.start(); worker.join()\n\
         with tempfile.TemporaryFile() as file: print(file.write(b'abc'))\n\
         base = sqlite3.connect('base.db'); base.execute('create table t(x)'); base.commit()\n\
         read, write = os.pipe(); os.mkfifo('fifo'); print('finished')",
    );
    let outcome = sandbox.run(&spec, &files, &[], &[]).unwrap();
    let expected = "b'3 2 1 '\nthread\n3\nfinished\n";
    assert_eq!(
        String::from_utf8_lossy(&outcome.stdout),
        expected,
        "{}",
        words(&outcome)
    );
    assert!(outcome.is_success());
}

fn a_readable_folder_is_readable_only(sandbox: &Sandbox) {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    std::fs::write(dir.path().join("given"), "given").unwrap();
    let path = dir.path().to_str().unwrap();
    let mut spec = shell(&format!("cat {path}/given; echo x >{path}/new"));
    spec.readable.push(path.to_owned());
    let outcome = sandbox.run(&spec, &[], &[], &[]).unwrap();
    assert_eq!(outcome.stdout, b"given", "{}", words(&outcome));
    assert!(!dir.path().join("new").exists());
}
