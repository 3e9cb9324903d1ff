//! Landlock: which files may be touched, no TCP, and (scopes) neither signals nor abstract Unix
//! sockets across the jail's border. Best effort above the first version, because the self-test
//! measures what counts.

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope,
};
use std::path::Path;

use crate::SandboxError;
use crate::error::While;
use crate::spec::Backend;

const DEVICES: [&str; 5] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
];
/// What the lite backend shows of the host; /proc/self is this very process only.
const READABLE_IN_LITE: [&str; 20] = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/etc/ld.so.cache",
    "/etc/alternatives",
    "/etc/ssl/openssl.cnf",
    "/etc/passwd",
    "/etc/group",
    "/etc/nsswitch.conf",
    "/proc/self",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/loadavg",
    "/proc/uptime",
    "/proc/sys/vm/overcommit_memory",
    "/sys/devices/system/cpu/online",
];

/// Confines this process and all it starts.
pub(super) fn confine(
    backend: Backend,
    work_dir: &str,
    readable: &[String],
) -> Result<(), SandboxError> {
    let failed = "confine files by Landlock";
    let abi = ABI::V6;
    let read = AccessFs::from_read(abi);
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))
        .while_trying(failed)?
        .handle_access(AccessNet::from_all(abi))
        .while_trying(failed)?
        .scope(Scope::from_all(abi))
        .while_trying(failed)?
        .create()
        .while_trying(failed)?;
    let all = AccessFs::from_all(abi);
    let mut allowed: Vec<(&str, BitFlags<AccessFs>)> = Vec::new();
    match backend {
        // The root holds nothing but what may be read.
        Backend::Full => allowed.extend([("/", read), ("/tmp", all), ("/dev/shm", all)]),
        Backend::Lite => allowed.extend(READABLE_IN_LITE.map(|path| (path, read))),
    }
    allowed.extend(readable.iter().map(|path| (path.as_str(), read)));
    allowed.extend(DEVICES.map(|path| (path, AccessFs::ReadFile | AccessFs::WriteFile)));
    allowed.push((work_dir, all));
    for (path, access) in allowed {
        // What a system lacks needs no rule.
        let Ok(fd) = PathFd::new(path) else {
            continue;
        };
        let access = if Path::new(path).is_dir() {
            access
        } else {
            access & AccessFs::from_file(abi)
        };
        rules = rules
            .add_rule(PathBeneath::new(fd, access))
            .while_trying(format!("{failed}: {path}"))?;
    }
    let status = rules.restrict_self().while_trying(failed)?;
    if status.ruleset == RulesetStatus::NotEnforced {
        return Err(SandboxError::infra(
            failed,
            "the kernel has no Landlock (needs 5.13 or later with landlock among the boot option lsm=)",
        ));
    }
    Ok(())
}
