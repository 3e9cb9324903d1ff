"""A server of the protocol agentenv/1 (docs/agentenv.md) in one file, without packages beyond Python's own.

    class Guess(agentenv.Environment):
        name, version, levels = "guess", 1, (1, 3)
        def make(self, seed, level, split):   # the same arguments: the same task, in every process
            return agentenv.Task("What is 6 times 7?", sealed="42")
        def open(self, task):                 # a session: its own state, its own `call` and `grade`
            return GuessSession(task)

    agentenv.main(Guess())                    # standard input and output; or --socket PATH; or --port PORT

till.py beside this file is a complete example. Python 3.9 or newer.
"""
import argparse
import collections
import concurrent.futures
import hmac
import http.server
import json
import os
import socketserver
import sys
import threading
import time
import uuid

PROTOCOL = "agentenv/1"
PARSE, BAD_REQUEST, UNKNOWN_METHOD, BAD_PARAMS, INTERNAL = -32700, -32600, -32601, -32602, -32603
CAPACITY, SESSION_LOST, GRADER_FAILED, INFRA = -32000, -32001, -32002, -32003


class Error(Exception):
    """What the caller is told with a code of the protocol. Its words must not hold the answer."""

    def __init__(self, code, message, **data):
        super().__init__(message)
        self.code, self.message, self.data = code, message, data


class ToolError(Exception):
    """What the policy did wrong, for it to read."""


class Final(str):
    """Output of a call that handed the answer in: the episode ends."""


class Task:
    """What the policy sees, and `sealed`, which never leaves the server."""

    def __init__(self, question, sealed=None, system=None, tools=(), limits=None):
        self.messages = [{"role": "user", "content": question}]
        if system is not None:
            self.messages.insert(0, {"role": "system", "content": system})
        self.question, self.sealed, self.tools, self.limits = question, sealed, list(tools), limits


def tool(name, description, **parameters):
    """A tool whose arguments are all required: `tool("add", "Adds.", a=("integer", "a number"))`."""
    properties = {key: {"type": kind, "description": words} for key, (kind, words) in parameters.items()}
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return {"name": name, "description": description, "inputSchema": schema}


class Session:
    """One episode. Methods of one session are never run at the same time."""

    def call(self, name, arguments):
        """Runs a tool; returns text or Final, or raises ToolError."""
        raise Error(BAD_PARAMS, f"no tool {name!r}")

    def observe(self, content):
        """Hears a turn without calls; returns what a user says to it, or None at the end."""
        return None

    def grade(self, trajectory):
        """Grades {"answer": text, "events": [...]}; returns {"reward": number in [0, 1], "parts"?, "extracted"?}."""
        raise NotImplementedError

    def close(self):
        """Gives back what the session holds."""


class Environment:
    """A set of tasks."""

    name, version, levels, max_sessions, ttl_secs = "", 1, (1, 1), 256, 600

    def make(self, seed, level, split):
        """The task of these arguments; `split` is "train" or "held_out", and the two share no task."""
        raise NotImplementedError

    def open(self, task):
        """A fresh Session of the task."""
        raise NotImplementedError


class _Open:
    def __init__(self, session, reply):
        self.session, self.reply, self.lock, self.used = session, reply, threading.Lock(), time.monotonic()
        self.verdicts = {}


class Server:
    """Answers the messages of one environment. Threads may share it."""

    def __init__(self, environment, max_tasks=4096):
        self.environment, self.max_tasks = environment, max_tasks
        self.lock = threading.Lock()
        self.tasks, self.sessions, self.by_key = collections.OrderedDict(), {}, {}
        self.methods = {
            "env/describe": self.describe, "env/make": self.make, "env/open": self.open, "tools/call": self.call,
            "env/observe": self.observe, "env/grade": self.grade, "env/close": self.close,
        }

    def answer(self, line):
        """The reply to a message, as text without line breaks; None to a notification."""
        ident = None
        try:
            try:
                message = json.loads(line)
            except ValueError:
                raise Error(PARSE, "not JSON") from None
            if not isinstance(message, dict) or message.get("jsonrpc") != "2.0":
                raise Error(BAD_REQUEST, "no JSON-RPC 2.0 request")
            ident = message.get("id")
            method = self.methods.get(message.get("method"))
            if method is None:
                raise Error(UNKNOWN_METHOD, "unknown method")
            try:
                reply = {"result": method(**{key.lstrip("_"): value for key, value in message.get("params", {}).items()})}
            except TypeError as error:
                raise Error(BAD_PARAMS if error.__traceback__.tb_next is None else INTERNAL, "TypeError") from error
        except Error as error:
            reply = {"error": {"code": error.code, "message": error.message, "data": error.data}}
        except Exception as error:  # its words may hold the answer: they go to standard error alone
            print(f"agentenv: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            reply = {"error": {"code": INTERNAL, "message": type(error).__name__}}
        return None if ident is None else json.dumps({"jsonrpc": "2.0", "id": ident, **reply})

    def describe(self):
        first, last = self.environment.levels
        return {"protocol": PROTOCOL, "name": self.environment.name, "version": self.environment.version,
                "levels": {"first": first, "last": last}, "deterministic": True, "stateless": False}

    def make(self, seed, level, split):
        first, last = self.environment.levels
        if not (isinstance(seed, int) and isinstance(level, int) and first <= level <= last and split in ("train", "held_out")):
            raise Error(BAD_PARAMS, "no such seed, level or split")
        return {"task": self._shown(self._task(f"{split}/{level}/{seed}"))}

    def open(self, task_id, idempotency_key):
        self._reap()
        task = self._task(task_id)
        with self.lock:
            known = self.by_key.get(idempotency_key)
            if known is not None:
                return known.reply
            if len(self.sessions) >= self.environment.max_sessions:
                raise Error(CAPACITY, "no room for another session", retry_after_ms=200)
            shown = self._shown(task)
            reply = {"session": uuid.uuid4().hex, "messages": shown["messages"], "tools": shown["tools"],
                     "ttl_ms": int(self.environment.ttl_secs * 1000)}
            opened = _Open(None, reply)
            self.sessions[reply["session"]] = self.by_key[idempotency_key] = opened
            opened.key = idempotency_key
            opened.lock.acquire()
        try:
            opened.session = self.environment.open(task)
        except BaseException:
            self._forget(reply["session"])
            raise
        finally:
            opened.lock.release()
        return reply

    def call(self, name, arguments, meta):
        with self._session(meta.get("agentenv/session")) as session:
            try:
                output = session.call(name, arguments)
            except ToolError as error:
                return {"content": [{"type": "text", "text": f"Error: {error}"}], "isError": True}
            result = {"content": [{"type": "text", "text": str(output)}], "isError": False}
            if isinstance(output, Final):
                result["_meta"] = {"agentenv/final": True}
            return result

    def observe(self, session, content):
        with self._session(session) as opened:
            said = opened.observe(content)
            return {"next": "done"} if said is None else {"next": "user", "content": said}

    def grade(self, session, trajectory, idempotency_key):
        with self._session(session) as opened:
            verdicts = self.sessions[session].verdicts
            if idempotency_key not in verdicts:
                try:
                    verdicts[idempotency_key] = opened.grade(trajectory)
                except Exception as error:
                    print(f"agentenv: grader: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                    raise Error(GRADER_FAILED, type(error).__name__) from None
            return verdicts[idempotency_key]

    def close(self, session):
        self._forget(session)
        return {}

    def _task(self, task_id):
        with self.lock:
            task = self.tasks.pop(task_id, None)
        if task is None:
            try:
                split, level, seed = task_id.split("/")
                task = self.environment.make(int(seed), int(level), split)
            except ValueError:
                raise Error(BAD_PARAMS, "no such task") from None
            task.id = task_id
        with self.lock:
            self.tasks[task_id] = task
            while len(self.tasks) > self.max_tasks:
                self.tasks.popitem(last=False)
        return task

    @staticmethod
    def _shown(task):
        shown = {"id": task.id, "messages": task.messages, "tools": task.tools}
        return shown if task.limits is None else {**shown, "limits": task.limits}

    def _session(self, ident):
        with self.lock:
            opened = self.sessions.get(ident)
        if opened is None:
            raise Error(SESSION_LOST, "no such session")
        return _Locked(opened)

    def _forget(self, ident):
        with self.lock:
            opened = self.sessions.pop(ident, None)
            if opened is not None:
                self.by_key.pop(opened.key, None)
        if opened is not None and opened.session is not None:
            with opened.lock:
                opened.session.close()

    def _reap(self):
        old = time.monotonic() - self.environment.ttl_secs
        with self.lock:
            idle = [ident for ident, opened in self.sessions.items() if opened.used < old and not opened.lock.locked()]
        for ident in idle:
            self._forget(ident)


class _Locked:
    def __init__(self, opened):
        self.opened = opened

    def __enter__(self):
        self.opened.lock.acquire()
        self.opened.used = time.monotonic()
        return self.opened.session

    def __exit__(self, *_):
        self.opened.used = time.monotonic()
        self.opened.lock.release()


def _serve_lines(server, incoming, outgoing):
    """Answers line by line, sessions at the same time, until the input ends."""
    writing = threading.Lock()

    def work(line):
        reply = server.answer(line)
        if reply is not None:
            with writing:
                try:
                    outgoing.write(reply.encode() + b"\n")
                    outgoing.flush()
                except OSError:
                    pass  # whoever asked has gone

    with concurrent.futures.ThreadPoolExecutor(max_workers=32) as pool:
        for line in incoming:
            if line.strip():
                pool.submit(work, line)


def serve_stdio(environment):
    """Serves one caller; what the environment prints goes to standard error."""
    outgoing = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    server = Server(environment)
    threading.Thread(target=lambda: (_serve_lines(server, sys.stdin.buffer, outgoing), os._exit(0)), daemon=True).start()
    threading.Event().wait()


def serve_socket(environment, path):
    """Serves any number of callers on a Unix socket that only this user may open."""
    server = Server(environment)

    class Connection(socketserver.StreamRequestHandler):
        def handle(self):
            _serve_lines(server, self.rfile, self.wfile)

    class Listener(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
        daemon_threads = True

    mask = os.umask(0o177)
    try:
        listener = Listener(path, Connection)
    finally:
        os.umask(mask)
    with listener:
        listener.serve_forever()


def serve_http(environment, port, token=None):
    """Serves POST on 127.0.0.1, with `Authorization: Bearer TOKEN` where there is a token; never a web page."""
    server = Server(environment)

    class Request(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            told = self.headers.get("Authorization", "")
            if self.headers.get("Origin") or token and not hmac.compare_digest(told, f"Bearer {token}"):
                return self.send_error(403)
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            reply = (server.answer(body) or "").encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", port), Request) as listener:
        print(f"listening on http://127.0.0.1:{listener.server_address[1]}/", flush=True)
        listener.serve_forever()


def main(environment, arguments=None):
    """Serves as the command line says. AGENTENV_TOKEN is the token of HTTP."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--socket", help="serve on this Unix socket")
    parser.add_argument("--port", type=int, help="serve HTTP on this port of 127.0.0.1; 0 takes a free one")
    asked = parser.parse_args(arguments)
    if asked.socket:
        serve_socket(environment, asked.socket)
    elif asked.port is not None:
        serve_http(environment, asked.port, os.environ.get("AGENTENV_TOKEN"))
    else:
        serve_stdio(environment)
