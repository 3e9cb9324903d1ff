//! Messages between the library and the launcher: one datagram each on a SEQPACKET socket pair,
//! JSON or raw bytes of a file, with at most one descriptor attached.

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::spec::{Backend, JailSpec};

/// Bytes of the largest message; a socket's default buffer holds it.
pub(crate) const MESSAGE_BYTES: usize = 128 << 10;
/// Bytes of a file sent at once.
pub(crate) const CHUNK_BYTES: usize = 64 << 10;

/// Library to launcher.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// First, to the supervisor.
    Supervise {
        backend: Backend,
        /// User and group id of the slot; none keeps the caller's own.
        slot_id: Option<u32>,
    },
    /// What to run; the program's standard input comes with it.
    Prepare {
        spec: JailSpec,
        program: Program,
        /// Working folder on the host; the full backend has its own.
        work_dir: Option<String>,
        /// Bounds for a host without control groups, by `RLIMIT_DATA`.
        limit_data: bool,
    },
    /// A file; its bytes follow in raw messages.
    File {
        path: String,
        num_bytes: u64,
        executable: bool,
    },
    /// Everything is in place: start the program.
    Go,
}

/// What the last stage turns into.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Program {
    /// The command of the order.
    Command,
    /// The launcher's own checks, from inside.
    SelfTest {
        /// A file of the host that only the harness may see.
        sealed_path: String,
        /// A TCP port that listens on 127.0.0.1 of the host.
        port: u16,
        /// Name of an abstract Unix socket that listens.
        abstract_name: String,
        /// Process id of the harness.
        harness_pid: i32,
    },
}

/// Launcher to library.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// A process that the control group must hold before `Go`, as the host numbers it.
    Started { pid: i32 },
    /// The working folder is there; the full backend attaches its descriptor.
    Ready,
    /// The program could not be started: its own fault, such as a missing file.
    NotStarted { cause: String },
    /// A step of building the jail failed.
    Failed { action: String, cause: String },
    /// The program ended.
    Ended(Ended),
    /// Everything inside is dead.
    Gone,
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ended {
    /// It exited with this code.
    Exited(i32),
    /// This signal ended it.
    Signalled(i32),
}

/// Sends one message.
pub(crate) fn send<T: Serialize>(
    socket: impl AsFd,
    message: &T,
    fd: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > MESSAGE_BYTES {
        return Err(io::Error::other(format!(
            "a message of {} bytes, more than {MESSAGE_BYTES}",
            bytes.len()
        )));
    }
    send_bytes(socket, &bytes, fd)
}

/// Sends raw bytes as one message.
pub(crate) fn send_bytes(
    socket: impl AsFd,
    bytes: &[u8],
    fd: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<_> = fd.into_iter().collect();
    if !fds.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    }
    loop {
        match sendmsg(
            &socket,
            &[IoSlice::new(bytes)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        ) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// One raw message; empty when the other side is gone.
pub(crate) fn receive_bytes(socket: impl AsFd) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    let mut bytes = vec![0; MESSAGE_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match recvmsg(
            &socket,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        ) {
            Ok(received) => break received,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    };
    bytes.truncate(received.bytes);
    let mut fd = None;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            fd = fds.last().or(fd);
        }
    }
    Ok((bytes, fd))
}

/// One message; none when the other side is gone.
pub(crate) fn receive<T: DeserializeOwned>(
    socket: impl AsFd,
) -> io::Result<Option<(T, Option<OwnedFd>)>> {
    let (bytes, fd) = receive_bytes(socket)?;
    if bytes.is_empty() {
        return Ok(None);
    }
    Ok(Some((serde_json::from_slice(&bytes)?, fd)))
}
