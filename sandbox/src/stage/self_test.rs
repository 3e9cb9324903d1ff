//! What a jail must hold back, tried from inside by the launcher itself: a backend counts as
//! working only when every attempt fails here.

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use rustix::net::{AddressFamily, SocketType, socket};
use serde::{Deserialize, Serialize};
use std::fs;
use std::net::{TcpStream, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};

use crate::wire::Program;

/// One attempt from inside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What was tried.
    pub attempt: String,
    /// It was held back.
    pub held: bool,
    /// What was seen.
    pub seen: String,
}

/// Tries everything, prints the checks as JSON and exits.
pub(super) fn run(program: &Program, environment: &[(String, String)]) -> ! {
    let checks = checks(program, environment);
    let text = serde_json::to_string(&checks).unwrap_or_default();
    print!("{text}");
    std::process::exit(0)
}

fn refused<T, E: ToString>(attempt: &str, result: Result<T, E>) -> Check {
    Check {
        attempt: attempt.to_owned(),
        held: result.is_err(),
        seen: match result {
            Ok(_) => "it worked".to_owned(),
            Err(error) => error.to_string(),
        },
    }
}

fn is_so(attempt: &str, held: bool, seen: impl ToString) -> Check {
    Check {
        attempt: attempt.to_owned(),
        held,
        seen: seen.to_string(),
    }
}

fn checks(program: &Program, environment: &[(String, String)]) -> Vec<Check> {
    let Program::SelfTest {
        sealed_path,
        port,
        abstract_name,
        harness_pid,
    } = program
    else {
        return Vec::new();
    };
    let (list, own_pid) = (
        "list the harness's descriptors",
        std::process::id().cast_signed(),
    );
    let harness = Pid::from_raw(*harness_pid);
    let abstract_address = SocketAddr::from_abstract_name(abstract_name);
    let signal = match kill(harness, None) {
        // In an own process namespace the number belongs to nobody, or to a process of the jail.
        Err(errno @ (Errno::ESRCH | Errno::EPERM)) => Err(errno),
        _ if *harness_pid == own_pid => Err(Errno::ESRCH),
        other => other,
    };
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .map(str::trim)
            .unwrap_or("unknown")
            .to_owned()
    };
    let capabilities = ["CapEff:", "CapPrm:", "CapAmb:"].map(field).join(" ");
    let descriptors: Vec<String> = fs::read_dir("/proc/self/fd")
        .map(|entries| {
            entries
                .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
                .filter(|name| name.parse::<u32>().is_ok_and(|number| number > 2))
                .collect()
        })
        .unwrap_or_else(|error| vec![error.to_string()]);
    // This stage's gate and status (closed by executing) and the listing itself.
    let few = descriptors.len() <= 3;
    let wanted = std::env::var("BALEEN_SANDBOX_SECRET");
    vec![
        refused(
            "connect to the host by TCP",
            TcpStream::connect(("127.0.0.1", *port)),
        ),
        refused("open a UDP socket", UdpSocket::bind("127.0.0.1:0")),
        refused(
            "open a raw netlink socket",
            socket(AddressFamily::NETLINK, SocketType::RAW, None),
        ),
        refused(
            "connect to an abstract Unix socket",
            abstract_address.and_then(|address| UnixStream::connect_addr(&address)),
        ),
        refused("read a file of the harness", fs::read(sealed_path)),
        refused("read /etc/shadow", fs::read("/etc/shadow")),
        refused(
            "write into /usr",
            fs::write("/usr/baleen-sandbox-probe", ""),
        ),
        match fs::read_dir(format!("/proc/{harness_pid}/fd")) {
            // The number of the harness may be this process's own in its namespace.
            Ok(_) if *harness_pid == own_pid => is_so(list, true, "that number is this process"),
            other => refused(list, other),
        },
        refused("signal the harness", signal),
        refused("make a user namespace", unshare(CloneFlags::CLONE_NEWUSER)),
        refused(
            "mount a file system",
            nix::mount::mount(
                Some("tmpfs"),
                ".",
                Some("tmpfs"),
                nix::mount::MsFlags::empty(),
                None::<&str>,
            ),
        ),
        is_so(
            "keep a capability",
            capabilities.chars().all(|c| c == '0' || c == ' '),
            capabilities,
        ),
        is_so(
            "run as root",
            nix::unistd::getuid().as_raw() != 0,
            nix::unistd::getuid(),
        ),
        is_so(
            "gain privileges later",
            field("NoNewPrivs:") == "1",
            field("NoNewPrivs:"),
        ),
        is_so(
            "run without a filter",
            field("Seccomp:") == "2",
            field("Seccomp:"),
        ),
        is_so("inherit a descriptor", few, descriptors.join(" ")),
        is_so(
            "see the harness's environment",
            wanted.is_err()
                && !environment
                    .iter()
                    .any(|(name, _)| name == "BALEEN_SANDBOX_SECRET"),
            "the variable BALEEN_SANDBOX_SECRET",
        ),
    ]
}
