//! JSON-RPC over lines: one message a line, on a program's standard streams or a Unix socket.
//!
//! Any number of threads may ask at the same time; replies are matched by number. A thread writes, so that a server that
//! reads nothing holds up nobody beyond the deadline; another reads. When the other side ends, or writes what is no
//! message, every waiting request is lost and the connection is over for good.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::agentenv::wire::{CallError, RpcError};
use crate::config::Program;
use crate::program::Running;

/// Longest line that is read.
const MAX_LINE_BYTES: u64 = 16 << 20;

/// See the module. Dropping it ends the program, or closes the socket.
#[derive(Debug)]
pub(crate) struct Lines {
    /// Taken when the connection is dropped, so that the writer closes the server's input first.
    outgoing: Option<Sender<Vec<u8>>>,
    next_id: AtomicU64,
    waiting: Arc<Mutex<Waiting>>,
    peer: Peer,
}

#[derive(Debug)]
enum Peer {
    Program(Running),
    Socket(UnixStream),
}

#[derive(Debug, Default)]
struct Waiting {
    /// By number of the request.
    requests: BTreeMap<u64, SyncSender<Result<Value, RpcError>>>,
    /// Why the connection is over.
    ended: Option<String>,
}

#[derive(Deserialize)]
struct Reply {
    /// Absent from notifications.
    id: Option<u64>,
    result: Option<Value>,
    error: Option<RpcError>,
}

impl Lines {
    /// # Errors
    /// The program can't be started.
    pub(crate) fn start(program: &Program) -> std::io::Result<Lines> {
        let (running, stdin, stdout) = Running::start(program)?;
        Ok(Lines::of(stdout, stdin, Peer::Program(running)))
    }

    /// # Errors
    /// Nobody listens.
    pub(crate) fn connect(path: &Path) -> std::io::Result<Lines> {
        let stream = UnixStream::connect(path)?;
        let (incoming, outgoing) = (stream.try_clone()?, stream.try_clone()?);
        Ok(Lines::of(incoming, outgoing, Peer::Socket(stream)))
    }

    fn of(
        incoming: impl Read + Send + 'static,
        outgoing: impl Write + Send + 'static,
        peer: Peer,
    ) -> Lines {
        let waiting = Arc::<Mutex<Waiting>>::default();
        let (sender, lines) = channel();
        let (for_writer, for_reader) = (waiting.clone(), waiting.clone());
        thread::spawn(move || write(outgoing, &lines, &for_writer));
        thread::spawn(move || read(incoming, &for_reader));
        Lines {
            outgoing: Some(sender),
            next_id: AtomicU64::new(1),
            waiting,
            peer,
        }
    }

    /// Asks and waits for the reply, at most `deadline`.
    pub(crate) fn request(
        &self,
        method: &str,
        params: &Value,
        deadline: Duration,
    ) -> Result<Value, CallError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, reply) = sync_channel(1);
        {
            let mut waiting = lock(&self.waiting);
            if let Some(reason) = &waiting.ended {
                return Err(CallError::Lost(reason.clone()));
            }
            waiting.requests.insert(id, sender);
        }
        self.send(id, method, params);
        match reply.recv_timeout(deadline) {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(error)) => Err(CallError::Refused(error)),
            Err(RecvTimeoutError::Timeout) => {
                lock(&self.waiting).requests.remove(&id);
                Err(CallError::Timeout)
            }
            Err(RecvTimeoutError::Disconnected) => {
                let reason = lock(&self.waiting).ended.clone();
                Err(CallError::Lost(reason.unwrap_or_default()))
            }
        }
    }

    /// Asks without waiting; the reply is passed over.
    pub(crate) fn tell(&self, method: &str, params: &Value) {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        self.send(id, method, params);
    }

    /// Whether it is over.
    pub(crate) fn has_ended(&self) -> bool {
        lock(&self.waiting).ended.is_some()
    }

    /// Number of the server's process.
    pub(crate) fn process_id(&self) -> Option<u32> {
        match &self.peer {
            Peer::Program(running) => Some(running.id()),
            Peer::Socket(_) => None,
        }
    }

    /// Ends it at once, whoever still waits.
    pub(crate) fn kill(&self) {
        match &self.peer {
            Peer::Program(running) => running.kill(),
            Peer::Socket(stream) => {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
        end(&self.waiting, "it hung and was ended");
    }

    fn send(&self, id: u64, method: &str, params: &Value) {
        let message = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
        let mut line = message.to_string().into_bytes();
        line.push(b'\n');
        if let Some(outgoing) = &self.outgoing {
            // The writer has gone only where the connection is over, which whoever waits is told.
            let _ = outgoing.send(line);
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.outgoing = None;
        if let Peer::Socket(stream) = &self.peer {
            let _ = stream.shutdown(Shutdown::Read);
        }
    }
}

fn lock(waiting: &Mutex<Waiting>) -> MutexGuard<'_, Waiting> {
    waiting.lock().expect("nothing panics under this lock")
}

/// The connection is over: whoever waits is told by the sender that is dropped.
fn end(waiting: &Mutex<Waiting>, reason: &str) {
    let mut waiting = lock(waiting);
    waiting.ended.get_or_insert_with(|| reason.to_string());
    waiting.requests.clear();
}

fn write(mut outgoing: impl Write, lines: &Receiver<Vec<u8>>, waiting: &Mutex<Waiting>) {
    for line in lines {
        if let Err(error) = outgoing.write_all(&line).and_then(|()| outgoing.flush()) {
            return end(waiting, &format!("it reads no more: {error}"));
        }
    }
}

fn read(incoming: impl Read, waiting: &Mutex<Waiting>) {
    let mut incoming = BufReader::new(incoming);
    let mut line = Vec::new();
    loop {
        line.clear();
        // What the line says is kept out of reasons: it may be the answer.
        match (&mut incoming)
            .take(MAX_LINE_BYTES)
            .read_until(b'\n', &mut line)
        {
            Ok(0) => return end(waiting, "it ended"),
            Ok(_) if line.last() != Some(&b'\n') => {
                return end(
                    waiting,
                    "it ended within a line, or wrote one that is too long",
                );
            }
            Ok(_) => {}
            Err(error) => return end(waiting, &format!("it can't be read: {error}")),
        }
        let Ok(reply) = serde_json::from_slice::<Reply>(&line) else {
            return end(waiting, "it wrote a line that is no JSON-RPC message");
        };
        let Some(id) = reply.id else { continue };
        // Nobody waits for what comes too late.
        if let Some(sender) = lock(waiting).requests.remove(&id) {
            let result = match (reply.result, reply.error) {
                (_, Some(error)) => Err(error),
                (result, None) => Ok(result.unwrap_or(Value::Null)),
            };
            let _ = sender.send(result);
        }
    }
}
