"""A Unix socket server that acts on the first env/open and the first env/grade, and drops the connection before it replies.

Arguments: SOCKET LOG. Every idempotency key goes to the file LOG.
"""
import json
import pathlib
import socket
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3] / "scripts" / "agentenv"))
import agentenv  # noqa: E402


class Words(agentenv.Environment):
    name = "words"

    def make(self, seed, level, split):
        return agentenv.Task("Say a word.")

    def open(self, task):
        return Counted()


class Counted(agentenv.Session):
    def __init__(self):
        self.num_graded = 0

    def grade(self, trajectory):
        self.num_graded += 1
        return {"reward": 1.0, "parts": {"graded": self.num_graded}}


server = agentenv.Server(Words())
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
dropped = set()
while True:
    connection, _ = listener.accept()
    with connection, connection.makefile("rwb") as stream:
        for line in stream:
            message = json.loads(line)
            method = message["method"]
            if "idempotency_key" in message["params"]:
                with open(sys.argv[2], "a") as log:
                    log.write(f"{method} {message['params']['idempotency_key']}\n")
            reply = server.answer(line)
            if method in ("env/open", "env/grade") and method not in dropped:
                dropped.add(method)
                break
            stream.write(reply.encode() + b"\n")
            stream.flush()
