"""Datasets of the package reasoning-gym 0.1.25 as an environment of agentenv/1.

    python3 reasoning_gym_server.py chain_sum 'countdown={"min_numbers": 3, "max_numbers": 3}'

Seed s asks dataset s modulo their number. The system message asks for the answer between <answer> and </answer>; the last
pair counts, scored by the dataset's own `score_answer`. An entry is drawn again until its question's hash is in the split,
and until the dataset's own answer earns 1.0. The only level is 1; difficulty is in the JSON after a dataset's name.

The package imports others that only a few datasets need. Those that are missing are stood in for; a dataset that uses one
fails when it makes an entry.
"""
import hashlib
import json
import os
import random
import re
import sys
import types

import agentenv

SYSTEM = (
    "Work the problem out. Then give the final answer, in exactly the form that the problem asks for and with nothing "
    "else, between <answer> and </answer>."
)
ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
MAX_ATTEMPTS = 200
MAX_ANSWER_CHARS = 20_000


class _Missing(types.ModuleType):
    __path__ = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__init__": lambda *_, **__: _fail(self.__name__)})


def _fail(name):
    raise ImportError(f"the package {name} is not installed")


def import_reasoning_gym():
    """The package, whatever of its dependencies is missing."""
    while True:
        try:
            import reasoning_gym
            return reasoning_gym
        except ModuleNotFoundError as error:
            if error.name.split(".")[0] == "reasoning_gym":
                raise
            sys.modules[error.name] = _Missing(error.name)
            for name in [name for name in sys.modules if name.split(".")[0] == "reasoning_gym"]:
                del sys.modules[name]


def split_of(dataset, question):
    """A quarter of the questions is held out."""
    digest = hashlib.sha256(f"{dataset}\0{question}".encode()).digest()
    return "held_out" if digest[0] % 4 == 0 else "train"


class ReasoningGym(agentenv.Environment):
    name, version = "reasoning_gym", 1

    def __init__(self, datasets):
        self.gym = import_reasoning_gym()
        self.datasets = [(name, json.loads(config or "{}")) for name, _, config in (text.partition("=") for text in datasets)]

    def entry(self, seed, split):
        """The dataset's name, the dataset and its entry."""
        name, config = self.datasets[seed % len(self.datasets)]
        for attempt in range(MAX_ATTEMPTS):
            drawn = hashlib.sha256(f"{name} {seed} {split} {attempt}".encode()).digest()
            number = int.from_bytes(drawn[:4], "big") >> 1
            random.seed(number)  # a few datasets draw from the global generator as well
            dataset = self.gym.create_dataset(name, **{**config, "seed": number, "size": 1})
            entry = dataset[0]
            if split_of(name, entry["question"]) != split:
                continue
            if isinstance(entry["answer"], str) and dataset.score_answer(entry["answer"], entry) >= 1.0:
                return name, dataset, entry
        raise agentenv.Error(agentenv.INFRA, f"{name}: no entry of this split whose own answer earns 1.0")

    def make(self, seed, level, split):
        _, dataset, entry = self.entry(seed, split)
        return agentenv.Task(entry["question"], sealed=(dataset, entry), system=SYSTEM)

    def open(self, task):
        return Asked(*task.sealed)


class Asked(agentenv.Session):
    """A question, answered once."""

    def __init__(self, dataset, entry):
        self.dataset, self.entry = dataset, entry

    def grade(self, trajectory):
        answers = ANSWER.findall(trajectory["answer"])
        if not answers or len(answers[-1]) > MAX_ANSWER_CHARS:
            return {"reward": 0.0}
        answer = answers[-1].strip()
        try:
            score = min(max(float(self.dataset.score_answer(answer, self.entry)), 0.0), 1.0)
        except Exception:
            # Some scorers trip over what has not the form of an answer. They read their own answer when the task was
            # made, so this is a wrong answer and not a broken grader: else a policy could choose not to be graded.
            return {"reward": 0.0, "extracted": answer, "parts": {"unreadable": 1.0}}
        return {"reward": score, "extracted": answer}


if __name__ == "__main__":
    # The order of sets must not differ from one process to the next.
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "PYTHONHASHSEED": "0"})
    options = [at for at, text in enumerate(sys.argv) if text.startswith("--")]
    names = sys.argv[1 : options[0] if options else None]
    if not names:
        sys.exit(__doc__)
    agentenv.main(ReasoningGym(names), sys.argv[1 + len(names) :])
