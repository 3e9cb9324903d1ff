//! The filter of system calls, installed last. It takes away what widens the kernel's attack
//! surface or reaches beyond the jail; everything else stays, so that compilers, interpreters and
//! test runners work unchanged.
//!
//! Denied calls return EPERM. `clone3` returns ENOSYS, since a filter cannot see its flags and libc
//! then falls back to `clone`. Calls by another architecture's numbers kill the process.

use libc as c;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Cmp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch, apply_filter,
};
use std::collections::BTreeMap;

use crate::SandboxError;
use crate::error::While;
use crate::spec::Backend;

/// Never needed by a program, with no argument that would make them harmless.
const DENIED: &[c::c_long] = &[
    // Reaching into other processes.
    c::SYS_ptrace,
    c::SYS_process_vm_readv,
    c::SYS_process_vm_writev,
    c::SYS_process_madvise,
    c::SYS_pidfd_getfd,
    c::SYS_kcmp,
    // Namespaces and mounts.
    c::SYS_unshare,
    c::SYS_setns,
    c::SYS_mount,
    c::SYS_umount2,
    c::SYS_move_mount,
    c::SYS_open_tree,
    c::SYS_mount_setattr,
    c::SYS_fsopen,
    c::SYS_fsconfig,
    c::SYS_fsmount,
    c::SYS_fspick,
    c::SYS_pivot_root,
    c::SYS_chroot,
    c::SYS_open_by_handle_at,
    c::SYS_name_to_handle_at,
    c::SYS_quotactl,
    c::SYS_fanotify_init,
    // Large or often broken parts of the kernel.
    c::SYS_bpf,
    c::SYS_perf_event_open,
    c::SYS_userfaultfd,
    c::SYS_keyctl,
    c::SYS_add_key,
    c::SYS_request_key,
    c::SYS_io_uring_setup,
    c::SYS_io_uring_enter,
    c::SYS_io_uring_register,
    c::SYS_memfd_secret,
    c::SYS_lookup_dcookie,
    // The machine itself.
    c::SYS_kexec_load,
    c::SYS_kexec_file_load,
    c::SYS_init_module,
    c::SYS_finit_module,
    c::SYS_delete_module,
    c::SYS_reboot,
    c::SYS_swapon,
    c::SYS_swapoff,
    c::SYS_acct,
    c::SYS_syslog,
    c::SYS_vhangup,
    c::SYS_settimeofday,
    c::SYS_clock_settime,
    c::SYS_clock_adjtime,
    c::SYS_adjtimex,
    c::SYS_sethostname,
    c::SYS_setdomainname,
    #[cfg(target_arch = "x86_64")]
    c::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    c::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    c::SYS_modify_ldt,
];

/// Without an IPC namespace and a control group these reach the host or hide memory from limits.
const DENIED_IN_LITE: &[c::c_long] = &[
    c::SYS_socket,
    c::SYS_shmget,
    c::SYS_shmat,
    c::SYS_semget,
    c::SYS_msgget,
    c::SYS_mq_open,
    c::SYS_memfd_create,
];

/// Calls that change how a process is scheduled, and which argument names it; 0 is the caller.
const SCHEDULING: [(c::c_long, u8); 6] = [
    (c::SYS_setpriority, 1),
    (c::SYS_ioprio_set, 1),
    (c::SYS_sched_setaffinity, 0),
    (c::SYS_sched_setscheduler, 0),
    (c::SYS_sched_setparam, 0),
    (c::SYS_sched_setattr, 0),
];

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Installs the filters on this process and all it starts.
pub(super) fn install(backend: Backend) -> Result<(), SandboxError> {
    let programs = programs(backend).while_trying("compile the filter of system calls")?;
    for program in programs {
        apply_filter(&program).while_trying("install the filter of system calls")?;
    }
    Ok(())
}

fn programs(backend: Backend) -> Result<Vec<BpfProgram>, seccompiler::BackendError> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let build = |rules: Rules, errno: i32| -> Result<BpfProgram, seccompiler::BackendError> {
        SeccompFilter::new(
            rules,
            SeccompAction::Allow,
            SeccompAction::Errno(errno.cast_unsigned()),
            arch,
        )?
        .try_into()
    };
    let mut programs = vec![
        build(denied(backend)?, c::EPERM)?,
        build(Rules::from([(c::SYS_clone3, vec![])]), c::ENOSYS)?,
    ];
    if cfg!(target_arch = "x86_64") {
        programs.push(kill_x32());
    }
    Ok(programs)
}

fn denied(backend: Backend) -> Result<Rules, seccompiler::BackendError> {
    let mut rules: Rules = DENIED.iter().map(|call| (*call, vec![])).collect();
    let argument = |index, op, value: u64| {
        SeccompRule::new(vec![SeccompCondition::new(index, Len::Dword, op, value)?])
    };
    let flag = |index, bits: u64| argument(index, Cmp::MaskedEq(bits), bits);
    // New namespaces by clone, one rule a flag.
    let namespaces = [
        c::CLONE_NEWUSER,
        c::CLONE_NEWNS,
        c::CLONE_NEWPID,
        c::CLONE_NEWNET,
        c::CLONE_NEWIPC,
        c::CLONE_NEWUTS,
        c::CLONE_NEWCGROUP,
    ];
    let clone = namespaces
        .iter()
        .map(|bits| flag(0, u64::from(bits.cast_unsigned())))
        .collect::<Result<_, _>>()?;
    rules.insert(c::SYS_clone, clone);
    // Device nodes; FIFOs and plain files may be made.
    let nodes = |index| -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
        [c::S_IFCHR, c::S_IFBLK]
            .iter()
            .map(|kind| argument(index, Cmp::MaskedEq(c::S_IFMT.into()), u64::from(*kind)))
            .collect()
    };
    rules.insert(c::SYS_mknodat, nodes(2)?);
    #[cfg(target_arch = "x86_64")]
    rules.insert(c::SYS_mknod, nodes(1)?);
    // Typing into a terminal.
    let requests = [c::TIOCSTI, c::TIOCLINUX]
        .iter()
        .map(|request| argument(1, Cmp::Eq, *request))
        .collect::<Result<_, _>>()?;
    rules.insert(c::SYS_ioctl, requests);
    // Asking for the personality stays allowed.
    rules.insert(c::SYS_personality, vec![argument(0, Cmp::Ne, 0xffff_ffff)?]);
    // The limits of other processes.
    rules.insert(c::SYS_prlimit64, vec![argument(0, Cmp::Ne, 0)?]);
    let not_unix = || argument(0, Cmp::Ne, c::AF_UNIX as u64);
    rules.insert(c::SYS_socket, vec![not_unix()?]);
    rules.insert(c::SYS_socketpair, vec![not_unix()?]);
    if backend == Backend::Lite {
        rules.extend(DENIED_IN_LITE.iter().map(|call| (*call, vec![])));
        // Without root the harness has the same user id, which is all these calls ask for.
        for (call, index) in SCHEDULING {
            rules.insert(call, vec![argument(index, Cmp::Ne, 0)?]);
        }
    }
    Ok(rules)
}

/// The x32 numbers pass the architecture check, so they need one of their own:
/// load the number; at 2^30 or above kill, else allow.
fn kill_x32() -> BpfProgram {
    let step = |code: u32, jt, jf, k| seccompiler::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    vec![
        step(c::BPF_LD | c::BPF_W | c::BPF_ABS, 0, 0, 0),
        step(c::BPF_JMP | c::BPF_JGE | c::BPF_K, 0, 1, 0x4000_0000),
        step(c::BPF_RET | c::BPF_K, 0, 0, c::SECCOMP_RET_KILL_PROCESS),
        step(c::BPF_RET | c::BPF_K, 0, 0, c::SECCOMP_RET_ALLOW),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_compile_for_both_backends() {
        for backend in [Backend::Full, Backend::Lite] {
            assert!(programs(backend).unwrap().iter().all(|p| p.len() > 3));
        }
    }
}
