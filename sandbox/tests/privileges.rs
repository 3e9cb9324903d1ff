//! Ways to more rights and to rarely used parts of the kernel.

use sandbox::{End, Sandbox};

use crate::support::{assert_all_blocked, python, words};

crate::on_both_backends!(
    no_privilege_is_gained,
    foreign_system_calls_kill,
    programs_with_the_setuid_bit_gain_nothing,
);

const REACH: &str = r#"
null = ctypes.c_void_p(0)
text = ctypes.c_char_p
attempt("setuid", lambda: os.setuid(0))
attempt("setgid", lambda: os.setgid(0))
attempt("setgroups", lambda: os.setgroups([0]))
attempt("chown", lambda: os.chown("attack.py", 0, 0))
attempt("chroot", lambda: os.chroot("/"))
attempt("nice", lambda: os.nice(-5) )
attempt("unshare user", lambda: call(272, 0x10000000))
attempt("unshare mount", lambda: call(272, 0x20000))
attempt("clone user", lambda: call(56, 0x10000000 | 17, 0, 0, 0, 0))
attempt("clone3", lambda: call(435, ctypes.create_string_buffer(88), 88))
attempt("setns", lambda: call(308, os.open("/proc/self/ns/net", os.O_RDONLY), 0))
attempt("mount", lambda: call(165, text(b"x"), text(b"."), text(b"tmpfs"), 0, null))
attempt("bind mount", lambda: call(165, text(b"/"), text(b"."), null, 4096, null))
attempt("remount", lambda: call(165, null, text(b"/usr"), null, 32 | 4096, null))
attempt("umount", lambda: call(166, text(b"/proc"), 2))
attempt("pivot_root", lambda: call(155, text(b"."), text(b".")))
attempt("open_tree", lambda: call(428, -100, text(b"/"), 1))
attempt("move_mount", lambda: call(429, -100, text(b"/"), -100, text(b"."), 0))
attempt("fsopen", lambda: call(430, text(b"tmpfs"), 0))
attempt("mount_setattr", lambda: call(442, -100, text(b"/"), 0, ctypes.create_string_buffer(32), 32))
attempt("bpf", lambda: call(321, 0, ctypes.create_string_buffer(128), 128))
attempt("io_uring", lambda: call(425, 4, ctypes.create_string_buffer(256)))
attempt("userfaultfd", lambda: call(323, 1))
attempt("keyctl", lambda: call(250, 0, -3, 1))
attempt("add_key", lambda: call(248, text(b"user"), text(b"x"), text(b"y"), 1, -3))
attempt("perf", lambda: call(298, ctypes.create_string_buffer(128), 0, -1, -1, 0))
attempt("open_by_handle_at", lambda: call(304, -100, ctypes.create_string_buffer(64), 0))
attempt("memfd_secret", lambda: call(447, 0))
attempt("personality", lambda: call(135, 0x0400000))
attempt("kexec", lambda: call(246, 0, 0, null, 0))
attempt("module", lambda: call(175, null, 0, text(b"")))
attempt("reboot", lambda: call(169, 0xfee1dead, 672274793, 0, null))
attempt("swapon", lambda: call(167, text(b"attack.py"), 0))
attempt("acct", lambda: call(163, null))
attempt("sethostname", lambda: call(170, text(b"x"), 1))
attempt("ioperm", lambda: call(173, 0, 8, 1))
attempt("kernel log", lambda: call(103, 3, ctypes.create_string_buffer(64), 64))
def type_into_terminal():
    import fcntl
    fcntl.ioctl(0, 0x5412, b"x")
attempt("TIOCSTI", type_into_terminal)
print("finished")
"#;

#[cfg(target_arch = "x86_64")]
fn no_privilege_is_gained(sandbox: &Sandbox) {
    let before = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let outcome = assert_all_blocked(sandbox, REACH, &[]);
    let num_attempts = REACH.matches("attempt(").count();
    assert_eq!(words(&outcome).matches("blocked").count(), num_attempts);
    let after = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert_eq!(after, before);
}

#[cfg(target_arch = "x86_64")]
fn foreign_system_calls_kill(sandbox: &Sandbox) {
    // getpid by an x32 number; then `mov eax, 20; int 0x80; ret` (getpid of 32-bit programs).
    let x32 = "libc.syscall(ctypes.c_long(0x40000000 + 39))";
    let int80 = "import mmap\n\
                 code = mmap.mmap(-1, 4096, prot=7)\n\
                 code.write(b'\\xb8\\x14\\0\\0\\0\\xcd\\x80\\xc3')\n\
                 address = ctypes.addressof(ctypes.c_char.from_buffer(code))\n\
                 ctypes.CFUNCTYPE(ctypes.c_int)(address)()";
    for attack in [x32, int80] {
        let (spec, files) = python(&format!(
            "print('before', flush=True)\n{attack}\nprint('ESCAPED')"
        ));
        let outcome = sandbox.run(&spec, &files, &[], &[]).unwrap();
        let text = words(&outcome);
        assert!(
            text.contains("before") && !text.contains("ESCAPED"),
            "{text}"
        );
        assert_eq!(outcome.end, End::Signalled(31), "{text}");
    }
}

fn programs_with_the_setuid_bit_gain_nothing(sandbox: &Sandbox) {
    // A setuid program of the host's, run inside, still has the jail's user; and a bit set inside
    // changes nothing either.
    let script = "cp /usr/bin/id own-id; chmod 4755 own-id; ./own-id -u; id -u; \
                  su -c 'echo ESCAPED' </dev/null; mount -t tmpfs x . && echo ESCAPED; exit 0";
    let outcome = sandbox
        .run(&crate::support::shell(script), &[], &[], &[])
        .unwrap();
    let text = words(&outcome);
    assert!(!text.contains("ESCAPED"), "{text}");
    let ids: Vec<_> = text.lines().take(2).collect();
    assert!(ids[0] == ids[1] && ids[0] != "0", "{text}");
}
