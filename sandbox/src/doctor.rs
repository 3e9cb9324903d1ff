//! `baleen sandbox doctor`: what this machine offers, whether each backend holds, what to change.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use crate::cgroup::CgroupHome;
use crate::sandbox::{Sandbox, SelfTest};
use crate::spec::Backend;

/// Writes to `out`, a backend after the other; the backend with which untrusted programs run, where some works.
///
/// # Errors
/// `out` can't be written to.
pub fn doctor(launcher: &Path, out: &mut dyn Write) -> io::Result<Option<Backend>> {
    writeln!(out, "sandbox on this machine")?;
    writeln!(
        out,
        "  kernel           {}",
        read("/proc/sys/kernel/osrelease")
    )?;
    writeln!(out, "  user             {}", nix::unistd::geteuid())?;
    writeln!(out, "  user namespaces  {}", user_namespaces())?;
    match CgroupHome::find() {
        Ok(CgroupHome::V1 { .. }) => writeln!(out, "  control groups   version 1, writable"),
        Ok(CgroupHome::V2(dir)) => {
            writeln!(out, "  control groups   version 2, in {}", dir.display())
        }
        Err(reason) => writeln!(
            out,
            "  control groups   no: {reason}. Without them memory is bounded per process and by a watch"
        ),
    }?;
    let mut chosen = None;
    for backend in [Backend::Full, Backend::Lite] {
        writeln!(out, "\n{backend:?}")?;
        let test = match Sandbox::untested(launcher, backend) {
            Ok(sandbox) => sandbox.self_test(),
            Err(error) => SelfTest {
                backend,
                checks: Err(error),
            },
        };
        match &test.checks {
            Err(error) => writeln!(
                out,
                "  does not come up: {error}\n  to change: {}",
                advice(backend)
            )?,
            Ok(checks) => {
                for check in checks {
                    let verdict = if check.held { "held" } else { "OPEN" };
                    writeln!(out, "  {verdict}  {:<38} {}", check.attempt, check.seen)?;
                }
            }
        }
        if test.passes() {
            chosen.get_or_insert(backend);
        }
    }
    match chosen {
        Some(backend) => writeln!(
            out,
            "\nUntrusted programs run with the backend {backend:?}."
        ),
        None => writeln!(
            out,
            "\nNo backend holds: untrusted programs are refused on this machine."
        ),
    }?;
    Ok(chosen)
}

fn read(path: &str) -> String {
    fs::read_to_string(path)
        .map(|text| text.trim().to_owned())
        .unwrap_or_else(|error| format!("unknown ({error})"))
}

/// The switches that distributions use to forbid user namespaces.
fn user_namespaces() -> String {
    let is = |path: &str, value: &str| fs::read_to_string(path).is_ok_and(|t| t.trim() == value);
    if is("/proc/sys/user/max_user_namespaces", "0") {
        return "forbidden: sysctl -w user.max_user_namespaces=10000".to_owned();
    }
    if is("/proc/sys/kernel/unprivileged_userns_clone", "0") {
        return "root only: sysctl -w kernel.unprivileged_userns_clone=1".to_owned();
    }
    let restriction = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns";
    if is(restriction, "1") {
        return "restricted by AppArmor: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, \
                or a profile for baleen-sandbox with `userns,`"
            .to_owned();
    }
    "not forbidden by a sysctl".to_owned()
}

fn advice(backend: Backend) -> &'static str {
    match backend {
        Backend::Full => {
            "allow user namespaces (see above); in a container also mount system calls and an \
             unmasked /proc: --security-opt seccomp=unconfined --security-opt systempaths=unconfined"
        }
        Backend::Lite => "a kernel from 5.13 on with landlock in the boot option lsm=",
    }
}
