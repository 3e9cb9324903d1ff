"""Prints the datasets' own answers to the first COUNT training tasks, a JSON list: COUNT DATASET..."""
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3] / "scripts" / "agentenv"))
from reasoning_gym_server import ReasoningGym  # noqa: E402

environment = ReasoningGym(sys.argv[2:])
print(json.dumps([environment.entry(seed, "train")[2]["answer"] for seed in range(int(sys.argv[1]))]))
