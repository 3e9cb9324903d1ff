#!/usr/bin/env python3
"""Checks that the documentation names what exists.

In README.md and docs/: every `path/file.ext` exists, every `path/file.rs::name` is defined there, and
every relative link leads somewhere. In the tables of docs/algorithm.md the names in the last column
are tests. The README's "Where is" table is there and names files. Exits 1 with one line a mistake.
"""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
PATH = re.compile(r"`((?:[\w.*-]+/)+(?:[\w*.-]+\.(?:rs|py|sh|ron|md|toml|json|cpp|h)|run|))((?:::\w+)*)`")
LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")
# Folders that a checkout doesn't hold: made by set-up, builds and runs, or named as an example.
MADE = ("runs/", "models/", "target/", ".libtorch/", "checkpoints/", "rollouts/", "model.layers.")


def definition(name, is_test):
    mark = r"#\[test\]\s*(?:#\[[^\]]*\]\s*)*" if is_test else ""
    return re.compile(mark + r"\b(?:fn|struct|enum|trait|const|static|type|mod|def|class)\s+" + re.escape(name) + r"\b")


def check(text, name, mistakes):
    """Checks one document; returns how many paths it names."""
    count = 0
    in_code = False
    for number, line in enumerate(text.splitlines(), 1):
        in_code ^= line.startswith("```")
        if in_code:
            continue
        cells = re.split(r"(?<!\\)\|", line.strip().strip("|")) if line.startswith("|") else [line]
        for column, cell in enumerate(cells):
            is_test = name == "docs/algorithm.md" and len(cells) > 1 and column == len(cells) - 1
            for path, names in PATH.findall(cell):
                if path.startswith(MADE):
                    continue
                count += 1
                files = list(ROOT.glob(path)) if "*" in path else [ROOT / path]
                if not files or not all(file.exists() for file in files):
                    mistakes.append(f"{name}:{number}: {path} does not exist")
                    continue
                # Of `Type::method` both are looked for, in this file.
                for wanted in filter(None, names.split("::")):
                    is_defined = definition(wanted, is_test).search
                    if not any(is_defined(file.read_text()) for file in files):
                        kind = "test" if is_test else "definition"
                        mistakes.append(f"{name}:{number}: {path} has no {kind} {wanted}")
        for link in LINK.findall(line):
            if not ((ROOT / name).parent / link).exists():
                mistakes.append(f"{name}:{number}: the link {link} leads nowhere")
    return count


def main():
    mistakes = []
    documents = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    count = sum(check(file.read_text(), str(file.relative_to(ROOT)), mistakes) for file in documents)
    _, heading, table = documents[0].read_text().partition("\n## Where is")
    rows = [row for row in table.partition("\n## ")[0].splitlines() if PATH.search(row)]
    if not heading or len(rows) < 10:
        mistakes.append('README.md: the table "Where is" is missing or names hardly any file')
    for mistake in mistakes:
        print(mistake, file=sys.stderr)
    print(f"{len(documents)} documents name {count} places, {len(mistakes)} of them wrong")
    sys.exit(1 if mistakes else 0)


if __name__ == "__main__":
    main()
