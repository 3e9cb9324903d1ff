//! Memory, processor time, output, and programs that do not want to end.

use sandbox::{End, Sandbox};
use std::time::{Duration, Instant};

use crate::support::{python, shell, words};

crate::on_all_variants!(
    allocated_memory_is_bounded,
    memory_of_many_processes_is_bounded,
    shared_memory_is_bounded,
    a_spinning_program_is_ended,
    many_spinning_programs_are_ended,
    many_short_programs_are_ended,
);
crate::on_both_backends!(
    a_flood_of_output_is_cut,
    an_ignored_signal_does_not_help,
    input_that_is_not_read_does_not_hang,
);

fn allocated_memory_is_bounded(sandbox: &Sandbox) {
    let (spec, files) = python(
        "held = []\nfor i in range(64):\n    held.append(bytearray(b'x') * (16 << 20))\nprint('ESCAPED', len(held))",
    );
    let outcome = sandbox.run(&spec, &files, &[], &[]).unwrap();
    assert!(!words(&outcome).contains("ESCAPED"), "{}", words(&outcome));
    assert_ne!(outcome.end, End::Exited(0));
    assert!(
        outcome.flags.out_of_memory || words(&outcome).contains("MemoryError"),
        "{:?} {:?} {}",
        outcome.end,
        outcome.flags,
        words(&outcome)
    );
}

fn memory_of_many_processes_is_bounded(sandbox: &Sandbox) {
    // Each holds less than the bound.
    let (spec, files) = python(
        "import time\nfor i in range(8):\n    if os.fork() == 0:\n        held = bytearray(b'x') * (60 << 20)\n        time.sleep(20)\n        print('ESCAPED', flush=True)\n        os._exit(0)\nfor i in range(8): print(os.wait(), flush=True)\ntime.sleep(20)",
    );
    let start = Instant::now();
    let mut spec = spec;
    spec.limits.wall = Duration::from_secs(4);
    let outcome = sandbox.run(&spec, &files, &[], &[]).unwrap();
    assert!(
        outcome.flags.out_of_memory,
        "{:?} {}",
        outcome.flags,
        words(&outcome)
    );
    assert!(start.elapsed() < Duration::from_secs(10));
}

fn shared_memory_is_bounded(sandbox: &Sandbox) {
    // Files in memory count as files, and what escapes that counts as memory.
    let (spec, files) = python(
        "def fill(file):\n    with file:\n        for i in range(256):\n            file.write(b'x' * (1 << 20))\n\
         attempt('/dev/shm', lambda: fill(open('/dev/shm/x', 'wb', 0)))\n\
         attempt('/tmp', lambda: fill(open('/tmp/baleen-attack', 'wb', 0)))\n\
         attempt('memfd', lambda: fill(open(os.memfd_create('x'), 'wb', 0)))\n\
         attempt('SysV', lambda: libc.shmget(0, ctypes.c_size_t(1 << 30), 0o1600) != -1)\n\
         print('finished')",
    );
    let outcome = sandbox.run(&spec, &files, &[], &[]).unwrap();
    let text = words(&outcome);
    // A segment that is only reserved takes no memory.
    let text = text.replace("SysV ESCAPED True", "");
    assert!(!text.contains("ESCAPED"), "{text}");
    assert!(text.contains("finished"), "{:?} {text}", outcome.end);
    assert!(!std::path::Path::new("/dev/shm/x").exists());
    assert!(!std::path::Path::new("/tmp/baleen-attack").exists());
}

fn a_spinning_program_is_ended(sandbox: &Sandbox) {
    let mut spec = shell("while :; do :; done");
    spec.limits.cpu_secs = 1;
    let outcome = sandbox.run(&spec, &[], &[], &[]).unwrap();
    assert!(outcome.flags.out_of_cpu, "{outcome:?}");
    assert_ne!(outcome.end, End::Exited(0));
}

fn many_spinning_programs_are_ended(sandbox: &Sandbox) {
    // None reaches the limit of a process.
    let mut spec = shell("for i in 1 2 3 4 5 6; do (while :; do :; done) & done; wait");
    spec.limits.cpu_secs = 1;
    let outcome = sandbox.run(&spec, &[], &[], &[]).unwrap();
    assert!(outcome.flags.out_of_cpu, "{outcome:?}");
    assert_eq!(outcome.end, End::Killed);
}

fn many_short_programs_are_ended(sandbox: &Sandbox) {
    // Most of the time belongs to processes that are gone when somebody looks.
    let mut spec = shell("while :; do head -c 20M /dev/zero | sha256sum >/dev/null; done");
    spec.limits.cpu_secs = 1;
    spec.limits.wall = Duration::from_secs(10);
    let outcome = sandbox.run(&spec, &[], &[], &[]).unwrap();
    assert!(outcome.flags.out_of_cpu, "{outcome:?}");
    assert!(!outcome.flags.timed_out, "{outcome:?}");
}

fn a_flood_of_output_is_cut(sandbox: &Sandbox) {
    let outcome = sandbox
        .run(
            &shell("head -c 300M /dev/zero; echo end >&2"),
            &[],
            &[],
            &[],
        )
        .unwrap();
    assert!(outcome.flags.output_cut);
    assert_eq!(outcome.end, End::Exited(0));
    assert_eq!(outcome.stderr, b"end\n");
    assert!(outcome.stdout.len() < (64 << 10) + 100);
    let mark = format!("\n[{} more bytes were dropped]\n", (300 << 20) - (64 << 10));
    assert!(outcome.stdout.ends_with(mark.as_bytes()));
}

fn an_ignored_signal_does_not_help(sandbox: &Sandbox) {
    let mut spec = shell("trap '' TERM INT HUP QUIT XCPU; while :; do sleep 0.05; done");
    spec.limits.wall = Duration::from_millis(500);
    let start = Instant::now();
    let outcome = sandbox.run(&spec, &[], &[], &[]).unwrap();
    assert_eq!((outcome.end, outcome.flags.timed_out), (End::Killed, true));
    assert!(start.elapsed() < Duration::from_secs(5));
}

fn input_that_is_not_read_does_not_hang(sandbox: &Sandbox) {
    let mut spec = shell("exec sleep 60");
    spec.limits.wall = Duration::from_millis(500);
    let outcome = sandbox.run(&spec, &[], &vec![0; 4 << 20], &[]).unwrap();
    assert!(outcome.flags.timed_out);
    let outcome = sandbox
        .run(&shell("exec true"), &[], &vec![0; 4 << 20], &[])
        .unwrap();
    assert_eq!(outcome.end, End::Exited(0));
}
