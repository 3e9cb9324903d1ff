//! What honest programs earn, and what those get that attack the grading.

use super::*;

/// Whether a sandbox works here; says why not, so that nobody takes a skipped test for a passed one.
fn has_sandbox() -> bool {
    crate::sandboxed::tests::has_sandbox()
}

/// What `code` earns where `solve` must double its input.
fn doubled(code: &str) -> Verdict {
    let inputs: Vec<Value> = (1..4).map(|i| Value::List(vec![i; 2])).collect();
    let expected: Vec<Value> = (1..4).map(|i| Value::List(vec![2 * i; 2])).collect();
    grade_code(code, &inputs, &expected)
}

fn assert_fails(code: &str, part: &str) {
    let Verdict::Graded { reward, parts, .. } = doubled(code) else {
        panic!("a program is never a fault of the sandbox: {code}");
    };
    assert_eq!(reward, 0.0, "{code}");
    assert!(
        part.is_empty() || parts.contains_key(part),
        "{part}: {parts:?} of {code}"
    );
}

const RIGHT: &str = "def solve(x):\n    return [2 * v for v in x]";

#[test]
fn right_programs_earn_the_reward_however_they_are_written() {
    if !has_sandbox() {
        return;
    }
    for code in [
        RIGHT,
        "solve = lambda x: tuple(2 * v for v in x)",
        "import itertools, sys\nclass A:\n    def f(self, x):\n        return [v + v for v in x]\nsolve = A().f",
        "print('noise')\ndef solve(x):\n    print('more', x)\n    for i in range(len(x)):\n        x[i] *= 2\n    return x",
        "import sys\nsys.stdin.read()\nsys.setrecursionlimit(5000)\ndef solve(x):\n    return [2 * x[0]] + solve(x[1:]) if x else []",
        "# \u{e9}\u{4e2d}\ndef solve(x):\n    return [2 * v for v in x]\nif __name__ == '__main__':\n    raise SystemExit(3)",
    ] {
        assert_eq!(
            doubled(code).reward(),
            Some(1.0),
            "{code}: {:?}",
            doubled(code)
        );
    }
}

#[test]
fn wrong_results_earn_nothing() {
    if !has_sandbox() {
        return;
    }
    for code in [
        "def solve(x):\n    return x",
        "def solve(x):\n    return [2.0 * v for v in x]",
        "def solve(x):\n    return str([2 * v for v in x])",
        "def solve(x):\n    return [2 * v for v in x] if x[0] < 3 else x",
        "def solve(x):\n    return None",
    ] {
        assert_fails(code, "correct");
    }
}

#[test]
fn crashes_and_limits_are_the_programs_own_fault() {
    if !has_sandbox() {
        return;
    }
    for (code, part) in [
        ("def solve(x:\n    return x", "crashed"),
        ("def other(x):\n    return x", "crashed"),
        ("", "crashed"),
        ("def solve(x):\n    return {x}", "crashed"),
        ("def solve(x):\n    return object()", "crashed"),
        ("def solve(x):\n    return solve(x)", "crashed"),
        ("import os\nos.abort()", "crashed"),
        ("def solve(x):\n    while True:\n        pass", "timed_out"),
        (
            "held = []\nwhile True:\n    held.append(bytearray(b'x') * (1 << 24))",
            "missing_outputs",
        ),
    ] {
        assert_fails(code, part);
    }
}

#[test]
fn the_grading_cannot_be_forged() {
    if !has_sandbox() {
        return;
    }
    // After an attack the function answers wrongly, so that any reward would be the attack's.
    for code in [
        // Leaves early.
        "import os\nos._exit(0)",
        "raise SystemExit(0)",
        "import sys\ndef solve(x):\n    sys.exit(0)",
        // Prints what look like results, on every descriptor.
        "import os\nfor fd in range(256):\n    try:\n        os.write(fd, b'[2,2]\\n[4,4]\\n[6,7]\\n')\n    except OSError:\n        pass\nos._exit(0)",
        // The right number of lines, but additional ones too.
        "import os\nos.write(3, b'\\n')\ndef solve(x):\n    return [2 * v for v in x]",
        // Patches what the driver uses.
        "import json\njson.dumps = lambda *a, **k: 'true'\ndef solve(x):\n    return x",
        "import json\njson.loads = lambda line: [1, 1]\ndef solve(x):\n    return [2, 2]",
        "class Any(list):\n    def __eq__(self, other):\n        return True\ndef solve(x):\n    return Any(x)",
        "import builtins\nbuiltins.print = builtins.open = None\ndef solve(x):\n    return x",
        // Rewrites the driver, plants modules, leaves files for a grader that reads them.
        "open('main.py', 'w').write('')\nopen('json.py', 'w').write('')\nopen('reward.txt', 'w').write('1')\ndef solve(x):\n    return x",
        // A child that goes on writing.
        "import os, time\nif os.fork() == 0:\n    time.sleep(0.2)\n    os.write(3, b'[2,2]\\n[4,4]\\n[6,6]\\n')\n    os._exit(0)\nos._exit(0)",
        // Floods either stream.
        "import os\nwhile True:\n    os.write(3, b'[2,2]\\n' * 4096)",
        "import os\ndef solve(x):\n    os.write(1, b'x' * (1 << 22))\n    return [2 * v for v in x]",
        // A frame of the driver holds no expected value.
        "import sys\ndef solve(x):\n    return list(sys._getframe(1).f_globals.get('expected', x))",
    ] {
        assert_fails(code, "");
    }
}
