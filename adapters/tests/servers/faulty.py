"""An environment that goes wrong in every way that its tools name. Arguments: LOG [OPTION=VALUE...].

Starts and calls of `count` are lines of the file LOG. Options: max_sessions=N, dies_on=make|open, pays=1, reward=R.
"""
import os
import pathlib
import signal
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3] / "scripts" / "agentenv"))
import agentenv  # noqa: E402

LOG = pathlib.Path(sys.argv[1])
OPTIONS = dict(option.split("=", 1) for option in sys.argv[2:])


def log(line):
    with LOG.open("a") as file:
        file.write(line + "\n")


class Faulty(agentenv.Environment):
    name, version, levels = "faulty", 1, (1, 1)
    max_sessions = int(OPTIONS.get("max_sessions", 256))

    def make(self, seed, level, split):
        if OPTIONS.get("dies_on") == "make":
            os._exit(1)
        tools = [
            agentenv.tool("count", "Counts."),
            agentenv.tool("die", "Counts and dies."),
            agentenv.tool("hang", "Never answers."),
            agentenv.tool("freeze", "Nothing answers any more."),
            agentenv.tool("bear", "Starts a process that stays."),
            agentenv.tool("fail", "Fails with a code.", code=("integer", "code")),
        ]
        return agentenv.Task(f"Task {split} {seed}", tools=tools)

    def open(self, task):
        if OPTIONS.get("dies_on") == "open":
            os._exit(1)
        return FaultySession()


class FaultySession(agentenv.Session):
    def call(self, name, arguments):
        if name in ("count", "die"):
            log(name)
        if name == "die":
            os._exit(1)
        if name == "hang":
            time.sleep(60)
        if name == "freeze":
            os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(60)
        if name == "bear":
            return str(subprocess.Popen(["sleep", "600"]).pid)
        if name == "fail":
            raise agentenv.Error(arguments["code"], "as asked")
        return name

    def grade(self, trajectory):
        if "crash" in trajectory["answer"]:
            raise ValueError("the answer is 42")
        if OPTIONS.get("pays"):
            return {"reward": 1.0}
        return {"reward": float(OPTIONS.get("reward", "right" in trajectory["answer"])), "parts": {"events": len(trajectory["events"])}}


if __name__ == "__main__":
    log("start")
    agentenv.main(Faulty(), [])
