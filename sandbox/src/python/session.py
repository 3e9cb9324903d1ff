"""Two processes of a Python session: a keeper, which talks to the harness, and a worker, which runs cells.

The worker is forked before any cell runs. Its standard output and error are pipes that the keeper reads,
and it has none of the keeper's descriptors; the keeper is undumpable, so that /proc shows neither its
descriptors nor its memory. What a cell prints is therefore never taken for a frame.

Harness to keeper, one JSON line a cell:   {"id": 1, "code": "..."}
Keeper to harness, one JSON line:          {"ready": true} once, then a frame a cell
Worker to keeper, one line a cell:         nonce, a space, JSON; other lines are passed over

Bytes cross as {"head": hex, "tail": hex, "dropped": n}: both ends of what was too long.
Arguments: seconds a cell, seconds between interrupt and kill, bytes kept of each stream.
"""

import sys

del sys.path[0]  # the folder of the session's files must not shadow the standard library here

import ast
import ctypes
import json
import linecache
import os
import select
import signal
import time
import traceback
import types

PR_SET_DUMPABLE = 4
# More than any pipe holds: what was written before a frame is read before it is answered.
DRAIN_BYTES = 2 << 20


class Cut:
    """Keeps the head and the tail of a stream."""

    def __init__(self, max_bytes):
        self.half = max_bytes // 2
        self.head, self.tail, self.dropped = bytearray(), bytearray(), 0

    def add(self, data):
        room = self.half - len(self.head)
        self.head += data[:room]
        self.tail += data[room:]
        extra = len(self.tail) - self.half
        if extra > 0:
            self.dropped += extra
            del self.tail[:extra]

    def plain(self):
        return {"head": self.head.hex(), "tail": self.tail.hex(), "dropped": self.dropped}


def cut_text(text, max_bytes):
    cut = Cut(max_bytes)
    cut.add(text.encode("utf-8", "replace"))
    return cut.plain()


def set_dumpable(value):
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_DUMPABLE, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


class Worker:
    """Runs cells in one namespace that stays."""

    def __init__(self, commands, results, max_bytes):
        self.commands = os.fdopen(commands, "rb")
        self.results = results
        self.max_bytes = max_bytes
        self.own_pid = os.getpid()
        self.is_in_cell = False
        self.saved = [os.dup(1), os.dup(2)]
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(line_buffering=True)  # what a killed worker printed is there
        self.module = types.ModuleType("__main__")
        self.module.__dict__["__builtins__"] = __builtins__
        sys.modules["__main__"] = self.module
        sys.path.insert(0, os.getcwd())
        sys.argv = [""]

    def serve(self):
        # References of its own: a cell may replace what a module holds.
        write, dumps, loads = os.write, json.dumps, json.loads
        getpid, leave = os.getpid, os._exit
        for line in self.commands:
            order = loads(line)
            answer = self.run_cell(order["id"], order["code"])
            if getpid() != self.own_pid:
                leave(0)  # a child that a cell forked and that ran to the cell's end
            data = order["nonce"].encode() + b" " + dumps(answer).encode() + b"\n"
            while data:
                data = data[write(self.results, data):]

    def prepare_streams(self):
        """Undoes what an earlier cell did to the streams and to the interrupt."""
        for target, saved in zip((1, 2), self.saved):
            os.dup2(saved, target)
        for name, fd in (("stdout", 1), ("stderr", 2)):
            stream = getattr(sys, name, None)
            if stream is None or getattr(stream, "closed", True):
                setattr(sys, name, open(fd, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False))
        if getattr(sys.stdin, "closed", True):
            sys.stdin = open(os.devnull)
        signal.signal(signal.SIGINT, self.on_interrupt)

    def on_interrupt(self, number, frame):
        if self.is_in_cell:
            raise KeyboardInterrupt

    def run_cell(self, number, code):
        answer = {"result": None, "error": None, "memory_error": False}
        try:
            self.prepare_streams()
            self.is_in_cell = True
            value = self.execute("<cell %d>" % number, code)
            if value is not None:
                self.module.__dict__["_"] = value
                answer["result"] = cut_text(repr(value), self.max_bytes)
        except BaseException as error:
            self.is_in_cell = False
            answer["memory_error"] = isinstance(error, MemoryError)
            answer["error"] = cut_text(self.words(error), self.max_bytes)
        finally:
            self.is_in_cell = False
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except BaseException:
                pass
        return answer

    def execute(self, name, code):
        """The value of a last line that is an expression."""
        linecache.cache[name] = (len(code), None, code.splitlines(True), name)
        tree = ast.parse(code, name)
        last = None
        if tree.body and isinstance(tree.body[-1], ast.Expr):
            last = ast.Expression(tree.body.pop().value)
        names = self.module.__dict__
        exec(compile(tree, name, "exec"), names)
        return None if last is None else eval(compile(last, name, "eval"), names)

    def words(self, error):
        """The traceback without the frames of this file."""
        own_file = Worker.execute.__code__.co_filename
        try:
            shown = traceback.TracebackException(type(error), error, error.__traceback__)
            names = [frame.filename for frame in shown.stack]
            first = next((i for i, name in enumerate(names) if name.startswith("<cell ")), len(names))
            del shown.stack[:first]
            pending, seen = [shown], set()
            while pending:
                part = pending.pop()
                if part is not None and id(part) not in seen:
                    seen.add(id(part))
                    part.stack[:] = [f for f in part.stack if f.filename != own_file]
                    pending += [part.__cause__, part.__context__]
            return "".join(shown.format()).rstrip("\n")
        except BaseException:
            return "%s (its traceback cannot be shown)" % type(error).__name__


class Keeper:
    """Feeds the worker, reads what it prints, holds it to its time."""

    def __init__(self, cell_secs, grace_secs, max_bytes):
        self.cell_secs, self.grace_secs, self.max_bytes = cell_secs, grace_secs, max_bytes
        self.late = Cut(max_bytes)
        self.commands = bytearray()
        self.results = bytearray()
        self.to_worker = b""
        self.begin(None, None)
        woken, wake = os.pipe()
        for fd in (woken, wake):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        self.woken = woken
        self.fork()

    def fork(self):
        (command_in, command_out), (result_in, result_out) = os.pipe(), os.pipe()
        (stdout_in, stdout_out), (stderr_in, stderr_out) = os.pipe(), os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            nothing = os.open(os.devnull, os.O_RDONLY)
            for source, target in ((nothing, 0), (stdout_out, 1), (stderr_out, 2)):
                os.dup2(source, target)
            for fd in range(3, max(stderr_out, nothing) + 1):
                if fd not in (command_in, result_out):
                    try:
                        os.close(fd)
                    except OSError:
                        pass
            set_dumpable(1)
            Worker(command_in, result_out, self.max_bytes).serve()
            os._exit(0)
        for fd in (command_in, result_out, stdout_out, stderr_out):
            os.close(fd)
        self.command_out, self.result_in = command_out, result_in
        self.streams = {stdout_in: "stdout", stderr_in: "stderr"}
        for fd in (command_out, result_in, stdout_in, stderr_in):
            os.set_blocking(fd, False)

    def begin(self, number, nonce):
        self.number, self.nonce = number, nonce
        self.printed = {"stdout": Cut(self.max_bytes), "stderr": Cut(self.max_bytes)}
        self.interrupt_at = time.monotonic() + self.cell_secs
        self.interrupted = False

    def serve(self):
        self.say({"ready": True})
        while True:
            self.turn()

    def turn(self):
        poll = select.poll()
        for fd in (0, self.woken, self.result_in, *self.streams):
            poll.register(fd, select.POLLIN)
        if self.to_worker:
            poll.register(self.command_out, select.POLLOUT)
        wait = None
        if self.number is not None:
            wait = max(0.0, self.interrupt_at - time.monotonic()) * 1000 + 1
        ready = [fd for fd, _ in poll.poll(wait)]
        for fd in ready:
            if fd in self.streams:
                self.read_stream(fd, 1 << 16)
        if self.woken in ready:
            os.read(self.woken, 4096)
        if self.result_in in ready:
            self.read_results()
        if self.command_out in ready:
            self.feed()
        ended, status = os.waitpid(self.pid, os.WNOHANG)
        if ended:
            self.finish({"end": "died", "status": status})
        if self.number is not None and time.monotonic() >= self.interrupt_at:
            self.time_is_over()
        if 0 in ready:
            self.read_commands()

    def read_stream(self, fd, max_bytes):
        """True when there may be more."""
        try:
            data = os.read(fd, max_bytes)
        except BlockingIOError:
            return False
        if not data:
            del self.streams[fd]
            return False
        cut = self.late if self.number is None else self.printed[self.streams[fd]]
        cut.add(data)
        return True

    def drain(self):
        for fd in list(self.streams):
            for _ in range(DRAIN_BYTES >> 16):
                if not self.read_stream(fd, 1 << 16):
                    break

    def read_commands(self):
        data = os.read(0, 1 << 16)
        if not data:
            os._exit(0)
        self.commands += data
        line, end, rest = self.commands.partition(b"\n")
        if not end:
            return
        self.commands = rest
        order = json.loads(line)
        self.drain()  # still belongs to what came before
        order["nonce"] = os.urandom(16).hex()
        self.begin(order["id"], order["nonce"])
        self.results.clear()
        self.to_worker = json.dumps(order).encode() + b"\n"

    def feed(self):
        try:
            self.to_worker = self.to_worker[os.write(self.command_out, self.to_worker):]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self.kill_worker()

    def read_results(self):
        try:
            data = os.read(self.result_in, 1 << 16)
        except BlockingIOError:
            return
        if not data:
            self.kill_worker()
            return
        self.results += data
        while self.number is not None:
            line, end, rest = self.results.partition(b"\n")
            if not end:
                break
            self.results = rest
            nonce, _, payload = line.partition(b" ")
            if nonce == self.nonce.encode():
                try:
                    answer = json.loads(payload)
                    answer = {name: answer[name] for name in ("result", "error", "memory_error")}
                except Exception:
                    continue
                self.finish({"end": "done", **answer})
        if len(self.results) > 10 * self.max_bytes + 4096:
            self.results.clear()

    def time_is_over(self):
        if self.interrupted:
            self.kill_worker()
            self.finish({"end": "killed"})
            return
        self.interrupted = True
        self.interrupt_at = time.monotonic() + self.grace_secs
        os.kill(self.pid, signal.SIGINT)

    def kill_worker(self):
        os.kill(self.pid, signal.SIGKILL)

    def finish(self, frame):
        """Answers a cell; a session whose worker is gone ends, and with it the jail."""
        self.drain()
        number, printed = self.number, {name: cut.plain() for name, cut in self.printed.items()}
        late, self.late = self.late, Cut(self.max_bytes)
        frame = {"result": None, "error": None, "memory_error": False, "status": 0, **frame}
        if number is not None:
            self.say({**frame, "id": number, "interrupted": self.interrupted, "late": late.plain(), **printed})
        if frame["end"] != "done":
            os._exit(0)
        self.begin(None, None)

    def say(self, frame):
        data = json.dumps(frame).encode() + b"\n"
        while data:
            data = data[os.write(1, data):]


def main():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.unlink(__file__)
    set_dumpable(0)
    cell_secs, grace_secs, max_bytes = sys.argv[1:]
    Keeper(float(cell_secs), float(grace_secs), int(max_bytes)).serve()


main()
