//! Ways to the host's files, and traps laid for the one who reads the outputs.

use sandbox::{End, Refusal, Sandbox};
use std::os::unix::fs::PermissionsExt;

use crate::support::{assert_all_blocked, shell, words};

crate::on_both_backends!(
    files_of_the_host_are_out_of_reach,
    traps_among_the_outputs_are_not_read,
    a_full_disk_stays_inside,
    a_deep_tree_is_removed,
    jails_do_not_see_each_other,
    a_file_swapped_for_a_link_is_never_followed,
);

const REACH: &str = r#"
sealed, harness, outside = sys.argv[1], sys.argv[2], sys.argv[3]
def read(path):
    with open(path, "rb") as file:
        file.read(1)
def write(path):
    with open(path, "w") as file:
        file.write("x")
own = os.getpid()
def of_another(name):
    # The harness's number may be this process's own in its namespace.
    return False if int(harness) == own else read(f"/proc/{harness}/{name}")
attempt("shadow", lambda: read("/etc/shadow"))
attempt("sealed", lambda: read(sealed))
attempt("sealed by root link", lambda: read("/proc/1/root" + sealed))
attempt("sealed by dots", lambda: read("../" * 40 + sealed[1:]))
attempt("list root's home", lambda: os.listdir("/root"))
attempt("environ", lambda: of_another("environ"))
attempt("memory", lambda: of_another("mem"))
attempt("environ of process 1", lambda: read("/proc/1/environ"))
attempt("memory of process 1", lambda: read("/proc/1/mem"))
attempt("descriptors of process 1", lambda: os.listdir("/proc/1/fd"))
attempt("usr", lambda: write("/usr/bin/baleen-attack"))
attempt("etc", lambda: write("/etc/baleen-attack"))
attempt("root", lambda: write("/baleen-attack"))
attempt("outside", lambda: write(outside + "/planted"))
attempt("remove", lambda: os.unlink(sealed))
attempt("rename", lambda: os.rename(sealed, sealed + "2"))
attempt("hostname", lambda: write("/proc/sys/kernel/hostname"))
attempt("core pattern", lambda: write("/proc/sys/kernel/core_pattern"))
attempt("sysrq", lambda: write("/proc/sysrq-trigger"))
attempt("oom score", lambda: write("/proc/1/oom_score_adj"))
attempt("release agent", lambda: write("/sys/fs/cgroup/memory/release_agent"))
attempt("block device", lambda: os.mknod("disk", 0o60666, os.makedev(254, 0)))
attempt("character device", lambda: os.mknod("mem", 0o20666, os.makedev(1, 1)))
attempt("disk", lambda: read("/dev/vda"))
attempt("kmsg", lambda: read("/dev/kmsg"))
attempt("hard link", lambda: os.link(sealed, "linked"))
attempt("handle", lambda: call(303, -100, ctypes.c_char_p(b"/"), ctypes.create_string_buffer(64), ctypes.create_string_buffer(8), 0))
print("finished")
"#;

fn files_of_the_host_are_out_of_reach(sandbox: &Sandbox) {
    let dir = tempfile::tempdir().unwrap();
    // Anybody of the host could read and write here.
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let sealed = dir.path().join("sealed");
    std::fs::write(&sealed, "the hidden answer").unwrap();
    let hostname = std::fs::read("/proc/sys/kernel/hostname").unwrap();
    let core_pattern = std::fs::read("/proc/sys/kernel/core_pattern").unwrap();
    assert_all_blocked(
        sandbox,
        REACH,
        &[
            sealed.to_str().unwrap(),
            &std::process::id().to_string(),
            dir.path().to_str().unwrap(),
        ],
    );
    assert_eq!(std::fs::read(&sealed).unwrap(), b"the hidden answer");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    assert!(!std::path::Path::new("/usr/bin/baleen-attack").exists());
    assert!(!std::path::Path::new("/etc/baleen-attack").exists());
    assert_eq!(
        std::fs::read("/proc/sys/kernel/hostname").unwrap(),
        hostname
    );
    assert_eq!(
        std::fs::read("/proc/sys/kernel/core_pattern").unwrap(),
        core_pattern
    );
}

fn traps_among_the_outputs_are_not_read(sandbox: &Sandbox) {
    let script = "echo good >good; ln -s /etc/passwd link; ln -s / up; echo x >a; ln a b; \
                  mkfifo fifo; truncate -s 15M large; mkdir dir; echo in >dir/in";
    let paths = [
        "good",
        "dir/in",
        "link",
        "up/etc/passwd",
        "../../etc/passwd",
        "/etc/passwd",
        "a",
        "fifo",
        "dir",
        "none",
    ];
    let outcome = sandbox.run(&shell(script), &[], &[], &paths).unwrap();
    assert_eq!(outcome.end, End::Exited(0), "{}", words(&outcome));
    let read: Vec<_> = outcome.files.into_iter().map(|file| file.bytes).collect();
    assert_eq!(
        read,
        [
            Ok(b"good\n".to_vec()),
            Ok(b"in\n".to_vec()),
            Err(Refusal::Escapes),
            Err(Refusal::Escapes),
            Err(Refusal::Escapes),
            Err(Refusal::Escapes),
            Err(Refusal::HardLinked),
            Err(Refusal::NotPlain),
            Err(Refusal::NotPlain),
            Err(Refusal::Missing),
        ]
    );
    let mut jail = sandbox.spawn(&shell("truncate -s 15M large"), &[]).unwrap();
    jail.wait(&[]).unwrap();
    let max_bytes = 1 << 20;
    assert_eq!(
        jail.read_file("large", max_bytes),
        Err(Refusal::TooLarge { max_bytes })
    );
}

fn a_full_disk_stays_inside(sandbox: &Sandbox) {
    // More than the bound in one file, a sparse terabyte, and the bound many times in many files.
    let script = "head -c 20M /dev/zero >one; truncate -s 1T sparse; \
                  for i in 1 2 3 4 5 6 7 8; do head -c 4M /dev/zero >part$i; done; sleep 2; echo end";
    let outcome = sandbox.run(&shell(script), &[], &[], &[]).unwrap();
    let text = words(&outcome);
    let refused = text.contains("No space left") || outcome.flags.out_of_disk;
    assert!(refused, "{:?} {text}", outcome.flags);
    assert!(
        text.contains("File too large") || text.contains("File size limit"),
        "{text}"
    );
}

fn a_deep_tree_is_removed(sandbox: &Sandbox) {
    let (spec, files) = crate::support::python(
        "for i in range(200):\n    os.mkdir('d'); os.chdir('d')\nos.chmod('.', 0)\nprint('finished')",
    );
    let outcome = sandbox.run(&spec, &files, &[], &[]).unwrap();
    assert!(words(&outcome).contains("finished"), "{}", words(&outcome));
    // The next jail finds a fresh folder.
    let outcome = sandbox.run(&shell("ls -A"), &[], &[], &[]).unwrap();
    assert_eq!((outcome.end, outcome.stdout), (End::Exited(0), vec![]));
}

fn jails_do_not_see_each_other(sandbox: &Sandbox) {
    let mut first = sandbox
        .spawn(&shell("echo secret >mine; pwd; exec sleep 30"), &[])
        .unwrap();
    let time = std::time::Duration::from_secs(10);
    let sandbox::Line::Bytes(dir) = first.read_line(time).unwrap() else {
        panic!("no line");
    };
    let dir = String::from_utf8(dir).unwrap();
    let script = format!("cat {dir}/mine; kill -9 -1; echo after");
    let outcome = sandbox.run(&shell(&script), &[], &[], &[]).unwrap();
    assert!(!words(&outcome).contains("secret"), "{}", words(&outcome));
    assert!(first.is_running());
    first.kill().unwrap();
    assert_eq!(first.read_file("mine", 100), Ok(b"secret\n".to_vec()));
}

fn a_file_swapped_for_a_link_is_never_followed(sandbox: &Sandbox) {
    let (spec, files) = crate::support::python(
        "open('plain', 'w').write('good'); os.symlink('/etc/passwd', 'link'); os.mkdir('dir')\n\
         open('dir/passwd', 'w').write('good'); os.symlink('/etc', 'etc')\n\
         print('ready', flush=True)\n\
         exchange = lambda a, b: call(316, -100, ctypes.c_char_p(a), -100, ctypes.c_char_p(b), 2)\n\
         while True:\n    exchange(b'plain', b'link'); exchange(b'dir', b'etc')",
    );
    let mut jail = sandbox.spawn(&spec, &files).unwrap();
    let time = std::time::Duration::from_secs(10);
    assert_eq!(
        jail.read_line(time).unwrap(),
        sandbox::Line::Bytes(b"ready".to_vec())
    );
    let mut num_refused = [0, 0];
    let mut num_read = [0, 0];
    let until = std::time::Instant::now() + time;
    // Until both have been met both ways, and a thousand times at least.
    for round in 0.. {
        for (index, path) in ["plain", "dir/passwd"].into_iter().enumerate() {
            match jail.read_file(path, 1000) {
                Ok(bytes) => {
                    assert_eq!(bytes, b"good");
                    num_read[index] += 1;
                }
                Err(refusal) => {
                    assert_eq!(refusal, Refusal::Escapes);
                    num_refused[index] += 1;
                }
            }
        }
        let met = num_read.iter().chain(&num_refused).all(|num| *num > 0);
        if round > 1000 && met {
            break;
        }
        assert!(
            std::time::Instant::now() < until,
            "{num_read:?} {num_refused:?}"
        );
    }
    jail.kill().unwrap();
}
